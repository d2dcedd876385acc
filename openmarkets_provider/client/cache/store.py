"""The protocol of a store, in which the processes of one host, or of all hosts, share small entries. Pure.

A store gets encrypted bytes only. A custom store (``[openmarkets] token_store`` in ``airflow.cfg``) therefore sees
neither tokens nor secrets.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

MAX_BYTES = 1 << 16
"""Longest entry in bytes."""


class Store(Protocol):
    """Where processes share entries.

    Threads may share a store, and a forked process may use its parent's. Any method may raise OSError if the store is
    not available; the caller then continues without it. No method may block for more than a few seconds, except
    ``lock``, which may also wait for its ``timeout``.
    """

    @property
    def name(self) -> str:
        """The name in logs and metrics: one word. May be a plain attribute."""

    def load(self, key: str) -> bytes | None:
        """Return the entry that was saved last under a key, or None.

        :param key: 32 hexadecimal digits.
        """

    def save(self, key: str, data: bytes, seconds: float, lease: str | None = None) -> None:
        """Replace the entry of a key, atomically.

        :param data: the entry; at most MAX_BYTES.
        :param seconds: for how long it is useful. After that the store should delete it eventually.
        :param lease: from :meth:`lock`. A store whose locks expire saves nothing if this one has expired, because the
            next owner may have saved something newer.
        """

    def lock(self, key: str, timeout: float) -> AbstractContextManager[str | None]:
        """Acquire the lock of a key. It excludes everyone who shares the store.

        The lock of a process that has died must become free within seconds.

        :param timeout: longest wait in seconds; 0 tries once.
        :return: a context with a lease for :meth:`save`, a text that identifies this acquisition, or None if the lock
            was not free in time.
        """
