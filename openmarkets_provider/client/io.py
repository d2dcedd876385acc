"""What a run waits for, behind one small interface: blocking, for threads, and on an event loop.

What is sent, when, and what a reply means is written once, as coroutines over an :class:`Io`. One that blocks never
suspends them, so that :func:`run_blocking` carries a coroutine out by a single step.
"""

from __future__ import annotations

import _thread
import asyncio
import contextvars
import itertools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable
from contextlib import asynccontextmanager
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from openmarkets_provider.client.http.clients import NoAnswer, Reply
from openmarkets_provider.client.http.deadline import cancel_on
from openmarkets_provider.client.ratelimit.pace import Pace
from openmarkets_provider.exceptions import OpenmarketsError
from openmarkets_provider.query.plan import ApiCall

log = logging.getLogger(__name__)

TICK = 1.0
"""Seconds between two calls of ``tick`` while the next result is waited for."""
AHEAD = 2
"""Coroutines for each slot that may be begun before their results are taken."""

T = TypeVar("T")
Work = Callable[[], Coroutine[Any, Any, T]]
"""Makes a coroutine, when its turn has come."""


class Io(Protocol):
    """What a call waits for."""

    async def send(self, call: ApiCall, request_id: str) -> Reply:
        """Send a call with an access token.

        :raises OnHold: nothing was sent, since the API is on hold.
        :raises NoAnswer: there was no reply.
        :raises OpenmarketsError: there is no token, or the reply's body can't be read.
        """

    async def sleep(self, seconds: float, *, rate_limited: bool = False) -> None:
        """Wait.

        :param rate_limited: a server asked for it with a 429.
        """

    async def compute(self, work: Callable[[], T]) -> T:
        """Do what takes long, and return its result; on an event loop in a thread."""

    async def record_hold(self, api: str, seconds: float | None) -> None:
        """Tell everyone that an API answered 429.

        :param seconds: its ``Retry-After``; None when it has none.
        """


def run_blocking(work: Coroutine[Any, Any, T]) -> T:
    """Carry out a coroutine over an Io that blocks, and return its result."""
    try:
        work.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    work.close()
    raise RuntimeError("The coroutine waits for an event loop.")


def iterate_blocking(items: AsyncGenerator[T, None]) -> Generator[T, None, None]:
    """Yield what an asynchronous generator over an Io that blocks yields."""
    try:
        while True:
            try:
                item = run_blocking(items.asend(None))
            except StopAsyncIteration:
                return
            yield item
    finally:
        run_blocking(items.aclose())


class Stopped(Exception):
    """The group is over: nothing more is sent."""


class _Job(Generic[T]):
    """A coroutine for a thread, and what came of it."""

    def __init__(self, work: Work[T]) -> None:
        self.work = work
        self.results: list[T] = []

    def result(self) -> T:
        return self.results[0]


