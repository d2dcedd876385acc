from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Iterable, Iterator
from functools import partial
from typing import Any

import pytest

from openmarkets_provider.client import io as module
from openmarkets_provider.client.http.clients import Reply
from openmarkets_provider.client.io import (
    AHEAD,
    Group,
    Io,
    PacedIo,
    TaskGroup,
    ThreadGroup,
    in_order,
    iterate_blocking,
    run_blocking,
)
from openmarkets_provider.exceptions import OpenmarketsError
from openmarkets_provider.query.plan import ApiCall

LONG = 30.0
"""Seconds that nothing here may really take."""
CALL = ApiCall("oms", "GET", "x")
REPLY = Reply(200, {}, b"")

Job = Callable[[Io], Coroutine[Any, Any, Any]]
Perform = Callable[[int], Any]
AsyncPerform = Callable[[int], Awaitable[Any]]


class FakeIo:
    """Calls a function with the number of each request. The group does the waiting."""

    def __init__(self, perform: AsyncPerform) -> None:
        self._perform = perform

    async def send(self, call: ApiCall, request_id: str) -> Reply:
        await self._perform(int(request_id))
        return REPLY

    async def sleep(self, seconds: float, *, rate_limited: bool = False) -> None:
        raise AssertionError("the group waits")

    async def record_hold(self, api: str, seconds: float | None) -> None:
        raise AssertionError("no server said 429")


def blocking(perform: Perform) -> AsyncPerform:
    async def aperform(number: int) -> Any:
        return perform(number)

    return aperform


def yielding(perform: Perform) -> AsyncPerform:
    async def aperform(number: int) -> Any:
        await asyncio.sleep(0)
        return perform(number)

    return aperform


def ask(number: int, *, times: int = 1) -> Job:
    """Return a job that sends a number of requests. Its result is its number."""

    async def job(io: Io) -> int:
        for _ in range(times):
            await io.send(CALL, str(number))
        return number

    return job


def nothing() -> None:
    pass


async def carry_out(
    open_group: Callable[[int], Group[Any]],
    jobs: Iterable[Job],
    perform: AsyncPerform,
    concurrency: int,
    tick: Callable[[], None] = nothing,
) -> AsyncGenerator[Any, None]:
    async with open_group(concurrency) as group:
        io = PacedIo(FakeIo(perform), group)
        async with contextlib.aclosing(
            in_order(group, (partial(job, io) for job in jobs), concurrency, tick)
        ) as results:
            async for result in results:
                yield result


def in_threads(
    jobs: Iterable[Job], perform: Perform, concurrency: int, tick: Callable[[], None] = nothing
) -> Generator[Any, None, None]:
    return iterate_blocking(carry_out(ThreadGroup, jobs, blocking(perform), concurrency, tick))


def on_loop(
    jobs: Iterable[Job], perform: AsyncPerform, concurrency: int, tick: Callable[[], None] = nothing
) -> contextlib.aclosing[AsyncGenerator[Any, None]]:
    return contextlib.aclosing(carry_out(TaskGroup, jobs, perform, concurrency, tick))


def run_threads(jobs: Iterable[Job], perform: Perform, concurrency: int, tick: Callable[[], None] = nothing) -> Any:
    try:
        return list(in_threads(jobs, perform, concurrency, tick))
    finally:
        check_no_thread()


async def arun(
    jobs: Iterable[Job], perform: AsyncPerform, concurrency: int, tick: Callable[[], None] = nothing
) -> list[Any]:
    try:
        async with on_loop(jobs, perform, concurrency, tick) as results:
            return [result async for result in results]
    finally:
        check_no_task()


def run_loop(jobs: Iterable[Job], perform: Perform, concurrency: int, tick: Callable[[], None] = nothing) -> Any:
    return asyncio.run(arun(jobs, yielding(perform), concurrency, tick))


def check_no_thread() -> None:
    assert [thread for thread in threading.enumerate() if thread.name.startswith("openmarkets_")] == []


def check_no_task() -> None:
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.fixture(params=[run_threads, run_loop], ids=["threads", "loop"])
def run_many(request: pytest.FixtureRequest) -> Callable[..., list[Any]]:
    return request.param


