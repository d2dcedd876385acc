"""Many processes of one host, and a server that limits their rate: how often it answers 429."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dev.bench.throttle import TASKS, tasks_outcomes
from openmarkets_provider import queries
from openmarkets_provider.client.cache.store import Store
from openmarkets_provider.client.client import OpenmarketsClient
from openmarkets_provider.client.settings import Settings
from openmarkets_provider.exceptions import OpenmarketsRateLimited
from tests.support.limited_server import LimitedServer
from tests.support.processes import NoMasker, in_processes

LONG = 300


@pytest.mark.parametrize(("rate", "retry_after"), [(10, 1), (25, None)])
def test_fifty_tasks_meet_one_burst_of_429s_and_not_fifty_retries_each(rate: int, retry_after: int | None):
    with LimitedServer(rate, retry_after) as server:
        outcomes = tasks_outcomes(server, shared=True, calls=1)
        stats = server.stats()
    assert outcomes == {"done": TASKS}
    assert stats["200"] == TASKS
    print(f"429s for {TASKS} tasks at once, {rate} requests a second allowed: {stats['429']}")
    assert stats["429"] <= TASKS


@pytest.fixture
def asking(make_store: Callable[[], Store]) -> Callable[[LimitedServer, str], str]:
    """Makes one call like a process, and reports the outcome."""

    def ask(server: LimitedServer, api: str) -> str:
        client = OpenmarketsClient(
            Settings(**server.settings()), store=make_store(), masker=NoMasker(), user_agent="tests"
        )
        try:
            client.run(queries.request(api, "GET", "x"))
        except OpenmarketsRateLimited as error:
            what = "refused" if error.sent else "held back"
            return what if error.retry_after >= LONG / 2 else f"{what} for {error.retry_after} s"
        return "done"

    return ask


def test_while_an_api_wants_a_long_rest_nobody_sends_anything(asking: Callable[[LimitedServer, str], str]):
    with LimitedServer(0, LONG) as server:
        assert in_processes(1, lambda: asking(server, "oms")) == ["refused"]
        assert in_processes(TASKS, lambda: asking(server, "oms")) == ["held back"] * TASKS
        assert server.stats() == {"200": 0, "429": 1}
        # the others don't know each other's limits
        assert in_processes(1, lambda: asking(server, "news")) == ["refused"]
        assert server.stats() == {"200": 0, "429": 2}
