"""A timetable with one run per session of the exchange.

Since Airflow 3.3, a run is a partition whose key is the session. Before, it has a data interval::

    from openmarkets_provider.timetables.trading_days import TradingDayTimetable

    @dag(schedule=TradingDayTimetable(), start_date=datetime(2026, 4, 1), catchup=True)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from airflow.timetables.base import DagRunInfo, DataInterval, Timetable

from openmarkets_provider.sessions.calendar import EXCHANGE_ZONE, Day, SessionCalendar
from openmarkets_provider.sessions.calendar import at as exchange_time

if TYPE_CHECKING:
    from airflow.timetables.base import TimeRestriction
    from airflow.utils.types import DagRunType
    from pendulum import DateTime

PARTITIONS = hasattr(Timetable, "iter_partition_dagrun_infos")
"""Whether this Airflow has partitioned timetables: it is 3.3 or later."""
AFTER_CLOSE = timedelta(minutes=20)
_DAY, _MINUTE = timedelta(days=1), timedelta(minutes=1)


class TradingDayTimetable(Timetable):
    """One run per session of the exchange, after its close. Days such as Good Friday have none.

    Since Airflow 3.3, runs are partitioned: ``partition_key`` is the session (``2026-04-02``), ``partition_date`` is
    its midnight in Sydney. Before, the data interval of a run goes from that midnight to the next. A start date, an end
    date and the bounds of a backfill mean their dates in Sydney, both included.

    Without ``catchup``, the first run is for the last session whose run is due.

    :param after_close: time from the close of a session to its run. The close is 16:10 in Sydney, 14:10 on a half day.
    :param at: hour and minute in Sydney, on the date of the session, instead of ``after_close``.
    :param extra_closures: weekdays on which the exchange is closed and that the calendar lacks: dates, or text such as
        ``2027-03-02``. They are stored with the DAG.
    :param extra_half_days: sessions that close at 14:10 and that the calendar lacks, in the same form.
    :raises ValueError: a parameter is malformed, or both times are set.
    """

    partitioned = PARTITIONS
    run_ordering = ("partition_date", "run_after") if PARTITIONS else ("data_interval_end", "logical_date")

    def __init__(
        self,
        after_close: timedelta = AFTER_CLOSE,
        at: time | None = None,
        extra_closures: Iterable[Day] = (),
        extra_half_days: Iterable[Day] = (),
    ) -> None:
        if not isinstance(after_close, timedelta) or after_close < timedelta():
            raise ValueError(f"after_close must be a timedelta of 0 or more, not {after_close!r}.")
        if at is not None and after_close != AFTER_CLOSE:
            raise ValueError("after_close can't be used with at; remove one of them.")
        if at is not None and (not isinstance(at, time) or at.tzinfo or at.second or at.microsecond):
            raise ValueError(f"at must be a time in Sydney, in whole minutes, such as time(18, 30), not {at!r}.")
        self._after_close, self._at = after_close, at
        self._calendar = SessionCalendar.with_extras(extra_closures, extra_half_days)
        self.description = f"{self.summary} (Sydney)"

    @property
    def summary(self) -> str:
        """What Airflow shows as the schedule of the DAG."""
        if self._at is not None:
            return f"Trading days, {self._at:%H:%M}"
        return f"Trading days, {self._after_close / _MINUTE:g} min after the close"

    def serialize(self) -> dict[str, Any]:
        """Return the parameters as JSON."""
        return {
            "after_close": self._after_close.total_seconds(),
            "at": None if self._at is None else self._at.isoformat(),
            "extra_closures": sorted(map(str, self._calendar.extra_closures)),
            "extra_half_days": sorted(map(str, self._calendar.extra_half_days)),
        }

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> TradingDayTimetable:
        """Return the timetable of these parameters."""
        return cls(
            after_close=timedelta(seconds=data["after_close"]),
            at=data["at"] and time.fromisoformat(data["at"]),
            extra_closures=data["extra_closures"],
            extra_half_days=data["extra_half_days"],
        )

    def run_after(self, session: date) -> DateTime:
        """Return when the run of a session may start, in UTC."""
        if self._at is not None:
            return exchange_time(session, self._at).in_timezone("UTC")
        return self._calendar.session_close(session).in_timezone("UTC") + self._after_close

    def next_dagrun_info_v2(
        self, *, last_dagrun_info: DagRunInfo | None, restriction: TimeRestriction
    ) -> DagRunInfo | None:
        """Return the run after the last one, or the first run."""
        last = last_dagrun_info and _session_of(last_dagrun_info)
        return self._next_run(last, restriction)

    def next_dagrun_info(
        self, *, last_automated_data_interval: DataInterval | None, restriction: TimeRestriction
    ) -> DagRunInfo | None:
        """Return the same for Airflow before 3.2."""
        last = last_automated_data_interval and _exchange_date(last_automated_data_interval.start)
        return self._next_run(last, restriction)

    def iter_partition_dagrun_infos(self, *, earliest: datetime, latest: datetime) -> Iterator[DagRunInfo]:
        """Yield the runs of a backfill: one per session from ``earliest`` to ``latest``, by their dates in Sydney.

        A session whose run is not due yet is left to the schedule.
        """
        now = datetime.now(UTC)
        for session in self._calendar.sessions_between(_exchange_date(earliest), _exchange_date(latest)):
            if (run := self._run(session)).run_after <= now:
                yield run

    def localize_partition_datetime(self, dt: datetime) -> DateTime:
        """Return the partition date of a bound: midnight of its date in Sydney."""
        return _midnight(_exchange_date(dt))

    def _decode_partition_date(self, partition_key: str) -> DateTime:
        from airflow.exceptions import InvalidPartitionKeyError

        try:
            if str(date.fromisoformat(partition_key)) != partition_key:
                raise ValueError
        except ValueError:
            raise InvalidPartitionKeyError(
                f"The partition key must be a date such as '2026-04-02', not {partition_key!r:.100}."
            ) from None
        try:
            return _midnight(self._calendar.check_session(partition_key))
        except ValueError as error:
            raise InvalidPartitionKeyError(str(error)) from None

    def infer_manual_data_interval(self, *, run_after: DateTime) -> DataInterval:
        """Return the data interval of a manual run without a key: the last session whose run is due."""
        return _data_interval(self._last_session(run_after))

    def generate_run_id(self, *, run_type: DagRunType, **run: Any) -> str:
        """Return an id with the session and a random part, because a session may run again."""
        if key := run.get("partition_key"):
            return run_type.generate_run_id(suffix=f"{key}__{uuid4().hex[:8]}")
        return super().generate_run_id(run_type=run_type, **run)

    def _next_run(self, last: date | None, restriction: TimeRestriction) -> DagRunInfo | None:
        """Return the run of the next session, or the first run; None if the schedule ends before."""
        candidates = []
        if last is not None:
            candidates.append(last + _DAY)
        if restriction.earliest is not None:
            candidates.append(_exchange_date(restriction.earliest))
        if not restriction.catchup or not candidates:
            candidates.append(self._last_session(datetime.now(UTC)))
        latest = date.max if restriction.latest is None else _exchange_date(restriction.latest)
        sessions = self._calendar.sessions_between(max(candidates), latest)
        return self._run(sessions[0]) if sessions else None

    def _last_session(self, moment: datetime) -> date:
        """Return the last session whose run is due at a moment."""
        sessions = self._calendar.sessions_between(date.min, _exchange_date(moment))
        return next(session for session in reversed(sessions) if self.run_after(session) <= moment)

    def _run(self, session: date) -> DagRunInfo:
        run_after = self.run_after(session)
        if not PARTITIONS:
            # Airflow 3.2 has more fields, without defaults.
            return DagRunInfo.interval(*_data_interval(session))._replace(run_after=run_after)
        return DagRunInfo(
            run_after=run_after,
            data_interval=None,
            partition_date=_midnight(session),
            partition_key=session.isoformat(),
        )


def _session_of(run: DagRunInfo) -> date:
    """Return the session of a run. For a run of another schedule, return the date in Sydney that it reached."""
    if PARTITIONS and run.partition_date is not None:
        return _exchange_date(run.partition_date)
    return _exchange_date(run.data_interval.start if run.data_interval else run.run_after)


def _exchange_date(moment: datetime) -> date:
    return moment.astimezone(EXCHANGE_ZONE).date()


def _midnight(day: date) -> DateTime:
    return exchange_time(day).in_timezone("UTC")


def _data_interval(session: date) -> DataInterval:
    return DataInterval(_midnight(session), _midnight(session + _DAY))
