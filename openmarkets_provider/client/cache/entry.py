"""One entry of a store, as tokens and holds use it: encrypted, typed, and never a reason to fail a task."""

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
"""The names of the stores that this process has warned of."""


def reset() -> None:
    """Forget the warnings: a new process, and a forked one, logs its own."""
    _warnings.clear()


os.register_at_fork(after_in_child=reset)


class SharedEntry(Generic[T]):
    """A value that the processes of a host, or of all hosts, share under one key.

    A store that raises OSError costs one warning per process and store. The caller goes on as if the entry were
    missing, unsaved or unlocked.

    :param store: None shares nothing: the entry is always missing, and its lock always free.
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
        """Read the value; None when it is missing or unreadable."""
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

        :param seconds: how long it is of use.
        :param lease: what :meth:`lock` gave.
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

        :param timeout: seconds to wait, and up to half as long again: when the owner hangs, those who wait for it
            continue one after another, and most of them find what an earlier one has saved.
        :return: gives the lease for :meth:`save`, or None when the lock was not free in time.
        """
        with ExitStack() as stack:
            lease: str | None = "none"
            if self._store is not None:
                try:
                    # Not for secrecy.
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
