"""The exchange's calendar: its sessions, when they open and close, and how to count them.

A session is one trading day, named by its date in Sydney. The methods have the names of ``exchange_calendars``::

    from openmarkets_provider.sessions.calendar import ASX

    ASX.sessions_in_range("2026-04-01", "2026-04-10")  # six dates, without Good Friday and Easter Monday
    ASX.session_close("2026-12-24")  # 14:10, a half day
    ASX.previous_session("2026-04-07")  # 2 April

Every function takes a day as a date, a datetime or ISO 8601 text. An aware datetime means its date in Sydney.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from openmarkets_provider.sessions.rules import closures, half_days

if TYPE_CHECKING:
    from pendulum import DateTime

ZONE_NAME = "Australia/Sydney"
EXCHANGE_ZONE = ZoneInfo(ZONE_NAME)
FIRST_YEAR, LAST_YEAR = 2000, 2035
OPEN_TIME, CLOSE_TIME, EARLY_CLOSE_TIME = time(10), time(16, 10), time(14, 10)
"""Exchange times: the start of trading, and the end of the closing auction on full and on half days."""
Day = date | str
"""A date, a datetime, or ISO 8601 text."""
_DAY = timedelta(days=1)
_SATURDAY = 5


@dataclass(frozen=True)
class SessionCalendar:
    """The sessions of the exchange in the years 2000 to 2035.

    :param extra_closures: further weekdays on which the exchange is closed.
    :param extra_half_days: further sessions that close at 14:10.
    """

    extra_closures: frozenset[date] = frozenset()
    extra_half_days: frozenset[date] = frozenset()

    @classmethod
    def with_extras(cls, extra_closures: Iterable[Day] = (), extra_half_days: Iterable[Day] = ()) -> SessionCalendar:
        """Return the calendar with further closures and half days.

        :raises ValueError: a day is malformed or outside the calendar, a closure is on a weekend, or a half day is not
            a session.
        """
        closed, half = (frozenset(map(to_day, _many(days))) for days in (extra_closures, extra_half_days))
        # A weekday that the rules already have is allowed: a later version of the rules may have added it.
        wrong = {
            "extra_closures": [day for day in closed if day.weekday() >= _SATURDAY],
            "extra_half_days": [day for day in half - closed if not ASX.is_session(day)],
        }
        for argument, days in wrong.items():
            if days:
                raise ValueError(f"{argument}: {min(days)} is not a trading day anyway; remove it.")
        return cls(closed, half - closed)

    def is_session(self, day: Day) -> bool:
        """Tell whether the exchange trades on a day.

        :raises ValueError: the day is malformed, or outside the years 2000 to 2035. All other methods raise it, too.
        """
        day = to_day(day)
        return day.weekday() < _SATURDAY and day not in closures(day.year) and day not in self.extra_closures

    def sessions_in_range(self, start: Day, end: Day) -> Sequence[date]:
        """Return the sessions from start to end, both included, in order."""
        return self.sessions_between(to_day(start), to_day(end))

    def sessions_between(self, first: date, last: date) -> Sequence[date]:
        """Return the sessions from first to last, both included, in order. Dates may be outside the calendar."""
        years = range(max(first.year, FIRST_YEAR), min(last.year, LAST_YEAR) + 1)
        return [day for year in years for day in _between(self._sessions_of(year), first, last)]

    def count_sessions(self, start: Day, end: Day) -> int:
        """Return the number of sessions from start to end, both included."""
        return len(self.sessions_in_range(start, end))

    def next_session(self, day: Day) -> date:
        """Return the first session after a day."""
        return self._step(to_day(day), _DAY)

    def previous_session(self, day: Day) -> date:
        """Return the last session before a day."""
        return self._step(to_day(day), -_DAY)

    def session_offset(self, session: Day, count: int) -> date:
        """Return the session that is ``count`` sessions after a session, or before it if ``count`` is negative.

        :raises ValueError: ``session`` is not a session.
        """
        day = self.check_session(session)
        for _ in range(abs(count)):
            day = self._step(day, _DAY if count > 0 else -_DAY)
        return day

    def is_half_day(self, session: Day) -> bool:
        """Tell whether a session closes at 14:10 instead of 16:10.

        :raises ValueError: ``session`` is not a session.
        """
        day = self.check_session(session)
        return day in half_days(day.year) or day in self.extra_half_days

    def session_open(self, session: Day) -> DateTime:
        """Return when trading in a session starts, 10:00: an aware pendulum datetime in Sydney.

        :raises ValueError: ``session`` is not a session.
        """
        return at(self.check_session(session), OPEN_TIME)

    def session_close(self, session: Day) -> DateTime:
        """Return when a session's closing auction ends, 16:10 or 14:10: an aware pendulum datetime in Sydney.

        :raises ValueError: ``session`` is not a session.
        """
        return at(self.check_session(session), EARLY_CLOSE_TIME if self.is_half_day(session) else CLOSE_TIME)

    def check_session(self, day: Day) -> date:
        """Return the date of a session, in any form of a day.

        :raises ValueError: the exchange does not trade on that day.
        """
        day = to_day(day)
        if not self.is_session(day):
            raise ValueError(
                f"{day} ({day:%A}) is not a trading day; the nearest are {self.previous_session(day)} and "
                f"{self.next_session(day)}."
            )
        return day

    def _step(self, day: date, step: timedelta) -> date:
        day += step
        while not self.is_session(day):
            day += step
        return day

    def _sessions_of(self, year: int) -> Sequence[date]:
        days = _regular_sessions(year)
        return [day for day in days if day not in self.extra_closures] if self.extra_closures else days


ASX = SessionCalendar()
"""The calendar by the rules, without further closures."""


def to_day(day: Day) -> date:
    """Return the exchange date of a day in any form.

    :raises ValueError: it is malformed, or outside the years 2000 to 2035.
    """
    if isinstance(day, str):
        try:
            day = datetime.fromisoformat(day.strip())
        except ValueError:
            raise ValueError(f"expected a date such as '2026-04-02', not {day!r:.100}.") from None
    if not isinstance(day, date):
        raise ValueError(f"expected a date such as '2026-04-02', not a value of type {type(day).__name__}.")
    if isinstance(day, datetime):
        day = (day.astimezone(EXCHANGE_ZONE) if day.tzinfo else day).date()
    if not FIRST_YEAR <= day.year <= LAST_YEAR:
        raise ValueError(
            f"{day} is outside the calendar, which has the years {FIRST_YEAR} to {LAST_YEAR}. A later version of "
            "this package may have more years."
        )
    return day


def has_session(first: date, last: date) -> bool:
    """Tell whether there may be a session from first to last, both included. Outside the calendar it is True."""
    if first.year < FIRST_YEAR or last.year > LAST_YEAR:
        return True
    return any(_between(_regular_sessions(year), first, last) for year in range(first.year, last.year + 1))


def at(day: date, wall_time: time = time()) -> DateTime:
    """Return an exchange time of a day: an aware pendulum datetime in Sydney."""
    import pendulum

    return pendulum.datetime(day.year, day.month, day.day, wall_time.hour, wall_time.minute, tz=ZONE_NAME)


def _many(days: Iterable[Day]) -> Iterable[Day]:
    return [days] if isinstance(days, date | str) else days


def _between(days: Sequence[date], first: date, last: date) -> Sequence[date]:
    return days[bisect_left(days, first) : bisect_right(days, last)]


@lru_cache(maxsize=128)
def _regular_sessions(year: int) -> tuple[date, ...]:
    first, last = date(year, 1, 1).toordinal(), date(year, 12, 31).toordinal()
    return tuple(
        day
        for day in map(date.fromordinal, range(first, last + 1))
        if day.weekday() < _SATURDAY and day not in closures(year)
    )
