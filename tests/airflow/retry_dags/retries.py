"""Tasks that Airflow runs again, or would."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import dag, task

from openmarkets_provider import queries
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
from openmarkets_provider.operators.openmarkets import OpenmarketsOperator
from openmarkets_provider.policies.retry import OpenmarketsRetryPolicy

LONG = timedelta(days=1)
"""A retry_delay that no test waits for."""
SOON = timedelta(seconds=1)


def order(volume: int) -> queries.Query:
    body = {"accountCode": "SBX0001", "securityCode": "BHP", "exchange": "ASX", "destination": "TM", "side": "Buy"}
    terms = {"orderPrice": 4500, "lifetime": "EndOfDay", "pricingInstruction": "Limit", "orderVolume": volume}
    return queries.request("oms", "POST", "orders/v4", json=body | terms)


def push_pid(context: Any) -> None:
    context["ti"].xcom_push("pid", os.getpid())


@dag(schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC), default_args={"retries": 2, "retry_delay": SOON})
def retries() -> None:
    OpenmarketsOperator.partial(task_id="not_pushed", openmarkets_conn_id="not_pushed").expand(
        query=[order(10), order(20)]
    )
    OpenmarketsOperator(task_id="killed", openmarkets_conn_id="killed", query=order(10), pre_execute=push_pid)
    OpenmarketsOperator(task_id="limited", openmarkets_conn_id="limited", query=queries.quotes("BHP"), retry_delay=LONG)

    @task(retry_delay=LONG, retry_policy=OpenmarketsRetryPolicy())
    def limited_hook() -> int:
        return len(OpenmarketsHook("limited_hook").run(queries.quotes("BHP")))

    @task(retry_policy=OpenmarketsRetryPolicy())
    def permanent() -> None:
        OpenmarketsHook("limited_hook").run(queries.request("oms", "GET", "nothing/v1"))

    @task(retry_policy=OpenmarketsRetryPolicy())
    def of_another_kind(ti: Any = None) -> None:
        if ti.try_number == 1:
            raise ConnectionError("This is no error of the provider's.")

    limited_hook()
    permanent()
    of_another_kind()


@dag(schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC))
def cleared() -> None:
    OpenmarketsOperator(task_id="sent", openmarkets_conn_id="cleared", query=order(10), do_xcom_push=False)


retries()
cleared()
