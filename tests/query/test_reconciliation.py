"""Which orders, trades and positions disagree: rows as queries return them."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

from openmarkets_provider.query.reconciliation import COLUMNS, reconcile

DAY = date(2026, 3, 5)
NOON = datetime(2026, 3, 5, 1, tzinfo=UTC)
SECURITY = {"account_code": "A", "exchange": "ASX", "security_code": "BHP"}


def order(number: str, volume: Any = 0, value: Any = 0, **changes: Any) -> dict[str, Any]:
    of = {"order_number": number, "root_parent_order_number": number}
    return SECURITY | of | {"done_volume_total": volume, "done_value_total": value} | changes


def trade(number: str, volume: Any, value: Any = 0, **changes: Any) -> dict[str, Any]:
    of = {"order_number": number, "side": "Buy", "trade_date_time": NOON}
    return SECURITY | of | {"trade_volume": volume, "trade_value": value} | changes


def position(start: Any, now: Any, **changes: Any) -> dict[str, Any]:
    return SECURITY | {"volume_start_of_day": start, "actual_volume": now} | changes


def fields(*rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    found = reconcile(*rows, DAY)
    assert all(tuple(difference) == COLUMNS for difference in found)
    return [tuple(difference[name] for name in COLUMNS[2:]) for difference in found]


def test_nothing_differs():
    orders = [order("1", 100, Decimal(4500)), order("2")]
    trades = [trade("1", 60, Decimal(2700)), trade("1", 40, Decimal(1800))]
    assert fields(orders, trades, [position(20, 120)]) == []
    assert fields([], [], []) == []


def test_an_order_has_more_than_its_trades():
    orders = [order("1", 100, Decimal(4500)), order("2", 10, Decimal(450))]
    assert fields(orders, [trade("1", 60, Decimal(2700))], [position(0, 60)]) == [
        ("BHP", "1", "done_volume_total", 100, 60),
        ("BHP", "1", "done_value_total", 4500, 2700),
        ("BHP", "2", "done_volume_total", 10, 0),
        ("BHP", "2", "done_value_total", 450, 0),
    ]


def test_values_of_single_trades_may_be_rounded():
    trades = [trade("1", 1, Decimal("45.01")), trade("1", 1, Decimal("45.01"))]
    assert fields([order("1", 2, Decimal("90.00"))], trades, [position(0, 2)]) == []
    assert fields([order("1", 2, Decimal("89.99"))], trades, [position(0, 2)]) == [
        ("BHP", "1", "done_value_total", Decimal("89.99"), Decimal("90.02"))
    ]


def test_trades_of_a_child_count_for_its_root():
    orders = [order("1", 100, 4500), order("2", 100, 4500, root_parent_order_number="1")]
    assert fields(orders, [trade("2", 100, 4500)], [position(0, 100)]) == []
    alone = order("3", 5, 1, root_parent_order_number=None)
    assert fields([alone], [trade("3", 5, 1)], [position(0, 5)]) == []


def test_equal_numbers_of_two_accounts_are_two_orders():
    orders = [order("1", 100, 4500), order("1", account_code="B")]
    assert fields(orders, [trade("1", 100, 4500)], [position(0, 100)]) == []
    (difference,) = reconcile([], [trade("9", 5)], [position(0, 5, account_code="B"), position(0, 5)], DAY)[1:]
    assert (difference["account_code"], difference["field"]) == ("B", "actual_volume")


def test_a_trade_of_the_day_has_no_order():
    before = trade("8", 7, trade_date_time=datetime(2026, 3, 4, 1, tzinfo=UTC))
    assert fields([], [trade("9", 5), trade("9", 6), before], [position(0, 11)]) == [
        ("BHP", "9", "order_number", None, 11)
    ]


def test_a_position_does_not_follow_from_the_trades_of_the_day():
    # 23:30 of the day before in UTC is a time of the day at the exchange
    early = trade("1", 100, 45, trade_date_time=datetime(2026, 3, 4, 23, 30, tzinfo=UTC))
    sale = trade("2", 30, 14, side="Sell")
    short = trade("3", 5, 2, side="Short")
    orders = [order("1", 100, 45), order("2", 30, 14), order("3", 5, 2)]
    assert fields(orders, [early, sale, short], [position(20, 50), position(0, 35)]) == []
    assert fields(orders, [early, sale, short], [position(20, 84)]) == [("BHP", None, "actual_volume", 84, 85)]
    assert fields([order("1", 100, 45)], [early], []) == [("BHP", None, "actual_volume", 0, 100)]
    assert fields([order("1", 30, 0), order("2", 30, 14)], [sale, trade("1", 30)], []) == []


def test_what_the_api_leaves_out_is_nothing():
    left_out = order("1", None, None)
    assert fields([left_out], [trade("1", None, None)], [position(None, None)]) == []
    assert fields([left_out], [trade("1", 5, None)], [position(None, 5)]) == [
        ("BHP", "1", "done_volume_total", None, 5)
    ]
