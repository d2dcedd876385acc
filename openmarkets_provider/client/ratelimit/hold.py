"""What a 429 tells everyone: for how long an API is left alone. Kept where tokens are, looked at before every call."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import msgspec

from openmarkets_provider.client.auth.token import Clock, Instant, Seconds, now
from openmarkets_provider.client.cache.crypto import RecordCipher
from openmarkets_provider.client.cache.store import Store
from openmarkets_provider.client.metrics import NO_METRICS, Metrics

log = logging.getLogger(__name__)

MAX_HOLD = 3600.0
"""Longest time in seconds for which a 429 is held against everyone."""
DEFAULT_HOLD = 5.0
"""Seconds for which an API is left alone that said 429 and not for how long."""
MAX_SPREAD = 15.0
"""Longest time in seconds over which those who were told to wait come back."""
LOOK_EVERY = 1.0
"""Seconds for which an event loop goes by what it has seen in the store: a look takes a thread."""
_LOOKS = 0.1
"""Largest part of its time that a process looks: a slow store must not slow every call."""
_LOCK_WAIT = 2.0


class Hold(msgspec.Struct, frozen=True):
    """An API is to be left alone.

    :ivar since: when the 429 came.
    :ivar seconds: for how long from then on.
    """

    since: Instant
    seconds: Seconds

    def remaining(self, moment: Instant) -> float:
        """Seconds that are left; never more than there were, however clocks differ."""
        return max(0.0, min(self.seconds - self.since.elapsed(moment), self.seconds, MAX_HOLD))


class Held(Exception):
    """Nothing was sent: the API is to be left alone for ``seconds`` more."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"held for {seconds:g} s")
        self.seconds = seconds


class _Known:
    """What this process knows of one API."""

    def __init__(self) -> None:
        self.hold: Hold | None = None
        self.seen: Hold | None = None
        self.looked = float("-inf")
        self.took = 0.0

    def remember(self, hold: Hold, moment: Instant) -> None:
        """Take a hold over unless a longer one is known."""
        with _lock:
            if self.hold is None or self.hold.remaining(moment) < hold.remaining(moment):
                self.hold = hold

    def read(self, stored: Hold | None, moment: Instant) -> None:
        """Take over what a store holds, from now on by this machine's clocks: another one's may be behind for ever."""
        if stored is not None and stored != self.seen:
            self.seen = stored
            self.remember(Hold(moment, stored.remaining(moment)), moment)
        self.looked = time.monotonic()

    def left(self, moment: Instant) -> float:
        hold = self.hold
        return hold.remaining(moment) if hold is not None else 0.0


_known: dict[str, _Known] = {}
_lock = threading.Lock()


def _after_fork() -> None:
    # Another thread may have held it at the moment of the fork; it does not exist in the child.
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


class Throttle:
    """The holds of one client, one for each API, shared with all who use the same client of Openmarkets.

    A store that can't be used is no error: then this process goes by what it has met itself.

    :param key: API to the key of its record.
    :param stores: shared with other processes; the nearest, which is first, is used. None keeps holds in the memory of
        this process.
    :param cipher: seals what is stored.
    """

    def __init__(
        self,
        *,
        key: Callable[[str], str],
        stores: Sequence[Store],
        cipher: RecordCipher,
        metrics: Metrics = NO_METRICS,
        clock: Clock = now,
    ) -> None:
        self._key = key
        self._store = stores[0] if stores else None
        self._cipher = cipher
        self._metrics = metrics
        self._clock = clock
        self._told: dict[str, Hold | None] = {}
        self._looks: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, asyncio.Lock]]
        self._looks = WeakKeyDictionary()

    def check(self, api: str) -> None:
        """Look whether an API may be called.

        :raises Held: not yet.
        """
        key = self._key(api)
        if self._is_due(key, _of(key).took / _LOOKS):
            self._look(key)
        self._raise_if_held(key)

    async def acheck(self, api: str) -> None:
        """As :meth:`check`, without ever blocking the event loop, and with a look at the store now and then only."""
        key = self._key(api)
        if self._is_due(key, LOOK_EVERY):
            looks = self._looks.setdefault(asyncio.get_running_loop(), {})
            async with looks.setdefault(api, asyncio.Lock()):
                if self._is_due(key, LOOK_EVERY):
                    await asyncio.to_thread(self._look, key)
        self._raise_if_held(key)

    def limited(self, api: str, seconds: float | None) -> None:
        """Tell everyone that an API said 429.

        :param seconds: what its ``Retry-After`` asks for; None when it has none.
        """
        self._share(api, self._note(api, seconds))

    async def alimited(self, api: str, seconds: float | None) -> None:
        """As :meth:`limited`: those on the event loop know at once, the others as soon as the store does."""
        hold = self._note(api, seconds)
        if self._store is not None:
            await asyncio.to_thread(self._share, api, hold)

    def _note(self, api: str, seconds: float | None) -> Hold:
        self._metrics.count(f"throttle.limited.{api}")
        hold = Hold(self._clock(), min(DEFAULT_HOLD if seconds is None else seconds, MAX_HOLD))
        _of(self._key(api)).remember(hold, hold.since)
        return hold

    def _share(self, api: str, hold: Hold) -> None:
        if self._store is None or not hold.seconds:
            return
        key = self._key(api)
        try:
            with self._store.lock(key, _LOCK_WAIT) as lease:
                stored = self._load(self._store, key)
                if stored is None or stored.remaining(moment := self._clock()) < hold.remaining(moment):
                    self._store.save(key, self._cipher.seal(key, hold), hold.seconds, lease)
        except OSError as error:
            log.debug("A 429 could not be shared through the %s store: %s", self._store.name, error)

    def tell(self, api: str, left: float, wait: float) -> None:
        """Note a wait, and log the first one of each hold: a run may have many calls that wait."""
        self._metrics.count(f"throttle.held.{api}")
        self._metrics.time("throttle.wait", wait)
        hold = _of(self._key(api)).hold
        if self._told.get(api) is not hold:
            self._told[api] = hold
            log.info(
                "The %s API told another call to wait (429), and %.1f s of that are left: waiting %.1f s.",
                api,
                left,
                wait,
            )

    def _is_due(self, key: str, seconds: float) -> bool:
        return self._store is not None and time.monotonic() - _of(key).looked >= seconds

    def _look(self, key: str) -> None:
        if self._store is None:
            return
        began = time.monotonic()
        try:
            stored = self._load(self._store, key)
        except OSError as error:
            log.debug("The %s store can't tell whether an API is held: %s", self._store.name, error)
            stored = None
        known = _of(key)
        known.read(stored, self._clock())
        known.took = known.looked - began

    def _load(self, store: Store, key: str) -> Hold | None:
        data = store.load(key)
        return self._cipher.open(key, data, Hold) if data is not None else None

    def _raise_if_held(self, key: str) -> None:
        left = _of(key).left(self._clock())
        if left > 0:
            raise Held(left)


def _of(key: str) -> _Known:
    return _known.get(key) or _known.setdefault(key, _Known())


def spread(seconds: float) -> float:
    """Return how many seconds longer than asked one of many waits, so that they don't all come back at once.

    :param seconds: what they were all asked to wait; 0 is at once for everyone.
    """
    if not seconds:
        return 0.0
    return random.uniform(0.0, min(max(1.0, seconds / 2), MAX_SPREAD))  # noqa: S311
