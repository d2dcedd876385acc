"""Ranges of time: from what a DAG author writes to the pieces that the API is asked for. Pure.

A range is half-open, [start, end). The API takes exchange time without an offset (Australia/Sydney), and it is not
known whether the end that it is given belongs to a range: rows outside of ours are dropped afterwards.

Of bars, a bound means the bar that it is in: the first one, and the one after the last. So ranges that follow each
other share no bar, leave none out, and hold whole ones alone.

Where the clock goes back in April an exchange time happens twice: without an offset it means the first of the two
(daylight-saving time). Where it goes forward in October an hour is missing: a time in it is counted with the
offset before the change, so it means the time one hour later.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Any, Generic, NamedTuple, TypeVar
from zoneinfo import ZoneInfo

EXCHANGE_ZONE = ZoneInfo("Australia/Sydney")
_EARLIEST, _LATEST = datetime(1900, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
_MIDNIGHT = time()
SATURDAY = 5


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

    :raises ValueError: it is none, or lies outside of the years 1900 to 2199.
    """
    try:
        moment = to_utc(datetime.fromisoformat(text.strip()))
    except OverflowError:
        moment = _LATEST
    if not _EARLIEST <= moment < _LATEST:
        raise ValueError(f"{text!r} is not in the years 1900 to 2199")
    return moment


def to_utc(moment: datetime, zone: tzinfo = EXCHANGE_ZONE) -> datetime:
    """Turn a time, one of the zone where it has no offset, into UTC."""
    return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).astimezone(UTC)


def exchange_date(moment: datetime) -> date:
    """Return the exchange's date at a moment."""
    return moment.astimezone(EXCHANGE_ZONE).date()


def first_of_week(day: date) -> date:
    """Return the Saturday that a week begins with: its five exchange days are together in any case."""
    return day - timedelta(days=(day.weekday() - SATURDAY) % 7)


def floor(moment: datetime, minutes: int) -> datetime:
    """Return when the bar begins that a moment is in.

    :param minutes: length of a bar; it divides an hour.
    """
    return moment - (moment - _EARLIEST) % timedelta(minutes=minutes)


def exchange_span(start: datetime, end: datetime) -> Span[datetime]:
    """Return the exchange time that holds a range, widened to whole seconds.

    :param start: aware.
    :param end: aware.
    """
    first, last = start.astimezone(EXCHANGE_ZONE), end.astimezone(EXCHANGE_ZONE)
    # What an exchange clock shows for the second time may have been written in the first hour of that name.
    back = timedelta(hours=last.fold)
    return Span(_naive(first).replace(microsecond=0), _whole_second(_naive(last) + back))


def split(span: Span[datetime], days: int) -> Iterator[Span[datetime]]:
    """Cut at midnights, into pieces of so many exchange days at most."""
    start = span.start
    while start < span.end:
        end = min(datetime.combine(start.date() + timedelta(days=days), _MIDNIGHT), span.end)
        yield Span(start, end)
        start = end


def _naive(moment: datetime) -> datetime:
    return moment.replace(tzinfo=None, fold=0)


def _whole_second(moment: datetime) -> datetime:
    return moment + timedelta(microseconds=-moment.microsecond % 1_000_000)
