"""Transfers as Airflow runs them: incremental loads that are killed and cleared; mapped ones; assets."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import Asset, Param, dag, task

from openmarkets_provider import queries
from openmarkets_provider.transfers.openmarkets_to_object_storage import OpenmarketsToObjectStorageOperator
from openmarkets_provider.transfers.openmarkets_to_sql import OpenmarketsToSqlOperator

LAKE = os.environ.get("ETL_LAKE", "/nowhere")
START = datetime(2026, 1, 1, tzinfo=UTC)
RETRIED = {"retries": 2, "retry_delay": timedelta(0)}


class Fatal:
    """A destination whose load ends the task's process as a crash would, in the first try of a run that asks for it."""

    def __init__(self, destination: Any, context: Any) -> None:
        self._destination = destination
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._destination, name)

    def land(self, source: Any, query: queries.Query) -> Any:
        self._die("before")
        result = self._destination.land(source, query)
        self._die("after")
        return result

    def _die(self, moment: str) -> None:
        if self._context["params"]["killed"] == moment and self._context["ti"].try_number == 1:
            os.kill(os.getpid(), signal.SIGKILL)


class ToFiles(OpenmarketsToObjectStorageOperator):
    @contextmanager
    def open_destination(self, context: Any) -> Any:
        with super().open_destination(context) as (destination, describe):
            yield Fatal(destination, context), describe


class ToTable(OpenmarketsToSqlOperator):
    @contextmanager
    def open_destination(self, context: Any) -> Any:
        with super().open_destination(context) as (destination, describe):
            yield Fatal(destination, context), describe


@dag(
    schedule=None,
    start_date=START,
    default_args=RETRIED,
    params={"end": Param("2026-03-04", type="string"), "killed": Param("", type="string")},
)
def etl_incremental() -> None:
    query = queries.trades(["BHP", "CBA"], start="2026-03-02", end="{{ params.end }}")
    ToFiles(task_id="files", query=query, destination=f"{LAKE}/trades", partition="day", incremental=True)
    ToTable(task_id="table", query=query, table="trades", conn_id="etl_db", incremental=True)


BARS = Asset("bars")


@dag(schedule=None, start_date=START, default_args={"retries": 0})
def etl() -> None:
    week = {"start": "2026-03-02", "end": "2026-03-07"}
    OpenmarketsToObjectStorageOperator(
        task_id="templated",
        query=queries.time_series("BHP", **week),
        destination=f"{LAKE}/templated/{{{{ run_id }}}}.csv.gz",
        format="csv",
    )
    OpenmarketsToObjectStorageOperator(
        task_id="literal",
        query=queries.time_series("BHP, XX1", **week, on_invalid="warn"),
        destination=f"{LAKE}/literal.parquet",
    )
    OpenmarketsToObjectStorageOperator.partial(
        task_id="mapped", destination=f"{LAKE}/mapped/{{{{ task.query.securities[0] }}}}.jsonl", format="jsonl"
    ).expand(query=[queries.time_series([code], **week) for code in ("BHP", "CBA")])
    OpenmarketsToObjectStorageOperator.partial(
        task_id="onto_one", destination=f"{LAKE}/one.jsonl", format="jsonl"
    ).expand(query=[queries.time_series([code], **week) for code in ("BHP", "CBA")])
    OpenmarketsToSqlOperator.partial(task_id="into_one", table="bars", conn_id="etl_db", outlets=[BARS]).expand(
        query=[queries.time_series([code], **week) for code in ("BHP", "CBA")]
    )
    OpenmarketsToSqlOperator(
        task_id="snapshots", query=queries.quotes(["BHP", "CBA"]), table="snapshots", conn_id="etl_db", mode="append"
    )


@dag(schedule=[Asset(f"file://{LAKE}/literal.parquet")], start_date=START)
def etl_consumer() -> None:
    @task
    def extras(triggering_asset_events: Any = None) -> list[dict[str, Any]]:
        return [event.extra for events in triggering_asset_events.values() for event in events]

    extras()


@dag(schedule=None, start_date=START, default_args={"retries": 0})
def etl_stopped() -> None:
    OpenmarketsToObjectStorageOperator(
        task_id="endless",
        query=queries.intraday_time_series(["BHP", "CBA"], start="2026-03-02", end="2026-03-07", interval=60),
        destination=f"{LAKE}/stopped/bars.jsonl",
        format="jsonl",
    )


etl_incremental()
etl()
etl_consumer()
etl_stopped()
