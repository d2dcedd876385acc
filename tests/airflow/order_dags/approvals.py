"""Orders that wait for a person."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import dag

from openmarkets_provider import orders
from openmarkets_provider.operators.orders import Approval, OpenmarketsOrderOperator


def asked(task_id: str, **kwargs: Any) -> OpenmarketsOrderOperator:
    return OpenmarketsOrderOperator(
        task_id=task_id,
        order=orders.limit("BHP", account="SBX0001", buy=100, price="45.50", notes=task_id),
        approval=Approval(timeout=timedelta(minutes=30)),
        max_value="5000",
        **kwargs,
    )


@dag(schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC), default_args={"retries": 0})
def approvals() -> None:
    asked("approved")
    asked("rejected")


approvals()
