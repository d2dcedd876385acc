"""Which sessions a roll-up waits for, as Airflow's scheduler asks; tests/airflow/test_trading_days.py runs one."""

from __future__ import annotations

import json
from datetime import date, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from airflow.sdk import (
    Asset,
    FanOutMapper,
    PartitionedAssetTimetable,
    RollupMapper,
    StartOfDayMapper,
    StartOfMonthMapper,
    StartOfQuarterMapper,
    StartOfWeekMapper,
    StartOfYearMapper,
)
from airflow.serialization.decoders import decode_timetable
from airflow.serialization.encoders import encode_timetable

from openmarkets_provider.sessions.calendar import ASX
from openmarkets_provider.timetables.windows import (
    TradingMonthWindow,
    TradingQuarterWindow,
    TradingWeekWindow,
    TradingYearWindow,
    TrailingSessionsMapper,
)

SYDNEY = ZoneInfo("Australia/Sydney")
BARS = Asset("bars")
FORMAT: dict[str, Any] = {"input_format": "%Y-%m-%d", "timezone": "Australia/Sydney"}


def scheduled(mapper: Any) -> Any:
    """Return a mapper of a DAG as the scheduler has it: from the serialized DAG."""
    schedule = PartitionedAssetTimetable(assets=BARS, default_partition_mapper=mapper)
    data = json.loads(json.dumps(encode_timetable(schedule)))
    return decode_timetable(data).get_partition_mapper(name=BARS.name)


def sessions(first: str, last: str) -> set[str]:
    return {str(day) for day in ASX.sessions_in_range(first, last)}


@pytest.mark.parametrize(
    ("mapper", "window", "session", "key", "first", "last", "count"),
    [
        (StartOfWeekMapper, TradingWeekWindow, "2026-04-02", "2026-03-30 (W14)", "2026-03-30", "2026-04-05", 4),
        (StartOfWeekMapper, TradingWeekWindow, "2026-12-31", "2026-12-28 (W53)", "2026-12-28", "2027-01-03", 3),
        (StartOfMonthMapper, TradingMonthWindow, "2026-04-02", "2026-04", "2026-04-01", "2026-04-30", 20),
        (StartOfMonthMapper, TradingMonthWindow, "2026-12-31", "2026-12", "2026-12-01", "2026-12-31", 21),
        (StartOfQuarterMapper, TradingQuarterWindow, "2026-12-31", "2026-Q4", "2026-10-01", "2026-12-31", 64),
        (StartOfYearMapper, TradingYearWindow, "2026-04-02", "2026", "2026-01-01", "2026-12-31", 254),
    ],
)
def test_a_window_expects_the_sessions_of_its_period(mapper, window, session, key, first, last, count) -> None:
    rollup = scheduled(RollupMapper(upstream_mapper=mapper(**FORMAT), window=window()))
    assert rollup.to_downstream(session) == key
    assert rollup.to_upstream(key) == sessions(first, last)
    assert len(rollup.to_upstream(key)) == count
    assert rollup.to_partition_date(key) == datetime.combine(date.fromisoformat(first), datetime.min.time(), SYDNEY)


@pytest.mark.parametrize("window", [TradingWeekWindow, TradingMonthWindow, TradingQuarterWindow, TradingYearWindow])
def test_a_further_closure_is_not_waited_for(window) -> None:
    rollup = scheduled(
        RollupMapper(upstream_mapper=StartOfMonthMapper(**FORMAT), window=window(extra_closures=["2027-03-02"]))
    )
    assert "2027-03-02" not in rollup.to_upstream("2027-03")
    assert "2027-03-03" in rollup.to_upstream("2027-03")


def test_a_month_fans_out_to_its_sessions() -> None:
    fan_out = scheduled(
        FanOutMapper(
            upstream_mapper=StartOfMonthMapper(input_format="%Y-%m"),
            window=TradingMonthWindow(),
            downstream_mapper=StartOfDayMapper(timezone="Australia/Sydney"),
        )
    )
    assert list(fan_out.to_downstream("2026-04")) == sorted(sessions("2026-04-01", "2026-04-30"))


class TestTrailingSessions:
    def test_a_run_waits_for_its_session_and_those_before(self) -> None:
        mapper = scheduled(TrailingSessionsMapper(3))
        assert mapper.is_rollup
        assert mapper.to_upstream("2026-04-07") == {"2026-04-01", "2026-04-02", "2026-04-07"}
        assert mapper.to_partition_date("2026-04-07") == datetime(2026, 4, 7, tzinfo=SYDNEY)

    def test_each_session_is_one_of_each_window_that_it_counts_for(self) -> None:
        mapper = scheduled(TrailingSessionsMapper(3))
        assert mapper.to_downstream("2026-04-02") == ["2026-04-02", "2026-04-07", "2026-04-08"]
        for session in sessions("2026-03-01", "2026-05-01"):
            assert all(session in mapper.to_upstream(key) for key in mapper.to_downstream(session))

    def test_it_fires_with_its_last_session(self) -> None:
        mapper = scheduled(TrailingSessionsMapper(2))
        expected = mapper.to_upstream("2026-04-07")
        policy = mapper.wait_policy
        assert not policy.is_satisfied_by_keys(matched={"2026-04-02"}, expected=expected).satisfied
        assert policy.is_satisfied_by_keys(matched={"2026-04-02", "2026-04-07"}, expected=expected).satisfied

    def test_a_further_closure_is_not_waited_for(self) -> None:
        mapper = scheduled(TrailingSessionsMapper(2, extra_closures=["2027-03-02"]))
        assert mapper.to_upstream("2027-03-03") == {"2027-03-01", "2027-03-03"}

    @pytest.mark.parametrize("key", ["2026-04-03", "April"])
    def test_a_key_that_is_no_session_is_refused(self, key: str) -> None:
        with pytest.raises(ValueError, match=r"not a trading day|expected a date"):
            TrailingSessionsMapper(3).to_downstream(key)

    @pytest.mark.parametrize("number", [0, -1, "3"])
    def test_a_wrong_number_is_refused(self, number: object) -> None:
        with pytest.raises(ValueError, match="sessions must be a whole number above 0"):
            TrailingSessionsMapper(number)
