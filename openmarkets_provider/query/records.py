"""Records, the API's JSON objects, and their values by field. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from functools import cache
from itertools import chain
from typing import Any

import msgspec


class KnownRecord(msgspec.Struct, gc=False):
    """A record with only the fields of its class. Fields that it lacks are unset."""

    def get(self, name: str) -> Any:
        """Return the value of a field; None if the record lacks it."""
        value = getattr(self, name, None)
        return None if value is msgspec.UNSET else value

    def __contains__(self, name: str) -> bool:
        return getattr(self, name, msgspec.UNSET) is not msgspec.UNSET


_NOTHING = {type(None), msgspec.UnsetType}
Record = Any
"""A JSON object of the API: a dict, or a :class:`KnownRecord`."""


@cache
def known_records(fields: tuple[str, ...]) -> msgspec.json.Decoder[list[Any]]:
    """Return a decoder for a list of records with only these fields. It is twice as fast as decoding to dicts.

    It raises ``msgspec.ValidationError`` for any other field. Numbers with a fraction become Decimal.
    """
    kind = msgspec.defstruct(
        "Record",
        [(field, Any, msgspec.UNSET) for field in fields],
        bases=(KnownRecord,),
        forbid_unknown_fields=True,
        gc=False,
    )
    return msgspec.json.Decoder(list[kind], float_hook=Decimal)  # type: ignore[valid-type]


def by_field(records: Sequence[Record]) -> dict[str, list[Any]]:
    """Return the values of each field that any record has; None if a record lacks it."""
    if records and isinstance(records[0], KnownRecord):
        columns = zip(*map(msgspec.structs.astuple, records), strict=True)
        pairs = zip(records[0].__struct_fields__, columns, strict=True)
        return {field: _without_unset(column) for field, column in pairs if not set(map(type, column)) <= _NOTHING}
    # In the order of the records, which a set does not keep.
    fields = dict.fromkeys(chain.from_iterable(records))
    return {field: [record.get(field) for record in records] for field in fields}


def _without_unset(column: Sequence[Any]) -> list[Any]:
    if msgspec.UnsetType not in set(map(type, column)):
        return list(column)
    return [None if value is msgspec.UNSET else value for value in column]


def find_missing(records: Sequence[Record], fields: set[str]) -> set[str]:
    """Return the fields that no record has, not even as null."""
    return {field for field in fields if not any(field in record for record in records)}
