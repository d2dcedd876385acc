"""Orders in a real Airflow: a person approves one and rejects another."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.airflow import DagRun, RealAirflow
from tests.support.browser import Browser
from tests.support.sandbox_process import SandboxProcess

pytestmark = pytest.mark.airflow


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxProcess]:
    with SandboxProcess() as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def airflow(sandbox: SandboxProcess) -> Iterator[RealAirflow]:
    env = {"AIRFLOW_CONN_OPENMARKETS_DEFAULT": sandbox.connection_json}
    with RealAirflow(Path(__file__).parent / "order_dags", env=env) as airflow:
        yield airflow


@pytest.fixture(scope="module")
def parked(airflow: RealAirflow) -> tuple[str, dict[str, Any]]:
    """Return the id of a run whose tasks wait for answers, and what each asks."""
    run_id = airflow.start_dag("approvals")
    path = f"{airflow.run_path('approvals', run_id)}/taskInstances"

    def waiting() -> bool:
        tasks = airflow.call("GET", path)["task_instances"]
        assert not {task["state"] for task in tasks} & {"failed", "success", "skipped"}, tasks
        return [task["state"] for task in tasks] == ["awaiting_input"] * 2

    airflow.wait_until("both tasks to wait for an answer", waiting, 120)
    asked = {name: airflow.call("GET", f"{path}/{name}/-1/hitlDetails") for name in ("approved", "rejected")}
    return run_id, asked


@pytest.fixture(scope="module")
def page(airflow: RealAirflow, parked: tuple[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the text of the page on which a person answers."""
    run_id, asked = parked
    with Browser(airflow.base_url, tmp_path_factory.mktemp("browser")) as browser:
        browser.page.goto(f"/dags/approvals/runs/{quote(run_id, safe='')}/tasks/approved/required_actions")
        browser.page.get_by_text(asked["approved"]["options"][0]).first.wait_for()
        browser.picture("order_approval")
        return browser.look("approval")


@pytest.fixture(scope="module")
def answered(airflow: RealAirflow, parked: tuple[str, dict[str, Any]], page: str) -> DagRun:
    """Approve one order and reject the other; the page is read before."""
    run_id, asked = parked
    for name, choice in (("approved", asked["approved"]["options"][0]), ("rejected", "Reject")):
        path = f"{airflow.run_path('approvals', run_id)}/taskInstances/{name}/-1/hitlDetails"
        airflow.call("PATCH", path, {"chosen_options": [choice], "params_input": {}})
    return airflow.wait_for_run("approvals", run_id)


def test_the_page_shows_the_terms(parked, page) -> None:
    _, asked = parked
    approve, reject = asked["approved"]["options"]
    assert reject == "Reject"
    assert approve.startswith("Approve ")
    for words in ("SBX0001", "BHP", "45.5", "4,550", approve, reject):
        assert words in page
    assert re.search(r"Last price \(dollars\)\s+\d+\.\d+", page)


def test_nothing_is_sent_before_an_answer(sandbox, parked) -> None:
    assert sandbox.stats()["by_path"].get("POST /oms/orders/v4", 0) == 0


def test_the_approved_order_is_sent_once_and_the_rejected_one_is_not(sandbox, answered) -> None:
    assert {task.task_id: task.state for task in answered.tasks} == {"approved": "success", "rejected": "skipped"}
    (order,) = [each for each in sandbox.orders() if each["body"]]
    placed = answered.xcom("approved")
    assert str(order["body"]["orderPrice"]) == "4550"
    assert order["body"]["notes"] == f"{placed['tag']} approved"
    assert str(order["orderNumber"]) == placed["order_number"]
