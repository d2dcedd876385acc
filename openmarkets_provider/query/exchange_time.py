"""Exchange time: turn the bounds of a query into the range of each call. Pure.

A range is half-open, [start, end). The API takes exchange time without an offset (Australia/Sydney). Whether it
includes the end of a range is not known, so rows outside the range of the query are dropped afterwards.

For bars, a bound means the bar that contains it: the range starts with the bar of ``start`` and ends before the bar of
``end``. Consecutive ranges therefore share no bar, skip none, and contain only complete bars.

When clocks go back in April, one hour of exchange time occurs twice: a time in it without an offset means the first
occurrence (daylight-saving time). When clocks go forward in October, one hour does not exist: a time in it means the
time one hour later.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import lru_cache
from typing import Any, Generic, NamedTuple, TypeVar

from openmarkets_provider.sessions.calendar import EXCHANGE_ZONE

_EARLIEST, _LATEST = datetime(1900, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
_MIDNIGHT = time()
_SATURDAY = 5
_Bound = TypeVar("_Bound", bound=date)


class Span(NamedTuple, Generic[_Bound]):
    """The range of one call: two exchange times without an offset, or two exchange dates. The end is excluded."""

    start: _Bound
    end: _Bound

    def __str__(self) -> str:
        return f"{self.start.isoformat()} to {self.end.isoformat()}"


def to_text(value: Any) -> Any:
    """Turn a date or a datetime, pendulum's too, into ISO 8601 text; leave anything else as it is."""
    return value.isoformat() if isinstance(value, date) else value


def read_moment(text: str) -> datetime:
    """Read an ISO 8601 date or time as UTC; without an offset it is exchange time, and a date is its midnight.

    :raises ValueError: it is neither, or is outside the years 1900 to 2199.
    """
    try:
        moment = to_utc(datetime.fromisoformat(text.strip()))
    except OverflowError:
        moment = _LATEST
    if not _EARLIEST <= moment < _LATEST:
        raise ValueError(f"{text!r} is outside the years 1900 to 2199")
    return moment


def to_utc(moment: datetime, zone: tzinfo = EXCHANGE_ZONE) -> datetime:
    """Convert a time to UTC; without an offset it is a time of the zone."""
    return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).astimezone(UTC)


def settle(moment: datetime | None, gmt: datetime | None) -> datetime | None:
    """Decide which occurrence an exchange time means in the hour that the clock repeats in April.

    :param moment: an exchange time, read as the first occurrence; aware.
    :param gmt: the same time by another field, in UTC; aware.
    :return: ``moment``, or one hour later if that is nearer to ``gmt`` and the same exchange time.
    """
    if moment is None or gmt is None or moment == gmt:
        return moment
    later = moment + timedelta(hours=1)
    is_repeated = _wall_time(later) == _wall_time(moment)
    return later if is_repeated and abs(later - gmt) < abs(moment - gmt) else moment


def _wall_time(moment: datetime) -> datetime:
    return moment.astimezone(EXCHANGE_ZONE).replace(tzinfo=None, fold=0)


def exchange_date(moment: datetime) -> date:
    """Return the exchange's date at a moment."""
    return moment.astimezone(EXCHANGE_ZONE).date()


def day_of(moment: date) -> date:
    """Return the exchange date of a row's date or time; fast for many rows.

    :param moment: an exchange date, or an aware time.
    """
    if not isinstance(moment, datetime):
        return moment
    # Sydney's midnight is on a full hour of UTC.
    return _day_at(moment.replace(minute=0, second=0, microsecond=0))


@lru_cache(maxsize=4096)
def _day_at(hour: datetime) -> date:
    return exchange_date(hour)


def first_of_week(day: date) -> date:
    """Return the Saturday that begins the week of a day. A week then contains its five exchange days."""
    return day - timedelta(days=(day.weekday() - _SATURDAY) % 7)


def floor(moment: datetime, minutes: int) -> datetime:
    """Return the start of the bar that contains a moment.

    :param minutes: length of a bar; a divisor of 60.
    """
    return moment - (moment - _EARLIEST) % timedelta(minutes=minutes)


def exchange_span(start: datetime, end: datetime) -> Span[datetime]:
    """Return a range in exchange time, widened to whole seconds.

    :param start: aware.
    :param end: aware.
    """
    first, last = start.astimezone(EXCHANGE_ZONE), end.astimezone(EXCHANGE_ZONE)
    # An end in the second occurrence of an hour is after the whole first one, which has the same exchange times.
    widened = timedelta(hours=last.fold, microseconds=-last.microsecond % 1_000_000)
    return Span(first.replace(tzinfo=None, fold=0, microsecond=0), last.replace(tzinfo=None, fold=0) + widened)


def split(span: Span[datetime], days: int) -> Iterator[Span[datetime]]:
    """Split a span at midnight, into pieces of at most ``days`` exchange days."""
    start = span.start
    while start < span.end:
        end = min(datetime.combine(start.date() + timedelta(days=days), _MIDNIGHT), span.end)
        yield Span(start, end)
        start = end
