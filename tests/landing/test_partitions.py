from __future__ import annotations

import itertools
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.landing.partitions import Partition, Sorter, list_partitions, list_sessions, widen_range
from tests.support.batches import batch_of

SYDNEY = ZoneInfo("Australia/Sydney")
NAMES = {"day": "exchange_date=%Y-%m-%d", "month": "exchange_month=%Y-%m", "year": "exchange_year=%Y"}


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)


@pytest.mark.parametrize(
    ("by", "start", "end", "names"),
    [
        ("day", date(2026, 2, 28), date(2026, 3, 2), ["exchange_date=2026-02-28", "exchange_date=2026-03-01"]),
        ("month", date(2026, 12, 1), date(2027, 2, 1), ["exchange_month=2026-12", "exchange_month=2027-01"]),
        ("year", date(2024, 1, 1), date(2026, 1, 1), ["exchange_year=2024", "exchange_year=2025"]),
        # the clock goes forward on 4 October 2026, and back on 5 April: days of 23 and 25 hours
        ("day", utc(2026, 10, 3, 14), utc(2026, 10, 4, 13), ["exchange_date=2026-10-04"]),
        ("day", utc(2026, 4, 4, 13), utc(2026, 4, 5, 14), ["exchange_date=2026-04-05"]),
        ("month", utc(2026, 9, 30, 14), utc(2026, 10, 31, 13), ["exchange_month=2026-10"]),
    ],
)
def test_a_range_of_whole_partitions_covers_them(by, start, end, names):
    found = list_partitions(by, start, end)
    assert [each.name for each in found] == names
    assert (found[0].start, found[-1].end) == (start, end)


@pytest.mark.parametrize(
    ("by", "start", "end", "torn", "advice"),
    [
        (
            "month",
            date(2026, 11, 2),
            date(2026, 12, 1),
            "exchange_month=2026-11",
            "start='2026-11-01', end='2026-12-01'",
        ),
        (
            "month",
            date(2026, 11, 1),
            date(2026, 12, 2),
            "exchange_month=2026-12",
            "start='2026-11-01', end='2027-01-01'",
        ),
        ("year", date(2026, 1, 1), date(2026, 12, 31), "exchange_year=2026", "start='2026-01-01', end='2027-01-01'"),
        # midnight in UTC is the middle of the morning at the exchange
        (
            "day",
            utc(2026, 11, 19),
            utc(2026, 11, 20),
            "exchange_date=2026-11-19 and exchange_date=2026-11-20",
            "start='2026-11-19', end='2026-11-21'",
        ),
    ],
)
def test_a_partition_that_is_covered_in_part_is_refused_with_the_range_to_take(by, start, end, torn, advice):
    with pytest.raises(OpenmarketsQueryError, match=f"covers only part of {torn}.*lose the rest.*{advice}"):
        list_partitions(by, start, end)


def test_an_unfinished_load_may_end_within_a_partition_but_not_begin_in_one():
    (november,) = list_partitions("month", date(2026, 11, 1), date(2026, 11, 20), open_end=True)
    assert november == Partition("exchange_month=2026-11", date(2026, 11, 1), date(2026, 12, 1))
    with pytest.raises(OpenmarketsQueryError, match="only part of"):
        list_partitions("month", date(2026, 11, 2), date(2026, 11, 20), open_end=True)


days = st.dates(date(1990, 1, 1), date(2090, 12, 31))


@given(day=days, length=st.integers(1, 40), by=st.sampled_from(sorted(NAMES)), minute=st.integers(0, 39 * 1440))
def test_every_moment_is_sorted_into_the_partition_that_the_clock_of_the_exchange_names(day, length, by, minute):
    start = datetime(day.year, day.month, day.day, tzinfo=SYDNEY).astimezone(UTC)
    end = start + timedelta(days=length)
    start, end = widen_range(by, start, end, None)[0], end
    partitions = list_partitions(by, start, end, open_end=True)
    assert all(one.end == other.start for one, other in itertools.pairwise(partitions))
    moments = [
        moment for moment in (start, start + timedelta(minutes=minute), end - timedelta(seconds=1)) if moment < end
    ]
    rows = [{"time": moment, "number": number} for number, moment in enumerate(moments)]
    found = [
        (each.name, row) for each, those in Sorter(partitions, "time").sort(batch_of(rows)) for row in those.rows()
    ]
    expected = {row["number"]: row["time"].astimezone(SYDNEY).strftime(NAMES[by]) for row in rows}
    assert {row["number"]: name for name, row in found} == expected


