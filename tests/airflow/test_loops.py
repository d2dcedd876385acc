"""What came with Airflow 3.4, in a real one: loops, and task processes that are started afresh and not forked."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from airflow.sdk.serde import deserialize

from tests.support.airflow import DagRun, RealAirflow
from tests.support.sandbox_process import SandboxProcess

pytestmark = pytest.mark.airflow


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lake")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxProcess]:
    with SandboxProcess() as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def run(sandbox: SandboxProcess, lake: Path) -> Iterator[DagRun]:
    env = {
        "AIRFLOW_CONN_OPENMARKETS_DEFAULT": sandbox.connection_json,
        "AIRFLOW_CONN_LOOP_DB": json.dumps({"conn_type": "sqlite", "host": f"{lake}/loop.db"}),
        "AIRFLOW__CORE__EXECUTE_TASKS_NEW_PYTHON_INTERPRETER": "True",
        "LOOP_LAKE": str(lake),
    }
    with RealAirflow(Path(__file__).parent / "loop_dags", env=env) as airflow:
        yield airflow.run_dag("loops")


def count_loads(lake: Path) -> list[tuple[str, int]]:
    with closing(sqlite3.connect(lake / "loop.db")) as database:
        return sorted(database.execute("select load_id, count(*) from snapshots group by 1"))


def test_task_processes_that_are_not_forked_share_one_token_request(run: DagRun, sandbox: SandboxProcess):
    assert run.state == "success"
    for index in range(2):
        # Not the scheduler's: the interpreter of this task alone.
        assert "-c" in deserialize(run.xcom("pull", map_index=index))
    assert sandbox.stats()["token_requests"] == {"market-data-api": 1}


def test_each_iteration_of_a_loop_lands_its_own_rows_and_a_cleared_one_replaces_them(run: DagRun, lake: Path):
    of_each = [(f"loops/{run.run_id}/snapshots.table/-1/{index}", 2) for index in range(2)]
    assert count_loads(lake) == of_each
    assert sorted(path.name for path in lake.glob("*.jsonl")) == ["0.jsonl", "1.jsonl"]
    cleared = {"dry_run": False, "dag_run_id": run.run_id, "only_failed": False, "reset_dag_runs": True}
    run.airflow.call("POST", "/api/v2/dags/loops/clearTaskInstances", cleared)
    again = run.airflow.wait_for_run("loops", run.run_id)
    assert again.state == "success"
    assert {task.try_number for task in again.tasks if task.task_id == "pull"} == {2}
    assert count_loads(lake) == of_each
