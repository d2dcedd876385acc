"""Polls that triggers share: one for all who wait for the same, and for quotes one for everybody's securities.

Those on one event loop that poll the same at the same interval with the same connection are a group. A group is a task
of its own, which ends with its last member: that any one of them is cancelled does not disturb the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import json
import logging
import math
import threading
from collections.abc import AsyncGenerator, Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from openmarkets_provider.client.ratelimit.hold import MAX_HOLD
from openmarkets_provider.conditions import Conditions
from openmarkets_provider.hooks._metrics import AirflowMetrics
from openmarkets_provider.triggers._connections import Account
from openmarkets_provider.triggers._quote_batching import Ask, Outcome, Wanted, poll, wanted_of

if TYPE_CHECKING:
    from openmarkets_provider.queries import Query

log = logging.getLogger(__name__)

WINDOW = 0.2
"""Seconds for which those who begin to wait are gathered."""
MAX_BACK_OFF = 900.0
"""Seconds up to which the wait after failures in a row grows."""
_AT_ONCE = 100
"""Members that are told before the event loop may do something else."""


class Reading:
    """What one poll came to: one object for all who wait for the same. Nobody may change what it gives.

    :ivar error: why there is no result; None when there is one.
    :ivar next_in: seconds until the next poll.
    """

    __slots__ = ("_conditions", "_lock", "_outcome", "_traceback", "next_in")

    def __init__(self, outcome: Outcome, next_in: float) -> None:
        self.next_in = next_in
        self._outcome = outcome
        # That of the poll: each of those who raise the error would add to it.
        self._traceback = None if outcome.error is None else outcome.error.__traceback__
        self._conditions = Conditions(outcome.result)
        # Watchers evaluate in threads.
        self._lock = threading.Lock()

    @property
    def error(self) -> Exception | None:
        return self._outcome.error

    @property
    def missing(self) -> Sequence[str]:
        """Securities that were asked for, and of which the reply held nothing."""
        return self._outcome.missing

    def result(self) -> Any:
        """Return the query's result.

        :raises Exception: the error, an OpenmarketsError unless the connection could not be looked up.
        """
        if self.error is not None:
            raise self.error.with_traceback(self._traceback)
        return self._outcome.result

    def evaluate(self, expression: str) -> Any:
        """Evaluate a JMESPath expression over the result's JSON, once for all who ask for the same one.

        :raises OpenmarketsQueryError: it is malformed, or does not fit the result.
        :raises Exception: as :meth:`result`.
        """
        self.result()
        with self._lock:
            return self._conditions.evaluate(expression)


async def readings(
    conn_id: str, query: Query, interval: float, *, back_off: bool = False
) -> AsyncGenerator[Reading, None]:
    """Poll a query for ever; use it with ``contextlib.aclosing``.

    The first poll begins after the call, at once but for a short time in which others may join. The next one follows
    ``interval`` seconds after the last one's end, whatever that came to, or when the server asked to, an hour later at
    most; where others poll the same already, the second comes with theirs. Whoever is slow to take a reading gets the
    newest one.

    :param conn_id: id of a connection of type ``openmarkets``.
    :param query: rendered. Whatever is wrong with it is an error of each reading.
    :param interval: seconds.
    :param back_off: double the wait after each failure in a row, up to 15 minutes.
    """
    group, member = _join(conn_id, query, interval, back_off)
    try:
        while True:
            reading = await member.next()
            if reading.missing:
                log.warning("quotes: the reply holds nothing of %.1000r.", reading.missing)
            yield reading
    finally:
        await group.leave(member)


class _Member:
    """One who waits.

    :ivar is_new: was in no poll yet.
    :ivar rounds: how many of the group's polls go by without it.
    """

    def __init__(self, wanted: Wanted | None) -> None:
        self.wanted = wanted
        self.is_new = True
        self.failures = self.rounds = 0
        self._given: asyncio.Queue[Reading | BaseException] = asyncio.Queue(1)

    async def next(self) -> Reading:
        given = await self._given.get()
        if isinstance(given, Reading):
            return given
        raise RuntimeError("The poll that this trigger shared with others broke off.") from given

    def give(self, given: Reading | BaseException) -> None:
        if self._given.full():
            self._given.get_nowait()
        self._given.put_nowait(given)


class _Loop:
    """The groups of one event loop, and the connections that they use."""

    def __init__(self) -> None:
        self.groups: dict[Hashable, _Group] = {}
        self._accounts: dict[str, Account] = {}

    @contextlib.asynccontextmanager
    async def account(self, conn_id: str) -> AsyncGenerator[Account, None]:
        account = self._accounts.setdefault(conn_id, Account(conn_id))
        account.users += 1
        try:
            yield account
        finally:
            account.users -= 1
            if not account.users:
                del self._accounts[conn_id]
                await account.aclose()


_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _Loop] = WeakKeyDictionary()


def _join(conn_id: str, query: Query, interval: float, back_off: bool) -> tuple[_Group, _Member]:
    wanted = wanted_of(query)
    key = (conn_id, float(interval), back_off, _key(query, wanted))
    loop = _loops.setdefault(asyncio.get_running_loop(), _Loop())
    group = loop.groups.get(key) or _Group(loop, key, conn_id, query, interval, back_off)
    return group, group.join(_Member(wanted))


class _Group:
    """Those who wait for the same, and the task that polls for them."""

    def __init__(self, loop: _Loop, key: Hashable, conn_id: str, query: Query, interval: float, back_off: bool) -> None:
        self._loop, self._key = loop, key
        self._conn_id, self._query = conn_id, query
        self._interval, self._back_off = interval, back_off
        self._members: dict[_Member, None] = {}
        self._joined = asyncio.Event()
        self._quiet_until = -math.inf
        self._metrics = AirflowMetrics()
        loop.groups[key] = self
        # In a context without the log bindings of whoever came first: the lines are not its task's.
        self._task = asyncio.get_running_loop().create_task(self._run(), context=contextvars.Context())

    def join(self, member: _Member) -> _Member:
        self._members[member] = None
        self._joined.set()
        return member

    async def leave(self, member: _Member) -> None:
        del self._members[member]
        if not self._members:
            # At once, so that nobody joins a group that ends.
            self._remove()
            self._task.cancel()
            # Not awaited itself: who leaves may be cancelled a second time, and the connections must be closed.
            await asyncio.wait({self._task})

    def _remove(self) -> None:
        if self._loop.groups.get(self._key) is self:
            del self._loop.groups[self._key]

    async def _run(self) -> None:
        try:
            async with self._loop.account(self._conn_id) as account:
                await self._poll_for_ever(account.ask)
        except BaseException as error:  # noqa: BLE001 - told to those who would wait for ever otherwise
            self._remove()
            for member in self._members:
                member.give(error)

    async def _poll_for_ever(self, ask: Ask) -> None:
        clock = asyncio.get_running_loop().time
        due: float | None = None
        while True:
            await self._until(due)
            regular = due is not None and clock() >= due
            polled = self._take_turns(regular)
            outcomes = await poll(ask, self._query, list(dict.fromkeys(member.wanted for member in polled)))
            if polled:
                self._metrics.count("polls.sent")
            if len(polled) > 1:
                self._metrics.count("polls.shared", len(polled) - 1)
            end = clock()
            asked = max((_retry_after(outcome.error) for outcome in outcomes.values()), default=0.0)
            self._quiet_until = end + asked
            due = max(end + self._interval if regular or due is None else due, self._quiet_until)
            await self._tell(polled, outcomes, due - end)

    async def _until(self, due: float | None) -> None:
        """Wait for the next regular poll, or for newcomers."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(due):
                await self._joined.wait()
                await asyncio.sleep(max(WINDOW, self._quiet_until - asyncio.get_running_loop().time()))

    def _take_turns(self, regular: bool) -> list[_Member]:
        """Return who is in the next poll: newcomers, and in a regular one everybody who does not back off."""
        polled = [member for member in self._members if member.is_new or (regular and not member.rounds)]
        if regular:
            for member in self._members:
                member.rounds = max(0, member.rounds - 1)
        for member in polled:
            member.is_new = False
        self._joined.clear()
        return polled

    async def _tell(self, polled: Iterable[_Member], outcomes: Mapping[Wanted | None, Outcome], next_in: float) -> None:
        made: dict[tuple[Wanted | None, int], Reading] = {}
        for number, member in enumerate(polled, 1):
            outcome = outcomes[member.wanted]
            member.failures = 0 if outcome.error is None else member.failures + 1
            member.rounds = self._rounds_off(member.failures)
            reading = made.get((member.wanted, member.rounds))
            if reading is None:
                reading = Reading(outcome, next_in + member.rounds * self._interval)
                made[member.wanted, member.rounds] = reading
            member.give(reading)
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)

    def _rounds_off(self, failures: int) -> int:
        """Return how many polls go by before the next one, so that the wait is doubled by each further failure."""
        if not self._back_off or failures < 2:
            return 0
        most = max(1, int(MAX_BACK_OFF / self._interval)) if self._interval else 1
        return int(min(2.0 ** min(failures - 1, 60), most)) - 1


def _retry_after(error: Exception | None) -> float:
    return min(getattr(error, "retry_after", None) or 0.0, MAX_HOLD)


def _key(query: Query, wanted: Wanted | None) -> Hashable:
    """Return what the queries have in common that are polled together."""
    source = None
    if wanted is not None:
        # Replies are told apart by code and exchange.
        source = wanted.securities[0].partition("@")[2]
        query = {name: value for name, value in query.items() if name != "securities"}
    try:
        return source, json.dumps(query, sort_keys=True, default=repr)
    except (TypeError, ValueError, RecursionError):
        # Nothing that could be sent: each gets its own error.
        return object()
