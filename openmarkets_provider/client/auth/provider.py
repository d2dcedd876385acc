"""Shares one access token among callers: from memory, then from the store, then by one request under a lock."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from openmarkets_provider.client.auth.token import UNKNOWN_LIFETIME, Decision, Failure, Token, TokenEntry, decide
from openmarkets_provider.client.cache.clock import Clock, now
from openmarkets_provider.client.cache.crypto import EntryCipher
from openmarkets_provider.client.cache.entry import SharedEntry
from openmarkets_provider.client.cache.store import Store
from openmarkets_provider.client.metrics import NO_METRICS, Metrics
from openmarkets_provider.exceptions import OpenmarketsConfigurationError, OpenmarketsError

log = logging.getLogger(__name__)

T = TypeVar("T")

_NOT_REFRESHED = "Could not refresh the access token for %s before it expires; it stays in use until then: %s"


class SecretMasker(Protocol):
    """Hides values in logs."""

    def mask(self, value: str) -> None:
        """Hide a value; may block."""

    async def amask(self, value: str) -> None:
        """Hide a value; for event loops."""


class _Slot:
    """The entry of one key in the memory of this process, with the locks for its threads.

    :ivar lock: acquired to request a token, which may take seconds.
    :ivar guard: acquired to replace the entry, which is immediate.
    :ivar has_warned: whether this process has logged that the identity server sends no lifetime.
    """

    def __init__(self) -> None:
        self.entry: TokenEntry | None = None
        self.begin_process()

    def begin_process(self) -> None:
        """Create new locks in a forked child: another thread may have held the old ones during the fork."""
        self.lock = threading.Lock()
        self.guard = threading.Lock()
        self.has_warned = False


_slots: dict[str, _Slot] = {}


def reset() -> None:
    """Forget the tokens in the memory of this process. Stores keep theirs."""
    _slots.clear()


def _after_fork() -> None:
    for slot in _slots.values():
        slot.begin_process()


os.register_at_fork(after_in_child=_after_fork)


class TokenProvider:
    """The access tokens of one client, one for each scope.

    :param key: returns the key of a scope's entry.
    :param fetch: requests a token for a scope. Returns the token and its lifetime in seconds, None if the identity
        server sends none. Raises OpenmarketsError.
    :param store: shared with other processes. None keeps tokens in the memory of this process.
    :param cipher: encrypts entries of the store.
    :param masker: hides every token before it is returned.
    :param wait: longest time in seconds to wait for another caller's request.
    """

    def __init__(
        self,
        *,
        key: Callable[[str], str],
        fetch: Callable[[str], tuple[str, float | None]],
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
        # The key includes the process: threads do not continue in a forked child.
        self._pending: dict[tuple[int, Callable[..., Any], str, Token | None], Future[Any]] = {}

    def get(self, scope: str, *, rejected: Token | None = None) -> Token:
        """Return a valid token.

        :param scope: OAuth scope.
        :param rejected: the token that an API has just rejected. Unless another caller has replaced it already, it is
            replaced now. A token that is itself a recent replacement is returned again.
        :raises OpenmarketsError: there is no token. For a while, other callers get the same error without a new
            request.
        """
        token = self._get(scope, rejected)
        self._masker.mask(token.value)
        return token

    async def aget(self, scope: str, *, rejected: Token | None = None) -> Token:
        """Return a token, as :meth:`get`. A caller waits for a request only if there is no valid token.

        Memory is read directly, the store and the identity server in a thread. Callers that need the same token share
        one thread; cancelling one of them does not affect the others. A refresh of a valid token continues after the
        event loop has ended.
        """
        decision, token = self._decide(_slot(self._shared(scope).key), rejected)
        if token is None:
            token = await asyncio.wrap_future(self._start(self._get_ahead, scope, rejected))
        elif decision is Decision.REFRESH:
            self._start(self._refresh_ahead, scope, rejected)
        await self._masker.amask(token.value)
        return token

    def refresh(self, scope: str) -> Token:
        """Request a token now, even if there is a valid one, and share the result.

        :raises OpenmarketsError: the identity server refused, or could not be reached. A valid token stays in use.
        """
        shared = self._shared(scope)
        slot = _slot(shared.key)
        with _thread_lock(slot, self._wait), shared.lock(self._wait) as lease:
            self._load(slot, shared)
            token = self._request(slot, shared, scope, lease, rejected=None)
        self._masker.mask(token.value)
        return token

    def _get(self, scope: str, rejected: Token | None) -> Token:
        """Return a token. If it expires soon, refresh it first, unless another caller is doing so."""
        decision, token = self._look_up(scope, rejected)
        return token if token is not None and decision is Decision.USE else self._obtain(scope, rejected, token)

    def _get_ahead(self, scope: str, rejected: Token | None) -> Token:
        """Return a token, as :meth:`_get`, but refresh a valid one in another thread."""
        decision, token = self._look_up(scope, rejected)
        if token is None:
            return self._obtain(scope, rejected, None)
        if decision is Decision.REFRESH:
            self._start(self._refresh_ahead, scope, rejected)
        return token

    def _refresh_ahead(self, scope: str, rejected: Token | None) -> None:
        """Refresh a token that expires soon, in the background."""
        try:
            self._get(scope, rejected)
        except OpenmarketsError:
            # The old token has expired by now. The next caller gets this error.
            pass
        except Exception as error:
            log.warning(_NOT_REFRESHED, scope, error, exc_info=True)

    def _start(self, work: Callable[[str, Token | None], T], scope: str, rejected: Token | None) -> Future[T]:
        """Start work in a thread, once for all concurrent callers that need the same."""
        key = (os.getpid(), work, scope, rejected)
        future = self._pending.get(key)
        if future is None:
            future = self._pending[key] = _in_thread(work, scope, rejected)
            future.add_done_callback(lambda _: self._pending.pop(key, None))
        return future

    def _look_up(self, scope: str, rejected: Token | None) -> tuple[Decision, Token | None]:
        """Decide by the entry in memory; if that is not usable, by the newer of memory and store."""
        shared = self._shared(scope)
        slot = _slot(shared.key)
        decision, token = self._decide(slot, rejected)
        if decision is not Decision.USE:
            self._load(slot, shared)
            decision, token = self._decide(slot, rejected, shared.name)
        return decision, token

    def _decide(self, slot: _Slot, rejected: Token | None, name: str = "memory") -> tuple[Decision, Token | None]:
        """Decide by the entry of a slot.

        :param name: where the entry comes from, for metrics.
        """
        decision, token = decide(slot.entry, self._clock(), rejected.value if rejected is not None else None)
        if decision is Decision.USE:
            self._metrics.count(f"token.hits.{name}")
        return decision, token

    def _obtain(self, scope: str, rejected: Token | None, token: Token | None) -> Token:
        """Request a token under the locks, unless another caller has done so in the meantime.

        :param token: one that is still valid. With it, the caller does not wait for a lock.
        """
        shared = self._shared(scope)
        slot = _slot(shared.key)
        with _thread_lock(slot, self._wait if token is None else 0) as acquired:
            if token is not None and not acquired:
                return token
            decision, token = self._decide(slot, rejected)
            if token is not None and decision is Decision.USE:
                return token
            start = time.monotonic()
            with shared.lock(self._wait if token is None else 0) as lease:
                if token is not None and lease is None:
                    return token
                self._metrics.time("token.lock_wait", time.monotonic() - start)
                if lease is None:
                    log.warning("Could not acquire the lock of an access token in time; continuing without it.")
                decision, token = self._look_up(scope, rejected)
                if token is not None and decision is Decision.USE:
                    return token
                try:
                    fresh = self._request(slot, shared, scope, lease, rejected)
                except OpenmarketsError as error:
                    if token is None or token.remaining(self._clock()) <= 0:
                        raise
                    log.warning(_NOT_REFRESHED, scope, error)
                    return token
                if token is not None:
                    self._metrics.count("token.refreshes")
                return fresh

    def _load(self, slot: _Slot, shared: SharedEntry[TokenEntry]) -> None:
        """Replace the entry in memory by that of the store, if the latter is newer."""
        stored, moment = shared.load(), self._clock()
        with slot.guard:
            if slot.entry is None or (
                stored is not None and stored.written.elapsed(moment) <= slot.entry.written.elapsed(moment)
            ):
                slot.entry = stored

    def _request(
        self, slot: _Slot, shared: SharedEntry[TokenEntry], scope: str, lease: str | None, rejected: Token | None
    ) -> Token:
        """Request a token, and share the token or the failure."""
        obtained = self._clock()
        self._metrics.count("token.requests")
        start = time.monotonic()
        try:
            value, lifetime = self._fetch(scope)
        except OpenmarketsConfigurationError:
            # A local fault (CA bundle, proxy). It is not shared: the key stays the same when the user corrects it.
            raise
        except OpenmarketsError as error:
            self._metrics.count("token.failures")
            moment = self._clock()
            failure = Failure.of(error, moment)
            with slot.guard:
                current = slot.entry.token if slot.entry is not None else None
                slot.entry = entry = TokenEntry(moment, current, failure)
            if error.transient and error.retry_after is None:
                # An earlier attempt would get this same failure without a request.
                error.retry_after = failure.seconds
            if lease is not None:
                # Without the lock, another caller may have stored a token in the meantime.
                shared.save(entry, entry.seconds_of_use(), lease)
            raise
        self._metrics.time("token.request_time", time.monotonic() - start)
        if lifetime is None:
            lifetime = UNKNOWN_LIFETIME
            if not slot.has_warned:
                slot.has_warned = True
                log.warning(
                    "The identity server returned no usable lifetime (expires_in) for the access token for %s. "
                    "The token is used for %g seconds.",
                    scope,
                    lifetime,
                )
        # The server counts the lifetime from its reply. We count from the request, so our token expires earlier.
        token = Token(value, scope, obtained, lifetime, replacement=rejected is not None)
        entry = TokenEntry(self._clock(), token)
        with slot.guard:
            slot.entry = entry
        shared.save(entry, entry.seconds_of_use(), lease)
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


def _in_thread(work: Callable[[str, Token | None], T], scope: str, rejected: Token | None) -> Future[T]:
    """Do work in a new thread, for which an event loop that ends does not wait."""
    future: Future[T] = Future()
    # Cancelling a caller must not cancel the work.
    future.set_running_or_notify_cancel()
    # The thread continues the caller's trace and log context.
    context = contextvars.copy_context()

    def run() -> None:
        try:
            future.set_result(context.run(work, scope, rejected))
        except BaseException as error:  # noqa: BLE001 (it is raised where the result is awaited)
            future.set_exception(error)

    threading.Thread(target=run, name="openmarkets_token").start()
    return future
