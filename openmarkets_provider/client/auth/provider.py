"""Getting an access token once for everyone: memory, then the shared store, then one request under a lock."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol
from weakref import WeakKeyDictionary

from openmarkets_provider.client.auth.token import Clock, Failure, Record, Step, Token, decide, now
from openmarkets_provider.client.cache.crypto import RecordCipher
from openmarkets_provider.client.cache.store import Store
from openmarkets_provider.client.metrics import NO_METRICS, Metrics
from openmarkets_provider.exceptions import OpenmarketsConfigurationError, OpenmarketsError

log = logging.getLogger(__name__)


class SecretMasker(Protocol):
    """Hides a value from logs from now on."""

    def mask(self, value: str) -> None:
        """Hide it; may block."""

    async def amask(self, value: str) -> None:
        """Hide it, on an event loop."""


class _Slot:
    """What this process knows of one key, and the lock that makes its threads take turns."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.record: Record | None = None


_slots: dict[str, _Slot] = {}
_warned: set[str] = set()


def _after_fork() -> None:
    # Another thread may have held a lock at the moment of the fork; it does not exist in the child.
    for slot in _slots.values():
        slot.lock = threading.Lock()
    _warned.clear()


os.register_at_fork(after_in_child=_after_fork)


class TokenSource:
    """The access tokens of one client, one for each scope.

    :param key: scope to the key of its record.
    :param fetch: asks the identity server for a scope; returns the token and its lifetime in seconds. Raises
        OpenmarketsError.
    :param stores: shared with other processes, the nearest first; that one's lock is held by who asks. None at all
        keeps tokens in the memory of this process.
    :param cipher: seals what is stored.
    :param masker: told every token before it is handed out.
    :param wait: longest time in seconds to wait for somebody else's request.
    """

    def __init__(
        self,
        *,
        key: Callable[[str], str],
        fetch: Callable[[str], tuple[str, float]],
        stores: Sequence[Store],
        cipher: RecordCipher,
        masker: SecretMasker,
        wait: float,
        metrics: Metrics = NO_METRICS,
        clock: Clock = now,
    ) -> None:
        self._key = key
        self._fetch = fetch
        self._stores = stores
        self._cipher = cipher
        self._masker = masker
        self._metrics = metrics
        self._wait = wait
        self._clock = clock
        self._pending: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[object, asyncio.Task[Token]]]
        self._pending = WeakKeyDictionary()

    def get(self, scope: str, *, rejected: Token | None = None) -> Token:
        """Return a token that can be sent now.

        :param scope: OAuth scope.
        :param rejected: the token that an API refused to the caller. It is replaced, unless somebody did so
            already, or it is itself a recent replacement: then it comes back.
        :raises OpenmarketsError: no token is to be had; other callers get the same error for a while without a
            further request.
        """
        token = self._get(scope, rejected)
        self._masker.mask(token.value)
        return token

    async def aget(self, scope: str, *, rejected: Token | None = None) -> Token:
        """As :meth:`get`, without ever blocking the event loop: what can't be answered from memory is awaited.

        Coroutines that ask for the same share one thread; cancelling one of them leaves the others waiting.
        """
        slot = _slot(self._key(scope))
        step, token = decide(slot.record, self._clock(), rejected.value if rejected is not None else None)
        if step is Step.USE and token is not None:
            self._metrics.count("token.hits.memory")
        else:
            pending = self._pending.setdefault(asyncio.get_running_loop(), {})
            wanted = (scope, rejected)
            task = pending.get(wanted)
            if task is None:
                task = asyncio.create_task(asyncio.to_thread(self._get, scope, rejected))
                pending[wanted] = task
                task.add_done_callback(lambda done: _forget(pending, wanted, done))
            token = await asyncio.shield(task)
        await self._masker.amask(token.value)
        return token

    def renew(self, scope: str) -> Token:
        """Ask the identity server now, whatever is known, and share what it says.

        :raises OpenmarketsError: what it said, or that it could not be reached.
        """
        key = self._key(scope)
        slot = _slot(key)
        with _thread_lock(slot, self._wait), self._store_lock(key, self._wait) as lease:
            # If it fails, what others use is to stay.
            for store in self._stores:
                self._learn(store, key, slot)
            token = self._ask(key, slot, scope, lease, rejected=None)
        self._masker.mask(token.value)
        return token

    def _get(self, scope: str, rejected: Token | None) -> Token:
        key = self._key(scope)
        slot = _slot(key)
        refused = rejected.value if rejected is not None else None
        step, token = decide(slot.record, self._clock(), refused)
        if token is not None and step is Step.USE:
            self._metrics.count("token.hits.memory")
            return token
        with _thread_lock(slot, 0 if step is Step.RENEW else self._wait) as held:
            if token is not None and not held:
                return token
            step, token = self._look(key, slot, refused)
            if token is not None and step is Step.USE:
                return token
            started = time.monotonic()
            with self._store_lock(key, 0 if step is Step.RENEW else self._wait) as lease:
                if token is not None and lease is None:
                    return token
                self._metrics.time("token.lock_wait", time.monotonic() - started)
                if lease is None:
                    log.warning("Another process keeps the lock of an access token; going on without it.")
                step, token = self._look(key, slot, refused)
                if token is not None and step is Step.USE:
                    return token
                try:
                    fresh = self._ask(key, slot, scope, lease, rejected)
                except OpenmarketsError as error:
                    if token is None:
                        raise
                    log.warning("The access token for %s could not be renewed ahead of its end: %s", scope, error)
                    return token
                if token is not None:
                    self._metrics.count("token.renewals")
                return fresh

    def _look(self, key: str, slot: _Slot, refused: str | None) -> tuple[Step, Token | None]:
        """Decide by what this process and the stores know, whichever is later; ask no further store than needed."""
        step, token = decide(slot.record, self._clock(), refused)
        if step is Step.USE:
            self._metrics.count("token.hits.memory")
            return step, token
        for number, store in enumerate(self._stores):
            self._learn(store, key, slot)
            step, token = decide(slot.record, self._clock(), refused)
            if step is Step.USE and slot.record is not None:
                self._metrics.count(f"token.hits.{store.name}")
                self._save(self._stores[:number], key, slot.record, None)
                break
        return step, token

    def _learn(self, store: Store, key: str, slot: _Slot) -> None:
        """Take over what a store knows, if that is later than what this process does."""
        stored = self._load(store, key)
        moment = self._clock()
        known = [record for record in (stored, slot.record) if record is not None]
        slot.record = min(known, key=lambda record: record.written.elapsed(moment), default=None)

    def _ask(self, key: str, slot: _Slot, scope: str, lease: str | None, rejected: Token | None) -> Token:
        """Request a token and tell everyone what came of it."""
        started = self._clock()
        self._metrics.count("token.requests")
        asked = time.monotonic()
        try:
            value, lifetime = self._fetch(scope)
        except OpenmarketsConfigurationError:
            # Found here, without the server: what mends it (a CA bundle, a proxy) makes no other key.
            raise
        except OpenmarketsError as error:
            self._metrics.count("token.failures")
            current = slot.record.token if slot.record is not None else None
            moment = self._clock()
            slot.record = Record(moment, current, Failure.of(error, moment))
            if lease is not None:
                # Without the lock, somebody else may have got a token meanwhile.
                self._save(self._stores, key, slot.record, lease)
            raise
        self._metrics.time("token.request_time", time.monotonic() - asked)
        # The lifetime counts from the moment the server wrote the reply: to start at ours is on the safe side.
        token = Token(value, scope, started, lifetime, replacement=rejected is not None)
        slot.record = Record(self._clock(), token)
        self._save(self._stores, key, slot.record, lease)
        return token

    def _save(self, stores: Sequence[Store], key: str, record: Record, lease: str | None) -> None:
        for store in stores:
            try:
                store.save(key, self._cipher.seal(key, record), record.seconds_of_use(), lease)
            except OSError as error:
                _warn(store, error)

    def _load(self, store: Store, key: str) -> Record | None:
        try:
            data = store.load(key)
        except OSError as error:
            _warn(store, error)
            return None
        return self._cipher.open(key, data, Record) if data is not None else None

    @contextmanager
    def _store_lock(self, key: str, timeout: float) -> Iterator[str | None]:
        """Hold the lock of the nearest store, or go on as if when it can't be used."""
        if not self._stores:
            yield "memory"
            return
        lock = self._stores[0].lock(key, timeout)
        try:
            lease = lock.__enter__()
        except OSError as error:
            _warn(self._stores[0], error)
            yield "none"
            return
        try:
            yield lease
        finally:
            lock.__exit__(None, None, None)


def _slot(key: str) -> _Slot:
    return _slots.get(key) or _slots.setdefault(key, _Slot())


@contextmanager
def _thread_lock(slot: _Slot, timeout: float) -> Iterator[bool]:
    lock = slot.lock
    held = lock.acquire(timeout=timeout)
    try:
        yield held
    finally:
        if held:
            lock.release()


def _forget(pending: dict[object, asyncio.Task[Token]], wanted: object, done: asyncio.Task[Token]) -> None:
    pending.pop(wanted, None)
    if not done.cancelled():
        # Retrieved here too, since every waiter may have been cancelled.
        done.exception()


def _warn(store: Store, error: OSError) -> None:
    """Say once a process that tokens aren't shared."""
    if store.name not in _warned:
        _warned.add(store.name)
        log.warning(
            "Access tokens are not shared through the %s store: %s. Tasks may ask for more of them.",
            store.name,
            error,
        )
