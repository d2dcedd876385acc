"""Pull the daily bars of a watch list after every exchange day, one mapped task for each security.

**Which days.** ``queries.time_series`` takes ``start`` for the first exchange day and ``end`` for the day after the
last one; of a moment it takes the day that it is in, by Sydney's clock. So the data interval has to begin and end at
midnight in Sydney. ``CronDataIntervalTimetable("0 0 * * TUE-SAT", timezone="Australia/Sydney")`` starts a run at the
end of every weekday, with an interval that holds this weekday and, on a Monday, the weekend before it. On an exchange
holiday there is no bar, and the lists are empty.

Two schedules that look right are not: a cron expression as text gives every run an interval of no length (Airflow 3's
default), which ``time_series`` refuses; a data interval that ends at 18:00 ends within the exchange day, which is then
not part of the range.

**Runs by hand.** One with a logical date, and every run of a backfill, has the data interval of a schedule. One
without (``airflow dags trigger``, or ``"logical_date": null`` over the API) has none, and takes the last weekday that
is over. The watch list is a param: ``airflow dags trigger example_end_of_day_bars --conf '{"watch_list": ["FMG"]}'``.

**Mapping.** What an upstream task returns is not rendered by Jinja, so ``pull_list`` makes finished queries from the
param and the interval. For a list that is written in the DAG, ``.expand`` takes templates too:

    OpenmarketsOperator.partial(task_id="bars").expand(
        query=[
            queries.time_series([code], start="{{ data_interval_start }}", end="{{ data_interval_end }}")
            for code in ["BHP", "CBA"]
        ]
    )

The mapped tasks together ask the identity server for one access token. For hundreds of securities use fewer and
larger queries: one takes any number of them, and makes several calls at a time.
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
