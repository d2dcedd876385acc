"""Roll-ups of sessions: a DAG runs once a week, month, quarter or year, when all sessions of an asset are there.

They need Airflow 3.3. A window expects the sessions of a period, while Airflow's own windows expect every day of it::

    from airflow.sdk import PartitionedAssetTimetable, RollupMapper, StartOfMonthMapper

    month = StartOfMonthMapper(input_format="%Y-%m-%d", timezone="Australia/Sydney")

    @dag(
        schedule=PartitionedAssetTimetable(
            assets=bars,
            default_partition_mapper=RollupMapper(upstream_mapper=month, window=TradingMonthWindow()),
        )
    )
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.partition_mappers.base import PartitionMapper
from airflow.partition_mappers.wait_policy import WaitForAll
from airflow.partition_mappers.window import Window

from openmarkets_provider.sessions.calendar import Day, SessionCalendar, at

if TYPE_CHECKING:
    from pendulum import DateTime

_DAY = timedelta(days=1)
_MONTHS_OF_YEAR = 12


class _SessionsWindow(Window):
    """The sessions of a period.

    :param extra_closures: weekdays on which the exchange is closed and that the calendar lacks, as in
        :class:`~openmarkets_provider.timetables.trading_days.TradingDayTimetable`.
    :raises ValueError: one of them is malformed, or on a weekend.
    """

    expected_decoded_type: ClassVar[type] = datetime

    def __init__(self, extra_closures: Iterable[Day] = ()) -> None:
        super().__init__()
        self._calendar = SessionCalendar.with_extras(extra_closures)

    def to_upstream(self, decoded_downstream: datetime) -> Sequence[datetime]:
        """Return the sessions of the period that begins on a day: naive datetimes, at midnight."""
        first = decoded_downstream.date()
        sessions = self._calendar.sessions_between(first, self._end(first) - _DAY)
        return [datetime.combine(day, time()) for day in sessions]

    def _end(self, first: date) -> date:
        """Return the first day after the period."""
        raise NotImplementedError

    def serialize(self) -> dict[str, Any]:
        """Return the parameters as JSON."""
        return {"extra_closures": sorted(map(str, self._calendar.extra_closures))}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> Window:
        """Return the window of these parameters."""
        return cls(data["extra_closures"])


class TradingWeekWindow(_SessionsWindow):
    """The sessions of a week, Monday to Friday; for ``StartOfWeekMapper``."""

    def _end(self, first: date) -> date:
        return first + 7 * _DAY


class TradingMonthWindow(_SessionsWindow):
    """The sessions of a calendar month, such as 20 in April 2026; for ``StartOfMonthMapper``."""

    def _end(self, first: date) -> date:
        return _add_months(first, 1)


class TradingQuarterWindow(_SessionsWindow):
    """The sessions of a calendar quarter; for ``StartOfQuarterMapper``."""

    def _end(self, first: date) -> date:
        return _add_months(first, 3)


class TradingYearWindow(_SessionsWindow):
    """The sessions of a calendar year; for ``StartOfYearMapper``."""

    def _end(self, first: date) -> date:
        return _add_months(first, _MONTHS_OF_YEAR)


class TrailingSessionsMapper(PartitionMapper):
    """A moving window: a run per session, when that session and the ones before it are there.

    Use it as the ``partition_mapper``, without a window: each session counts for several runs, which a window of
    Airflow can't express. The key of a run is its last session.

    :param sessions: number of sessions in the window, including the last one.
    :param extra_closures: as in the windows.
    :raises ValueError: ``sessions`` is not a whole number above 0, or a closure is malformed or on a weekend.
    """

    is_rollup: ClassVar[bool] = True
    wait_policy = WaitForAll()

    def __init__(self, sessions: int, extra_closures: Iterable[Day] = ()) -> None:
        super().__init__()
        if not isinstance(sessions, int) or sessions < 1:
            raise ValueError(f"sessions must be a whole number above 0, not {sessions!r}.")
        self._sessions = sessions
        self._calendar = SessionCalendar.with_extras(extra_closures)

    def to_downstream(self, key: str) -> Sequence[str]:
        """Return the runs that wait for a session: its own, and those of the following sessions.

        :raises ValueError: the key is not a session.
        """
        session = self._calendar.check_session(key)
        return _keys(self._calendar.sessions_between(session, date.max)[: self._sessions])

    def to_upstream(self, downstream_key: str) -> frozenset[str]:
        """Return the sessions that a run waits for.

        :raises ValueError: the key is not a session.
        """
        session = self._calendar.check_session(downstream_key)
        return frozenset(_keys(self._calendar.sessions_between(date.min, session)[-self._sessions :]))

    def to_partition_date(self, downstream_key: str) -> DateTime:
        """Return midnight of the session in Sydney."""
        return at(self._calendar.check_session(downstream_key))

    def serialize(self) -> dict[str, Any]:
        """Return the parameters as JSON."""
        return {"sessions": self._sessions, "extra_closures": _keys(sorted(self._calendar.extra_closures))}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> PartitionMapper:
        """Return the mapper of these parameters."""
        return cls(data["sessions"], data["extra_closures"])


def _add_months(first: date, months: int) -> date:
    """Return the first day of a later month."""
    years, month = divmod(first.month - 1 + months, _MONTHS_OF_YEAR)
    return date(first.year + years, month + 1, 1)


def _keys(sessions: Iterable[date]) -> list[str]:
    return [session.isoformat() for session in sessions]
