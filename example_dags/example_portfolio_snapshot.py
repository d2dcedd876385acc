"""Take a snapshot of the value of all accounts that the client can see, with their orders by state.

## Needs

The connection `openmarkets_default`, whose plan has the OMS API.

## Runs

Every weekday at 16:30 in Sydney, and by hand at any time. A snapshot shows the current state, so runs have no data
interval.

## What is counted

- `queries.cash`, `queries.positions` and `queries.orders` without arguments return everything that the client can see.
- A portfolio that several accounts share is queried once, and counts for the account in its rows. A row of an account
  that is not listed fails the task, so that no money is missing.
- Child orders are left out: their parents include their volume.

Values keep their types through XCom. Airflow (3.3.2) stores a `Decimal` with a fraction as a floating-point number with
15 significant digits, which is enough for a balance.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from datetime import datetime
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from airflow.sdk import CronTriggerTimetable, dag, task
from airflow.sdk.exceptions import AirflowFailException

from openmarkets_provider import queries
from openmarkets_provider.operators.openmarkets import OpenmarketsOperator

SYDNEY = "Australia/Sydney"
ORDER_STATES = ("working", "pending", "finished", "failed")

Rows = list[dict[str, Any]]


@dag(
    schedule=CronTriggerTimetable("30 16 * * MON-FRI", timezone=SYDNEY),
    start_date=datetime(2026, 1, 1, tzinfo=ZoneInfo(SYDNEY)),
    catchup=False,
    tags=["openmarkets"],
    doc_md=__doc__,
)
def example_portfolio_snapshot() -> None:
    accounts = OpenmarketsOperator(task_id="accounts", query=queries.accounts())
    cash = OpenmarketsOperator(task_id="cash", query=queries.cash())
    positions = OpenmarketsOperator(task_id="positions", query=queries.positions())
    orders = OpenmarketsOperator(task_id="orders", query=queries.orders(include_child_orders=False))

    @task
    def snapshot(accounts: Rows, cash: Rows, positions: Rows, orders: Rows) -> Rows:
        """Return a table with a row for each account."""
        if len({row["currency_code"] for row in cash}) > 1:
            raise AirflowFailException("There is cash in several currencies, which can't be added up.")
        balance: defaultdict[str, Decimal] = defaultdict(Decimal)
        holdings: defaultdict[str, Decimal] = defaultdict(Decimal)
        # Values that the API leaves out are None.
        for row in cash:
            balance[row["account_code"]] += row["net_cash"] or 0
        for row in positions:
            holdings[row["account_code"]] += row["market_value"] or 0
        if strangers := (balance.keys() | holdings.keys()) - {account["account_code"] for account in accounts}:
            raise AirflowFailException(
                f"Cash or positions of accounts that are not listed: {sorted(map(str, strangers))}."
            )
        states = Counter((order["account_code"], order["state"]) for order in orders)
        return [
            {
                "account": account["account_code"],
                "name": account["account_name"],
                "cash": balance[account["account_code"]],
                "holdings": holdings[account["account_code"]],
                "total": balance[account["account_code"]] + holdings[account["account_code"]],
                "orders": {state: states[account["account_code"], state] for state in ORDER_STATES},
            }
            for account in accounts
        ]

    snapshot(accounts.output, cash.output, positions.output, orders.output)


example_portfolio_snapshot()
