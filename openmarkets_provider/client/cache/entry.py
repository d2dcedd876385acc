"""One entry of a store, for tokens and holds: encrypted and typed. Faults of the store never fail a task."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Generic, TypeVar

from openmarkets_provider.client.cache.crypto import EntryCipher
from openmarkets_provider.client.cache.store import Store

log = logging.getLogger(__name__)

T = TypeVar("T")

_warnings: set[str] = set()
"""The names of the stores that this process has warned about."""


def reset() -> None:
    """Forget which warnings were logged. New and forked processes log their own."""
    _warnings.clear()


os.register_at_fork(after_in_child=reset)


class SharedEntry(Generic[T]):
    """A value that processes share under one key.

    If the store raises OSError, the caller continues without it: there is no entry, nothing is saved, and there is no
    lock. Each process logs one warning per store.

    :param store: None shares nothing: there is never an entry, and the lock is always free.
    :param key: the key in the store.
    :param cipher: encrypts the value.
    :param kind: the type of the value, a msgspec struct.
    """

    def __init__(self, store: Store | None, key: str, cipher: EntryCipher, kind: type[T]) -> None:
        self._store = store
        self.key = key
        self._cipher = cipher
        self._kind = kind

    @property
    def name(self) -> str:
        """The name of the store, for metrics."""
        return self._store.name if self._store is not None else "memory"

    def load(self) -> T | None:
        """Read the value; None if it is missing or unreadable."""
        if self._store is None:
            return None
        try:
            data = self._store.load(self.key)
        except OSError as error:
            _warn(self._store, error)
            return None
        return None if data is None else self._cipher.decrypt(self.key, data, self._kind)

    def save(self, value: T, seconds: float, lease: str | None = None) -> None:
        """Replace the value.

        :param seconds: for how long it is useful.
        :param lease: from :meth:`lock`.
        """
        if self._store is None:
            return
        try:
            self._store.save(self.key, self._cipher.encrypt(self.key, value), seconds, lease)
        except OSError as error:
            _warn(self._store, error)

    @contextmanager
    def lock(self, timeout: float) -> Iterator[str | None]:
        """Acquire the lock of the entry.

        :param timeout: seconds to wait, plus a random part of up to half as much. If the owner hangs, waiting callers
            then continue one after another, and most find the value that an earlier one has saved.
        :return: a context with the lease for :meth:`save`, or None if the lock was not free in time.
        """
        with ExitStack() as stack:
            lease: str | None = "none"
            if self._store is not None:
                try:
                    # Not for cryptography.
                    wait = timeout * random.uniform(1.0, 1.5)  # noqa: S311
                    lease = stack.enter_context(self._store.lock(self.key, wait))
                except OSError as error:
                    _warn(self._store, error)
            yield lease


def _warn(store: Store, error: OSError) -> None:
    if store.name not in _warnings:
        _warnings.add(store.name)
        log.warning(
            "The %s store can't be used: %s. Access tokens are not shared, so tasks may request more of them.",
            store.name,
            error,
        )
