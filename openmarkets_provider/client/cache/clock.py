"""Clocks that processes, and hosts, can compare. Pure, but for reading them."""

# Without postponed annotations, which msgspec would evaluate in every fresh process, when a token is looked up.
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Self

import msgspec

CLOCK_SKEW = 60.0
"""Seconds by which the wall clock of another host may be ahead of ours."""

Seconds = Annotated[float, msgspec.Meta(ge=-1e12, le=1e12)]
"""Seconds in an entry. The bounds are checked when an entry is decoded: a broken clock may have written it."""


class Instant(msgspec.Struct, frozen=True):
    """A moment on two clocks: the wall clock, and the seconds since boot, which never jump.

    :ivar wall: seconds since 1970, UTC.
    :ivar boot: seconds since the machine booted, sleep included.
    :ivar boot_id: identifies the boot.
    """

    wall: Seconds
    boot: Seconds
    boot_id: str

    def elapsed(self, now: Self) -> float:
        """Return the seconds since this moment: the larger figure of the two clocks; infinite for a future moment."""
        wall = now.wall - self.wall
        if self.boot_id == now.boot_id:
            return max(wall, now.boot - self.boot)
        return wall if wall > -CLOCK_SKEW else math.inf


Clock = Callable[[], Instant]

_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now() -> Instant:
    """Read both clocks."""
    return Instant(time.time(), time.clock_gettime(_BOOT_CLOCK), _boot_id())


@functools.cache
def _boot_id() -> str:
    try:
        # Unbuffered, which is faster than read_text: every task reads it once.
        with Path("/proc/sys/kernel/random/boot_id").open("rb", buffering=0) as file:
            return file.read().decode().strip()
    except OSError:
        # No other process can tell that it shares our boot, so only the wall clock counts.
        return f"unknown-{time.time_ns()}"
