"""The sessions of securities that a destination lacks, and the queries that load them.

Each security should have a row on each session on which it is listed. A session without a row at the destination is
first only *absent*, because a listed security may have no trades, for example if it is suspended. With :data:`BY_API`,
the API is asked for everything that is absent. What it has a row for is *missing*: exactly what a load would add. With
:data:`BY_CALENDAR`, everything that is absent counts as missing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import date, datetime, timedelta
from itertools import chain
from typing import Any, NamedTuple, Protocol

from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.landing.destination import Moment, Source, with_range
from openmarkets_provider.query.arguments import is_literal
from openmarkets_provider.query.endpoints import BAR_LENGTH, ENDPOINTS, Endpoint
from openmarkets_provider.query.exchange_time import day_of, exchange_date, read_moment
from openmarkets_provider.query.expand import expand, lookup_query
from openmarkets_provider.query.query import Query, ResolvedQuery, days_of, endpoint_of, resolve
from openmarkets_provider.query.rows import Listing, to_listing
from openmarkets_provider.sessions.calendar import ASX, SessionCalendar

BY_API, BY_CALENDAR = COMPARE = ("api", "calendar")
"""What decides whether an absent session is missing."""
MAX_QUERIES = 50
"""Most queries for a repair, each of which becomes a mapped task. There are more only if each makes one call anyway."""
Missing = Mapping[str, Sequence[date]]
"""Sessions in order, by security in full form."""
_DAY = timedelta(days=1)
KEY = ("security_code", "exchange")
"""The columns that identify a security. The data source is not one: rows of a query may have several."""


class Wanted(NamedTuple):
    """The rows at a destination that count.

    :ivar time: the column of the range.
    :ivar start: the first date or time in the range, as the column has it: an exchange date, or an aware time in UTC.
    :ivar end: the first date or time after the range.
    :ivar length: the column with the length of bars, and its value; None for trades.
    """

    time: str
    start: Moment
    end: Moment
    length: tuple[str, str | int] | None


class Landed(Protocol):
    """Reads what was landed."""

    def read_keys(self, wanted: Wanted) -> Iterator[tuple[date, str, str]]:
        """Yield the exchange date, the security's code and its exchange of the rows. Keys may repeat.

        :raises OpenmarketsError: the destination cannot be read, or a table does not exist.
        """


class Report(NamedTuple):
    """What is missing.

    :ivar sessions: the sessions that were checked, in order: those of the query's range that are over.
    :ivar securities: number of securities that were checked.
    :ivar expected: number of expected rows: sessions x securities that are listed then.
    :ivar missing: what is missing.
    :ivar untraded: number of absent rows that the API does not have, either.
    :ivar strange: exchange dates of rows, in order, on which there is no session.
    :ivar queries: the queries that load what is missing. No call is in two of them.
    """

    sessions: Sequence[date]
    securities: int
    expected: int
    missing: Missing
    untraded: int
    strange: Sequence[date]
    queries: list[Query]

    @property
    def total(self) -> int:
        """Number of sessions x securities that are missing."""
        return _count(self.missing)

    def rows(self) -> Iterator[tuple[date, str]]:
        """Yield what is missing as session and security, in order."""
        return iter(sorted((day, security) for security, days in self.missing.items() for day in days))


def check_query(query: Query) -> None:
    """Refuse a query whose rows cannot be checked. Templates are not checked.

    :raises OpenmarketsQueryError: its rows are not of a security and a session, or it has adjusted prices.
    """
    if not isinstance(query, dict) or not is_literal(query.get("endpoint")):
        return
    name = endpoint_of(query)
    endpoint = ENDPOINTS.get(name)
    is_of_sessions = endpoint is not None and endpoint.subject == "securities" and endpoint.time is not None
    if not is_of_sessions or query.get("frequency") == "Weekly" or query.get("raw") in (True, "True"):
        raise OpenmarketsQueryError(
            f"{name}: a completeness check needs daily bars (time_series), intraday_time_series or trades, without raw."
        )
    if query.get("adjusted") not in (None, False, "False"):
        raise OpenmarketsQueryError(
            f"{name}: adjusted can't be used with a completeness check: a repair would mix prices of different "
            "adjustments. Remove adjusted from the check, and load the whole range again if rows are missing."
        )


def find_missing(
    source: Source, query: Query, landed: Landed, *, compare: str, now: datetime, calendar: SessionCalendar = ASX
) -> Report:
    """Compare what was landed with what should be there.

    Makes one call of ``GET securities/v1`` for each exchange, for the dates of the listings. With :data:`BY_API`, it
    also makes the calls of the query for the securities that lack a session.

    :param query: rendered.
    :param compare: one of :data:`COMPARE`.
    :param now: aware. A session counts once it is over.
    :param calendar: of the sessions.
    :raises OpenmarketsError: the API or the destination fails, or the query does not go with a check.
    """
    check_query(query)
    resolved = resolve(query)
    sessions = _sessions_of(resolved, calendar, now)
    if not sessions:
        return Report([], 0, 0, {}, 0, [], [])
    names, periods = _list_securities(source, query, exchange_date(now))
    seen, strange = _read(landed, _wanted(resolved, sessions), sessions)
    absent: dict[str, list[date]] = {}
    expected = 0
    for security in names:
        listing = to_listing(security)
        flags = seen.get(listing, b"")
        days = sessions if listing not in periods else [day for day in sessions if _is_in(day, periods[listing])]
        expected += len(days)
        if lacking := _lacking(days, sessions, flags):
            absent[security] = lacking
    missing = _confirm(source, query, absent) if compare == BY_API else absent
    return Report(
        sessions,
        len(names),
        expected,
        missing,
        _count(absent) - _count(missing),
        strange,
        queries_for(query, missing),
    )


def queries_for(query: Query, missing: Missing, most: int = MAX_QUERIES) -> list[Query]:
    """Return queries for what is missing, with as few calls as possible.

    A call is for one security and as many days as it can cover, so rows between missing sessions are included.
    Securities with the same ranges are in one query.

    :param query: the query that was checked. Its other arguments are kept.
    :param most: most queries; if there would be more, all securities get the same ranges.
    """
    longest = _days_in_call(ENDPOINTS[query["endpoint"]], resolve(query))
    groups: dict[tuple[date, date], list[str]] = defaultdict(list)
    for security, days in missing.items():
        for span in _cut(days, longest):
            groups[span].append(security)
    if len(groups) > most:
        spans = list(_cut(sorted(set(chain.from_iterable(missing.values()))), longest))
        groups = {
            (first, last): [each for each, days in missing.items() if any(first <= day <= last for day in days)]
            for first, last in spans
        }
    return [
        with_range({**query, "securities": securities, "exchange": None}, first, last + _DAY)
        for (first, last), securities in sorted(groups.items())
    ]


def _sessions_of(query: ResolvedQuery, calendar: SessionCalendar, now: datetime) -> Sequence[date]:
    """Return the sessions of the query's range that are over."""
    try:
        days = calendar.sessions_in_range(*days_of(query))
    except ValueError as error:
        raise OpenmarketsQueryError(f"{query['endpoint']}: {error}") from None
    today = exchange_date(now)
    return [day for day in days if day < today or calendar.session_close(day) <= now]


