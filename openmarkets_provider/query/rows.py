"""From replies to rows: names, prices, times. Pure.

A reply is turned into rows by columns: what a field holds is checked and converted for all records at once.
Arithmetic is decimal and exact.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, tzinfo
from decimal import Context, Decimal, DecimalException, Inexact, InvalidOperation, Overflow, Subnormal, localcontext
from itertools import chain, islice
from operator import mul
from typing import Any

from openmarkets_provider.exceptions import OpenmarketsInvalidResponse
from openmarkets_provider.query.arguments import DEFAULT_DATA_SOURCE, DEFAULT_EXCHANGE
from openmarkets_provider.query.exchange_time import EXCHANGE_ZONE, to_utc
from openmarkets_provider.query.plan import ApiCall
from openmarkets_provider.query.schema import SCHEMAS, Kind, Row, Schema, snake_case

Listing = tuple[str, str]
"""Security code and exchange."""

FALLBACK_MULTIPLIER = Decimal("0.01")
"""For cents: what counts when nothing says how native prices relate to the currency."""
_EXACT = Context(prec=60, Emax=60, Emin=-60, traps=[Inexact, InvalidOperation, Overflow, Subnormal])
_NO_TIME = "0001-01-01T00:00:00"
"""What servers on .NET, which this one is inferred to be, may write for "no time"."""
_MAX_INTEGER = 10**18
"""int() of 1e999999999 would fill the memory."""
_NUMBERS: set[type] = {int, Decimal}
_NOTHING: set[type] = {type(None)}


class _WrongError(Exception):
    """A value of a wrong type."""


def invalid_securities(call: ApiCall, reply: Any) -> list[str]:
    """Return the securities that a reply says it does not know; what is no text is written as JSON.

    An error that names them must be able to go from a triggerer to a task.
    """
    listed = reply.get("invalidSecurities") if isinstance(reply, dict) and call.rows is not None else None
    if listed is None:
        return []
    if not isinstance(listed, list):
        raise _invalid(call, "invalidSecurities", "a list", listed)
    return [each if isinstance(each, str) else f"{json.dumps(each, default=str):.200}" for each in listed]


def records(call: ApiCall, reply: Any) -> list[dict[str, Any]]:
    """Return the records of one reply to a typed query, untouched.

    :raises OpenmarketsInvalidResponse: the reply does not have the shape that the API promises.
    """
    if call.rows is not None:
        if not isinstance(reply, dict) or call.rows not in reply:
            raise _shape(call, f"an object with {call.rows!r}", reply)
        reply = reply[call.rows]
    if not isinstance(reply, list):
        raise _shape(call, "a list of records", reply)
    for record in reply:
        if type(record) is not dict:
            raise _shape(call, "a list of objects", record)
    return reply


def without_multiplier(endpoint: str, call: ApiCall, given: Sequence[Mapping[str, Any]]) -> list[Listing]:
    """Return the securities whose prices are among the records, and whose multiplier is not."""
    schema = SCHEMAS[endpoint]
    unpriced = (record for record in given if record.get("priceMultiplier") is None and _has_price(schema, record))
    if call.security is not None:
        return [listing(call.security) for _ in islice(unpriced, 1)]
    return list(dict.fromkeys(map(listing_of, unpriced)))


def multipliers_of(call: ApiCall, given: Sequence[Mapping[str, Any]]) -> dict[Listing, Decimal]:
    """Return the price multipliers in records of security information, for those that have one.

    :raises OpenmarketsInvalidResponse: one is not a number above 0.
    """
    priced = [record for record in given if record.get("priceMultiplier") is not None]
    try:
        column = _multiplier([record["priceMultiplier"] for record in priced])
    except _WrongError as error:
        raise _invalid(call, "priceMultiplier", *error.args) from None
    return dict(zip(map(listing_of, priced), column, strict=True))


def listing(security: str) -> Listing:
    """Return code and exchange of a security in full form, in capitals: the API may not mind the case."""
    code, _, exchange = security.partition("@")[0].upper().partition(".")
    return code, exchange


def listing_of(record: Mapping[str, Any]) -> Listing:
    """Return code and exchange of the security that a record is about; the code is empty when it names none."""
    code, exchange = record.get("securityCode"), record.get("exchange")
    code = code if isinstance(code, str) else ""
    exchange = exchange if isinstance(exchange, str) else DEFAULT_EXCHANGE
    return code.upper(), exchange.upper()


def full_name(of: Listing) -> str:
    """Return the full form of a security."""
    return f"{of[0]}.{of[1]}@{DEFAULT_DATA_SOURCE}"


def rows(
    endpoint: str, call: ApiCall, given: Sequence[Mapping[str, Any]], multipliers: Mapping[Listing, Decimal]
) -> list[Row]:
    """Turn the records of one reply into rows.

    :param endpoint: the query's name, which decides the schema.
    :param given: the records, numbers with a fraction as Decimal.
    :param multipliers: price multipliers for records without one; 0.01 for what is not among them.
    :return: dicts that all have the same names in the same order: the schema's, then those of unknown fields.
    :raises OpenmarketsInvalidResponse: a field is of a wrong type; the text names it.
    """
    if not given:
        return []
    schema = SCHEMAS[endpoint]
    known = schema.sendable
    present: set[str] = set().union(*given)
    sent: dict[str, list[Any]] = {}
    for api_name, field in known.items():
        if api_name not in present:
            sent[field.name] = [None] * len(given)
            continue
        column = [record.get(api_name) for record in given]
        try:
            sent[field.name] = _CONVERT[field.kind](column)
        except _WrongError as error:
            raise _invalid(call, api_name, *error.args) from None
    columns = sent | _computed(schema, given)
    if call.security is not None:
        for api_name in _FROM_SECURITY.keys() & schema.supplied.keys():
            name, value = schema.supplied[api_name].name, _FROM_SECURITY[api_name](call.security)
            columns[name] = [value if own is None else own for own in sent[name]]
    if schema.price_api_names:
        columns["price_multiplier"] = _multipliers(schema, call, given, sent["price_multiplier"], multipliers)
    for api_name in schema.price_api_names:
        name = schema.by_api_name[api_name].name
        columns[name] = _prices(call, api_name, columns[name], columns["price_multiplier"])
    columns = {field.name: columns[field.name] for field in schema.fields}
    if not present <= known.keys():
        # In the order of the records, which a set does not keep.
        for api_name in dict.fromkeys(chain.from_iterable(given)):
            if api_name not in known:
                columns[_free_name(api_name, columns)] = [record.get(api_name) for record in given]
    return _from_columns(columns)


def _from_columns(columns: Mapping[str, Sequence[Any]]) -> list[Row]:
    """Make a row of each place in the columns, by copies of one that has all names: twice as fast as dict(zip())."""
    blank = dict.fromkeys(columns)
    made = [blank.copy() for _ in next(iter(columns.values()))]
    for name, column in columns.items():
        for row, value in zip(made, column, strict=True):
            row[name] = value
    return made


def within(endpoint: str, call: ApiCall, made: list[Row], window: tuple[Any, Any] | None) -> list[Row]:
    """Return the rows in a half-open range.

    :param window: two dates or two aware datetimes; None for all rows.
    :raises OpenmarketsInvalidResponse: a row has no time.
    """
    column = SCHEMAS[endpoint].time
    if window is None or column is None:
        return made
    start, end = window
    try:
        return [row for row in made if start <= row[column] < end]
    except TypeError:
        api_name = next(field.api for field in SCHEMAS[endpoint].fields if field.name == column)
        raise _invalid(call, str(api_name), "a time", None) from None


def keys(endpoint: str, made: Iterable[Row]) -> list[tuple[Any, ...]]:
    """Return what identifies each row."""
    names = SCHEMAS[endpoint].key
    return [tuple(row[name] for name in names) for row in made]


def order_state(record: Mapping[str, Any]) -> str:
    """Say in one word what has become of an order: the first of the API's rules that applies.

    ``finished``: all of its volume is done. ``failed``: actionStatus is FAILED or DENIED. ``finished``: orderState is
    INACTIVE, or lastAction is CANCEL or PURGE. ``working``: orderState is ACTIVE. ``pending``: anything else.

    Which rule comes first is inferred: a cancellation that was denied must not make an order look finished.
    """
    done, volume = record.get("doneVolumeTotal"), record.get("orderVolume")
    if done is not None and volume is not None and done >= volume:
        return "finished"
    if record.get("actionStatus") in ("FAILED", "DENIED"):
        return "failed"
    if record.get("orderState") == "INACTIVE" or record.get("lastAction") in ("CANCEL", "PURGE"):
        return "finished"
    return "working" if record.get("orderState") == "ACTIVE" else "pending"


def _computed(schema: Schema, given: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {}
    if "level" in schema.names:
        columns["level"] = list(range(1, len(given) + 1))
    if "state" in schema.names:
        columns["state"] = list(map(order_state, given))
    return columns


def _free_name(api_name: str, taken: Container[str]) -> str:
    name = snake_case(api_name)
    while name in taken:
        name += "_"
    return name


_FROM_SECURITY: Mapping[str, Callable[[str], str]] = {
    "securityCode": lambda security: security.partition(".")[0],
    "exchange": lambda security: security.partition("@")[0].partition(".")[2],
    "dataSource": lambda security: security.partition("@")[2],
}


def _has_price(schema: Schema, record: Mapping[str, Any]) -> bool:
    return any(record.get(api_name) is not None for api_name in schema.price_api_names)


def _multipliers(
    schema: Schema,
    call: ApiCall,
    given: Sequence[Mapping[str, Any]],
    sent: list[Decimal | None],
    known: Mapping[Listing, Decimal],
) -> list[Any]:
    """Return each record's multiplier: its own, else the security's, else, where it has prices, the one for cents."""
    of_call = None if call.security is None else listing(call.security)
    if of_call is not None and of_call in known:
        multiplier = known[of_call]
        return [multiplier if own is None else own for own in sent]

    def found(record: Mapping[str, Any]) -> Decimal | None:
        return known.get(of_call or listing_of(record), FALLBACK_MULTIPLIER if _has_price(schema, record) else None)

    return [found(record) if own is None else own for own, record in zip(sent, given, strict=True)]


def _prices(call: ApiCall, api_name: str, natives: list[Any], multipliers: list[Decimal]) -> list[Decimal | None]:
    made: list[Decimal | None] = []
    try:
        with localcontext(_EXACT):
            if type(None) not in map(type, natives):
                made.extend(map(mul, multipliers, natives))
            else:
                made.extend(
                    None if native is None else native * multiplier
                    for native, multiplier in zip(natives, multipliers, strict=True)
                )
    except DecimalException:
        raise _invalid(call, api_name, "a price of a usual size", natives[len(made)]) from None
    return made


def _types(column: Sequence[Any], allowed: set[type], expected: str) -> set[type]:
    """Return the types in a column, None's too, when it holds nothing but None and what is allowed."""
    types = set(map(type, column))
    if not types <= allowed | _NOTHING:
        raise _WrongError(expected, next(value for value in column if type(value) not in allowed | _NOTHING))
    return types


