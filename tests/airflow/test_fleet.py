"""Hosts without a Redis share tokens through Airflow Variables: tasks, the triggerer, the API server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.airflow.fleet_token_dags.fleet_tokens import HOSTS, TASKS
from tests.support.airflow import DagRun, RealAirflow
from tests.support.sandbox_process import SandboxProcess

pytestmark = [pytest.mark.airflow, pytest.mark.nightly]

LATENCY = 0.2
"""Seconds that the identity server takes: time for others to ask, too."""
MORE_TASKS = ("quotes_on_a_new_host", "quotes_in_the_triggerer", "news_in_the_triggerer", "news_on_a_new_host")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxProcess]:
    with SandboxProcess() as sandbox:
        sandbox.fault(target="identity", kind="delay", seconds=LATENCY, times=None)
        yield sandbox


@pytest.fixture(scope="module")
def connection(sandbox: SandboxProcess) -> dict[str, Any]:
    return {**sandbox.connection, "extra": {**sandbox.connection["extra"], "cache_backend": "variable"}}


@pytest.fixture(scope="module")
def airflow(connection: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealAirflow]:
    env = {
        "AIRFLOW_CONN_OPENMARKETS_DEFAULT": json.dumps(connection),
        "FLEET_HOSTS": str(tmp_path_factory.mktemp("hosts")),
    }
    with RealAirflow(Path(__file__).parent / "fleet_token_dags", env=env, parallelism=16) as airflow:
        yield airflow


@pytest.fixture(scope="module")
def run(airflow: RealAirflow) -> DagRun:
    return airflow.run_dag("fleet_tokens", timeout=420)


@pytest.fixture(scope="module")
def token_requests(run: DagRun, sandbox: SandboxProcess) -> dict[str, int]:
    """What the tasks asked of the identity server, before the tests ask it too."""
    return sandbox.stats()["token_requests"]


def variables(airflow: RealAirflow) -> list[dict[str, Any]]:
    found = airflow.call("GET", "/api/v2/variables")["variables"]
    assert all(variable["key"].startswith("openmarkets_cache_") for variable in found)
    return found


def test_every_task_succeeds(run: DagRun):
    tasks = {(task.task_id, task.map_index): task.state for task in run.tasks}
    assert set(tasks.values()) == {"success"}
    assert len(tasks) == TASKS + len(MORE_TASKS)


def test_each_host_asks_for_a_token_once_at_most_and_a_new_one_never(token_requests: dict[str, int]):
    print(f"token requests for {TASKS} tasks at once on {HOSTS} hosts that share Airflow Variables: {token_requests}")
    # More only where a host asked before another one's token had come; the triggerer's was there for the last task.
    assert 1 <= token_requests["market-data-api"] <= HOSTS
    assert token_requests == {"market-data-api": token_requests["market-data-api"], "news-api": 1}


def test_nobody_went_on_without_the_variables(airflow: RealAirflow, run: DagRun):
    logs = [run.log(task.task_id, task.map_index) for task in run.tasks]
    logs += airflow.component_logs().values()
    assert [line for log in logs for line in log.splitlines() if "not shared" in line] == []


def test_variables_say_what_they_are_and_nothing_more(airflow: RealAirflow, run: DagRun, sandbox: SandboxProcess):
    found = variables(airflow)
    assert len(found) == 2
    for variable in found:
        assert variable["description"].startswith("Shared by the tasks of the Openmarkets provider. Encrypted")
        assert sandbox.connection["login"] not in json.dumps(variable)
        assert len(variable["value"]) < 4096


def test_the_test_button_shares_what_it_gets(
    airflow: RealAirflow, token_requests: dict[str, int], sandbox: SandboxProcess, connection: dict[str, Any]
):
    before = {variable["key"]: variable["value"] for variable in variables(airflow)}
    body = {**connection, "connection_id": "tested", "extra": json.dumps(connection["extra"])}
    result = airflow.call("POST", "/api/v2/connections/test", body)
    assert result["status"] is True, result
    after = {variable["key"]: variable["value"] for variable in variables(airflow)}
    assert len(after) == 3
    assert all(after[key] != value for key, value in before.items())
    assert "not shared" not in airflow.component_logs()["api-server"]
