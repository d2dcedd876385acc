"""Access tokens and their life: when to use, refresh or request one, and when to give up. Pure.

Processes share one entry per key: the current token, the latest failure to get one, or both. :func:`decide` alone
says what a caller does with it, whatever store it comes from.
"""

# Without postponed annotations, which msgspec would evaluate in every fresh process, when a token is looked up.
import enum
from typing import Any, Self

import msgspec

from openmarkets_provider.client.cache.clock import Instant, Seconds
from openmarkets_provider.client.cache.crypto import prepare
from openmarkets_provider.exceptions import (
    OpenmarketsAuthError,
    OpenmarketsError,
    OpenmarketsRateLimited,
    from_dict,
)

REFRESH_AHEAD = 300.0
"""Seconds before its end from which a token is refreshed, for lifetimes that are long enough."""
MARGIN = 30.0
"""Seconds before its end from which a token isn't sent any more: it must still be valid on arrival."""
REPLACEMENT_TRIAL = 30.0
"""Seconds in which a replacement that is rejected, too, isn't replaced: another token would not help."""
UNKNOWN_LIFETIME = 60.0
"""Lifetime in seconds of a token for which the identity server names none."""
MAX_FAILURE = 3600.0
"""Longest time in seconds for which a failure is shared."""


class Token(msgspec.Struct, frozen=True):
    """An access token.

    :ivar value: the bearer token; never shown.
    :ivar scope: the OAuth scope that it is valid for.
    :ivar obtained: when it was requested.
    :ivar lifetime: seconds that it is valid from then on.
    :ivar replacement: True when it replaced a token that an API had rejected.
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
        """Return the seconds that it may still be sent."""
        return self.lifetime - min(MARGIN, self.lifetime / 10) - self.obtained.elapsed(moment)

    def needs_refresh(self, moment: Instant) -> bool:
        """Return whether it is near its end."""
        return self.lifetime - self.obtained.elapsed(moment) < min(REFRESH_AHEAD, self.lifetime / 5)


class Failure(msgspec.Struct, frozen=True):
    """A failure to get a token. It is shared, so that an identity server in trouble gets one request and not many.

    :ivar error: the error as plain data.
    :ivar at: when it happened.
    :ivar seconds: how long nobody sends another request.
    """

    error: dict[str, Any]
    at: Instant
    seconds: Seconds

    def __post_init__(self) -> None:
        """Reject data that no exception can be made from: a later version of this package may have other errors.

        :raises ValueError, TypeError: the data are not those of an error.
        """
        self.recreate(self.at)

    @classmethod
    def of(cls, error: OpenmarketsError, moment: Instant) -> Self:
        """Turn an error into a failure that can be shared."""
        return cls(error.as_dict(), moment, failure_seconds(error))

    def is_active(self, moment: Instant) -> bool:
        """Return whether it still keeps everyone from sending a request."""
        return self.at.elapsed(moment) < self.seconds

    def recreate(self, moment: Instant) -> OpenmarketsError:
        """Return the exception, with the remaining wait as ``retry_after`` if it is transient."""
        error = from_dict(self.error)
        if error.transient:
            # Not less than the failure lasts: an attempt before its end would get this same failure.
            error.retry_after = max(0.0, (error.retry_after or self.seconds) - self.at.elapsed(moment))
        return error


def failure_seconds(error: OpenmarketsError) -> float:
    """Return how many seconds a failure is shared with everyone who needs the same token."""
    if error.retry_after is not None:
        seconds = error.retry_after
    elif isinstance(error, OpenmarketsAuthError) and not error.transient:
        seconds = 300.0 if error.status == 400 else 60.0
    elif isinstance(error, OpenmarketsAuthError | OpenmarketsRateLimited):
        seconds = 5.0
    else:
        seconds = 2.0
    return min(seconds, MAX_FAILURE)


@prepare
class TokenEntry(msgspec.Struct, frozen=True):
    """What processes share about one token.

    :ivar written: when it was written; the later one of two entries counts.
    """

    written: Instant
    token: Token | None = None
    failure: Failure | None = None

    def seconds_of_use(self) -> float:
        """Return the seconds from when it was written to the end of its token and failure."""
        ends = [0.0]
        if self.token is not None:
            ends.append(self.token.obtained.wall + self.token.lifetime - self.written.wall)
        if self.failure is not None:
            ends.append(self.failure.at.wall + self.failure.seconds - self.written.wall)
        return max(ends)

    def __repr__(self) -> str:
        """Show everything but the token itself."""
        return f"TokenEntry(token={self.token!r}, failure={self.failure and self.failure.error['kind']})"


class Decision(enum.Enum):
    """What to do with an entry."""

    USE = enum.auto()
    """Send the token."""
    REFRESH = enum.auto()
    """The token is valid but near its end: one caller requests the next one, the others send this one."""
    REQUEST = enum.auto()
    """There is no token to send: request one."""


def decide(entry: TokenEntry | None, moment: Instant, rejected: str | None) -> tuple[Decision, Token | None]:
    """Decide what a caller does.

    :param entry: the entry; None when there is none.
    :param rejected: the token that an API has just rejected, if any.
    :return: the decision, and the token of USE and REFRESH. USE with the rejected token itself means that it is
        a recent replacement, which is not replaced again.
    :raises OpenmarketsError: the shared failure, while it is active and there is no token to send.
    """
    if entry is None:
        return Decision.REQUEST, None
    token = entry.token
    failure = entry.failure if entry.failure is not None and entry.failure.is_active(moment) else None
    if token is not None and token.value == rejected:
        if token.replacement and token.obtained.elapsed(moment) < REPLACEMENT_TRIAL:
            return Decision.USE, token
        token = None
    if token is not None and token.remaining(moment) > 0:
        return (Decision.REFRESH if token.needs_refresh(moment) and failure is None else Decision.USE), token
    if failure is not None:
        raise failure.recreate(moment)
    return Decision.REQUEST, None
