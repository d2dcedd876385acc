"""Check every evening that orders, own trades and positions agree.

## Needs

The connection `openmarkets_default`, whose plan has the OMS API and, for price multipliers, the market-data API.

## Runs

Every weekday at 16:45 in Sydney, after the close: orders, trades and positions are queried one after the other, and
must not change meanwhile. If they differ, the task is retried, since a position may be booked late.

## What is compared

- The done volume and value of each order of the last three days with its trades.
- The trades of the day with the orders: each must have one.
- The position of each account and security with the trades of the day.

If they differ, the task fails, and the log of `report` has a table of the differences. The default accounts of the
sandbox have filled orders without a trade, so the task fails with them. With accounts that you set, it succeeds.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from airflow.sdk import CronTriggerTimetable, dag, task

from openmarkets_provider.operators.reconciliation import OpenmarketsReconciliationCheck

SYDNEY = "Australia/Sydney"


@dag(
    schedule=CronTriggerTimetable("45 16 * * MON-FRI", timezone=SYDNEY),
    start_date=datetime(2026, 1, 1, tzinfo=ZoneInfo(SYDNEY)),
    catchup=False,
    tags=["openmarkets"],
    doc_md=__doc__,
)
def example_reconciliation() -> None:
    check = OpenmarketsReconciliationCheck(task_id="check", retries=2, retry_delay=timedelta(minutes=10))

    @task(trigger_rule="all_failed")
    def report(differences: list[dict[str, Any]]) -> None:
        """Print a line for each difference."""
        for each in differences:
            of = f"order {each['order_number']}" if each["order_number"] else "position"
            print(
                f"{each['account_code']:10} {each['security_code']:8} {of:18} {each['field']:20} "
                f"{each['reported']!s:>14} {each['by_trades']!s:>14}"
            )

    report(check.output)


example_reconciliation()
