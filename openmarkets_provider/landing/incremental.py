"""Incremental loads: pull what is new at a destination, and remember how far it is loaded.

The state of a destination is one moment per query, the *watermark*: all rows before it are there. A load claims the
range from a little before the watermark (the overlap, for data that came late) to the end of its query, or to now. The
claim is stored before the rows are pulled, and the watermark moves after they have landed. Landing can be repeated. So
a load that runs twice, or fails and runs again, gives the same as one that runs once.

A load may leave securities out (``on_invalid="warn"``). The state lists them, each with the moment from which on its
rows are missing. The load in which the API knows one again adds them.

All of it is stored with the destination. Airflow deletes what is stored with a task when the task is cleared, and a
cleared load takes its range again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple, Protocol, TypeVar

from openmarkets_provider.exceptions import OpenmarketsError, OpenmarketsQueryError
from openmarkets_provider.landing.destination import Destination, LoadResult, Moment, Source, name_codes, with_range
from openmarkets_provider.query.arguments import align, check_moment, describe, is_literal, is_security
from openmarkets_provider.query.endpoints import ENDPOINTS
from openmarkets_provider.query.exchange_time import read_moment, to_text
from openmarkets_provider.query.query import SESSION, Query, endpoint_of, resolve, window

log = logging.getLogger(__name__)

T = TypeVar("T")

KEY = "openmarkets"
"""The beginning of all keys."""
KEPT_CLAIMS = 100
"""The store keeps the claims of so many runs for each state."""
MAX_SKIPPED = 1000
"""Most securities that a state lists: so many fit the 64 KiB that Airflow's REST API takes."""
MAX_ADDED = timedelta(days=366)
"""The most of the past that one load adds."""
FAR = "2199-12-31"
"""Later than the start of any range."""


class NothingNew(Exception):
    """The destination is loaded up to the end of the query."""


class StateStore(Protocol):
    """Stores JSON-able data by key."""

    def get(self, key: str) -> Any:
        """Return the data, or None."""

    def set(self, key: str, value: Any) -> None:
        """Store the data."""

    def delete(self, key: str) -> None:
        """Delete the data, if there is any."""


class Claim(NamedTuple):
    """The half-open range that a run loads. It keeps it through retries, and when it is cleared."""

    start: Moment
    end: Moment

    def as_data(self) -> dict[str, str]:
        """Return the claim as JSON-able data."""
        return {"start": to_text(self.start), "end": to_text(self.end)}


