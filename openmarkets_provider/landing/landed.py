"""What a load tells of itself."""

from __future__ import annotations

from typing import Any, NamedTuple

from openmarkets_provider.query.exchange_time import to_text
from openmarkets_provider.query.query import Query, window


class Landed(NamedTuple):
    """What was landed, and where.

    What was written may be less than what was asked for: a load may skip what is there already.

    :ivar destination: the object, the folder or the table.
    :ivar rows: how many rows were written.
    :ivar bytes: size of the files that were written; None for a table.
    :ivar files: the files that were written; empty for a table.
    :ivar range: ``start`` and ``end`` of what was asked for, half-open, as ISO 8601 texts; None for a query without a
        range.
    """

    destination: str
    rows: int
    bytes: int | None
    files: list[str]
    range: dict[str, str] | None


def range_of(query: Query) -> dict[str, str] | None:
    """Return the range of a rendered query as texts: exchange dates for daily and weekly bars, else times in UTC."""
    if query["endpoint"] == "request":
        return None
    bounds: Any = window(query)
    return dict(zip(("start", "end"), map(to_text, bounds), strict=True)) if bounds else None
