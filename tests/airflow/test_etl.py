"""Transfers in a real Airflow: what is landed after crashes and clears, and the asset events."""

from __future__ import annotations

import csv
import gzip
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from openmarkets_provider import queries
from openmarkets_provider.client.client import OpenmarketsClient
from openmarkets_provider.client.settings import Settings
from tests.support.airflow import DagRun, RealAirflow
from tests.support.sandbox_process import SandboxProcess

pytestmark = pytest.mark.airflow

KEY = ("security_code", "exchange", "data_source", "trade_number", "trade_date_time")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxProcess]:
    with SandboxProcess() as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lake")


@pytest.fixture(scope="module")
def airflow(sandbox: SandboxProcess, lake: Path) -> Iterator[RealAirflow]:
    env = {
        "AIRFLOW_CONN_OPENMARKETS_DEFAULT": sandbox.connection_json,
        "AIRFLOW_CONN_ETL_DB": json.dumps({"conn_type": "sqlite", "host": f"{lake}/etl.db"}),
        "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(
            {"type": "file", "log_file_path": f"{lake}/lineage.jsonl", "append": True}
        ),
        "ETL_LAKE": str(lake),
    }
    with RealAirflow(Path(__file__).parent / "etl_dags", env=env, schedules=True) as airflow:
        yield airflow


@pytest.fixture(scope="module")
def undisturbed(sandbox: SandboxProcess, airflow: RealAirflow, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Answers queries by the client, without Airflow."""
    connection = sandbox.connection
    settings = Settings(
        client_id=connection["login"],
        client_secret=connection["password"],
        identity_url=connection["host"],
        **{**connection["extra"], "cache_backend": "memory"},
    )

    class NoMasker:
        def mask(self, value: str) -> None: ...
        async def amask(self, value: str) -> None: ...

    client = OpenmarketsClient(settings, store=None, masker=NoMasker(), user_agent="tests")
    yield client.run
    client.close()


def trades_in(lake: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Return the keys of the landed trades, by partition."""
    return {
        path.parent.name: sorted(tuple(row[name] for name in KEY) for row in pq.read_table(path).to_pylist())
        for path in (lake / "trades").glob("*/*")
    }


def trades_in_table(lake: Path) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(lake / "etl.db")) as connection:
        return sorted(connection.execute(f"select {', '.join(KEY[:-1])} from trades"))


@pytest.fixture(scope="module")
def incremental(airflow: RealAirflow, lake: Path) -> dict[str, tuple[DagRun, Any, Any]]:
    """Run after run: what each left in the lake and in the table."""
    report = {}

    def remember(name: str, run: DagRun) -> DagRun:
        report[name] = (run, trades_in(lake), trades_in_table(lake))
        return run

    def run(name: str, **conf: str) -> DagRun:
        return remember(name, airflow.run_dag("etl_incremental", conf=conf))

    run("killed before", end="2026-03-04", killed="before")
    second = run("killed after", end="2026-03-05T12:30:00", killed="after")
    run("undisturbed", end="2026-03-06")
    run("nothing new", end="2026-03-05")
    cleared = {"dry_run": False, "dag_run_id": second.run_id, "only_failed": False, "reset_dag_runs": True}
    airflow.call("POST", "/api/v2/dags/etl_incremental/clearTaskInstances", cleared)
    remember("cleared", airflow.wait_for_run("etl_incremental", second.run_id))
    return report


def expected(undisturbed: Any, end: str) -> list[tuple[Any, ...]]:
    rows = undisturbed(queries.trades(["BHP", "CBA"], start="2026-03-02", end=end))
    return sorted(tuple(row[name] for name in KEY) for row in rows)


@pytest.mark.parametrize(
    ("name", "end", "tries"),
    [
        ("killed before", "2026-03-04", 2),
        ("killed after", "2026-03-05T12:30:00", 2),
        ("undisturbed", "2026-03-06", 1),
        ("cleared", "2026-03-06", 3),
    ],
)
def test_an_incremental_load_lands_everything_once(incremental, undisturbed, name, end, tries):
    run, partitions, table = incremental[name]
    assert {task.task_id: (task.state, task.try_number) for task in run.tasks} == {
        "files": ("success", tries),
        "table": ("success", tries),
    }
    rows = expected(undisturbed, end)
    assert sorted(key for keys in partitions.values() for key in keys) == rows
    assert table == sorted(key[:-1] for key in rows)


def test_a_later_load_asks_for_what_is_new_and_the_overlap(incremental):
    run, _, _ = incremental["undisturbed"]
    assert run.xcom("table")["range"] == {"start": "2026-03-04T01:30:00+00:00", "end": "2026-03-05T13:00:00+00:00"}
    # Whole partitions, since they are replaced.
    assert run.xcom("files")["range"] == {"start": "2026-03-03T13:00:00+00:00", "end": "2026-03-05T13:00:00+00:00"}


def test_a_run_that_has_nothing_new_is_skipped(incremental):
    run, _, _ = incremental["nothing new"]
    assert {task.state for task in run.tasks} == {"skipped"}
    assert "is loaded up to 2026-03-05T13:00:00+00:00" in run.log("files")


def test_the_watermarks_are_kept_with_the_assets(airflow, incremental, lake):
    states = [
        entry["value"]
        for asset in airflow.call("GET", "/api/v2/assets")["assets"]
        for entry in airflow.call("GET", f"/api/v2/assets/{asset['id']}/state-store")["asset_state_store"]
        if "watermark" in entry["value"] and entry["value"]["owner"].startswith("etl_incremental.")
    ]
    assert {(state["destination"], state["watermark"]) for state in states} == {
        (f"file://{lake}/trades", "2026-03-05T13:00:00+00:00"),
        ("etl_db/trades", "2026-03-05T13:00:00+00:00"),
    }


