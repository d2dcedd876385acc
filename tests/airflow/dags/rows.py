"""Rows on their way through XCom, and queries whose requests run in the threads of a task's process."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import dag, task

from openmarkets_provider import queries
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
from openmarkets_provider.operators.openmarkets import OpenmarketsOperator

ACCOUNTS = ["SBX0001", "SBX0002", "SBX0003"]
DAYS = {"start": "2026-03-02", "end": "2026-03-04"}
QUERIES = [
    queries.quotes(["BHP", "Z0002"]),
    queries.security_information(["BHP", "Z0002"]),
    queries.time_series(["BHP", "Z0002"], **DAYS),
    queries.trades(["BHP", "Z0002"], **DAYS),
    queries.positions(),
]


@dag(schedule="@once", start_date=datetime(2026, 1, 1, tzinfo=UTC), default_args={"retries": 0})
def rows() -> None:
    @task
    def received(pulled: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, list[str]]]]:
        """Return the type and the text of every value."""
        return {
            name: [{column: [type(value).__name__, str(value)] for column, value in row.items()} for row in given]
            for name, given in pulled.items()
        }

    def pull(query: queries.Query) -> Any:
        # The server by another name: a 429 that another DAG meets makes nobody wait there.
        return OpenmarketsOperator(task_id=query["endpoint"], query=query, openmarkets_conn_id="patient").output

    received({query["endpoint"]: pull(query) for query in QUERIES})

    @task
    def token_from_a_thread() -> dict[str, Any]:
        """Make several calls before anything else, so that a thread asks for the token; then print the token."""
        hook = OpenmarketsHook("tokens_in_memory")
        orders = hook.run(queries.orders(ACCOUNTS))
        token = hook.get_access_token("oms-api")
        print(f"The token is {token}.")
        return {"accounts": [order["account_code"] for order in orders], "reversed": token[::-1]}

    @task(execution_timeout=timedelta(seconds=10))
    def too_long(ti: Any = None) -> None:
        """Wait for replies that do not come."""
        ti.xcom_push("pid", os.getpid())
        OpenmarketsHook("patient").run(queries.order_trades(ACCOUNTS, **DAYS))

    token_from_a_thread()
    too_long()


rows()
