"""Counts the 429s of fifty simultaneous tasks, with and without shared holds: ``python -m dev.bench.throttle``.

Each task is a separate process and makes three calls; the server answers ten per second.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from pathlib import Path

from openmarkets_provider import queries
from openmarkets_provider.client.cache.file import FileStore
from openmarkets_provider.client.client import OpenmarketsClient
from openmarkets_provider.client.settings import Settings
from openmarkets_provider.exceptions import OpenmarketsError
from tests.support.limited_server import LimitedServer
from tests.support.processes import NoMasker, in_processes

TASKS = 50
CALLS = 3
RATE = 10


def tasks_outcomes(server: LimitedServer, *, shared: bool, calls: int = CALLS) -> Counter[str]:
    """Run TASKS tasks simultaneously, each with empty memory, and count their outcomes."""
    with tempfile.TemporaryDirectory() as directory:

        def work() -> str:
            store = FileStore(Path(directory)) if shared else None
            client = OpenmarketsClient(
                Settings(**server.settings()), store=store, masker=NoMasker(), user_agent="tests"
            )
            try:
                for _ in range(calls):
                    client.run(queries.request("oms", "GET", "x"))
            except OpenmarketsError as error:
                return type(error).__name__
            return "done"

        return Counter(in_processes(TASKS, work))


def throttle() -> None:
    """Print the figures."""
    print(f"{TASKS} tasks x {CALLS} calls at once, {RATE} requests a second allowed:\n")
    print(f"{'Retry-After':<12} {'holds':<12} {'429s':>5} {'seconds':>8}  tasks")
    for retry_after in (2, None):
        for shared in (False, True):
            with LimitedServer(RATE, retry_after) as server:
                began = time.monotonic()
                outcomes = tasks_outcomes(server, shared=shared)
                seconds = time.monotonic() - began
                asked = "none" if retry_after is None else f"{retry_after} s"
                report = ", ".join(f"{count} {what}" for what, count in outcomes.items())
                name = "shared" if shared else "not shared"
                print(f"{asked:<12} {name:<12} {server.stats()['429']:>5} {seconds:>8.0f}  {report}", flush=True)


if __name__ == "__main__":
    throttle()
