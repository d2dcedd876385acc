"""Tasks that run and wait while the client secret of their connection is rotated, and tasks that start afterwards."""

from __future__ import annotations

from airflow.sdk import dag

from openmarkets_provider import queries
from openmarkets_provider.operators.openmarkets import OpenmarketsOperator
from openmarkets_provider.sensors.openmarkets import OpenmarketsSensor

CONNECTION = {"openmarkets_conn_id": "rotating"}
MANY = [f"Z{number:04}" for number in range(2, 202)]


@dag(schedule=None, default_args={"retries": 0})
def rotation() -> None:
    OpenmarketsOperator(
        task_id="long", query=queries.time_series(MANY, start="2026-03-02", end="2026-03-03"), **CONNECTION
    )
    waits = OpenmarketsSensor(
        task_id="waits",
        query=queries.quotes(["WOW"]),
        condition="[0].trading_status == 'OPEN'",
        poke_interval=3,
        deferrable=True,
        **CONNECTION,
    )
    waits >> OpenmarketsOperator.partial(task_id="begin", **CONNECTION).expand(
        query=[queries.quotes([code]) for code in ("BHP", "CBA", "CSL")]
    )


rotation()
