"""DAGs that run by session: caught up, backfilled, rolled up, and late."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import (
    Asset,
    AsyncCallback,
    DeadlineAlert,
    PartitionedAssetTimetable,
    RollupMapper,
    StartOfMonthMapper,
    dag,
    get_current_context,
    task,
)
from session_alarm import alarm

from openmarkets_provider.timetables.deadline import SessionCloseDeadline
from openmarkets_provider.timetables.trading_days import TradingDayTimetable
from openmarkets_provider.timetables.windows import TradingMonthWindow, TrailingSessionsMapper

BARS = Asset("bars_by_session")
RETURNS = Asset("returns_by_session")


@dag(
    schedule=TradingDayTimetable(),
    start_date=datetime(2026, 4, 1, tzinfo=UTC),
    end_date=datetime(2026, 4, 8, tzinfo=UTC),
    catchup=True,
)
def easter():
    @task(outlets=[BARS])
    def tell(session, previous):
        return {"session": session, "previous": previous, "ds": "ds" in get_current_context()}

    tell("{{ partition_key }}", "{{ macros.openmarkets.previous_session(partition_key) }}")


@dag(
    schedule=TradingDayTimetable(),
    start_date=datetime(2026, 10, 1, tzinfo=UTC),
    end_date=datetime(2026, 10, 6, tzinfo=UTC),
    catchup=True,
    is_paused_upon_creation=True,
)
def summer_time():
    EmptyOperator(task_id="nothing")


@dag(
    schedule=TradingDayTimetable(),
    start_date=datetime(2020, 1, 1, tzinfo=UTC),
    end_date=datetime(2020, 1, 1, tzinfo=UTC),
    catchup=False,
)
def backfilled():
    EmptyOperator(task_id="nothing")


@dag(
    schedule=PartitionedAssetTimetable(
        assets=RETURNS,
        default_partition_mapper=RollupMapper(
            upstream_mapper=StartOfMonthMapper(input_format="%Y-%m-%d", timezone="Australia/Sydney"),
            window=TradingMonthWindow(),
        ),
    )
)
def month():
    @task
    def tell(partition_key, triggering_asset_events):
        return {
            "month": partition_key,
            "sessions": sorted(event.partition_key for event in triggering_asset_events[RETURNS]),
        }

    tell()


@dag(schedule=PartitionedAssetTimetable(assets=RETURNS, default_partition_mapper=TrailingSessionsMapper(3)))
def trailing():
    EmptyOperator(task_id="nothing")


@dag(
    schedule=TradingDayTimetable(),
    start_date=datetime(2020, 1, 1, tzinfo=UTC),
    catchup=False,
    deadline=DeadlineAlert(SessionCloseDeadline(), interval=timedelta(minutes=1), callback=AsyncCallback(alarm)),
)
def late():
    EmptyOperator(task_id="nothing")


easter()
summer_time()
backfilled()
month()
trailing()
late()