def test_rows_keep_their_order_and_a_batch_of_one_partition_is_not_taken_apart():
    partitions = list_partitions("day", date(2026, 11, 2), date(2026, 11, 5))
    rows = [{"day": date(2026, 11, 2 + number % 3), "number": number} for number in range(7)]
    sorter = Sorter(partitions, "day")
    found = {each.name[-2:]: those.columns["number"] for each, those in sorter.sort(batch_of(rows))}
    assert found == {"02": [0, 3, 6], "03": [1, 4], "04": [2, 5]}
    same = batch_of([rows[0], rows[3]])
    ((partition, those),) = sorter.sort(same)
    assert partition is partitions[0]
    assert those is same


@pytest.mark.parametrize(
    ("by", "start", "end", "reached", "pulled"),
    [
        # a first load, that ends in the middle of a month
        ("month", date(2026, 11, 5), date(2026, 11, 20), None, (date(2026, 11, 1), date(2026, 11, 20))),
        # the next one: the overlap reaches into the month before
        ("month", date(2026, 11, 30), date(2026, 12, 3), date(2026, 12, 1), (date(2026, 11, 1), date(2026, 12, 3))),
        # an older one again: what was loaded after it stays
        ("month", date(2026, 11, 5), date(2026, 11, 9), date(2026, 11, 20), (date(2026, 11, 1), date(2026, 11, 20))),
        ("month", date(2026, 11, 5), date(2026, 11, 9), date(2026, 12, 20), (date(2026, 11, 1), date(2026, 12, 1))),
        ("year", date(2026, 11, 5), date(2027, 1, 1), date(2027, 1, 5), (date(2026, 1, 1), date(2027, 1, 1))),
        ("day", utc(2026, 11, 19, 15), utc(2026, 11, 20, 2), None, (utc(2026, 11, 19, 13), utc(2026, 11, 20, 2))),
        (
            "day",
            utc(2026, 11, 19, 15),
            utc(2026, 11, 20, 2),
            utc(2026, 11, 21),
            (utc(2026, 11, 19, 13), utc(2026, 11, 20, 13)),
        ),
    ],
)
def test_a_claimed_range_is_widened_so_that_whole_partitions_can_be_replaced(by, start, end, reached, pulled):
    assert widen_range(by, start, end, reached) == pulled


@given(day=days, length=st.integers(1, 400), later=st.integers(-400, 400), by=st.sampled_from(sorted(NAMES)))
def test_a_widened_range_holds_the_claimed_one_and_what_was_loaded_of_its_partitions(day, length, later, by):
    end = day + timedelta(days=length)
    reached = end + timedelta(days=later)
    pulled = widen_range(by, day, end, reached)
    assert pulled[0] <= day
    assert pulled[1] >= end
    last = list_partitions(by, *pulled, open_end=True)[-1]
    assert pulled[1] in (last.end, max(end, reached))
    assert last.start < end


def test_sessions_of_a_range_are_those_whose_whole_day_is_in_it_and_that_have_closed():
    close = datetime(2026, 4, 8, 6, 10, tzinfo=UTC)
    easter = date(2026, 4, 2), date(2026, 4, 9)
    assert list_sessions(*easter, close) == [date(2026, 4, 2), date(2026, 4, 7), date(2026, 4, 8)]
    assert list_sessions(*easter, close - timedelta(seconds=1)) == [date(2026, 4, 2), date(2026, 4, 7)]
    # Midnight in Sydney, on both sides of the end of summer time.
    start, end = datetime(2026, 4, 1, 13, tzinfo=UTC), datetime(2026, 4, 7, 14, tzinfo=UTC)
    second = timedelta(seconds=1)
    assert list_sessions(start, end, close) == [date(2026, 4, 2), date(2026, 4, 7)]
    assert list_sessions(start + second, end, close) == [date(2026, 4, 7)]
    assert list_sessions(start, end - second, close) == [date(2026, 4, 2)]
    assert list_sessions(start, start + second, close) == []
