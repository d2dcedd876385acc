"""Check the values of a field, and convert them to those of a column: one type, or None. Pure."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, date, datetime, tzinfo
from decimal import Decimal
from functools import partial
from typing import Any

from openmarkets_provider.query.batch import Column, Scaled
from openmarkets_provider.query.exchange_time import to_utc
from openmarkets_provider.query.schema import Kind
from openmarkets_provider.sessions.calendar import EXCHANGE_ZONE

_NO_TIME = re.compile(r"0001-01-01([T ][0:.]+(Z|[+-]\d\d:?\d\d)?)?")
"""What a .NET server may write for "no date" or "no time". It is inferred that this is one."""
_MAX_INTEGER = 10**18
"""int() of 1e999999999 would fill the memory."""
_NONE = type(None)


class TypeMismatch(Exception):
    """A value has the wrong type. Arguments: the expected type, in words, and the value."""


def _typed(
    column: list[Any],
    *,
    types: set[type],
    expected: str,
    to: type | None = None,
    convert: Callable[[Any], Any] | None = None,
) -> list[Any]:
    """Check that a column has only values of these types, and convert them to one type."""
    present = set(map(type, column))
    if not present <= types | {_NONE}:
        raise TypeMismatch(expected, next(value for value in column if type(value) not in types | {_NONE}))
    return column if to is None or present <= {to, _NONE} else _convert_each(convert or to, column, present)


def _convert_each(convert: Callable[[Any], Any], column: list[Any], present: set[type]) -> list[Any]:
    # Most columns have no None, and ``map`` is faster.
    if _NONE in present:
        return [None if value is None else convert(value) for value in column]
    return list(map(convert, column))


def _whole(value: int | Decimal) -> int:
    if not (-_MAX_INTEGER < value < _MAX_INTEGER and value == int(value)):
        raise TypeMismatch("a whole number", value)
    return int(value)


_integers = partial(_typed, types={int, Decimal}, expected="a whole number", to=int, convert=_whole)
_decimals = partial(_typed, types={int, Decimal}, expected="a number", to=Decimal)


def _numbers(column: list[Any]) -> Column:
    # Most numbers are whole.
    if set(map(type, column)) == {int}:
        with suppress(OverflowError):
            return Scaled(array("q", column), 0)
    return _decimals(column)


def _quantities(column: list[Any]) -> Column:
    for number in _decimals(column):
        if number is not None and not -_MAX_INTEGER < number < _MAX_INTEGER:
            raise TypeMismatch("a number of a usual size", number)
    return _numbers(column)


def _multipliers(column: list[Any]) -> list[Any]:
    for value in column:
        if value is not None and (type(value) not in (int, Decimal) or value <= 0):
            raise TypeMismatch("a number above 0", value)
    return _decimals(column)


def _dates(column: list[Any]) -> list[Any]:
    try:
        dates = _convert_each(date.fromisoformat, column, set(map(type, column)))
    except (TypeError, ValueError):
        # Rare: a date that is written as midnight.
        return [None if value is None else _date(value) for value in column]
    return [None if day == date.min else day for day in dates] if date.min in dates else dates


def _date(value: Any) -> date | None:
    """Read a date, or a time that is midnight at the exchange."""
    if _is_no_time(value):
        return None
    try:
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is not None:
            moment = moment.astimezone(EXCHANGE_ZONE)
    except (TypeError, ValueError, OverflowError):
        raise TypeMismatch("a date", value) from None
    if moment.time() != datetime.min.time():
        raise TypeMismatch("a date", value)
    return moment.date()


def _times(column: list[Any], *, zone: tzinfo) -> list[datetime | None]:
    return [None if value is None else _time(value, zone) for value in column]


def _time(value: Any, zone: tzinfo) -> datetime | None:
    if _is_no_time(value):
        return None
    try:
        return to_utc(datetime.fromisoformat(value), zone)
    except (TypeError, ValueError, OverflowError):
        raise TypeMismatch("a time", value) from None


def _is_no_time(value: Any) -> bool:
    return isinstance(value, str) and _NO_TIME.fullmatch(value) is not None


CONVERT: Mapping[Kind, Callable[[list[Any]], Column]] = {
    Kind.TEXT: partial(_typed, types={str}, expected="a string"),
    Kind.ID: partial(_typed, types={int, str}, expected="a string or a whole number", to=str),
    Kind.INTEGER: _integers,
    Kind.COUNT: _integers,
    Kind.VOLUME: _integers,
    Kind.QUANTITY: _quantities,
    Kind.NUMBER: _numbers,
    # Native: rows.py multiplies them.
    Kind.PRICE: partial(_typed, types={int, Decimal}, expected="a number"),
    Kind.VALUE: _numbers,
    Kind.MULTIPLIER: _multipliers,
    Kind.BOOLEAN: partial(_typed, types={bool}, expected="true or false"),
    Kind.DATE: _dates,
    Kind.EXCHANGE_TIME: partial(_times, zone=EXCHANGE_ZONE),
    Kind.UTC_TIME: partial(_times, zone=UTC),
    Kind.JSON: list,
}
"""Converters for the values of a field, by kind. They raise :class:`TypeMismatch`."""
