"""Tasks that end in every way that a person reads of in a log. Marked: ticket-7316."""

from __future__ import annotations

from airflow.sdk import dag, task

from openmarkets_provider import queries
from openmarkets_provider.operators.openmarkets import OpenmarketsOperator
from openmarkets_provider.sensors.openmarkets import OpenmarketsSensor


@dag(schedule=None, default_args={"retries": 0})
def outcomes() -> None:
    OpenmarketsOperator(task_id="succeeds", query=queries.quotes(["{{ 'B' ~ 'HP' }}", "CBA"]))
    # Retries, of which a permanent error uses none.
    OpenmarketsOperator(task_id="fails", query=queries.accounts(), openmarkets_conn_id="market_data_only", retries=3)
    OpenmarketsOperator(
        task_id="rate_limited",
        query=queries.request("news", "GET", "announcements/v1", params={"marked": "ticket-7316"}),
        deferrable=True,
    )
    OpenmarketsSensor(
        task_id="waits",
        query=queries.quotes(["RIO"]),
        condition="[0].trading_status == 'OPEN'",
        poke_interval=3,
        deferrable=True,
    )

    @task
    def prints() -> str:
        print("ticket-7316")
        return "ticket-7316"

    prints()


outcomes()
