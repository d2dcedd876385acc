"""One DAG for every supported Airflow: the hook, the operator, the sensor in its modes, a transfer."""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.providers.common.compat.sdk import dag, task

from openmarkets_provider import queries
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
from openmarkets_provider.operators.openmarkets import OpenmarketsOperator
from openmarkets_provider.sensors.openmarkets import OpenmarketsSensor
from openmarkets_provider.transfers.openmarkets_to_object_storage import OpenmarketsToObjectStorageOperator


@dag(schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC), default_args={"retries": 0})
def smoke() -> None:
    @task
    def accounts() -> int:
        return len(OpenmarketsHook().run(queries.accounts()))

    @task
    def report(rows: list[dict]) -> str:
        return " ".join(f"{row['security_code']} {type(row['last_price']).__name__}" for row in rows)

    quotes = OpenmarketsOperator(task_id="quotes", query=queries.quotes(["{{ 'B' ~ 'HP' }}", "CBA"]))
    waiting = {
        "query": queries.quotes(["BHP"]),
        "condition": "[0].security_code == 'BHP'",
        "poke_interval": 1,
        "timeout": 300,
    }
    sensors = [
        OpenmarketsSensor(task_id="poked", **waiting),
        OpenmarketsSensor(task_id="rescheduled", mode="reschedule", **waiting),
        OpenmarketsSensor(task_id="deferred", deferrable=True, **waiting),
        # Of a connection that shares no tokens: the triggerer asks for one itself.
        OpenmarketsSensor(task_id="apart", deferrable=True, openmarkets_conn_id="openmarkets_apart", **waiting),
    ]
    landed = OpenmarketsToObjectStorageOperator(
        task_id="landed",
        query=queries.time_series(["BHP"], start="2026-03-02", end="2026-03-07"),
        destination="{{ dag_run.conf['lake'] }}",
        partition="day",
        format="csv",
    )
    [accounts(), *sensors, landed] >> report(quotes.output)


smoke()
