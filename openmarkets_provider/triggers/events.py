"""The event trigger: fires asset events for the new items of a query. It only reads."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Hashable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

try:
    from airflow.triggers.base import BaseEventTrigger, TriggerEvent
except ImportError as error:
    raise ImportError(
        "OpenmarketsEventTrigger needs Airflow 3.0 or later; in earlier versions, use an OpenmarketsSensor in a "
        "scheduled DAG"
    ) from error

from openmarkets_provider.exceptions import OpenmarketsError
from openmarkets_provider.triggers._new_items import find_new_items
from openmarkets_provider.triggers._seen_keys import SeenKeys, canonical, state_key
from openmarkets_provider.triggers._seen_store import SeenStore
from openmarkets_provider.triggers._serialize import serialize_trigger
from openmarkets_provider.triggers._watcher_arguments import check_watcher

if TYPE_CHECKING:
    from airflow.triggers.shared_stream import SharedStreamProducer

    from openmarkets_provider.queries import Query
    from openmarkets_provider.triggers._shared_polls import Reading

log = logging.getLogger(__name__)


class OpenmarketsEventTrigger(BaseEventTrigger):
    """Polls a query and fires an event for new items. For ``AssetWatcher``.

    A poll with new items fires one event with the payload ``{"items": [{"item": ..., "key": ...}, ...]}``. If an item
    or key has more than 16 KiB as JSON, it is null, and ``item_bytes`` or ``key_bytes`` is its size. Items beyond 128
    KiB in total fire with the next poll. The items of the first poll fire nothing.

    In Airflow 3.3 and later, the asset's state store remembers the items that fired. If the triggerer is killed or
    restarted, no event is lost, and unconfirmed events are repeated. Before 3.3, the first poll after a restart fires
    nothing.

    Errors are logged and never end the trigger. After each failed poll the wait doubles, up to 15 minutes, or is as
    long as the server asks, up to an hour.

    After a DAG on the asset was unpaused, polling starts when Airflow next parses the DAG file.

    :param query: a query from :mod:`openmarkets_provider.queries`, which must only read. Airflow renders no templates
        here.
    :param key: JMESPath expression over an item for its identity, any JSON. With
        ``[account_code, order_number, state]`` an order is new whenever its state changes.
    :param items: JMESPath expression (https://jmespath.org) over the query's result for the list of items. Events keep
        their order.
    :param openmarkets_conn_id: id of a connection of type ``openmarkets``.
    :param poll_interval: seconds from one poll to the next, 1 to 86,400. Watchers with the same connection, query and
        interval share their polls.
    :param queue: the trigger queue: only triggerers that were started with this name in ``--queues`` run the watcher.
        Needs Airflow 3.4 or later.
    :raises OpenmarketsQueryError: when the DAG is parsed, if an argument is malformed.
    """

    def __init__(
        self,
        *,
        query: Query,
        key: str,
        items: str = "@",
        openmarkets_conn_id: str = "openmarkets_default",
        poll_interval: float = 60.0,
        queue: str | None = None,
    ) -> None:
        check_watcher(openmarkets_conn_id, query, items, key, poll_interval, queue)
        super().__init__(queue=queue)
        self.openmarkets_conn_id = openmarkets_conn_id
        self.query = query
        self.items = items
        self.key = key
        self.poll_interval = float(poll_interval)
        # Airflow before 3.4 does not set it.
        self.queue = queue
        name = f"{_make_name(openmarkets_conn_id, query)}, items {items!r}, key {key!r}"
        self._log_line = functools.partial(_log_line, name)
        self._store = SeenStore(state_key(openmarkets_conn_id, query, items, key), self._list_stores, self._log_line)
        self._is_loaded = False
        # None until the first poll.
        self._seen: SeenKeys | None = None
        self._problems = 0

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the import path and the arguments, which hold no secret."""
        return serialize_trigger(self)

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll forever, in Airflow before 3.3. Only this process remembers the items that fired."""
        self._log_line(
            logging.INFO,
            "this Airflow version stores no state for watchers; items that arrive while the triggerer restarts "
            "do not fire.",
        )
        async with aclosing(_poll_for_ever(self.openmarkets_conn_id, self.query, self.poll_interval)) as polls:
            async for reading in polls:
                if payload := await self._find_payload(reading):
                    yield TriggerEvent({"items": payload})

    def shared_stream_key(self) -> Hashable:
        """Return a key that is equal for watchers that share their polls (Airflow 3.3)."""
        return ("openmarkets", self.openmarkets_conn_id, canonical(self.query), self.poll_interval)

    @classmethod
    def create_shared_stream_producer(cls, kwargs: dict[str, Any]) -> SharedStreamProducer:
        """Return the producer of a shared stream, which polls for all of its watchers."""
        from openmarkets_provider.triggers._event_stream import PollProducer

        return PollProducer(
            lambda: _poll_for_ever(kwargs["openmarkets_conn_id"], kwargs["query"], kwargs["poll_interval"])
        )

    async def filter_shared_stream(self, shared_stream: AsyncIterator[Any]) -> AsyncIterator[TriggerEvent]:
        """Turn the readings of a shared stream into this watcher's events."""
        async for shared in shared_stream:
            # One event per poll: of several at once, Airflow (3.3.2) passes only the first to a run, and the others to
            # the run of the next event.
            if payload := await self._find_payload(shared.reading):
                yield TriggerEvent({"items": payload})
            # After the yield: a watcher that is cancelled before Airflow gets the event must not remember its items.
            # Repeated after every poll until they are saved, since the store may fail.
            if self._seen is not None and not self._store.is_saved(self._seen):
                shared.confirmations.append(self._store.prepare_save(self._seen))

    async def _find_payload(self, reading: Reading) -> list[dict[str, Any]]:
        """Return the new items of a reading, and remember them. Errors are logged, and give no items."""
        if reading.error is not None:
            return []
        try:
            await self._load()
            # In a thread, since thousands of items would block the event loop.
            new = await asyncio.to_thread(find_new_items, reading.evaluate, self.items, self.key, self._seen)
        except Exception as error:  # noqa: BLE001 - Airflow would restart the watcher, which would end again
            is_ours = isinstance(error, OpenmarketsError)
            self._log_problem(str(error) if is_ours else f"{type(error).__name__}: {error!s:.500}.")
            return []
        if self._seen is None:
            self._log_line(logging.INFO, "%d items exist already; new items fire from now on.", new.total)
        elif new.payload:
            self._log_line(logging.INFO, "%d of %d items are new: %s.", len(new.payload), new.total, new.list_keys())
        if new.overflow:
            self._log_line(
                logging.WARNING,
                "%d more new items do not fit into one event; they fire at the next poll.",
                new.overflow,
            )
        if omissions := new.list_omissions():
            self._log_line(logging.WARNING, "left out of the event, because too large or not storable: %s.", omissions)
        if new.problem:
            self._log_problem(new.problem)
        else:
            self._problems = 0
        self._seen = new.seen
        return new.payload

    async def _load(self) -> None:
        if self._is_loaded:
            return
        self._seen = await self._store.load()
        self._is_loaded = True
        if self._seen is not None:
            self._log_line(logging.INFO, "continuing with %d keys from the state store.", len(self._seen.digests))

    def _list_stores(self) -> list[Any]:
        """Return the state stores of this watcher's assets; none before Airflow 3.3.

        Identical watchers on several assets are one trigger, whose events go to each asset. Airflow has no public way
        to list the assets (CONTRIBUTING.md, "Private attributes"), and ``asset_state_store`` works for a single one
        only.
        """
        accessors = getattr(self, "asset_state_store", None)
        if accessors is None:
            return []
        by_asset = [*getattr(accessors, "_by_name", {}).values(), *getattr(accessors, "_by_uri", {}).values()]
        return by_asset or [accessors]

    def _log_problem(self, text: str) -> None:
        # Log the 1st, 2nd, 4th, 8th ... in a row. Other watchers may share the polls, so these do not slow down.
        self._problems += 1
        if self._problems & (self._problems - 1) == 0:
            self._log_line(logging.ERROR, "%s Trying again at each poll (failure %d in a row).", text, self._problems)


async def _poll_for_ever(conn_id: str, query: Query, interval: float) -> AsyncGenerator[Reading, None]:
    """Yield the readings of a query, and log failed ones."""
    from openmarkets_provider.triggers._shared_polls import poll_shared

    name = _make_name(conn_id, query)
    failures = 0
    while True:
        try:
            async with aclosing(poll_shared(conn_id, query, interval, back_off=True)) as polls:
                async for reading in polls:
                    if reading.error is not None:
                        failures += 1
                        _log_failure(name, reading.error, failures, reading.next_in)
                    elif failures:
                        log.info("%s: polls succeed again after %d failures.", name, failures)
                        failures = 0
                    yield reading
        except Exception as error:  # noqa: BLE001 - it would end all watchers; Airflow starts them, and they end again
            failures += 1
            _log_failure(name, error, failures, interval)
        await asyncio.sleep(interval)


def _make_name(conn_id: str, query: Query) -> str:
    is_request = query["endpoint"] == "request"
    call = f"{query['method']} {query['api']} {query['path']}" if is_request else query["endpoint"]
    return f"Watching {call} ({conn_id})"


def _log_line(name: str, level: int, text: str, *values: Any) -> None:
    # Airflow's log of triggers does not name the watcher.
    log.log(level, f"%s: {text}", name, *values)  # noqa: G004 - the text is a literal of this package


def _log_failure(name: str, error: Exception, failures: int, wait: float) -> None:
    level = logging.WARNING if getattr(error, "transient", False) else logging.ERROR
    kind = "" if isinstance(error, OpenmarketsError) else f"{type(error).__name__}: "
    text = "%s%.1000s Polling again in %.0f s (failure %d in a row)."
    _log_line(name, level, text, kind, error, wait, failures)
