"""The event trigger: tells an Airflow asset of every new item that a query lists. It only reads."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Hashable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

try:
    from airflow.triggers.base import BaseEventTrigger, TriggerEvent
except ImportError as error:
    raise ImportError(
        "OpenmarketsEventTrigger needs Airflow 3.0 or later (its AssetWatcher and event triggers); before, wait with "
        "an OpenmarketsSensor in a scheduled DAG"
    ) from error

from openmarkets_provider.conditions import check_condition
from openmarkets_provider.exceptions import OpenmarketsError, OpenmarketsQueryError
from openmarkets_provider.query.arguments import is_literal
from openmarkets_provider.query.query import check, check_reads_only
from openmarkets_provider.triggers._new_items import find_news, named
from openmarkets_provider.triggers._seen_keys import Memory, canonical, state_key

if TYPE_CHECKING:
    from airflow.triggers.shared_stream import SharedStreamProducer

    from openmarkets_provider.queries import Query
    from openmarkets_provider.triggers._shared_polls import Reading

log = logging.getLogger(__name__)

MIN_POLL_INTERVAL = 1.0
"""Seconds. A watcher polls for months: what is asked more often belongs into a stream, and the API throttles."""
MAX_POLL_INTERVAL = 86_400.0
"""Seconds: a day. What happens more seldom is for a schedule."""


class OpenmarketsEventTrigger(BaseEventTrigger):
    """Polls a query and tells each new item that it lists once; for ``AssetWatcher``.

    A poll that finds any fires one event with the payload ``{"items": [{"item": ..., "key": ...}, ...]}``; an item or
    key of more than 16 KiB as JSON is null, with its size in bytes as ``item_bytes`` (``key_bytes``), and what exceeds
    128 KiB in all fires with the next poll. What the first poll finds is there already and fires nothing. From Airflow
    3.3 on the asset's state store remembers what fired, so that a triggerer that is killed or restarted loses nothing,
    and repeats what was not confirmed yet. Before 3.3, a restart is a first poll.

    Errors are logged and end nothing: the query is polled again, ever more seldom down to once in 15 minutes, or as
    long as the server asks, up to an hour.

    Guide: ``docs/events.md``. What a message means: ``docs/errors.md``.

    :param openmarkets_conn_id: id of a connection of type ``openmarkets``.
    :param query: what a function of :mod:`openmarkets_provider.queries` returned; it must only read. Airflow renders no
        templates here.
    :param items: JMESPath expression (https://jmespath.org) over the query's result, that gives the list of items.
        Items are told in the list's order.
    :param key: JMESPath expression over an item: what identifies it, any JSON. With
        ``[account_code, order_number, state]`` an order is new when its state is.
    :param poll_interval: seconds from one poll to the next, 1 to 86,400. Watchers with the same connection, query and
        interval share their polls.
    :raises OpenmarketsQueryError: when the DAG is parsed: an argument is malformed.
    """

    def __init__(
        self,
        *,
        query: Query,
        key: str,
        items: str = "@",
        openmarkets_conn_id: str = "openmarkets_default",
        poll_interval: float = 60.0,
    ) -> None:
        super().__init__()
        try:
            _check(openmarkets_conn_id, query, items, key, poll_interval)
        except OpenmarketsQueryError as error:
            raise _RefusedError(str(error)) from None
        self.openmarkets_conn_id = openmarkets_conn_id
        self.query = query
        self.items = items
        self.key = key
        self.poll_interval = float(poll_interval)
        self._name = f"{_name(openmarkets_conn_id, query)}, items {items!r}, key {key!r}"
        self._state_key = state_key(openmarkets_conn_id, query, items, key)
        # None: there was no first poll yet, as far as anybody remembers.
        self._memory: Memory | None = None
        self._recalled = False
        self._saved: Memory | None = None
        self._doubts = 0
        self._complaints = 0

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what Airflow needs to make the trigger again; no secret among it."""
        names = ("openmarkets_conn_id", "query", "items", "key", "poll_interval")
        path = f"{type(self).__module__}.{type(self).__qualname__}"
        return path, {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll for ever, on Airflow before 3.3; what was seen is in the memory of this process only."""
        self._recalled = True
        self._say(logging.INFO, "this Airflow keeps no state for watchers; a restart of the triggerer is a first poll.")
        async with aclosing(_shared_readings(self.openmarkets_conn_id, self.query, self.poll_interval)) as stream:
            async for shared in stream:
                if found := await self._look(shared.reading):
                    yield TriggerEvent({"items": found})

    def shared_stream_key(self) -> Hashable:
        """Return what watchers have in common that share their polls (Airflow 3.3)."""
        return ("openmarkets", self.openmarkets_conn_id, canonical(self.query), self.poll_interval)

    @classmethod
    def create_shared_stream_producer(cls, kwargs: dict[str, Any]) -> SharedStreamProducer:
        """Return what polls for all watchers of one stream, and tells them what of their events is stored."""
        from openmarkets_provider.triggers._event_stream import PollProducer

        return PollProducer(
            lambda: _shared_readings(kwargs["openmarkets_conn_id"], kwargs["query"], kwargs["poll_interval"])
        )

    async def filter_shared_stream(self, shared_stream: AsyncIterator[Any]) -> AsyncIterator[TriggerEvent]:
        """Turn the polls of the stream into this watcher's events."""
        async for shared in shared_stream:
            # One event for all that a poll finds: of several, Airflow (3.3.2) gives a run the first only, and keeps the
            # others for the run that a further event starts, whenever that comes.
            if found := await self._look(shared.reading):
                yield TriggerEvent({"items": found})
            # After the event was taken over, not before: else a cancelled watcher would remember what it never fired.
            # Again after every poll until it is kept, since the store may fail.
            if self._memory is not None and self._memory is not self._saved:
                shared.confirmations.append(self._keeper(self._memory))

    async def _look(self, reading: Reading) -> list[dict[str, Any]]:
        """Return what to tell of what is new. An error is told and leaves the memory as it is."""
        if reading.error is not None:
            return []
        # Of any error: a watcher that ends is started again by Airflow at once, and ends again.
        try:
            await self._recall()
        except Exception as error:  # noqa: BLE001 - see above
            self._complain(
                "what is new can't be told, since the asset's state store doesn't say what fired before. "
                f"{type(error).__name__}: {error!s:.500}."
            )
            return []
        try:
            # In a thread: thousands of items would keep the other triggers waiting.
            news = await asyncio.to_thread(find_news, reading.evaluate, self.items, self.key, self._memory)
        except OpenmarketsError as error:
            self._complain(str(error))
            return []
        except Exception as error:  # noqa: BLE001 - see above
            self._complain(f"{type(error).__name__}: {error!s:.500}.")
            return []
        if self._memory is None:
            self._say(logging.INFO, "%d items are there already; what is new from now on fires.", news.count)
        elif news.fresh:
            self._say(logging.INFO, "%d of %d items are new: %s.", len(news.fresh), news.count, news.told())
        if news.left:
            self._say(logging.WARNING, "%d more are new, and too much for one event; they fire next time.", news.left)
        if cut := news.cut():
            self._say(logging.WARNING, "too large for an event, or not to be stored, and so left out: %s.", cut)
        if news.trouble:
            self._complain(news.trouble)
        else:
            self._complaints = 0
        self._memory = news.memory
        return news.fresh

    def _complain(self, text: str) -> None:
        # The 1st, 2nd, 4th, 8th ... time in a row: other watchers of the stream may go on, so it doesn't slow down.
        self._complaints += 1
        if self._complaints & (self._complaints - 1) == 0:
            self._say(logging.ERROR, "%s Looking again at every poll (%d in a row).", text, self._complaints)

    async def _recall(self) -> None:
        """Get what earlier triggers left in the assets' state stores, once."""
        if self._recalled:
            return
        memories = []
        for store in self._stores():
            stored = await store.aget(self._state_key)
            if stored is None:
                continue
            try:
                memories.append(Memory.from_json(stored))
            except ValueError as error:
                self._say(
                    logging.ERROR,
                    "what the asset's state store holds as %s is damaged and left aside; what is there already by now "
                    "doesn't fire. %s",
                    self._state_key,
                    error,
                )
        for memory in memories:
            self._memory = memory if self._memory is None else self._memory.joined(memory)
        if len(memories) == len(self._stores()) and len({frozenset(memory.digests) for memory in memories}) == 1:
            self._saved = self._memory
        self._recalled = True
        if self._memory is not None:
            self._say(logging.INFO, "going on; %d keys are remembered.", len(self._memory.digests))

    def _stores(self) -> list[Any]:
        """Return the state stores of all assets of this watcher.

        Identical watchers on several assets are one trigger, whose events go to each of these assets. Airflow (3.3.2)
        has no public way to ask which they are, and only those of a single one can be used without knowing.
        """
        accessors = getattr(self, "asset_state_store", None)
        if accessors is None:
            return []
        by_asset = [*getattr(accessors, "_by_name", {}).values(), *getattr(accessors, "_by_uri", {}).values()]
        return by_asset or [accessors]

    def _keeper(self, memory: Memory) -> Confirmation:
        doubts = self._doubts

        async def keep(is_stored: bool) -> None:
            if not is_stored:
                self._doubts += 1
            # Events of an earlier poll may not be stored, and a memory holds all polls before it. If they are this
            # watcher's, Airflow starts it again; else it keeps its memory after the next poll.
            if doubts != self._doubts:
                return
            try:
                for store in self._stores():
                    await store.aset(self._state_key, memory.to_json())
            except Exception as error:  # noqa: BLE001 - any would end the stream of all watchers
                self._say(
                    logging.WARNING,
                    "the asset's state store doesn't take what fired; trying again at the next poll. A restart before "
                    "that fires it again. %s: %.500s",
                    type(error).__name__,
                    error,
                )
            else:
                self._saved = memory

        return keep

    def _say(self, level: int, text: str, *values: Any) -> None:
        # Airflow's log of watchers doesn't tell them apart.
        log.log(level, f"%s: {text}", self._name, *values)  # noqa: G004 - the text is one of ours


Confirmation = Callable[[bool], Coroutine[Any, Any, None]]
"""Keeps what a watcher has seen, once it is known whether all events that came of the poll are stored."""


@dataclass(frozen=True, eq=False)
class _SharedReading:
    """A poll, and what is to be done when it is dealt with."""

    reading: Reading
    confirmations: list[Confirmation] = field(default_factory=list)


class _RefusedError(OpenmarketsQueryError, TypeError):
    """An argument is malformed.

    Of the errors of a trigger's constructor Airflow (3.3.2) survives a TypeError only: any other one ends the
    triggerer with all of its triggers, such as when a DAG was parsed by another version of this package.
    """


async def _shared_readings(conn_id: str, query: Query, interval: float) -> AsyncGenerator[_SharedReading, None]:
    """Poll for ever, and tell what fails."""
    from openmarkets_provider.triggers._shared_polls import readings

    name = _name(conn_id, query)
    failures = 0
    while True:
        try:
            async with aclosing(readings(conn_id, query, interval, back_off=True)) as polls:
                async for reading in polls:
                    if reading.error is not None:
                        failures += 1
                        _tell(name, reading.error, failures, reading.next_in)
                    elif failures:
                        log.info("%s: polls succeed again, after %d that failed.", name, failures)
                        failures = 0
                    yield _SharedReading(reading)
        except Exception as error:  # noqa: BLE001 - else all watchers of the stream end, are started again, and end again
            failures += 1
            _tell(name, error, failures, interval)
        await asyncio.sleep(interval)


def _name(conn_id: str, query: Query) -> str:
    asked = query["endpoint"] if query["endpoint"] != "request" else f"{query['method']} {query['api']} {query['path']}"
    return f"Watching {asked} ({conn_id})"


def _tell(name: str, error: Exception, failures: int, wait: float) -> None:
    kind = "" if isinstance(error, OpenmarketsError) else f"{type(error).__name__}: "
    log.log(
        logging.WARNING if getattr(error, "transient", False) else logging.ERROR,
        "%s: %s%.1000s Polling again in %.0f s (failure %d in a row).",
        name,
        kind,
        error,
        wait,
        failures,
    )


def _check(conn_id: Any, query: Any, items: Any, key: Any, poll_interval: Any) -> None:
    """Refuse what can't work, while the DAG is parsed.

    :raises OpenmarketsQueryError: the text names the argument and the fix.
    """
    arguments = {"openmarkets_conn_id": conn_id, "query": query, "items": items, "key": key}
    for name, value in arguments.items():
        try:
            literal = all(map(is_literal, _leaves(value)))
        except RecursionError:
            raise OpenmarketsQueryError(
                f"{name}: nested too deep; put fewer lists and dicts into each other."
            ) from None
        if not literal:
            raise OpenmarketsQueryError(
                f"{name}: a watcher belongs to no run, so that Airflow renders no template and knows no task's result "
                f"in {value!r:.200}. Write the value itself; a query without a range gives what is current."
            )
    if not isinstance(conn_id, str) or not conn_id:
        raise OpenmarketsQueryError(f"openmarkets_conn_id: expected the id of a connection, got {conn_id!r:.100}.")
    for name, expression in (("items", items), ("key", key)):
        try:
            check_condition(expression)
        except OpenmarketsQueryError as error:
            raise OpenmarketsQueryError(named(name, error)) from None
    if (
        isinstance(poll_interval, bool)
        or not isinstance(poll_interval, int | float)
        or not MIN_POLL_INTERVAL <= poll_interval <= MAX_POLL_INTERVAL
    ):
        raise OpenmarketsQueryError(
            f"poll_interval: expected seconds from {MIN_POLL_INTERVAL:.0f} to {MAX_POLL_INTERVAL:.0f}, got "
            f"{poll_interval!r:.100}."
        )
    check(query)
    try:
        canonical(query)
    except (TypeError, ValueError) as error:
        raise OpenmarketsQueryError(
            f"query: is not JSON ({error}); a function of openmarkets_provider.queries makes one that is."
        ) from None
    check_reads_only(query, "a watcher")


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for name, part in value.items():
            yield name
            yield from _leaves(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part)
    else:
        yield value