class ThreadGroup(Generic[T]):
    """Coroutines that are under way at the same time in threads, until the first failure. An async context manager.

    On the way out nothing more is sent, and no thread is left. It can't be carried on in a forked process.

    A signal handler may raise an error anywhere in the main thread, also inside Python's own locks, which then stay
    locked. So that thread uses no lock of Python's here, and starts one thread only, which takes care of the others.

    :param concurrency: threads, and requests at the same time.
    """

    def __init__(self, concurrency: int) -> None:
        self._pid = os.getpid()
        self._concurrency = concurrency
        # The current trace, and what Airflow binds to log lines, are the caller's.
        self._context = contextvars.copy_context()
        self._is_over = threading.Event()
        self._slots = threading.Semaphore(concurrency)
        self._jobs: SimpleQueue[_Job[T] | None] = SimpleQueue()
        self._failures: list[BaseException] = []
        # What is put there says no more than that something is over.
        self._done: SimpleQueue[None] = SimpleQueue()
        self._end: SimpleQueue[None] = SimpleQueue()
        self._ended: SimpleQueue[None] = SimpleQueue()

    def start(self, work: Work[T]) -> _Job[T]:
        """Begin with a coroutine in a thread."""
        job = _Job(work)
        self._jobs.put(job)
        return job

    def _manage(self) -> None:
        """Start the threads, and wait for them when the group ends."""
        threads: list[threading.Thread] = []
        try:
            for number in range(self._concurrency):
                thread = threading.Thread(target=self._carry_out, name=f"openmarkets_{number}", daemon=True)
                thread.start()
                threads.append(thread)
        except RuntimeError as error:
            # The system has no more threads.
            self._failures.append(error)
            self._done.put(None)
        self._end.get()
        self._is_over.set()
        for _ in threads:
            self._jobs.put(None)
        for thread in threads:
            thread.join()
        self._ended.put(None)

    def _carry_out(self) -> None:
        cancel_on(self._is_over)
        while (job := self._jobs.get()) is not None:
            if self._is_over.is_set():
                continue
            try:
                job.results.append(self._context.copy().run(run_blocking, job.work()))
            except BaseException as error:  # noqa: BLE001 - the caller gets it
                self._failures.append(error)
                self._is_over.set()
            self._done.put(None)

    async def wait(self, started: _Job[T], seconds: float) -> bool:
        """Wait for a result, or for a failure of any coroutine; return False when the time is over.

        :raises BaseException: a coroutine failed: what it raised.
        """
        if os.getpid() != self._pid:
            # The threads are the parent's: nobody here would ever be done.
            raise OpenmarketsError("A stream can't continue in a forked process. Start a new one there.")
        end = time.monotonic() + seconds
        while not started.results and not self._failures:
            try:
                self._done.get(timeout=max(0, end - time.monotonic()))
            except Empty:
                return False
        if self._failures:
            raise self._failures[0]
        return True

    @asynccontextmanager
    async def slot(self) -> AsyncGenerator[None, None]:
        """Return a context for a request."""
        with self._slots:
            if self._is_over.is_set():
                raise Stopped
            try:
                yield
            except NoAnswer:
                # Then it is most likely the group that ended the request.
                if self._is_over.is_set():
                    raise Stopped from None
                raise

    async def sleep(self, seconds: float) -> None:
        """Wait, unless the group is over."""
        if self._is_over.wait(seconds):
            raise Stopped

    async def __aenter__(self) -> Self:
        """Begin."""
        _thread.start_new_thread(self._manage, ())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the requests that are under way: a killed task is given a few seconds."""
        if os.getpid() == self._pid:
            self._end.put(None)
            self._ended.get()
        if isinstance(error, Stopped) and self._failures:
            raise self._failures[0] from None


class TaskGroup(Generic[T]):
    """The same as tasks of the running event loop.

    :param concurrency: requests at the same time.
    """

    def __init__(self, concurrency: int) -> None:
        self._slots = asyncio.Semaphore(concurrency)
        self._tasks: set[asyncio.Task[T]] = set()
        self._failure: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    def start(self, work: Work[T]) -> asyncio.Task[T]:
        """Begin with a coroutine in a task."""
        task = asyncio.create_task(work())
        self._tasks.add(task)
        task.add_done_callback(self._finish)
        return task

    def _finish(self, task: asyncio.Task[T]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) and not self._failure.done():
            self._failure.set_result(error)

    async def wait(self, started: asyncio.Task[T], seconds: float) -> bool:
        """Wait, as :meth:`ThreadGroup.wait`."""
        either: set[asyncio.Future[Any]] = {started, self._failure}
        done, _ = await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if self._failure.done():
            raise self._failure.result()
        return bool(done)

    def slot(self) -> asyncio.Semaphore:
        """Return a context for a request."""
        return self._slots

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    async def __aenter__(self) -> Self:
        """Begin."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Cancel what is under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


Group = ThreadGroup[T] | TaskGroup[T]


async def in_order(
    group: Group[T], work: Iterable[Work[T]], concurrency: int, tick: Callable[[], None]
) -> AsyncGenerator[T, None]:
    """Yield the results of coroutines in their order. Few are begun ahead, so that few results wait.

    :param concurrency: the group's.
    :param tick: called every TICK seconds while a result is waited for.
    :raises Exception: a coroutine failed, whichever: what it raised.
    """
    coming = iter(work)
    begun: deque[Any] = deque(group.start(each) for each in itertools.islice(coming, AHEAD * concurrency))
    while begun:
        while not await group.wait(begun[0], TICK):
            tick()
        yield begun.popleft().result()
        begun.extend(group.start(each) for each in itertools.islice(coming, 1))


class PacedIo:
    """An Io for the calls of one run: so many at the same time as its group has slots, at one pace."""

    def __init__(self, io: Io, group: Group[Any]) -> None:
        self._io = io
        self._group = group
        self._pace = Pace()

    async def send(self, call: ApiCall, request_id: str) -> Reply:
        """Send a call when it is its turn."""
        async with self._group.slot():
            while delay := self._pace.delay(time.monotonic()):
                await self._group.sleep(delay)
            reply = await self._io.send(call, request_id)
        if reply.status < 400:
            self._pace.speed_up()
        return reply

    async def sleep(self, seconds: float, *, rate_limited: bool = False) -> None:
        """Wait; after a 429 with all calls of the run."""
        if rate_limited and self._pace.slow_down(time.monotonic(), seconds):
            log.info(
                "The server limits the rate (429): all calls of this run pause for %.1f s, and are then sent "
                "more slowly.",
                seconds,
            )
        await self._group.sleep(seconds)

    async def compute(self, work: Callable[[], T]) -> T:
        """Do what takes long."""
        return await self._io.compute(work)

    async def record_hold(self, api: str, seconds: float | None) -> None:
        """Tell everyone that an API answered 429."""
        await self._io.record_hold(api, seconds)
