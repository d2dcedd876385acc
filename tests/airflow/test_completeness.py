"""The example of trading days in a real Airflow: sessions are loaded, a month is checked, repaired and summed up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest

from openmarkets_provider.sessions.calendar import ASX
from tests.support.airflow import DagRun, RealAirflow
from tests.support.pages import ROOT
from tests.support.sandbox_process import SandboxProcess

pytestmark = [pytest.mark.airflow, pytest.mark.nightly]

APRIL = [str(day) for day in ASX.sessions_in_range("2026-04-01", "2026-04-30")]
LOADED = APRIL[:2]
CODES = ["BHP", "CBA", "RIO"]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lake")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxProcess]:
    with SandboxProcess() as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def airflow(sandbox: SandboxProcess, lake: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealAirflow]:
    dags = tmp_path_factory.mktemp("dags")
    example = ROOT / "example_dags" / "example_trading_days.py"
    (dags / example.name).write_text(example.read_text())
    env = {"AIRFLOW_CONN_OPENMARKETS_DEFAULT": sandbox.connection_json, "OPENMARKETS_LAKE": str(lake)}
    with RealAirflow(dags, env=env, schedules=True) as airflow:
        path = "/api/v2/dags/example_trading_month"
        airflow.wait_until("the DAGs", lambda: airflow.api("GET", path)[0] == httpx.codes.OK, 120)
        yield airflow


@pytest.fixture(scope="module")
def sessions(airflow: RealAirflow) -> dict[str, DagRun]:
    """Load two sessions, by hand."""
    path = "/api/v2/dags/example_trading_days/dagRuns"
    started = {
        day: airflow.call("POST", path, {"logical_date": None, "partition_key": day})["dag_run_id"] for day in LOADED
    }
    return {day: airflow.wait_for_run("example_trading_days", run_id) for day, run_id in started.items()}


@pytest.fixture(scope="module")
def month(airflow: RealAirflow, sessions: dict[str, DagRun]) -> DagRun:
    """Say of the other sessions that they are loaded, and run the month."""
    (asset,) = [each["id"] for each in airflow.call("GET", "/api/v2/assets")["assets"] if "by_session" in each["name"]]
    for session in APRIL[len(LOADED) :]:
        airflow.call("POST", "/api/v2/assets/events", {"asset_id": asset, "partition_key": session})
    path = "/api/v2/dags/example_trading_month/dagRuns"
    (run,) = airflow.wait_until("the month", lambda: airflow.call("GET", path)["dag_runs"], 120)
    assert run["partition_key"] == "2026-04"
    return airflow.wait_for_run("example_trading_month", run["dag_run_id"], timeout=400)


def test_a_run_loads_the_file_of_its_session(sessions):
    for day, run in sessions.items():
        assert run.state == "success", run
        (url,) = run.xcom("bars")["files"]
        assert url.endswith(f"bars_by_session/exchange_date={day}/part-0.parquet")
        assert run.xcom("bars")["rows"] == len(CODES)


def test_what_is_missing_in_the_month_is_listed_repaired_and_checked_again(month, lake):
    assert month.state == "success", month
    missing = [(each["session"], each["security"]) for each in month.xcom("check", "missing")]
    assert missing == [(day, f"{code}.ASX@TM") for day in APRIL[len(LOADED) :] for code in CODES]
    (query,) = month.xcom("check")
    assert (query["start"], query["end"], query["securities"]) == (
        APRIL[2],
        "2026-05-01",
        [f"{code}.ASX@TM" for code in CODES],
    )
    assert month.task("repair", 0).state == "success"
    assert month.xcom("complete") == []
    files = {path.parent.name.removeprefix("exchange_date="): path for path in lake.rglob("*.parquet")}
    assert [pq.ParquetFile(files[day]).metadata.num_rows for day in APRIL] == [len(CODES)] * len(APRIL)


def test_the_month_is_summed_up(month):
    assert [(row["security"], row["sessions"]) for row in month.xcom("turnover")] == [
        (code, len(APRIL)) for code in CODES
    ]
