"""The benchmark of waiting: a thousand deferred sensors in one triggerer. See :mod:`dev.bench`.

Real trigger instances run on one event loop, with the log lines that a triggerer writes, against a server in a separate
process. Apache's triggers are measured in the same run, in turns: `HttpTrigger` in a loop, and `HttpSensorTrigger`,
which waits while the reply is a 404 and does not read it.

The interval is shorter than the 10 s that so many sensors would have. This does not matter: CPU time is per poll, and
the lag of the event loop comes from simultaneous polls, which at any interval are all of them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple

from tests.support.bulk_server import ORDERS, QUOTES, TOKEN, BulkServer
from tests.support.figures import ratios, show

SENSORS = 1000
INTERVAL = 3.0
POLLS = 2
ROUNDS = 3
LATENCY = 0.02
TICK = 0.01
HEADERS = {"Authorization": f"Bearer {TOKEN}", "Accept": "application/json"}
CODES = [f"C{number:04d}" for number in range(SENSORS)]


class Waited(NamedTuple):
    """The cost of waiting: CPU time in ms and requests per poll, connections, and lag in s."""

    cpu: float
    requests: float
    connections: int
    lag: float


class Polls:
    """Counts the log lines of polls, one for each poll of a sensor, and discards them."""

    def __init__(self) -> None:
        self.count = 0

    def write(self, line: bytes) -> int:
        self.count += b"polling again" in line or b"[Try 1 of" in line
        return len(line)

    def flush(self) -> None:
        pass


def triggers() -> None:
    """Run the benchmark and print its figures; ``AIRFLOW_HOME`` is set."""
    from openmarkets_provider import queries

    polls = Polls()
    log_as_a_triggerer(polls)
    with BulkServer(LATENCY) as server:
        os.environ["AIRFLOW_CONN_OPENMARKETS_DEFAULT"] = server.connection_json
        os.environ["AIRFLOW_CONN_BULK_HTTP"] = json.dumps({"conn_type": "http", "host": server.url})
        print(
            f"\n{SENSORS} waiting sensors in one process, polls every {INTERVAL:.0f} s, {1e3 * LATENCY:.0f} ms latency"
        )
        bodies = [json.dumps({"securities": [f"{code}.ASX@TM"]}) for code in CODES]
        post = {"method": "POST", "endpoint": QUOTES}
        compare(
            "on as many securities",
            [ours(queries.quotes([code])) for code in CODES],
            [http({**post, "data": body}, polls) for body in bodies],
            goal=0.1,
            server=server,
            polls=polls,
        )
        compare(
            "on one query",
            [ours(queries.quotes(["C0000"])) for _ in CODES],
            [http({**post, "data": bodies[0]}, polls) for _ in CODES],
            goal=0.1,
            server=server,
            polls=polls,
        )
        compare(
            "on as many queries that can't be put together",
            [ours(queries.orders([code])) for code in CODES],
            [http({"method": "GET", "endpoint": f"{ORDERS}{code}/v4"}, polls) for code in CODES],
            goal=0.8,
            server=server,
            polls=polls,
        )


def compare(
    words: str,
    own: Sequence[Callable[[], Any]],
    looped: Sequence[Callable[[], Any]],
    *,
    goal: float,
    server: BulkServer,
    polls: Polls,
) -> None:
    """Measure all three kinds of sensors in turns, and print the ratios of ours to Apache's."""
    kinds = [own, looped, [sensor(code) for code in CODES]]
    rounds = []
    for number in range(ROUNDS):
        order = list(range(len(kinds)))[:: -1 if number % 2 else 1]
        measured = {index: asyncio.run(wait(kinds[index], server, polls)) for index in order}
        rounds.append([measured[index] for index in range(len(kinds))])
    mine, trigger, apache_sensor = zip(*rounds, strict=True)
    print(f" {words}")
    cpu = [each.cpu for each in mine]
    show("CPU a poll / apache HttpTrigger in a loop", ratios(cpu, [each.cpu for each in trigger]), f"goal <= {goal}")
    show("CPU a poll / apache HttpSensorTrigger", ratios(cpu, [each.cpu for each in apache_sensor]))
    show("requests a poll", [each.requests for each in mine], digits=4)
    show("most connections at the server", [each.connections for each in mine], "goal <= 32", digits=0)
    show("worst lag of the event loop in s", [each.lag for each in mine], "goal <= 0.5")
    show("CPU a poll in ms", cpu)
    for name, kind in (("HttpTrigger", trigger), ("HttpSensorTrigger", apache_sensor)):
        show(f"{name}: CPU a poll in ms", [each.cpu for each in kind])
        show(f"{name}: connections", [each.connections for each in kind], digits=0)
        show(f"{name}: lag in s", [each.lag for each in kind])


def ours(query: Any) -> Callable[[], Any]:
    from openmarkets_provider.triggers.openmarkets import OpenmarketsConditionTrigger

    condition = "[0].trading_status == 'OPEN'" if query["endpoint"] == "quotes" else "[0].state == 'finished'"
    return lambda: OpenmarketsConditionTrigger(
        "openmarkets_default", query, condition, INTERVAL, time.time() + 3600, 3, None
    ).run()


def http(request: dict[str, Any], polls: Polls) -> Callable[[], Any]:
    from airflow.providers.http.triggers.http import HttpTrigger

    async def loop() -> AsyncIterator[Any]:
        trigger = HttpTrigger("bulk_http", headers=HEADERS, **request)
        while True:
            async for event in trigger.run():
                if event.payload["status"] != "success":
                    yield event
            polls.count += 1
            await asyncio.sleep(INTERVAL)

    return loop


def sensor(code: str) -> Callable[[], Any]:
    from airflow.providers.http.triggers.http import HttpSensorTrigger

    return lambda: HttpSensorTrigger(f"wait/{code}", "bulk_http", headers=HEADERS, poke_interval=INTERVAL).run()


async def wait(sensors: Sequence[Callable[[], Any]], server: BulkServer, polls: Polls) -> Waited:
    """Run sensors until each has polled several times."""
    lag = 0.0

    async def watch() -> None:
        nonlocal lag
        while True:
            begun = time.monotonic()
            await asyncio.sleep(TICK)
            lag = max(lag, time.monotonic() - begun - TICK)

    async def first_event(make: Callable[[], Any]) -> Any:
        return await anext(aiter(make()))

    async def until(count: int) -> None:
        while polls.count < count:
            await asyncio.sleep(10 * TICK)
            ended = [task for task in tasks if task.done()]
            assert not ended, ended[0].result()

    polls.count = 0
    tasks = [asyncio.create_task(first_event(make)) for make in sensors]
    await until(len(sensors))
    watcher = asyncio.create_task(watch())
    server.counts()
    lag, begun, cpu = 0.0, polls.count, time.process_time()
    await until(len(sensors) * (1 + POLLS))
    cpu, count, counts = time.process_time() - cpu, polls.count - begun, server.counts()
    for task in (*tasks, watcher):
        task.cancel()
    await asyncio.gather(*tasks, watcher, return_exceptions=True)
    return Waited(1e3 * cpu / count, counts["requests"] / count, counts["connections"], lag)


def log_as_a_triggerer(polls: Polls) -> None:
    """Log JSON lines, as the triggerer does."""
    from airflow.sdk.log import configure_logging, reset_logging

    reset_logging()
    configure_logging(json_output=True, output=polls, sending_to_supervisor=True)
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    # Airflow's hook sends uncaught exceptions to the log, so the benchmark would fail without a message.
    sys.excepthook = sys.__excepthook__


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        os.environ["AIRFLOW_HOME"] = home
        triggers()
