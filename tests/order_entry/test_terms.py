"""Dollars to native units, exactly; lots and price steps."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmarkets_provider import orders
from openmarkets_provider.exceptions import OpenmarketsOrderError
from openmarkets_provider.order_entry.instruction import resolve
from openmarkets_provider.order_entry.terms import Facts, canonical, check_volume, digest, make_terms, to_native

CENTS = Facts(Decimal("0.01"))
LIMIT = orders.limit("BHP", account="SBX0001", buy=100, price="45.50", notes="rebalance")
TAG = "OMAAAAAAAAAAAAAAAA"


def test_a_limit_order_in_native_units():
    terms = make_terms(resolve(LIMIT), Facts(Decimal("0.01"), lot=1, step=Decimal("0.01")))
    assert json.dumps(terms.body(TAG)) == json.dumps(
        {
            "accountCode": "SBX0001",
            "securityCode": "BHP",
            "exchange": "ASX",
            "destination": "ASX",
            "side": "Buy",
            "orderPrice": 4550,
            "orderVolume": 100,
            "lifetime": "EndOfDay",
            "pricingInstruction": "Limit",
            "notes": f"{TAG} rebalance",
        }
    )


def test_a_market_order_has_no_price_and_an_expiry_is_exchange_time():
    order = orders.market(
        "BHP", account="A", sell=1, lifetime="Date", expiry_date_time="2026-12-01T05:00:00Z", destination="CXA"
    )
    body = make_terms(resolve(order), Facts(None)).body(TAG)
    assert "orderPrice" not in body
    assert (body["pricingInstruction"], body["notes"], body["destination"]) == ("Market", TAG, "CXA")
    assert body["expiryDateTime"] == "2026-12-01T16:00:00"


@pytest.mark.parametrize(
    ("price", "multiplier", "native"),
    [("45.50", "0.01", "4550"), ("0.125", "0.01", "12.5"), ("7100", "1", "7100"), ("0.0005", "0.01", "0.05")],
)
def test_native_prices(price, multiplier, native):
    assert to_native(Decimal(price), Facts(Decimal(multiplier))) == Decimal(native)


@given(
    st.decimals(min_value="0.0001", max_value="99999", places=4), st.sampled_from(["0.01", "1", "0.001", "0.1", "100"])
)
def test_a_native_price_is_exact(price, multiplier):
    try:
        native = to_native(price, Facts(Decimal(multiplier)))
    except OpenmarketsOrderError:
        return
    assert native * Decimal(multiplier) == price
    assert Decimal(json.dumps(float(native))) == native


@pytest.mark.parametrize(
    ("price", "facts", "words"),
    [
        ("45.505", Facts(Decimal("0.01"), step=Decimal("0.01")), "step 0.01; the nearest allowed: 45.5 and 45.51"),
        ("0.003", Facts(Decimal("0.01"), step=Decimal("0.005")), "nearest allowed: 0.005"),
        ("45.50", Facts(None), "no price multiplier"),
        ("1", Facts(Decimal("3")), "no exact number of native units"),
        ("0.123456789012345678", CENTS, "no exact number of native units"),
    ],
)
def test_a_price_that_can_not_be_sent_is_refused(price, facts, words):
    with pytest.raises(OpenmarketsOrderError, match=f"price: .*{words}"):
        to_native(Decimal(price), facts)


def test_a_volume_off_the_lot_is_refused():
    check_volume(200, 100)
    check_volume(7, None)
    with pytest.raises(OpenmarketsOrderError, match=r"volume: 150 .*lot size 100; the nearest allowed: 100 and 200"):
        check_volume(150, 100)
    with pytest.raises(OpenmarketsOrderError, match="the nearest allowed: 100"):
        check_volume(1, 100)


def test_a_digest_is_that_of_the_terms():
    same = resolve(LIMIT | {"price": "45.5", "volume": "100", "security": "BHP.ASX@TM"})
    assert digest(canonical(resolve(LIMIT))) == digest(canonical(same))
    others = [{"volume": 101}, {"price": "45.51"}, {"side": "Sell"}, {"notes": None}, {"account": "SBX0002"}]
    digests = {digest(canonical(resolve(LIMIT | other))) for other in others}
    assert len(digests | {digest(canonical(same)), digest(canonical(same, server="other"))}) == len(others) + 2