def _each(convert: Callable[[Any], Any], column: list[Any], types: set[type]) -> list[Any]:
    """Convert what is not None. A column without None is the usual one, and ``map`` is twice as fast."""
    if types & _NOTHING:
        return [None if value is None else convert(value) for value in column]
    return list(map(convert, column))


def _text(column: list[Any]) -> list[Any]:
    _types(column, {str}, "a text")
    return column


def _id(column: list[Any]) -> list[Any]:
    types = _types(column, {int, str}, "a text or a whole number")
    return _each(str, column, types) if int in types else column


def _integer(column: list[Any]) -> list[Any]:
    types = _types(column, _NUMBERS, "a whole number")
    if Decimal not in types:
        return column
    for value in column:
        if value is not None and not (-_MAX_INTEGER < value < _MAX_INTEGER and value == int(value)):
            raise _WrongError("a whole number", value)
    return _each(int, column, types)


def _native_price(column: list[Any]) -> list[Any]:
    _types(column, _NUMBERS, "a number")
    return column


def _number(column: list[Any]) -> list[Any]:
    return _each(Decimal, column, _types(column, _NUMBERS, "a number"))


def _multiplier(column: list[Any]) -> list[Any]:
    for value in column:
        if value is not None and (type(value) not in _NUMBERS or value <= 0):
            raise _WrongError("a number above 0", value)
    return _number(column)