# --- one coroutine


def test_a_coroutine_that_never_suspends_is_carried_out_and_its_result_is_returned():
    async def add(first: int, second: int) -> int:
        return first + second

    async def work() -> int:
        return await add(await add(1, 2), 3)

    assert run_blocking(work()) == 6


def test_what_a_coroutine_raises_is_raised():
    async def work() -> None:
        raise ValueError("trouble")

    with pytest.raises(ValueError, match="trouble"):
        run_blocking(work())


def test_a_coroutine_that_suspends_is_ended_and_refused():
    ended = []

    async def work() -> None:
        try:
            await asyncio.sleep(0)
        finally:
            ended.append(True)

    with pytest.raises(RuntimeError, match="waits for an event loop"):
        run_blocking(work())
    assert ended == [True]


class Generated:
    """Yields numbers, and notes its end."""

    def __init__(self) -> None:
        self.is_over = False

    async def numbers(self, count: int) -> AsyncGenerator[int, None]:
        try:
            for number in range(count):
                yield number
        finally:
            self.is_over = True


def test_a_generator_is_iterated_to_its_end():
    generated = Generated()
    assert list(iterate_blocking(generated.numbers(3))) == [0, 1, 2]
    assert generated.is_over


def test_a_generator_is_closed_with_the_iteration():
    generated = Generated()
    items = iterate_blocking(generated.numbers(3))
    assert next(items) == 0
    assert not generated.is_over
    items.close()
    assert generated.is_over
    assert list(items) == []


def test_what_a_generator_raises_is_raised():
    async def numbers() -> AsyncGenerator[int, None]:
        yield 1
        raise ValueError("trouble")

    items = iterate_blocking(numbers())
    assert next(items) == 1
    with pytest.raises(ValueError, match="trouble"):
        next(items)
    assert list(items) == []


# --- many coroutines


