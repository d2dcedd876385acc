"""Log lines about the progress of a long run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

PROGRESS_EVERY = 5.0
"""Seconds between two lines."""


class Progress:
    """Logs the progress of a long run every few seconds.

    :param name: the name of the run in the lines.
    :param total: number of calls of the run.
    :param count_earlier: returns the number of calls that were answered in an earlier attempt.
    """

    def __init__(self, name: str, total: int, count_earlier: Callable[[], int]) -> None:
        self._name = name
        self._total = total
        self._count_earlier = count_earlier
        self._calls = self._rows = 0
        self._started = self._logged_at = time.monotonic()

    def add(self, count: int) -> None:
        """Count a call, with its number of rows."""
        self._calls += 1
        self._rows += count
        self.tick()

    def tick(self) -> None:
        """Log a line if the last one is old enough."""
        now = time.monotonic()
        if now - self._logged_at < PROGRESS_EVERY or self._calls == self._total:
            return
        self._logged_at = now
        earlier = self._count_earlier()
        log.info(
            "%s: %d of %d calls done%s, %d rows, %.0f rows/s.",
            self._name,
            self._calls,
            self._total,
            f" ({earlier} in an earlier attempt)" if earlier else "",
            self._rows,
            self._rows / (now - self._started),
        )
