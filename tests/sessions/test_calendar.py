"""The exchange's calendar, judged by two independent ones and by a table."""

from __future__ import annotations

import warnings
from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

import pendulum
import pytest

from openmarkets_provider.sessions.calendar import ASX, SessionCalendar, has_session, to_day
from openmarkets_provider.sessions.rules import closures, half_days

FIRST, LAST = date(2001, 1, 1), date(2035, 12, 31)
YEARS = range(FIRST.year, LAST.year + 1)
SYDNEY = ZoneInfo("Australia/Sydney")

# Weekdays only.
CLOSED = {
    2015: "01-01 01-26 04-03 04-06 06-08 12-25 12-28",
    2020: "01-01 01-27 04-10 04-13 06-08 12-25 12-28",
    2021: "01-01 01-26 04-02 04-05 06-14 12-27 12-28",
    2022: "01-03 01-26 04-15 04-18 04-25 06-13 09-22 12-26 12-27",
    2025: "01-01 01-27 04-18 04-21 04-25 06-09 12-25 12-26",
    2026: "01-01 01-26 04-03 04-06 06-08 12-25 12-28",
    2027: "01-01 01-26 03-26 03-29 06-14 12-27 12-28",
    2028: "01-03 01-26 04-14 04-17 04-25 06-12 12-25 12-26",
}
SHIFTED_AFTER_2021 = {
    date(year, 12, day)
    for year, days in {2023: (22, 29), 2028: (22, 29), 2033: (23, 30), 2034: (22, 29)}.items()
    for day in days
}
"""Half days of exchange_calendars in years whose 24 and 31 December are on a weekend. The later close counts here."""


def _all_half_days() -> set[date]:
    return {day for year in YEARS for day in half_days(year)}