@pytest.mark.parametrize("concurrency", [1, 2, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_results_are_in_the_order_of_the_jobs(run_many: Callable[..., list[Any]], concurrency: int, count: int):
    sent: list[int] = []
    assert run_many(map(ask, range(count)), sent.append, concurrency) == list(range(count))
    assert sorted(sent) == list(range(count))


def test_results_wait_for_those_before_them():
    answered = [threading.Event() for _ in range(5)]
    order = []

    def backwards(number: int) -> None:
        if number < 3:
            assert answered[number + 1].wait(LONG)
        order.append(number)
        answered[number].set()

    assert run_threads(map(ask, range(4)), backwards, 4) == [0, 1, 2, 3]
    assert order == [3, 2, 1, 0]


async def test_results_wait_for_those_before_them_on_a_loop():
    answered = [asyncio.Event() for _ in range(5)]
    order = []

    async def backwards(number: int) -> None:
        if number < 3:
            await answered[number + 1].wait()
        order.append(number)
        answered[number].set()

    assert await arun(map(ask, range(4)), backwards, 4) == [0, 1, 2, 3]
    assert order == [3, 2, 1, 0]


@pytest.mark.parametrize("concurrency", [2, 5])
def test_so_many_are_sent_at_a_time_and_never_more(concurrency: int):
    meeting, lock = threading.Barrier(concurrency), threading.Lock()
    under_way = most = 0

    def perform(number: int) -> None:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        meeting.wait(LONG)
        with lock:
            under_way -= 1

    assert len(run_threads(map(ask, range(4 * concurrency)), perform, concurrency)) == 4 * concurrency
    assert most == concurrency


@pytest.mark.parametrize("concurrency", [1, 2, 5])
async def test_so_many_are_sent_at_a_time_on_a_loop_and_never_more(concurrency: int):
    meeting = asyncio.Barrier(concurrency)
    under_way = most = 0

    async def perform(number: int) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await meeting.wait()
        under_way -= 1

    assert len(await arun(map(ask, range(4 * concurrency)), perform, concurrency)) == 4 * concurrency
    assert most == concurrency


def test_what_the_caller_sends_takes_one_of_the_slots():
    """Results may need further calls, which count like the others."""
    concurrency, lock = 2, threading.Lock()
    under_way = most = 0

    def perform(number: int) -> None:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.002)
        with lock:
            under_way -= 1

    async def work() -> None:
        async with ThreadGroup[Any](concurrency) as group:
            io = PacedIo(FakeIo(blocking(perform)), group)
            async for _ in in_order(group, (partial(ask(number), io) for number in range(20)), concurrency, nothing):
                await ask(100)(io)

    run_blocking(work())
    assert most == concurrency


class Counted:
    """Jobs that are made when somebody takes them."""

    def __init__(self, count: int) -> None:
        self.taken = 0
        self._count = count

    def __iter__(self) -> Iterator[Job]:
        for number in range(self._count):
            self.taken += 1
            yield ask(number)


def test_few_jobs_are_begun_ahead_of_the_result_that_is_asked_for():
    jobs = Counted(1000)
    with contextlib.closing(in_threads(jobs, lambda number: None, 3)) as results:
        assert jobs.taken == 0
        for number, _ in enumerate(results):
            assert jobs.taken <= number + 3 * AHEAD
            if number == 100:
                break
    assert jobs.taken <= 100 + 3 * AHEAD


async def test_few_jobs_are_begun_ahead_of_the_result_that_is_asked_for_on_a_loop():
    jobs = Counted(1000)
    async with on_loop(jobs, yielding(lambda number: None), 3) as results:
        assert jobs.taken == 0
        number = 0
        async for _ in results:
            assert jobs.taken <= number + 3 * AHEAD
            number += 1
            if number == 100:
                break
    assert jobs.taken <= 100 + 3 * AHEAD


def test_the_first_failure_ends_everything(run_many: Callable[..., list[Any]]):
    sent = []

    def perform(number: int) -> None:
        sent.append(number)
        if number == 5:
            raise ValueError("trouble")

    jobs = Counted(1000)
    with pytest.raises(ValueError, match="trouble"):
        run_many(jobs, perform, 3)
    assert jobs.taken <= 5 + 3 * AHEAD
    assert set(sent) <= set(range(5 + 3 * AHEAD))


def test_after_a_failure_nothing_more_is_sent():
    failed = threading.Event()
    sent = []

    def perform(number: int) -> None:
        sent.append(number)
        if number == 1:
            failed.set()
            raise ValueError("trouble")
        assert failed.wait(LONG)
        time.sleep(0.1)

    with pytest.raises(ValueError, match="trouble"):
        run_threads([ask(0, times=100), ask(1)], perform, 2)
    assert sorted(sent) == [0, 1]


def test_a_failure_is_raised_although_an_earlier_result_is_still_to_come():
    release, ended = threading.Event(), []

    def perform(number: int) -> None:
        if number == 1:
            raise ValueError("trouble")
        assert release.wait(LONG)
        ended.append(number)

    async def work() -> None:
        async with ThreadGroup[Any](2) as group:
            io = PacedIo(FakeIo(blocking(perform)), group)
            results = in_order(group, [partial(ask(number), io) for number in range(2)], 2, nothing)
            with pytest.raises(ValueError, match="trouble"):
                await anext(results)
            assert ended == []
            release.set()

    run_blocking(work())
    assert ended == [0]
    check_no_thread()


async def test_a_failure_is_raised_although_an_earlier_result_is_still_to_come_on_a_loop():
    async def perform(number: int) -> None:
        if number == 1:
            raise ValueError("trouble")
        await asyncio.Event().wait()

    with pytest.raises(ValueError, match="trouble"):
        await arun(map(ask, range(2)), perform, 2)


@pytest.mark.parametrize("open_group", [ThreadGroup, TaskGroup])
async def test_who_sends_while_another_has_failed_gets_that_failure(open_group: Callable[[int], Group[Any]]):
    failed = threading.Event()

    async def fail(io: Io) -> None:
        try:
            raise ValueError("trouble")
        finally:
            failed.set()

    async def work() -> None:
        async with open_group(2) as group:
            io = PacedIo(FakeIo(blocking(lambda number: None)), group)
            results = in_order(group, [partial(ask(0), io), partial(fail, io)], 2, nothing)
            async for _ in results:
                assert failed.wait(LONG)
                for _ in range(1000):
                    await ask(2)(io)
                    time.sleep(0.001)  # noqa: ASYNC251 - for the thread's sake

    # In the thread group the first result may be there before the failure is.
    with pytest.raises(ValueError, match="trouble"):
        await work()


def test_jobs_that_can_not_be_made_end_everything(run_many: Callable[..., list[Any]]):
    def broken() -> Iterator[Job]:
        yield from map(ask, range(20))
        raise ValueError("trouble")

    with pytest.raises(ValueError, match="trouble"):
        run_many(broken(), lambda number: None, 2)


def test_an_interrupt_of_one_thread_is_not_lost():
    def perform(number: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_threads(map(ask, range(3)), perform, 2)


def test_threads_have_the_context_of_the_caller():
    trace = contextvars.ContextVar("trace", default="none")

    async def job(io: Io) -> str:
        value = trace.get()
        trace.set("another")
        return value

    def run() -> list[str]:
        trace.set("the caller's")
        return run_threads([job] * 5, lambda number: None, 2)

    assert contextvars.copy_context().run(run) == ["the caller's"] * 5


def test_closing_early_leaves_no_thread_and_sends_nothing_more():
    sent: list[int] = []
    results = in_threads((ask(number, times=3) for number in range(100)), sent.append, 2)
    next(results)
    results.close()
    check_no_thread()
    count = len(sent)
    assert count <= 3 * (1 + 2 * AHEAD)
    assert list(results) == []
    assert len(sent) == count


def test_what_pauses_is_woken_when_the_run_is_closed():
    pausing = threading.Event()
    woken = []

    async def pause(io: Io) -> None:
        await io.send(CALL, "1")
        pausing.set()
        try:
            await io.sleep(1000.0, rate_limited=True)
        finally:
            woken.append(True)

    results = in_threads([ask(0, times=0), *[pause] * 6], lambda number: None, 3)
    next(results)
    assert pausing.wait(LONG)
    began = time.monotonic()
    results.close()
    assert time.monotonic() - began < LONG
    check_no_thread()
    assert woken


async def test_closing_early_leaves_no_task():
    async def perform(number: int) -> None:
        if number:
            await asyncio.Event().wait()

    async with on_loop(map(ask, range(100)), perform, 3) as results:
        await anext(results)
        assert len(asyncio.all_tasks()) > 1
    check_no_task()


async def test_cancelling_who_waits_for_a_result_leaves_no_task():
    reached = asyncio.Event()

    async def perform(number: int) -> None:
        reached.set()
        await asyncio.Event().wait()

    async def consume() -> None:
        async with on_loop(map(ask, range(10)), perform, 3) as results:
            async for _ in results:
                pass

    task = asyncio.create_task(consume())
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    check_no_task()


def test_a_group_of_threads_can_not_be_carried_on_in_a_forked_process(monkeypatch: pytest.MonkeyPatch):
    pid = os.getpid()

    async def work() -> None:
        async with ThreadGroup[Any](2) as group:
            io = PacedIo(FakeIo(blocking(lambda number: None)), group)
            results = in_order(group, (partial(ask(number), io) for number in range(9)), 2, nothing)
            await anext(results)
            monkeypatch.setattr(os, "getpid", lambda: pid + 1)
            with pytest.raises(OpenmarketsError, match="forked process"):
                await anext(results)
            monkeypatch.undo()

    run_blocking(work())


def test_who_waits_for_a_result_is_heard_from(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "TICK", 0.01)
    heard = threading.Event()
    assert run_threads([ask(1)], lambda number: heard.wait(LONG), 1, heard.set) == [1]
    assert heard.is_set()


async def test_who_waits_for_a_result_is_heard_from_on_a_loop(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "TICK", 0.01)
    heard = asyncio.Event()

    async def perform(number: int) -> None:
        await asyncio.wait_for(heard.wait(), LONG)

    assert await arun([ask(1)], perform, 1, heard.set) == [1]


# --- pace


async def test_a_limit_that_one_job_meets_holds_the_others_back():
    order: list[Any] = []

    async def limited(io: Io) -> None:
        await io.send(CALL, "0")
        await io.sleep(0.2, rate_limited=True)
        order.append("waited")

    assert len(await arun([limited, ask(1, times=50)], yielding(order.append), 2)) == 2
    # On one loop the order is sure: the second had sent once or twice when the first had to wait.
    assert order.index("waited") <= 4
    assert order.count(1) == 50


async def test_a_pause_that_no_server_asked_for_holds_nobody_back():
    order: list[Any] = []

    async def wait(io: Io) -> None:
        await io.send(CALL, "0")
        order.append("pause")
        await io.sleep(1000.0)
        order.append("waited")

    async with on_loop([ask(1, times=50), wait], yielding(order.append), 2) as results:
        began = time.monotonic()
        assert await anext(results) == 1
        assert time.monotonic() - began < LONG
    assert order.index("pause") <= 4
    assert order.count(1) == 50
    assert "waited" not in order


def test_a_limit_that_one_thread_meets_holds_the_others_back():
    # The second job starts after the pause of the first one, so it waits for the remaining gap.
    waited = threading.Event()
    times: list[float] = []

    async def limited(io: Io) -> None:
        await io.sleep(0.0, rate_limited=True)
        waited.set()

    async def after(io: Io) -> None:
        assert waited.wait(LONG)
        await ask(1, times=11)(io)

    run_threads([limited, after], lambda number: times.append(time.monotonic()), 2)
    # Gaps of 20 ms at first, a tenth less after each reply, and none from the ninth: never shorter, however slow the
    # machine.
    assert times[-1] - times[0] >= 0.09


def test_a_reply_that_is_an_error_makes_the_pace_no_faster():
    times: list[float] = []

    class Failing(FakeIo):
        async def send(self, call: ApiCall, request_id: str) -> Reply:
            times.append(time.monotonic())
            return Reply(429, {}, b"")

    async def work() -> None:
        async with ThreadGroup[Any](1) as group:
            io = PacedIo(Failing(blocking(lambda number: None)), group)
            await io.sleep(0.0, rate_limited=True)
            for _ in range(11):
                await io.send(CALL, "1")

    run_blocking(work())
    assert times[-1] - times[0] >= 0.19


async def test_holds_are_recorded_by_the_io_of_all():
    holds = []

    class Recording(FakeIo):
        async def record_hold(self, api: str, seconds: float | None) -> None:
            holds.append((api, seconds))

    async with TaskGroup[Any](1) as group:
        await PacedIo(Recording(yielding(lambda number: None)), group).record_hold("oms", 3.0)
    assert holds == [("oms", 3.0)]


def test_threads_that_can_not_be_started_end_the_group(monkeypatch: pytest.MonkeyPatch):
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)

    async def work() -> None:
        pass

    async def run() -> None:
        async with ThreadGroup[None](2) as group:
            while not await group.wait(group.start(work), 0.1):
                pass

    with pytest.raises(RuntimeError, match="can't start new thread"):
        run_blocking(run())


INTERRUPTED = """
import faulthandler, random, signal, time
from openmarkets_provider.client.io import ThreadGroup, in_order, iterate_blocking

class Killed(BaseException): pass

def kill(*_): raise Killed

async def work(): time.sleep(0.0005)

async def run():
    async with ThreadGroup(4) as group:
        async for result in in_order(group, (work for _ in range(100_000)), 4, lambda: None):
            yield result

signal.signal(signal.SIGALRM, kill)
for number in range(1500):
    faulthandler.dump_traceback_later(20, exit=True)
    results = iterate_blocking(run())
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.001, 0.02))
        for _ in results: pass
    except Killed:
        pass
    results.close()
faulthandler.cancel_dump_traceback_later()
print("each ended")
"""


@pytest.mark.slow
def test_a_group_ends_whatever_its_main_thread_does_when_a_signal_ends_it():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True)
    assert done.stdout == "each ended\n", done.stderr
