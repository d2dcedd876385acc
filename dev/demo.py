"""The demo: a real Airflow runs two of the example DAGs against the sandbox. See ``make demo``.

``example_quotes.py`` shows queries, the sensor and the operator; ``example_etl_daily_bars.py`` lands bars in files and
in a database. What it landed is read back, compared and drawn when Airflow is gone, and stays.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import date
from decimal import Decimal
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from tests.support.airflow import AirflowError, DagRun, RealAirflow
from tests.support.sandbox_process import SandboxProcess

ROOT = Path(__file__).parent.parent
OUTPUT = ROOT / "demo_output"
FILES, DATABASE, CHART = OUTPUT / "daily_bars", OUTPUT / "daily_bars.db", OUTPUT / "daily_bars.png"
SECONDS_TO_OPENING = 12
TABLE = "daily_bars"
COLUMNS = ("security_code", "time_series_date", "total_volume", "open_price", "high_price", "low_price", "close_price")
KEY = itemgetter("security_code", "time_series_date")
LOG_TAIL = 2000
DAYS = 3
"""Shown of each security."""

Bar = dict[str, Any]


def main() -> int:
    """Run the demo; return the exit status."""
    started = time.monotonic()

    def say(stage: str) -> None:
        print(f"[{time.monotonic() - started:5.1f} s] {stage}", flush=True)

    if OUTPUT.exists():
        shutil.rmtree(OUTPUT)
    OUTPUT.mkdir()
    try:
        runs = run_examples(say)
    except (AirflowError, RuntimeError) as error:
        print(f"The demo failed: {error}", file=sys.stderr)
        return 1
    say("everything is stopped and removed, but for what was landed")
    if [run.state for run in runs] != ["success", "success"]:
        return 1
    is_same = show_landed()
    say(f"done; see {shown(CHART)}")
    return 0 if is_same else 1


def run_examples(say: Callable[[str], None]) -> list[DagRun]:
    """Run both DAGs, and print what they did."""
    say("starting the Openmarkets sandbox (a local stand-in, not the real service) and Airflow, about a minute")
    with SandboxProcess() as sandbox, ThreadPoolExecutor() as pool:
        env = {
            "AIRFLOW_CONN_OPENMARKETS_DEFAULT": sandbox.connection_json,
            "AIRFLOW_CONN_BARS_DB": json.dumps({"conn_type": "sqlite", "host": str(DATABASE)}),
            "OPENMARKETS_LAKE": str(OUTPUT),
        }
        with RealAirflow(ROOT / "example_dags", env=env, progress=say) as airflow:
            opening = [["PRE_OPEN", SECONDS_TO_OPENING], ["OPEN", None]]
            sandbox.set_security("BHP.ASX@TM", tradingStatus=opening)
            say(f"running the DAGs example_quotes (BHP opens in {SECONDS_TO_OPENING} s) and example_etl_daily_bars")
            started = [(dag_id, airflow.start_dag(dag_id)) for dag_id in ("example_quotes", "example_etl_daily_bars")]
            quotes, bars = pool.map(lambda run: airflow.wait_for_run(*run, timeout=150), started)
            show_tasks(quotes, bars)
            if quotes.state == "success":
                show_quotes(quotes)
            show_requests(len(quotes.tasks + bars.tasks), sandbox.stats())
            return [quotes, bars]


def show_tasks(*runs: DagRun) -> None:
    """Print how the tasks of DAG runs ended."""
    print("\n" + "\n".join(f"The run of {run.dag_id} ended: {run.state}" for run in runs) + "\n")
    tasks = [
        [
            run.dag_id,
            task.task_id,
            str(task.map_index) if task.map_index >= 0 else "",
            str(task.state),
            f"{task.duration or 0:.1f}",
        ]
        for run in runs
        for task in run.tasks
    ]
    print(table([["DAG", "task", "map index", "state", "seconds"], *tasks]))
    for run in runs:
        for task in run.tasks:
            if task.state == "failed":
                print(f"\nThe end of the log of {task.task_id}:\n{run.log(task.task_id, task.map_index)[-LOG_TAIL:]}")


def show_quotes(run: DagRun) -> None:
    """Print what a run of example_quotes returned."""
    # Airflow makes its home folder when it is imported.
    os.environ["AIRFLOW_HOME"] = str(run.airflow.home)
    from airflow.sdk.serde import deserialize

    movers = deserialize(run.xcom("movers"))
    header = [f"{name} ({type(value).__name__})" for name, value in movers[0].items()]
    print("\nQuotes by move, prices in dollars, times in UTC (invented by the sandbox), and the types in Python:\n")
    print(table([header, *([str(value) for value in row.values()] for row in movers)]))
    headlines = [[row["announcementDateTime"], row["headline"]] for row in run.xcom("announcements")[:3]]
    print("\nAnnouncements, exchange time (invented by the sandbox):\n")
    print(table([["time", "headline"], *headlines]))


def show_requests(tasks: int, stats: dict[str, Any]) -> None:
    """Print what the sandbox counted."""
    tokens = ", ".join(f"{count} for {scope}" for scope, count in stats["token_requests"].items())
    print(
        f"\n{tasks} tasks, each a process of its own, and the triggerer made {sum(stats['requests'].values())} API "
        f"calls with {stats['token_requests_total']} token requests: {tokens}.\n"
    )


def show_landed() -> bool:
    """Print, compare and draw what was landed, as it is found there; return whether files and table are the same."""
    # Slow to import, and not needed before.
    from dev.chart import draw

    files, in_files = bars_in_files()
    in_table = bars_in_table()
    closes = {KEY(bar): bar["close_price"] for bar in in_table}
    last = [bar for _, bars in groupby(in_files, itemgetter("security_code")) for bar in list(bars)[-DAYS:]]
    print("\nThe last daily bars, as they are read from the files; prices in dollars (invented by the sandbox):\n")
    print(
        table(
            [[*COLUMNS, "(in the database)"]]
            + [[*map(written, bar.values()), written(closes.get(KEY(bar)))] for bar in last]
        )
    )
    days = sorted({bar["time_series_date"] for bar in in_files})
    same = sum(closes.get(KEY(bar)) == bar["close_price"] for bar in in_files)
    print(
        f"\nRead back: {len(in_files)} rows from {len(files)} Parquet files, one for each exchange day from {days[0]} "
        f"to {days[-1]},\nand {len(in_table)} rows from the database. {same} of {len(in_files)} close prices are the "
        f"same in both{', and so is the rest' if in_files == in_table else ': THEY DIFFER'}.\n"
    )
    draw(
        in_files,
        CHART,
        "Daily bars that make demo landed: invented by the sandbox, not market data",
        f"Prices in dollars, exchange dates from {days[0]} to {days[-1]}.   "
        "Blue: closed above the open. Orange: below it.",
    )
    print(
        "They stay until the next demo:\n"
        f"  {shown(FILES)}/{files[-1].relative_to(FILES)} and the other days\n"
        f"  {shown(DATABASE)}, an SQLite database with the table {TABLE}\n"
        f"  {shown(CHART)}, a picture of them\n"
        "\nNext steps: README.md, your own connection (section Connection) and your first DAG; example_dags/ to copy "
        "from;\n`.venv/bin/python -m openmarkets_provider.sandbox` to develop against the sandbox.\n"
    )
    return in_files == in_table


def bars_in_files() -> tuple[list[Path], list[Bar]]:
    """Return the Parquet files, and the bars in them by security and day."""
    import pyarrow.parquet as pq

    files = sorted(FILES.glob("*/*.parquet"))
    bars = pq.read_table(FILES, columns=list(COLUMNS)).to_pylist()
    return files, sorted(bars, key=KEY)


def bars_in_table() -> list[Bar]:
    """Return the bars in the database by security and day."""
    with closing(sqlite3.connect(DATABASE)) as connection:
        rows = connection.execute(f"select {', '.join(COLUMNS)} from {TABLE} order by 1, 2").fetchall()
    # SQLite has neither dates nor decimals, but texts and floating-point numbers, which hold 15 digits.
    return [
        dict(zip(COLUMNS, (code, date.fromisoformat(day), volume, *map(Decimal, map(str, prices))), strict=True))
        for code, day, volume, *prices in rows
    ]


def written(value: Any) -> str:
    """Write a value of a bar: a price with two digits after the point, or more if it has them."""
    if not isinstance(value, Decimal):
        return str(value)
    return f"{value:.2f}" if value == round(value, 2) else f"{value.normalize():f}"


def shown(path: Path) -> str:
    """Write a path as one from the checkout."""
    return str(path.relative_to(ROOT))


def table(rows: Sequence[Sequence[str]]) -> str:
    """Lay rows out in columns, the first as the header."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


if __name__ == "__main__":
    raise SystemExit(main())
