"""Convert records, the API's JSON objects, to typed rows by column: names, prices, times. Pure.

All values of a field are checked and converted together. Arithmetic is decimal and exact.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal, DecimalException, localcontext
from itertools import islice, repeat
from typing import Any

from openmarkets_provider.exceptions import OpenmarketsInvalidResponse
from openmarkets_provider.query.adjust import PRICES, VOLUMES, adjust_series
from openmarkets_provider.query.arguments import DEFAULT_DATA_SOURCE, DEFAULT_EXCHANGE
from openmarkets_provider.query.batch import EXACT, Batch, Column, Scaled
from openmarkets_provider.query.exchange_time import settle
from openmarkets_provider.query.plan import ApiCall
from openmarkets_provider.query.records import KnownRecord, Record, by_field
from openmarkets_provider.query.schema import Kind, Schema, snake_case
from openmarkets_provider.query.values import CONVERT, TypeMismatch

Listing = tuple[str, str]
"""Security code and exchange, in upper case."""

FALLBACK_MULTIPLIER = Decimal("0.01")
"""The price multiplier for cents, if neither the record nor security information has one."""
_FRIDAY = 4
_MAX_DECIMALS = 18
_NONE = type(None)
_NOTHING: Mapping[Any, Any] = {}


def read_records(call: ApiCall, reply: Any) -> list[Any]:
    """Return the records of one reply to a typed query, unchanged.

    :raises OpenmarketsInvalidResponse: the reply does not have the documented shape.
    """
    if call.records is not None:
        if not isinstance(reply, dict) or call.records not in reply:
            raise _wrong_shape(call, f"an object with {call.records!r}", reply)
        reply = reply[call.records]
    if not isinstance(reply, list):
        raise _wrong_shape(call, "a list of records", reply)
    if reply and isinstance(reply[0], KnownRecord):
        return reply
    for record in reply:
        if type(record) is not dict:
            raise _wrong_shape(call, "a list of objects", record)
    return reply


def read_invalid_securities(call: ApiCall, reply: Any) -> list[str]:
    """Return the securities that a reply reports as unknown to the API.

    Values other than texts are written as JSON, so that an error can pass from a triggerer to a task.
    """
    securities = reply.get("invalidSecurities") if isinstance(reply, dict) and call.records is not None else None
    if securities is None:
        return []
    if not isinstance(securities, list):
        raise _wrong_field(call, "invalidSecurities", "a list", securities)
    return [each if isinstance(each, str) else f"{json.dumps(each, default=str):.200}" for each in securities]


def read_multipliers(call: ApiCall, records: Sequence[Record]) -> dict[Listing, Decimal]:
    """Return the price multipliers in records of security information, for those that have one.

    :raises OpenmarketsInvalidResponse: one is not a number above 0.
    """
    records = [record for record in records if record.get("priceMultiplier") is not None]
    try:
        column = CONVERT[Kind.MULTIPLIER]([record.get("priceMultiplier") for record in records])
    except TypeMismatch as error:
        raise _wrong_field(call, "priceMultiplier", *error.args) from None
    return dict(zip(map(listing_of, records), column, strict=True))


def read_currencies(call: ApiCall, records: Sequence[Record]) -> dict[Listing, str]:
    """Return the currencies in records of security information, for those that have one.

    :raises OpenmarketsInvalidResponse: one is not a text.
    """
    currencies = {listing_of(record): record.get("currencyCode") for record in records}
    for currency in currencies.values():
        if currency is not None and not isinstance(currency, str):
            raise _wrong_field(call, "currencyCode", "a string", currency)
    return {listing: currency for listing, currency in currencies.items() if currency is not None}


def find_missing_multipliers(schema: Schema, call: ApiCall, records: Sequence[Record]) -> list[str]:
    """Return the securities, in full form, of records with prices and without a price multiplier."""
    return find_priced(schema, call, (record for record in records if record.get("priceMultiplier") is None))


def find_priced(schema: Schema, call: ApiCall, records: Iterable[Record]) -> list[str]:
    """Return the securities, in full form, of records with prices."""
    priced = (record for record in records if _has_price(schema, record))
    if call.security is not None:
        return [call.security for _ in islice(priced, 1)]
    return list(dict.fromkeys(map(_full_name, priced)))


def to_listing(security: str) -> Listing:
    """Return code and exchange of a security in full form, in upper case: the API may ignore the case."""
    code, _, exchange = security.partition("@")[0].upper().partition(".")
    return code, exchange


def listing_of(record: Record) -> Listing:
    """Return code and exchange of the security that a record is about; the code is empty if it names none."""
    code, exchange = record.get("securityCode"), record.get("exchange")
    code = code if isinstance(code, str) else ""
    exchange = exchange if isinstance(exchange, str) else DEFAULT_EXCHANGE
    return code.upper(), exchange.upper()


def _listings(call: ApiCall, records: Sequence[Record]) -> Iterable[Listing]:
    """Return code and exchange of each record's security."""
    return map(listing_of, records) if call.security is None else repeat(to_listing(call.security))


