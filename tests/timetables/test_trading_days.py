"""The runs that the timetable gives, before and since partitions; tests/airflow/test_trading_days.py schedules them."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pendulum
import pytest
from airflow.timetables.base import DagRunInfo, DataInterval, TimeRestriction

from openmarkets_provider.sessions.calendar import ASX
from openmarkets_provider.timetables.trading_days import TradingDayTimetable
from tests.support.versions import at_least, moved

SYDNEY = ZoneInfo("Australia/Sydney")
PARTITIONED = at_least("3.3")


def utc(text: str) -> pendulum.DateTime:
    return pendulum.parse(text, tz="UTC")


def sydney(text: str) -> pendulum.DateTime:
    return pendulum.parse(text, tz="Australia/Sydney")


def next_run(
    timetable: TradingDayTimetable, last: DagRunInfo | None, restriction: TimeRestriction
) -> DagRunInfo | None:
    if at_least("3.2"):
        return timetable.next_dagrun_info_v2(last_dagrun_info=last, restriction=restriction)
    return timetable.next_dagrun_info(last_automated_data_interval=last and last.data_interval, restriction=restriction)


def runs(timetable: TradingDayTimetable, start: pendulum.DateTime, end: pendulum.DateTime) -> list[DagRunInfo]:
    """Return the runs of a catch-up."""
    restriction = TimeRestriction(earliest=start, latest=end, catchup=True)
    found: list[DagRunInfo] = []
    while run := next_run(timetable, found[-1] if found else None, restriction):
        found.append(run)
    return found


def session_of(run: DagRunInfo) -> str:
    """Return the session of a run, from what a DAG of this Airflow sees of it."""
    if PARTITIONED:
        assert run.data_interval is None
        assert run.partition_date == sydney(run.partition_key)
        return run.partition_key
    start, end = run.data_interval
    midnight = start.in_timezone(SYDNEY)
    assert midnight.time() == time()
    assert end == midnight.add(days=1)
    return midnight.date().isoformat()


def times(found: list[DagRunInfo]) -> dict[str, str]:
    return {session_of(run): run.run_after.in_timezone(SYDNEY).strftime("%m-%dT%H:%M%z") for run in found}


class TestRuns:
    def test_easter_has_none_and_summer_time_ends(self) -> None:
        found = runs(TradingDayTimetable(), utc("2026-04-01"), utc("2026-04-08"))
        assert times(found) == {
            "2026-04-01": "04-01T16:30+1100",
            "2026-04-02": "04-02T16:30+1100",
            "2026-04-07": "04-07T16:30+1000",
            "2026-04-08": "04-08T16:30+1000",
        }

    def test_summer_time_starts(self) -> None:
        found = runs(TradingDayTimetable(), utc("2026-10-02"), utc("2026-10-05"))
        assert times(found) == {"2026-10-02": "10-02T16:30+1000", "2026-10-05": "10-05T16:30+1100"}

    def test_half_days_run_earlier(self) -> None:
        found = runs(TradingDayTimetable(timedelta(hours=1)), utc("2026-12-23"), utc("2026-12-29"))
        assert times(found) == {
            "2026-12-23": "12-23T17:10+1100",
            "2026-12-24": "12-24T15:10+1100",
            "2026-12-29": "12-29T17:10+1100",
        }

    def test_a_fixed_time_holds_on_half_days_and_in_summer_time(self) -> None:
        found = runs(TradingDayTimetable(at=time(18, 30)), utc("2026-12-24"), utc("2026-12-24"))
        found += runs(TradingDayTimetable(at=time(18, 30)), utc("2026-07-01"), utc("2026-07-01"))
        assert times(found) == {"2026-12-24": "12-24T18:30+1100", "2026-07-01": "07-01T18:30+1000"}

    def test_further_closures_and_half_days(self) -> None:
        timetable = TradingDayTimetable(extra_closures=["2027-03-02"], extra_half_days=[date(2027, 3, 3)])
        found = runs(timetable, utc("2027-03-01"), utc("2027-03-03"))
        assert times(found) == {"2027-03-01": "03-01T16:30+1100", "2027-03-03": "03-03T14:30+1100"}

    @pytest.mark.parametrize("bound", [utc, sydney])
    def test_bounds_are_dates_in_sydney(self, bound) -> None:
        found = runs(TradingDayTimetable(), bound("2026-05-04"), bound("2026-05-05"))
        assert [session_of(run) for run in found] == ["2026-05-04", "2026-05-05"]

    def test_a_year_has_one_run_per_session(self) -> None:
        found = runs(TradingDayTimetable(), utc("2026-01-01"), utc("2026-12-31"))
        assert [session_of(run) for run in found] == [
            str(day) for day in ASX.sessions_in_range("2026-01-01", "2026-12-31")
        ]

    def test_the_calendar_ends(self) -> None:
        found = runs(TradingDayTimetable(), utc("2035-12-28"), utc("2099-01-01"))
        assert [session_of(run) for run in found] == ["2035-12-28", "2035-12-31"]


class TestWithoutCatchup:
    @pytest.mark.parametrize("start", [None, utc("1970-01-01"), utc("2026-01-01")])
    def test_the_first_run_is_of_the_last_session_that_has_ended(self, start: pendulum.DateTime | None) -> None:
        timetable = TradingDayTimetable()
        run = next_run(timetable, None, TimeRestriction(earliest=start, latest=None, catchup=False))
        now = pendulum.now("UTC")
        assert run.run_after <= now
        later = next_run(timetable, run, TimeRestriction(earliest=start, latest=None, catchup=False))
        assert session_of(later) == str(ASX.next_session(session_of(run)))
        assert later.run_after > now

    def test_missed_sessions_are_left_out(self) -> None:
        timetable = TradingDayTimetable()
        (last,) = runs(timetable, utc("2026-03-02"), utc("2026-03-02"))
        run = next_run(timetable, last, TimeRestriction(earliest=utc("2026-01-01"), latest=None, catchup=False))
        assert session_of(run) > "2026-03-03"
        assert pendulum.now("UTC") - run.run_after < timedelta(days=14)

    def test_a_start_in_the_future_is_waited_for(self) -> None:
        run = next_run(
            TradingDayTimetable(), None, TimeRestriction(earliest=utc("2034-07-01"), latest=None, catchup=False)
        )
        assert session_of(run) == "2034-07-03"

    def test_the_end_is_kept(self) -> None:
        restriction = TimeRestriction(earliest=None, latest=utc("2026-01-05"), catchup=False)
        assert next_run(TradingDayTimetable(), None, restriction) is None


class TestManualRuns:
    @pytest.mark.parametrize(
        ("moment", "session"),
        [
            ("2026-04-02T16:29", "2026-04-01"),
            ("2026-04-02T16:30", "2026-04-02"),
            ("2026-04-06T12:00", "2026-04-02"),
        ],
    )
    def test_the_data_interval_is_the_last_session_that_was_due(self, moment: str, session: str) -> None:
        interval = TradingDayTimetable().infer_manual_data_interval(run_after=sydney(moment))
        assert interval == DataInterval(sydney(session), sydney(session).add(days=1))


@pytest.mark.since("3.3")
class TestPartitions:
    def test_a_key_has_its_midnight_as_its_date(self) -> None:
        assert TradingDayTimetable().resolve_partition_date("2026-04-02") == datetime(2026, 4, 2, tzinfo=SYDNEY)

    def test_a_run_without_a_key_has_no_date(self) -> None:
        assert TradingDayTimetable().resolve_partition_date(None) is None

    @pytest.mark.parametrize(
        ("key", "message"),
        [
            ("2026-04-03", r"2026-04-03 \(Friday\) is not a trading day; the nearest are 2026-04-02 and 2026-04-07\."),
            ("2036-04-03", "2036-04-03 is outside the calendar"),
            ("April", "The partition key must be a date such as '2026-04-02', not 'April'."),
            ("2026-04-02T10:00", "The partition key must be a date such as '2026-04-02', not '2026-04-02T10:00'."),
            ("20260402", "The partition key must be a date such as '2026-04-02', not '20260402'."),
        ],
    )
    def test_a_key_that_is_no_session_is_refused(self, key: str, message: str) -> None:
        from airflow.exceptions import InvalidPartitionKeyError

        with pytest.raises(InvalidPartitionKeyError, match=message):
            TradingDayTimetable().resolve_partition_date(key)

    @pytest.mark.parametrize("bound", [utc, sydney])
    def test_a_backfill_of_april_has_twenty_runs(self, bound) -> None:
        found = list(
            TradingDayTimetable().iter_partition_dagrun_infos(earliest=bound("2026-04-01"), latest=bound("2026-04-30"))
        )
        assert [run.partition_key for run in found] == [
            str(day) for day in ASX.sessions_in_range("2026-04-01", "2026-04-30")
        ]
        assert len(found) == 20
        assert found == runs(TradingDayTimetable(), bound("2026-04-01"), bound("2026-04-30"))

    def test_a_backfill_leaves_sessions_that_have_not_ended_to_the_schedule(self) -> None:
        now = datetime.now(UTC)
        found = list(
            TradingDayTimetable().iter_partition_dagrun_infos(
                earliest=now - timedelta(days=14), latest=now + timedelta(days=14)
            )
        )
        assert found
        assert all(run.run_after <= now for run in found)

    def test_bounds_of_filters_are_dates_in_sydney(self) -> None:
        expected = datetime(2026, 4, 2, tzinfo=SYDNEY)
        assert TradingDayTimetable().localize_partition_datetime(utc("2026-04-02")) == expected
        assert TradingDayTimetable().localize_partition_datetime(sydney("2026-04-02T23:59")) == expected

    def test_the_run_id_names_the_session_and_is_new_each_time(self) -> None:
        from airflow.utils.types import DagRunType

        def run_id() -> str:
            return TradingDayTimetable().generate_run_id(
                run_type=DagRunType.BACKFILL_JOB,
                run_after=utc("2026-04-02T05:30"),
                data_interval=None,
                partition_key="2026-04-02",
            )

        assert run_id().startswith("backfill__2026-04-02__")
        assert run_id() != run_id()

    def test_after_another_schedule_the_next_session_follows(self) -> None:
        daily = DagRunInfo.interval(utc("2026-04-01"), utc("2026-04-02"))
        run = next_run(TradingDayTimetable(), daily, TimeRestriction(utc("2026-01-01"), None, catchup=True))
        assert run.partition_key == "2026-04-02"


class TestParameters:
    @pytest.mark.parametrize(
        "timetable",
        [
            TradingDayTimetable(),
            TradingDayTimetable(timedelta(hours=1, seconds=30)),
            TradingDayTimetable(at=time(18, 30)),
            TradingDayTimetable(extra_closures="2027-03-02", extra_half_days=["2027-03-03", "2027-03-04"]),
        ],
    )
    def test_airflow_stores_them_with_the_dag(self, timetable: TradingDayTimetable) -> None:
        encoders = moved("airflow.serialization.encoders", "airflow.serialization.serialized_objects")
        decoders = moved("airflow.serialization.decoders", "airflow.serialization.serialized_objects")
        again = decoders.decode_timetable(json.loads(json.dumps(encoders.encode_timetable(timetable))))
        assert again.serialize() == timetable.serialize()
        start, end = utc("2027-03-01"), utc("2027-03-05")
        assert runs(again, start, end) == runs(timetable, start, end)

    def test_a_closure_that_the_calendar_has_learned_is_harmless(self) -> None:
        timetable = TradingDayTimetable(extra_closures=["2022-09-22"])
        assert times(runs(timetable, utc("2022-09-22"), utc("2022-09-22"))) == {}

    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"after_close": timedelta(minutes=-1)}, "after_close must be a timedelta of 0 or more"),
            ({"after_close": 20}, "after_close must be a timedelta of 0 or more, not 20."),
            (
                {"after_close": timedelta(hours=1), "at": time(18)},
                "after_close can't be used with at; remove one of them.",
            ),
            ({"at": "18:00"}, "at must be a time in Sydney"),
            ({"at": time(18, tzinfo=UTC)}, "at must be a time in Sydney"),
            ({"at": time(18, 0, 1)}, "at must be a time in Sydney"),
            ({"extra_closures": ["2027-03-06"]}, "extra_closures: 2027-03-06 is not a trading day"),
        ],
    )
    def test_wrong_ones_are_refused(self, parameters: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            TradingDayTimetable(**parameters)

    def test_the_summary_tells_when(self) -> None:
        assert TradingDayTimetable().summary == "Trading days, 20 min after the close"
        assert TradingDayTimetable(at=time(18, 30)).summary == "Trading days, 18:30"
