"""Loads by session in a real Airflow: backfills, histories, and the DAGs that their partitions trigger."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.airflow import RealAirflow
from tests.support.sandbox_process import SandboxProcess

pytestmark = pytest.mark.airflow

EASTER = ["2026-04-01", "2026-04-02", "2026-04-07", "2026-04-08", "2026-04-09", "2026-04-10"]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxProcess]:
    with SandboxProcess() as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lake")


@pytest.fixture(scope="module")
def airflow(sandbox: SandboxProcess, lake: Path) -> Iterator[RealAirflow]:
    env = {"AIRFLOW_CONN_OPENMARKETS_DEFAULT": sandbox.connection_json, "ETL_LAKE": str(lake)}
    with RealAirflow(Path(__file__).parent / "session_dags", env=env, schedules=True) as airflow:
        for dag_id in ("daily_bars", "after_daily_bars", "after_history", "without_partitions"):
            airflow.wait_until(dag_id, lambda dag_id=dag_id: airflow.api("GET", f"/api/v2/dags/{dag_id}")[0] == 200, 60)
        yield airflow


def runs_of(airflow: RealAirflow, dag_id: str) -> dict[str, list[dict[str, Any]]]:
    """Return the runs of a DAG by partition key, in their order."""
    runs = defaultdict(list)
    for run in airflow.runs_of(dag_id):
        runs[run["partition_key"]].append(run)
    return runs


def states_of(airflow: RealAirflow, dag_id: str) -> dict[str, list[str]]:
    return {key: [run["state"] for run in runs] for key, runs in runs_of(airflow, dag_id).items()}


def wait_for_keys(airflow: RealAirflow, dag_id: str, keys: list[str]) -> dict[str, dict[str, Any]]:
    """Wait until each key has its one run, and return what the task ``events`` of each found."""
    airflow.wait_until(f"the runs of {dag_id}", lambda: runs_of(airflow, dag_id).keys() >= set(keys), 120)
    found = {key: [run["dag_run_id"] for run in runs] for key, runs in runs_of(airflow, dag_id).items()}
    return {key: airflow.wait_for_run(dag_id, run_id).xcom("events") for key, (run_id,) in found.items()}


def backfill(airflow: RealAirflow, reprocess: str) -> None:
    """Backfill seven days, of which three are sessions, one after the other; wait for its end."""
    airflow.wait_for_backfill(airflow.start_backfill("daily_bars", "2026-04-01", "2026-04-07", reprocess))


def calls(sandbox: SandboxProcess) -> int:
    """Return how many calls for bars the sandbox got since it was reset."""
    return sum(count for path, count in sandbox.stats()["by_path"].items() if "/timeseries/" in path)


def test_a_backfill_has_a_run_for_each_session_and_repeats_only_those_that_failed(airflow, sandbox, lake):
    airflow.call("PATCH", "/api/v2/dags/daily_bars", {"is_paused": False})
    sandbox.fault(target="/market-data/pricing/timeseries/CBA", kind="status", status=400, times=1, after=1)
    backfill(airflow, "none")
    one, two, three = EASTER[:3]
    assert states_of(airflow, "daily_bars") == {one: ["success"], two: ["failed"], three: ["success"]}
    assert sorted(path.parent.name[-10:] for path in lake.glob("daily/*/*")) == ["2026-04-01", "2026-04-07"]

    sandbox.reset()
    backfill(airflow, "none")
    assert calls(sandbox) == 0
    backfill(airflow, "failed")
    assert states_of(airflow, "daily_bars") == {one: ["success"], two: ["failed", "success"], three: ["success"]}
    # A new run asks for all of the session again.
    assert calls(sandbox) == 2
    assert sorted(path.parent.name[-10:] for path in lake.glob("daily/*/*")) == EASTER[:3]

    triggered = wait_for_keys(airflow, "after_daily_bars", EASTER[:3])
    assert triggered.keys() == set(EASTER[:3])
    for key, found in triggered.items():
        (extra,) = found["extras"]
        assert (found["key"], found["keys"], extra["rows"], extra["range"]["start"]) == (key, [key], 2, key)


def test_a_history_triggers_once_for_each_session(airflow, sandbox, lake):
    sandbox.reset()
    run = airflow.run_dag("history")
    assert calls(sandbox) == 2
    landed = run.xcom("files")
    assert [Path(file).parent.name[-10:] for file in landed["files"]] == EASTER
    extra = {name: landed[name] for name in ("destination", "rows", "bytes", "range", "skipped")}
    assert wait_for_keys(airflow, "after_history", EASTER) == {
        key: {"key": key, "keys": [key], "extras": [extra]} for key in EASTER
    }
    # Events with a key do not start a DAG that is scheduled on the asset without partitions.
    assert runs_of(airflow, "without_partitions") == {}
