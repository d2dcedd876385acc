"""The days on which the ASX trades, by rule.

The rules give the days on which the exchange was closed from 2000 on and those that it is to be closed on until
2030; a closure that is yet to be decreed is in no rule. Days on which it closes early count as whole ones.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from datetime import date, timedelta
from functools import lru_cache

_DAY = timedelta(days=1)
_MONDAY, _SATURDAY = 0, 5

# what no rule gives
_SPECIAL_CLOSURES = (
    date(2010, 4, 26),  # for Anzac Day, a Sunday
    date(2011, 4, 26),  # for Anzac Day, which was Easter Monday
    date(2022, 9, 22),  # National Day of Mourning
)


@lru_cache(maxsize=128)
def closures(year: int) -> frozenset[date]:
    """Return the weekdays of a year on which the exchange is closed."""
    good_friday = _easter_sunday(year) - 2 * _DAY
    days = {
        _first_weekday(date(year, 1, 1)),
        _first_weekday(date(year, 1, 26)),
        good_friday,
        good_friday + 3 * _DAY,
        _kings_birthday(year),
        christmas := _first_weekday(date(year, 12, 25)),
        _first_weekday(max(christmas + _DAY, date(year, 12, 26))),
        *(day for day in _SPECIAL_CLOSURES if day.year == year),
    }
    anzac_day = date(year, 4, 25)
    # nothing stands in for it when it is on a weekend
    return frozenset(days | {anzac_day} if anzac_day.weekday() < _SATURDAY else days)


def is_trading_day(day: date) -> bool:
    """Whether the exchange trades on a day."""
    return day.weekday() < _SATURDAY and day not in closures(day.year)


def trading_days(first: date, last: date) -> Iterator[date]:
    """Yield the trading days from first to last, both included."""
    for year in range(first.year, last.year + 1):
        days = _of_year(year)
        yield from days[bisect_left(days, first) : bisect_right(days, last)]


def trading_day_before(day: date) -> date:
    """Return the last trading day before a day."""
    day -= _DAY
    while not is_trading_day(day):
        day -= _DAY
    return day


@lru_cache(maxsize=128)
def _of_year(year: int) -> tuple[date, ...]:
    first, last = date(year, 1, 1).toordinal(), date(year, 12, 31).toordinal()
    return tuple(filter(is_trading_day, map(date.fromordinal, range(first, last + 1))))


def _first_weekday(day: date) -> date:
    """Return the day, or the Monday after it when it is on a weekend."""
    return day + (7 - day.weekday()) * _DAY if day.weekday() >= _SATURDAY else day


def _kings_birthday(year: int) -> date:
    """Return the second Monday of June."""
    eighth = date(year, 6, 8)
    return eighth + (_MONDAY - eighth.weekday()) % 7 * _DAY


def _easter_sunday(year: int) -> date:
    """Return Easter Sunday of the Gregorian calendar, by the anonymous algorithm of 1876."""
    century, of_century = divmod(year, 100)
    golden = year % 19
    epact = (19 * golden + century - century // 4 - (century - (century + 8) // 25 + 1) // 3 + 15) % 30
    weekday = (32 + 2 * (century % 4) + 2 * (of_century // 4) - epact - of_century % 4) % 7
    month, day = divmod(epact + weekday - 7 * ((golden + 11 * epact + 22 * weekday) // 451) + 114, 31)
    return date(year, month, day + 1)
