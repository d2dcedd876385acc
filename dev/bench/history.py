"""The benchmark of long loads: daily bars of a whole exchange, five years, and two by session. See :mod:`dev.bench`.

The sandbox generates the bars on the same machine, which takes most of the time. Each load is a task in its own
process, without a running Airflow.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from openmarkets_provider.sessions.calendar import ASX
from tests.support.postgres import Postgres
from tests.support.sandbox_process import SandboxProcess

YEARS = {"start": "2021-01-01", "end": "2026-01-01"}
TWO_YEARS = {"start": "2024-01-01", "end": "2026-01-01"}
COUNTED = 3
"""Sessions that are loaded one by one; the calls of the others are extrapolated."""

TASK = """
import json, sys, time
from openmarkets_provider import queries
from openmarkets_provider.transfers.openmarkets_to_object_storage import OpenmarketsToObjectStorageOperator
from openmarkets_provider.transfers.openmarkets_to_sql import OpenmarketsToSqlOperator
from tests.support.context import context
kind, arguments = json.loads(sys.argv[1])
task = {"files": OpenmarketsToObjectStorageOperator, "table": OpenmarketsToSqlOperator}[kind](
    task_id="history", query=queries.time_series(exchange="ASX", **json.loads(sys.argv[2])), **arguments
)
cpu, wall = time.process_time(), time.monotonic()
report = context()
result = task.execute(report)
figures = {"rows": result["rows"], "files": len(result["files"]), "bytes": result["bytes"]}
figures["keys"] = sum(len(event.partition_keys) for event in report["outlet_events"].values())
figures |= {"cpu": time.process_time() - cpu, "wall": time.monotonic() - wall}
# Not getrusage: its figure begins with the peak of the process that started this one.
with open("/proc/self/status") as status:
    figures["peak"] = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
print("figures", json.dumps(figures))
"""


def history() -> None:
    """Run the loads and print their figures; ``AIRFLOW_HOME`` is set."""
    with SandboxProcess() as sandbox, Postgres() as server, tempfile.TemporaryDirectory() as folder:
        os.environ["AIRFLOW_CONN_OPENMARKETS_DEFAULT"] = sandbox.connection_json
        os.environ["AIRFLOW_CONN_BENCH_DB"] = server.airflow_connection("postgres")
        lake = {"destination": f"{folder}/bars", "partition": "month"}
        print(
            f"\nDaily bars of the sandbox's whole exchange, {YEARS['start']} to {YEARS['end']}, {os.cpu_count()} CPUs"
        )
        for words, kind, arguments in (
            ("as Parquet by month", "files", lake),
            ("into a new table of PostgreSQL (upsert)", "table", {"table": "bars", "conn_id": "bench_db"}),
        ):
            sandbox.reset()
            show_load(words, load(kind, arguments, YEARS), sandbox.stats()["by_path"])
        check(Path(folder) / "bars", server)


def sessions() -> None:
    """Load two years by session in one run, and some sessions in separate runs; ``AIRFLOW_HOME`` is set."""
    days = ASX.sessions_in_range("2024-01-01", "2025-12-31")
    with SandboxProcess() as sandbox, tempfile.TemporaryDirectory() as folder:
        os.environ["AIRFLOW_CONN_OPENMARKETS_DEFAULT"] = sandbox.connection_json
        lake = {"destination": f"{folder}/bars", "partition": "day"}
        print(f"\nDaily bars of the sandbox's whole exchange, the {len(days)} sessions of 2024 and 2025, by day")
        sandbox.reset()
        figures = load("files", lake | {"emit_partitions": True}, TWO_YEARS)
        show_load(f"one run, {figures['keys']} keys", figures, sandbox.stats()["by_path"])
        sandbox.reset()
        runs = [load("files", lake, {"session": str(day)}) for day in days[:COUNTED]]
        calls = sum(sandbox.stats()["by_path"].values())
        print(
            f"  a run for each of {COUNTED} sessions: {calls} calls, {sum(run['wall'] for run in runs):.0f} s; "
            f"extrapolated to {len(days)} sessions: {calls * len(days) // COUNTED} calls"
        )


def load(kind: str, arguments: dict[str, Any], days: dict[str, str]) -> dict[str, Any]:
    """Run a task in a new process, and return its figures."""
    command = [sys.executable, "-c", TASK, json.dumps([kind, arguments]), json.dumps(days)]
    lines = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    # Airflow logs to the standard output, too.
    figures: dict[str, Any] = json.loads(next(line for line in lines if line.startswith("figures "))[8:])
    return figures


def show_load(words: str, figures: dict[str, Any], calls: dict[str, int]) -> None:
    """Print the figures of a load."""
    bars = sum(count for path, count in calls.items() if "/timeseries/" in path)
    files = f" in {figures['files']} files, {figures['bytes'] / 1e6:.0f} MB" if figures["files"] else ""
    print(
        f"  {words}: {bars} calls for bars and {sum(calls.values()) - bars} others, {figures['rows']} rows{files}, "
        f"{figures['wall']:.0f} s ({figures['rows'] / figures['wall']:.0f} rows/s), {figures['cpu']:.0f} s of CPU, "
        f"peak memory {figures['peak']:.0f} MiB"
    )


def check(folder: Path, server: Postgres) -> None:
    """Check that both loads have the same rows."""
    import pyarrow.dataset as ds

    bars = ds.dataset(folder).to_table(columns=["security_code", "time_series_date", "close_price"])
    with server.connect() as connection:
        counted = connection.execute("SELECT count(*), count(DISTINCT security_code), sum(close_price) FROM bars")
        rows, securities, closes = counted.fetchone()
    assert (bars.num_rows, len(bars["security_code"].unique())) == (rows, securities)
    assert sum(price for price in bars["close_price"].to_pylist() if price is not None) == closes
    print(f"  both hold the same {rows} rows of {securities} securities")
