"""The benchmark: measures pairs in one run, and prints ratios with their spread. See ``make bench``.

``python -m dev.bench bulk sql`` runs some parts. ``history`` and ``sessions`` take ten minutes each, and run only if
they are named.

Absolute times depend on the machine; ratios of two things that are measured in turns do not. Each figure is the median
of several rounds, with the smallest and the largest.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx

from tests.support.figures import ratios, show, show_missed
from tests.support.processes import NoMasker, in_processes
from tests.support.sandbox_process import SandboxProcess

ROUNDS = 9
REQUESTS = 500
TURN = 10
PROCESSES = 64
CALLS = 1000
SCOPES = ("market-data-api", "news-api", "oms-api")

IMPORTS = """
import time
started = time.process_time()
from airflow.sdk import DAG, BaseOperator, BaseSensorOperator, dag, task
alone = time.process_time()
{imports}
print((time.process_time() - started) / (alone - started))
"""
OURS = """
from openmarkets_provider import queries
from openmarkets_provider.operators.openmarkets import OpenmarketsOperator
from openmarkets_provider.sensors.openmarkets import OpenmarketsSensor
"""
THEIRS = """
from airflow.providers.http.operators.http import HttpOperator
from airflow.providers.http.sensors.http import HttpSensor
"""
LOOK_UP = """
import json, os, time
from pathlib import Path
from openmarkets_provider.client.client import OpenmarketsClient
from openmarkets_provider.client.cache.file import FileStore
from openmarkets_provider.client.settings import Settings
class Masker:
    def mask(self, value): pass
settings = Settings(**json.loads(os.environ["SETTINGS"]))
started = time.process_time()
client = OpenmarketsClient(settings, store=FileStore(Path(os.environ["CACHE"])), masker=Masker(), user_agent="bench")
client.get_access_token("oms-api")
first = time.process_time() - started
started = time.process_time()
for _ in range(1000):
    client.get_access_token("oms-api")
