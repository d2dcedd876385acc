"""Holds: back-offs from an API after a 429. They are shared like tokens, and checked before every call."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import random
import threading
from collections.abc import Callable
from weakref import WeakKeyDictionary

import msgspec

from openmarkets_provider.client.cache.clock import Clock, Instant, Seconds, now
from openmarkets_provider.client.cache.crypto import EntryCipher, prepare
from openmarkets_provider.client.cache.entry import SharedEntry
from openmarkets_provider.client.cache.store import Store
from openmarkets_provider.client.metrics import NO_METRICS, Metrics

log = logging.getLogger(__name__)

MAX_HOLD = 3600.0
"""Longest hold in seconds."""
DEFAULT_HOLD = 5.0
"""Length of a hold in seconds if the 429 has no ``Retry-After``."""
MAX_SPREAD = 15.0
"""Longest time in seconds over which the calls that wait for a hold are spread."""
READ_EVERY = 1.0
"""Seconds between reads of the store by an event loop: each uses a thread."""
_READ_SHARE = 0.02
"""Largest share of its time for which a process reads the store. It limits the cost of a slow store."""
_LOCK_WAIT = 2.0


@prepare
class Hold(msgspec.Struct, frozen=True):
    """A back-off from an API.

    :ivar since: when the 429 arrived.
    :ivar seconds: its length.
    """

    since: Instant
    seconds: Seconds

    def remaining(self, moment: Instant) -> float:
        """Return the remaining seconds: at most its length, even if clocks differ."""
        return max(0.0, min(self.seconds - self.since.elapsed(moment), self.seconds, MAX_HOLD))


class OnHold(Exception):
    """Nothing was sent: the API is on hold for another ``seconds``."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"on hold for {seconds:g} s")
        self.seconds = seconds


class _Memory:
    """The hold of one API in this process.

    :ivar stored: the last hold that was read from the store, with the clocks of the machine that wrote it.
    :ivar read_at: when the store was last read, in seconds since boot.
    :ivar read_time: how many seconds this took.
    """

    def __init__(self) -> None:
        self.hold: Hold | None = None
        self.stored: Hold | None = None
        self.read_at = float("-inf")
        self.read_time = 0.0

    def prolong(self, hold: Hold, moment: Instant) -> None:
        """Replace the hold, unless it lasts longer than the new one."""
        with _lock:
            if self.remaining(moment) < hold.remaining(moment):
                self.hold = hold

    def remaining(self, moment: Instant) -> float:
        return self.hold.remaining(moment) if self.hold is not None else 0.0


_memories: dict[str, _Memory] = {}
_lock = threading.Lock()


def reset() -> None:
    """Forget the holds. New and forked processes read the store."""
    global _lock
    # Another thread may have held it during a fork.
    _lock = threading.Lock()
    _memories.clear()


os.register_at_fork(after_in_child=reset)


class Holds:
    """The holds of one client, one for each API. Clients with the same credentials share them.

    :param key: returns the key of an API's entry.
    :param store: shared with other processes. None keeps holds in the memory of this process.
    :param cipher: encrypts entries of the store.
    """

    def __init__(
        self,
        *,
        key: Callable[[str], str],
        store: Store | None,
        cipher: EntryCipher,
        metrics: Metrics = NO_METRICS,
        clock: Clock = now,
    ) -> None:
        self._is_shared = store is not None
        self._shared = functools.cache(lambda api: SharedEntry(store, key(api), cipher, Hold))
        self._metrics = metrics
        self._clock = clock
        self._reports: dict[str, Hold | None] = {}
        self._reads: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, asyncio.Lock]]
        self._reads = WeakKeyDictionary()

    def check(self, api: str) -> None:
        """Check that an API may be called.

        :raises OnHold: it may not be called yet.
        """
        memory = self._memory(api)
        if self._needs_read(memory, memory.read_time / _READ_SHARE):
            self._read(api)
        self._require_none(memory)

    async def acheck(self, api: str) -> None:
        """Check that an API may be called, as :meth:`check`. Reads the store in a thread, every READ_EVERY seconds."""
        memory = self._memory(api)
        if self._needs_read(memory, READ_EVERY):
            reads = self._reads.setdefault(asyncio.get_running_loop(), {})
            async with reads.setdefault(api, asyncio.Lock()):
                try:
                    if self._needs_read(memory, READ_EVERY):
                        await asyncio.to_thread(self._read, api)
                finally:
                    # A lock that tasks have waited for references its event loop.
                    reads.pop(api, None)
        self._require_none(memory)

    def record(self, api: str, seconds: float | None) -> None:
        """Share that an API answered 429.

        :param seconds: its ``Retry-After``; None if it has none.
        """
        self._share(api, self._start(api, seconds))

    async def arecord(self, api: str, seconds: float | None) -> None:
        """Share a 429, as :meth:`record`: in this process immediately, with other processes in a thread."""
        hold = self._start(api, seconds)
        if self._is_shared:
            await asyncio.to_thread(self._share, api, hold)

    def report_wait(self, api: str, left: float, wait: float) -> None:
        """Count a wait, and log the first one of each hold, since many calls of a run may wait.

        :param left: the remaining seconds of the hold.
        :param wait: for how many seconds the call waits.
        """
        self._metrics.count(f"ratelimit.waits.{api}")
        self._metrics.time("ratelimit.wait_time", wait)
        hold = self._memory(api).hold
        if self._reports.get(api) is not hold:
            self._reports[api] = hold
            log.info(
                "The %s API asked another call to wait (429), and %.1f s of that are left: waiting %.1f s.",
                api,
                left,
                wait,
            )

    def _memory(self, api: str) -> _Memory:
        key = self._shared(api).key
        return _memories.get(key) or _memories.setdefault(key, _Memory())

    def _start(self, api: str, seconds: float | None) -> Hold:
        self._metrics.count(f"ratelimit.replies.{api}")
        hold = Hold(self._clock(), min(DEFAULT_HOLD if seconds is None else seconds, MAX_HOLD))
        self._memory(api).prolong(hold, hold.since)
        return hold

    def _share(self, api: str, hold: Hold) -> None:
        if not self._is_shared or not hold.seconds:
            return
        shared = self._shared(api)
        with shared.lock(_LOCK_WAIT) as lease:
            stored = shared.load()
            if stored is None or stored.remaining(moment := self._clock()) < hold.remaining(moment):
                shared.save(hold, hold.seconds, lease)

    def _needs_read(self, memory: _Memory, seconds: float) -> bool:
        return self._is_shared and self._clock().boot - memory.read_at >= seconds

    def _read(self, api: str) -> None:
        memory = self._memory(api)
        start = self._clock()
        stored, moment = self._shared(api).load(), self._clock()
        if stored is not None and stored != memory.stored:
            memory.stored = stored
            # Convert to the clocks of this machine: another machine's clock may be wrong.
            memory.prolong(Hold(moment, stored.remaining(moment)), moment)
        memory.read_at = moment.boot
        memory.read_time = moment.boot - start.boot

    def _require_none(self, memory: _Memory) -> None:
        seconds = memory.remaining(self._clock())
        if seconds > 0:
            raise OnHold(seconds)


def spread(seconds: float) -> float:
    """Return a random number of seconds to wait after a hold, so that waiting calls don't all resume at once.

    :param seconds: the length of the wait; 0 gives 0.
    """
    if not seconds:
        return 0.0
    return random.uniform(0.0, min(max(1.0, seconds / 2), MAX_SPREAD))  # noqa: S311
