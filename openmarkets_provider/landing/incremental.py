"""Incremental loads: pull the rows that are new, and remember how far a destination is loaded.

They are for runs without their own range. A backfill run loads its data interval and leaves the state unchanged. A run
with a partition key needs no state, because Airflow knows the missing partitions.

The state of a destination is one moment per query, the *watermark*: all rows before it are there. A load claims the
range from a little before the watermark (the overlap, for late data) to the end of its query, or to now. It stores the
claim before it pulls the rows, and moves the watermark after they have landed. Landing is repeatable. So a load that
runs twice, or fails and runs again, gives the same result as one that runs once.

A load may leave securities out (``on_invalid="warn"``). The state lists them. When the API knows a security again, the
next load adds its rows.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from openmarkets_provider.exceptions import OpenmarketsError, OpenmarketsQueryError
from openmarkets_provider.landing.claims import FAR, Claim, align_moment, extend, make_claim, restore_claim
from openmarkets_provider.landing.destination import Destination, LoadResult, Moment, Source, with_range
from openmarkets_provider.landing.load_state import LoadState, StateStore
from openmarkets_provider.landing.skipped import MAX_SKIPPED, add_skipped, combine, replace_skipped
from openmarkets_provider.query.exchange_time import read_moment, to_text
from openmarkets_provider.query.query import SESSION, Query, lacks_range, resolve, window

log = logging.getLogger(__name__)


class NothingNew(Exception):
    """The destination is loaded up to the end of the query."""


def check_query(query: Query) -> None:
    """Refuse a query that cannot be loaded incrementally. Templates are not checked.

    :raises OpenmarketsQueryError: it has no range.
    """
    if not isinstance(query, dict):
        return
    name = query.get("endpoint")
    if lacks_range(query):
        raise OpenmarketsQueryError(f"{name}: incremental needs a query with a range. Set start and end.")
    if SESSION in query:
        raise OpenmarketsQueryError(
            f"{name}: session can't be used with incremental: a session is always loaded whole. Remove incremental."
        )
    if query.get("adjusted") not in (None, False, "False"):
        raise OpenmarketsQueryError(
            f"{name}: adjusted can't be used with incremental: a later split changes adjusted values that are "
            "already loaded. Remove incremental, and load the whole range each time."
        )


def load_incrementally(
    source: Source,
    query: Query,
    destination: Destination,
    store: StateStore,
    *,
    store_name: str,
    owner: str,
    run: str,
    overlap: timedelta,
    interval: tuple[datetime, datetime] | None = None,
    full_refresh: bool = False,
) -> LoadResult:
    """Land the rows that a destination does not have yet.

    :param query: rendered; its start counts only for the first load.
    :param store: see :class:`LoadState`, also for ``store_name``, ``owner`` and ``run``.
    :param overlap: how far before the watermark to begin.
    :param interval: two aware datetimes: load this half-open range instead, and leave the state unchanged.
    :param full_refresh: load the query's whole range, as if nothing were loaded.
    :raises NothingNew: the destination is loaded up to the end of the query.
    :raises OpenmarketsError: rows would be missing or duplicated.
    """
    check_query(query)
    if interval is not None:
        query = _with_interval(query, *interval)
    load_state = LoadState(store, destination, query, store_name=store_name, owner=owner, run=run)
    state = load_state.read()
    if full_refresh and interval is None:
        load_state.check_refresh(state, destination)
        state = {}
    elif destination.is_exclusive:
        load_state.check_owner(state)
    if interval is not None:
        bounds: Any = window(query)
        start, end = destination.range_to_pull(query, bounds[0], bounds[1], state.get("watermark"))
        log.info("This run loads its own interval, %s to %s, and does not move the watermark.", start, end)
        return destination.land(source, with_range(query, start, end))
    claim = _claim(load_state, state, query, destination, overlap)
    watermark = state.get("watermark")
    start, end = destination.range_to_pull(query, *claim, watermark)
    log.info("Loaded up to %s; this task loads %s to %s.", watermark or "nothing yet", start, end)
    result = destination.land(source, with_range(query, start, end))
    # In the meantime, another run may have loaded the table, or a user may have deleted the state.
    state = _extend_state(destination.name, load_state.read(), claim, start, result)
    load_state.write(state)
    listed = {each: since for each, since in state["skipped"].items() if each not in result.skipped}
    if listed:
        missing, added = add_skipped(source, query, destination, listed, Claim(start, end), state["watermark"])
        state = load_state.read()
        state["skipped"] = replace_skipped(state.get("skipped", {}), listed, missing)
        load_state.write(state)
        result = combine(result, added) if added else result
    return result._replace(skipped=sorted(state["skipped"]))


def _with_interval(query: Query, start: datetime, end: datetime) -> Query:
    """Return the query with the range of a run.

    :raises OpenmarketsError: the range is empty.
    """
    arguments = resolve({**query, "start": to_text(start), "end": FAR})
    first, last = (align_moment(arguments, moment) for moment in (start, end))
    if first >= last:
        raise OpenmarketsError(
            f"A backfill loads the data interval of its run, and {to_text(start)} to {to_text(end)} is empty for "
            "this query. Use a timetable whose runs have data intervals, such as CronDataIntervalTimetable."
        )
    return with_range(query, first, last)


def _claim(
    load_state: LoadState, state: Mapping[str, Any], query: Query, destination: Destination, overlap: timedelta
) -> Claim:
    """Return the range that this run loads: its earlier claim, or a new one.

    :raises NothingNew: there is no new range.
    :raises OpenmarketsError: the destination is gone.
    """
    watermark, first = state.get("watermark"), state.get("first")
    data = load_state.read_claim()
    if watermark is not None and state.get("has_rows") and not destination.exists():
        raise OpenmarketsError(
            f"{destination.name} was loaded up to {watermark}, and is now missing or empty. Restore it, or run "
            "the task with full_refresh=True to load it from the query's start again."
        )
    claim = restore_claim(query, data, watermark, first) if data else None
    if claim is None:
        claim = make_claim(query, watermark, first, overlap, datetime.now(UTC))
        if claim is None:
            reason = f"is loaded up to {watermark}" if watermark else "has no rows yet, and the range is in the future"
            raise NothingNew(f"Nothing to load: {destination.name} {reason}.")
        load_state.write_claim(claim)
    if not state:
        # So that another task whose first load runs at the same time finds the owner.
        load_state.write({})
    return claim


def _extend_state(
    name: str, state: Mapping[str, Any], claim: Claim, start: Moment, result: LoadResult
) -> dict[str, Any]:
    """Return how far a destination is loaded after a claim has landed, and the securities that it lacks.

    :param start: the start of the range that the load has pulled.
    :raises OpenmarketsError: transient: another run left a gap; permanent: it lacks too many securities.
    """
    bounds = extend(state.get("first"), state.get("watermark"), claim)
    if bounds is None:
        raise OpenmarketsError(
            f"{name} was loaded from {state['first']} to {state['watermark']} by another run, while this one "
            f"loaded {to_text(claim.start)} to {to_text(claim.end)}: the time between them is not loaded. Run "
            "the task again.",
            transient=True,
        )
    first, watermark = bounds
    skipped: dict[str, str] = dict(state.get("skipped", {}))
    for each in result.skipped:
        skipped[each] = min(skipped.get(each, to_text(start)), to_text(start), key=read_moment)
    if len(skipped) > MAX_SKIPPED:
        raise OpenmarketsError(
            f"{name} lacks rows of {len(skipped)} securities that were left out (on_invalid='warn'); the maximum "
            f"is {MAX_SKIPPED}. Name the securities that the API knows instead of an exchange, or set "
            "on_missing_multiplier='cents' if they have no price multiplier."
        )
    # Without rows there may be no file.
    has_rows = bool(state.get("has_rows") or result.rows)
    return {"first": first, "watermark": watermark, "has_rows": has_rows, "skipped": skipped}
