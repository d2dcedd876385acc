"""Pull the daily bars of a watch list after every exchange day, one mapped task for each security.

## Needs

The connection `openmarkets_default`.

## Runs

- **By schedule:** at the end of every weekday in Sydney, for that day; on a Monday for the weekend before it, too. On
  an exchange holiday there is no bar, and the lists are empty.
- **By hand:** with the logical date of the form, or in a backfill, the day of the schedule; with the date cleared, the
  last weekday that is over.

The param `watch_list` says which securities.

## Why this schedule

`queries.time_series` takes exchange days from `start` up to, and without, `end`. So the data interval begins and ends
at midnight in Sydney. A cron expression as text gives an interval of no length (Airflow 3's default), which the query
refuses; an interval that ends at 18:00 leaves out the day that it ends in.

## Mapping

What an upstream task returns is not rendered by Jinja, so `pull_list` makes finished queries. For hundreds of
securities use fewer and larger queries: one takes any number of them, and makes several calls at a time.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from itertools import chain
from typing import Any
from zoneinfo import ZoneInfo

from airflow.sdk import CronDataIntervalTimetable, Param, dag, task

from openmarkets_provider import queries
from openmarkets_provider.operators.openmarkets import OpenmarketsOperator

SYDNEY = "Australia/Sydney"
FRIDAY = 4


@dag(
    schedule=CronDataIntervalTimetable("0 0 * * TUE-SAT", timezone=SYDNEY),
    start_date=datetime(2026, 1, 1, tzinfo=ZoneInfo(SYDNEY)),
    catchup=False,
    params={"watch_list": Param(["BHP", "CBA", "RIO"], type="array", items={"type": "string"}, minItems=1)},
    tags=["openmarkets"],
    doc_md=__doc__,
)
def example_end_of_day_bars() -> None:
    @task
    def pull_list(
        params: Any = None, dag_run: Any = None, data_interval_start: Any = None, data_interval_end: Any = None
    ) -> list[queries.Query]:
        """Make one query for each security of the watch list."""
        start, end = data_interval_start, data_interval_end
        if start is None:
            end = dag_run.run_after.astimezone(ZoneInfo(SYDNEY)).date()
            start = end - timedelta(days=1)
            while start.weekday() > FRIDAY:
                start -= timedelta(days=1)
        return [queries.time_series([code], start=start, end=end) for code in params["watch_list"]]

    bars = OpenmarketsOperator.partial(task_id="bars", map_index_template="{{ task.query.securities[0] }}").expand(
        query=pull_list()
    )

    @task
    def summary(pulled: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """Sum the day up; prices are Decimal and in dollars, so the arithmetic is exact until it is rounded.

        Within a day there is no split. Across days compare adjusted prices (``adjusted=True``).
        """
        return [
            {
                "security": bar["security_code"],
                "day": bar["time_series_date"],
                "close": bar["close_price"],
                "range": bar["high_price"] - bar["low_price"],
                "change_percent": (100 * (bar["close_price"] / bar["open_price"] - 1)).quantize(Decimal("0.01")),
                "volume": bar["total_volume"],
            }
            for bar in chain.from_iterable(pulled)
            if bar["open_price"]
        ]

    summary(bars.output)


example_end_of_day_bars()
