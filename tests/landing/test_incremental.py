from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from functools import partial
from typing import Any, ClassVar
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openmarkets_provider import queries
from openmarkets_provider.exceptions import OpenmarketsError, OpenmarketsQueryError
from openmarkets_provider.landing.claims import Claim, extend, make_claim, restore_claim
from openmarkets_provider.landing.destination import LoadResult, with_range
from openmarkets_provider.landing.incremental import NothingNew, load_incrementally
from openmarkets_provider.landing.load_state import KEPT_CLAIMS, fingerprint
from openmarkets_provider.query.exchange_time import read_moment, to_text
from openmarkets_provider.query.query import window

# Bounds are any days here.

DAY = timedelta(days=1)
NOW = datetime(2026, 3, 20, 1, 30, tzinfo=UTC)
"""12:30 at the exchange, with daylight-saving time."""


def bars(start: str = "2026-03-02", end: str = "2026-03-12", **kwargs) -> queries.Query:
    return queries.time_series("BHP", start=start, end=end, **kwargs)


def trades(start: str = "2026-03-02", end: str = "2026-03-12") -> queries.Query:
    return queries.trades("BHP", start=start, end=end)


def test_the_first_load_takes_the_whole_range():
    assert make_claim(bars(), None, None, DAY, NOW) == Claim(date(2026, 3, 2), date(2026, 3, 12))


def test_a_later_load_begins_at_the_watermark_less_the_overlap():
    taken = make_claim(bars(end="2026-03-15"), "2026-03-12", "2026-03-02", DAY, NOW)
    assert taken == Claim(date(2026, 3, 11), date(2026, 3, 15))


def test_the_start_of_the_query_does_not_count_once_something_is_loaded():
    taken = make_claim(bars(start="2026-03-14", end="2026-03-15"), "2026-03-12", "2026-03-02", timedelta(0), NOW)
    assert taken is not None
    assert taken.start == date(2026, 3, 12)


def test_the_overlap_does_not_reach_before_the_first_load():
    taken = make_claim(bars(), "2026-03-04", "2026-03-02", timedelta(days=30), NOW)
    assert taken is not None
    assert taken.start == date(2026, 3, 2)


def test_of_bars_an_overlap_within_one_takes_the_whole_bar():
    taken = make_claim(bars(end="2026-03-15"), "2026-03-12", "2026-03-02", timedelta(hours=1), NOW)
    assert taken is not None
    assert taken.start == date(2026, 3, 11)
    weekly = make_claim(bars(end="2026-03-21", frequency="Weekly"), "2026-03-07", "2026-02-28", DAY, NOW)
    assert weekly == Claim(date(2026, 2, 28), date(2026, 3, 14))


@pytest.mark.parametrize(
    ("query", "end"),
    [
        (bars(end="2199-12-31"), date(2026, 3, 20)),
        (bars(end="2199-12-31", frequency="Weekly"), date(2026, 3, 14)),
        (trades(end="2199-12-31"), NOW),
        (
            queries.intraday_time_series("BHP", start="2026-03-19", end="2199-12-31", interval=60),
            datetime(2026, 3, 20, 1, tzinfo=UTC),
        ),
    ],
    ids=["daily", "weekly", "trades", "hourly"],
)
def test_what_lies_in_the_future_is_not_taken_for_loaded(query, end):
    taken = make_claim(query, None, None, DAY, NOW)
    assert taken is not None
    assert taken.end == end


@pytest.mark.parametrize("watermark", ["2026-03-12", "2026-03-13"])
def test_nothing_is_new_up_to_the_watermark(watermark):
    assert make_claim(bars(), watermark, "2026-03-02", DAY, NOW) is None


def test_nothing_is_new_when_the_first_range_lies_in_the_future():
    assert make_claim(bars(start="2026-03-20", end="2026-03-25"), None, None, DAY, NOW) is None


