from __future__ import annotations

import itertools
from datetime import UTC, date, datetime, time, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pendulum
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from openmarkets_provider.query.exchange_time import (
    EXCHANGE_ZONE,
    Span,
    exchange_date,
    exchange_span,
    first_of_week,
    floor,
    read_moment,
    split,
    to_text,
    to_utc,
)

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
SYDNEY = ZoneInfo("Australia/Sydney")
# As the APIs' public description has them.
INTERVALS = (1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30, 60)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def naive(text: str) -> datetime:
    return datetime.fromisoformat(text)


def written(instant: datetime) -> datetime:
    """Return an instant as the exchange writes it: its clock's time, without an offset."""
    return instant.astimezone(SYDNEY).replace(tzinfo=None, fold=0)


def first_sunday(year: int, month: int) -> date:
    first = date(year, month, 1)
    return first + timedelta(days=6 - first.weekday())


@st.composite
def near_a_change(draw: st.DrawFn) -> datetime:
    """An instant within two days of a change of Sydney's clock, often within two hours of it, often a round one."""
    sunday = first_sunday(draw(st.integers(2008, 2037)), draw(st.sampled_from([4, 10])))
    # 02:00 standard time, which is 16:00 UTC of the day before
    change = datetime.combine(sunday, time(16), UTC) - DAY
    minutes = draw(st.integers(-120, 120) | st.integers(-2 * 24 * 60, 2 * 24 * 60))
    return change + timedelta(minutes=minutes, microseconds=draw(st.just(0) | st.integers(0, 59_999_999)))


ANYWHERE = st.datetimes(naive("1901-01-01"), naive("2198-01-01"), timezones=st.just(UTC))
INSTANTS = near_a_change() | ANYWHERE
LENGTHS = (
    st.timedeltas(timedelta(microseconds=1), timedelta(hours=3))
    | st.timedeltas(timedelta(microseconds=1), timedelta(days=70))
    | st.integers(1, 200).map(lambda hours: hours * HOUR)
)
RANGES = st.tuples(INSTANTS, LENGTHS).map(lambda pair: (pair[0], pair[0] + pair[1]))


# --- the clock of the exchange


@pytest.mark.parametrize("year", range(2008, 2038))
def test_the_clock_changes_where_these_tests_look_for_it(year: int):
    for month, before, after in [(4, 11, 10), (10, 10, 11)]:
        change = datetime.combine(first_sunday(year, month), time(16), UTC) - DAY
        assert (change - timedelta(microseconds=1)).astimezone(EXCHANGE_ZONE).utcoffset() == before * HOUR
        assert change.astimezone(EXCHANGE_ZONE).utcoffset() == after * HOUR


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        # what happens twice means the first of the two
        ("2026-04-05T01:59:59", "2026-04-04T14:59:59"),
        ("2026-04-05T02:00:00", "2026-04-04T15:00:00"),
        ("2026-04-05T02:30:00", "2026-04-04T15:30:00"),
        ("2026-04-05T02:59:59", "2026-04-04T15:59:59"),
        ("2026-04-05T03:00:00", "2026-04-04T17:00:00"),
        # what is missing means the time one hour later
        ("2026-10-04T01:59:59", "2026-10-03T15:59:59"),
        ("2026-10-04T02:00:00", "2026-10-03T16:00:00"),
        ("2026-10-04T02:30:00", "2026-10-03T16:30:00"),
        ("2026-10-04T03:30:00", "2026-10-03T16:30:00"),
        ("2026-10-04T02:59:59", "2026-10-03T16:59:59"),
        ("2026-10-04T03:00:00", "2026-10-03T16:00:00"),
    ],
)
def test_what_the_clock_shows_twice_or_never_is_read_as_documented(text: str, moment: str):
    assert read_moment(text) == utc(moment)
    assert to_utc(naive(text)) == utc(moment)