def _list_securities(
    source: Source, query: Query, today: date
) -> tuple[Sequence[str], Mapping[Listing, Sequence[tuple[date, date]]]]:
    """Return the query's securities in full form, and the periods in which each was listed, if the API knows them.

    A code may have several listings, one after another.
    """
    lookup = lookup_query(query)
    resolved = resolve(query)
    exchanges = [resolved["exchange"]] if lookup else {to_listing(each)[1]: None for each in resolved["securities"]}
    periods: dict[Listing, list[tuple[date, date]]] = defaultdict(list)
    rows: list[Any] = []
    for exchange in exchanges:
        rows = source.run({"endpoint": "securities", "exchange": exchange, "on_missing_field": "warn", "raw": False})
        for row in rows:
            period = row["first_listed_date"] or date.min, row["last_listed_date"] or date.max
            periods[_listing(row["security_code"], row["exchange"] or exchange)].append(period)
    return (expand(query, rows, today) if lookup else resolved)["securities"], dict(periods)


def _wanted(query: ResolvedQuery, sessions: Sequence[date]) -> Wanted:
    """Return the rows of whole sessions, from the first to the last."""
    endpoint = ENDPOINTS[query["endpoint"]]
    start, end = sessions[0], sessions[-1] + _DAY
    if isinstance(query["start"], datetime):
        start, end = (read_moment(day.isoformat()) for day in (start, end))
    length = next(((name, query[name]) for name in BAR_LENGTH if name in query), None)
    return Wanted(str(endpoint.time), start, end, length)


