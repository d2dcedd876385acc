"""Land the daily bars of each trading day. At the end of a month, check for missing bars, and load them.

## Needs

Airflow 3.3, the extra `parquet`, and the connection `openmarkets_default`. All workers share the folder in the
environment variable `OPENMARKETS_LAKE`.

## Runs

- **example_trading_days** runs once for each session, 20 minutes after its close; on Good Friday it does not run. The
  partition key of a run is its session, such as `2026-04-02`, and `session="{{ partition_key }}"` loads that day. A
  backfill from 2026-04-01 to 2026-04-30 has 20 runs.
- **example_trading_month** runs once for each month, after its last session was loaded.

## Late

The bars of a session are due 90 minutes after its close. If they are late, `SmtpNotifier` sends a mail with the
connection `smtp_default`.

## Check and repair

`check` compares the month's sessions with the files, and returns queries for missing bars. `repair` is mapped over
them, and is skipped if there are none. `complete` fails if bars are still missing.
"""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from airflow.sdk import (
    Asset,
    AsyncCallback,
    DeadlineAlert,
    PartitionedAssetTimetable,
    RollupMapper,
    StartOfMonthMapper,
    dag,
    task,
)

from openmarkets_provider import queries
from openmarkets_provider.checks.completeness import OpenmarketsCompletenessCheck
from openmarkets_provider.timetables.deadline import SessionCloseDeadline
from openmarkets_provider.timetables.trading_days import TradingDayTimetable
from openmarkets_provider.timetables.windows import TradingMonthWindow
from openmarkets_provider.transfers.openmarkets_to_object_storage import OpenmarketsToObjectStorageOperator

SYDNEY = "Australia/Sydney"
WATCH_LIST = ["BHP", "CBA", "RIO"]
LAKE = os.environ.get("OPENMARKETS_LAKE", f"{tempfile.gettempdir()}/openmarkets_lake")
FOLDER: dict[str, Any] = {"destination": f"{LAKE}/bars_by_session", "partition": "day"}
BARS = Asset("openmarkets_bars_by_session")
LATE = DeadlineAlert(
    reference=SessionCloseDeadline(),
    interval=timedelta(minutes=90),
    callback=AsyncCallback(
        "airflow.providers.smtp.notifications.smtp.SmtpNotifier",
        kwargs={"to": "data@example.com", "subject": "The bars of {{ dag_run.partition_key }} are late"},
    ),
)


@dag(
    schedule=TradingDayTimetable(),
    start_date=datetime(2026, 1, 1, tzinfo=ZoneInfo(SYDNEY)),
    catchup=False,
    deadline=LATE,
    tags=["openmarkets"],
    doc_md=__doc__,
)
def example_trading_days() -> None:
    OpenmarketsToObjectStorageOperator(
        task_id="bars",
        query=queries.time_series(WATCH_LIST, session="{{ partition_key }}"),
        outlets=[BARS],
        **FOLDER,
    )


@dag(
    schedule=PartitionedAssetTimetable(
        assets=BARS,
        default_partition_mapper=RollupMapper(
            upstream_mapper=StartOfMonthMapper(input_format="%Y-%m-%d", timezone=SYDNEY),
            window=TradingMonthWindow(),
        ),
    ),
    tags=["openmarkets"],
    doc_md=__doc__,
)
def example_trading_month() -> None:
    @task
    def which_month(partition_key: Any = None) -> queries.Query:
        """Return a query for the month of the run's partition, such as `2026-04`."""
        first = date.fromisoformat(f"{partition_key}-01")
        return queries.time_series(WATCH_LIST, start=first, end=(first + timedelta(days=31)).replace(day=1))

    bars = which_month()
    check = OpenmarketsCompletenessCheck(
        task_id="check", query=bars, destination=FOLDER["destination"], on_missing="warn"
    )
    repair = OpenmarketsToObjectStorageOperator.partial(
        task_id="repair",
        if_exists="merge",
        # Each merge rewrites the month's file.
        max_active_tis_per_dag=1,
        map_index_template="{{ task.query.start }}: {{ task.query.securities | join(', ') }}",
        **FOLDER,
    ).expand(query=check.output)
    complete = OpenmarketsCompletenessCheck(
        task_id="complete", query=bars, destination=FOLDER["destination"], trigger_rule="none_failed"
    )

    @task
    def turnover(partition_key: Any = None) -> list[dict[str, Any]]:
        """Summarise the month by security: sessions with a bar, and the traded value in dollars."""
        import pyarrow.dataset as ds

        folder = ds.dataset(Path(FOLDER["destination"]), format="parquet", partitioning="hive")
        days: dict[str, list[Decimal]] = defaultdict(list)
        for bar in folder.to_table(columns=["security_code", "time_series_date", "total_value"]).to_pylist():
            if f"{bar['time_series_date']:%Y-%m}" == partition_key:
                days[bar["security_code"]].append(bar["total_value"])
        return [{"security": code, "sessions": len(days[code]), "value": sum(days[code])} for code in sorted(days)]

    repair >> complete >> turnover()


example_trading_days()
example_trading_month()
