"""The time of the sandbox."""

from __future__ import annotations

from datetime import datetime

from openmarkets_provider.sessions.calendar import EXCHANGE_ZONE

YEARS = 2001, 2099


class Clock:
    """Exchange time: the real time, or a fixed time that a user set."""

    def __init__(self, first: datetime | None = None) -> None:
        """Start with a fixed time with a zone, or with the real time."""
        self._first = self._set = _check(first)

    def set(self, now: datetime | None) -> None:
        """Set a fixed time with a zone, or None for the real time.

        :raises ValueError: the time has no zone, or is out of range.
        """
        self._set = _check(now)

    def reset(self) -> None:
        """Restore the time at the start."""
        self._set = self._first

    def now(self) -> datetime:
        """Return the current time, in the exchange's zone."""
        return self._set or datetime.now(EXCHANGE_ZONE)

    def exchange_time(self) -> datetime:
        """Return the current exchange time, without an offset."""
        return self.now().replace(tzinfo=None)


def parse(text: object) -> datetime | None:
    """Parse an ISO 8601 time; None for None.

    :raises ValueError: it is not an ISO 8601 time with an offset, or is out of range.
    """
    try:
        now: object = datetime.fromisoformat(str(text))
    except ValueError:
        now = text
    return _check(now)


def _check(now: object) -> datetime | None:
    if now is None:
        return None
    if not isinstance(now, datetime) or now.utcoffset() is None:
        raise ValueError(
            "now must have a time zone, such as datetime(2026, 3, 5, 10, 30, tzinfo=ZoneInfo('Australia/Sydney')) "
            f"or 2026-03-05T10:30:00+11:00; it is {now!r}"
        )
    if not YEARS[0] <= now.year <= YEARS[1]:
        raise ValueError(f"now must be in the years {YEARS[0]} to {YEARS[1]}; it is {now}")
    return now.astimezone(EXCHANGE_ZONE)
