"""One trading day as the range of a query, and ranges without one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any

import pytest

from openmarkets_provider import queries
from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.landing.destination import with_range
from openmarkets_provider.landing.incremental import check_query
from openmarkets_provider.query.plan import plan
from openmarkets_provider.query.query import check, end_of, resolve, window

Make = Callable[..., queries.Query]


def bars(**arguments: Any) -> queries.Query:
    return queries.time_series("BHP", **arguments)


def intraday(**arguments: Any) -> queries.Query:
    return queries.intraday_time_series("BHP", interval=5, **arguments)


def trades(**arguments: Any) -> queries.Query:
    return queries.trades("BHP", **arguments)


@pytest.mark.parametrize("make", [bars, intraday, trades, lambda **given: queries.order_trades("1", **given)])
@pytest.mark.parametrize(
    "session", ["2026-04-02", date(2026, 4, 2), datetime(2026, 4, 1, 13, tzinfo=UTC), "2026-04-02T00:00:00+11:00"]
)
def test_a_session_is_the_range_of_its_day(make: Make, session: Any) -> None:
    of_session, of_range = make(session=session), make(start="2026-04-02", end="2026-04-03")
    assert window(of_session) == window(of_range)
    assert list(plan(of_session)) == list(plan(of_range))
    assert end_of(of_session) == end_of(of_range) == datetime(2026, 4, 2, 13, tzinfo=UTC)
    assert resolve(of_session) == resolve(of_range)


def test_a_session_at_the_end_of_summer_time_is_a_whole_day() -> None:
    assert window(intraday(session="2026-04-02")) == (
        datetime(2026, 4, 1, 13, tzinfo=UTC),
        datetime(2026, 4, 2, 13, tzinfo=UTC),
    )
    assert window(intraday(session="2026-04-07")) == (
        datetime(2026, 4, 6, 14, tzinfo=UTC),
        datetime(2026, 4, 7, 14, tzinfo=UTC),
    )


def test_a_template_is_checked_when_it_is_rendered() -> None:
    query = trades(session="{{ partition_key }}")
    assert check(query) is query
    assert "start" not in query
    assert len(plan({**query, "session": "2026-04-02"})) == 1
    with pytest.raises(OpenmarketsQueryError, match="trades: session must be a date"):
        plan(query)
    with pytest.raises(
        OpenmarketsQueryError, match=r"session: 2026-04-03 .Friday. is not a trading day.*start and end"
    ):
        plan({**query, "session": "2026-04-03"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"session": "2026-04-03"}, "session: 2026-04-03 .Friday. is not a trading day"),
        ({"session": "2026-04-04"}, "nearest are 2026-04-02 and 2026-04-07"),
        ({"session": "1990-01-02"}, "2000 to 2035"),
        ({"session": "soon"}, "session must be a date"),
        ({"session": 20260402}, "session must be a date"),
        ({"session": "2026-04-02", "start": "2026-04-01"}, "can't be used with"),
        ({"session": "{{ partition_key }}", "end": "{{ end }}"}, "can't be used with"),
        ({"session": "2026-04-02", "frequency": "Weekly"}, "needs whole weeks"),
        ({}, "the range is missing; set start and end, or session"),
        ({"start": "2026-04-02"}, "the range is missing; set start and end, or session"),
    ],
)
def test_what_is_no_session_is_refused_at_parse_time(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(OpenmarketsQueryError, match=message):
        bars(**arguments)


def test_a_query_without_a_range_has_no_session() -> None:
    with pytest.raises(OpenmarketsQueryError, match="unknown argument 'session'"):
        check({**queries.quotes("BHP"), "session": "2026-04-02"})


def test_another_range_replaces_a_session() -> None:
    assert with_range(bars(session="2026-04-02"), date(2026, 4, 1), date(2026, 4, 9)) == bars(
        start="2026-04-01", end="2026-04-09"
    )


def test_an_incremental_load_refuses_a_session() -> None:
    with pytest.raises(OpenmarketsQueryError, match="session can't be used with incremental"):
        check_query(bars(session="2026-04-02"))


@pytest.mark.parametrize("make", [bars, intraday, trades])
def test_a_literal_range_without_a_trading_day_warns(make: Make) -> None:
    with pytest.warns(UserWarning, match="does not trade from 2026-04-03 to 2026-04-06") as caught:
        make(start="2026-04-03", end="2026-04-07")
    # It points to the line of the DAG's author.
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    "arguments",
    [
        {"start": "2026-04-02", "end": "2026-04-07"},
        {"start": "2026-04-06", "end": "2026-04-08"},
        {"start": "{{ data_interval_start }}", "end": "2026-04-07"},
        {"start": "1980-01-05", "end": "1980-01-06"},
    ],
)
def test_other_ranges_do_not_warn(arguments: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bars(**arguments)
        queries.order_trades("1", start="2026-04-04", end="2026-04-05")


def test_trades_send_no_call_for_a_day_without_trading() -> None:
    calls = list(plan(trades(start="2026-04-02", end="2026-04-09")))
    assert [call.json["dateTimeFrom"][:10] for call in calls] == [
        "2026-04-02",
        "2026-04-07",
        "2026-04-08",
    ]
