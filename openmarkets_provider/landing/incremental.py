"""Which range an incremental load pulls, and how far a destination is loaded. Pure.

What is remembered is one moment a destination and query, the watermark: everything before it is there. A load pulls
from a little before the watermark (the overlap, for data that came late) up to its own end, or to now. It is carried
out in a way that can be repeated, and the watermark is moved only afterwards: so a load that is carried out twice, or
half and then again, leaves the same as one that was never disturbed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from typing import Any, NamedTuple

from openmarkets_provider.client.arguments import aligned
from openmarkets_provider.client.planning import Query, finalise
from openmarkets_provider.client.ranges import read_moment, to_text
from openmarkets_provider.exceptions import OpenmarketsQueryError

Moment = Any
"""A bound of a query's range in its final form: an exchange date for daily and weekly bars, else an aware datetime."""


class Claim(NamedTuple):
    """The range that a task has taken on, half-open. It keeps it through retries and when it is cleared.

    :ivar after: the watermark at that time, as text; None where nothing was loaded.
    """

    start: Moment
    end: Moment
    after: str | None

    def as_data(self) -> dict[str, str | None]:
        """Return the claim as JSON-able data."""
        return {"start": to_text(self.start), "end": to_text(self.end), "after": self.after}


def claim(query: Query, watermark: str | None, first: str | None, overlap: timedelta, now: datetime) -> Claim | None:
    """Take on what is new, or return None when nothing is.

    :param query: rendered; its start counts as long as there is no watermark.
    :param watermark: how far the destination is loaded, as text.
    :param first: where the first load began, as text.
    :param overlap: how far before the watermark to begin, but not before the first load.
    :param now: aware. What lies after it is not there yet, and would be missed for ever.
    :raises OpenmarketsQueryError: the query is malformed or has no range.
    """
    given = finalise(query)
    if "start" not in given:
        raise OpenmarketsQueryError(f"{given['endpoint']}: incremental needs a query with a range (start and end).")
    end = min(given["end"], _bound(given, now))
    if watermark is None or first is None:
        return Claim(given["start"], end, None) if given["start"] < end else None
    reached = read_moment(watermark)
    if end <= _bound(given, reached):
        return None
    return Claim(_bound(given, max(reached - overlap, read_moment(first))), end, watermark)


def claim_again(query: Query, data: Mapping[str, Any], watermark: str | None) -> Claim | None:
    """Return a claim that was kept as data, or None when it would leave a gap.

    It would when somebody has begun anew since: the destination is then not loaded up to where the claim begins.
    """
    given = finalise(query)
    start, end = (_bound(given, read_moment(data[bound])) for bound in ("start", "end"))
    kept = Claim(start, end, data["after"])
    if watermark is None:
        return kept if kept.after is None else None
    return kept if kept.start <= _bound(given, read_moment(watermark)) else None


def limited_to(query: Query, start: Moment, end: Moment) -> Query:
    """Return a query with another range."""
    return {**query, "start": to_text(start), "end": to_text(end)}


def later(one: str | None, other: str) -> str:
    """Return the later one of two watermarks, as texts."""
    return other if one is None or read_moment(one) < read_moment(other) else one


def fingerprint(query: Query) -> str:
    """Return a short text that two queries share when they differ in nothing but their range and the order of codes."""
    given = {name: value for name, value in finalise(query).items() if name not in ("start", "end")}
    plain = {name: sorted(value) if isinstance(value, list) else value for name, value in given.items()}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def _bound(given: Query, moment: datetime) -> date | datetime:
    bound: date | datetime = aligned(given["endpoint"], given, moment)
    return bound
