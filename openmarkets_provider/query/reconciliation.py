"""Compare the volumes and values of orders, own trades and positions. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from decimal import Decimal
from typing import Any

from openmarkets_provider.query.exchange_time import exchange_date

Row = Mapping[str, Any]

COLUMNS = ("account_code", "exchange", "security_code", "order_number", "field", "reported", "by_trades")
"""The columns of a difference."""
VALUE_TOLERANCE = Decimal("0.01")
"""For each trade of an order, in the currency's main unit: the values of trades may be rounded."""
_SECURITY = ("account_code", "exchange", "security_code")


def reconcile(
    orders: Sequence[Row], trades: Sequence[Row], positions: Iterable[Row], day: date
) -> list[dict[str, Any]]:
    """Return the differences, each with :data:`COLUMNS`.

    ``field`` is ``done_volume_total`` or ``done_value_total`` of an order, ``order_number`` of trades of the day whose
    order is not listed, or ``actual_volume`` of an account's positions in a security. ``reported`` is the value of the
    order or the positions. ``by_trades`` is the value by the trades; for positions, it is ``volume_start_of_day`` plus
    what was bought on the day, minus what was sold.

    A child order counts as its root order. A security without a position has a volume of 0.

    :param orders: rows of ``queries.orders``, with child orders.
    :param trades: rows of ``queries.order_trades``: all trades of these orders, and all of the day.
    :param positions: rows of ``queries.positions``.
    :param day: the exchange day of the positions.
    """
    today = [trade for trade in trades if exchange_date(trade["trade_date_time"]) == day]
    return [
        *_compare_orders(orders, trades),
        *_compare_order_numbers(orders, today),
        *_compare_positions(positions, today),
    ]


def _number(row: Row) -> tuple[str, str]:
    return row["account_code"], row["order_number"]


def _difference(row: Row, field: str, reported: Any, by_trades: Any, order: str | None = None) -> dict[str, Any]:
    return {**{name: row[name] for name in _SECURITY}, "order_number": order} | {
        "field": field,
        "reported": reported,
        "by_trades": by_trades,
    }


def _compare_orders(orders: Sequence[Row], trades: Iterable[Row]) -> Iterator[dict[str, Any]]:
    roots = {_number(order): order["root_parent_order_number"] or order["order_number"] for order in orders}
    by_root = defaultdict(list)
    for trade in trades:
        by_root[trade["account_code"], roots.get(_number(trade))].append(trade)
    for order in orders:
        number = order["order_number"]
        if roots[_number(order)] != number:
            continue
        own = by_root[order["account_code"], number]
        volume, value = (sum(trade[name] or 0 for trade in own) for name in ("trade_volume", "trade_value"))
        if (order["done_volume_total"] or 0) != volume:
            yield _difference(order, "done_volume_total", order["done_volume_total"], volume, number)
        if abs((order["done_value_total"] or 0) - value) > VALUE_TOLERANCE * len(own):
            yield _difference(order, "done_value_total", order["done_value_total"], value, number)


def _compare_order_numbers(orders: Iterable[Row], trades: Iterable[Row]) -> Iterator[dict[str, Any]]:
    listed = {_number(order) for order in orders}
    strangers = defaultdict(list)
    for trade in trades:
        if _number(trade) not in listed:
            strangers[_number(trade)].append(trade)
    for (_, number), own in strangers.items():
        yield _difference(own[0], "order_number", None, sum(trade["trade_volume"] or 0 for trade in own), number)


def _compare_positions(positions: Iterable[Row], trades: Iterable[Row]) -> Iterator[dict[str, Any]]:
    rows: dict[tuple[str, ...], Row] = {}
    reported: defaultdict[tuple[str, ...], Any] = defaultdict(int)
    expected: defaultdict[tuple[str, ...], Any] = defaultdict(int)
    for position in positions:
        key = tuple(position[name] for name in _SECURITY)
        rows[key] = position
        reported[key] += position["actual_volume"] or 0
        expected[key] += position["volume_start_of_day"] or 0
    for trade in trades:
        key = tuple(trade[name] for name in _SECURITY)
        rows.setdefault(key, trade)
        volume = trade["trade_volume"] or 0
        expected[key] += volume if trade["side"] == "Buy" else -volume
    for key, row in rows.items():
        if reported[key] != expected[key]:
            yield _difference(row, "actual_volume", reported[key], expected[key])
