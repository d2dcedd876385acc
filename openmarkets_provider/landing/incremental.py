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

from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.query.arguments import align, check_moment, describe
from openmarkets_provider.query.exchange_time import read_moment, to_text
from openmarkets_provider.query.query import Query, endpoint_of, resolve

Moment = Any
"""A bound of a query's range in its final form: an exchange date for daily and weekly bars, else an aware datetime."""


FAR = "2199-12-31"
"""After whatever a range begins with."""


class Claim(NamedTuple):
    """The range that a task has taken on, half-open. It keeps it through retries and when it is cleared."""

    start: Moment
    end: Moment

    def as_data(self) -> dict[str, str]:
        """Return the claim as JSON-able data."""
        return {"start": to_text(self.start), "end": to_text(self.end)}


def check_state(stored: Any) -> dict[str, Any]:
    """Return what a state store holds of a destination; empty when it holds nothing.

    :raises ValueError: it is not what a load writes there.
    """
    match stored:
        case {"destination": str(), "owner": str(), "query": str(), "form": str()}:
            if "first" in stored or "watermark" in stored:
                _check_moments(stored, "first", "watermark")
            return dict(stored)
    if stored is None or stored == {}:
        return {}
    raise ValueError(f"expected the state of an incremental load, got {describe(stored)}")


def check_claim(kept: Any) -> dict[str, str] | None:
    """Return what a state store holds of a task's range; None when it holds nothing.

    :raises ValueError: it is not what :meth:`Claim.as_data` gave.
    """
    if kept is None:
        return None
    if not isinstance(kept, dict):
        raise ValueError(f"expected the range of a task, got {describe(kept)}")
    _check_moments(kept, "start", "end")
    return kept


def _check_moments(stored: Mapping[str, Any], *names: str) -> None:
    for name in names:
        moment = stored.get(name)
        if not isinstance(moment, str):
            raise ValueError(f"{name}: expected a date or a time, got {describe(moment)}")
        try:
            read_moment(moment)
        except ValueError:
            raise ValueError(f"{name}: expected a date or a time, got {describe(moment)}") from None


def claim(query: Query, watermark: str | None, first: str | None, overlap: timedelta, now: datetime) -> Claim | None:
    """Take on what is new, or return None when nothing is.

    :param query: rendered; its start counts as long as there is no watermark.
    :param watermark: how far the destination is loaded, as text.
    :param first: where the first load began, as text.
    :param overlap: how far before the watermark to begin, but not before the first load.
    :param now: aware. What lies after it is not there yet, and would be missed for ever.
    :raises OpenmarketsQueryError: the query is malformed, has no range, or begins before the first load did.
    """
    given = resolve_open(query)
    end = min(given["end"], _bound(given, now))
    if watermark is None or first is None:
        return Claim(given["start"], end) if given["start"] < end else None
    if given["start"] < _bound(given, read_moment(first)):
        raise OpenmarketsQueryError(
            f"{given['endpoint']}: start {query['start']!r} is before {first}, where the first load of this "
            "destination began, and what lies between would never come. Load it with a task without incremental."
        )
    reached = read_moment(watermark)
    if end <= _bound(given, reached):
        return None
    return Claim(_bound(given, max(reached - overlap, read_moment(first))), end)


def resolve_open(query: Query) -> dict[str, Any]:
    """Return a query in its final form, whose range may be within one bar and so be empty, but not reversed.

    :raises OpenmarketsQueryError: it is malformed, or has no range.
    """
    if "start" not in query or "end" not in query:
        raise OpenmarketsQueryError(f"{endpoint_of(query)}: incremental needs a query with a range (start and end).")
    given = dict(resolve({**query, "end": FAR}))
    end = align(given, check_moment(given["endpoint"], "end", to_text(query["end"])))
    return given | {"end": end} if end == given["start"] else resolve(query)


def claim_again(query: Query, data: Mapping[str, str], watermark: str | None, first: str | None) -> Claim | None:
    """Return a claim that was kept as data, or None where a new one has to be made.

    It has to be when nothing is loaded, since the query may have been corrected then; and when somebody has begun
    anew since, or another run was first, and something between the claim and what is loaded would be missing.
    """
    if watermark is None:
        return None
    given = resolve_open(query)
    kept = Claim(*(_bound(given, read_moment(data[bound])) for bound in ("start", "end")))
    return kept if extended(first, watermark, kept) else None


def limited_to(query: Query, start: Moment, end: Moment) -> Query:
    """Return a query with another range."""
    return {**query, "start": to_text(start), "end": to_text(end)}


def extended(first: str | None, watermark: str | None, landed: Claim) -> tuple[str, str] | None:
    """Return from where and how far a destination is loaded, as texts, when a claim has landed, too.

    :param first: where the first load began, as text; None, as ``watermark``, when nothing was loaded.
    :returns: None when something between the two is not loaded.
    """
    start, end = landed.as_data().values()
    if first is None or watermark is None:
        return start, end
    if read_moment(end) < read_moment(first) or read_moment(watermark) < read_moment(start):
        return None
    return min(first, start, key=read_moment), max(watermark, end, key=read_moment)


def fingerprint(query: Query) -> str:
    """Return a short text that two queries share when they differ in nothing but their range and the order of codes."""
    given = {name: value for name, value in resolve_open(query).items() if name not in ("start", "end")}
    plain = {name: sorted(value) if isinstance(value, list) else value for name, value in given.items()}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def _bound(given: Query, moment: datetime) -> date | datetime:
    bound: date | datetime = align(given, moment)
    return bound