@pytest.fixture(scope="module")
def landed(airflow: RealAirflow) -> DagRun:
    airflow.wait_until("the consumer", lambda: airflow.api("GET", "/api/v2/dags/etl_consumer")[0] == 200, 60)
    return airflow.run_dag("etl")


def test_destinations_are_rendered(landed, lake):
    path = lake / "templated" / f"{landed.run_id}.csv.gz"
    with gzip.open(path, "rt", newline="") as file:
        assert [row["time_series_date"] for row in csv.DictReader(file)] == [f"2026-03-0{day}" for day in range(2, 7)]
    assert landed.xcom("templated") == {
        "destination": f"file://{path}",
        "rows": 5,
        "bytes": path.stat().st_size,
        "files": [f"file://{path}"],
        "range": {"start": "2026-03-02", "end": "2026-03-07"},
        "skipped": [],
    }


def test_mapped_tasks_land_side_by_side(landed, lake):
    for code in ("BHP", "CBA"):
        rows = [json.loads(line) for line in (lake / "mapped" / f"{code}.jsonl").read_text().splitlines()]
        assert [row["security_code"] for row in rows] == [code] * 5
    with closing(sqlite3.connect(lake / "etl.db")) as connection:
        assert sorted(connection.execute("select security_code, count(*) from bars group by 1")) == [
            ("BHP", 5),
            ("CBA", 5),
        ]


def test_mapped_tasks_that_would_overwrite_each_other_fail(landed, lake):
    assert [landed.task("onto_one", index).state for index in (0, 1)] == ["failed", "failed"]
    assert "destination" in landed.log("onto_one", 0)
    assert not (lake / "one.jsonl").exists()


def test_snapshots_pile_up_and_a_cleared_one_takes_its_own_place(airflow, landed, lake):
    def counts() -> list[tuple[str, int]]:
        with closing(sqlite3.connect(lake / "etl.db")) as connection:
            return sorted(connection.execute("select load_id, count(*) from snapshots group by 1"))

    assert [count for _, count in counts()] == [2]
    (before,) = counts()
    asked = {
        "dry_run": False,
        "dag_run_id": landed.run_id,
        "task_ids": ["snapshots"],
        "only_failed": False,
        "reset_dag_runs": True,
    }
    airflow.call("POST", "/api/v2/dags/etl/clearTaskInstances", asked)
    airflow.wait_for_run("etl", landed.run_id)
    assert counts() == [before]


def test_an_asset_event_tells_the_consumer_what_was_landed(airflow, landed, lake):
    def consumed() -> list[str]:
        return [run["dag_run_id"] for run in airflow.call("GET", "/api/v2/dags/etl_consumer/dagRuns")["dag_runs"]]

    run = airflow.wait_for_run("etl_consumer", airflow.wait_until("the consumer's run", consumed, 60)[0])
    (extra,) = run.xcom("extras")
    assert extra == {
        "destination": f"file://{lake}/literal.parquet",
        "rows": 5,
        "bytes": (lake / "literal.parquet").stat().st_size,
        "range": {"start": "2026-03-02", "end": "2026-03-07"},
        "skipped": ["XX1.ASX@TM"],
    }


def test_openlineage_is_told_where_the_rows_come_from_and_where_they_are(landed, lake, sandbox):
    events = [json.loads(line) for line in (lake / "lineage.jsonl").read_text().splitlines()]
    (event,) = [e for e in events if e["job"]["name"] == "etl.literal" and e["eventType"] == "COMPLETE"]
    (source,) = event["inputs"]
    assert (source["namespace"], source["name"]) == (
        sandbox.connection["extra"]["market_data_url"],
        "pricing/timeseries/{security}/v2",
    )
    (output,) = event["outputs"]
    assert (output["namespace"], output["name"]) == ("file", f"{lake}/literal.parquet")
    assert output["outputFacets"]["outputStatistics"]["rowCount"] == 5
    fields = {field["name"]: field["type"] for field in output["facets"]["schema"]["fields"]}
    assert (fields["close_price"], fields["time_series_date"]) == ("decimal", "date")
    tables = [e["outputs"] for e in events if e["job"]["name"] == "etl.into_one" and e["eventType"] == "COMPLETE"]
    assert {output["name"].rpartition(".")[2] for outputs in tables for output in outputs} == {"bars"}


def test_a_task_that_is_stopped_leaves_no_trace(airflow, landed, lake, sandbox):
    folder = lake / "stopped"
    folder.mkdir()
    (folder / "bars.jsonl").write_text("what was there before\n")
    path = "/market-data/pricing/timeseriesintraday"
    sandbox.fault(target=path, kind="delay", seconds=1_000_000, times=None, after=1)
    dag = "/api/v2/dags/etl_stopped"
    airflow.call("PATCH", dag, {"is_paused": False})
    run_id = airflow.call("POST", f"{dag}/dagRuns", {"logical_date": None})["dag_run_id"]

    def staged() -> bool:
        return len(list(folder.iterdir())) > 1

    airflow.wait_until("the temporary file", staged, 60)
    airflow.call("PATCH", f"{dag}/dagRuns/{run_id}/taskInstances/endless", {"new_state": "failed"})
    airflow.wait_until("the temporary file to be gone", lambda: not staged(), 60)
    run = airflow.wait_for_run("etl_stopped", run_id)
    assert (folder / "bars.jsonl").read_text() == "what was there before\n"
    airflow.wait_until("the log", lambda: "The task was killed" in run.log("endless"), 60)
