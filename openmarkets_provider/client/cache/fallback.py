"""A store for all hosts that falls back to the files of this host during an outage."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TypeVar

from openmarkets_provider.client.cache.store import Store

log = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
"""Seconds before a failed store is tried again, so that not every call waits for its time-out."""
COPY_SECONDS = 3600.0
"""Least seconds for which a copy is kept: the store doesn't say how long the entry is useful."""

_FILE = "file:"
_PRIMARY = "primary:"

T = TypeVar("T")


class _Outage:
    """Whether a store is down, for the whole process.

    :ivar until: when the store is tried again, by the clock of FallbackStore; None while it works.
    """

    def __init__(self) -> None:
        self.until: float | None = None
        self.warned = False
        self._lock = threading.Lock()

    def may_try(self, moment: float) -> bool:
        """Return whether to use the store: always while it works, else once per RETRY_SECONDS."""
        with self._lock:
            if self.until is None:
                return True
            if moment < self.until:
                return False
            self.until = moment + RETRY_SECONDS
            return True

    def begin(self, moment: float) -> bool:
        """Record a failure. Return whether the store worked before."""
        with self._lock:
            worked, self.until = self.until is None, moment + RETRY_SECONDS
            return worked

    def end(self) -> bool:
        """Record a success. Return whether the store had failed before."""
        with self._lock:
            failed, self.until = self.until is not None, None
            return failed


_outages: dict[str, _Outage] = {}


def reset() -> None:
    """Forget the outages. New and forked processes try every store and log their own warnings."""
    # This drops their locks, too, which another thread may have acquired before a fork.
    _outages.clear()


os.register_at_fork(after_in_child=reset)


class FallbackStore:
    """A primary store, with copies of its entries in the files of this host for an outage.

    Stores of a process with the same label share their outages. A process logs one warning per outage.

    :param primary: any exception that it raises counts as an outage, since it may be code of the deployment.
    :param file: the store of this host.
    :param label: the name of the primary in logs, such as ``Redis (connection 'redis_default')``.
    :param clock: monotonic seconds.
    """

    def __init__(self, primary: Store, file: Store, label: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._primary = primary
        self._file = file
        self._label = label
        self._clock = clock
        self._copies: dict[str, bytes] = {}

    @property
    def name(self) -> str:
        """The name of the store that is in use."""
        outage = _outages.get(self._label)
        return self._primary.name if outage is None or outage.until is None else self._file.name

    def load(self, key: str) -> bytes | None:
        """Read an entry from the primary, or from the file if the primary has none: it may be read-only."""

        def load() -> bytes | None:
            data = self._primary.load(key)
            if data is None:
                return self._file.load(key)
            if not isinstance(data, bytes):
                raise TypeError(f"load returned {type(data).__name__}, not bytes or None")
            self._copy(key, data)
            return data

        return self._try(load, lambda: self._file.load(key))

    def save(self, key: str, data: bytes, seconds: float, lease: str | None = None) -> None:
        """Replace an entry, in the store that issued the lease."""

        def save_in_file() -> None:
            self._file.save(key, data, seconds)

        if lease is not None and lease.startswith(_FILE):
            # The lock of a file does not exclude other hosts, which may have saved something newer.
            save_in_file()
            return
        primary_lease = lease.removeprefix(_PRIMARY) if lease is not None else None

        def save() -> None:
            self._primary.save(key, data, seconds, primary_lease)
            self._copy(key, data)

        self._try(save, save_in_file)

    def _copy(self, key: str, data: bytes) -> None:
        """Keep a copy on this host, so that an outage causes no token request."""
        if self._copies.get(key) != data:
            self._copies[key] = data
            with suppress(OSError):
                if self._file.load(key) != data:
                    self._file.save(key, data, COPY_SECONDS)

    @contextmanager
    def lock(self, key: str, timeout: float) -> Iterator[str | None]:
        """Acquire the lock of the primary, or of the file."""
        end = self._clock() + timeout

        def enter(store: Store, prefix: str) -> tuple[AbstractContextManager[str | None], str | None]:
            lock = store.lock(key, max(0.0, end - self._clock()))
            lease = lock.__enter__()
            return lock, None if lease is None else f"{prefix}{lease}"

        lock, lease = self._try(lambda: enter(self._primary, _PRIMARY), lambda: enter(self._file, _FILE))
        try:
            yield lease
        finally:
            # The work is done, and a lock that can't be released expires.
            with suppress(Exception):
                lock.__exit__(None, None, None)

    def _try(self, primary: Callable[[], T], fallback: Callable[[], T]) -> T:
        outage = _outages.get(self._label) or _outages.setdefault(self._label, _Outage())
        if outage.may_try(self._clock()):
            try:
                result = primary()
            except Exception as error:  # noqa: BLE001 (the code of a deployment may fail in any way)
                if outage.begin(self._clock()):
                    self._log(outage, error)
            else:
                if outage.end():
                    log.info("%s works again: tokens are shared through it.", self._label)
                return result
        return fallback()

    def _log(self, outage: _Outage, error: Exception) -> None:
        level = logging.INFO if outage.warned else logging.WARNING
        outage.warned = True
        log.log(
            level,
            "%s can't be used: %s. Tokens and holds are shared on this host only. The store is tried again "
            "every %g seconds.",
            self._label,
            (str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}").rstrip("."),
            RETRY_SECONDS,
        )
