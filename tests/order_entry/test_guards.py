"""What a connection and an operator forbid."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from openmarkets_provider import orders
from openmarkets_provider.exceptions import OpenmarketsOrderError
from openmarkets_provider.order_entry.guards import (
    Limits,
    Policy,
    check_cash,
    check_collar,
    check_day_value,
    check_reduces,
    check_trading_status,
    check_value,
    reference_price,
    value_of,
)
from openmarkets_provider.order_entry.instruction import resolve
from openmarkets_provider.order_entry.terms import Facts, Terms, make_terms

NOW = datetime(2026, 11, 30, 1, tzinfo=UTC)
QUOTE = {
    "last_price": Decimal("45"),
    "ask_price": Decimal("45.1"),
    "bid_price": Decimal("44.9"),
    "update_date_time": NOW - timedelta(minutes=1),
}


def terms(price: str | None = "45.50", **sides: Any) -> Terms:
    sides = sides or {"buy": 100}
    order = (
        orders.market("BHP", account="A", **sides)
        if price is None
        else orders.limit("BHP", account="A", price=price, **sides)
    )
    return make_terms(resolve(order), Facts(Decimal("0.01")))


@pytest.mark.parametrize(
    ("mode", "is_test", "words"),
    [("off", True, "is off"), ("off", False, "is off"), ("test", False, "test environment only")],
)
def test_a_connection_that_forbids_orders(mode, is_test, words):
    with pytest.raises(OpenmarketsOrderError, match=words):
        Policy(mode, is_test).check_mode()


@pytest.mark.parametrize(("mode", "is_test"), [("test", True), ("on", True), ("on", False)])
def test_a_connection_that_allows_orders(mode, is_test):
    Policy(mode, is_test).check_mode()


def test_accounts():
    Policy(accounts=()).check_account("A")
    Policy(accounts=("A", "B")).check_account("A")
    with pytest.raises(OpenmarketsOrderError, match="'C'; its order_accounts are A, B"):
        Policy(accounts=("A", "B")).check_account("C")


def test_values():
    check_value(terms(), Decimal("45.50"), Decimal("4550"), "max_value")
    check_value(terms(), None, None, "max_value")
    with pytest.raises(OpenmarketsOrderError, match=r"max_value: the order is worth 4,550\.00 and the limit is 4,549"):
        check_value(terms(), Decimal("45.50"), Decimal("4549"), "max_value")
    with pytest.raises(OpenmarketsOrderError, match="can't be valued"):
        check_value(terms(None), None, Decimal(1), "max_value")


def test_a_contract_is_worth_as_much_as_the_shares_it_stands_for():
    option = make_terms(
        resolve(orders.limit("BHPXX", account="A", price="1.20", buy=3)), Facts(Decimal("0.01"), contract=100)
    )
    assert (option.value(Decimal("1.20")), option.native_price) == (360, 120)
    with pytest.raises(OpenmarketsOrderError, match=r"max_value: the order is worth 360\.00"):
        check_value(option, option.price, Decimal(300), "max_value")


def test_trading_statuses():
    check_trading_status(terms(), None, ())
    check_trading_status(terms(), {"trading_status": "OPEN"}, ("OPEN", "PRE_OPEN"))
    for quote in (None, {"trading_status": None}, {"trading_status": "HALT"}):
        with pytest.raises(OpenmarketsOrderError, match="trading_statuses: the trading status of BHP is"):
            check_trading_status(terms(), quote, ("OPEN",))


def cash(amount: str | None = "4550", currency: str = "AUD") -> dict[str, Any]:
    return {
        "currency_code": currency,
        "net_cash": None if amount is None else Decimal(amount),
        "free_equity": Decimal(1),
    }


def test_cash():
    order = dataclasses.replace(terms(), currency="AUD")
    check_cash(order, order.price, [cash(), cash("1", "USD")], "net_cash")
    check_cash(dataclasses.replace(order, side="Sell"), None, [], "net_cash")
    check_cash(order, order.price, [cash("1"), cash()], "net_cash")
    for rows, column, words in (
        (
            [cash("1"), cash("4549.99")],
            "net_cash",
            r"check_cash: net_cash of account A: the order is worth 4,550\.00 and the limit is 4,549\.99",
        ),
        ([cash()], "free_equity", "free_equity of account A: the order is worth .* and the limit is 1"),
        ([], "net_cash", "has no cash balance in AUD"),
        ([cash(None)], "net_cash", "has no cash balance in AUD with net_cash"),
        ([cash(currency="USD")], "net_cash", "has no cash balance in AUD"),
    ):
        with pytest.raises(OpenmarketsOrderError, match=words):
            check_cash(order, order.price, rows, column)
    with pytest.raises(
        OpenmarketsOrderError, match="check_cash: net_cash of account A: the market order can't be valued"
    ):
        check_cash(order, None, [cash()], "net_cash")


def test_a_market_order_is_valued_by_the_other_side():
    assert reference_price(terms("7"), QUOTE) == 7
    assert reference_price(terms(None), QUOTE) == Decimal("45.1")
    assert reference_price(terms(None, sell=1), QUOTE) == Decimal("44.9")
    assert reference_price(terms(None), QUOTE | {"ask_price": None}) == 45
    assert reference_price(terms(None), {}) is None
    assert reference_price(terms(None), None) is None


def test_the_value_of_a_day():
    row = {
        "state": "working",
        "order_price": Decimal(10),
        "remaining_volume": 30,
        "done_value_total": Decimal(700),
        "create_date_time": NOW,
    }
    assert value_of(row) == 1000
    assert value_of(row | {"state": "finished"}) == 700
    yesterday = row | {"create_date_time": NOW - timedelta(days=1)}
    check_day_value(terms(), Decimal("45.50"), Decimal(5550), [row, yesterday], NOW)
    check_day_value(terms(), Decimal("45.50"), None, [row], NOW)
    with pytest.raises(OpenmarketsOrderError, match="max_day_value"):
        check_day_value(terms(), Decimal("45.50"), Decimal(5549), [row, yesterday], NOW)


def test_a_collar():
    limits = Limits(price_collar=Decimal("0.02"))
    check_collar(terms("45.90"), QUOTE, limits, NOW)
    check_collar(terms("44.10"), QUOTE, limits, NOW)
    check_collar(terms(None), QUOTE, limits, NOW)
    check_collar(terms("1"), None, Limits(), NOW)
    for order, quote, words in [
        (terms("45.91"), QUOTE, "too far from the last price"),
        (terms("44.09"), QUOTE, "too far"),
        (terms(None), QUOTE | {"ask_price": Decimal(50)}, "too far"),
        (terms(), None, "no last price"),
        (terms(), QUOTE | {"last_price": None}, "no last price"),
        (terms(), QUOTE | {"update_date_time": None}, "no last price"),
        (terms(), QUOTE | {"update_date_time": NOW - timedelta(hours=1)}, "3600 s old"),
    ]:
        with pytest.raises(OpenmarketsOrderError, match=f"price_collar: .*{words}"):
            check_collar(order, quote, limits, NOW)


def position(actual: int, available: int, code: str = "BHP") -> dict[str, Any]:
    return {"security_code": code, "exchange": "ASX", "actual_volume": actual, "available_volume": available}


def test_reduce_only():
    check_reduces(terms(sell=100), [position(150, 100), position(-5, -5, "RIO")])
    check_reduces(terms(buy=100), [position(-100, 0)])
    for order, held in [
        (terms(sell=101), position(150, 100)),
        (terms(sell=1), position(-10, 5)),
        (terms(sell=1), position(10, 10, "RIO")),
        (terms(buy=1), position(100, 100)),
        (terms(buy=101), position(-100, 0)),
        (terms(short=1), position(100, 100)),
    ]:
        with pytest.raises(OpenmarketsOrderError, match="reduce_only"):
            check_reduces(order, [held])