def _boolean(column: list[Any]) -> list[Any]:
    _types(column, {bool}, "true or false")
    return column


def _dates(column: list[Any]) -> list[Any]:
    try:
        return _each(date.fromisoformat, column, set(map(type, column)))
    except (TypeError, ValueError):
        # Rare: a date that is written as midnight.
        return [None if value is None else _date(value) for value in column]


def _date(value: Any) -> date | None:
    """Read a date, or a time that is midnight at the exchange."""
    if value == _NO_TIME:
        return None
    try:
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is not None:
            moment = moment.astimezone(EXCHANGE_ZONE)
    except (TypeError, ValueError, OverflowError):
        raise _WrongError("a date", value) from None
    if moment.time() != datetime.min.time():
        raise _WrongError("a date", value)
    return moment.date()


def _exchange_times(column: list[Any]) -> list[Any]:
    return [None if value is None else _time(value, EXCHANGE_ZONE) for value in column]


def _utc_times(column: list[Any]) -> list[Any]:
    return [None if value is None else _time(value, UTC) for value in column]


def _time(value: Any, zone: tzinfo) -> datetime | None:
    if value == _NO_TIME:
        return None
    try:
        return to_utc(datetime.fromisoformat(value), zone)
    except (TypeError, ValueError, OverflowError):
        raise _WrongError("a time", value) from None


def _as_sent(column: list[Any]) -> list[Any]:
    return column


_CONVERT: Mapping[Kind, Callable[[list[Any]], list[Any]]] = {
    Kind.TEXT: _text,
    Kind.ID: _id,
    Kind.INTEGER: _integer,
    Kind.COUNT: _integer,
    Kind.VOLUME: _integer,
    Kind.NUMBER: _number,
    Kind.PRICE: _native_price,
    Kind.VALUE: _number,
    Kind.MULTIPLIER: _multiplier,
    Kind.BOOLEAN: _boolean,
    Kind.DATE: _dates,
    Kind.EXCHANGE_TIME: _exchange_times,
    Kind.UTC_TIME: _utc_times,
    Kind.JSON: _as_sent,
}


def _invalid(call: ApiCall, field: str, expected: str, value: Any) -> OpenmarketsInvalidResponse:
    return OpenmarketsInvalidResponse(
        f"{call.label}: field {field}: expected {expected}, got {value!r:.100}. With raw=True the query gives what the "
        "API sends.",
        endpoint=call.label,
        sent=True,
    )


def _shape(call: ApiCall, expected: str, value: Any) -> OpenmarketsInvalidResponse:
    return OpenmarketsInvalidResponse(
        f"{call.label}: expected {expected}, got {type(value).__name__}.", endpoint=call.label, sent=True
    )
