"""Loads by session, and what they trigger."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any

from airflow.sdk import Asset, Param, PartitionedAssetTimetable, dag, task

from openmarkets_provider import queries
from openmarkets_provider.timetables.trading_days import TradingDayTimetable
from openmarkets_provider.transfers.openmarkets_to_object_storage import OpenmarketsToObjectStorageOperator

LAKE = os.environ.get("ETL_LAKE", "/nowhere")
START = datetime(2026, 1, 1, tzinfo=UTC)
DAILY, HISTORY = f"{LAKE}/daily", f"{LAKE}/history"


@dag(
    schedule=TradingDayTimetable(),
    start_date=START,
    # So that the schedule itself starts no run.
    end_date=datetime(2026, 5, 1, tzinfo=UTC),
    catchup=False,
    is_paused_upon_creation=True,
    default_args={"retries": 0},
)
def daily_bars() -> None:
    query = queries.time_series(["BHP", "CBA"], session="{{ partition_key }}")
    OpenmarketsToObjectStorageOperator(task_id="files", query=query, destination=DAILY, partition="day")


@dag(
    schedule=None,
    start_date=START,
    default_args={"retries": 0},
    params={"start": Param("2026-04-01", type="string"), "end": Param("2026-04-11", type="string")},
)
def history() -> None:
    query = queries.time_series(["BHP", "CBA"], start="{{ params.start }}", end="{{ params.end }}")
    OpenmarketsToObjectStorageOperator(
        task_id="files", query=query, destination=HISTORY, partition="day", emit_partitions=True
    )


@task
def events(partition_key: Any = None, triggering_asset_events: Any = None) -> dict[str, Any]:
    (found,) = triggering_asset_events.values()
    return {
        "key": partition_key,
        "keys": [each.partition_key for each in found],
        "extras": [each.extra for each in found],
    }


@dag(schedule=PartitionedAssetTimetable(assets=Asset(f"file://{DAILY}")), start_date=START)
def after_daily_bars() -> None:
    events()


@dag(schedule=PartitionedAssetTimetable(assets=Asset(f"file://{HISTORY}")), start_date=START)
def after_history() -> None:
    events()


@dag(schedule=[Asset(f"file://{HISTORY}")], start_date=START)
def without_partitions() -> None:
    events()


daily_bars()
history()
after_daily_bars()
after_history()
without_partitions()
