"""Access tokens: what is remembered of one, and when to use, renew, ask or give up. Pure.

A record is what processes share for one key: the current token, the latest failure to get one,
or both. Its life is decided by :func:`decide` alone, whatever store holds it.
"""

from __future__ import annotations

import enum
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec

from openmarkets_provider.exceptions import (
    OpenmarketsAuthError,
    OpenmarketsError,
    OpenmarketsRateLimited,
    from_dict,
)

RENEW_AHEAD = 300.0
"""Seconds before its end from which a token is renewed, for lifetimes that are long enough."""
MARGIN = 30.0
"""Seconds before its end from which a token isn't sent any more: it must still be good on arrival."""
REFUSED_AGAIN = 30.0
"""Seconds in which a replacement that is refused as well isn't replaced: a further token would not help."""
CLOCK_SKEW = 60.0
"""Seconds by which the wall clock of the writer of a record may be ahead of ours."""
MAX_NEGATIVE = 3600.0
"""Longest time in seconds for which a failure is held against everyone."""


Seconds = Annotated[float, msgspec.Meta(ge=-1e12, le=1e12)]
"""What a clock can show; checked where a record is read: another version, or a broken clock, may have written it."""


class Instant(msgspec.Struct, frozen=True):
    """A moment by two clocks: the wall's, and the seconds since a boot, which never jump.

    :ivar wall: seconds since 1970, UTC.
    :ivar boot: seconds since the machine started, sleep included.
    :ivar boot_id: which start of which machine that was.
    """

    wall: Seconds
    boot: Seconds
    boot_id: str

    def elapsed(self, now: Instant) -> float:
        """Seconds since this moment by the clock that says more; infinite when it lies in the future."""
        wall = now.wall - self.wall
        if self.boot_id == now.boot_id:
            return max(wall, now.boot - self.boot)
        return wall if wall > -CLOCK_SKEW else math.inf


Clock = Callable[[], Instant]


def now() -> Instant:
    """Read both clocks."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return Instant(time.time(), time.clock_gettime(clock), _boot_id())


@functools.cache
def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        # Without an identity no other process can tell that it shares our boot: the wall clock decides.
        return f"unknown-{time.time_ns()}"


class Token(msgspec.Struct, frozen=True):
    """An access token.

    :ivar value: the bearer token; never shown.
    :ivar scope: the OAuth scope it is good for.
    :ivar obtained: when it was asked for.
    :ivar lifetime: seconds that it lives from then on.
    :ivar replacement: True when it took the place of a token that an API had refused.
    """

    value: str
    scope: str
    obtained: Instant
    lifetime: Seconds
    replacement: bool = False

    def __repr__(self) -> str:
        """Show everything but the token itself."""
        return f"Token(scope={self.scope!r}, lifetime={self.lifetime:g}, value=***)"

    def remaining(self, moment: Instant) -> float:
        """Seconds that it may still be sent."""
        return self.lifetime - min(MARGIN, self.lifetime / 10) - self.obtained.elapsed(moment)

    def is_fading(self, moment: Instant) -> bool:
        """Tell whether it is time to renew it."""
        return self.lifetime - self.obtained.elapsed(moment) < min(RENEW_AHEAD, self.lifetime / 5)


class Failure(msgspec.Struct, frozen=True):
    """A failure to get a token, shared so that an identity server in trouble is asked once and not by everyone.

    :ivar error: the error as plain data.
    :ivar at: when it happened.
    :ivar seconds: how long nobody asks again.
    """

    error: dict[str, Any]
    at: Instant
    seconds: Seconds

    def __post_init__(self) -> None:
        """Refuse what no exception can be made of: a later version of this package may know more kinds of errors.

        :raises ValueError, TypeError: the error's data are of something else.
        """
        self.recreate(self.at)

    @classmethod
    def of(cls, error: OpenmarketsError, moment: Instant) -> Failure:
        """Make the record of an error."""
        return cls(error.as_dict(), moment, negative_seconds(error))

    def is_active(self, moment: Instant) -> bool:
        """Tell whether it still holds everyone back."""
        return self.at.elapsed(moment) < self.seconds

    def recreate(self, moment: Instant) -> OpenmarketsError:
        """Make the exception again, with the time that is left to wait."""
        error = from_dict(self.error)
        if error.transient:
            # The time of the hold, too: an attempt within it would get this same failure.
            error.retry_after = max(0.0, (error.retry_after or self.seconds) - self.at.elapsed(moment))
        return error


def negative_seconds(error: OpenmarketsError) -> float:
    """Return for how long a failure is held against everyone who needs the same token."""
    if error.retry_after is not None:
        seconds = error.retry_after
    elif isinstance(error, OpenmarketsRateLimited):
        seconds = 5.0
    elif isinstance(error, OpenmarketsAuthError):
        seconds = 300.0 if error.status == 400 else 60.0
    else:
        seconds = 2.0
    return min(seconds, MAX_NEGATIVE)


class Record(msgspec.Struct, frozen=True):
    """What processes know of one key.

    :ivar written: when it was written; of two records the later one counts.
    """

    written: Instant
    token: Token | None = None
    failure: Failure | None = None

    def seconds_of_use(self) -> float:
        """Seconds from when it was written until all that it holds is over."""
        ends = [0.0]
        if self.token is not None:
            ends.append(self.token.obtained.wall + self.token.lifetime - self.written.wall)
        if self.failure is not None:
            ends.append(self.failure.at.wall + self.failure.seconds - self.written.wall)
        return max(ends)

    def __repr__(self) -> str:
        """Show what it holds; never the token."""
        return f"Record(token={self.token!r}, failure={self.failure and self.failure.error['kind']})"


class Step(enum.Enum):
    """What to do next."""

    USE = enum.auto()
    """Send the token."""
    RENEW = enum.auto()
    """The token is good but near its end: one caller gets the next one, the others send this one."""
    ASK = enum.auto()
    """There is no token to send: get one."""


def decide(record: Record | None, moment: Instant, rejected: str | None) -> tuple[Step, Token | None]:
    """Decide what a caller does with what is known.

    :param record: what is known; None when nothing is.
    :param rejected: the token that an API just refused to this caller, if any.
    :return: the step, and the token to use with USE and RENEW. USE with the rejected token itself means that
        no better one is to be had.
    :raises OpenmarketsError: the shared failure, while it is recent and there is no token to send.
    """
    if record is None:
        return Step.ASK, None
    token = record.token
    held_back = record.failure is not None and record.failure.is_active(moment)
    if token is not None and token.value == rejected:
        if token.replacement and token.obtained.elapsed(moment) < REFUSED_AGAIN:
            return Step.USE, token
        token = None
    if token is not None and token.remaining(moment) > 0:
        return (Step.RENEW if token.is_fading(moment) and not held_back else Step.USE), token
    if held_back and record.failure is not None:
        raise record.failure.recreate(moment)
    return Step.ASK, None
