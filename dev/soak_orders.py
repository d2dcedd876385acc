"""Place many orders by processes that are killed at random instants: ``python -m dev.soak_orders --orders 1000``.

Each order is a task: a process that places it, and that is started again when it was killed, or left a transient error.
The journal is on disk, the sandbox is a process of its own, and some of its replies are lost. At the end the sandbox's
book must have every tag once, or never; each that it never had must have been reported as not placed.

The clock that orders are sent by runs :data:`SPEED` times as fast as the real one. So its waits are shorter: the time
in which an order may be sent, and that after which the list of orders must have it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from openmarkets_provider import orders
from openmarkets_provider.client.connect import connect
from openmarkets_provider.client.journals import FileJournal
from openmarkets_provider.client.orders import Orders
from openmarkets_provider.exceptions import OpenmarketsError, OpenmarketsOrderUnknown
from openmarkets_provider.order_entry.intent import make_tag
from tests.support.sandbox_process import SandboxProcess

SPEED = 3
ACCOUNTS = 20
TAG_LENGTH = 18
PRELOADED = ("httpx", "msgspec", "openmarkets_provider.client.http.httpx_client")
"""Modules that each process would load again."""
_BEGIN = time.time()
_FORK = multiprocessing.get_context("fork")


def fast_clock() -> float:
    return _BEGIN + (time.time() - _BEGIN) * SPEED


def place(number: int, connection: dict[str, Any], folder: Path) -> None:
    """Be the process of a task: place an order, and write its outcome to a file; none after a transient error."""
    login, password = connection["login"], connection["password"]
    client = connect(login, password, identity_url=connection["host"], timeout=5.0, **connection["extra"])
    book = Orders(
        client, FileJournal(folder / "journal"), clock=fast_clock, sleep=lambda seconds: time.sleep(seconds / SPEED)
    )
    order = orders.limit("BHP", account=account_of(number), buy=number + 1, price="45.50")
    try:
        placed = book.place(order, intent=intent_of(number))
        result = {"outcome": "placed", "number": int(placed["order_number"]), "found": placed["found"]}
    except OpenmarketsOrderUnknown as error:
        result = {"outcome": "not placed" if error.absent else "unknown"}
    except OpenmarketsError as error:
        if error.transient:
            return
        result = {"outcome": f"failed: {error}"}
    part = folder / f"{number}.part"
    part.write_text(json.dumps(result))
    part.rename(folder / f"{number}.json")


def account_of(number: int) -> str:
    return f"FUND{number % ACCOUNTS}"


def intent_of(number: int) -> list[str]:
    return ["soak", str(number)]


@dataclass
class Task:
    """An order that is to be placed, and the process that is at it.

    :ivar is_killed: its first process is killed, unless it ends before.
    """

    number: int
    is_killed: bool = True
    tries: int = 0
    process: Any = None
    started: float = 0.0
    end: float = float("inf")


@dataclass
class Soak:
    """Runs tasks side by side, kills them, and starts them again.

    :ivar durations: seconds of the processes that were not to be killed: within as many the others are.
    """

    connection: dict[str, Any]
    folder: Path
    chance: random.Random
    tries: int = 0
    kills: int = 0
    durations: list[float] = field(default_factory=list)

    def run(self, tasks: Iterable[Task], concurrency: int) -> None:
        """Run tasks until each has a result."""
        waiting, running = list(tasks)[::-1], list[Task]()
        while waiting or running:
            while waiting and len(running) < concurrency:
                running.append(self._start(waiting.pop()))
            # Until a process ends or the next one has to be killed.
            due = min(task.end for task in running) - time.monotonic()
            wait([task.process.sentinel for task in running], None if due == float("inf") else max(due, 0.0))
            for task in list(running):
                if time.monotonic() >= task.end and task.process.is_alive():
                    os.kill(task.process.pid, signal.SIGKILL)
                    task.end = float("inf")
                if task.process.is_alive():
                    continue
                running.remove(task)
                self.kills += task.process.exitcode == -signal.SIGKILL
                if not (self.folder / f"{task.number}.json").exists():
                    waiting.append(task)
                elif not (task.is_killed and task.tries == 1):
                    self.durations.append(time.monotonic() - task.started)

    def _start(self, task: Task) -> Task:
        task.tries += 1
        self.tries += 1
        task.process = _FORK.Process(target=place, args=(task.number, self.connection, self.folder))
        task.process.start()
        task.started = time.monotonic()
        if task.is_killed and task.tries == 1:
            task.end = task.started + self.chance.uniform(0, statistics.median(self.durations[-50:]))
        return task

    def result(self, number: int) -> dict[str, Any]:
        """Return the outcome of an order."""
        found: dict[str, Any] = json.loads((self.folder / f"{number}.json").read_text())
        return found


def compare(results: dict[int, dict[str, Any]], book: list[dict[str, Any]]) -> list[str]:
    """Return what is wrong: orders that are there twice, or not as they were reported."""
    numbers: dict[str, list[int]] = {}
    for order in book:
        numbers.setdefault(order["notes"][:TAG_LENGTH], []).append(order["orderNumber"])
    wrong = []
    for number, result in results.items():
        found = numbers.pop(make_tag(*intent_of(number)), [])
        expected = [result["number"]] if result["outcome"] == "placed" else []
        if found != expected or result["outcome"] not in ("placed", "not placed"):
            wrong.append(f"order {number}: reported {result}, in the book {found}")
    return wrong + [f"tag {tag}: in the book {found}, and of no task" for tag, found in numbers.items()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--orders", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for module in PRELOADED:
        importlib.import_module(module)
    began = time.monotonic()
    with SandboxProcess() as sandbox, tempfile.TemporaryDirectory() as folder:
        sandbox.set_accounts([{"accountCode": account_of(number)} for number in range(ACCOUNTS)])
        sandbox.set_order_behaviour(list_after=0.2)
        soak = Soak(sandbox.connection, Path(folder), random.Random(options.seed))
        # These are not killed: they show how long a task takes, and that the lists of all accounts have tags.
        soak.run([Task(number, is_killed=False) for number in range(ACCOUNTS)], options.concurrency)
        for fault in ({"kind": "reset"}, {"kind": "status", "status": 502}):
            sandbox.fault(target="/oms/orders/v4", process_first=True, probability=0.05, **fault)
        total = ACCOUNTS + options.orders
        soak.run([Task(number) for number in range(ACCOUNTS, total)], options.concurrency)
        results = {number: soak.result(number) for number in range(total)}
        wrong = compare(results, sandbox.orders())
    outcomes = Counter(result["outcome"] for result in results.values())
    found = sum(result.get("found", False) for result in results.values())
    print(
        f"{total} orders, {soak.tries} processes, {soak.kills} killed: "
        f"{', '.join(f'{count} {outcome}' for outcome, count in outcomes.items())}; "
        f"{found} found again by their tag; {time.monotonic() - began:.0f} s"
    )
    print("\n".join(wrong) or "Every tag is in the book once, or was reported as not placed.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
