"""Sensors that wait in the triggerer of a real Airflow: put together, its end, and a task that is cleared meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.airflow.fleet_dags.waiting import SECURITIES
from tests.support.airflow import DagRun, RealAirflow
from tests.support.sandbox_process import SandboxProcess

pytestmark = [pytest.mark.airflow, pytest.mark.nightly]

DAG = "waiting"
SETTINGS = {
    # A triggerer whose heart has not beaten for so long is taken for dead, and its triggers go to another one.
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "15",
    "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "2",
}


@dataclass(frozen=True)
class Waited:
    """How it went: the run, and how many calls there were in all and after its end."""

    run: DagRun
    quotes: int
    quotes_after: int
    cleared: list[int]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxProcess]:
    with SandboxProcess() as sandbox:
        for code in SECURITIES:
            sandbox.set_security(f"{code}.ASX@TM", tradingStatus="PRE_OPEN")
        yield sandbox


@pytest.fixture(scope="module")
def airflow(sandbox: SandboxProcess) -> Iterator[RealAirflow]:
    env = {**SETTINGS, "AIRFLOW_CONN_OPENMARKETS_DEFAULT": sandbox.connection_json}
    with RealAirflow(Path(__file__).parent / "fleet_dags", env=env) as airflow:
        yield airflow


@pytest.fixture(scope="module")
def waited(airflow: RealAirflow, sandbox: SandboxProcess) -> Waited:
    def quotes() -> int:
        return sandbox.stats()["by_path"].get("POST /market-data/pricing/quotes/v3", 0)

    def instances() -> list[dict[str, Any]]:
        return airflow.call("GET", f"/api/v2/dags/{DAG}/dagRuns/{run_id}/taskInstances")["task_instances"]

    def triggers() -> dict[tuple[str, int], int]:
        """Return the triggers of all tasks, once every one is deferred."""
        found = instances()
        deferred = len(found) == len(SECURITIES) + 1 and all(each["state"] == "deferred" for each in found)
        return {(each["task_id"], each["map_index"]): each["trigger"]["id"] for each in found} if deferred else {}

    def some_polls() -> None:
        enough = quotes() + 3
        airflow.wait_until("some polls", lambda: quotes() >= enough, 180)

    run_id = airflow.start_dag(DAG)
    before = airflow.wait_until("all tasks to be deferred", triggers, 300)
    some_polls()
    airflow.kill("triggerer")
    airflow.start_triggerer()
    some_polls()
    asked = {"dag_run_id": run_id, "task_ids": ["cleared"], "dry_run": False, "only_failed": False}
    airflow.call("POST", f"/api/v2/dags/{DAG}/clearTaskInstances", asked)
    old = before["cleared", -1]
    after = airflow.wait_until(
        "the task to be deferred again", lambda: (found := triggers()) and found["cleared", -1] != old and found, 300
    )
    some_polls()
    for code in SECURITIES:
        sandbox.set_security(f"{code}.ASX@TM", tradingStatus="OPEN")
    run = airflow.wait_for_run(DAG, run_id)
    ended = quotes()
    time.sleep(8)
    return Waited(run, ended, quotes() - ended, [old, after["cleared", -1]])


def test_all_of_them_end_although_the_triggerer_was_killed(waited: Waited):
    assert {(task.task_id, task.state) for task in waited.run.tasks} == {("opens", "success"), ("cleared", "success")}
    assert {task.try_number for task in waited.run.tasks if task.task_id == "opens"} == {1}


def test_their_polls_are_put_together_and_each_task_sees_its_own(waited: Waited):
    logs = [waited.run.log("opens", index) for index in range(len(SECURITIES))]
    assert all("The condition is met." in log for log in logs)
    lines = [log.count("The condition is not met yet") for log in logs]
    assert min(lines) > 2
    assert waited.quotes < sum(lines) / 2


def test_a_task_that_is_cleared_while_it_waits_waits_anew(waited: Waited):
    assert waited.cleared[0] != waited.cleared[1]
    assert "The condition is met." in waited.run.log("cleared")


def test_nothing_is_polled_for_nobody(waited: Waited):
    assert waited.quotes_after == 0
