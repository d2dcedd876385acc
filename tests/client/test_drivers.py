from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from typing import Any

import pytest

from openmarkets_provider.client import drivers as module
from openmarkets_provider.client.drivers import AHEAD, Flow, Pause, Send, adrive, adrive_many, drive, drive_many
from openmarkets_provider.query.plan import ApiCall

LONG = 30.0
"""Seconds that nothing here may really take."""
CALL = ApiCall("oms", "GET", "x")


def as_it_is(result: Any) -> Flow[Any]:
    return result
    yield


def send(number: int) -> Send:
    return Send(CALL, str(number))


def ask(number: int, *, times: int = 1) -> Flow[Any]:
    """Send so many times, and return what came of the last one."""
    outcome = None
    for _ in range(times):
        outcome = yield send(number)
    return outcome


def nothing() -> None:
    pass


def run_threads(
    flows: Iterable[Flow[Any]], perform: Callable[[Any], Any], concurrency: int, tick: Callable[[], None] = nothing
) -> list[Any]:
    try:
        with contextlib.closing(drive_many(flows, perform, concurrency, tick, as_it_is)) as results:
            return list(results)
    finally:
        join_threads()


def run_loop(
    flows: Iterable[Flow[Any]], perform: Callable[[Any], Any], concurrency: int, tick: Callable[[], None] = nothing
) -> list[Any]:
    async def aperform(step: Any) -> Any:
        await asyncio.sleep(0)
        return perform(step)

    async def run() -> list[Any]:
        async with contextlib.aclosing(adrive_many(flows, aperform, concurrency, tick, as_it_is)) as results:
            found = [result async for result in results]
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return found

    return asyncio.run(run())


def join_threads() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("openmarkets_"):
            thread.join(LONG / 2)
            assert not thread.is_alive()


@pytest.fixture(params=[run_threads, run_loop], ids=["threads", "loop"])
def run_many(request: pytest.FixtureRequest) -> Callable[..., list[Any]]:
    return request.param


# --- one flow


def test_a_flow_gets_the_outcome_of_its_steps_and_its_result_is_returned():
    def flow() -> Flow[list[Any]]:
        return [(yield send(1)), (yield Pause(0, False)), (yield send(2))]

    told = []

    def perform(step: Any) -> int:
        told.append(step)
        return len(told)

    assert drive(flow(), perform) == [1, 2, 3]
    assert told == [send(1), Pause(0, False), send(2)]


def test_a_flow_without_a_step_performs_nothing():
    assert drive(ask(1, times=0), lambda step: pytest.fail("nothing was to be done")) is None


async def test_a_flow_gets_the_failure_of_a_step_and_may_go_on():
    def flow() -> Flow[str]:
        try:
            yield send(1)
        except ValueError as error:
            return f"met {error}"
        return "met nothing"

    def fail(step: Any) -> None:
        raise ValueError("trouble")

    async def afail(step: Any) -> None:
        fail(step)

    assert drive(flow(), fail) == await adrive(flow(), afail) == "met trouble"


async def test_a_failure_that_the_flow_does_not_take_is_raised():
    def fail(step: Any) -> None:
        raise ValueError("trouble")

    async def afail(step: Any) -> None:
        fail(step)

    with pytest.raises(ValueError, match="trouble"):
        drive(ask(1), fail)
    with pytest.raises(ValueError, match="trouble"):
        await adrive(ask(1), afail)


# --- many flows


