"""Partitions: exchange days, months or years (Australia/Sydney), in folders named as in Hive. Pure.

A load replaces whole partitions. A range that covers only a part of a partition is refused, because the rest of the
partition would be lost.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from datetime import date, datetime, time, timedelta
from typing import NamedTuple

from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.landing.destination import Moment
from openmarkets_provider.query.batch import Batch
from openmarkets_provider.query.exchange_time import exchange_date, to_text, to_utc
from openmarkets_provider.sessions.calendar import ASX

PARTITIONS = ("day", "month", "year")
_LONGEST = {"day": 1, "month": 31, "year": 366}
_DAY = timedelta(days=1)
_NAMES = {"day": "exchange_date=%Y-%m-%d", "month": "exchange_month=%Y-%m", "year": "exchange_year=%Y"}


class Partition(NamedTuple):
    """One partition.

    :ivar name: its folder, such as ``exchange_date=2026-11-20``.
    :ivar start: when it begins, in the form of the query's bounds.
    :ivar end: when the next one begins.
    """

    name: str
    start: Moment
    end: Moment


def list_partitions(by: str, start: Moment, end: Moment, *, open_end: bool = False) -> list[Partition]:
    """Return the partitions that a half-open range covers, in order.

    :param by: ``day``, ``month`` or ``year``.
    :param open_end: whether the range may end within the last partition.
    :raises OpenmarketsQueryError: the range covers only a part of a partition.
    """
    partitions: list[Partition] = []
    first = day = first_day(by, _day(start))
    while (begin := _moment(day, start)) < end:
        following = first_day(by, day + timedelta(days=_LONGEST[by]))
        partitions.append(Partition(day.strftime(_NAMES[by]), begin, _moment(following, start)))
        day = following
    torn = [partitions[0]] if partitions[0].start < start else []
    if partitions[-1].end > end and not open_end:
        torn.append(partitions[-1])
    if torn:
        names = " and ".join(dict.fromkeys(partition.name for partition in torn))
        raise OpenmarketsQueryError(
            f"partition='{by}': the range {_range_text(start, end)} covers only part of {names}, and replacing a "
            "partition would lose the rest. Start and end at the first moment of a partition (midnight in "
            f"Australia/Sydney), such as start='{first}', end='{day}'."
        )
    return partitions


def list_sessions(start: Moment, end: Moment, moment: datetime) -> list[date]:
    """Return the sessions that have closed and whose whole day is in a half-open range, in order.

    :param moment: aware; a session that closes later is left out.
    :raises OpenmarketsQueryError: the range is not within the years of the calendar.
    """
    first, last = _day(start), _day(end) - _DAY
    if _moment(first, start) < start:
        first += _DAY
    try:
        sessions = ASX.sessions_in_range(first, last)
    except ValueError as error:
        raise OpenmarketsQueryError(f"emit_partitions: {error}") from None
    return [session for session in sessions if ASX.session_close(session) <= moment]


def widen_range(by: str, start: Moment, end: Moment, reached: Moment | None) -> tuple[Moment, Moment]:
    """Return the range to pull so that the partitions of a half-open range can be replaced without losing rows.

    It begins with a partition. It ends with one, or at the end of what is then loaded.

    :param reached: the end of what is loaded; None if nothing is.
    """
    last_day = first_day(by, _day(end))
    if _moment(last_day, end) < end:
        last_day = first_day(by, last_day + timedelta(days=_LONGEST[by]))
    loaded_to = end if reached is None else max(end, reached)
    return _moment(first_day(by, _day(start)), start), min(_moment(last_day, end), loaded_to)


class Sorter:
    """Sorts rows into partitions.

    :param partitions: in order, without gaps.
    :param column: the column that the query's range selects rows by.
    """

    def __init__(self, partitions: Sequence[Partition], column: str) -> None:
        self._partitions = partitions
        self._starts = [partition.start for partition in partitions]
        self._column = column

    def sort(self, batch: Batch) -> Iterator[tuple[Partition, Batch]]:
        """Return the rows of each partition, in their order.

        :param batch: at least one row; all within the range that the partitions cover.
        """
        moments = batch.columns[self._column]
        if self._index(min(moments)) == (last := self._index(max(moments))):
            yield self._partitions[last], batch
            return
        rows: dict[int, list[int]] = {}
        for row, moment in enumerate(moments):
            rows.setdefault(self._index(moment), []).append(row)
        for index, those in rows.items():
            yield self._partitions[index], batch.take(those)

    def _index(self, moment: Moment) -> int:
        return bisect_right(self._starts, moment) - 1


def _day(moment: Moment) -> date:
    return exchange_date(moment) if isinstance(moment, datetime) else moment


def _moment(day: date, like: Moment) -> Moment:
    """Return when an exchange day begins: a date or a time in UTC, like another bound."""
    return to_utc(datetime.combine(day, time())) if isinstance(like, datetime) else day


def first_day(by: str, day: date) -> date:
    """Return the first day of the partition of a day."""
    if by == "day":
        return day
    return day.replace(day=1) if by == "month" else day.replace(month=1, day=1)


def _range_text(start: Moment, end: Moment) -> str:
    return f"{to_text(start)} to {to_text(end)}"
