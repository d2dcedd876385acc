from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Iterable
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openmarkets_provider import queries
from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.query.batch import Batch
from openmarkets_provider.query.endpoints import MAX_DAYS, MAX_SECURITIES
from openmarkets_provider.query.exchange_time import Span, exchange_span, to_utc
from openmarkets_provider.query.plan import ApiCall, plan
from openmarkets_provider.query.query import check, window
from openmarkets_provider.query.rows import select_range
from openmarkets_provider.sessions.calendar import ASX, has_session
from tests.query.test_exchange_time import INSTANTS, LENGTHS, RANGES, SYDNEY, instants_of, written
from tests.support.queries import (
    RANGED,
    SCHEMAS,
    VALID,
    Later,
    only_call,
    quotes_query,
    refusal,
    securities_query,
    url_of,
)

CODES = st.from_regex(r"[A-Za-z0-9_-]{1,6}", fullmatch=True)


def test_securities_of_an_exchange():
    assert list(plan(securities_query("ASX"))) == [
        ApiCall(
            "market_data",
            "GET",
            "securities/v1",
            {"exchanges": "ASX"},
            safe_to_repeat=True,
            exact=True,
            fields=tuple(SCHEMAS["securities"].by_api_name),
        )
    ]


def test_accounts():
    assert list(plan(queries.accounts())) == [
        ApiCall(
            "oms",
            "GET",
            "accounts/v1",
            safe_to_repeat=True,
            exact=True,
            fields=("accountCode", "accountName", "accountDesignation"),
        )
    ]


def test_numbers_of_records_that_stay_untouched_are_not_decoded_exactly():
    assert only_call(queries.accounts(raw=True)).exact is False
    assert only_call(quotes_query("BHP", raw=True)).exact is False


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(1, [1]), (1000, [1000]), (1001, [1000, 1]), (2000, [1000, 1000]), (2500, [1000, 1000, 500])],
)
def test_batches_hold_a_thousand(count: int, sizes: list[int]):
    calls = plan(quotes_query([f"S{number}" for number in range(count)]))
    assert [len(call.json["securities"]) for call in calls] == sizes
    assert len(calls) == len(sizes)


@given(st.lists(CODES, min_size=1, max_size=30), st.integers(1, 150))
def test_every_security_is_in_exactly_one_batch_in_its_order(codes: list[str], times: int):
    wanted = [f"{code}x{number}" for number in range(times) for code in codes]
    calls = plan(quotes_query(wanted))
    batches = [call.json["securities"] for call in calls]
    assert [security for batch in batches for security in batch] == [f"{c}.ASX@TM" for c in dict.fromkeys(wanted)]
    assert all(1 <= len(batch) <= MAX_SECURITIES for batch in batches)
    assert all(call.safe_to_repeat for call in calls)


@given(st.text(min_size=1, max_size=12) | st.text(alphabet="./\\%2eEfFcC5:a?#@ \n;é", min_size=1, max_size=12))
def test_every_account_code_that_is_accepted_stays_one_segment_of_the_path(code: str):
    try:
        call = only_call(VALID["orders"] | {"accounts": [code]})
    except OpenmarketsQueryError:
        return
    raw = url_of(call).target.partition(b"?")[0].decode("ascii")
    before, orders, by_account, segment, version = raw.removeprefix("/").split("/")
    assert (before, orders, by_account, version) == ("base", "orders", "by-account", "v4")
    assert unquote(segment) == code.strip()


def test_accounts_are_asked_for_once_in_the_order_given():
    calls = list(plan(VALID["orders"] | {"accounts": "B, A B\nC,,A"}))
    assert [call.path for call in calls] == [f"orders/by-account/{code}/v4" for code in "BAC"]
    assert [call.piece for call in calls] == ["B", "A", "C"]


