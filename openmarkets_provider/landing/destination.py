"""Where rows are landed: the common interface of files and tables."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

from openmarkets_provider.landing.layout import Layout
from openmarkets_provider.query.batch import Batch
from openmarkets_provider.query.exchange_time import exchange_date, to_text
from openmarkets_provider.query.expand import expand, lookup_query
from openmarkets_provider.query.query import SESSION, Query, ResolvedQuery, resolve, window

log = logging.getLogger(__name__)

Moment = Any
"""A bound of a query's range in its final form: an exchange date for daily and weekly bars, else an aware datetime."""


class LoadResult(NamedTuple):
    """What a load wrote, and where. It may be less than the query returns: a load can skip existing files.

    :ivar destination: the file, the folder or the table.
    :ivar rows: number of rows written.
    :ivar bytes: size of the files written; None for a table.
    :ivar files: URLs of the files written; empty for a table.
    :ivar range: ``start`` and ``end`` of the query, half-open, as ISO 8601 texts: exchange dates for daily and weekly
        bars, else times in UTC. None for a query without a range.
    :ivar skipped: the securities that the load left out, in full form such as ``BHP.ASX@TM``, in order. With
        ``on_invalid="warn"`` these are unknown securities, and those whose prices have no multiplier. Quotes that the
        API does not return are always left out. For an incremental load: all securities whose rows are still missing.
    """

    destination: str
    rows: int
    bytes: int | None
    files: list[str]
    range: dict[str, str] | None
    skipped: list[str]


class Source(Protocol):
    """Answers queries: a hook or a client."""

    def run(self, query: Query) -> Any:
        """Return all rows of a query."""

    def stream_columns(self, query: Query, skipped: set[str] | None = None) -> Generator[Batch, None, None]:
        """Yield the rows of a query in batches by column.

        :param skipped: collects the securities that are left out, in full form.
        """


class Destination(Protocol):
    """A file, a folder of files, or a table.

    :cvar is_exclusive: True if the destination has the rows of one query of one task, and only one load at a time may
        change it.
    """

    is_exclusive: bool

    @property
    def name(self) -> str:
        """A name that identifies the destination, without a secret."""

    @property
    def format(self) -> str:
        """How the destination stores rows. All loads of an exclusive destination must use the same format."""

    def exists(self) -> bool:
        """Tell whether the destination has rows.

        :raises OpenmarketsError: it cannot be read.
        """

    def range_to_pull(self, query: Query, start: Moment, end: Moment, watermark: str | None) -> tuple[Moment, Moment]:
        """Return the half-open range to pull so that its rows can replace those at the destination.

        :param start: of the new range.
        :param end: of the new range.
        :param watermark: the end of what is loaded, as text; None if nothing is.
        """

    def land(self, source: Source, query: Query) -> LoadResult:
        """Pull the rows of a query and write all of them, or none.

        :raises OpenmarketsError: the query or the destination failed. The destination is then unchanged.
        """

    def add(self, source: Source, query: Query) -> LoadResult:
        """Pull the rows of a query and add all of them, or none, to those at the destination.

        Rows with the same key are replaced; all others stay, whatever their security.

        :param query: its range begins where :meth:`range_to_pull` says.
        :raises OpenmarketsError: see :meth:`land`.
        """

    def cancel(self) -> None:
        """Stop work that a server does for this load. Called from a signal handler."""


class SharedDestination(ABC):
    """A table that several loads may change at the same time. Each replaces exactly the rows that it covers."""

    is_exclusive = False
    format = ""

    @abstractmethod
    def land(self, source: Source, query: Query) -> LoadResult:
        """Pull the rows of a query and write all of them, or none."""

    def range_to_pull(self, query: Query, start: Moment, end: Moment, watermark: str | None) -> tuple[Moment, Moment]:
        """Return the new range."""
        return start, end

    def add(self, source: Source, query: Query) -> LoadResult:
        """Land the rows. Those of other securities stay."""
        return self.land(source, query)


def keep_last(batches: Iterable[Batch], layout: Layout) -> Iterator[Batch]:
    """Yield the batches without rows whose key a later row of the same batch has, and log their number.

    A batch has the rows of one call, or of all calls that may return the same row. A row without a part of its key
    stays.
    """
    for batch in batches:
        keys = batch.keys(layout.key) if layout.key and len(batch) else []
        last = {key: row for row, key in enumerate(keys)}
        if len(last) == len(keys):
            yield batch
        else:
            kept = batch.take([row for row, key in enumerate(keys) if last[key] == row or None in key])
            log.warning(
                "%s: %d of %d rows have the same key (%s) as a later row, and are left out.",
                layout.name,
                len(batch) - len(kept),
                len(batch),
                ", ".join(layout.key),
            )
            yield kept


def range_texts(query: Query) -> dict[str, str] | None:
    """Return the range of a rendered query as in :attr:`LoadResult.range`."""
    if query["endpoint"] == "request":
        return None
    bounds: Any = window(query)
    return dict(zip(("start", "end"), map(to_text, bounds), strict=True)) if bounds else None


def name_codes(source: Source, query: Query) -> ResolvedQuery:
    """Return a query with the codes of its securities or accounts."""
    codes = lookup_query(query)
    return resolve(query) if codes is None else expand(query, source.run(codes), exchange_date(datetime.now(UTC)))


def with_range(query: Query, start: Moment, end: Moment) -> Query:
    """Return a query with another range."""
    others = {name: value for name, value in query.items() if name != SESSION}
    return {**others, "start": to_text(start), "end": to_text(end)}
