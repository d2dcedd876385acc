"""Adjusted prices and volumes, computed by hand."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal, localcontext
from typing import Any

import pytest

from openmarkets_provider.query.adjust import DEFAULT_METHOD, METHODS, PRICES, VOLUMES, adjust_series

OPEN, HIGH, LOW, CLOSE = PRICES
(VOLUME,) = VOLUMES


def adjusted(method: str, closes: Sequence[Any], volumes: Sequence[Any], factors: Sequence[Any]) -> dict[str, Any]:
    """Adjust bars whose open, high, low and close are one price."""
    columns = {name: [None if close is None else Decimal(close) for close in closes] for name in PRICES.values()}
    columns |= {"total_volume": list(volumes)}
    columns |= {"adjustment_factor": [None if factor is None else Decimal(factor) for factor in factors]}
    found = adjust_series(method, columns)
    assert list(found) == [*PRICES, *VOLUMES]
    assert found[OPEN] == found[HIGH] == found[LOW] == found[CLOSE]
    return found


def test_values_are_written_without_an_exponent():
    found = adjusted("cumulative_multiply", ["36.18"], [34875], ["0.25"])
    assert (str(found[CLOSE][0]), str(found[VOLUME][0])) == ("9.0450", "139500")


@pytest.mark.parametrize(
    ("method", "factors"),
    [
        # A 4:1 split before the third bar, a dividend of 2 % before the fourth: 40 x 0.25 x 0.98 = 9.8.
        ("cumulative_multiply", ["0.245", "0.245", "0.98", "1"]),
        ("event_multiply", [None, "1", "0.25", "0.98"]),
        ("event_multiply", ["0.1", "1", "0.25", "0.98"]),
    ],
)
def test_factors_that_prices_are_multiplied_with(method: str, factors: list[Any]):
    found = adjusted(method, ["40", "41", "10.5", "10"], [100, 49, 490, 500], factors)
    assert found[CLOSE] == [Decimal("9.8"), Decimal("10.045"), Decimal("10.29"), Decimal("10")]
    # 100 / 0.245 = 408.163...
    assert found[VOLUME] == [Decimal("408.163265306122"), 200, 500, 500]


@pytest.mark.parametrize(
    ("method", "factors"),
    [
        # A 3:1 split before the third bar, a consolidation 1:10 before the fourth.
        ("cumulative_divide", ["0.3", "0.3", "0.1", "1"]),
        ("event_divide", ["7", None, "3", "0.1"]),
    ],
)
def test_factors_that_prices_are_divided_by(method: str, factors: list[Any]):
    found = adjusted(method, ["3", "4", "1", "10"], [10, 20, 30, 40], factors)
    assert found[CLOSE] == [10, Decimal("13.333333333333"), 10, 10]
    assert found[VOLUME] == [3, 6, 3, 40]


def test_each_price_is_adjusted_by_itself():
    columns = {"open_price": [Decimal(2)], "high_price": [Decimal(6)], "low_price": [Decimal(1)]}
    columns |= {"close_price": [Decimal(4)], "total_volume": [8], "adjustment_factor": [Decimal("0.5")]}
    found = {name: value for name, (value,) in adjust_series(DEFAULT_METHOD, columns).items()}
    assert found == {OPEN: 1, HIGH: 3, LOW: Decimal("0.5"), CLOSE: 2, VOLUME: 16}
    assert {type(value) for value in found.values()} == {Decimal}


def test_what_is_missing_stays_missing():
    found = adjusted("cumulative_multiply", [None, "4", "4"], [5, None, 5], ["0.5", "0.5", None])
    assert found[CLOSE] == [None, 2, None]
    assert found[VOLUME] == [10, None, None]
    # A bar without a factor is one without an event.
    found = adjusted("event_multiply", [None, "4", "4"], [5, None, 5], [None, None, None])
    assert found[CLOSE] == [None, 4, 4]
    assert found[VOLUME] == [5, None, 5]


def test_prices_are_relative_to_the_last_bar_or_to_the_apis_own_reference():
    assert adjusted("event_multiply", ["8", "4"], [1, 2], ["1", "0.5"])[CLOSE] == [4, 4]
    assert adjusted("event_multiply", ["8"], [1], ["1"])[CLOSE] == [8]
    assert adjusted("cumulative_multiply", ["8"], [1], ["0.5"])[CLOSE] == [4]


def test_values_have_twelve_digits_after_the_point_at_most():
    found = adjusted("cumulative_divide", ["2", "0.0000000000005", "0.0000000000015"], [1, 1, 1], ["3", "1", "1"])
    assert found[CLOSE] == [Decimal("0.666666666667"), 0, Decimal("0.000000000002")]
    assert str(adjusted("cumulative_multiply", ["45.00"], [1], ["0.25"])[CLOSE][0]) == "11.2500"


@pytest.mark.parametrize("method", METHODS)
def test_the_traded_value_stays(method: str):
    closes, volumes, factors = ["40", "12", "4"], [100, 300, 800], ["0.25", "0.5", "2"]
    found = adjusted(method, closes, volumes, factors)
    values = [price * volume for price, volume in zip(found[CLOSE], found[VOLUME], strict=True)]
    assert values == [4000, 3600, 3200]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("factor", ["0", "-0.5"])
def test_a_factor_that_can_not_be(method: str, factor: str):
    with pytest.raises(ArithmeticError):
        adjusted(method, ["4", "4"], [1, 1], ["1", factor])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("factor", ["1e-999999999", "1e999999999", "1e70"])
def test_a_factor_of_an_unusual_size(method: str, factor: str):
    with pytest.raises(ArithmeticError):
        adjusted(method, ["4", "4"], [1, 1], [factor, factor])


def test_the_users_context_makes_no_difference():
    with localcontext(prec=3, rounding="ROUND_UP"):
        assert adjusted("cumulative_divide", ["20"], [123456], ["3"])[CLOSE] == [Decimal("6.666666666667")]


def test_no_bars():
    for method in METHODS:
        assert adjusted(method, [], [], []) == {name: [] for name in (*PRICES, *VOLUMES)}
