"""Polls that triggers share: one request for all triggers with the same query, and one for all quotes.

Triggers of an event loop with the same connection, interval and query form a group. A group polls in its own task,
which ends with the last member: cancelling one trigger does not affect the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import json
import logging
import math
import threading
from collections.abc import AsyncGenerator, Hashable, Iterable, Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from openmarkets_provider.client.ratelimit.hold import MAX_HOLD
from openmarkets_provider.conditions import Evaluator, is_large
from openmarkets_provider.exceptions import OpenmarketsError
from openmarkets_provider.hooks._metrics import AirflowMetrics
from openmarkets_provider.query.query import resolve
from openmarkets_provider.triggers._connections import LiveConnection
from openmarkets_provider.triggers._quote_batching import Basket, Outcome, RunQuery, find_basket, poll

if TYPE_CHECKING:
    from openmarkets_provider.queries import Query

log = logging.getLogger(__name__)

WINDOW = 0.2
"""Seconds for which new members are collected before they are polled."""
MAX_BACK_OFF = 900.0
"""Longest wait in seconds after failures in a row."""
_DELIVERIES = 100
"""Readings that are delivered before other tasks of the event loop run."""


class Reading:
    """The result of one poll. Triggers share it, so its values must not be changed.

    :ivar error: the error of the poll; None if there is a result.
    :ivar missing: securities of the query without a row in the reply.
    :ivar next_in: seconds until the next poll.
    """

    __slots__ = ("_evaluator", "_is_large", "_lock", "_result", "_traceback", "error", "missing", "next_in")

    def __init__(self, outcome: Outcome, next_in: float) -> None:
        self.error = outcome.error
        self.missing = outcome.missing
        self.next_in = next_in
        self._result = outcome.result
        # Each raise of the shared error would add frames to its traceback.
        self._traceback = None if outcome.error is None else outcome.error.__traceback__
        self._evaluator = Evaluator(outcome.result)
        self._is_large = is_large(outcome.result)
        # Large results are evaluated in threads.
        self._lock = threading.Lock()

    def result(self) -> Any:
        """Return the query's result.

        :raises Exception: the error: an OpenmarketsError, unless the connection could not be looked up.
        """
        if self.error is not None:
            raise self.error.with_traceback(self._traceback)
        return self._result

    def evaluate(self, expression: str) -> Any:
        """Evaluate a JMESPath expression over the result as JSON. Each expression is evaluated once.

        :raises OpenmarketsQueryError: it is malformed, or does not fit the result.
        :raises Exception: as :meth:`result`.
        """
        self.result()
        with self._lock:
            return self._evaluator.evaluate(expression)

    async def aevaluate(self, expression: str) -> Any:
        """Evaluate an expression, as :meth:`evaluate`. A large result is evaluated in a thread."""
        if self._is_large:
            return await asyncio.to_thread(self.evaluate, expression)
        return self.evaluate(expression)


async def poll_shared(
    conn_id: str, query: Query, interval: float, *, back_off: bool = False
) -> AsyncGenerator[Reading, None]:
    """Poll a query forever, together with other triggers. Use it with ``contextlib.aclosing``.

    The first poll starts after ``WINDOW``, in which others may join. Each further one starts ``interval`` seconds after
    the end of the last one, even after an error, or when the server allows it, at most an hour later. A new member of
    an existing group joins the group's polls after its own first poll. A slow consumer gets only the latest reading.

    :param conn_id: id of a connection of type ``openmarkets``.
    :param query: rendered. If it is malformed, every reading has the error.
    :param interval: seconds between polls.
    :param back_off: double the wait after each failure in a row, up to 15 minutes.
    """
    group, member = _join(conn_id, query, interval, back_off)
    try:
        while True:
            reading = await member.get()
            if reading.missing:
                log.warning("quotes: the reply has nothing for %.1000r.", reading.missing)
            yield reading
    finally:
        await group.leave(member)


class _Member:
    """A consumer of a group's polls.

    :ivar is_new: it has not been in a poll yet.
    :ivar failures: failed polls in a row.
    :ivar skips: number of regular polls that it still skips.
    """

    def __init__(self, basket: Basket | None) -> None:
        self.basket = basket
        self.is_new = True
        self.failures = self.skips = 0
        self._queue: asyncio.Queue[Reading | BaseException] = asyncio.Queue(1)

    async def get(self) -> Reading:
        """Wait for the next reading.

        :raises RuntimeError: the group's task ended.
        """
        reading = await self._queue.get()
        if isinstance(reading, Reading):
            return reading
        raise RuntimeError("The poll that this trigger shares with others has failed.") from reading

    def put(self, reading: Reading | BaseException) -> None:
        """Deliver a reading, or the error that ended the group. It replaces one that was not consumed."""
        if self._queue.full():
            self._queue.get_nowait()
        self._queue.put_nowait(reading)


_Key = tuple[str, float, bool, Hashable]
"""The key of a group: connection, interval, back-off, and the query without securities."""


class _Registry:
    """The groups of one event loop, and their connections."""

    def __init__(self) -> None:
        self.groups: dict[_Key, _Group] = {}
        self._connections: dict[str, LiveConnection] = {}

    @contextlib.asynccontextmanager
    async def use_connection(self, conn_id: str) -> AsyncGenerator[LiveConnection, None]:
        """Return a context with the connection that all groups share. Its last user closes it."""
        connection = self._connections.setdefault(conn_id, LiveConnection(conn_id))
        connection.users += 1
        try:
            yield connection
        finally:
            connection.users -= 1
            if not connection.users:
                del self._connections[conn_id]
                await connection.aclose()


_registries: WeakKeyDictionary[asyncio.AbstractEventLoop, _Registry] = WeakKeyDictionary()


def _join(conn_id: str, query: Query, interval: float, back_off: bool) -> tuple[_Group, _Member]:
    basket = find_basket(query)
    key = (conn_id, float(interval), back_off, _make_key(query, basket))
    registry = _registries.setdefault(asyncio.get_running_loop(), _Registry())
    group = registry.groups.get(key) or _Group(registry, key, query)
    return group, group.join(_Member(basket))


class _Group:
    """The members of a group, and the task that polls for them."""

    def __init__(self, registry: _Registry, key: _Key, query: Query) -> None:
        self._registry, self._key, self._query = registry, key, query
        with contextlib.suppress(OpenmarketsError):
            # Resolved once, not for each poll. If the query is malformed, each reading has the error.
            self._query = resolve(query)
        self._conn_id, self._interval, self._back_off, _ = key
        self._members: dict[_Member, None] = {}
        self._has_new = asyncio.Event()
        self._quiet_until = -math.inf
        self._metrics = AirflowMetrics()
        registry.groups[key] = self
        # In an empty context, so that the polls do not log as the task of the first member.
        self._task = asyncio.get_running_loop().create_task(self._run(), context=contextvars.Context())

    def join(self, member: _Member) -> _Member:
        self._members[member] = None
        self._has_new.set()
        return member

    async def leave(self, member: _Member) -> None:
        del self._members[member]
        if not self._members:
            # First, so that nobody joins a group that is ending.
            self._unregister()
            self._task.cancel()
            # asyncio.wait does not cancel the task if this caller is cancelled again: it must close the connection.
            await asyncio.wait({self._task})

    def _unregister(self) -> None:
        if self._registry.groups.get(self._key) is self:
            del self._registry.groups[self._key]

    async def _run(self) -> None:
        try:
            async with self._registry.use_connection(self._conn_id) as connection:
                await self._poll_for_ever(connection.run_query)
        except BaseException as error:  # noqa: BLE001 - the members would wait for ever
            self._unregister()
            for member in self._members:
                member.put(error)

    async def _poll_for_ever(self, run_query: RunQuery) -> None:
        clock = asyncio.get_running_loop().time
        due: float | None = None
        while True:
            await self._wait(due)
            is_regular = due is not None and clock() >= due
            members = self._choose_members(is_regular)
            outcomes = await poll(run_query, self._query, list(dict.fromkeys(member.basket for member in members)))
            if members:
                self._metrics.count("polls.sent")
            if len(members) > 1:
                self._metrics.count("polls.shared", len(members) - 1)
            end = clock()
            self._quiet_until = end + max(map(_get_retry_after, outcomes.values()), default=0.0)
            due = max(end + self._interval if is_regular or due is None else due, self._quiet_until)
            await self._deliver(members, outcomes, due - end)

    async def _wait(self, due: float | None) -> None:
        """Wait for the next regular poll, or for new members."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(due):
                await self._has_new.wait()
                await asyncio.sleep(max(WINDOW, self._quiet_until - asyncio.get_running_loop().time()))

    def _choose_members(self, is_regular: bool) -> list[_Member]:
        """Return the members of the next poll: the new ones, and in a regular poll all that do not back off."""
        chosen = [member for member in self._members if member.is_new or (is_regular and not member.skips)]
        if is_regular:
            for member in self._members:
                member.skips = max(0, member.skips - 1)
        for member in chosen:
            member.is_new = False
        self._has_new.clear()
        return chosen

    async def _deliver(
        self, members: Iterable[_Member], outcomes: Mapping[Basket | None, Outcome], next_in: float
    ) -> None:
        readings: dict[tuple[Basket | None, int], Reading] = {}
        for number, member in enumerate(members, 1):
            outcome = outcomes[member.basket]
            member.failures = 0 if outcome.error is None else member.failures + 1
            member.skips = self._count_skips(member.failures)
            key = (member.basket, member.skips)
            if key not in readings:
                readings[key] = Reading(outcome, next_in + member.skips * self._interval)
            member.put(readings[key])
            if number % _DELIVERIES == 0:
                await asyncio.sleep(0)

    def _count_skips(self, failures: int) -> int:
        """Return how many regular polls to skip: the wait doubles with each failure in a row."""
        if not self._back_off or failures < 2:
            return 0
        most = max(1, int(MAX_BACK_OFF / self._interval)) if self._interval else 1
        return int(min(2.0 ** min(failures - 1, 60), most)) - 1


def _get_retry_after(outcome: Outcome) -> float:
    return min(getattr(outcome.error, "retry_after", None) or 0.0, MAX_HOLD)


def _make_key(query: Query, basket: Basket | None) -> Hashable:
    """Return a key that is equal for queries that are polled together."""
    data_source = None
    if basket is not None:
        data_source = basket.securities[0].partition("@")[2]
        query = {name: value for name, value in query.items() if name != "securities"}
    try:
        return data_source, json.dumps(query, sort_keys=True, default=repr)
    except (TypeError, ValueError, RecursionError):
        # The query can't be sent, so each such trigger gets its own error.
        return object()