def _read(landed: Landed, wanted: Wanted, sessions: Sequence[date]) -> tuple[dict[Listing, bytearray], Sequence[date]]:
    """Return by security which sessions have a row, one byte each, and the dates of rows that are not sessions."""
    numbers = {day: number for number, day in enumerate(sessions)}
    seen: dict[Listing, bytearray] = {}
    strange = set()
    for day, code, exchange in landed.read_keys(wanted):
        number = numbers.get(day)
        if number is None:
            strange.add(day)
        else:
            seen.setdefault(_listing(code, exchange), bytearray(len(sessions)))[number] = True
    return seen, sorted(strange)


def _lacking(days: Sequence[date], sessions: Sequence[date], flags: Sequence[int]) -> list[date]:
    if not flags:
        return list(days)
    without = {day for day, flag in zip(sessions, flags, strict=True) if not flag}
    return [day for day in days if day in without] if without else []


def _confirm(source: Source, query: Query, absent: Missing) -> dict[str, list[date]]:
    """Return the absent sessions that the API has a row for."""
    names = {to_listing(security): security for security in absent}
    pairs = {security: set(days) for security, days in absent.items()}
    found: dict[str, set[date]] = defaultdict(set)
    time = str(ENDPOINTS[query["endpoint"]].time)
    for part in queries_for(query, absent, most=1):
        for day, code, exchange in _pull_keys(source, part, time):
            security = names.get(_listing(code, exchange))
            if security is not None and day in pairs[security]:
                found[security].add(day)
    return {security: sorted(found[security]) for security in absent if security in found}


def _pull_keys(source: Source, query: Query, time: str) -> Iterable[tuple[date, str, str]]:
    """Yield the exchange date, the code and the exchange of the rows that the API has."""
    try:
        with closing(source.stream_columns({**query, "on_invalid": "warn"})) as batches:
            for batch in batches:
                for moment, code, exchange in set(batch.keys((time, *KEY))):
                    yield day_of(moment), code, exchange
    except OpenmarketsQueryError as error:
        # The API knows none of them.
        if error.securities is None or not set(query["securities"]).issubset(error.securities):
            raise


def _cut(days: Sequence[date], longest: int | None) -> Iterator[tuple[date, date]]:
    """Yield the first and the last day of each call.

    :param days: in order.
    :param longest: most days in a call; None for no limit.
    """
    first = last = days[0]
    for day in days:
        if longest is not None and (day - first).days >= longest:
            yield first, last
            first = day
        last = day
    yield first, last


def _days_in_call(endpoint: Endpoint, query: ResolvedQuery) -> int | None:
    days = endpoint.max_days
    return days[query["interval"]] if isinstance(days, Mapping) else days


def _listing(code: str | None, exchange: str | None) -> Listing:
    return (code or "").upper(), (exchange or "").upper()


def _is_in(day: date, periods: Sequence[tuple[date, date]]) -> bool:
    return any(first <= day <= last for first, last in periods)


def _count(missing: Missing) -> int:
    return sum(map(len, missing.values()))
