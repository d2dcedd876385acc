"""Gets one access token for everyone: from memory, then the shared store, then one request under a lock."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol
from weakref import WeakKeyDictionary

from openmarkets_provider.client.auth.token import Decision, Failure, Token, TokenEntry, decide
from openmarkets_provider.client.cache.clock import Clock, now
from openmarkets_provider.client.cache.crypto import EntryCipher
from openmarkets_provider.client.cache.entry import SharedEntry
from openmarkets_provider.client.cache.store import Store
from openmarkets_provider.client.metrics import NO_METRICS, Metrics
from openmarkets_provider.exceptions import OpenmarketsConfigurationError, OpenmarketsError

log = logging.getLogger(__name__)


class SecretMasker(Protocol):
    """Hides a value in logs from now on."""

    def mask(self, value: str) -> None:
        """Hide it; may block."""

    async def amask(self, value: str) -> None:
        """Hide it, on an event loop."""


class _Slot:
    """The entry of one key in this process' memory, and the lock that makes its threads take turns."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.entry: TokenEntry | None = None


_slots: dict[str, _Slot] = {}


def reset() -> None:
    """Forget the tokens in the memory of this process, as a new process begins. Stores keep theirs."""
    _slots.clear()


def _after_fork() -> None:
    # A thread that doesn't exist in the child may have acquired a lock before the fork.
    for slot in _slots.values():
        slot.lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