print(first, (time.process_time() - started) / 1000)
"""


def main(chosen: Sequence[str]) -> None:
    """Run parts of the benchmark (default: all except the long ones), and print their figures and missed goals."""
    # Imported here, because these modules import this one.
    from dev.bench.bulk import bulk
    from dev.bench.etl import etl
    from dev.bench.history import history, sessions
    from dev.bench.sql import sql
    from dev.bench.throttle import throttle
    from dev.bench.triggers import triggers

    # `triggers` is last, because it redirects the log.
    parts = {each.__name__: each for each in (parse_cost, small_calls, bulk, etl, sql, throttle, triggers)}
    long = {"history": history, "sessions": sessions}
    if unknown := set(chosen) - set(parts | long):
        sys.exit(f"{', '.join(sorted(unknown))}: there are the parts {', '.join(parts | long)}.")
    print(
        f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f} at the start; {ROUNDS} rounds, median (min to max)"
    )
    for name, part in (parts | long).items():
        if name in (chosen or parts):
            part()
    show_missed()


def small_calls() -> None:
    """Measure the cost of single calls and tokens, against the sandbox."""
    with tempfile.TemporaryDirectory() as folder, SandboxProcess() as sandbox:
        os.environ |= {
            "AIRFLOW_CONN_OPENMARKETS_DEFAULT": sandbox.connection_json,
            "SETTINGS": json.dumps(settings_of(sandbox)),
            "CACHE": f"{folder}/look-up",
        }
        request_cost(sandbox)
        single_flight(sandbox, Path(folder) / "flight")
        look_up(sandbox)


def parse_cost() -> None:
    """Compare the CPU time of importing ``airflow.sdk`` and our operators with that of ``airflow.sdk`` alone."""

    def added(imports: str) -> float:
        command = [sys.executable, "-c", IMPORTS.format(imports=imports)]
        return float(subprocess.check_output(command, text=True).splitlines()[-1])

    added(OURS)
    ours, theirs = zip(*((added(OURS), added(THEIRS)) for _ in range(ROUNDS)), strict=True)
    print("\nImports of a DAG file, CPU, each pair within one process")
    show("airflow.sdk and openmarkets operators and sensor / airflow.sdk alone", ours, "goal <= 1.01", digits=4)
    show("airflow.sdk and apache http operator and sensor / airflow.sdk alone", theirs, digits=4)


def request_cost(sandbox: SandboxProcess) -> None:
    """Compare the CPU time of a GET through the hook with that of httpx and a static token."""
    from openmarkets_provider import queries
    from openmarkets_provider.hooks.openmarkets import OpenmarketsHook

    hook = OpenmarketsHook()
    query = queries.accounts()
    token = hook.get_access_token("oms-api")
    url = sandbox.connection["extra"]["oms_url"]
    headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
    with httpx.Client(base_url=url, headers=headers, trust_env=False) as bare:
        get_conn = hook.get_conn("oms")
        work: list[Callable[[], Any]] = [
            lambda: bare.get("accounts/v1").json(),
            lambda: hook.run(query),
            lambda: get_conn.get("accounts/v1").json(),
        ]
        for warm in work:
            repeat(warm, 20)
        plain, ran, conn = zip(*(alternate(work) for _ in range(ROUNDS)), strict=True)
    hook.close()
    print("\nA GET of the accounts over loopback, CPU of the client")
    show("hook.run(query) / httpx alone with a static token", ratios(ran, plain), "goal <= 1.15")
    show("hook.get_conn().get() / httpx alone with a static token", ratios(conn, plain))
    print(f"  httpx alone: {1e3 * statistics.median(plain) / REQUESTS:.2f} ms of CPU a request on this machine")


def single_flight(sandbox: SandboxProcess, cache: Path) -> None:
    """Count the token requests of many processes that start simultaneously with an empty cache."""
    from openmarkets_provider.client.cache.file import FileStore
    from openmarkets_provider.client.client import OpenmarketsClient
    from openmarkets_provider.client.settings import Settings

    settings = Settings(**settings_of(sandbox))
    sandbox.reset()

    def work() -> int:
        client = OpenmarketsClient(settings, store=FileStore(cache), masker=NoMasker(), user_agent="bench")
        return sum(1 for _ in range(CALLS) for scope in SCOPES if client.get_access_token(scope))

    started = time.monotonic()
    calls = sum(in_processes(PROCESSES, work))
    print(f"\n{calls} calls of get_access_token from {PROCESSES} processes, {time.monotonic() - started:.1f} s")
    for scope, count in sandbox.stats()["token_requests"].items():
        show(f"token requests for {scope}", [count], "goal <= 1", digits=0)


def look_up(sandbox: SandboxProcess) -> None:
    """Measure a look-up of a cached token in a fresh process."""
    runs = []
    for _ in range(ROUNDS + 1):
        output = subprocess.check_output([sys.executable, "-c", LOOK_UP], text=True)
        runs.append([1e3 * float(figure) for figure in output.split()])
    cold, warm = zip(*runs[1:], strict=True)
    print("\nA look-up of a cached token, CPU in ms")
    show("first in a fresh process, from the file", cold)
    show("again in the same process, from memory", warm, digits=4)


def settings_of(sandbox: SandboxProcess) -> dict[str, Any]:
    """Return the sandbox's connection as client settings."""
    connection = sandbox.connection
    credentials = {"client_id": connection["login"], "client_secret": connection["password"]}
    return {**credentials, "identity_url": connection["host"], **connection["extra"]}


def repeat(call: Callable[[], Any], times: int) -> float:
    """Return the CPU seconds of a number of calls."""
    started = time.process_time()
    for _ in range(times):
        call()
    return time.process_time() - started


def alternate(work: Sequence[Callable[[], Any]]) -> list[float]:
    """Return the CPU seconds of REQUESTS calls of each, in short turns, so that all have the same conditions."""
    turns = [[repeat(call, TURN) for call in work] for _ in range(REQUESTS // TURN)]
    return [sum(column) for column in zip(*turns, strict=True)]


if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    with tempfile.TemporaryDirectory() as home:
        os.environ["AIRFLOW_HOME"] = home
        main(sys.argv[1:])
