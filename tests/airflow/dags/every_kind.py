"""One DAG with every way in which a task of this provider can run."""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.sdk import dag, task

from openmarkets_provider import queries
from openmarkets_provider.operators.openmarkets import OpenmarketsOperator
from openmarkets_provider.sensors.openmarkets import OpenmarketsSensor

QUERIES = [
    queries.quotes(["BHP", "CBA"]),
    queries.accounts(),
    queries.request("news", "GET", "announcements/v1"),
]
OPEN = "[0].trading_status == '{{ 'OP' ~ 'EN' }}'"


@dag(schedule="@once", start_date=datetime(2026, 1, 1, tzinfo=UTC), default_args={"retries": 0})
def every_kind() -> None:
    mapped = OpenmarketsOperator.partial(task_id="mapped", deferrable=True).expand(
        query=[QUERIES[n % 3] for n in range(40)]
    )
    waiting = {"query": queries.quotes(["{{ 'R' ~ 'IO' }}"]), "condition": OPEN, "poke_interval": 3, "timeout": 400}
    deferred = OpenmarketsSensor(task_id="deferred", deferrable=True, **waiting)
    rescheduled = OpenmarketsSensor(task_id="rescheduled", mode="reschedule", push_value=True, **waiting)
    resumed = OpenmarketsSensor(task_id="resumed", deferrable=True, push_value=True, **waiting)
    rate_limited = OpenmarketsOperator(
        task_id="rate_limited", query=queries.portfolio_details(["SBX0001"]), deferrable=True
    )
    # Deferrable, since it may start during the hold that the task above causes.
    not_found = OpenmarketsOperator(
        task_id="not_found", query=queries.request("oms", "GET", "nothing/v1"), retries=3, deferrable=True
    )

    @task(trigger_rule="all_done")
    def end() -> None:
        pass

    [mapped, deferred, rescheduled, resumed, rate_limited, not_found] >> end()


every_kind()