def test_nothing_is_new_within_the_bar_that_the_range_begins_in():
    assert make_claim(bars() | {"end": "2026-03-02T15:00:00"}, None, None, DAY, NOW) is None
    with pytest.raises(OpenmarketsQueryError, match="empty or reversed range"):
        make_claim(bars() | {"end": "2026-03-01"}, None, None, DAY, NOW)
    with pytest.raises(OpenmarketsQueryError, match="end must be a date"):
        make_claim(bars() | {"end": "tomorrow"}, None, None, DAY, NOW)


def test_a_start_before_the_first_load_is_refused_since_it_would_never_come():
    with pytest.raises(OpenmarketsQueryError, match=r"start '2026-03-01' is before 2026-03-02.*without incremental"):
        make_claim(bars(start="2026-03-01", end="2026-03-15"), "2026-03-12", "2026-03-02", DAY, NOW)


def test_a_query_without_a_range_is_refused():
    with pytest.raises(OpenmarketsQueryError, match="quotes: incremental needs a query with a range"):
        make_claim(queries.quotes("BHP"), None, None, DAY, NOW)


@pytest.mark.parametrize("query", [bars(), trades()], ids=["dates", "times"])
def test_a_claim_is_kept_as_data(query):
    taken = make_claim(query, None, None, DAY, NOW)
    assert taken is not None
    assert restore_claim(query, taken.as_data(), to_text(taken.end), to_text(taken.start)) == taken
    # Nothing was loaded: the query may have been corrected since.
    assert restore_claim(query, taken.as_data(), None, "2026-03-02") is None


def test_a_claim_that_would_leave_a_gap_is_dropped():
    kept = make_claim(bars(end="2026-03-15"), "2026-03-12", "2026-03-02", DAY, NOW)
    assert kept is not None
    # Another task has started again, and the destination is not loaded up to the start of the claim.
    assert restore_claim(bars(), kept.as_data(), "2026-03-10", "2026-03-02") is None
    assert restore_claim(bars(), kept.as_data(), "2026-03-11", "2026-03-02") == kept


def test_a_query_takes_the_range_of_a_claim():
    taken = make_claim(trades(), "2026-03-10T05:06:07.000008+00:00", "2026-03-02", DAY, NOW)
    assert taken is not None
    narrow = with_range(trades(), taken.start, taken.end)
    assert window(narrow) == (datetime(2026, 3, 9, 5, 6, 7, 8, tzinfo=UTC), read_moment("2026-03-12"))


@pytest.mark.parametrize(
    ("start", "end", "loaded"),
    [
        (12, 15, (10, 15)),
        (11, 12, (10, 12)),
        (8, 10, (8, 12)),
        (8, 15, (8, 15)),
        (13, 15, None),
        (8, 9, None),
    ],
    ids=["after", "within", "before", "around", "gap after", "gap before"],
)
def test_what_is_loaded_grows_by_what_touches_it(start, end, loaded):
    landed = Claim(date(2026, 3, start), date(2026, 3, end))
    texts = loaded and tuple(f"2026-03-{day:02}" for day in loaded)
    assert extend("2026-03-10", "2026-03-12", landed) == texts
    assert extend(None, None, landed) == (f"2026-03-{start:02}", f"2026-03-{end:02}")


def test_the_later_watermark_counts_whatever_its_offset():
    landed = Claim(date(2026, 3, 10), datetime(2026, 3, 12, tzinfo=timezone(timedelta(hours=11))))
    assert extend("2026-03-10", "2026-03-11T23:00:00+00:00", landed) == ("2026-03-10", "2026-03-11T23:00:00+00:00")


def test_a_fingerprint_is_of_everything_but_the_range_and_the_order():
    base = fingerprint(queries.trades(["BHP", "CBA"], start="2026-03-02", end="2026-03-03"))
    assert fingerprint(queries.trades("CBA.ASX, BHP", start="2026-04-02", end="2026-04-03")) == base
    # What is left out comes later.
    other = queries.trades("BHP, CBA", start="2026-03-02", end="2026-03-03", on_invalid="warn")
    assert fingerprint(other) == base
    for other in (
        queries.trades(["BHP"], start="2026-03-02", end="2026-03-03"),
        queries.time_series(["BHP", "CBA"], start="2026-03-02", end="2026-03-03"),
        queries.trades(exchange="ASX", start="2026-03-02", end="2026-03-03"),
    ):
        assert fingerprint(other) != base


