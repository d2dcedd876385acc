"""Times that processes and hosts can compare."""

# No postponed annotations: msgspec would have to evaluate them in every new process.
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
    """A moment on two clocks: the wall clock, and the clock since boot, which never jumps.

    :ivar wall: seconds since the epoch (1970, UTC).
    :ivar boot: seconds since the machine booted, sleep included.
    :ivar boot_id: identifies the boot.
    """

    wall: Seconds
    boot: Seconds
    boot_id: str

    def elapsed(self, now: Self) -> float:
        """Return the seconds since this moment, by the clock that shows more; infinity if it is in the future."""
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
        # Unbuffered reads are faster than read_text, and every task reads this once.
        with Path("/proc/sys/kernel/random/boot_id").open("rb", buffering=0) as file:
            return file.read().decode().strip()
    except OSError:
        # Processes can't know that they share a boot, so only the wall clock counts.
        return f"unknown-{time.time_ns()}"
