"""What a store is: where the processes of a host, or of a fleet, share small records. Pure.

A store holds bytes. What they mean, and that nobody can read them without the client secret, is the business of those
who use it; so a store of a site's own (``cache_class`` in the connection) sees neither tokens nor secrets.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

MAX_BYTES = 1 << 16
"""Longest record."""


class Store(Protocol):
    """Where processes share records.

    Threads may share a store, and a forked process may use its parent's. Every method may raise OSError when the
    store can't be used at the moment: the caller then goes on without it. None may block for longer than a few
    seconds beyond what ``timeout`` says.
    """

    @property
    def name(self) -> str:
        """What the store is called in logs and metrics: one word. A plain attribute will do."""

    def load(self, key: str) -> bytes | None:
        """Return what was saved last under a key, or None when there is nothing.

        :param key: 32 hexadecimal digits.
        """

    def save(self, key: str, data: bytes, seconds: float, lease: str | None = None) -> None:
        """Replace what is held under a key, at once and as a whole.

        :param data: what to keep; at most MAX_BYTES.
        :param seconds: for how long it is of use; after that it may be dropped, and should be some day.
        :param lease: what :meth:`lock` gave. A store whose locks can expire saves nothing when this one has: whoever
            came next has saved something newer.
        """

    def lock(self, key: str, timeout: float) -> AbstractContextManager[str | None]:
        """Hold a key alone, against all others who share the store.

        The lock of a process that has died must become free by itself within seconds.

        :param timeout: longest time in seconds to wait for it.
        :return: gives a text that stands for this hold, for :meth:`save`; None when somebody else kept it.
        """