@given(INSTANTS)
def test_what_the_exchange_writes_is_read_back_but_for_the_second_one_of_two(instant: datetime):
    repeated = instant.astimezone(SYDNEY).fold == 1
    assert to_utc(written(instant)) == instant - (HOUR if repeated else timedelta(0))


# --- reading


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-05", "2026-01-04T13:00:00"),
        ("2026-07-05", "2026-07-04T14:00:00"),
        ("20260105", "2026-01-04T13:00:00"),
        ("2026-01-05T00:00:00", "2026-01-04T13:00:00"),
        ("2026-01-05T10:00", "2026-01-04T23:00:00"),
        ("2026-01-05 10:00:00.000001", "2026-01-04T23:00:00.000001"),
        ("20260105T100000", "2026-01-04T23:00:00"),
        ("2026-01-05T10:00:00Z", "2026-01-05T10:00:00"),
        ("2026-01-05T10:00:00+00:00", "2026-01-05T10:00:00"),
        ("2026-01-05 10:00:00+00:00", "2026-01-05T10:00:00"),
        ("2026-01-05T10:00:00+11:00", "2026-01-04T23:00:00"),
        ("2026-01-05T10:00:00-05:45", "2026-01-05T15:45:00"),
        ("2026-01-05T10:00:00+23:59:59.5", "2026-01-04T10:00:00.500000"),
        (" 2026-01-05T10:00:00Z\n", "2026-01-05T10:00:00"),
        ("1900-01-02", "1900-01-01T14:00:00"),
        ("1900-01-01T00:00:00Z", "1900-01-01T00:00:00"),
        ("2199-12-31T23:59:59.999999Z", "2199-12-31T23:59:59.999999"),
    ],
)
def test_a_text_is_read_as_exchange_time_unless_it_has_an_offset(text: str, moment: str):
    assert read_moment(text) == utc(moment)
    assert read_moment(text).tzinfo is UTC


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "None",
        "none",
        "null",
        "NaT",
        "today",
        "{{ ds }}",
        "2026",
        "2026-01",
        "2026-1-5",
        "05/01/2026",
        "2026-13-01",
        "2026-02-30",
        "2026-01-05T",
        "2026-01-05T25:00",
        "2026-01-05T10:60",
        "2026-01-05T10:00:60",
        "2026-01-05T10:00:00+25:00",
        "2026-01-05T10:00:00 Australia/Sydney",
        "10:00",
        "1767571200",
        "٢٠٢٦-٠١-٠٥",  # noqa: RUF001 - Arabic digits
        "２０２６-01-05",  # noqa: RUF001 - full-width digits
        "2026-01-05\x00",
        "\x00" * 10,
        "é" * 10,
        "9" * 5000,
        "-2026-01-05",
        # years that a clock of the exchange, or Python, has no room for
        "0001-01-01",
        "0001-01-01T00:00:00+14:00",
        "0001-01-01T00:00:00-14:00",
        "9999-12-31",
        "9999-12-31T23:59:59.999999-14:00",
        "9999-12-31T23:59:59.999999+14:00",
        "1899-12-31T23:59:59Z",
        "1900-01-01",
        "2200-01-01T00:00:00Z",
        "10000-01-01",
    ],
)
def test_a_text_that_is_no_time_of_these_centuries_is_refused(text: str):
    with pytest.raises(ValueError, match=r"\S"):
        read_moment(text)


@given(
    st.text(max_size=40)
    | st.text(alphabet="0123456789-:+TZ., W", max_size=32)
    | st.from_regex(r"\d{4}-\d\d-\d\d(.\d\d(:\d\d(:\d\d(\.\d{1,9})?)?)?)?([+-]\d\d(:\d\d){0,2}|Z)?", fullmatch=True)
)
def test_any_text_is_a_time_of_these_centuries_or_a_value_error(text: str):
    try:
        moment = read_moment(text)
    except ValueError:
        return
    assert utc("1900-01-01") <= moment < utc("2200-01-01")
    assert moment.tzinfo is UTC


