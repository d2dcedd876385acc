"""Many small tasks that each ask every API once; they note the home of the worker that they run on."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

from airflow.sdk import Param, dag, task

from openmarkets_provider import queries
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook


@dag(
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    default_args={"retries": 0},
    # A connection for each task.
    params={"conn_ids": Param([], type="array")},
)
def celery_tokens() -> None:
    @task
    def conn_ids(params: dict[str, list[str]]) -> list[str]:
        return params["conn_ids"]

    @task(do_xcom_push=False)
    def ask(conn_id: str, run_id: str) -> None:
        hook = OpenmarketsHook(conn_id)
        assert hook.run(queries.quotes(["BHP"]))
        assert hook.run(queries.accounts())
        assert hook.run(queries.request("news", "GET", "announcements/v1"))
        with (Path(os.environ["AIRFLOW_HOME"]) / "ran").open("a") as file:
            file.write(f"{run_id}\n")

    ask.expand(conn_id=conn_ids())


celery_tokens()
