"""A secret counts as masked when Airflow's supervisor, which writes the log, has taken it; its part is played here."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from openmarkets_provider.hooks._masking import AirflowMasker

pytestmark = pytest.mark.since("3.3")

SECRET = "a-token-to-hide"
LONG = 20
"""Seconds after which a test that hangs fails."""


class Supervisor:
    """Takes secrets when the test allows it.

    :ivar arrived: released for each secret that has arrived.
    :ivar taken: the secrets that it has taken.
    """

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.arrived = threading.Semaphore(0)
        self.gate = threading.Event()

    def send(self, message: Any) -> None:
        self.arrived.release()
        assert self.gate.wait(LONG)
        self.taken.append(message.value)

    async def asend(self, message: Any) -> None:
        self.arrived.release()
        while not self.gate.is_set():
            await asyncio.sleep(0.001)
        self.taken.append(message.value)


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    from airflow.sdk.execution_time import task_runner

    supervisor = Supervisor()
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", supervisor, raising=False)
    return supervisor


async def begin(masker: AirflowMasker, supervisor: Supervisor) -> tuple[asyncio.Task[None], asyncio.Task[None]]:
    """Start to mask a secret in two coroutines. The first one waits for the supervisor."""
    first = asyncio.create_task(masker.amask(SECRET))
    assert await asyncio.to_thread(supervisor.arrived.acquire, timeout=LONG)
    second = asyncio.create_task(masker.amask(SECRET))
    await asyncio.sleep(0)
    return first, second


async def test_a_coroutine_waits_until_a_secret_is_masked_that_another_one_masks(supervisor: Supervisor) -> None:
    masker = AirflowMasker()
    first, second = await begin(masker, supervisor)
    assert not second.done()
    supervisor.gate.set()
    await asyncio.gather(first, second)
    await masker.amask(SECRET)
    assert supervisor.taken == [SECRET]


async def test_a_secret_whose_masking_was_cancelled_is_masked_by_the_next(supervisor: Supervisor) -> None:
    masker = AirflowMasker()
    first, second = await begin(masker, supervisor)
    first.cancel()
    assert await asyncio.gather(first, return_exceptions=True)
    assert first.cancelled()
    # The second coroutine has started again by now. It is cancelled, too.
    assert await asyncio.to_thread(supervisor.arrived.acquire, timeout=LONG)
    second.cancel()
    assert await asyncio.gather(second, return_exceptions=True)
    supervisor.gate.set()
    await masker.amask(SECRET)
    assert supervisor.taken == [SECRET]


def test_a_thread_goes_on_when_the_secret_is_masked(supervisor: Supervisor) -> None:
    masker = AirflowMasker()
    with ThreadPoolExecutor(2) as pool:
        begun = [pool.submit(masker.mask, SECRET) for _ in range(2)]
        try:
            for _ in begun:
                assert supervisor.arrived.acquire(timeout=LONG)
            assert not any(future.done() for future in begun)
        finally:
            supervisor.gate.set()
    masker.mask(SECRET)
    assert supervisor.taken == [SECRET] * 2


def test_a_secret_is_masked_once_on_each_of_several_event_loops(supervisor: Supervisor) -> None:
    supervisor.gate.set()
    masker = AirflowMasker()
    for _ in range(2):
        asyncio.run(masker.amask(SECRET))
    assert supervisor.taken == [SECRET]
