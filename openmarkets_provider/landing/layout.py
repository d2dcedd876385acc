"""Columns in which the rows of a query are stored, and their types. Pure.

A layout depends only on the query: an empty result has all columns, and all files of a query have the same columns.
Fields that the schema does not have go into one more column, as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import Enum, auto
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from openmarkets_provider.exceptions import OpenmarketsInvalidResponse
from openmarkets_provider.query.batch import RECORD, Batch
from openmarkets_provider.query.query import Query, endpoint_of, schema_of
from openmarkets_provider.query.schema import Field, Kind

if TYPE_CHECKING:
    import msgspec

OTHER_FIELDS = "other_fields"
"""The column for fields that the schema does not have: a JSON object, or None."""
LOADED_AT = "loaded_at"
"""The column with the time of the load, the same for all its rows."""
_ADDED = frozenset((LOADED_AT, OTHER_FIELDS))
"""Columns that are not in rows. A field of the API with such a name goes into the other fields."""
DIGITS, DECIMALS = 38, 18
"""Digits of a number, and how many of them after the point, if a store has a fixed number of digits."""
Columns = list[Sequence[Any]]
"""Values by column, in the order of a layout."""
LAST_DIGIT = Decimal(1).scaleb(-DECIMALS)
"""Such a store rounds numbers to it."""


class Storage(Enum):
    """How a column is stored. The values of a column are of one Python type, or None."""

    TEXT = auto()
    """str."""
    INTEGER = auto()
    """int of 64 bits."""
    DECIMAL = auto()
    """Decimal, exact."""
    BOOLEAN = auto()
    """bool."""
    DATE = auto()
    """Exchange date."""
    TIME = auto()
    """Aware datetime in UTC."""
    JSON = auto()
    """JSON, as text."""


_STORAGE: Mapping[Kind, Storage] = {
    Kind.TEXT: Storage.TEXT,
    Kind.ID: Storage.TEXT,
    Kind.INTEGER: Storage.INTEGER,
    Kind.COUNT: Storage.INTEGER,
    Kind.VOLUME: Storage.INTEGER,
    Kind.QUANTITY: Storage.DECIMAL,
    Kind.NUMBER: Storage.DECIMAL,
    Kind.PRICE: Storage.DECIMAL,
    Kind.VALUE: Storage.DECIMAL,
    Kind.MULTIPLIER: Storage.DECIMAL,
    Kind.ADJUSTED: Storage.DECIMAL,
    Kind.BOOLEAN: Storage.BOOLEAN,
    Kind.DATE: Storage.DATE,
    Kind.EXCHANGE_TIME: Storage.TIME,
    Kind.UTC_TIME: Storage.TIME,
    Kind.JSON: Storage.JSON,
}


_AVERAGE = (24, 12)
PRECISION: Mapping[Kind | str, tuple[int, int]] = {
    Kind.PRICE: (18, 6),
    Kind.MULTIPLIER: (18, 9),
    Kind.QUANTITY: (24, 6),
    Kind.VALUE: (28, 10),
    Kind.NUMBER: (28, 18),
    Kind.ADJUSTED: (28, 12),
    "market_vwap": _AVERAGE,
    "average_price": _AVERAGE,
    "average_price_start_of_day": _AVERAGE,
}
"""Digits of a number in Arrow and Parquet, and how many of them after the point, by column or else by kind. Averages,
ratios and totals need more than a price. The product of a price and any of them fits the 38 digits of SQL engines."""


class Column(NamedTuple):
    """One column.

    :ivar unit: the unit, the time zone or another note; may be empty.
    :ivar key: True for a part of the key, which identifies a row.
    :ivar precision: for a number: its digits in Arrow and Parquet, and how many of them after the point.
    """

    name: str
    storage: Storage
    unit: str = ""
    key: bool = False
    precision: tuple[int, int] = (DIGITS, DECIMALS)


@dataclass(frozen=True)
class Layout:
    """The columns in which the rows of a query are stored.

    :ivar name: the query's name, such as ``time_series``.
    :ivar columns: in order.
    :ivar time: the column that a range selects rows by; None if the query has no range.
    :ivar loaded_at: when the load began; aware, in UTC.
    """

    name: str
    columns: tuple[Column, ...]
    time: str | None = None
    loaded_at: datetime | None = None

    @cached_property
    def key(self) -> tuple[str, ...]:
        """The columns that identify a row; may be empty."""
        return tuple(column.name for column in self.columns if column.key)

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(column.name for column in self.columns) - _ADDED

    @property
    def has_schema(self) -> bool:
        """False if whole records are stored in one column."""
        return self.columns != _WITHOUT_SCHEMA

    def values(self, batch: Batch) -> Columns:
        """Return the values of a batch by column, in the order of the columns."""
        encode = _json_encoder().encode
        values: Columns = []
        for name, storage, *_ in self.columns:
            if name == LOADED_AT:
                values.append([self.loaded_at] * len(batch))
            elif name == OTHER_FIELDS:
                values.append(self._other_fields(batch))
            elif storage is Storage.JSON:
                values.append(
                    [
                        None if value is None and self.has_schema else encode(value).decode()
                        for value in batch.columns[name]
                    ]
                )
            else:
                values.append(batch.columns[name])
        return values

    def unfit(
        self, values: Sequence[Sequence[Any]], column: Column, row: int, before: int, problem: str
    ) -> OpenmarketsInvalidResponse:
        """Return the error for a value that cannot be stored. It names the column, the row and its key.

        :param values: by column, from :meth:`values`.
        :param row: number of the row in these values, from 0.
        :param before: number of rows of the load before these.
        :param problem: what is wrong with the value and what to do; begins with the verb.
        """
        fields = {each.name: cells[row] for each, cells in zip(self.columns, values, strict=True)}
        key = ", ".join(f"{name} {fields[name]}" for name in self.key)
        return OpenmarketsInvalidResponse(
            f"{self.name}: column {column.name}, row {before + row + 1}{f' ({key})' if key else ''}: "
            f"{str(fields[column.name])[:60]!r} {problem}"
        )

    def _other_fields(self, batch: Batch) -> list[str | None]:
        others = [name for name in batch.columns if name not in self._names]
        if not others:
            return [None] * len(batch)
        encode = _json_encoder().encode
        objects = (
            {name: value for name, value in zip(others, values, strict=True) if value is not None}
            for values in batch.keys(others)
        )
        return [encode(fields).decode() if fields else None for fields in objects]


_LOADED_AT = Column(LOADED_AT, Storage.TIME, "UTC")
_OTHER_FIELDS = Column(OTHER_FIELDS, Storage.JSON, "fields that the schema does not know, by name")
_WITHOUT_SCHEMA = (Column(RECORD, Storage.JSON, "as the API sends it"), _LOADED_AT)


def column_of(field: Field) -> Column:
    """Return how a field of a row is stored."""
    precision = PRECISION.get(field.name) or PRECISION.get(field.kind, (DIGITS, DECIMALS))
    return Column(field.name, _STORAGE[field.kind], field.unit, field.key, precision)


def layout_of(query: Query, loaded_at: datetime | None = None) -> Layout:
    """Return the layout of a query's rows.

    :param loaded_at: when their load began; aware, in UTC.
    :raises OpenmarketsQueryError: it is not a query.
    """
    name = endpoint_of(query)
    # A template renders text.
    if name == "request" or query.get("raw") in (True, "True"):
        return Layout(name, _WITHOUT_SCHEMA, loaded_at=loaded_at)
    schema = schema_of(query)
    columns = map(column_of, schema.fields)
    return Layout(name, (*columns, _LOADED_AT, _OTHER_FIELDS), schema.time, loaded_at)


def _json_encoder() -> msgspec.json.Encoder:
    import msgspec

    # Write all digits; the reader decides about their type.
    return msgspec.json.Encoder(decimal_format="number")
