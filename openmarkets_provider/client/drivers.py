"""What to do, written once: generators that yield steps and are told what came of each.

A flow says "send this", "pause so long" or "get a token for this scope". The loops here carry steps out, one flow
or many of them, blocking and on an event loop; how a step is carried out is the caller's.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import itertools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable
from typing import Any, NamedTuple, TypeVar

from openmarkets_provider.client.ratelimit.pace import Pace
from openmarkets_provider.exceptions import OpenmarketsError
from openmarkets_provider.query.plan import ApiCall

log = logging.getLogger(__name__)

TICK = 1.0
"""Seconds between two calls of ``tick`` while the next result is waited for."""

AHEAD = 2
"""Flows for each thread that may be begun before their results are asked for."""

_LIMITED = "The server limits the rate (429): all calls of this run rest for %.1f s, and follow each other more slowly."

T = TypeVar("T")
U = TypeVar("U")


class Send(NamedTuple):
    """Send a call; its outcome is the HTTP response."""

    call: ApiCall
    request_id: str


class Pause(NamedTuple):
    """Wait; ``limited`` when a server asked for it."""

    seconds: float
    limited: bool


class GetToken(NamedTuple):
    """Get an access token."""

    scope: str


class Limited(NamedTuple):
    """Tell everyone that an API said 429, and for how many seconds it wants rest; None when it didn't say."""

    api: str
    seconds: float | None


Step = Send | Pause | GetToken | Limited
Flow = Generator[Step, Any, T]
Perform = Callable[[Step], Any]
AsyncPerform = Callable[[Step], Awaitable[Any]]


class Stopped(Exception):
    """The run is over; nothing more is sent."""


class _Done(NamedTuple):
    value: Any


def _advance(flow: Flow[Any], outcome: Any, failure: Exception | None) -> Step | _Done:
    """Tell a flow what came of its last step, and return its next one or its result."""
    try:
        return flow.send(outcome) if failure is None else flow.throw(failure)
    except StopIteration as stop:
        return _Done(stop.value)


def drive(flow: Flow[T], perform: Perform) -> T:
    """Carry a flow out, and return its result."""
    step = _advance(flow, None, None)
    while not isinstance(step, _Done):
        try:
            outcome = perform(step)
        except Exception as error:  # noqa: BLE001 - the flow decides what it means
            step = _advance(flow, None, error)
        else:
            step = _advance(flow, outcome, None)
    value: T = step.value
    return value


async def adrive(flow: Flow[T], perform: AsyncPerform) -> T:
    """Carry a flow out on an event loop, and return its result."""
    step = _advance(flow, None, None)
    while not isinstance(step, _Done):
        try:
            outcome = await perform(step)
        except Exception as error:  # noqa: BLE001 - the flow decides what it means
            step = _advance(flow, None, error)
        else:
            step = _advance(flow, outcome, None)
    value: T = step.value
    return value


class _Traffic:
    """Carries out the steps of flows in several threads: at one pace, so many at a time, until it is stopped."""

    def __init__(self, perform: Perform, concurrency: int) -> None:
        self.stop = threading.Event()
        self._perform = perform
        self._room = threading.Semaphore(concurrency)
        self._pace, self._lock = Pace(), threading.Lock()

    def __call__(self, step: Step) -> Any:
        if isinstance(step, Pause):
            if step.limited:
                with self._lock:
                    new = self._pace.limited(time.monotonic(), step.seconds)
                if new:
                    log.info(_LIMITED, step.seconds)
            return self.stop.wait(step.seconds)
        if isinstance(step, Limited):
            return self._perform(step)
        with self._room:
            self._wait_for_turn()
            return self._perform(step)

    def succeeded(self) -> None:
        """Note that a flow came to its end."""
        with self._lock:
            self._pace.succeeded()

    def _wait_for_turn(self) -> None:
        while not self.stop.is_set():
            with self._lock:
                delay = self._pace.delay(time.monotonic())
            if not delay:
                return
            self.stop.wait(delay)
        raise Stopped