@pytest.mark.parametrize("name", ["portfolio_details", "cash", "positions"])
def test_batches_of_portfolios_hold_a_thousand(name: str):
    codes = [f"P{number}" for number in range(2001)]
    batches = [call.json["portfolioCodes"] for call in plan(VALID[name] | {"portfolios": [*codes, "P0"]})]
    assert [len(batch) for batch in batches] == [1000, 1000, 1]
    assert [code for batch in batches for code in batch] == codes


def test_what_is_asked_for_by_one_security_a_call_is_in_the_order_of_the_securities():
    for name in ("depth", "time_series", "intraday_time_series", "trades"):
        calls = list(plan(VALID[name] | {"securities": "CBA BHP.CXA CBA"}))
        assert [call.security for call in calls] == ["CBA.ASX@TM", "BHP.CXA@TM"]
        assert all(f"/{call.security}/" in call.path for call in calls)
        assert all(call.piece.startswith(str(call.security)) for call in calls)


def test_batches_say_which_part_they_are():
    first, second = plan(quotes_query([f"S{number}" for number in range(1003)]))
    assert (first.piece, second.piece) == (
        "1000 securities from S0.ASX@TM on",
        "3 securities from S1000.ASX@TM on",
    )
    assert first.security is None


# --- ranges


@pytest.mark.parametrize("name", RANGED)
@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("2026-01-05", "2026-01-05"),
        ("2026-01-05", "2026-01-05T00:00:00"),
        ("2026-01-06", "2026-01-05"),
        # the same instant, written in two ways
        ("2026-01-05T00:00:00", "2026-01-04T13:00:00Z"),
        # the texts are in order, the instants are not
        ("2026-01-05T10:00:00Z", "2026-01-05T11:00:00"),
        # the hour that is missing in October means the next one
        ("2026-10-04T02:30:00", "2026-10-04T03:30:00"),
        ("2026-10-04T02:30:00", "2026-10-04T03:00:00"),
        (date(2026, 1, 5), date(2026, 1, 5)),
    ],
)
def test_an_empty_or_reversed_range_is_refused(name: str, start: Any, end: Any):
    for look in (check, plan):
        with pytest.raises(
            OpenmarketsQueryError,
            match=f"^{name}: start '.*' and end '.*' are an empty or reversed range. end is exclusive",
        ):
            look(VALID[name] | {"start": start, "end": end})


@pytest.mark.parametrize("name", RANGED)
def test_a_range_with_a_template_is_checked_when_it_runs(name: str):
    query = VALID[name] | {"start": "{{ data_interval_start }}", "end": "2026-01-05"}
    assert check(query) is query
    with pytest.raises(OpenmarketsQueryError, match="start must be a date or a time"):
        plan(query)
    with pytest.raises(OpenmarketsQueryError, match="empty or reversed range"):
        plan(query | {"start": "2026-01-05 00:00:00+00:00"})
    assert plan(query | {"start": "2026-01-02 00:00:00+00:00"})


@pytest.mark.parametrize("name", RANGED)
def test_the_literal_bound_beside_a_template_is_checked_when_made(name: str):
    with pytest.raises(OpenmarketsQueryError, match="end must be a date or a time"):
        check(VALID[name] | {"start": "{{ ds }}", "end": "someday"})
    with pytest.raises(OpenmarketsQueryError, match="start must be a date or a time"):
        check(VALID[name] | {"start": "someday", "end": Later()})


