"""Orders in a real Airflow: what people approve, reject, find out and kill."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.airflow import DagRun, RealAirflow
from tests.support.browser import Browser
from tests.support.sandbox_process import SandboxProcess

pytestmark = pytest.mark.airflow
ASKED = ("approved", "rejected", "unknown")
LOOKS_TO_PLACE = 2
"""How often a task looks at the list of orders before it waits for its order."""


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxProcess]:
    with SandboxProcess() as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def airflow(sandbox: SandboxProcess) -> Iterator[RealAirflow]:
    env = {"AIRFLOW_CONN_OPENMARKETS_DEFAULT": sandbox.connection_json}
    with RealAirflow(Path(__file__).parent / "order_dags", env=env) as airflow:
        yield airflow


class Parked:
    """A run whose tasks wait for answers.

    :ivar questions: what each task asks, by its id.
    """

    def __init__(self, airflow: RealAirflow) -> None:
        self.airflow = airflow
        self.run_id = airflow.start_dag("persons")
        self.path = f"{airflow.run_path('persons', self.run_id)}/taskInstances"
        # An order without a reply is looked for until the list would have it.
        airflow.wait_until("all tasks to wait for an answer", self._is_waiting, 240)
        self.questions = {name: airflow.call("GET", f"{self.path}/{name}/-1/hitlDetails") for name in ASKED}

    def _is_waiting(self) -> bool:
        tasks = self.airflow.call("GET", self.path)["task_instances"]
        assert not {task["state"] for task in tasks} & {"failed", "success", "skipped"}, tasks
        return [task["state"] for task in tasks] == ["awaiting_input"] * len(ASKED)

    def page(self, browser: Browser, task_id: str) -> str:
        """Return the text of the page on which a person answers."""
        browser.task({"dag_id": "persons", "dag_run_id": self.run_id}, task_id, "required_actions")
        browser.page.get_by_text(self.questions[task_id]["options"][0]).first.wait_for()
        browser.picture(f"order_{task_id}")
        return browser.look(task_id)

    def answer(self, task_id: str, option: str) -> None:
        self.airflow.call(
            "PATCH", f"{self.path}/{task_id}/-1/hitlDetails", {"chosen_options": [option], "params_input": {}}
        )


@pytest.fixture(scope="module")
def parked(airflow: RealAirflow, sandbox: SandboxProcess) -> Parked:
    sandbox.set_order_behaviour(notes_length=0)
    sandbox.fault(target="/oms/orders/v4", kind="reset", process_first=True, times=1)
    return Parked(airflow)


@pytest.fixture(scope="module")
def browser(airflow: RealAirflow, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(airflow.base_url, tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(parked: Parked, browser: Browser) -> dict[str, str]:
    return {name: parked.page(browser, name) for name in ASKED}


@pytest.fixture(scope="module")
def lost(sandbox: SandboxProcess, pages: dict[str, str]) -> str:
    """Return the number of the order whose reply was lost: the only one that is sent before any answer."""
    (order,) = sandbox.orders()
    return str(order["orderNumber"])


@pytest.fixture(scope="module")
def answered(airflow: RealAirflow, sandbox: SandboxProcess, parked: Parked, browser: Browser, lost: str) -> DagRun:
    """Answer all questions; the pages are read before."""
    sandbox.set_order_behaviour()
    parked.answer("approved", parked.questions["approved"]["options"][0])
    parked.answer("rejected", "Reject")
    parked.answer("unknown", f"It is order {lost}")
    run = airflow.wait_for_run("persons", parked.run_id)
    for name in ASKED:
        browser.task({"dag_id": "persons", "dag_run_id": parked.run_id}, name, "required_actions")
        browser.page.get_by_text("Response received").or_(browser.page.get_by_text("Responded")).first.wait_for()
        browser.picture(f"order_{name}_answered")
    return run


def test_the_page_shows_the_terms(parked, pages) -> None:
    approve, reject = parked.questions["approved"]["options"]
    assert reject == "Reject"
    assert approve.startswith("Approve ")
    for words in ("SBX0001", "BHP", "45.5", "4,550", approve, reject):
        assert words in pages["approved"]
    assert re.search(r"Last price \(dollars\)\s+\d+\.\d+", pages["approved"])


def test_the_page_shows_the_order_that_the_unknown_one_may_be(parked, pages, lost) -> None:
    for words in ("its outcome is not known", f"It may be order {lost}", f"It is order {lost}", "Send nothing"):
        assert words in pages["unknown"]


def test_what_people_answer_is_done(sandbox, parked, answered, lost) -> None:
    states = {task.task_id: task.state for task in answered.tasks}
    assert states == {"approved": "success", "rejected": "skipped", "unknown": "success"}
    _, approved = sandbox.orders()
    placed = answered.xcom("approved")
    assert str(approved["body"]["orderPrice"]) == "4550"
    assert approved["body"]["notes"] == f"{placed['tag']} approved"
    assert str(approved["orderNumber"]) == placed["order_number"]
    assert answered.xcom("unknown")["order_number"] == lost


def test_a_task_that_is_killed_cancels_its_order(airflow, sandbox, answered) -> None:
    start = sandbox.stats()["by_path"]
    run_id = airflow.start_dag("killed")
    path = f"{airflow.run_path('killed', run_id)}/taskInstances"
    before = len(answered.tasks) - 1

    def created() -> list[dict[str, Any]]:
        return sandbox.orders()[before:]

    def waiting() -> bool:
        tasks = {task["task_id"]: task["state"] for task in airflow.call("GET", path)["task_instances"]}
        assert not set(tasks.values()) & {"failed", "success"}, tasks
        return tasks == {"deferred": "deferred", "in_worker": "running"} and min(looks()) > LOOKS_TO_PLACE

    def looks() -> list[int]:
        counts = sandbox.stats()["by_path"]
        paths = [f"GET /oms/orders/by-account/{account}/v4" for account in ("SBX0001", "SBX0002")]
        return [counts.get(path, 0) - start.get(path, 0) for path in paths]

    airflow.wait_until("both tasks to wait for their orders", waiting, 120)
    assert [order["lastAction"] for order in created()] == ["CREATE"] * 2
    for name in ("deferred", "in_worker"):
        airflow.call("PATCH", f"{path}/{name}", {"new_state": "failed"})
    airflow.wait_until(
        "both orders to be cancelled", lambda: [each["lastAction"] for each in created()] == ["CANCEL"] * 2, 120
    )
