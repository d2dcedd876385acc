"""Task processes that share tokens, and a loop that lands what each of its iterations pulls."""

from __future__ import annotations

import os
import sys

from airflow.sdk import dag, task, task_group

from openmarkets_provider import queries
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
from openmarkets_provider.transfers.openmarkets_to_object_storage import OpenmarketsToObjectStorageOperator
from openmarkets_provider.transfers.openmarkets_to_sql import OpenmarketsToSqlOperator

QUOTES = queries.quotes(["BHP", "CBA"])


@dag(schedule=None)
def loops() -> None:
    @task
    def pull(code: str) -> list[str]:
        OpenmarketsHook().run(queries.quotes([code]))
        return sys.orig_argv

    @task_group
    def snapshots() -> None:
        table = OpenmarketsToSqlOperator(
            task_id="table", query=QUOTES, table="snapshots", conn_id="loop_db", mode="append"
        )
        file = OpenmarketsToObjectStorageOperator(
            task_id="file",
            query=QUOTES,
            destination=f"{os.environ['LOOP_LAKE']}/{{{{ loop.index }}}}.jsonl",
            format="jsonl",
        )
        table >> file

    pull.expand(code=["BHP", "CBA"]) >> snapshots.loop(max_iterations=2)


loops()
