"""What a load tells of itself."""

from __future__ import annotations

from typing import Any, NamedTuple

from openmarkets_provider.client.planning import Query, window
from openmarkets_provider.client.ranges import to_text


class Landed(NamedTuple):
    """What was landed, and where.

    :ivar destination: the object, the folder or the table.
    :ivar rows: how many rows of the query are there now.
    :ivar bytes: size of the files; None for a table.
    :ivar files: the files that were written; empty for a table.
    :ivar range: ``start`` and ``end`` of the rows, half-open, as ISO 8601 texts; None for a query without a range.
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
