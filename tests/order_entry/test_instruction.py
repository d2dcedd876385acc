"""What an instruction may hold, while the DAG is parsed and when it is carried out."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest

from openmarkets_provider import orders
from openmarkets_provider.exceptions import OpenmarketsOrderError
from openmarkets_provider.order_entry.instruction import action_of, check, resolve

LATER = SimpleNamespace(resolve=lambda context: None)
"""Takes the place of an upstream task's result."""


def limit(**changes: Any) -> orders.Instruction:
    return orders.limit(**{"security": "BHP", "account": "SBX0001", "buy": 100, "price": "45.50"} | changes)


def test_a_limit_order_is_plain_data():
    order = limit(price=Decimal("45.50"), lifetime="Date", expiry_date_time=datetime(2026, 12, 1, tzinfo=UTC))
    assert json.loads(json.dumps(order)) == order
    arguments = resolve(order)
    assert (arguments["security"], arguments["side"], arguments["volume"]) == ("BHP.ASX@TM", "Buy", 100)
    assert arguments["price"] == Decimal("45.50")
    assert arguments["expiry_date_time"] == datetime(2026, 12, 1, tzinfo=UTC)


@pytest.mark.parametrize("side", ["buy", "sell", "short"])
def test_a_market_order_has_no_price(side):
    order = orders.market("BHP.ASX", account="SBX0001", **{side: 7})
    assert (order["side"], order["price"], action_of(order)) == (side.capitalize(), None, "place")


@pytest.mark.parametrize("price", [45.5, 45, "45,50", "x", "0", "-1", "NaN", "Infinity", "1" * 19, True, [], None])
def test_a_price_is_a_decimal_or_a_text(price):
    with pytest.raises(OpenmarketsOrderError, match="price"):
        limit(price=price)


@pytest.mark.parametrize("volume", [0, -1, 1.0, "1.0", "1e3", True, "", "٣", 10**18, "9" * 19, []])
def test_a_volume_is_a_whole_number(volume):
    with pytest.raises(OpenmarketsOrderError, match="volume must be a whole number"):
        limit(buy=volume)


@pytest.mark.parametrize("sides", [{}, {"buy": 1, "sell": 1}, {"buy": 1, "sell": 1, "short": 1}])
def test_an_order_has_one_side(sides):
    with pytest.raises(OpenmarketsOrderError, match="one of buy, sell and short"):
        orders.market("BHP", account="SBX0001", **sides)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"security": "B H P"}, "security"),
        ({"account": "a/b"}, "account"),
        ({"account": None}, "account must be set"),
        ({"lifetime": "Forever"}, "lifetime must be one of"),
        ({"lifetime": "Date"}, "expiry_date_time"),
        ({"expiry_date_time": "2026-12-01"}, "expiry_date_time"),
        ({"lifetime": "Date", "expiry_date_time": "soon"}, "expiry_date_time"),
        ({"notes": "two\nlines"}, "notes must be a string"),
        ({"destination": ""}, "destination must be a string"),
        ({"order_giver": 7}, "order_giver must be a string"),
    ],
)
def test_a_malformed_argument_is_named(changes, words):
    with pytest.raises(OpenmarketsOrderError, match=words):
        limit(**changes)


def test_templates_and_upstream_results_are_checked_when_they_are_known():
    order = limit(security="{{ params.code }}", buy="{{ params.volume }}", price=LATER, account=LATER)
    rendered = order | {"security": "BHP", "volume": "50", "price": "1.5", "account": "SBX0001"}
    assert resolve(rendered)["volume"] == 50
    with pytest.raises(OpenmarketsOrderError, match="volume"):
        resolve(rendered | {"volume": "half"})
    with pytest.raises(OpenmarketsOrderError, match="account must be set"):
        resolve(rendered | {"account": None})


@pytest.mark.parametrize("text", ["", None])
def test_an_empty_template_is_no_market_order_by_accident(text):
    order = limit(price="{{ params.price }}") | {"price": text}
    with pytest.raises(OpenmarketsOrderError, match="price"):
        resolve(order)


def test_amend_and_cancel():
    assert resolve(orders.amend(7, account="SBX0001", price="45.6"))["price"] == Decimal("45.6")
    assert resolve(orders.cancel("7", account="SBX0001")) == {"order_number": "7", "account": "SBX0001"}
    with pytest.raises(OpenmarketsOrderError, match="a volume, a price or both"):
        orders.amend(7, account="SBX0001")
    for number in ("7/v1", 0, 1.5, None, "../1"):
        with pytest.raises(OpenmarketsOrderError, match="order_number"):
            orders.cancel(number, account="SBX0001")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "must be the result of a function"),
        ([], "must be the result of a function"),
        ({}, "action None is unknown"),
        ({"action": "buy"}, "'buy' is unknown"),
        ({"action": []}, "is unknown"),
        ({"action": "cancel", "order_number": 1}, "argument account is missing"),
        ({"action": "cancel", "order_number": 1, "account": "a", "volume": 1}, "unknown argument volume"),
    ],
)
def test_what_is_no_instruction(data, words):
    with pytest.raises(OpenmarketsOrderError, match=words):
        check(data)
