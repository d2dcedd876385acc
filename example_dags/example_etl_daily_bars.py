"""Land the daily bars of a watch list in Parquet files and in a SQL table, after every exchange day.

## Needs

The extras `parquet` and `sql`, and two connections: `openmarkets_default`, and a database (`bars_db`, or the value of
the param `database`). `make demo` runs it against the sandbox.

## Runs

- **By schedule:** at the end of every weekday in Sydney, for the days of the data interval.
- **By hand:** start here. Clear the logical date in the form, and the run loads the last `weeks` weeks up to yesterday.
  With a logical date, as in a backfill, it loads the days of the schedule.

Runs load whole days that are over, so they are repeatable: retried, cleared or backfilled runs leave the same data, in
any order.

## Where the rows go

- **Files:** `<lake>/daily_bars/exchange_date=2026-11-20/part-0.parquet`, one for each exchange day. DuckDB, polars,
  pyarrow and Spark read them as one table. A day's file is replaced as a whole, so another watch list needs another
  `lake`.
- **Table** `daily_bars`: new bars are inserted, existing ones updated.
- **Adjusted prices** are those at the time of the load. After a split, bars of earlier loads are not comparable until
  they are loaded again. So each run summarises only its own bars.

Usually one of the two loads is enough. Rows do not go through XCom: a load returns the location of its rows. `summary`
checks that both loads have the same number of rows. Both update assets, which start `example_etl_daily_bars_landed`.
"""

from __future__ import annotations

import os
import tempfile
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import groupby
from operator import itemgetter
from typing import Any
from zoneinfo import ZoneInfo

from airflow.sdk import Asset, CronDataIntervalTimetable, ObjectStoragePath, Param, dag, task
from airflow.sdk.exceptions import AirflowFailException

from openmarkets_provider import queries
from openmarkets_provider.transfers.openmarkets_to_object_storage import OpenmarketsToObjectStorageOperator
from openmarkets_provider.transfers.openmarkets_to_sql import OpenmarketsToSqlOperator

SYDNEY = "Australia/Sydney"
LAKE = os.environ.get("OPENMARKETS_LAKE", f"{tempfile.gettempdir()}/openmarkets_lake")
# Their location is a param of the run; their names are fixed.
FILES, TABLE = Asset("openmarkets_daily_bars_files"), Asset("openmarkets_daily_bars_table")

Row = dict[str, Any]


@dag(
    schedule=CronDataIntervalTimetable("0 0 * * TUE-SAT", timezone=SYDNEY),
    start_date=datetime(2026, 1, 1, tzinfo=ZoneInfo(SYDNEY)),
    catchup=False,
    # Two concurrent runs would replace the same files.
    max_active_runs=1,
    params={
        "watch_list": Param(["BHP", "CBA", "RIO"], type="array", items={"type": "string"}, minItems=1),
        "weeks": Param(12, type="integer", minimum=1, maximum=52, description="for a run without a logical date"),
        "lake": Param(LAKE, type="string", minLength=1, description="a folder, or a URL of an object store"),
        "lake_conn_id": Param(None, type=["null", "string"], description="empty: the workers have credentials"),
        "database": Param("bars_db", type="string", minLength=1, description="id of the database's connection"),
    },
    tags=["openmarkets"],
    doc_md=__doc__,
)
def example_etl_daily_bars() -> None:
    @task
    def which_days(
        params: Any = None, dag_run: Any = None, data_interval_start: Any = None, data_interval_end: Any = None
    ) -> queries.Query:
        """Return a query for the bars of the data interval, or of some weeks up to the day before the run."""
        start, end = data_interval_start, data_interval_end
        if start is None:
            end = dag_run.run_after.astimezone(ZoneInfo(SYDNEY)).date()
            start = end - timedelta(weeks=params["weeks"])
        return queries.time_series(params["watch_list"], start=start, end=end, adjusted=True)

    bars = which_days()
    files = OpenmarketsToObjectStorageOperator(
        task_id="to_files",
        query=bars,
        destination="{{ params.lake }}/daily_bars",
        conn_id="{{ params.lake_conn_id or '' }}",
        partition="day",
        outlets=[FILES],
    )
    table = OpenmarketsToSqlOperator(
        task_id="to_table",
        query=bars,
        table="daily_bars",
        conn_id="{{ params.database }}",
        mode="upsert",
        outlets=[TABLE],
    )

    @task
    def summary(files: Row, table: Row, params: Any = None) -> list[Row]:
        """Read the files, check that no bar is missing or duplicated, and summarise each security."""
        import pyarrow.parquet as pq

        rows: list[Row] = []
        for url in files["files"]:
            with ObjectStoragePath(url, conn_id=params["lake_conn_id"] or None).open("rb") as file:
                rows += pq.read_table(file).to_pylist()
        bars = {(row["security_code"], row["time_series_date"]): row for row in rows}
        if not len(bars) == len(rows) == files["rows"] == table["rows"]:
            raise AirflowFailException(
                f"{files['rows']} rows were landed in the files and {table['rows']} in the table, and there are "
                f"{len(rows)} in the files, {len(bars)} of them different ones."
            )
        traded = [bars[key] for key in sorted(bars) if bars[key]["adjusted_open_price"]]
        return [sum_up(list(of_one)) for _, of_one in groupby(traded, itemgetter("security_code"))]

    summary(files.output, table.output)


def sum_up(bars: list[Row]) -> Row:
    """Summarise the bars of one security. Prices are Decimal, in dollars.

    Prices of different days are compared adjusted: a split is not a loss.
    """
    first, last = bars[0], bars[-1]
    return {
        "security": last["security_code"],
        "days": len(bars),
        "last_day": last["time_series_date"],
        "close": last["close_price"],
        "low": min(bar["adjusted_low_price"] for bar in bars),
        "high": max(bar["adjusted_high_price"] for bar in bars),
        "change_percent": (100 * (last["adjusted_close_price"] / first["adjusted_open_price"] - 1)).quantize(
            Decimal("0.01")
        ),
        "volume": sum(bar["adjusted_total_volume"] for bar in bars),
    }


@dag(schedule=[FILES, TABLE], tags=["openmarkets"])
def example_etl_daily_bars_landed() -> None:
    """Run when both loads of `example_etl_daily_bars` are done."""

    @task
    def what_is_new(triggering_asset_events: Any = None) -> Row:
        """Return the extra of the last event of each asset: destination, rows, bytes and range."""
        return {asset.name: events[-1].extra for asset, events in triggering_asset_events.items()}

    what_is_new()


example_etl_daily_bars()
example_etl_daily_bars_landed()