@pytest.mark.parametrize(
    ("start", "end", "days"),
    [
        ("2026-01-05", "2026-01-06", ("2026-01-05", "2026-01-06")),
        ("2026-01-05T23:59", "2026-01-06T00:00", ("2026-01-05", "2026-01-06")),
        ("2026-01-05T15:00", "2026-01-09T15:00", ("2026-01-05", "2026-01-09")),
        ("2026-01-04T13:00:00Z", "2026-01-05T12:59:59Z", None),
        ("2026-01-04T12:59:59Z", "2026-01-04T13:00:00Z", ("2026-01-04", "2026-01-05")),
        # a day of Airflow's, midnight to midnight UTC, is the exchange day in which it starts
        ("2026-01-05T00:00:00+00:00", "2026-01-06T00:00:00+00:00", ("2026-01-05", "2026-01-06")),
        (date(2026, 1, 5), datetime(2026, 1, 6, tzinfo=UTC), ("2026-01-05", "2026-01-06")),
    ],
)
def test_daily_bars_are_those_of_the_exchange_days_of_the_bounds(start: Any, end: Any, days: tuple[str, str] | None):
    query = VALID["time_series"] | {"start": start, "end": end}
    if days is None:
        for look in (check, plan):
            with pytest.raises(OpenmarketsQueryError, match=r"for bars, in a later bar \(exchange day"):
                look(query)
        return
    assert only_call(query).params == {"frequency": "Daily", "dateFrom": days[0], "dateTo": days[1]}
    assert window(query) == tuple(map(date.fromisoformat, days))


@pytest.mark.parametrize(
    ("start", "end", "saturdays"),
    [
        ("2026-01-03", "2026-01-10", ("2026-01-03", "2026-01-10")),
        ("2026-01-09", "2026-01-10", ("2026-01-03", "2026-01-10")),
        ("2026-01-05", "2026-01-16", ("2026-01-03", "2026-01-10")),
        ("2026-01-09T23:59:59", "2026-01-30T10:00", ("2026-01-03", "2026-01-24")),
        # Friday midnight of the exchange, written in UTC
        ("2026-01-09T12:59:59Z", "2026-01-09T13:00:00Z", ("2026-01-03", "2026-01-10")),
        # a week of Airflow's, Sunday to Sunday in UTC
        ("2026-01-04T00:00:00+00:00", "2026-01-11T00:00:00+00:00", ("2026-01-03", "2026-01-10")),
        # within one week
        ("2026-01-03", "2026-01-09T23:59:59", None),
        ("2026-01-05", "2026-01-06", None),
        ("2026-01-05", "2026-01-05", None),
        ("2026-01-09T13:00:00Z", "2026-01-16T12:59:59Z", None),
        ("2026-01-12", "2026-01-05", None),
    ],
)
def test_weekly_bars_are_those_of_the_weeks_from_saturday_that_the_bounds_are_in(
    start: str, end: str, saturdays: tuple[str, str] | None
):
    query = VALID["time_series"] | {"frequency": "Weekly", "start": start, "end": end}
    if saturdays is None:
        for look in (check, plan):
            with pytest.raises(OpenmarketsQueryError, match=r"are an empty or reversed range\. .* week or interval"):
                look(query)
        return
    assert check(query) is query
    assert only_call(query).params == {"frequency": "Weekly", "dateFrom": saturdays[0], "dateTo": saturdays[1]}
    assert window(query) == tuple(map(date.fromisoformat, saturdays))


@pytest.mark.parametrize(
    ("start", "end", "interval", "times"),
    [
        ("2026-01-05T10:07", "2026-01-05T12:07", 60, ("2026-01-05T10:00:00", "2026-01-05T12:00:00")),
        ("2026-01-05T10:59:59.9", "2026-01-05T11:00", 60, ("2026-01-05T10:00:00", "2026-01-05T11:00:00")),
        ("2026-01-05T10:07", "2026-01-05T10:31", 15, ("2026-01-05T10:00:00", "2026-01-05T10:30:00")),
        ("2026-01-04T23:07Z", "2026-01-05T00:07+00:00", 60, ("2026-01-05T10:00:00", "2026-01-05T11:00:00")),
        ("2026-01-05T10:07", "2026-01-05T10:08", 1, ("2026-01-05T10:07:00", "2026-01-05T10:08:00")),
        ("2026-01-05T10:07", "2026-01-05T10:59", 60, None),
        ("2026-01-05T10:00", "2026-01-05T10:59:59.999999", 60, None),
        ("2026-01-05T10:07:01", "2026-01-05T10:07:59", 1, None),
    ],
)
def test_intraday_bars_are_those_that_the_bounds_are_in(
    start: str, end: str, interval: int, times: tuple[str, str] | None
):
    query = VALID["intraday_time_series"] | {"start": start, "end": end, "interval": interval}
    if times is None:
        for look in (check, plan):
            with pytest.raises(OpenmarketsQueryError, match=r"are an empty or reversed range\. .* week or interval"):
                look(query)
        return
    assert check(query) is query
    call = only_call(query)
    assert (call.params["dateTimeFrom"], call.params["dateTimeTo"]) == times
    assert window(query) == tuple(to_utc(datetime.fromisoformat(moment)) for moment in times)


