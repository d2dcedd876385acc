"""The demo: a real Airflow runs two of the example DAGs against the sandbox. See ``make demo``.

``example_quotes.py`` shows queries, the sensor and the operator. ``example_trading_days.py`` is backfilled over Easter:
one run per session, and none for Good Friday. After Airflow has stopped, the files are read and drawn. They are kept.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from operator import itemgetter
from pathlib import Path
from typing import Any

from openmarkets_provider.sessions.calendar import EXCHANGE_ZONE
from tests.support.airflow import AirflowError, DagRun, RealAirflow
from tests.support.sandbox_process import SandboxProcess

ROOT = Path(__file__).parent.parent
OUTPUT = ROOT / "demo_output"
FILES, CHART = OUTPUT / "bars_by_session", OUTPUT / "bars_by_session.png"
DAG_ID = "example_trading_days"
FIRST, LAST = date(2026, 4, 1), date(2026, 4, 10)
SECONDS_TO_OPENING = 12
COLUMNS = ("security_code", "time_series_date", "total_volume", "open_price", "high_price", "low_price", "close_price")
KEY = itemgetter("security_code", "time_series_date")
LOG_TAIL = 2000

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
    if {run.state for run in runs} != {"success"}:
        return 1
    show_landed()
    say(f"done; see {shown(CHART)}")
    return 0


def run_examples(say: Callable[[str], None]) -> list[DagRun]:
    """Run both DAGs, and print their results."""
    say("starting the Openmarkets sandbox (a local stand-in, not the real service) and Airflow, about a minute")
    with SandboxProcess() as sandbox:
        env = {"AIRFLOW_CONN_OPENMARKETS_DEFAULT": sandbox.connection_json, "OPENMARKETS_LAKE": str(OUTPUT)}
        with RealAirflow(ROOT / "example_dags", env=env, progress=say) as airflow:
            opening = [["PRE_OPEN", SECONDS_TO_OPENING], ["OPEN", None]]
            sandbox.set_security("BHP.ASX@TM", tradingStatus=opening)
            say(f"running example_quotes (BHP opens in {SECONDS_TO_OPENING} s), and {DAG_ID} from {FIRST} to {LAST}")
            quotes_id = airflow.start_dag("example_quotes")
            airflow.call("PATCH", f"/api/v2/dags/{DAG_ID}", {"is_paused": False})
            backfill = airflow.start_backfill(DAG_ID, str(FIRST), str(LAST), active=2)
            quotes = airflow.wait_for_run("example_quotes", quotes_id, timeout=150)
            airflow.wait_for_backfill(backfill)
            found = airflow.runs_of(DAG_ID)
            sessions = [airflow.wait_for_run(DAG_ID, run["dag_run_id"]) for run in found]
            show_tasks(quotes)
            if quotes.state == "success":
                show_quotes(quotes)
            show_sessions({run["partition_key"]: run for run in found})
            show_requests(sum(len(run.tasks) for run in (quotes, *sessions)), sandbox.stats())
            return [quotes, *sessions]


def show_sessions(runs: dict[str, dict[str, Any]]) -> None:
    """Print each day of the backfill, with its run if there is one."""
    print(f"\nThe backfill of {DAG_ID}: a run per session, with the session as its partition key.\n")
    rows = [["day", "", "run", "due after (Sydney)", "file"]]
    for number in range((LAST - FIRST).days + 1):
        day = FIRST + timedelta(days=number)
        run = runs.get(str(day))
        due = run and datetime.fromisoformat(run["run_after"]).astimezone(EXCHANGE_ZONE).isoformat(" ", "minutes")
        files = ", ".join(shown(path) for path in sorted(FILES.glob(f"*={day}/*.parquet")))
        rows.append([str(day), f"{day:%a}", run["state"] if run else "none", due or "", files])
    print(table(rows))


def show_tasks(*runs: DagRun) -> None:
    """Print the final states of the tasks of DAG runs."""
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
    """Print the results of a run of example_quotes."""
    # Airflow creates its home folder when it is imported.
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
    """Print the counts of the sandbox."""
    tokens = ", ".join(f"{count} for {scope}" for scope, count in stats["token_requests"].items())
    print(
        f"\n{tasks} tasks, each a process of its own, and the triggerer made {sum(stats['requests'].values())} API "
        f"calls with {stats['token_requests_total']} token requests: {tokens}.\n"
    )


def show_landed() -> None:
    """Print and draw the landed files."""
    # Imported here, because it is slow.
    from dev.chart import draw

    files, bars = read_bars()
    print("\nThe bars, as they are read from the files; prices in dollars (invented by the sandbox):\n")
    print(table([COLUMNS, *([written(value) for value in bar.values()] for bar in bars)]))
    draw(
        bars,
        CHART,
        "Daily bars that make demo landed: invented by the sandbox, not market data",
        f"Prices in dollars, sessions from {FIRST} to {LAST}.   Blue: closed above the open. Orange: below it.",
    )
    print(
        f"\nRead back: {len(bars)} rows from {len(files)} Parquet files. They stay until the next demo:\n"
        f"  {shown(FILES)}, one file per session\n"
        f"  {shown(CHART)}, a picture of them\n"
        "\nNext steps: README.md, your own connection (section Connect) and your first DAG; example_dags/ to copy "
        "from;\n`.venv/bin/python -m openmarkets_provider.sandbox` to develop against the sandbox.\n"
    )


def read_bars() -> tuple[list[Path], list[Bar]]:
    """Return the Parquet files, and their bars by security and day."""
    import pyarrow.parquet as pq

    bars = pq.read_table(FILES, columns=list(COLUMNS)).to_pylist()
    return sorted(FILES.glob("*/*.parquet")), sorted(bars, key=KEY)


def written(value: Any) -> str:
    """Format a value of a bar: prices have at least two decimal places."""
    if not isinstance(value, Decimal):
        return str(value)
    return f"{value:.2f}" if value == round(value, 2) else f"{value.normalize():f}"


def shown(path: Path) -> str:
    """Format a path relative to the checkout."""
    return str(path.relative_to(ROOT))


def table(rows: Sequence[Sequence[str]]) -> str:
    """Format rows as a table; the first row is the header."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


if __name__ == "__main__":
    raise SystemExit(main())