def check_query(query: Query) -> None:
    """Refuse a query that cannot be loaded incrementally. What is not literal yet is not checked.

    :raises OpenmarketsQueryError: it has no range.
    """
    if not isinstance(query, dict):
        return
    name = query.get("endpoint")
    if is_literal(name) and name is not None and (name not in ENDPOINTS or ENDPOINTS[name].time is None):
        raise OpenmarketsQueryError(f"{name}: incremental needs a query with a range (start and end).")
    if SESSION in query:
        raise OpenmarketsQueryError(
            f"{name}: session does not go with incremental: a session is loaded whole. Leave incremental out."
        )
    if query.get("adjusted") not in (None, False, "False"):
        raise OpenmarketsQueryError(
            f"{name}: adjusted does not go with incremental: the next split changes the adjusted values of rows that "
            "are loaded already. Load the whole range each time, without incremental."
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
    """Land what is new at a destination.

    :param query: rendered; its start counts for the first load only.
    :param store: shared by all loads of the destination.
    :param store_name: names the store in messages, such as ``asset 'lake'``.
    :param owner: the task, such as ``dag.task``.
    :param run: the run of the task, such as ``dag/run/task/map index``; the same when it is retried or cleared.
    :param overlap: how far before the watermark to begin.
    :param interval: two aware datetimes: load this half-open range instead, and leave the state as it is.
    :param full_refresh: load the query's whole range, as if nothing were loaded.
    :raises NothingNew: the destination is loaded up to the end of the query.
    :raises OpenmarketsError: rows would be missing or there twice.
    """
    check_query(query)
    if interval is not None:
        query = _with_interval(query, *interval)
    own = {
        "destination": destination.name,
        "owner": owner,
        "query": fingerprint(query),
        "format": destination.format,
    }
    key = _key(own, per_query=not destination.is_exclusive)
    claim_key = f"{key}_{_digest(run)}"
    advice, claim_advice = (f"delete the key {each!r} in the state store of {store_name}" for each in (key, claim_key))
    state = _read(check_state, store.get(key), advice)
    if full_refresh and interval is None:
        _check_refresh(destination, state, own)
        state = {}
    elif destination.is_exclusive:
        _check_owner(state, own)
    watermark, first = state.get("watermark"), state.get("first")
    if interval is not None:
        bounds: Any = window(query)
        start, end = destination.range_to_pull(query, bounds[0], bounds[1], watermark)
        log.info("This run loads its own interval, %s to %s; the watermark stays.", start, end)
        return destination.land(source, with_range(query, start, end))
    data = _read(check_claim, store.get(claim_key), claim_advice)
    if watermark is not None and state.get("has_rows") and not destination.exists():
        raise OpenmarketsError(
            f"{destination.name} is gone, or empty, and was loaded up to {watermark}. To load it anew from the "
            "query's start, run the task with full_refresh=True."
        )
    claim = restore_claim(query, data, watermark, first) if data else None
    if claim is None:
        claim = make_claim(query, watermark, first, overlap, datetime.now(UTC))
        if claim is None:
            reason = f"is loaded up to {watermark}" if watermark else "has nothing yet, and the range lies ahead"
            raise NothingNew(f"Nothing is new: {destination.name} {reason}.")
        store.set(claim_key, {"run": run, **claim.as_data()})
        _forget_old_claims(store, f"{key}_claims", claim_key)
    if not state:
        # Another task whose first load runs at the same time finds the owner.
        store.set(key, own)
    start, end = destination.range_to_pull(query, *claim, watermark)
    log.info("Loaded up to %s; this task loads %s to %s.", watermark or "nothing yet", start, end)
    result = destination.land(source, with_range(query, start, end))
    # Another run may have loaded the table meanwhile, or a user deleted the state.
    state = own | _extend_state(destination.name, _read(check_state, store.get(key), advice), claim, start, result)
    store.set(key, state)
    listed = {each: since for each, since in state["skipped"].items() if each not in result.skipped}
    if listed:
        missing, added = _add_skipped(source, query, destination, listed, Claim(start, end), state["watermark"])
        state = _read(check_state, store.get(key), advice)
        state["skipped"] = _replace_skipped(state.get("skipped", {}), listed, missing)
        store.set(key, own | state)
        result = _combine(result, added) if added else result
    return result._replace(skipped=sorted(state["skipped"]))


def _with_interval(query: Query, start: datetime, end: datetime) -> Query:
    """Return the query with the range of a run.

    :raises OpenmarketsError: the range is empty.
    """
    arguments = resolve({**query, "start": to_text(start), "end": FAR})
    bounds = [_align(arguments, moment) for moment in (start, end)]
    if bounds[0] >= bounds[1]:
        raise OpenmarketsError(
            f"A backfill loads the data interval of its run, and {to_text(start)} to {to_text(end)} holds nothing of "
            "this query. Take a timetable whose runs have data intervals, such as CronDataIntervalTimetable."
        )
    return with_range(query, *bounds)


def _check_refresh(destination: Destination, state: Mapping[str, str], own: Mapping[str, str]) -> None:
    """Refuse to begin anew where files of another query or format would stay.

    :raises OpenmarketsError: likewise.
    """
    is_other = any(state[name] != own[name] for name in ("query", "format")) if state else False
    if is_other and destination.exists():
        raise OpenmarketsError(
            f"full_refresh: {destination.name} was loaded with another query (securities, interval...), partition or "
            "format, and its files would stay beside the new ones. Empty it first."
        )


def _add_skipped(
    source: Source, query: Query, destination: Destination, listed: Mapping[str, str], pulled: Claim, watermark: str
) -> tuple[dict[str, str], LoadResult | None]:
    """Add the rows that earlier loads left out, of securities that this load did not leave out.

    :param listed: the securities, each with the moment from which on its rows are missing, as text.
    :param pulled: the range that this load has pulled.
    :return: likewise those whose rows are still missing; and what was added, if anything was.
    """
    arguments = resolve_open(query)
    reached = end = _align(arguments, read_moment(watermark))
    if pulled.end >= reached:
        reached = pulled.start
    missing = {each: _align(arguments, read_moment(since)) for each, since in listed.items()}
    missing = {each: since for each, since in missing.items() if since < reached}
    if not missing:
        return {}, None
    start = min(missing.values())
    named = name_codes(source, with_range(query, start, end))["securities"]
    if gone := sorted(missing.keys() - named):
        log.warning(
            "%s: the query no longer names %.1000r; rows that were left out never come.", destination.name, gone
        )
    if not (asked := sorted(missing.keys() & named)):
        return {}, None
    until = min(reached, _align(arguments, read_moment(to_text(start)) + MAX_ADDED))
    start, until = destination.range_to_pull(query, start, until, watermark)
    log.info("Adding the rows from %s to %s that earlier loads left out of %.1000r.", start, until, asked)
    past = {**query, "securities": asked, "exchange": None, "on_invalid": "warn"}
    try:
        added = destination.add(source, with_range(past, start, until))
    except OpenmarketsQueryError as error:
        # All of them are left out again.
        if error.securities is None or not set(asked).issubset(error.securities):
            raise
        added = None
    still = asked if added is None else added.skipped
    since = {each: missing[each] if each in still else max(missing[each], until) for each in asked}
    return {each: to_text(moment) for each, moment in since.items() if each in still or moment < reached}, added


def _replace_skipped(
    skipped: Mapping[str, str], listed: Mapping[str, str], missing: Mapping[str, str]
) -> dict[str, str]:
    """Return the list of a state once rows were added; what another run has changed meanwhile stays.

    :param skipped: the list now.
    :param listed: what was in it before.
    :param missing: what is to be in its place.
    """
    same = {each for each, since in listed.items() if skipped.get(each) == since}
    return {
        each: missing[each] if each in same else since
        for each, since in skipped.items()
        if each not in same or each in missing
    }


def _combine(result: LoadResult, added: LoadResult) -> LoadResult:
    """Return the result of a load that has added rows of the past, too."""
    if not added.rows:
        return result
    ranges: Any = result.range, added.range
    return result._replace(
        rows=result.rows + added.rows,
        bytes=None if result.bytes is None or added.bytes is None else result.bytes + added.bytes,
        files=list(dict.fromkeys([*added.files, *result.files])),
        range={
            "start": min((each["start"] for each in ranges), key=read_moment),
            "end": max((each["end"] for each in ranges), key=read_moment),
        },
    )


def _forget_old_claims(store: StateStore, list_key: str, new: str) -> None:
    """Delete the claims before the last :data:`KEPT_CLAIMS`, by the list of their keys: a store lists none.

    Each claim has a key of its own, so that loads that begin at the same time lose none. One of them may be missing in
    the list; its claim then stays.
    """
    listed = store.get(list_key)
    keys = [key for key in listed if key != new] if isinstance(listed, list) else []
    keys.append(new)
    for key in keys[:-KEPT_CLAIMS]:
        store.delete(str(key))
    store.set(list_key, keys[-KEPT_CLAIMS:])


def _extend_state(
    name: str, state: Mapping[str, Any], claim: Claim, start: Moment, result: LoadResult
) -> dict[str, Any]:
    """Return how far a destination is loaded once a claim has landed, and the securities that it lacks.

    :param start: from where on the load has pulled.
    :raises OpenmarketsError: transient: another run left a gap; permanent: it lacks too many.
    """
    bounds = extend(state.get("first"), state.get("watermark"), claim)
    if bounds is None:
        raise OpenmarketsError(
            f"{name} was loaded from {state['first']} to {state['watermark']} by another run, while this "
            f"one loaded {to_text(claim.start)} to {to_text(claim.end)}: what lies between the two is not loaded. "
            "Run the task again.",
            transient=True,
        )
    first, watermark = bounds
    skipped: dict[str, str] = dict(state.get("skipped", {}))
    for each in result.skipped:
        skipped[each] = min(skipped.get(each, to_text(start)), to_text(start), key=read_moment)
    if len(skipped) > MAX_SKIPPED:
        raise OpenmarketsError(
            f"{name} lacks rows of {len(skipped)} securities that were left out (on_invalid='warn'), and at most "
            f"{MAX_SKIPPED} are remembered. Name the securities that the API knows instead of an exchange, or set "
            "on_missing_multiplier='cents' if they have no price multiplier."
        )
    # Without a row there may be no file.
    has_rows = bool(state.get("has_rows") or result.rows)
    return {"first": first, "watermark": watermark, "has_rows": has_rows, "skipped": skipped}


def _read(check: Callable[[Any], T], data: Any, advice: str) -> T:
    """Check what a state store holds: users can write there, too."""
    try:
        return check(data)
    except ValueError as error:
        raise OpenmarketsError(
            f"The state of this incremental load is damaged: {error}. To begin anew, {advice}."
        ) from None


def _key(own: Mapping[str, str], *, per_query: bool) -> str:
    """Return the key of the state of a destination, or of a query where several queries load the destination."""
    text = f"{own['destination']} {own['query']}" if per_query else own["destination"]
    return f"{KEY}_{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _check_owner(state: Mapping[str, str], own: Mapping[str, str]) -> None:
    # Until something is loaded the query may still be corrected.
    names = ("owner", "query", "format") if state.get("watermark") else ("owner",)
    if state and [state[name] for name in names] != [own[name] for name in names]:
        raise OpenmarketsError(
            f"{own['destination']} is loaded by task {state['owner']}, or was loaded with another query (securities, "
            "interval...), partition or format: rows would be missing or there twice. Give this load a destination of "
            "its own; or, to begin anew, empty it and run the task with full_refresh=True."
        )


def check_state(data: Any) -> dict[str, Any]:
    """Return the state of a destination as a store holds it; empty when there is none.

    :raises ValueError: a load did not write it.
    """
    match data:
        case {"destination": str(), "owner": str(), "query": str(), "format": str()}:
            if "first" in data or "watermark" in data:
                _check_moments(data, "first", "watermark")
            _check_skipped(data.get("skipped", {}))
            return dict(data)
    if data is None or data == {}:
        return {}
    raise ValueError(f"expected the state of an incremental load, got {describe(data)}")


def _check_skipped(skipped: Any) -> None:
    if not isinstance(skipped, dict) or not all(isinstance(each, str) and is_security(each) for each in skipped):
        raise ValueError(f"skipped: expected a moment for each security, got {describe(skipped)}")
    _check_moments(skipped, *skipped)


def check_claim(data: Any) -> dict[str, str] | None:
    """Return the claim of a run as a store holds it; None when there is none.

    :raises ValueError: it is not the data of a :class:`Claim`.
    """
    if data is None:
        return None
    if not isinstance(data, dict):
        raise ValueError(f"expected the range of a run, got {describe(data)}")
    _check_moments(data, "start", "end")
    return data


def _check_moments(data: Mapping[str, Any], *names: str) -> None:
    for name in names:
        moment = data.get(name)
        if not isinstance(moment, str):
            raise ValueError(f"{name}: expected a date or a time, got {describe(moment)}")
        try:
            read_moment(moment)
        except ValueError:
            raise ValueError(f"{name}: expected a date or a time, got {describe(moment)}") from None


def make_claim(
    query: Query, watermark: str | None, first: str | None, overlap: timedelta, now: datetime
) -> Claim | None:
    """Return the range that is new, or None when nothing is.

    :param query: rendered; its start counts as long as there is no watermark.
    :param watermark: up to where the destination is loaded, as text.
    :param first: where the first load began, as text.
    :param overlap: how far before the watermark to begin, but not before the first load.
    :param now: aware; a claim ends there at the latest, since later rows do not exist yet and would never come.
    :raises OpenmarketsQueryError: the query is malformed, has no range, or begins before the first load did.
    """
    arguments = resolve_open(query)
    end = min(arguments["end"], _align(arguments, now))
    if watermark is None or first is None:
        return Claim(arguments["start"], end) if arguments["start"] < end else None
    if arguments["start"] < _align(arguments, read_moment(first)):
        raise OpenmarketsQueryError(
            f"{arguments['endpoint']}: start {query['start']!r} is before {first}, where the first load of this "
            "destination began: the rows between would never be loaded. Load them with a task without incremental."
        )
    reached = read_moment(watermark)
    if end <= _align(arguments, reached):
        return None
    return Claim(_align(arguments, max(reached - overlap, read_moment(first))), end)


def resolve_open(query: Query) -> dict[str, Any]:
    """Return a query in its final form. Its range may be empty, within one bar, but not reversed.

    :raises OpenmarketsQueryError: it is malformed, or has no range.
    """
    if "start" not in query or "end" not in query:
        raise OpenmarketsQueryError(f"{endpoint_of(query)}: incremental needs a query with a range (start and end).")
    arguments = dict(resolve({**query, "end": FAR}))
    name = arguments["endpoint"]
    end = align(arguments, check_moment(name, "end", to_text(query["end"])))
    return arguments | {"end": end} if end == arguments["start"] else resolve(query)


def restore_claim(query: Query, data: Mapping[str, str], watermark: str | None, first: str | None) -> Claim | None:
    """Return a claim from its data, or None where a new one must be made.

    That is when nothing is loaded, since the query may have been corrected; and when there would be a gap between the
    claim and what is loaded, since a user has begun anew or another run was first.
    """
    if watermark is None:
        return None
    arguments = resolve_open(query)
    claim = Claim(*(_align(arguments, read_moment(data[bound])) for bound in ("start", "end")))
    return claim if extend(first, watermark, claim) else None


def extend(first: str | None, watermark: str | None, claim: Claim) -> tuple[str, str] | None:
    """Return from where and up to where a destination is loaded, as texts, once a claim has landed.

    :param first: where the first load began, as text; None, as ``watermark``, when nothing is loaded.
    :returns: None when there would be a gap.
    """
    start, end = claim.as_data().values()
    if first is None or watermark is None:
        return start, end
    if read_moment(end) < read_moment(first) or read_moment(watermark) < read_moment(start):
        return None
    return min(first, start, key=read_moment), max(watermark, end, key=read_moment)


def fingerprint(query: Query) -> str:
    """Return a short text, the same for queries that differ only in range, order of codes, and what is an error."""
    others = ("start", "end", "on_invalid", "on_missing_field")
    arguments = {name: value for name, value in resolve_open(query).items() if name not in others}
    plain = {name: sorted(value) if isinstance(value, list) else value for name, value in arguments.items()}
    return _digest(json.dumps(plain, sort_keys=True))


def _align(arguments: Mapping[str, Any], moment: datetime) -> date | datetime:
    bound: date | datetime = align(arguments, moment)
    return bound