def _full_name(record: Record) -> str:
    """Return the full form, such as ``BHP.ASX@TM``, of the security that a record is about."""
    source = record.get("dataSource")
    return f"{'.'.join(listing_of(record))}@{source if isinstance(source, str) else DEFAULT_DATA_SOURCE}"


def to_batch(
    schema: Schema,
    call: ApiCall,
    records: Sequence[Record],
    multipliers: Mapping[Listing, Decimal],
    currencies: Mapping[Listing, str] = _NOTHING,
    arguments: Mapping[str, Any] = _NOTHING,
) -> Batch:
    """Turn the records of one reply into rows.

    :param records: numbers with a fraction are Decimal.
    :param multipliers: price multipliers for records without one. Other securities get 0.01.
    :param currencies: currencies for records without one.
    :param arguments: of the query, for columns such as ``interval``.
    :return: the columns of the schema, then those of unknown fields.
    :raises OpenmarketsInvalidResponse: a field has the wrong type; the text names it.
    """
    fields, sent, nothing = schema.sendable, by_field(records), [None] * len(records)
    columns: dict[str, Column] = {}
    for api_name, field in fields.items():
        try:
            columns[field.name] = CONVERT[field.kind](sent[api_name]) if api_name in sent else nothing
        except TypeMismatch as error:
            raise _wrong_field(call, api_name, *error.args) from None
    for name, gmt in schema.gmt_columns.items():
        columns[name] = list(map(settle, columns[name], columns[gmt]))
    if schema.price_api_names:
        columns["price_multiplier"], columns["price_multiplier_assumed"] = _fill_multipliers(
            schema, call, records, columns["price_multiplier"], multipliers
        )
    for api_name in schema.price_api_names:
        name = fields[api_name].name
        columns[name] = _prices(call, api_name, columns[name], columns["price_multiplier"])
    if call.security is not None:
        for api_name in _FROM_SECURITY.keys() & schema.supplied.keys():
            value = _FROM_SECURITY[api_name](call.security)
            name = fields[api_name].name
            columns[name] = _fill(columns[name], value)
    if "currency" in schema.supplied:
        columns["currency"] = _fill_currencies(call, records, columns["currency"], currencies)
    if "level" in schema.names:
        columns["level"] = list(range(1, len(records) + 1))
    if "state" in schema.names:
        columns["state"] = list(map(order_state, records))
    # The other columns have an argument, or are filled later.
    columns = {
        field.name: columns[field.name] if field.name in columns else [arguments.get(field.name)] * len(records)
        for field in schema.fields
    }
    for api_name in sent:
        if api_name not in fields:
            name = snake_case(api_name)
            while name in columns:
                name += "_"
            columns[name] = sent[api_name]
    return Batch(columns)


