"""A basket of orders in a real Airflow whose task processes and scheduler are killed: each order once, or reported."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.airflow import RealAirflow
from tests.support.sandbox_process import SandboxProcess

pytestmark = [pytest.mark.airflow, pytest.mark.nightly]
ORDERS = 24
KILLS = 30
ENDED = {"success", "failed", "awaiting_input"}
FAST = {
    # So that a task whose processes are gone is soon run again.
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "10",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "3",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "3",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "5",
}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxProcess]:
    with SandboxProcess() as sandbox:
        sandbox.set_order_behaviour(list_after=0.2, fills=[[3, None]])
        # Kills would rarely hit the moments before and after the order arrives.
        for process_first in (False, True):
            sandbox.fault(
                target="/oms/orders/v4", kind="delay", seconds=1, probability=0.4, process_first=process_first
            )
        sandbox.fault(target="/oms/orders/v4", kind="reset", probability=0.1, process_first=True)
        yield sandbox


@pytest.fixture(scope="module")
def airflow(sandbox: SandboxProcess) -> Iterator[RealAirflow]:
    env = {"AIRFLOW_CONN_OPENMARKETS_DEFAULT": sandbox.connection_json, **FAST}
    with RealAirflow(Path(__file__).parent / "order_dags", env=env) as airflow:
        yield airflow


def task_processes(scheduler: int) -> list[psutil.Process]:
    """Return the processes that run tasks: children of the executor's workers."""
    workers = psutil.Process(scheduler).children()
    return [child for worker in workers for child in worker.children()]


def test_each_order_is_placed_once_or_reported_as_not_placed(airflow: RealAirflow, sandbox: SandboxProcess) -> None:
    chance = random.Random(0)
    run_id = airflow.start_dag("basket")
    path = f"{airflow.run_path('basket', run_id)}/taskInstances"
    kills, orphans = 0, 0

    def tasks() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = airflow.call("GET", path, limit=100)["task_instances"]
        return found

    def ended() -> bool:
        nonlocal kills, orphans
        states = Counter(task["state"] for task in tasks())
        scheduler = airflow.pids["scheduler"]
        if kills < KILLS:
            with suppress(psutil.NoSuchProcess, IndexError):
                chance.choice(task_processes(scheduler)).kill()
                kills += 1
        if not orphans and states["success"] >= ORDERS // 3:
            # Its workers go on with the tasks that another scheduler then starts again.
            orphans = len(task_processes(scheduler))
            airflow.kill_scheduler_alone()
        time.sleep(chance.uniform(0.1, 1.0))
        return sum(states[state] for state in ENDED) == ORDERS

    airflow.wait_until("the end of all tasks", ended, 900)
    placed = {}
    for task in tasks():
        assert task["state"] != "failed", task
        if task["state"] == "success":
            key = f"{path}/buy/xcomEntries/return_value"
            placed[task["map_index"]] = airflow.call("GET", key, map_index=task["map_index"])["value"]
    book = sandbox.orders()
    tags = Counter(order["notes"][:18] for order in book)
    print(
        f"{ORDERS} orders, {kills} processes killed, a scheduler killed with {orphans} tasks running: "
        f"{len(placed)} placed, {ORDERS - len(placed)} reported as unknown; {len(book)} in the book"
    )
    assert set(tags.values()) == {1}
    assert len(book) == len(placed)
    assert kills >= KILLS
    for index, result in placed.items():
        (order,) = [order for order in book if str(order["orderNumber"]) == str(result["order_number"])]
        assert (order["notes"][:18], order["orderVolume"]) == (result["tag"], index + 1)
