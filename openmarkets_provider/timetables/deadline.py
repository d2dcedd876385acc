"""A deadline relative to the close of a session.

It needs Airflow 3.3 and a DAG whose partitions are sessions::

from airflow.sdk import AsyncCallback, DeadlineAlert

@dag(
    schedule=TradingDayTimetable(),
    deadline=DeadlineAlert(SessionCloseDeadline(), interval=timedelta(minutes=90), callback=AsyncCallback(alarm)),
)
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow import __version__ as airflow_version
from airflow.sdk.definitions.deadline import REFERENCE_TYPE_FIELD, BaseDeadlineReference

from openmarkets_provider.sessions.calendar import Day, SessionCalendar

if TYPE_CHECKING:
    from airflow.models.dagrun import DagRun
    from sqlalchemy.orm import Session

_log = logging.getLogger(__name__)
_PASSES_RUN = tuple(map(int, airflow_version.split(".")[:2])) >= (3, 4)


class SessionCloseDeadline(BaseDeadlineReference):
    """The close of a run's session, from which the ``interval`` of the ``DeadlineAlert`` counts.

    Only the session that closed last has a deadline. A run that is created after the next close is a backfill or
    catches up, and would always be late.

    :param extra_half_days: sessions that close at 14:10, as in
        :class:`~openmarkets_provider.timetables.trading_days.TradingDayTimetable`.
    :raises ValueError: one of them is malformed, or not a session.
    """

    if not _PASSES_RUN:
        required_kwargs = frozenset({"dag_id", "run_id"})

    def __init__(self, extra_half_days: Iterable[Day] = ()) -> None:
        self._calendar = SessionCalendar.with_extras(extra_half_days=extra_half_days)

    def serialize_reference(self) -> dict[str, Any]:
        """Return the parameters as JSON. Airflow requires each value to be hashable."""
        days = ",".join(sorted(map(str, self._calendar.extra_half_days)))
        return {REFERENCE_TYPE_FIELD: self.reference_name, "extra_half_days": days}

    @classmethod
    def deserialize_reference(cls, reference_data: dict[str, Any]) -> SessionCloseDeadline:
        """Return the reference of these parameters."""
        return cls(filter(None, reference_data["extra_half_days"].split(",")))

    def close_of(self, partition_key: str | None, now: datetime) -> datetime | None:
        """Return the close of a session, in Sydney; None if the next one has closed or the key is not a session."""
        try:
            close = self._calendar.session_close(partition_key or "")
            next_close = self._calendar.session_close(self._calendar.next_session(close))
        except ValueError as error:
            _log.warning("The run with the partition key %s has no deadline: %s", partition_key, error)
            return None
        return close if now < next_close else None

    def _evaluate_with(
        self, *, session: Session, dagrun: DagRun | None = None, dag_id: str = "", run_id: str = ""
    ) -> datetime | None:
        """Return the close for a new run. Airflow 3.3 passes only its ids."""
        if dagrun is None:
            from airflow.models.dagrun import DagRun as Run
            from sqlalchemy import select

            dagrun = session.scalars(select(Run).where(Run.dag_id == dag_id, Run.run_id == run_id)).one()
        return self.close_of(dagrun.partition_key, datetime.now(UTC))