def test_bars_of_another_length_are_another_query():
    days = {"start": "2026-03-02", "end": "2026-03-07"}
    lengths = [queries.time_series("BHP", frequency=frequency, **days) for frequency in ("Daily", "Weekly")]
    lengths += [queries.intraday_time_series("BHP", interval=interval, **days) for interval in (5, 15)]
    assert len(set(map(fingerprint, lengths))) == len(lengths)


@settings(max_examples=200)
@given(
    ends=st.lists(st.integers(1, 60), min_size=1, max_size=12),
    overlap=st.integers(0, 5),
    crashes=st.sets(st.integers(0, 11)),
    cleared=st.lists(st.integers(0, 11), max_size=4),
    make=st.sampled_from([bars, trades]),
)
def test_whatever_is_repeated_and_in_whatever_order_no_day_is_missing(ends, overlap, crashes, cleared, make):
    first = date(2026, 1, 1)
    watermark, began, loaded, kept = None, None, set(), {}

    def load(number: int, end: int, *, crash: bool) -> None:
        nonlocal watermark, began
        query = make(start=str(first), end=str(first + end * DAY))
        taken = restore_claim(query, kept[number], watermark, began) if number in kept else None
        taken = taken or make_claim(query, watermark, began, overlap * DAY, NOW)
        if taken is None:
            return
        kept[number] = taken.as_data()
        start, stop = (read_moment(to_text(bound)) for bound in taken[:2])
        loaded.update(start + hours * timedelta(hours=1) for hours in range(int((stop - start) / timedelta(hours=1))))
        if not crash:
            reached = extend(began, watermark, taken)
            assert reached is not None
            began, watermark = reached

    for number, end in enumerate(ends):
        load(number, end, crash=number in crashes)
    for number in cleared:
        if number < len(ends):
            load(number, ends[number], crash=False)
    if watermark is not None:
        hours = int((read_moment(watermark) - read_moment(str(first))) / timedelta(hours=1))
        assert loaded >= {read_moment(str(first)) + hour * timedelta(hours=1) for hour in range(hours)}
        assert read_moment(watermark) <= NOW


class Memory:
    """A destination and a state store in memory. Rows are the starts of the ranges that were landed."""

    name, format = "memory", ""

    def __init__(self, *, is_exclusive: bool = True) -> None:
        self.is_exclusive = is_exclusive
        self.rows_of_a_load = 1
        self.is_gone = False
        self.ranges: list[tuple[str, str]] = []
        self.data: dict[str, Any] = {}

    def exists(self) -> bool:
        return bool(self.ranges) and not self.is_gone

    def range_to_pull(self, query: queries.Query, start: Any, end: Any, watermark: str | None) -> tuple[Any, Any]:
        return start, end

    def land(self, source: Any, query: queries.Query) -> LoadResult:
        self.ranges.append((query["start"], query["end"]))
        return LoadResult(self.name, self.rows_of_a_load, None, [], None, [])

    def cancel(self) -> None:
        pass

    def get(self, key: str) -> Any:
        return self.data.get(key)

    def set(self, key: str, value: Any) -> None:
        self.data[key] = value

    def delete(self, key: str) -> None:
        self.data.pop(key, None)