@given(
    st.datetimes(naive("1901-01-01"), naive("2198-12-30")),
    # In seconds: Python (3.11) reads one of less than a second as UTC.
    st.integers(-86_340, 86_340),
)
def test_a_datetime_with_any_offset_keeps_its_instant(moment: datetime, offset: int):
    aware = moment.replace(tzinfo=timezone(timedelta(seconds=offset)))
    assert read_moment(to_text(aware)) == aware


# --- writing


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (date(2026, 1, 5), "2026-01-05"),
        (naive("2026-01-05"), "2026-01-05T00:00:00"),
        (datetime(2026, 1, 5, 10, tzinfo=SYDNEY), "2026-01-05T10:00:00+11:00"),
        (datetime(2026, 1, 5, 10, 0, 0, 1, UTC), "2026-01-05T10:00:00.000001+00:00"),
        (pendulum.datetime(2026, 1, 5, 10), "2026-01-05T10:00:00+00:00"),
        (pendulum.datetime(2026, 7, 5, 10, tz="Australia/Sydney"), "2026-07-05T10:00:00+10:00"),
        (pendulum.naive(2026, 1, 5, 10), "2026-01-05T10:00:00"),
        (pendulum.date(2026, 1, 5), "2026-01-05"),
    ],
)
def test_dates_and_datetimes_become_text(value: Any, text: str):
    assert to_text(value) == text
    assert type(to_text(value)) is str


@pytest.mark.parametrize("value", [None, "x", 5, True, [date(2026, 1, 5)], time(10), timedelta(1), {}])
def test_anything_else_stays_as_it_is(value: Any):
    assert to_text(value) is value


@given(INSTANTS)
def test_the_text_of_a_datetime_in_sydney_means_the_same_instant_even_when_its_time_happens_twice(instant: datetime):
    for zoned in (instant.astimezone(SYDNEY), pendulum.instance(instant).in_timezone("Australia/Sydney")):
        assert read_moment(to_text(zoned)) == instant


@given(st.dates(date(1901, 1, 1), date(2198, 12, 31)))
def test_a_date_and_its_midnight_are_the_same(day: date):
    assert read_moment(to_text(day)) == read_moment(to_text(datetime.combine(day, time())))
    assert exchange_date(read_moment(to_text(day))) == day


@pytest.mark.parametrize(
    ("instant", "day"),
    [
        ("2026-01-05T12:59:59", "2026-01-05"),
        ("2026-01-05T13:00:00", "2026-01-06"),
        ("2026-07-05T13:59:59", "2026-07-05"),
        ("2026-07-05T14:00:00", "2026-07-06"),
    ],
)
def test_the_day_of_the_exchange_begins_at_its_midnight(instant: str, day: str):
    assert exchange_date(utc(instant)) == date.fromisoformat(day)


# --- the exchange time that contains a range


@pytest.mark.parametrize(
    ("start", "end", "span"),
    [
        ("2026-01-04T23:00:00", "2026-01-05T05:00:00", ("2026-01-05T10:00:00", "2026-01-05T16:00:00")),
        ("2026-01-04T23:00:00.5", "2026-01-04T23:00:00.6", ("2026-01-05T10:00:00", "2026-01-05T10:00:01")),
        ("2026-01-05T12:59:59", "2026-01-05T12:59:59.000001", ("2026-01-05T23:59:59", "2026-01-06T00:00:00")),
        # April: an end in the second hour of two was perhaps written in the first one
        ("2026-04-04T15:30:00", "2026-04-04T16:30:00", ("2026-04-05T02:30:00", "2026-04-05T03:30:00")),
        ("2026-04-04T15:00:00", "2026-04-04T16:00:00", ("2026-04-05T02:00:00", "2026-04-05T03:00:00")),
        ("2026-04-04T15:00:00", "2026-04-04T17:00:00", ("2026-04-05T02:00:00", "2026-04-05T03:00:00")),
        # October: there is nothing between 02:00 and 03:00
        ("2026-10-03T15:00:00", "2026-10-03T16:00:00", ("2026-10-04T01:00:00", "2026-10-04T03:00:00")),
        ("2026-10-03T16:00:00", "2026-10-03T16:30:00", ("2026-10-04T03:00:00", "2026-10-04T03:30:00")),
    ],
)
def test_a_range_in_exchange_time(start: str, end: str, span: tuple[str, str]):
    assert exchange_span(utc(start), utc(end)) == Span(*map(naive, span))


