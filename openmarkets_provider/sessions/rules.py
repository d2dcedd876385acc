"""The rules of the exchange's calendar: the weekdays on which it is closed or closes early.

Sources: the exchange's trading calendars of 2003 to 2026, as the ``holidays`` package cites them. The tests compare
all years with ``holidays`` and ``exchange_calendars``, which disagree about half days: see :func:`half_days`.
"""

from __future__ import annotations

from datetime import date, timedelta
from functools import lru_cache

_DAY = timedelta(days=1)
_MONDAY, _SATURDAY = 0, 5

# Closures that follow no rule.
_SPECIAL_CLOSURES = (
    date(2010, 4, 26),  # for Anzac Day, a Sunday
    date(2011, 4, 26),  # for Anzac Day, which was Easter Monday
    date(2022, 9, 22),  # National Day of Mourning
)
_SPECIAL_HALF_DAYS = (date(2004, 1, 2),)
_LAST_EASTER_THURSDAY = 2008
_LAST_SHIFTED_HALF_DAYS = 2021


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
    # On a weekend it has no substitute.
    return frozenset(days | {anzac_day} if anzac_day.weekday() < _SATURDAY else days)


@lru_cache(maxsize=128)
def half_days(year: int) -> frozenset[date]:
    """Return the trading days of a year on which the exchange closes early.

    They are 24 and 31 December. Up to 2021, the Friday before replaced them on a weekend. Since 2022 nothing replaces
    them: the exchange had full sessions on 23 and 30 December 2022. ``exchange_calendars`` treats 2022 as an exception
    and has half days on 22 and 29 December of 2023 and 2028, and on such Fridays of 2033 and 2034. If the sources
    disagree, the later close counts, so that a task that waits for it does not run too early.
    """
    eves = [date(year, 12, 24), date(year, 12, 31)]
    if year <= _LAST_SHIFTED_HALF_DAYS:
        eves = [_last_weekday(eve) for eve in eves]
    days = {eve for eve in eves if eve.weekday() < _SATURDAY}
    days.update(day for day in _SPECIAL_HALF_DAYS if day.year == year)
    return frozenset(days | {_easter_sunday(year) - 3 * _DAY} if year <= _LAST_EASTER_THURSDAY else days)


def _first_weekday(day: date) -> date:
    """Return the day, or the Monday after it if it is on a weekend."""
    return day + (7 - day.weekday()) * _DAY if day.weekday() >= _SATURDAY else day


def _last_weekday(day: date) -> date:
    """Return the day, or the Friday before it if it is on a weekend."""
    return day - max(day.weekday() - _SATURDAY + 1, 0) * _DAY


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
