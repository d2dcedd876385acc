"""A basket of orders, an order for each mapped task."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import Asset, dag

from openmarkets_provider import orders
from openmarkets_provider.operators.orders import OpenmarketsOrderOperator

ORDERS = [orders.limit("BHP", account="SBX0001", buy=1 + number, price="45.50") for number in range(24)]


@dag(schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC))
def basket() -> None:
    OpenmarketsOrderOperator.partial(
        task_id="buy",
        retries=20,
        retry_delay=timedelta(seconds=1),
        max_active_tis_per_dagrun=4,
        inlets=[Asset("openmarkets_orders_SBX0001")],
        wait_for="done",
        deferrable=False,
        poke_interval=0.5,
    ).expand(order=ORDERS)


basket()