def test_a_span_says_what_it_is():
    span = Span(naive("2026-01-05T10:00:00"), naive("2026-01-05T16:00:00"))
    assert str(span) == "2026-01-05T10:00:00 to 2026-01-05T16:00:00"


@given(RANGES)
def test_a_span_has_no_offset_and_begins_and_ends_with_whole_seconds(wanted: tuple[datetime, datetime]):
    span = exchange_span(*wanted)
    assert span.start < span.end
    for moment in span:
        assert moment.tzinfo is None
        assert moment.fold == 0
        assert moment.microsecond == 0


@given(RANGES)
def test_a_span_is_no_wider_than_it_has_to_be(wanted: tuple[datetime, datetime]):
    start, end = wanted
    step = timedelta(seconds=1)
    span = exchange_span(start, end)
    assert written(start) - step < span.start <= written(start)
    # an hour more where the clock shows the end for the second time
    again = HOUR * end.astimezone(SYDNEY).fold
    assert written(end) + again <= span.end < written(end) + again + step


def instants_of(wanted: tuple[datetime, datetime]) -> st.SearchStrategy[datetime]:
    """Instants in a range and a little around it, often near its ends."""
    start, end = wanted
    # the other one of two equal times is an hour away
    around = st.timedeltas(-2 * HOUR, 2 * HOUR)
    return (
        st.sampled_from([start, end - timedelta(microseconds=1)])
        | st.timedeltas(timedelta(0), end - start).map(lambda passed: start + passed)
        | around.map(lambda off: start + off)
        | around.map(lambda off: end + off)
    )


@given(RANGES, st.sampled_from([1, 7, 30, 60]), st.data())
def test_whatever_the_exchange_writes_that_is_read_as_in_the_range_is_asked_for_once(
    wanted: tuple[datetime, datetime], days: int, data: st.DataObject
):
    start, end = wanted
    row = written(data.draw(instants_of(wanted)))
    assume(start <= to_utc(row) < end)
    pieces = split(exchange_span(start, end), days)
    assert sum(piece.start <= row < piece.end for piece in pieces) == 1


@pytest.mark.parametrize("sunday", [first_sunday(2026, 4), first_sunday(2026, 10)])
def test_no_row_of_a_day_of_change_gets_lost_whatever_the_range(sunday: date):
    midnight = datetime.combine(sunday, time(), SYDNEY).astimezone(UTC)
    instants = [midnight + timedelta(minutes=15 * quarter) for quarter in range(6 * 4)]
    rows = {written(instant) for instant in instants}
    for start, end in itertools.combinations(instants, 2):
        span = exchange_span(start, end)
        lost = [row for row in rows if start <= to_utc(row) < end and not span.start <= row < span.end]
        assert not lost, (start, end)


# --- the bar that a moment is in


@pytest.mark.parametrize(
    ("moment", "minutes", "begin"),
    [
        ("2026-01-04T23:07:00", 60, "2026-01-04T23:00:00"),
        ("2026-01-04T23:07:00", 15, "2026-01-04T23:00:00"),
        ("2026-01-04T23:07:00", 5, "2026-01-04T23:05:00"),
        ("2026-01-04T23:00:00", 60, "2026-01-04T23:00:00"),
        ("2026-01-04T23:59:59.999999", 12, "2026-01-04T23:48:00"),
        ("2026-01-04T23:00:00.000001", 1, "2026-01-04T23:00:00"),
        # both hours of the one name in April
        ("2026-04-04T15:59:00", 60, "2026-04-04T15:00:00"),
        ("2026-04-04T16:59:00", 60, "2026-04-04T16:00:00"),
        ("1900-01-01T00:59:59", 60, "1900-01-01T00:00:00"),
    ],
)
def test_an_intraday_bar_begins_at_a_multiple_of_its_interval(moment: str, minutes: int, begin: str):
    assert floor(utc(moment), minutes) == utc(begin)


