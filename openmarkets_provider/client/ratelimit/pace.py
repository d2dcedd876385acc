"""How fast the requests of one run may follow each other: as fast as they can, until a server says 429. Pure."""

from __future__ import annotations

import threading

_FIRST_GAP = 0.02
_MAX_GAP = 5.0
_RECOVERY = 0.9


class Pace:
    """Decides when the next request may go.

    A 429 holds all of the run's requests back for as long as the one that met it waits, and doubles the gap between
    any two after that; every success makes the gap a tenth shorter. Threads may share it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._resume = float("-inf")
        self._next = float("-inf")
        self._gap = 0.0

    def delay(self, now: float) -> float:
        """Return for how many seconds a request has to wait; at 0 it goes, and the one after it keeps the gap."""
        with self._lock:
            at = max(self._resume, self._next)
            if at > now:
                return at - now
            self._next = now + self._gap
            return 0.0

    def slow_down(self, now: float, wait: float) -> bool:
        """Slow down: a server said 429, and its request waits for so many seconds.

        :return: False when the run rested already: then at most the end of that rest has moved.
        """
        with self._lock:
            # Requests that were on their way together are one reason to slow down, and not several.
            is_first = now >= self._resume
            if is_first:
                self._gap = min(max(2 * self._gap, _FIRST_GAP), _MAX_GAP)
            self._resume = max(self._resume, now + wait)
            return is_first

    def speed_up(self) -> None:
        """Go a little faster."""
        with self._lock:
            self._gap = self._gap * _RECOVERY if self._gap > _FIRST_GAP / 2 else 0.0
