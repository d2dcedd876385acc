"""The plugin through which Airflow finds the timetable: entry point ``airflow.plugins``."""

from __future__ import annotations

from airflow.plugins_manager import AirflowPlugin

from openmarkets_provider.timetables.trading_days import TradingDayTimetable


class OpenmarketsPlugin(AirflowPlugin):
    """What the scheduler, the API server and tasks know by name."""

    name = "openmarkets"
    timetables = [TradingDayTimetable]  # noqa: RUF012 (as in Airflow's own class)