@given(INSTANTS, st.sampled_from(INTERVALS))
def test_a_moment_is_in_the_bar_that_the_clock_of_the_exchange_shows(instant: datetime, minutes: int):
    begin = floor(instant, minutes)
    assert begin <= instant < begin + timedelta(minutes=minutes)
    shown = instant.astimezone(SYDNEY)
    on_the_clock = shown.replace(minute=shown.minute - shown.minute % minutes, second=0, microsecond=0)
    assert begin == on_the_clock.astimezone(UTC)
    assert begin.tzinfo is UTC


@pytest.mark.parametrize(
    ("day", "saturday"),
    [
        ("2026-01-02", "2025-12-27"),
        ("2026-01-03", "2026-01-03"),
        ("2026-01-04", "2026-01-03"),
        ("2026-01-05", "2026-01-03"),
        ("2026-01-09", "2026-01-03"),
        ("2026-01-10", "2026-01-10"),
        ("1900-01-01", "1899-12-30"),
    ],
)
def test_a_week_begins_with_saturday(day: str, saturday: str):
    assert first_of_week(date.fromisoformat(day)) == date.fromisoformat(saturday)


@given(st.dates(date(1900, 1, 1), date(2199, 12, 31)))
def test_a_day_is_in_the_week_of_the_saturday_on_or_before_it(day: date):
    first = first_of_week(day)
    assert first.strftime("%w") == "6"
    assert timedelta(0) <= day - first < timedelta(days=7)


# --- pieces


NAIVE = st.datetimes(naive("1901-01-01"), naive("2198-01-01")) | INSTANTS.map(written)
SPANS = st.tuples(NAIVE, LENGTHS | st.timedeltas(timedelta(microseconds=1), timedelta(days=900))).map(
    lambda pair: Span(pair[0], pair[0] + pair[1])
)


@given(SPANS, st.sampled_from([1, 7, 30, 60]))
@example(Span(naive("2026-01-05T00:00:00"), naive("2026-01-06T00:00:00")), 1)
@example(Span(naive("2026-01-05T23:59:59"), naive("2026-01-06T00:00:01")), 1)
def test_pieces_cover_a_span_exactly_and_none_is_too_long(span: Span, days: int):
    pieces = list(split(span, days))
    assert pieces[0].start == span.start
    assert pieces[-1].end == span.end
    for piece, following in itertools.pairwise(pieces):
        assert piece.end == following.start
        assert piece.end.time() == time()
    for piece in pieces:
        assert piece.start < piece.end
        assert piece.end - piece.start <= timedelta(days=days)
        last = (piece.end - timedelta(microseconds=1)).date()
        assert (last - piece.start.date()).days < days


@given(SPANS, st.sampled_from([1, 7, 30, 60]))
def test_there_are_no_more_pieces_than_needed(span: Span, days: int):
    touched = ((span.end - timedelta(microseconds=1)).date() - span.start.date()).days + 1
    assert len(list(split(span, days))) == -(-touched // days)


def test_an_empty_span_has_no_pieces():
    moment = naive("2026-01-05T10:00:00")
    assert list(split(Span(moment, moment), 1)) == []


def test_pieces_are_made_as_they_are_needed():
    pieces = split(Span(naive("1900-01-01T00:00:00"), naive("2199-12-31T00:00:00")), 1)
    assert next(pieces) == Span(naive("1900-01-01T00:00:00"), naive("1900-01-02T00:00:00"))
    assert next(pieces) == Span(naive("1900-01-02T00:00:00"), naive("1900-01-03T00:00:00"))