@pytest.mark.parametrize("concurrency", [1, 2, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_results_are_in_the_order_of_the_flows(run_many: Callable[..., list[Any]], concurrency: int, count: int):
    assert run_many(map(ask, range(count)), lambda step: int(step.request_id), concurrency) == list(range(count))


def test_results_wait_for_those_before_them():
    answered = [threading.Event() for _ in range(5)]

    def backwards(step: Any) -> int:
        number = int(step.request_id)
        if number < 3:
            assert answered[number + 1].wait(LONG)
        answered[number].set()
        return number

    assert run_threads(map(ask, range(4)), backwards, 4) == [0, 1, 2, 3]


async def test_results_wait_for_those_before_them_on_a_loop():
    answered = [asyncio.Event() for _ in range(5)]

    async def backwards(step: Any) -> int:
        number = int(step.request_id)
        if number < 3:
            await answered[number + 1].wait()
        answered[number].set()
        return number

    assert [result async for result in adrive_many(map(ask, range(4)), backwards, 4, nothing, as_it_is)] == [0, 1, 2, 3]


@pytest.mark.parametrize("concurrency", [2, 5])
def test_so_many_are_sent_at_a_time_and_never_more(concurrency: int):
    meeting, lock = threading.Barrier(concurrency), threading.Lock()
    under_way = most = 0

    def perform(step: Any) -> None:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        meeting.wait(LONG)
        with lock:
            under_way -= 1

    run_threads(map(ask, range(4 * concurrency)), perform, concurrency)
    assert most == concurrency


@pytest.mark.parametrize("concurrency", [1, 2, 5])
async def test_so_many_are_sent_at_a_time_on_a_loop_and_never_more(concurrency: int):
    meeting = asyncio.Barrier(concurrency)
    under_way = most = 0

    async def perform(step: Any) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await meeting.wait()
        under_way -= 1

    assert len(
        [x async for x in adrive_many(map(ask, range(4 * concurrency)), perform, concurrency, nothing, as_it_is)]
    )
    assert most == concurrency


class Counted:
    """Flows that are made when somebody takes them."""

    def __init__(self, count: int) -> None:
        self.taken = 0
        self._count = count

    def __iter__(self) -> Iterator[Flow[Any]]:
        for number in range(self._count):
            self.taken += 1
            yield ask(number)


def test_few_flows_are_begun_ahead_of_the_result_that_is_asked_for():
    flows = Counted(1000)
    with contextlib.closing(drive_many(flows, lambda step: None, 3, nothing, as_it_is)) as results:
        assert flows.taken == 0
        for number, _ in enumerate(results):
            assert flows.taken <= number + 3 * AHEAD
            if number == 100:
                break
    join_threads()
    assert flows.taken <= 100 + 3 * AHEAD


async def test_few_flows_are_begun_ahead_of_the_result_that_is_asked_for_on_a_loop():
    async def perform(step: Any) -> None:
        await asyncio.sleep(0)

    flows = Counted(1000)
    async with contextlib.aclosing(adrive_many(flows, perform, 3, nothing, as_it_is)) as results:
        number = 0
        async for _ in results:
            assert flows.taken <= number + 3 * AHEAD
            number += 1
            if number == 100:
                break
    assert flows.taken <= 100 + 3 * AHEAD


def test_the_first_failure_ends_everything(run_many: Callable[..., list[Any]]):
    sent = []

    def perform(step: Any) -> None:
        sent.append(int(step.request_id))
        if step.request_id == "5":
            raise ValueError("trouble")

    flows = Counted(1000)
    with pytest.raises(ValueError, match="trouble"):
        run_many(flows, perform, 3)
    assert flows.taken <= 5 + 3 * AHEAD
    assert set(sent) <= set(range(5 + 3 * AHEAD))


def test_a_failure_is_raised_although_an_earlier_result_is_still_to_come():
    release, ended = threading.Event(), []

    def perform(step: Any) -> None:
        if step.request_id == "1":
            raise ValueError("trouble")
        release.wait(LONG / 3)
        ended.append(step.request_id)

    results = drive_many(map(ask, range(2)), perform, 2, nothing, as_it_is)
    with pytest.raises(ValueError, match="trouble"):
        next(results)
    assert ended == []
    release.set()
    join_threads()


async def test_a_failure_is_raised_although_an_earlier_result_is_still_to_come_on_a_loop():
    async def perform(step: Any) -> None:
        if step.request_id == "1":
            raise ValueError("trouble")
        await asyncio.Event().wait()

    results = adrive_many(map(ask, range(2)), perform, 2, nothing, as_it_is)
    with pytest.raises(ValueError, match="trouble"):
        await anext(results)
    assert asyncio.all_tasks() == {asyncio.current_task()}


def test_flows_that_can_not_be_made_end_everything(run_many: Callable[..., list[Any]]):
    def broken() -> Iterator[Flow[Any]]:
        yield from map(ask, range(20))
        raise ValueError("trouble")

    with pytest.raises(ValueError, match="trouble"):
        run_many(broken(), lambda step: None, 2)


def test_an_interrupt_of_one_thread_is_not_lost():
    def perform(step: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_threads(map(ask, range(3)), perform, 2)


def test_closing_early_leaves_no_thread_and_sends_nothing_more():
    sent: list[Any] = []
    results = drive_many((ask(number, times=3) for number in range(100)), sent.append, 2, nothing, as_it_is)
    next(results)
    results.close()
    join_threads()
    count = len(sent)
    assert count <= 3 * (1 + 2 * AHEAD)
    assert list(results) == []
    assert len(sent) == count


def test_what_pauses_is_woken_when_the_run_is_closed():
    pausing = threading.Event()

    def flow() -> Flow[None]:
        yield send(1)
        pausing.set()
        yield Pause(1000.0, True)

    def none_left() -> Flow[None]:
        return ask(0, times=0)

    results = drive_many([none_left(), *(flow() for _ in range(6))], lambda step: None, 3, nothing, as_it_is)
    next(results)
    assert pausing.wait(LONG)
    results.close()
    join_threads()


async def test_closing_early_leaves_no_task():
    async def perform(step: Any) -> None:
        if step.request_id != "0":
            await asyncio.Event().wait()

    results: AsyncGenerator[Any, None] = adrive_many(map(ask, range(100)), perform, 3, nothing, as_it_is)
    await anext(results)
    assert len(asyncio.all_tasks()) > 1
    await results.aclose()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_cancelling_who_waits_for_a_result_leaves_no_task():
    reached = asyncio.Event()

    async def perform(step: Any) -> None:
        reached.set()
        await asyncio.Event().wait()

    async def consume() -> None:
        async with contextlib.aclosing(adrive_many(map(ask, range(10)), perform, 3, nothing, as_it_is)) as results:
            async for _ in results:
                pass

    task = asyncio.create_task(consume())
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.all_tasks() == {asyncio.current_task()}


def test_who_waits_for_a_result_is_heard_from(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "TICK", 0.01)
    heard = threading.Event()
    assert run_threads([ask(1)], lambda step: heard.wait(LONG), 1, heard.set) == [True]


async def test_who_waits_for_a_result_is_heard_from_on_a_loop(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "TICK", 0.01)
    heard = asyncio.Event()

    async def perform(step: Any) -> bool:
        return await heard.wait()

    assert [result async for result in adrive_many([ask(1)], perform, 1, heard.set, as_it_is)] == [True]


async def test_a_limit_that_one_flow_meets_holds_the_others_back():
    order = []

    def limited() -> Flow[None]:
        yield send(0)
        yield Pause(0.2, True)
        order.append("waited")

    async def perform(step: Any) -> None:
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
        else:
            order.append(step.request_id)
            await asyncio.sleep(0)

    flows = [limited(), ask(1, times=50)]
    assert len([result async for result in adrive_many(flows, perform, 2, nothing, as_it_is)]) == 2
    # on one loop the order is sure: the second had sent once or twice when the first was told to wait
    assert order.index("waited") <= 4
    assert order.count("1") == 50


async def test_a_pause_that_no_server_asked_for_holds_nobody_back():
    order = []
    others_done = asyncio.Event()

    def waiting() -> Flow[None]:
        yield send(0)
        yield Pause(1000.0, False)
        order.append("waited")

    async def perform(step: Any) -> None:
        if isinstance(step, Pause):
            await others_done.wait()
            return
        order.append(step.request_id)
        if len(order) == 51:
            others_done.set()

    assert (
        len([result async for result in adrive_many([waiting(), ask(1, times=50)], perform, 2, nothing, as_it_is)]) == 2
    )
    assert order[-1] == "waited"


def test_a_limit_that_one_thread_meets_holds_the_others_back():
    # The second flow begins when the first has ended its pause: the gap that is left after it is what it meets.
    waited = threading.Event()
    gone = []

    def limited() -> Flow[None]:
        yield Pause(0.0, True)
        waited.set()

    def perform(step: Any) -> None:
        gone.append(module.time.monotonic())

    def after() -> Flow[None]:
        assert waited.wait(LONG)
        for _ in range(11):
            yield send(1)

    run_threads([limited(), after()], perform, 2)
    # ten gaps of 20 ms, or of 18 ms once the first flow counts as a success: never shorter, however slow the machine
    assert gone[-1] - gone[0] >= 10 * 0.009
