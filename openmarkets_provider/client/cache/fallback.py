"""What to do while the store of a fleet can't be used: go on with this host's files, and come back."""

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

TRY_AGAIN = 5.0
"""Seconds for which a store that failed is left alone: a slow one must not cost every call its time-out."""
COPY_SECONDS = 3600.0
"""Seconds for which a copy is of use at the least: how long the record itself is, the store does not tell."""

_BY_FILE = "file:"
_BY_PRIMARY = "primary:"

T = TypeVar("T")


class _Outage:
    """What this process knows of a store that may be out of use.

    :ivar until: when it is tried again, by the clock of the stores; None while it works.
    """

    def __init__(self) -> None:
        self.until: float | None = None
        self.warned = False
        self._lock = threading.Lock()

    def may_try(self, moment: float) -> bool:
        """Tell whether to ask the store: always when it works, else one caller once its time has come."""
        with self._lock:
            if self.until is None:
                return True
            if moment < self.until:
                return False
            self.until = moment + TRY_AGAIN
            return True

    def begin(self, moment: float) -> bool:
        """Note that it failed; tell whether it worked before."""
        with self._lock:
            worked, self.until = self.until is None, moment + TRY_AGAIN
            return worked

    def end(self) -> bool:
        """Note that it answered; tell whether it had failed before."""
        with self._lock:
            failed, self.until = self.until is not None, None
            return failed


_outages: dict[str, _Outage] = {}
# A child warns for itself; and another thread may have held a lock at the moment of the fork.
os.register_at_fork(after_in_child=_outages.clear)


class FallbackStore:
    """A store that goes on with a second one while the first can't be used, and has what was read last from the first.

    All of a process' stores with the same label are in or out of use together. Of an outage, a process warns once.

    :param primary: whatever it raises means that it can't be used: it may be the code of a site.
    :param file: the store of this host.
    :param label: what the primary is called in logs, such as ``Redis (connection 'redis_default')``.
    :param clock: seconds that only grow.
    """

    def __init__(self, primary: Store, file: Store, label: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._primary = primary
        self._file = file
        self._label = label
        self._clock = clock
        self._copied: dict[str, bytes] = {}

    @property
    def name(self) -> str:
        """What the store is called that answers at present."""
        outage = _outages.get(self._label)
        return self._primary.name if outage is None or outage.until is None else self._file.name

    def load(self, key: str) -> bytes | None:
        """Read a record; this host's, where the primary has none, since it may be one that takes none."""

        def load() -> bytes | None:
            data = self._primary.load(key)
            if data is None:
                return self._file.load(key)
            if not isinstance(data, bytes):
                raise TypeError(f"load returned {type(data).__name__} and not bytes or None")
            self._copy(key, data)
            return data

        return self._ask(load, lambda: self._file.load(key))

    def save(self, key: str, data: bytes, seconds: float, lease: str | None = None) -> None:
        """Replace a record, in the store whose lock the lease is of."""

        def save_in_file() -> None:
            self._file.save(key, data, seconds)

        if lease is not None and lease.startswith(_BY_FILE):
            # The others of the fleet are not held off by it: one of them may have saved something newer.
            save_in_file()
            return
        held = lease.removeprefix(_BY_PRIMARY) if lease is not None else None

        def save() -> None:
            self._primary.save(key, data, seconds, held)
            self._copy(key, data)

        self._ask(save, save_in_file)

    def _copy(self, key: str, data: bytes) -> None:
        """Keep on this host, too, what the fleet knows: then an outage costs no request for a token."""
        if self._copied.get(key) != data:
            self._copied[key] = data
            with suppress(OSError):
                if self._file.load(key) != data:
                    self._file.save(key, data, COPY_SECONDS)

    @contextmanager
    def lock(self, key: str, timeout: float) -> Iterator[str | None]:
        """Hold the lock of the primary, or of the file."""
        end = self._clock() + timeout

        def enter(store: Store, prefix: str) -> tuple[AbstractContextManager[str | None], str | None]:
            lock = store.lock(key, max(0.0, end - self._clock()))
            lease = lock.__enter__()
            return lock, None if lease is None else f"{prefix}{lease}"

        lock, lease = self._ask(lambda: enter(self._primary, _BY_PRIMARY), lambda: enter(self._file, _BY_FILE))
        try:
            yield lease
        finally:
            # What was to be done under the lock is done; one that can't be released ends by itself.
            with suppress(Exception):
                lock.__exit__(None, None, None)

    def _ask(self, primary: Callable[[], T], instead: Callable[[], T]) -> T:
        outage = _outages.get(self._label) or _outages.setdefault(self._label, _Outage())
        if outage.may_try(self._clock()):
            try:
                result = primary()
            except Exception as error:  # noqa: BLE001 (the code of a site may fail in any way)
                if outage.begin(self._clock()):
                    self._tell(outage, error)
            else:
                if outage.end():
                    log.info("%s works again: tokens are shared through it.", self._label)
                return result
        return instead()

    def _tell(self, outage: _Outage, error: Exception) -> None:
        level = logging.INFO if outage.warned else logging.WARNING
        outage.warned = True
        log.log(
            level,
            "%s can't be used: %s. Tokens, and waits for an API, are shared on this host only; it is tried again every "
            "%g seconds.",
            self._label,
            (str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}").rstrip("."),
            TRY_AGAIN,
        )
