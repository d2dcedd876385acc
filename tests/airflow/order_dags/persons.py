"""Orders that wait for a person, and one that a person kills."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import dag

from openmarkets_provider import orders
from openmarkets_provider.operators.orders import Approval, OpenmarketsOrderOperator


def place(task_id: str, account: str = "SBX0001", **kwargs: Any) -> OpenmarketsOrderOperator:
    return OpenmarketsOrderOperator(
        task_id=task_id,
        order=orders.limit("BHP", account=account, buy=100, price="45.50", notes=task_id),
        max_value="5000",
        **kwargs,
    )


@dag(schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC), default_args={"retries": 0})
def persons() -> None:
    approval = Approval(timeout=timedelta(minutes=30))
    place("approved", approval=approval)
    place("rejected", approval=approval)
    place("unknown")


@dag(schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC), default_args={"retries": 0})
def killed() -> None:
    waits: dict[str, Any] = {"wait_for": "done", "cancel_on_kill": True, "poke_interval": 1}
    place("deferred", "SBX0001", deferrable=True, **waits)
    place("in_worker", "SBX0002", deferrable=False, **waits)


persons()
killed()