class TokenProvider:
    """The access tokens of one client, one for each scope.

    :param key: scope to the key of its entry.
    :param fetch: requests a token for a scope; returns it and its lifetime in seconds. Raises OpenmarketsError.
    :param store: what is shared with other processes. None keeps tokens in the memory of this process.
    :param cipher: encrypts what is stored.
    :param masker: hides every token before it is returned.
    :param wait: longest time in seconds to wait for another caller's request.
    """

    def __init__(
        self,
        *,
        key: Callable[[str], str],
        fetch: Callable[[str], tuple[str, float]],
        store: Store | None,
        cipher: EntryCipher,
        masker: SecretMasker,
        wait: float,
        metrics: Metrics = NO_METRICS,
        clock: Clock = now,
    ) -> None:
        self._shared = functools.cache(lambda scope: SharedEntry(store, key(scope), cipher, TokenEntry))
        self._fetch = fetch
        self._masker = masker
        self._metrics = metrics
        self._wait = wait
        self._clock = clock
        self._pending: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[object, asyncio.Task[Token]]]
        self._pending = WeakKeyDictionary()

    def get(self, scope: str, *, rejected: Token | None = None) -> Token:
        """Return a token that can be sent now.

        :param scope: OAuth scope.
        :param rejected: the token that an API has just rejected. It is replaced, unless another caller has done so,
            or it is itself a recent replacement: then it comes back.
        :raises OpenmarketsError: there is no token; other callers get the same error for a while without a further
            request.
        """
        token = self._get(scope, rejected)
        self._masker.mask(token.value)
        return token

    async def aget(self, scope: str, *, rejected: Token | None = None) -> Token:
        """Return a token, as :meth:`get`. A token in memory comes at once, any other from a thread.

        Coroutines that need the same token share one thread; cancelling one of them leaves the others waiting.
        """
        slot = _slot(self._shared(scope).key)
        decision, token = decide(slot.entry, self._clock(), rejected.value if rejected is not None else None)
        if decision is Decision.USE and token is not None:
            self._metrics.count("token.hits.memory")
        else:
            pending = self._pending.setdefault(asyncio.get_running_loop(), {})
            arguments = (scope, rejected)
            task = pending.get(arguments)
            if task is None:
                task = pending[arguments] = asyncio.create_task(asyncio.to_thread(self._get, scope, rejected))
                task.add_done_callback(lambda done: _forget(pending, arguments, done))
            token = await asyncio.shield(task)
        await self._masker.amask(token.value)
        return token

    def refresh(self, scope: str) -> Token:
        """Request a token now, even if there is a valid one, and share the outcome.

        :raises OpenmarketsError: what the identity server answered, or that it could not be reached. A valid token
            stays in use.
        """
        shared = self._shared(scope)
        slot = _slot(shared.key)
        with _thread_lock(slot, self._wait), shared.lock(self._wait) as lease:
            self._load(slot, shared)
            token = self._request(slot, shared, scope, lease, rejected=None)
        self._masker.mask(token.value)
        return token

    def _get(self, scope: str, rejected: Token | None) -> Token:
        shared = self._shared(scope)
        slot = _slot(shared.key)
        rejected_value = rejected.value if rejected is not None else None
        decision, token = decide(slot.entry, self._clock(), rejected_value)
        if token is not None and decision is Decision.USE:
            self._metrics.count("token.hits.memory")
            return token
        with _thread_lock(slot, 0 if decision is Decision.REFRESH else self._wait) as acquired:
            if token is not None and not acquired:
                return token
            decision, token = self._look_up(slot, shared, rejected_value)
            if token is not None and decision is Decision.USE:
                return token
            start = time.monotonic()
            with shared.lock(0 if decision is Decision.REFRESH else self._wait) as lease:
                if token is not None and lease is None:
                    return token
                self._metrics.time("token.lock_wait", time.monotonic() - start)
                if lease is None:
                    log.warning("The lock of an access token was not free in time; continuing without it.")
                decision, token = self._look_up(slot, shared, rejected_value)
                if token is not None and decision is Decision.USE:
                    return token
                try:
                    fresh = self._request(slot, shared, scope, lease, rejected)
                except OpenmarketsError as error:
                    if token is None:
                        raise
                    log.warning("The access token for %s could not be refreshed ahead of its end: %s", scope, error)
                    return token
                if token is not None:
                    self._metrics.count("token.refreshes")
                return fresh

    def _look_up(
        self, slot: _Slot, shared: SharedEntry[TokenEntry], rejected: str | None
    ) -> tuple[Decision, Token | None]:
        """Decide by the entry in memory, and if that is not enough by the later one of memory and store."""
        name = "memory"
        decision, token = decide(slot.entry, self._clock(), rejected)
        if decision is not Decision.USE:
            self._load(slot, shared)
            name = shared.name
            decision, token = decide(slot.entry, self._clock(), rejected)
        if decision is Decision.USE:
            self._metrics.count(f"token.hits.{name}")
        return decision, token

    def _load(self, slot: _Slot, shared: SharedEntry[TokenEntry]) -> None:
        """Replace the entry in memory by that of the store, if that is later."""
        stored, moment = shared.load(), self._clock()
        if slot.entry is None or (
            stored is not None and stored.written.elapsed(moment) <= slot.entry.written.elapsed(moment)
        ):
            slot.entry = stored

    def _request(
        self, slot: _Slot, shared: SharedEntry[TokenEntry], scope: str, lease: str | None, rejected: Token | None
    ) -> Token:
        """Request a token, and share it or the failure."""
        obtained = self._clock()
        self._metrics.count("token.requests")
        start = time.monotonic()
        try:
            value, lifetime = self._fetch(scope)
        except OpenmarketsConfigurationError:
            # A local fault (a CA bundle, a proxy): correcting it makes no other key.
            raise
        except OpenmarketsError as error:
            self._metrics.count("token.failures")
            moment = self._clock()
            current = slot.entry.token if slot.entry is not None else None
            failure = Failure.of(error, moment)
            slot.entry = TokenEntry(moment, current, failure)
            if error.transient and error.retry_after is None:
                # Before that, a further attempt would get this same failure and request nothing.
                error.retry_after = failure.seconds
            if lease is not None:
                # Without the lock, another caller may have stored a token in the meantime.
                shared.save(slot.entry, slot.entry.seconds_of_use(), lease)
            raise
        self._metrics.time("token.request_time", time.monotonic() - start)
        # The lifetime starts when the server writes the reply. Our start is earlier, so the token ends no later.
        token = Token(value, scope, obtained, lifetime, replacement=rejected is not None)
        slot.entry = TokenEntry(self._clock(), token)
        shared.save(slot.entry, slot.entry.seconds_of_use(), lease)
        return token


def _slot(key: str) -> _Slot:
    return _slots.get(key) or _slots.setdefault(key, _Slot())


@contextmanager
def _thread_lock(slot: _Slot, timeout: float) -> Iterator[bool]:
    lock = slot.lock
    acquired = lock.acquire(timeout=timeout)
    try:
        yield acquired
    finally:
        if acquired:
            lock.release()


def _forget(pending: dict[object, asyncio.Task[Token]], arguments: object, done: asyncio.Task[Token]) -> None:
    pending.pop(arguments, None)
    if not done.cancelled():
        # Every waiter may have been cancelled: without this, asyncio logs an error that nobody retrieved.
        done.exception()
