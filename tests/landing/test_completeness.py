"""Which queries load what is missing, with how many calls; which sessions count."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, timedelta
from typing import Any

import pytest

from openmarkets_provider import queries
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
from openmarkets_provider.landing.completeness import BY_CALENDAR, MAX_QUERIES, Wanted, find_missing, queries_for
from openmarkets_provider.query.plan import plan
from openmarkets_provider.sessions.calendar import ASX

YEAR = {"start": "2025-01-01", "end": "2026-01-01"}
SESSIONS = ASX.sessions_in_range("2025-01-01", "2025-12-31")
DAY = timedelta(days=1)
ALL = {"exchange": "ASX", **YEAR}
BARS = queries.time_series(**ALL)


def full(code: str) -> str:
    return f"{code}.ASX@TM"


def spans(found: list[queries.Query]) -> list[tuple[str, str, list[str]]]:
    return [(query["start"], query["end"], query["securities"]) for query in found]


def calls(found: list[queries.Query]) -> int:
    return sum(len(plan(query)) for query in found)


def loaded(found: list[queries.Query]) -> set[tuple[str, date]]:
    """Return what the queries cover."""
    return {
        (security, day)
        for query in found
        for security in query["securities"]
        for day in ASX.sessions_in_range(query["start"], date.fromisoformat(query["end"]) - DAY)
    }


def pairs(missing: dict[str, Any]) -> set[tuple[str, date]]:
    return {(security, day) for security, days in missing.items() for day in days}


def test_bars_take_a_call_for_each_security_whatever_the_range():
    missing = {full("A"): [SESSIONS[3], SESSIONS[200]], full("B"): [SESSIONS[7]], full("C"): [SESSIONS[7]]}
    found = queries_for(BARS, missing)
    assert spans(found) == [
        (str(SESSIONS[3]), str(SESSIONS[200] + DAY), [full("A")]),
        (str(SESSIONS[7]), str(SESSIONS[7] + DAY), [full("B"), full("C")]),
    ]
    assert calls(found) == 3
    assert all(query["exchange"] is None for query in found)


def test_so_many_ranges_of_bars_are_one_query():
    missing = {full(f"S{number}"): [SESSIONS[number]] for number in range(MAX_QUERIES + 1)}
    (query,) = queries_for(BARS, missing)
    assert calls([query]) == MAX_QUERIES + 1
    assert pairs(missing) <= loaded([query])
    assert len(queries_for(BARS, dict(list(missing.items())[1:]))) == MAX_QUERIES


def test_trades_take_a_call_for_each_session_of_each_security_and_no_more_are_loaded():
    query = queries.trades(**ALL)
    missing = {full("A"): [SESSIONS[0], SESSIONS[9]], full("B"): [SESSIONS[9]], full("C"): SESSIONS[: MAX_QUERIES + 9]}
    found = queries_for(query, missing)
    assert calls(found) == len(pairs(missing))
    assert loaded(found) == pairs(missing)
    assert len(found) == MAX_QUERIES + 9


@pytest.mark.parametrize(("interval", "days"), [(1, 7), (10, 30), (60, 60)])
def test_intraday_bars_take_as_few_calls_as_the_longest_range_of_one_allows(interval, days):
    query = queries.intraday_time_series(interval=interval, **ALL)
    first = SESSIONS[0]
    missing = {full("A"): [day for day in SESSIONS if day < first + timedelta(days=days)], full("B"): SESSIONS[:1]}
    found = queries_for(query, missing)
    assert calls(found) == 2
    assert loaded(found) == pairs(missing)
    following = ASX.next_session(missing[full("A")][-1])
    assert calls(queries_for(query, {full("A"): [first, following]})) == 2
    every = {full(f"S{number}"): SESSIONS[number::5] for number in range(MAX_QUERIES + 1)}
    assert loaded(queries_for(query, every)) >= pairs(every)


def test_nothing_is_missing():
    assert queries_for(BARS, {}) == []


class Nothing:
    """A destination without rows."""

    def read_keys(self, wanted: Wanted) -> Iterator[tuple[date, str, str]]:
        return iter(())


@pytest.mark.parametrize("day", ["2026-04-02", "2025-12-24"], ids=["whole", "half"])
def test_a_session_counts_from_its_close_on(openmarkets_sandbox, day):
    query = queries.time_series("BHP", start="2025-12-22", end=date.fromisoformat(day) + 9 * DAY)
    close = ASX.session_close(day)
    for now, last in ((close, ASX.check_session(day)), (close - DAY / 1000, ASX.previous_session(day))):
        report = find_missing(OpenmarketsHook(), query, Nothing(), compare=BY_CALENDAR, now=now)
        assert (report.sessions[0], report.sessions[-1]) == (date(2025, 12, 22), last)
        assert report.missing[full("BHP")] == list(report.sessions)
