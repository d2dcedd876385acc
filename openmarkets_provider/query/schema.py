"""Row schemas. Rows, their documentation and the types of stored columns follow from them. Pure.

The API page lists only the names of fields. Types and units are inferred from them; ``raw=True`` returns what the API
sends.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, unique
from functools import cache, cached_property
from typing import Any

Row = dict[str, Any]


@unique
class Kind(Enum):
    """What a field contains. The value is its Python type and its unit, as the documentation shows them."""

    TEXT = ("str", "")
    ID = ("str", "identifier; a number is written as text")
    INTEGER = ("int", "")
    COUNT = ("int", "count")
    VOLUME = ("int", "securities or contracts")
    QUANTITY = ("Decimal", "securities, contracts or units of a fund")
    NUMBER = ("Decimal", "ratio")
    PRICE = ("Decimal", "currency's main unit: native price x price_multiplier")
    VALUE = ("Decimal", "currency's main unit, as the API sends it")
    MULTIPLIER = ("Decimal", "main units in one native unit")
    ADJUSTED = ("Decimal", "as the column without adjusted_; rounded half even to 12 decimals")
    BOOLEAN = ("bool", "")
    DATE = ("date", "exchange date")
    EXCHANGE_TIME = ("datetime", "UTC; the API sends exchange time")
    UTC_TIME = ("datetime", "UTC")
    JSON = ("any", "as the API sends it")

    @property
    def type(self) -> str:
        """The Python type of a value that is not None."""
        return self.value[0]

    @property
    def unit(self) -> str:
        """The unit or the time zone, in words."""
        return self.value[1]


@dataclass(frozen=True)
class Field:
    """One column of a row.

    :ivar api: the API's name; None for a column that the provider adds.
    :ivar name: the column's name, snake_case.
    :ivar key: True for a part of the key, which identifies the row.
    :ivar note: replaces the unit of the kind.
    """

    api: str | None
    name: str
    kind: Kind
    key: bool = False
    note: str = ""

    @property
    def unit(self) -> str:
        """The note, or the unit or time zone of the kind."""
        return self.note or self.kind.unit


@dataclass(frozen=True)
class Schema:
    """The rows of one query.

    :ivar fields: the columns in order.
    :ivar time: the column that a range selects rows by; None if the query has no range.
    """

    fields: tuple[Field, ...]
    time: str | None = None

    @cached_property
    def key(self) -> tuple[str, ...]:
        """The columns that identify a row."""
        return tuple(field.name for field in self.fields if field.key)

    @cached_property
    def by_api_name(self) -> dict[str, Field]:
        """The columns that the API sends, by the API's name."""
        return {field.api: field for field in self.fields if field.api is not None}

    @cached_property
    def supplied(self) -> dict[str, Field]:
        """The columns that the provider supplies if a reply lacks them, by the API's name."""
        return {api_name: field for api_name, field in _SUPPLIED.items() if field in self.fields}

    @cached_property
    def sendable(self) -> dict[str, Field]:
        """All columns that a reply may have, by the API's name."""
        return self.by_api_name | self.supplied

    @cached_property
    def only_sent(self) -> frozenset[str]:
        """The API's names of the columns that only the API fills."""
        return frozenset(name for name, field in self.by_api_name.items() if field.kind is not Kind.MULTIPLIER)

    @cached_property
    def names(self) -> frozenset[str]:
        """The names of all columns."""
        return frozenset(field.name for field in self.fields)

    @cached_property
    def gmt_columns(self) -> dict[str, str]:
        """The columns with an exchange time, to the columns that have the same time in UTC."""
        kinds = {field.name: field.kind for field in self.fields}
        plain = {name.replace("_gmt", ""): name for name, kind in kinds.items() if kind is Kind.UTC_TIME}
        return {name: gmt for name, gmt in plain.items() if kinds.get(name) is Kind.EXCHANGE_TIME}

    @cached_property
    def price_api_names(self) -> tuple[str, ...]:
        """The API's names of the columns with prices."""
        return tuple(name for name, field in self.by_api_name.items() if field.kind is Kind.PRICE)


def snake_case(api_name: str) -> str:
    """Turn an API's camelCase name into a column's name."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", api_name).lower()


_SUPPLIED = {
    "securityCode": Field(None, "security_code", Kind.TEXT, key=True),
    "exchange": Field(None, "exchange", Kind.TEXT, key=True),
    "dataSource": Field(None, "data_source", Kind.TEXT, key=True),
    "currency": Field(None, "currency", Kind.TEXT, note="currency's code, from security information"),
    "priceMultiplier": Field(None, "price_multiplier", Kind.MULTIPLIER),
}
"""Columns that some replies of the API lack, by their name in others."""
_COMPUTED = {
    "frequency": Field(None, "frequency", Kind.TEXT, key=True, note="of the query: Daily or Weekly"),
    "interval": Field(None, "interval", Kind.INTEGER, key=True, note="of the query: minutes"),
    **{
        f"adjusted{name}": Field(None, f"adjusted_{snake_case(name)}", Kind.ADJUSTED)
        for name in ("OpenPrice", "HighPrice", "LowPrice", "ClosePrice", "TotalVolume")
    },
    "level": Field(None, "level", Kind.INTEGER, key=True, note="1 is the best price (inferred)"),
    "priceMultiplierAssumed": Field(
        None, "price_multiplier_assumed", Kind.BOOLEAN, note="nothing supplies the multiplier; 0.01 is taken (cents)"
    ),
    "state": Field(None, "state", Kind.TEXT, note="working, finished, failed or pending"),
}


@cache
def read_schema(columns: str, time: str | None = None) -> Schema:
    """Read a list of columns in the notation of the endpoint table.

    ``apiName:kind`` is a field that the API sends, with the name of a :class:`Kind` in lower case; ``!`` marks a part
    of the key. ``+name`` is a column that the provider adds. Prices also add ``price_multiplier_assumed``.

    :param time: the column that a range selects rows by.
    """

    def read_field(entry: str) -> Field:
        if entry.startswith("+"):
            return (_SUPPLIED | _COMPUTED)[entry[1:]]
        api_name, _, kind = entry.rstrip("!").partition(":")
        return Field(api_name, snake_case(api_name), Kind[kind.upper()], entry.endswith("!"))

    fields = tuple(map(read_field, columns.split()))
    if any(field.kind is Kind.PRICE for field in fields):
        fields = (*fields, _COMPUTED["priceMultiplierAssumed"])
    return Schema(fields, time)
