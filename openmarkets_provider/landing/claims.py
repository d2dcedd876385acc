"""Claims: the ranges that incremental loads take. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime, timedelta
from typing import Any, NamedTuple

from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.landing.destination import Moment
from openmarkets_provider.query.arguments import align, check_moment
from openmarkets_provider.query.exchange_time import read_moment, to_text
from openmarkets_provider.query.query import Query, endpoint_of, resolve

FAR = "2199-12-31"
"""Later than the start of any range."""


class Claim(NamedTuple):
    """The half-open range that a run loads. Retries and cleared runs keep it."""

    start: Moment
    end: Moment

    def as_data(self) -> dict[str, str]:
        """Return the claim as JSON-able data."""
        return {"start": to_text(self.start), "end": to_text(self.end)}


def make_claim(
    query: Query, watermark: str | None, first: str | None, overlap: timedelta, now: datetime
) -> Claim | None:
    """Return the range that is new, or None if there is none.

    :param query: rendered; its start counts only while there is no watermark.
    :param watermark: the end of what is loaded, as text.
    :param first: the start of the first load, as text.
    :param overlap: how far before the watermark to begin, but not before the first load.
    :param now: aware. A claim does not go beyond it, because later rows do not exist yet and would be skipped.
    :raises OpenmarketsQueryError: the query is malformed, has no range, or begins before the first load.
    """
    arguments = resolve_open(query)
    end = min(arguments["end"], align_moment(arguments, now))
    if watermark is None or first is None:
        return Claim(arguments["start"], end) if arguments["start"] < end else None
    if arguments["start"] < align_moment(arguments, read_moment(first)):
        raise OpenmarketsQueryError(
            f"{arguments['endpoint']}: start {query['start']!r} is before {first}, where the first load of this "
            "destination began: the rows between would never be loaded. Load them with a task without incremental."
        )
    reached = read_moment(watermark)
    if end <= align_moment(arguments, reached):
        return None
    return Claim(align_moment(arguments, max(reached - overlap, read_moment(first))), end)


def resolve_open(query: Query) -> dict[str, Any]:
    """Return a query in its final form. Its range may be empty (within one bar), but not reversed.

    :raises OpenmarketsQueryError: it is malformed, or has no range.
    """
    if "start" not in query or "end" not in query:
        raise OpenmarketsQueryError(f"{endpoint_of(query)}: incremental needs a query with a range. Set start and end.")
    arguments = dict(resolve({**query, "end": FAR}))
    name = arguments["endpoint"]
    end = align(arguments, check_moment(name, "end", to_text(query["end"])))
    return arguments | {"end": end} if end == arguments["start"] else resolve(query)


def restore_claim(query: Query, data: Mapping[str, str], watermark: str | None, first: str | None) -> Claim | None:
    """Return a claim from its data, or None if a new one is needed.

    A new claim is needed if nothing is loaded, because the query may have been corrected. It is also needed if there
    would be a gap between the claim and what is loaded: a user has started over, or another run was first.
    """
    if watermark is None:
        return None
    arguments = resolve_open(query)
    claim = Claim(*(align_moment(arguments, read_moment(data[bound])) for bound in ("start", "end")))
    return claim if extend(first, watermark, claim) else None


def extend(first: str | None, watermark: str | None, claim: Claim) -> tuple[str, str] | None:
    """Return the start and the end of what is loaded after a claim has landed, as texts.

    :param first: the start of the first load, as text; None, like ``watermark``, if nothing is loaded.
    :returns: None if there would be a gap.
    """
    start, end = claim.as_data().values()
    if first is None or watermark is None:
        return start, end
    if read_moment(end) < read_moment(first) or read_moment(watermark) < read_moment(start):
        return None
    return min(first, start, key=read_moment), max(watermark, end, key=read_moment)


def align_moment(arguments: Mapping[str, Any], moment: datetime) -> date | datetime:
    """Return a moment as a bound of the range of a query in its final form."""
    bound: date | datetime = align(arguments, moment)
    return bound
