"""The benchmark of bulk work: many securities' daily rows through ``hook.stream``. See :mod:`dev.bench`.

The server is a separate process and waits 50 ms before each reply, like a distant server.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any, NamedTuple

import httpx

from tests.support.bulk_server import BulkServer
from tests.support.figures import ratios, show

LATENCY = 0.05
SECURITIES = 300
CONCURRENCY = 8
ROUNDS = 7
# 52 and 4 weeks, up to Saturdays, so that no bar of the day after the range has to be dropped.
YEAR, MONTH = ("2024-07-01", "2025-06-28"), ("2025-06-02", "2025-06-28")
FEW, MANY = 100, 2000
MEMORY_ROUNDS = 3

MEMORY = """
import sys
from openmarkets_provider import queries
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
def peak():
    # Not getrusage: its figure begins with the peak of the process that started this one.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
securities = ["C%04d" % number for number in range(int(sys.argv[1]))]
query = queries.time_series(securities, start=sys.argv[2], end=sys.argv[3])
hook = OpenmarketsHook()
hook.client.http("market_data")
base = peak()
rows = sum(len(batch) for batch in hook.stream(query))
print(rows, base / 1024, peak() / 1024)
"""


class Cost(NamedTuple):
    """The cost of a piece of work."""

    cpu: float
    wall: float


def bulk() -> None:
    """Run the benchmarks of bulk work and print their figures; ``AIRFLOW_HOME`` is set."""
    with BulkServer(LATENCY) as server:
        connect(server)
        throughput(server, YEAR, "a year", ROUNDS, goals=("goal <= 1.4", "goal <= 1.15", "goal <= 0.2", "goal <= 1.0"))
        throughput(server, MONTH, "a month", ROUNDS)
        memory()


def connect(server: BulkServer) -> None:
    """Set the connections of both hooks."""
    os.environ["AIRFLOW_CONN_OPENMARKETS_DEFAULT"] = server.connection_json
    os.environ["AIRFLOW_CONN_BULK_HTTP"] = json.dumps({"conn_type": "http", "host": server.url})


def throughput(
    server: BulkServer, days: Sequence[str], words: str, rounds: int, goals: Sequence[str] = ("", "", "", "")
) -> None:
    """Compare ``hook.stream`` with a plain threaded httpx loop, and with Apache's HttpHook in sequence."""
    from airflow.providers.http.hooks.http import HttpHook

    from openmarkets_provider import queries
    from openmarkets_provider.hooks.openmarkets import OpenmarketsHook

    codes = [f"C{number:04d}" for number in range(SECURITIES)]
    query = queries.time_series(codes, start=days[0], end=days[1])
    hook = OpenmarketsHook(concurrency=CONCURRENCY)
    # The other two get the token for free.
    headers = {"Authorization": f"Bearer {hook.get_access_token('market-data-api')}", "Accept": "application/json"}
    paths = [f"pricing/timeseries/{code}.ASX@TM/v2" for code in codes]
    params = {"frequency": "Daily", "dateFrom": days[0], "dateTo": days[1]}

    def ours() -> int:
        return sum(len(batch) for batch in hook.stream(query))

    def ours_arrow() -> int:
        return sum(batch.num_rows for batch in hook.stream_arrow(query))

    # Returns the same as the plain loop.
    def ours_raw() -> int:
        return sum(len(batch) for batch in hook.stream({**query, "raw": True}))

    # The plain loop is the minimum with httpx: one client shared by threads, as many threads as the hook has concurrent
    # requests, a token that never expires, and replies decoded by the standard library, as in `response.json()`. It
    # makes no rows: prices stay native floats and dates stay text.
    def bare() -> int:
        with ThreadPoolExecutor(CONCURRENCY) as pool:
            return sum(pool.map(lambda path: len(client.get(path, params=params).json()), paths))

    def http_hook() -> int:
        sequential = HttpHook(method="GET", http_conn_id="bulk_http")
        return sum(len(sequential.run(path, data=params, headers=headers).json()) for path in paths)

    with httpx.Client(base_url=server.url, headers=headers, trust_env=False) as client:
        check(hook, query, client.get(paths[0], params=params).json())
        count = ours()
        assert bare() == ours_raw() == ours_arrow() == count
        pairs = [turns([ours, ours_arrow, ours_raw, bare], number) for number in range(rounds)]
        own, own_arrow, own_raw, plain = zip(*pairs, strict=True)
        theirs = cost(http_hook) if any(goals) else None
    hook.close()
    print(f"\nDaily rows of {SECURITIES} securities for {words} ({count} rows), {1e3 * LATENCY:.0f} ms latency")
    for name, costs, cpu_goal, wall_goal in (
        ("hook.stream", own, goals[0], goals[1]),
        ("hook.stream_arrow", own_arrow, goals[3], ""),
        ("hook.stream(raw=True)", own_raw, "", ""),
    ):
        show(f"{name} / bare httpx in threads, CPU", ratios([c.cpu for c in costs], [c.cpu for c in plain]), cpu_goal)
        show(
            f"{name} / bare httpx in threads, wall", ratios([c.wall for c in costs], [c.wall for c in plain]), wall_goal
        )
    if theirs is not None:
        show(
            "hook.stream / apache HttpHook in sequence (once), wall",
            [each.wall / theirs.wall for each in own],
            goals[2],
        )
    for name, costs in (("hook.stream", own), ("bare httpx", plain)):
        show(f"{name}, CPU in s", [each.cpu for each in costs])
        show(f"{name}, wall in s", [each.wall for each in costs])


