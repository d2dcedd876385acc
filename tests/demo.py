"""The demo: a real Airflow runs ``example_dags/example_quotes.py`` against the sandbox. See ``make demo``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.airflow import AirflowError, DagRun, RealAirflow
from tests.support.sandbox_process import SandboxProcess

DAGS = Path(__file__).parent.parent / "example_dags"
SECONDS_TO_OPENING = 12


def main() -> int:
    """Run the demo; return the exit status."""
    started = time.monotonic()

    def say(stage: str) -> None:
        print(f"[{time.monotonic() - started:5.1f} s] {stage}", flush=True)

    say("starting the Openmarkets sandbox (a local stand-in, not the real service) and Airflow, about a minute")
    try:
        with SandboxProcess() as sandbox:
            env = {"AIRFLOW_CONN_OPENMARKETS_DEFAULT": sandbox.connection_json}
            with RealAirflow(DAGS, env=env, progress=say) as airflow:
                opening = [["PRE_OPEN", SECONDS_TO_OPENING], ["OPEN", None]]
                sandbox.set_security("BHP.ASX@TM", tradingStatus=opening)
                say(f"running the DAG example_quotes; BHP opens in {SECONDS_TO_OPENING} s")
                run = airflow.run_dag("example_quotes", timeout=150)
                show(run, sandbox.stats())
    except (AirflowError, RuntimeError) as error:
        print(f"The demo failed: {error}", file=sys.stderr)
        return 1
    say("everything is stopped and removed")
    return 0 if run.state == "success" else 1


def show(run: DagRun, stats: dict[str, Any]) -> None:
    """Print what happened."""
    # Airflow makes its home folder when it is imported.
    os.environ["AIRFLOW_HOME"] = str(run.airflow.home)
    from airflow.sdk.serde import deserialize

    print(f"\nThe DAG run ended: {run.state}\n")
    print(
        table(
            [["task", "map index", "state", "seconds"]]
            + [
                [
                    task.task_id,
                    str(task.map_index) if task.map_index >= 0 else "",
                    str(task.state),
                    f"{task.duration or 0:.1f}",
                ]
                for task in run.tasks
            ]
        )
    )
    movers = deserialize(run.xcom("movers"))
    header = [f"{name} ({type(value).__name__})" for name, value in movers[0].items()]
    print("\nQuotes by move, prices in dollars, times in UTC (invented by the sandbox), and the types in Python:\n")
    print(table([header, *([str(value) for value in row.values()] for row in movers)]))
    headlines = [[row["announcementDateTime"], row["headline"]] for row in run.xcom("announcements")[:3]]
    print("\nAnnouncements, exchange time (invented by the sandbox):\n")
    print(table([["time", "headline"], *headlines]))
    tokens = ", ".join(f"{count} for {scope}" for scope, count in stats["token_requests"].items())
    calls = sum(stats["requests"].values())
    print(
        f"\n{len(run.tasks)} tasks, each a process of its own, and the triggerer made {calls} API calls with "
        f"{stats['token_requests_total']} token requests: {tokens}.\n"
        "\nNext steps: README.md, your own connection (section Connection) and your first DAG; example_dags/ to copy "
        "from;\n`.venv/bin/python -m openmarkets_provider.sandbox` to develop against the sandbox.\n"
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """Lay rows out in columns, the first as the header."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


if __name__ == "__main__":
    raise SystemExit(main())
