"""Place a basket of orders as a dry run, and show the requests.

## Needs

The connection `openmarkets_default`. `make demo` runs it against the sandbox.

## Tasks

- **basket** makes the orders. Prices are in dollars.
- **place** is mapped: one task for each order. As a dry run, it makes all checks, and returns the request with prices
  in native units. With `DRY_RUN = False` it places the orders, if the connection's field *Orders* allows it.
- **report** lists them.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import Asset, dag, task

from openmarkets_provider import orders
from openmarkets_provider.operators.orders import OpenmarketsOrderOperator

DRY_RUN = True
ACCOUNT = "SBX0001"
BASKET = {"BHP": "45.50", "RIO": "120.00", "CBA": "110.00"}


@dag(schedule=None, tags=["openmarkets"], doc_md=__doc__)
def example_orders() -> None:
    @task
    def basket() -> list[orders.Instruction]:
        """Buy 10 shares of each."""
        return [orders.limit(code, account=ACCOUNT, buy=10, price=price) for code, price in BASKET.items()]

    placed = OpenmarketsOrderOperator.partial(
        task_id="place",
        max_value="5000",
        dry_run=DRY_RUN,
        inlets=[Asset(f"openmarkets_orders_{ACCOUNT}")],
        map_index_template="{{ task.order.security }}",
    ).expand(order=basket())

    @task
    def report(results: list[dict[str, Any]]) -> list[str]:
        """Return a line for each order that was or would be placed."""
        return [f"{result['tag']}: {result.get('order_number') or result['body']}" for result in results]

    report(placed.output)


example_orders()