def drive_many(
    flows: Iterable[Flow[T]],
    perform: Perform,
    concurrency: int,
    tick: Callable[[], None],
    then: Callable[[T], Flow[U]],
) -> Generator[U, None, None]:
    """Carry flows out in threads, and for the result of each, in their order, one more flow whose result is yielded.

    Few are begun ahead of the result that is asked for, so that the results that wait are few, too. The first failure,
    of whichever flow, ends it all at once: nothing more is sent. So does closing the generator. What all the flows send
    keeps one pace, and is never more than ``concurrency`` at a time. It can't be carried on in a forked process.

    :param tick: called every TICK seconds while a result is waited for.
    :param then: makes the second flow from the result of the first one; carried out by the caller's thread.
    """
    traffic = _Traffic(perform, concurrency)
    failure: concurrent.futures.Future[BaseException] = concurrent.futures.Future()

    def work(flow: Flow[T]) -> T:
        try:
            result = drive(flow, traffic)
        except BaseException as error:
            with contextlib.suppress(concurrent.futures.InvalidStateError):
                failure.set_result(error)
            traffic.stop.set()
            raise
        traffic.succeeded()
        return result

    def begin(flow: Flow[T]) -> concurrent.futures.Future[T]:
        # In the caller's context: the current trace, and what Airflow binds to log lines.
        return pool.submit(context.copy().run, work, flow)

    pid = os.getpid()
    context = contextvars.copy_context()
    pool = concurrent.futures.ThreadPoolExecutor(concurrency, "openmarkets")
    coming = iter(flows)
    begun = deque(begin(flow) for flow in itertools.islice(coming, AHEAD * concurrency))
    try:
        while begun:
            if os.getpid() != pid:
                # The threads are the parent's: nobody here would ever be done.
                raise OpenmarketsError("A stream can't be carried on in a forked process; begin a new one there.")
            waited_for: set[concurrent.futures.Future[Any]] = {begun[0], failure}
            while not concurrent.futures.wait(waited_for, TICK, concurrent.futures.FIRST_COMPLETED).done:
                tick()
            if failure.done():
                raise failure.result()
            try:
                made = drive(then(begun.popleft().result()), traffic)
            except Stopped:
                raise failure.result() from None
            yield made
            begun.extend(begin(flow) for flow in itertools.islice(coming, 1))
    finally:
        traffic.stop.set()
        pool.shutdown(wait=False, cancel_futures=True)


async def adrive_many(
    flows: Iterable[Flow[T]],
    perform: AsyncPerform,
    concurrency: int,
    tick: Callable[[], None],
    then: Callable[[T], Flow[U]],
) -> AsyncGenerator[U, None]:
    """Carry flows out on the running event loop; as :func:`drive_many`."""
    pace, room = Pace(), asyncio.Semaphore(concurrency)
    failure: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

    async def paced(step: Step) -> Any:
        if isinstance(step, Pause):
            if step.limited and pace.limited(time.monotonic(), step.seconds):
                log.info(_LIMITED, step.seconds)
            return await perform(step)
        if isinstance(step, Limited):
            return await perform(step)
        async with room:
            # Nobody could set an event: a turn comes with time.
            while delay := pace.delay(time.monotonic()):  # noqa: ASYNC110
                await asyncio.sleep(delay)
            return await perform(step)

    async def work(flow: Flow[T]) -> T:
        try:
            result = await adrive(flow, paced)
        except Exception as error:
            if not failure.done():
                failure.set_result(error)
            raise
        pace.succeeded()
        return result

    coming = iter(flows)
    begun = deque(asyncio.ensure_future(work(flow)) for flow in itertools.islice(coming, AHEAD * concurrency))
    try:
        while begun:
            waited_for: set[asyncio.Future[Any]] = {begun[0], failure}
            while not (await asyncio.wait(waited_for, timeout=TICK, return_when=asyncio.FIRST_COMPLETED))[0]:
                tick()
            if failure.done():
                raise failure.result()
            yield await adrive(then(begun.popleft().result()), paced)
            begun.extend(asyncio.ensure_future(work(flow)) for flow in itertools.islice(coming, 1))
    finally:
        for task in begun:
            task.cancel()
        await asyncio.gather(*begun, return_exceptions=True)