def test_a_range_of_bars_is_checked_when_it_runs_if_what_a_bar_is_comes_later():
    for name, argument in (("time_series", "frequency"), ("intraday_time_series", "interval")):
        bounds = {"start": "2026-01-05T10:00", "end": "2026-01-05T10:01"}
        query = VALID[name] | bounds | {argument: "{{ params.x }}"}
        assert check(query) is query
        with pytest.raises(OpenmarketsQueryError, match="empty or reversed range"):
            plan(query | {argument: VALID[name][argument]})
    assert len(plan(query | {"interval": "1"})) == 1


def bar_of(name: str, length: Any, moment: datetime) -> date | datetime:
    """Return the bar of a moment, by another method than the package."""
    shown = moment.astimezone(SYDNEY)
    if name == "intraday_time_series":
        return shown.replace(minute=shown.minute // length * length, second=0, microsecond=0).astimezone(UTC)
    saturdays = (shown.date() - timedelta(days=back) for back in range(7))
    return next(day for day in saturdays if length == "Daily" or day.isoweekday() == 6)


def asked_for_and_selected(query: dict[str, Any], written_as: date | datetime) -> bool:
    """Return whether a range requests a bar and keeps it; a refused range does neither."""
    if (refused := refusal(plan, query)) is not None:
        assert "empty or reversed range" in refused
        return False
    name, calls = query["endpoint"], list(plan(query))
    if isinstance(written_as, datetime):
        asked = sum(piece.start <= written_as < piece.end for piece in spans_of(calls))
        moment = to_utc(written_as)
    else:
        (call,) = calls
        asked = call.params["dateFrom"] <= written_as.isoformat() < call.params["dateTo"]
        moment = written_as
    selected = select_range(SCHEMAS[name], calls[0], Batch({SCHEMAS[name].time: [moment]}), window(query))
    # What is kept must have been asked for, and by one call alone.
    assert asked == 1 or not selected
    return len(selected) > 0


@given(
    INSTANTS,
    LENGTHS,
    LENGTHS,
    st.sampled_from(
        [("time_series", "Daily"), ("time_series", "Weekly")]
        + [("intraday_time_series", interval) for interval in MAX_DAYS]
    ),
    st.data(),
)
@settings(max_examples=500)
def test_no_bar_is_in_two_ranges_that_follow_each_other_and_none_is_left_out(
    first: datetime, one: timedelta, other: timedelta, kind: tuple[str, Any], data: st.DataObject
):
    name, length = kind
    bounds = [first, first + one, first + one + other]
    argument = "frequency" if name == "time_series" else "interval"
    near = data.draw(st.sampled_from(list(itertools.pairwise(bounds))).flatmap(instants_of))
    if name == "time_series":
        # Whichever of its days the API dates a weekly bar by: a day of the week is as good as another.
        written_as: date | datetime = near.astimezone(SYDNEY).date()
        moment = datetime.combine(written_as, time(12), SYDNEY)
    else:
        written_as = written(bar_of(name, length, near))
        moment = to_utc(written_as)
    start, end = bar_of(name, length, bounds[0]), bar_of(name, length, bounds[-1])
    holding = [
        asked_for_and_selected(VALID[name] | {argument: length, "start": earlier, "end": later}, written_as)
        for earlier, later in itertools.pairwise(bounds)
    ]
    assert sum(holding) == (start <= bar_of(name, length, moment) < end)


@given(RANGES, st.sampled_from(["Daily", "Weekly"]))
def test_bars_of_days_and_weeks_take_one_call_however_long_the_range(wanted: tuple[datetime, datetime], frequency: str):
    query = VALID["time_series"] | {"start": wanted[0], "end": wanted[1], "frequency": frequency}
    start, end = (bar_of("time_series", frequency, bound) for bound in wanted)
    if start == end:
        with pytest.raises(OpenmarketsQueryError, match="empty or reversed range"):
            plan(query)
        return
    assert only_call(query).params == {
        "frequency": frequency,
        "dateFrom": start.isoformat(),
        "dateTo": end.isoformat(),
    }
    assert window(query) == (start, end)


@given(RANGES)
def test_trades_of_accounts_take_one_call_however_long_the_range(wanted: tuple[datetime, datetime]):
    query = VALID["order_trades"] | {"start": wanted[0], "end": wanted[1]}
    span = exchange_span(*wanted)
    assert only_call(query).params == {"dateTimeFrom": span.start.isoformat(), "dateTimeTo": span.end.isoformat()}
    assert window(query) == wanted


def spans_of(calls: Iterable[ApiCall]) -> list[Span[datetime]]:
    bounds = [call.json or call.params for call in calls]
    return [Span(*(datetime.fromisoformat(of[name]) for name in ("dateTimeFrom", "dateTimeTo"))) for of in bounds]


@given(RANGES, st.sampled_from(list(MAX_DAYS)), st.integers(1, 3), st.data())
def test_intraday_pieces_cover_the_range_once_and_none_is_too_long(
    wanted: tuple[datetime, datetime], interval: int, count: int, data: st.DataObject
):
    codes = [f"S{number}" for number in range(count)]
    query = VALID["intraday_time_series"] | {
        "securities": codes,
        "start": wanted[0],
        "end": wanted[1],
        "interval": interval,
    }
    start, end = (bar_of("intraday_time_series", interval, bound) for bound in wanted)
    if start == end:
        with pytest.raises(OpenmarketsQueryError, match="empty or reversed range"):
            plan(query)
        return
    assert window(query) == (start, end)
    calls = list(plan(query))
    for security, group in itertools.groupby(calls, lambda call: call.security):
        group = list(group)
        pieces = spans_of(group)
        assert (pieces[0].start, pieces[-1].end) == exchange_span(start, end)
        assert all(piece.end == following.start for piece, following in itertools.pairwise(pieces))
        limit = timedelta(days=7 if interval < 10 else 30 if interval <= 30 else 60)
        assert all(timedelta(0) < piece.end - piece.start <= limit for piece in pieces)
        assert [call.piece for call in group] == [f"{security}, {piece}" for piece in pieces]
        assert all(call.params["consolidationInterval"] == interval for call in group)
    assert list(dict.fromkeys(call.security for call in calls)) == [f"{code}.ASX@TM" for code in codes]
    bar = written(bar_of("intraday_time_series", interval, data.draw(instants_of(wanted))))
    if start <= to_utc(bar) < end:
        assert sum(piece.start <= bar < piece.end for piece in pieces) == 1


@given(RANGES, st.data())
def test_trades_are_asked_for_one_exchange_day_a_call(wanted: tuple[datetime, datetime], data: st.DataObject):
    pieces = spans_of(plan(VALID["trades"] | {"start": wanted[0], "end": wanted[1]}))
    span = exchange_span(*wanted)
    last = (span.end - timedelta(microseconds=1)).date()
    days = [span.start.date() + timedelta(days=number) for number in range((last - span.start.date()).days + 1)]
    assert [piece.start.date() for piece in pieces] == [day for day in days if has_session(day, day)]
    assert all(span.start <= piece.start < piece.end <= span.end for piece in pieces)
    assert all(piece.start.date() == (piece.end - timedelta(microseconds=1)).date() for piece in pieces)
    row = written(data.draw(instants_of(wanted)))
    if wanted[0] <= to_utc(row) < wanted[1] and has_session(row.date(), row.date()):
        assert sum(piece.start <= row < piece.end for piece in pieces) == 1


@pytest.mark.parametrize(
    ("now", "days"),
    [
        ("2026-01-04T23:59:59", []),
        ("2026-01-05T00:00:00", ["2026-01-05"]),
        ("2026-01-05T09:59:59", ["2026-01-05"]),
        ("2026-01-05T23:59:59", ["2026-01-05"]),
        ("2026-01-06T00:00:00", ["2026-01-05", "2026-01-06"]),
        ("2026-02-01T00:00:00", ["2026-01-05", "2026-01-06", "2026-01-07"]),
    ],
)
def test_no_trades_are_asked_for_of_days_to_come(now: str, days: list[str]):
    query = VALID["trades"] | {"securities": "BHP CBA", "start": "2026-01-05", "end": "2026-01-08"}
    calls = plan(query, datetime.fromisoformat(now))
    assert [piece.start.date().isoformat() for piece in spans_of(calls)] == days * 2
    assert len(calls) == len(days) * 2


@pytest.mark.parametrize(
    ("start", "asked"),
    [
        ("2026-04-05T02:30:00+11:00", True),
        ("2026-04-05T02:10:00+10:00", True),
        ("2026-04-05T03:05:00+10:00", False),
    ],
)
def test_what_has_begun_is_asked_for_in_the_hour_that_comes_twice(start: str, asked: bool):
    query = VALID["intraday_time_series"] | {"start": start, "end": "2026-04-06", "interval": 1}
    assert len(plan(query, datetime.fromisoformat("2026-04-05T02:10:00").replace(fold=1))) == asked


def test_no_bars_are_asked_for_of_pieces_to_come():
    query = VALID["intraday_time_series"] | {"start": "2026-01-05", "end": "2027-01-05"}
    first, second = plan(query, datetime.fromisoformat("2026-01-12T00:00:00"))
    assert spans_of([first, second]) == spans_of(itertools.islice(plan(query), 2))
    assert list(plan(query, datetime.fromisoformat("2026-01-04T23:59:59"))) == []


@given(RANGES, st.timedeltas(timedelta(days=-80), timedelta(days=80)))
def test_just_the_pieces_that_begin_after_now_are_left_out(wanted: tuple[datetime, datetime], off: timedelta):
    now = written(wanted[0] + off)
    for name in ("trades", "intraday_time_series"):
        query = VALID[name] | {"start": wanted[0], "end": wanted[1] + timedelta(minutes=5)}
        every = list(plan(query))
        begun = [call for call, piece in zip(every, spans_of(every), strict=True) if piece.start <= now]
        assert list(plan(query, now)) == begun


@pytest.mark.parametrize("name", ["trades", "intraday_time_series"])
def test_decades_of_two_thousand_securities_are_planned_without_making_all_calls(name: str):
    codes = [f"S{number}" for number in range(2000)]
    query = VALID[name] | {"securities": codes, "start": "2001-01-01", "end": "2026-01-01"}
    days = (date(2026, 1, 1) - date(2001, 1, 1)).days
    tracemalloc.start()
    try:
        calls = plan(query)
        first = list(itertools.islice(calls, 3))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(calls) == 2000 * (ASX.count_sessions("2001-01-01", "2025-12-31") if name == "trades" else -(-days // 7))
    assert [call.security for call in first] == ["S0.ASX@TM"] * 3
    # All calls of trades would be gigabytes.
    assert peak < 20_000_000


def test_a_plan_can_be_gone_through_again():
    calls = plan(VALID["trades"] | {"securities": "BHP CBA"})
    assert list(calls) == list(calls)
    assert len(list(calls)) == len(calls) == 2
