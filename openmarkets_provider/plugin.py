"""The plugin through which Airflow finds timetables, windows, the deadline and macros: entry point ``airflow.plugins``.

Templates call the calendar as ``{{ macros.openmarkets.previous_session(partition_key) }}``.
"""

from __future__ import annotations

from typing import Any

from airflow.plugins_manager import AirflowPlugin

from openmarkets_provider.sessions.calendar import ASX
from openmarkets_provider.timetables.trading_days import PARTITIONS, TradingDayTimetable

_mappers: list[Any] = []
_windows: list[Any] = []
_deadlines: list[Any] = []
if PARTITIONS:
    from openmarkets_provider.timetables.deadline import SessionCloseDeadline
    from openmarkets_provider.timetables.windows import (
        TradingMonthWindow,
        TradingQuarterWindow,
        TradingWeekWindow,
        TradingYearWindow,
        TrailingSessionsMapper,
    )

    _mappers = [TrailingSessionsMapper]
    _windows = [TradingWeekWindow, TradingMonthWindow, TradingQuarterWindow, TradingYearWindow]
    _deadlines = [SessionCloseDeadline]

_macros: list[Any] = [
    ASX.count_sessions,
    ASX.is_half_day,
    ASX.is_session,
    ASX.next_session,
    ASX.previous_session,
    ASX.session_close,
    ASX.session_offset,
    ASX.session_open,
    ASX.sessions_in_range,
]


class OpenmarketsPlugin(AirflowPlugin):
    """What the scheduler, the API server and tasks find by name."""

    name = "openmarkets"
    timetables = [TradingDayTimetable]  # noqa: RUF012 (as in Airflow's own class)
    partition_mappers = _mappers
    windows = _windows
    deadline_references = _deadlines
    macros = _macros