def select_range(schema: Schema, call: ApiCall, batch: Batch, window: tuple[Any, Any] | None) -> Batch:
    """Return the rows in a half-open range, in order of time.

    :param window: two dates or two aware datetimes; None for all rows, unchanged.
    :raises OpenmarketsInvalidResponse: a row has no time.
    """
    if window is None or schema.time is None:
        return batch
    start, end = window
    times = batch.columns[schema.time]
    try:
        within = [row for row, moment in enumerate(times) if start <= moment < end]
    except TypeError:
        api_name = next(field.api for field in schema.fields if field.name == schema.time)
        raise _wrong_field(call, str(api_name), "a time", None) from None
    return batch.take(sorted(within, key=times.__getitem__))


def check_weeks(call: ApiCall, batch: Batch) -> None:
    """Check that weekly bars are dated from Monday to Friday; otherwise their week is ambiguous.

    :raises OpenmarketsInvalidResponse: one is dated on a weekend.
    """
    for day in batch.columns["time_series_date"]:
        if day is not None and day.weekday() > _FRIDAY:
            expected = "a day from Monday to Friday (a weekend could belong to either week)"
            raise _wrong_field(call, "timeSeriesDate", expected, day.isoformat())


def rank_levels(batch: Batch, levels: int) -> Batch:
    """Return the levels of an order book, best first. That level 1 is the best price is inferred.

    Each side is sorted separately; a side without a price comes last. Columns that belong to neither side stay with
    the ask.

    :param batch: of a ``depth`` query for one security.
    :param levels: maximum number of levels.
    """
    asks, bids = (batch.columns[name] for name in ("ask_price", "bid_price"))
    best_asks = sorted(range(len(batch)), key=lambda row: (asks[row] is None, asks[row]))[:levels]
    best_bids = sorted(range(len(batch)), key=lambda row: (bids[row] is None, -(bids[row] or 0)))[:levels]
    bid_columns = {name: column for name, column in batch.take(best_bids).columns.items() if name.startswith("bid_")}
    level = list(range(1, len(best_asks) + 1))
    return Batch({**batch.take(best_asks).columns, **bid_columns, "level": level})


def adjust_batch(call: ApiCall, batch: Batch, method: str) -> Batch:
    """Return the bars of one security with their adjusted columns filled in.

    :param batch: in order of time.
    :param method: of :data:`~openmarkets_provider.query.adjust.METHODS`.
    :raises OpenmarketsInvalidResponse: a factor is not above 0, or its size is unusual.
    """
    names = (*PRICES.values(), *VOLUMES.values(), "adjustment_factor")
    columns = {name: list(batch.columns[name]) for name in names}
    try:
        adjusted = adjust_series(method, columns)
    except ArithmeticError:
        factors = columns["adjustment_factor"]
        odd = next((factor for factor in factors if factor is not None and factor <= 0), factors)
        raise _wrong_field(call, "adjustmentFactor", "a number above 0 of a usual size", odd) from None
    return Batch({**batch.columns, **adjusted})


def check_identified(schema: Schema, call: ApiCall, keys: Iterable[tuple[Any, ...]]) -> None:
    """Check that the keys of orders or own trades identify them. A key begins with the number.

    :raises OpenmarketsInvalidResponse: a number is None.
    """
    if any(key[0] is None for key in keys):
        api_name = next(str(field.api) for field in schema.fields if field.key)
        raise _wrong_field(call, api_name, "a value, because it identifies the record", None)


def order_state(record: Record) -> str:
    """Return the state of an order in one word: the first of the API's rules that applies.

    ``finished``: all of its volume is done. ``failed``: actionStatus is FAILED or DENIED. ``finished``: orderState is
    INACTIVE, or lastAction is CANCEL or PURGE. ``working``: orderState is ACTIVE. ``pending``: anything else.

    The order of the rules is inferred: an order whose cancellation was denied must not look finished.
    """
    done, volume = record.get("doneVolumeTotal"), record.get("orderVolume")
    if done is not None and volume is not None and done >= volume:
        return "finished"
    if record.get("actionStatus") in ("FAILED", "DENIED"):
        return "failed"
    if record.get("orderState") == "INACTIVE" or record.get("lastAction") in ("CANCEL", "PURGE"):
        return "finished"
    return "working" if record.get("orderState") == "ACTIVE" else "pending"