class TestJudges:
    def test_the_sessions_of_exchange_calendars(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import exchange_calendars

            theirs = exchange_calendars.get_calendar("XASX", start=FIRST.isoformat(), end=LAST.isoformat())
        assert ASX.sessions_in_range(FIRST, LAST) == [session.date() for session in theirs.sessions]

        early = {session.date() for session in theirs.early_closes}
        # It has no half days before 2010.
        ours = {day for day in _all_half_days() if day.year >= 2010}
        assert early - ours == SHIFTED_AFTER_2021
        assert ours - early == set()

    def test_the_holidays_of_holidays(self) -> None:
        import holidays

        closed = holidays.financial_holidays("XASX", years=YEARS)
        weekdays = {day for day in closed if day.weekday() < 5}
        assert weekdays == {day for year in YEARS for day in closures(year)}

        early = holidays.financial_holidays("XASX", years=YEARS, categories=("half_day",))
        assert set(early) == _all_half_days()

    @pytest.mark.parametrize("year", CLOSED)
    def test_the_closures_of_a_year(self, year: int) -> None:
        assert sorted(closures(year)) == [date.fromisoformat(f"{year}-{day}") for day in CLOSED[year].split()]


class TestDays:
    @pytest.mark.parametrize(
        ("first", "last", "days"),
        [
            ("2025-12-24", "2026-01-02", ["2025-12-24", "2025-12-29", "2025-12-30", "2025-12-31", "2026-01-02"]),
            ("2026-04-01", "2026-04-10", [f"2026-04-{day:02}" for day in (1, 2, 7, 8, 9, 10)]),
            ("2026-01-02", "2026-01-02", ["2026-01-02"]),
            ("2026-01-01", "2026-01-01", []),
            ("2026-01-06", "2026-01-05", []),
            ("2027-01-04", "2026-12-31", []),
        ],
    )
    def test_both_ends_of_a_range_belong_to_it(self, first: str, last: str, days: list[str]) -> None:
        assert [day.isoformat() for day in ASX.sessions_in_range(first, last)] == days
        assert ASX.count_sessions(first, last) == len(days)

    @pytest.mark.parametrize(
        ("day", "before", "after"),
        [
            ("2026-01-06", "2026-01-05", "2026-01-07"),
            ("2026-01-05", "2026-01-02", "2026-01-06"),
            ("2026-01-01", "2025-12-31", "2026-01-02"),
            ("2026-04-05", "2026-04-02", "2026-04-07"),
            ("2022-09-22", "2022-09-21", "2022-09-23"),
        ],
    )
    def test_the_sessions_around_a_day(self, day: str, before: str, after: str) -> None:
        assert ASX.previous_session(day).isoformat() == before
        assert ASX.next_session(day).isoformat() == after

    @pytest.mark.parametrize(
        ("count", "day"), [(0, "2026-04-02"), (1, "2026-04-07"), (3, "2026-04-09"), (-2, "2026-03-31")]
    )
    def test_an_offset_counts_sessions(self, count: int, day: str) -> None:
        assert ASX.session_offset("2026-04-02", count).isoformat() == day

    @pytest.mark.parametrize(
        "form",
        [
            date(2026, 4, 2),
            "2026-04-02",
            " 2026-04-02 ",
            datetime(2026, 4, 1, 13, tzinfo=UTC),  # midnight in Sydney
            "2026-04-02T12:59:59+00:00",  # one second before the next one
            pendulum.datetime(2026, 4, 2, 16, 10, tz="Australia/Sydney"),
            pendulum.date(2026, 4, 2),
            datetime(2026, 4, 2, 23),  # noqa: DTZ001 - exchange time
        ],
    )
    def test_every_form_of_a_day_means_its_date_in_sydney(self, form: date | str) -> None:
        assert to_day(form) == date(2026, 4, 2)
        assert type(to_day(form)) is not datetime

    @pytest.mark.parametrize("value", ["tomorrow", "", 20260402, None, "1999-12-31", date(2036, 1, 1)])
    def test_what_is_no_day_of_the_calendar_is_refused(self, value: object) -> None:
        with pytest.raises(ValueError, match=r"2026-04-02|2000 to 2035"):
            ASX.is_session(value)  # type: ignore[arg-type]

    def test_outside_the_calendar_there_may_be_sessions(self) -> None:
        assert has_session(date(1999, 12, 31), date(1999, 12, 31))
        assert has_session(date(2036, 1, 1), date(2036, 1, 1))
        assert not has_session(date(2026, 4, 3), date(2026, 4, 6))
        assert has_session(date(2026, 4, 3), date(2026, 4, 7))


class TestTimes:
    @pytest.mark.parametrize(
        ("session", "opens", "closes"),
        [
            ("2026-04-02", "2026-04-01T23:00:00+00:00", "2026-04-02T05:10:00+00:00"),  # summer time
            ("2026-04-07", "2026-04-07T00:00:00+00:00", "2026-04-07T06:10:00+00:00"),
            ("2026-12-24", "2026-12-23T23:00:00+00:00", "2026-12-24T03:10:00+00:00"),  # a half day
        ],
    )
    def test_open_and_close(self, session: str, opens: str, closes: str) -> None:
        assert ASX.session_open(session) == datetime.fromisoformat(opens)
        assert ASX.session_close(session) == datetime.fromisoformat(closes)
        assert ASX.session_close(session).timezone_name == "Australia/Sydney"

    def test_a_day_without_trading_has_no_times(self) -> None:
        for method in (ASX.session_open, ASX.session_close, ASX.is_half_day):
            with pytest.raises(ValueError, match="nearest are 2026-04-02 and 2026-04-07"):
                method("2026-04-03")


class TestExtras:
    CALENDAR = SessionCalendar.with_extras(["2027-03-02"], "2027-03-03")

    def test_a_further_closure_is_no_session(self) -> None:
        assert not self.CALENDAR.is_session("2027-03-02")
        assert self.CALENDAR.next_session("2027-03-01") == date(2027, 3, 3)
        assert self.CALENDAR.sessions_in_range("2027-03-01", "2027-03-03") == [date(2027, 3, 1), date(2027, 3, 3)]
        assert ASX.is_session("2027-03-02")

    def test_a_further_half_day_closes_early(self) -> None:
        assert self.CALENDAR.session_close("2027-03-03").hour == 14
        assert ASX.session_close("2027-03-03").hour == 16

    @pytest.mark.parametrize("argument", ["extra_closures", "extra_half_days"])
    def test_a_day_that_changes_nothing_is_refused(self, argument: str) -> None:
        with pytest.raises(ValueError, match=f"{argument}: 2027-03-06 is not a trading day"):
            SessionCalendar.with_extras(**{argument: ["2027-03-06"]})
