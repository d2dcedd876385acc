"""The days on which the exchange trades, against a table of those on which it was or is to be closed."""

from __future__ import annotations

from datetime import date, timedelta

import pytest

from openmarkets_provider.sandbox.trading_days import closures, is_trading_day, trading_day_before, trading_days

# weekdays only; checked against the XASX calendar of exchange_calendars 4.13.2, as were 2000 to 2014
CLOSED = {
    2015: "01-01 01-26 04-03 04-06 06-08 12-25 12-28",
    2016: "01-01 01-26 03-25 03-28 04-25 06-13 12-26 12-27",
    2017: "01-02 01-26 04-14 04-17 04-25 06-12 12-25 12-26",
    2018: "01-01 01-26 03-30 04-02 04-25 06-11 12-25 12-26",
    2019: "01-01 01-28 04-19 04-22 04-25 06-10 12-25 12-26",
    2020: "01-01 01-27 04-10 04-13 06-08 12-25 12-28",
    2021: "01-01 01-26 04-02 04-05 06-14 12-27 12-28",
    2022: "01-03 01-26 04-15 04-18 04-25 06-13 09-22 12-26 12-27",
    2023: "01-02 01-26 04-07 04-10 04-25 06-12 12-25 12-26",
    2024: "01-01 01-26 03-29 04-01 04-25 06-10 12-25 12-26",
    2025: "01-01 01-27 04-18 04-21 04-25 06-09 12-25 12-26",
    2026: "01-01 01-26 04-03 04-06 06-08 12-25 12-28",
    2027: "01-01 01-26 03-26 03-29 06-14 12-27 12-28",
    2028: "01-03 01-26 04-14 04-17 04-25 06-12 12-25 12-26",
    2029: "01-01 01-26 03-30 04-02 04-25 06-11 12-25 12-26",
    2030: "01-01 01-28 04-19 04-22 04-25 06-10 12-25 12-26",
}


@pytest.mark.parametrize("year", CLOSED)
def test_the_closures_of_a_year(year: int) -> None:
    assert sorted(closures(year)) == [date.fromisoformat(f"{year}-{day}") for day in CLOSED[year].split()]


@pytest.mark.parametrize(
    ("day", "reason"),
    [
        ("2000-01-03", "New Year's Day was a Saturday"),
        ("2004-12-28", "Christmas Day and Boxing Day were on a weekend"),
        ("2010-04-26", "Anzac Day was a Sunday, and this once Monday stood in for it"),
        ("2011-04-26", "Anzac Day was Easter Monday"),
    ],
)
def test_closures_before_the_table(day: str, reason: str) -> None:
    assert not is_trading_day(date.fromisoformat(day)), reason


@pytest.mark.parametrize("day", ["2004-04-26", "2009-04-27", "2015-04-27", "2021-04-26", "2026-04-27", "2027-04-26"])
def test_the_monday_after_an_anzac_day_on_a_weekend_is_traded_on(day: str) -> None:
    assert is_trading_day(date.fromisoformat(day))


def test_a_year_has_its_weekdays_without_the_closures() -> None:
    for year in CLOSED:
        first, last = date(year, 1, 1), date(year, 12, 31)
        every = [first + timedelta(days=number) for number in range((last - first).days + 1)]
        closed = {date.fromisoformat(f"{year}-{day}") for day in CLOSED[year].split()}
        assert list(trading_days(first, last)) == [day for day in every if day.weekday() < 5 and day not in closed]


@pytest.mark.parametrize(
    ("first", "last", "days"),
    [
        ("2025-12-24", "2026-01-02", ["2025-12-24", "2025-12-29", "2025-12-30", "2025-12-31", "2026-01-02"]),
        ("2026-01-02", "2026-01-02", ["2026-01-02"]),
        ("2026-01-01", "2026-01-01", []),
        ("2026-01-03", "2026-01-04", []),
        ("2026-01-06", "2026-01-05", []),
        ("2027-01-04", "2026-12-31", []),
    ],
)
def test_both_ends_of_a_range_belong_to_it(first: str, last: str, days: list[str]) -> None:
    found = trading_days(date.fromisoformat(first), date.fromisoformat(last))
    assert [day.isoformat() for day in found] == days


@pytest.mark.parametrize(
    ("day", "before"),
    [
        ("2026-01-06", "2026-01-05"),
        ("2026-01-05", "2026-01-02"),
        ("2026-01-02", "2025-12-31"),
        ("2026-04-07", "2026-04-02"),
        ("2011-04-27", "2011-04-21"),
        ("2022-09-23", "2022-09-21"),
    ],
)
def test_the_trading_day_before(day: str, before: str) -> None:
    assert trading_day_before(date.fromisoformat(day)).isoformat() == before
