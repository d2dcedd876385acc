"""The I/O of a run behind one small interface: blocking, for threads, and on an event loop.

Planning, retries and parsing are written once, as coroutines over an :class:`Io`. A blocking Io never suspends them, so
:func:`run_blocking` runs a coroutine in a single step.
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
"""Seconds between calls of ``tick`` while waiting for the next result."""
AHEAD = 2
"""Most coroutines per slot that are started before their results are needed."""

T = TypeVar("T")
Work = Callable[[], Coroutine[Any, Any, T]]
"""Creates a coroutine when it is started."""


class Io(Protocol):
    """The I/O of calls."""

    async def send(self, call: ApiCall, request_id: str) -> Reply:
        """Send a call with an access token.

        :raises OnHold: nothing was sent, because the API is on hold.
        :raises NoAnswer: there was no reply.
        :raises OpenmarketsError: there is no token, or the reply's body can't be read.
        """

    async def sleep(self, seconds: float, *, rate_limited: bool = False) -> None:
        """Sleep.

        :param rate_limited: a server asked for it with a 429.
        """

    async def compute(self, work: Callable[[], T]) -> T:
        """Do long work, and return its result. On an event loop it runs in a thread."""

    async def record_hold(self, api: str, seconds: float | None) -> None:
        """Share that an API answered 429 with all callers.

        :param seconds: its ``Retry-After``; None if it has none.
        """


def run_blocking(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine over a blocking Io, and return its result."""
    try:
        work.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    work.close()
    raise RuntimeError("The coroutine waits for an event loop.")


def iterate_blocking(items: AsyncGenerator[T, None]) -> Generator[T, None, None]:
    """Yield the items of an asynchronous generator over a blocking Io."""
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
    """The group has ended: nothing more is sent."""


class _Job(Generic[T]):
    """A coroutine for a thread, and its result."""

    def __init__(self, work: Work[T]) -> None:
        self.work = work
        self.results: list[T] = []

    def result(self) -> T:
        return self.results[0]


class ThreadGroup(Generic[T]):
    """Runs coroutines concurrently in threads, until the first failure. An async context manager.

    When the block ends, nothing more is sent, and all threads end. A forked process can't continue the group.

    A signal handler may raise an error anywhere in the main thread, even inside a lock of :mod:`threading`, which then
    stays locked. So the main thread uses none here. It starts one thread, which manages the others.

    :param concurrency: number of threads, and most concurrent requests.
    """

    def __init__(self, concurrency: int) -> None:
        self._pid = os.getpid()
        self._concurrency = concurrency
        # The threads continue the caller's trace and log context.
        self._context = contextvars.copy_context()
        self._is_over = threading.Event()
        self._slots = threading.Semaphore(concurrency)
        self._jobs: SimpleQueue[_Job[T] | None] = SimpleQueue()
        self._failures: list[BaseException] = []
        # These queues are used as signals.
        self._done: SimpleQueue[None] = SimpleQueue()
        self._end: SimpleQueue[None] = SimpleQueue()
        self._ended: SimpleQueue[None] = SimpleQueue()

    def start(self, work: Work[T]) -> _Job[T]:
        """Start a coroutine in a thread."""
        job = _Job(work)
        self._jobs.put(job)
        return job

    def _manage(self) -> None:
        """Start the threads, and join them when the group ends."""
        threads: list[threading.Thread] = []
        try:
            for number in range(self._concurrency):
                thread = threading.Thread(target=self._carry_out, name=f"openmarkets_{number}", daemon=True)
                thread.start()
                threads.append(thread)
        except RuntimeError as error:
            # The system can't start another thread.
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
        """Wait for a result, or for a failure of any coroutine. Return False after the time-out.

        :raises BaseException: the error of the coroutine that failed first.
        """
        if os.getpid() != self._pid:
            # The threads exist in the parent only, so this would wait forever.
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
                # Most likely the group ended the request.
                if self._is_over.is_set():
                    raise Stopped from None
                raise

    async def sleep(self, seconds: float) -> None:
        """Sleep, unless the group has ended."""
        if self._is_over.wait(seconds):
            raise Stopped

    async def __aenter__(self) -> Self:
        """Start the managing thread."""
        _thread.start_new_thread(self._manage, ())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Cancel the running requests: a task that is killed has a few seconds left."""
        if os.getpid() == self._pid:
            self._end.put(None)
            self._ended.get()
        if isinstance(error, Stopped) and self._failures:
            raise self._failures[0] from None


class TaskGroup(Generic[T]):
    """Runs coroutines concurrently as tasks of the running event loop, as :class:`ThreadGroup`.

    :param concurrency: most concurrent requests.
    """

    def __init__(self, concurrency: int) -> None:
        self._slots = asyncio.Semaphore(concurrency)
        self._tasks: set[asyncio.Task[T]] = set()
        self._failure: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    def start(self, work: Work[T]) -> asyncio.Task[T]:
        """Start a coroutine in a task."""
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
        """Sleep."""
        await asyncio.sleep(seconds)

    async def __aenter__(self) -> Self:
        """Return the group."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Cancel the running tasks."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


Group = ThreadGroup[T] | TaskGroup[T]


async def in_order(
    group: Group[T], work: Iterable[Work[T]], concurrency: int, tick: Callable[[], None]
) -> AsyncGenerator[T, None]:
    """Yield the results of coroutines in order. Few are started ahead, so that few results take memory.

    :param concurrency: that of the group.
    :param tick: called every TICK seconds while waiting for a result.
    :raises Exception: the error of the coroutine that failed first.
    """
    coming = iter(work)
    begun: deque[Any] = deque(group.start(each) for each in itertools.islice(coming, AHEAD * concurrency))
    while begun:
        while not await group.wait(begun[0], TICK):
            tick()
        yield begun.popleft().result()
        begun.extend(group.start(each) for each in itertools.islice(coming, 1))


class PacedIo:
    """An Io for the calls of one run. They share the slots of its group, and one pace."""

    def __init__(self, io: Io, group: Group[Any]) -> None:
        self._io = io
        self._group = group
        self._pace = Pace()

    async def send(self, call: ApiCall, request_id: str) -> Reply:
        """Send a call when a slot is free and the pace allows it."""
        async with self._group.slot():
            while delay := self._pace.delay(time.monotonic()):
                await self._group.sleep(delay)
            reply = await self._io.send(call, request_id)
        if reply.status < 400:
            self._pace.speed_up()
        return reply

    async def sleep(self, seconds: float, *, rate_limited: bool = False) -> None:
        """Sleep; after a 429, all calls of the run pause, too."""
        if rate_limited and self._pace.slow_down(time.monotonic(), seconds):
            log.info(
                "The server limits the rate (429): all calls of this run pause for %.1f s, and are then sent "
                "more slowly.",
                seconds,
            )
        await self._group.sleep(seconds)

    async def compute(self, work: Callable[[], T]) -> T:
        """Do long work, as :meth:`Io.compute`."""
        return await self._io.compute(work)

    async def record_hold(self, api: str, seconds: float | None) -> None:
        """Share that an API answered 429 with all callers."""
        await self._io.record_hold(api, seconds)