_FROM_SECURITY: Mapping[str, Callable[[str], str]] = {
    "securityCode": lambda security: security.partition(".")[0],
    "exchange": lambda security: security.partition("@")[0].partition(".")[2],
    "dataSource": lambda security: security.partition("@")[2],
}
"""How to read columns that a reply about one security may lack from its full form, by the API's name."""


def _fill(column: Column, value: Any) -> list[Any]:
    """Replace None by a value."""
    if set(map(type, column)) == {_NONE}:
        return [value] * len(column)
    return [value if own is None else own for own in column]


def _fill_currencies(
    call: ApiCall, records: Sequence[Record], column: Column, currencies: Mapping[Listing, str]
) -> list[str | None]:
    if call.security is not None:
        return _fill(column, currencies.get(to_listing(call.security)))
    pairs = zip(column, map(listing_of, records), strict=True)
    return [currencies.get(listing) if own is None else own for own, listing in pairs]


def _has_price(schema: Schema, record: Record) -> bool:
    return any(record.get(api_name) is not None for api_name in schema.price_api_names)


def _fill_multipliers(
    schema: Schema,
    call: ApiCall,
    records: Sequence[Record],
    column: Column,
    multipliers: Mapping[Listing, Decimal],
) -> tuple[Column, list[bool | None]]:
    """Return the multiplier of each record: its own, the security's, or 0.01 (cents) if it has prices.

    :return: the multipliers, and whether each is assumed to be the one for cents.
    """
    if _NONE not in map(type, column):
        return column, [False] * len(column)
    security = call.security
    if security is not None and (multiplier := multipliers.get(to_listing(security))) is not None:
        return _fill(column, multiplier), [False] * len(column)
    listings = _listings(call, records)
    filled = [multipliers.get(listing) if own is None else own for own, listing in zip(column, listings, strict=False)]
    assumed = [
        None if multiplier is None and not _has_price(schema, record) else multiplier is None
        for multiplier, record in zip(filled, records, strict=True)
    ]
    filled = [FALLBACK_MULTIPLIER if is_assumed else own for own, is_assumed in zip(filled, assumed, strict=True)]
    return filled, assumed


def _prices(call: ApiCall, api_name: str, natives: Column, multipliers: Column) -> Column:
    if natives and multipliers.count(multipliers[0]) == len(multipliers):
        with suppress(TypeError, OverflowError):
            return _scale(array("q", natives), multipliers[0])
    prices: list[Decimal | None] = []
    try:
        with localcontext(EXACT):
            prices.extend(
                None if native is None else native * multiplier
                for native, multiplier in zip(natives, multipliers, strict=True)
            )
    except DecimalException:
        raise _wrong_field(call, api_name, "a price of a usual size", natives[len(prices)]) from None
    return prices


def _scale(units: array[int], factor: Decimal) -> Scaled:
    """Multiply whole numbers by one factor.

    :raises OverflowError: a product has too many digits.
    """
    _, digits, exponent = factor.as_tuple()
    coefficient = int("".join(map(str, digits)))
    if not isinstance(exponent, int) or not -_MAX_DECIMALS <= exponent <= 0:
        raise OverflowError
    return Scaled(units if coefficient == 1 else array("q", [unit * coefficient for unit in units]), -exponent)


def _wrong_field(call: ApiCall, field: str, expected: str, value: Any) -> OpenmarketsInvalidResponse:
    return OpenmarketsInvalidResponse(
        f"{call.label}: field {field}: expected {expected}, got {value!r:.100}. To get what the API sends, set "
        "raw=True.",
        endpoint=call.label,
        sent=True,
    )


def _wrong_shape(call: ApiCall, expected: str, value: Any) -> OpenmarketsInvalidResponse:
    return OpenmarketsInvalidResponse(
        f"{call.label}: expected {expected}, got {type(value).__name__}.", endpoint=call.label, sent=True
    )
