"""The pace of the requests of one run: unlimited until a server answers 429. Pure."""

from __future__ import annotations

import threading

_FIRST_GAP = 0.02
_MAX_GAP = 5.0
_RECOVERY = 0.9


class Pace:
    """Decides when the next request may be sent.

    After a 429, all requests of the run pause until the refused one is sent again. The gap between requests doubles
    after a 429, and becomes a tenth shorter after each success. Threads may share it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._resume = float("-inf")
        self._next = float("-inf")
        self._gap = 0.0

    def delay(self, now: float) -> float:
        """Return for how many seconds a request has to wait. 0 sends it, and the gap to the next one starts."""
        with self._lock:
            at = max(self._resume, self._next)
            if at > now:
                return at - now
            self._next = now + self._gap
            return 0.0

    def slow_down(self, now: float, wait: float) -> bool:
        """Slow down after a 429, and pause.

        :param wait: length of the pause in seconds.
        :return: False if the run was already pausing. The pause may have become longer.
        """
        with self._lock:
            # Several 429s to concurrent requests slow the run down once.
            is_first = now >= self._resume
            if is_first:
                self._gap = min(max(2 * self._gap, _FIRST_GAP), _MAX_GAP)
            self._resume = max(self._resume, now + wait)
            return is_first

    def speed_up(self) -> None:
        """Make the gap a little shorter, after a success."""
        with self._lock:
            self._gap = self._gap * _RECOVERY if self._gap > _FIRST_GAP / 2 else 0.0
