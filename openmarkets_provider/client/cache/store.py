"""The protocol of a store: where the processes of a host, or of all hosts, share small entries. Pure.

A store keeps bytes, encrypted by those who use it. So a store of a site's own (``[openmarkets] token_store`` in
``airflow.cfg``) sees neither tokens nor secrets.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

MAX_BYTES = 1 << 16
"""Longest entry in bytes."""


class Store(Protocol):
    """Where processes share entries.

    Threads may share a store, and a forked process may use its parent's. Any method may raise OSError when the
    store can't be used at the moment; the caller then goes on without it. No method may block for longer than a few
    seconds, beyond the ``timeout`` of a lock.
    """

    @property
    def name(self) -> str:
        """The name in logs and metrics: one word. A plain attribute will do."""

    def load(self, key: str) -> bytes | None:
        """Return the entry that was saved last under a key, or None.

        :param key: 32 hexadecimal digits.
        """

    def save(self, key: str, data: bytes, seconds: float, lease: str | None = None) -> None:
        """Replace the entry of a key, atomically.

        :param data: the entry; at most MAX_BYTES.
        :param seconds: how long it is of use; after that it may be deleted, and should be eventually.
        :param lease: what :meth:`lock` gave. A store whose locks expire saves nothing if this one has expired: the
            next owner may have saved something newer.
        """

    def lock(self, key: str, timeout: float) -> AbstractContextManager[str | None]:
        """Acquire the lock of a key, against all others who share the store.

        The lock of a process that has died must become free within seconds.

        :param timeout: longest wait in seconds; 0 tries once.
        :return: gives a lease, a text that identifies this acquisition, for :meth:`save`; None when the lock was not
            free in time.
        """