class TestLoads:
    def load(self, memory: Memory, query: queries.Query, run: str | None = None, owner: str = "dag.task") -> None:
        """Load in a separate run, unless one is named."""
        options = {"owner": owner, "run": run or uuid4().hex, "overlap": DAY}
        load_incrementally(None, query, memory, memory, store_name="asset 'lake'", **options)

    def test_each_pulls_what_is_new_and_the_overlap(self):
        memory = Memory()
        for end in ("2026-03-04", "2026-03-06"):
            self.load(memory, bars(end=end))
        assert memory.ranges == [("2026-03-02", "2026-03-04"), ("2026-03-03", "2026-03-06")]
        with pytest.raises(NothingNew, match="Nothing to load: memory is loaded up to 2026-03-06"):
            self.load(memory, bars(end="2026-03-06"))

    def test_one_that_fails_moves_nothing_and_its_retry_takes_the_same_range(self):
        memory = Memory()
        self.load(memory, bars(end="2026-03-04"))
        land, memory.land = memory.land, lambda source, query: 1 / 0
        with pytest.raises(ZeroDivisionError):
            self.load(memory, bars(end="2026-03-06"), "second")
        memory.land = land
        self.load(memory, bars(end="2026-03-05"), "third")
        self.load(memory, bars(end="2026-03-08"), "second")
        assert memory.ranges[1:] == [("2026-03-03", "2026-03-05"), ("2026-03-03", "2026-03-06")]

    def test_one_that_is_repeated_takes_its_range_again_however_many_came_later(self):
        memory = Memory()
        ends = [f"2026-03-{day:02}" for day in range(3, 11)]
        for end in (*ends, *ends):
            self.load(memory, bars(end=end), end)
        assert memory.ranges == memory.ranges[: len(ends)] * 2
        assert [end for _, end in memory.ranges[: len(ends)]] == ends

    def test_the_store_keeps_the_claims_of_the_last_runs_only(self):
        memory, first = Memory(), date(2025, 1, 1)
        ends = [str(first + days * DAY) for days in range(1, KEPT_CLAIMS + 11)]
        for end in ends:
            self.load(memory, bars(start=str(first), end=end), end)
            # The state, and the list of the claims.
            assert len(memory.data) <= KEPT_CLAIMS + 2
        for end in ends[10:]:
            self.load(memory, bars(start=str(first), end=end), end)
        with pytest.raises(NothingNew):
            self.load(memory, bars(start=str(first), end=ends[9]), ends[9])

    def test_those_that_begin_at_the_same_time_all_take_their_ranges_again(self):
        class Racing(Memory):
            """A store in which another load runs between the read of what all loads write at first and the write."""

            others: ClassVar[list[Callable[[], None]]] = []

            def get(self, key: str) -> Any:
                value = super().get(key)
                if key.endswith("_claims") and self.others:
                    self.others.pop()()
                return value

        memory = Racing(is_exclusive=False)
        ends = [f"2026-03-{day:02}" for day in range(4, 12)]

        def load(end: str) -> None:
            self.load(memory, bars(end=end), end)

        load("2026-03-03")
        memory.others.extend(partial(load, end) for end in ends)
        load("2026-03-12")
        assert not memory.others
        assert len(memory.ranges) == 2 + len(ends)
        for end in (*ends, "2026-03-12"):
            load(end)
        assert [end for _, end in memory.ranges[2 + len(ends) :]] == [*ends, "2026-03-12"]

    def test_an_exclusive_destination_belongs_to_one_task_and_others_to_any(self):
        shared, own = Memory(is_exclusive=False), Memory()
        for memory in (shared, own):
            self.load(memory, bars(end="2026-03-04"))
        self.load(shared, bars(end="2026-03-06"), owner="dag.other")
        with pytest.raises(OpenmarketsError, match=r"by task dag\.task, .* run the task with full_refresh=True"):
            self.load(own, bars(end="2026-03-06"), owner="dag.other")

    def test_one_without_rows_does_not_hide_that_the_rows_of_the_one_before_are_gone(self):
        memory = Memory()
        self.load(memory, bars(end="2026-03-04"))
        memory.rows_of_a_load = 0
        self.load(memory, bars(end="2026-03-06"))
        memory.is_gone = True
        with pytest.raises(OpenmarketsError, match="memory was loaded up to 2026-03-06"):
            self.load(memory, bars(end="2026-03-08"))