def check(hook: Any, query: Any, bars: Sequence[dict[str, Any]]) -> None:
    """Check that the rows are those that the server sent."""
    batches = list(hook.stream(query))
    assert [batch[0]["security_code"] for batch in batches] == [f"C{number:04d}" for number in range(SECURITIES)]
    for batch in batches:
        assert [row["time_series_date"].isoformat() for row in batch] == [bar["timeSeriesDate"] for bar in bars]
        for name, api_name in (("close_price", "closePrice"), ("market_vwap", "marketVwap")):
            assert [row[name] for row in batch] == [Decimal(str(bar[api_name])) / 100 for bar in bars]


def memory() -> None:
    """Compare the peak memory of new processes that stream few and many securities."""
    few, many, added = [], [], []
    for _ in range(MEMORY_ROUNDS):
        (count, base, low), (_, _, high) = (peak(number) for number in (FEW, MANY))
        few.append(low)
        many.append(high)
        added.append(low - base)
    print(
        f"\nPeak memory of a process that streams and drops a year's daily rows ({count / FEW:.0f} a security), in MiB"
    )
    show(f"{MANY} securities / {FEW} securities", ratios(many, few), "goal <= 1.1")
    show(f"{FEW} securities", few, digits=1)
    show(f"{MANY} securities", many, digits=1)
    show(f"{FEW} securities, above the same process before the first request", added, digits=1)


def peak(securities: int) -> list[float]:
    """Return rows, peak memory before the first request and at the end, in MiB, of one process."""
    output = subprocess.check_output([sys.executable, "-c", MEMORY, str(securities), *YEAR], text=True)
    return [float(figure) for figure in output.splitlines()[-1].split()]


def turns(work: Sequence[Callable[[], Any]], number: int) -> list[Cost]:
    """Measure each once. The order alternates, because the first one may have different conditions."""
    order = list(range(len(work)))[:: -1 if number % 2 else 1]
    costs = {index: cost(work[index]) for index in order}
    return [costs[index] for index in sorted(costs)]


def cost(work: Callable[[], Any]) -> Cost:
    """Measure the CPU time of all threads, and the wall time."""
    cpu, wall = time.process_time(), time.monotonic()
    work()
    return Cost(time.process_time() - cpu, time.monotonic() - wall)
