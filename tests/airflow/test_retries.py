"""What a real Airflow runs again, and what it does not: retries, the retry policy, a failed XCom push, a kill."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from openmarkets_provider.client.exchange import MAX_SERVER_WAIT
from tests.support.airflow import DagRun, RealAirflow
from tests.support.sandbox_process import SandboxProcess
from tests.support.versions import at_least

pytestmark = pytest.mark.airflow

DAGS = Path(__file__).parent / "retry_dags"
SANDBOXES = ("not_pushed", "killed", "limited", "limited_hook", "cleared")
PLACE = "POST /oms/orders/v4"
LONG = int(MAX_SERVER_WAIT) + 1
"""Seconds: longer than a call waits by itself."""
NEVER = 1_000_000
"""Seconds: longer than any test."""


@pytest.fixture(scope="module")
def sandboxes() -> Iterator[dict[str, SandboxProcess]]:
    with ExitStack() as stack:
        yield {name: stack.enter_context(SandboxProcess()) for name in SANDBOXES}


@pytest.fixture(scope="module")
def airflow(sandboxes: dict[str, SandboxProcess]) -> Iterator[RealAirflow]:
    sandboxes["killed"].fault(target="/oms/orders/v4", kind="delay", seconds=NEVER)
    for name in ("limited", "limited_hook"):
        sandboxes[name].fault(target="market_data", kind="status", status=429, retry_after=LONG)
    env = {f"AIRFLOW_CONN_{name.upper()}": connection(sandbox) for name, sandbox in sandboxes.items()}
    env |= {"AIRFLOW__CORE__XCOM_BACKEND": "failing_xcom.FailingXCom", "PYTHONPATH": str(DAGS)}
    with RealAirflow(DAGS, env=env, parallelism=8) as airflow:
        yield airflow


def connection(sandbox: SandboxProcess) -> str:
    # Tokens and holds belong to a server; each sandbox has its own.
    return json.dumps(sandbox.connection | {"extra": {**sandbox.connection["extra"], "timeout": 3600}})


@pytest.fixture(scope="module")
def run(airflow: RealAirflow, sandboxes: dict[str, SandboxProcess]) -> DagRun:
    run_id = airflow.start_dag("retries")
    with ThreadPoolExecutor() as pool:
        ended = pool.submit(airflow.wait_for_run, "retries", run_id, timeout=300)
        airflow.wait_until("the order", lambda: ended.done() or sends(sandboxes["killed"]), 200)
        path = f"{airflow.run_path('retries', run_id)}/taskInstances/killed/xcomEntries/pid"
        os.kill(int(airflow.call("GET", path)["value"]), signal.SIGKILL)
        return ended.result()


def sends(sandbox: SandboxProcess) -> int:
    return sandbox.stats()["by_path"].get(PLACE, 0)


@pytest.mark.parametrize("map_index", [0, 1])
def test_an_order_whose_result_can_not_be_pushed_is_sent_once(run, sandboxes, map_index):
    task = run.task("not_pushed", map_index)
    assert (task.state, task.try_number) == ("failed", 2)
    assert "The storage of XComs is out of reach." in run.log("not_pushed", map_index, try_number=1)
    assert "not sent again" in run.log("not_pushed", map_index)
    assert sends(sandboxes["not_pushed"]) == 2


def test_an_order_whose_process_is_killed_is_sent_once(run, sandboxes):
    task = run.task("killed")
    assert (task.state, task.try_number) == ("failed", 2)
    assert "not sent again" in run.log("killed")
    assert sends(sandboxes["killed"]) == 1


def test_clearing_is_as_the_guide_says(airflow, run, sandboxes):
    # After the other run, of which the machine has enough to do.
    first = airflow.run_dag("cleared")
    assert (first.task("sent").state, sends(sandboxes["cleared"])) == ("success", 1)

    # A cleared task: Airflow 3.4 forgets that it has sent the call, 3.3 does not.
    body = {"dry_run": False, "only_failed": False, "dag_run_id": first.run_id, "task_ids": ["sent"]}
    airflow.call("POST", "/api/v2/dags/cleared/clearTaskInstances", body)
    again = airflow.wait_for_run("cleared", first.run_id)
    expected = ("success", 2) if at_least("3.4") else ("failed", 1)
    assert (again.task("sent").state, sends(sandboxes["cleared"])) == expected

    # A cleared run: neither does.
    body = {"dry_run": False, "only_failed": False}
    airflow.call("POST", f"{airflow.run_path('cleared', first.run_id)}/clear", body)
    again = airflow.wait_for_run("cleared", first.run_id)
    assert (again.task("sent").state, sends(sandboxes["cleared"])) == ("failed", expected[1])

    # What the guide says for 3.3: the mark is deleted by hand.
    path = f"{airflow.run_path('cleared', first.run_id)}/taskInstances/sent/state-store/openmarkets_sent"
    airflow.call("DELETE", path)
    airflow.call("POST", f"{airflow.run_path('cleared', first.run_id)}/clear", body)
    again = airflow.wait_for_run("cleared", first.run_id)
    assert (again.task("sent").state, sends(sandboxes["cleared"])) == ("success", expected[1] + 1)


@pytest.mark.parametrize("task_id", ["limited", "limited_hook"])
def test_a_task_comes_back_after_a_rate_limit_when_the_server_says(run, sandboxes, task_id):
    task = run.task(task_id)
    assert (task.state, task.try_number) == ("success", 1 if at_least("3.4") else 2)
    assert sandboxes[task_id].stats()["by_path"]["POST /market-data/pricing/quotes/v3"] == 2


def test_a_permanent_error_in_a_task_with_the_policy_uses_no_retry(run):
    task = run.task("permanent")
    assert (task.state, task.try_number) == ("failed", 1)


def test_the_policy_leaves_other_errors_to_the_retries(run):
    task = run.task("of_another_kind")
    assert (task.state, task.try_number) == ("success", 2)
