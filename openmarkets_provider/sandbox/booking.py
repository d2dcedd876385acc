"""Books the fills of orders to positions and cash: pure functions of records and executions.

The rules are invented: a fill immediately changes the first portfolio of its account. Closed volume has the average
price. Values and cash are in dollars, prices in native units.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from itertools import groupby

from openmarkets_provider.sandbox import accounts, data
from openmarkets_provider.sandbox.accounts import Portfolio
from openmarkets_provider.sandbox.order import Execution, Order
from openmarkets_provider.sandbox.securities import EXCHANGE, POINTS_PER_DOLLAR, Record, Security
from openmarkets_provider.sandbox.sessions import last_price, stamp

Fills = Sequence[tuple[Order, Execution]]
_ZERO = Decimal(0)


def book_positions(portfolio: Portfolio, records: Sequence[Record], fills: Fills, now: datetime) -> list[Record]:
    """Return a portfolio's positions after some fills. New securities come last.

    :param fills: in order of time.
    """
    found = {(record["securityCode"], record["exchange"]): record for record in records}
    if not fills:
        return list(records)
    by_security = sorted(fills, key=lambda fill: fill[0].security.code)
    for security, group in groupby(by_security, key=lambda fill: fill[0].security):
        key = (security.code, EXCHANGE)
        before = found.get(key) or _no_position(portfolio, security, now)
        found[key] = _book_position(before, security, list(group), now)
    return list(found.values())


def book_cash(records: Sequence[Record], fills: Fills, now: datetime) -> list[Record]:
    """Return a portfolio's cash after some fills, which change its first record."""
    if not records or not fills:
        return list(records)
    first, *others = records
    paid = gained = _ZERO
    for order, execution in fills:
        paid += _signed(order) * order.value(execution)
        gained += _signed(order) * execution.volume * _last(order.security, now)
    moved = {name: _add(first, name, -paid) for name in ("cashBalance", "netCash", "freeEquity")}
    moved |= {name: _add(first, name, gained) for name in ("glv", "totalNonCfdMarketValue")}
    return [first | moved | {"updateDateTime": _updated(fills)}, *others]


def _no_position(portfolio: Portfolio, security: Security, now: datetime) -> Record:
    empty = accounts.position_record(portfolio, security, now, volume=0)
    return empty | {"averagePriceStartOfDay": 0, "averagePrice": 0}


def _book_position(record: Record, security: Security, fills: Fills, now: datetime) -> Record:
    held, cost, last = _number(record, "actualVolume"), _cost(record, security), _last(security, now)
    closed = today = _ZERO
    volumes = {"volumeStartOfDay": 0, "buyVolume": 0, "sellVolume": 0, "shortSellVolume": 0}
    for order, execution in fills:
        volume, value = _signed(order) * execution.volume, _signed(order) * order.value(execution)
        held, cost, profit = _average(held, cost, volume, value)
        closed += profit
        today += last * volume - value
        if execution.at is not None and execution.at.date() < now.date():
            volumes["volumeStartOfDay"] += volume
        else:
            volumes["buyVolume" if volume > 0 else "sellVolume"] += execution.volume
            volumes["shortSellVolume"] += execution.volume if order.terms["side"] == "Short" else 0
    change = held - _number(record, "actualVolume")
    return record | {
        **{name: _add(record, name, Decimal(volume)) for name, volume in volumes.items()},
        "actualVolume": data.number(held),
        "availableVolume": _add(record, "availableVolume", change),
        "averagePrice": data.number(round(cost / held / security.multiplier, 6)) if held else 0,
        "costValue": data.number(cost),
        "marketValue": data.number(last * held),
        "totalProfit": data.number(last * held - cost),
        "todayProfit": _add(record, "todayProfit", today),
        "closedProfit": _add(record, "closedProfit", closed),
        "updateDateTime": _updated(fills),
    }


def _average(held: Decimal, cost: Decimal, volume: int, value: Decimal) -> tuple[Decimal, Decimal, Decimal]:
    """Return volume and cost after a fill, and the profit of the volume that it closed. Sales are negative."""
    closing = min(abs(held), Decimal(abs(volume))) if held * volume < 0 else _ZERO
    released = cost * closing / abs(held) if closing else _ZERO
    closed_value = value * closing / abs(volume)
    return held + volume, cost - released + value - closed_value, -closed_value - released


def _cost(record: Record, security: Security) -> Decimal:
    if record["costValue"] is not None:
        return _number(record, "costValue")
    return _number(record, "averagePrice") * security.multiplier * _number(record, "actualVolume")


def _signed(order: Order) -> int:
    return 1 if order.terms["side"] == "Buy" else -1


def _last(security: Security, now: datetime) -> Decimal:
    return Decimal(last_price(security, now)) / POINTS_PER_DOLLAR


def _number(record: Record, name: str) -> Decimal:
    """Return a number of a record; 0 if a user's record has none."""
    value = record[name]
    return Decimal(str(value)) if isinstance(value, int | float) and not isinstance(value, bool) else _ZERO


def _add(record: Record, name: str, change: Decimal) -> int | float:
    return data.number(_number(record, name) + change)


def _updated(fills: Iterable[tuple[Order, Execution]]) -> str:
    return max(stamp(execution.at) for _, execution in fills if execution.at is not None)
