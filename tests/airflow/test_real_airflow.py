"""A real scheduler, LocalExecutor, triggerer and API server run DAGs against the sandbox."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from openmarkets_provider.client.settings import Settings
from openmarkets_provider.client.token_stores import FileStore, RecordCipher, record_key
from tests.support.airflow import DagRun, RealAirflow
from tests.support.sandbox_process import SandboxProcess

pytestmark = pytest.mark.airflow

WAITING = {"deferred": "deferred", "resumed": "deferred", "rescheduled": "up_for_reschedule"}
LONG = 62
"""Seconds: longer than a task waits by itself."""


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxProcess]:
    with SandboxProcess("--latency", "0.05") as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def airflow(sandbox: SandboxProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealAirflow]:
    dags = tmp_path_factory.mktemp("dags")
    for source in (Path(__file__).parent / "dags" / "every_kind.py", Path("example_dags/example_quotes.py")):
        (dags / source.name).write_text(source.read_text())
    env = {"AIRFLOW_CONN_OPENMARKETS_DEFAULT": sandbox.connection_json}
    with RealAirflow(dags, env=env) as airflow:
        yield airflow


@pytest.fixture(scope="module")
def run(airflow: RealAirflow, sandbox: SandboxProcess) -> DagRun:
    sandbox.set_security("RIO.ASX@TM", tradingStatus="PRE_OPEN")
    sandbox.fault(target="/market-data/securities", kind="status", status=429, retry_after=LONG)

    def quotes() -> int:
        return sandbox.stats()["by_path"].get("POST /market-data/pricing/quotes/v3", 0)

    def only_sensors_poll() -> bool:
        status, body = airflow.api("GET", "/api/v2/dags/every_kind/dagRuns/~/taskInstances", limit=100)
        instances = body["task_instances"] if status == 200 else []
        states = {(task["task_id"], task["map_index"]): task["state"] for task in instances}
        mapped = [state for (task_id, index), state in states.items() if task_id == "mapped" and index >= 0]
        waiting = {task_id: states.get((task_id, -1)) for task_id in ("deferred", "resumed", "rescheduled")}
        return mapped == ["success"] * 40 and waiting == WAITING

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(airflow.run_dag, "every_kind", timeout=420)
        try:
            airflow.wait_until("the sensors to be all that runs", lambda: running.done() or only_sensors_poll(), 300)
            enough = quotes() + 9
            airflow.wait_until("some polls of each", lambda: running.done() or quotes() >= enough, 120)
        finally:
            sandbox.set_security("RIO.ASX@TM", tradingStatus="OPEN")
        return running.result()


def cached_tokens(airflow: RealAirflow, sandbox: SandboxProcess) -> list[str]:
    """Read the tokens that the tasks shared, as only the owner of the secret can."""
    connection = sandbox.connection
    settings = Settings(
        client_id=connection["login"],
        client_secret=connection["password"],
        identity_url=connection["host"],
        **connection["extra"],
    )
    store = FileStore(airflow.home / "openmarkets_token_cache", RecordCipher(settings.client_secret))
    return [store.load(record_key(settings, scope)).token.value for scope in settings.scopes]


def test_40_task_processes_and_the_triggerer_share_one_token_request_a_scope(run: DagRun, sandbox: SandboxProcess):
    mapped = [task for task in run.tasks if task.task_id == "mapped"]
    assert [task.state for task in mapped] == ["success"] * 40
    assert sandbox.stats()["token_requests"] == {"market-data-api": 1, "oms-api": 1, "news-api": 1}
    assert run.xcom("mapped", map_index=0)[1]["securityCode"] == "CBA"
    assert len(run.xcom("mapped", map_index=1)) == 3


def test_a_deferred_sensor_is_ended_by_the_triggerer(run: DagRun):
    assert run.task("deferred").state == "success"
    assert run.task("deferred").try_number == 1
    log = run.log("deferred")
    assert "The condition is not met yet" in log
    assert "The condition is met." in log


@pytest.mark.parametrize("task_id", ["rescheduled", "resumed"])
def test_a_sensor_pushes_the_same_value_in_every_mode(run: DagRun, task_id: str):
    assert (run.task(task_id).state, run.task(task_id).try_number) == ("success", 1)
    assert run.xcom(task_id) is True


def test_a_task_that_is_rate_limited_for_long_is_deferred_and_uses_no_try(run: DagRun):
    task = run.task("rate_limited")
    assert (task.state, task.try_number) == ("success", 1)
    assert len(run.xcom("rate_limited")) == 40
    assert f"The server asks to wait {LONG} s" in run.log("rate_limited")
    assert "The task is deferred until" in run.log("rate_limited")


def test_a_permanent_error_uses_no_retries_and_says_why(run: DagRun):
    task = run.task("not_found")
    assert (task.state, task.try_number) == ("failed", 1)
    assert "GET oms nothing/v1: 404" in run.log("not_found")


def test_nothing_secret_is_in_logs_xcoms_rendered_templates_or_the_database(
    run: DagRun, airflow: RealAirflow, sandbox: SandboxProcess
):
    tokens = cached_tokens(airflow, sandbox)
    assert len(tokens) == 3
    logs = [run.log(task.task_id, task.map_index) for task in run.tasks]
    path = f"/api/v2/dags/{run.dag_id}/dagRuns/{run.run_id}/taskInstances?limit=100"
    instances = json.dumps(airflow.api("GET", path)[1])
    assert "BHP" in instances
    database = b"".join(file.read_bytes() for file in airflow.home.glob("airflow.db*"))
    everything = "\n".join([*logs, *airflow.component_logs().values(), instances]).encode() + database
    for secret in (sandbox.connection["password"], *tokens):
        assert secret.encode() not in everything


def test_the_example_runs_and_shows_dollars(airflow: RealAirflow, sandbox: SandboxProcess):
    example = airflow.run_dag("example_quotes", timeout=240)
    assert example.state == "success"
    rows = {row["security"]: row for row in example.xcom("in_dollars")}
    assert len(rows) == 10
    quote = next(quote for quote in example.xcom("quotes", map_index=0) if quote["securityCode"] == "BHP")
    assert float(rows["BHP"]["last"]) == pytest.approx(quote["lastPrice"] / 100)
    assert example.xcom("announcements")[0]["securityCode"] == "BHP"
    assert sandbox.stats()["token_requests_total"] == 3


def test_the_example_runs_in_dags_test_where_there_is_no_triggerer(sandbox: SandboxProcess, tmp_path: Path):
    env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")} | {
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__CORE__DAGS_FOLDER": str(Path("example_dags").resolve()),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW_CONN_OPENMARKETS_DEFAULT": sandbox.connection_json,
    }
    airflow = [sys.executable, "-m", "airflow"]
    subprocess.run([*airflow, "db", "migrate"], env=env, check=True, capture_output=True)
    ended = subprocess.run([*airflow, "dags", "test", "example_quotes"], env=env, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    assert sandbox.connection["password"] not in ended.stdout + ended.stderr
