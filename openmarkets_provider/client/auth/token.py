"""Access tokens: when to use, refresh or request one, and when to give up. Pure.

Processes share one entry per key: the current token, the latest failure to get one, or both. :func:`decide` decides
what a caller does with it, for every kind of store.
"""

# No postponed annotations: msgspec would have to evaluate them in every new process.
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
"""How many seconds before its expiry a token is refreshed. Tokens with a short lifetime use part of it instead."""
MARGIN = 30.0
"""How many seconds before its expiry a token is no longer sent: it must still be valid on arrival."""
REPLACEMENT_TRIAL = 30.0
"""Seconds for which a rejected replacement isn't replaced itself: another token would not help."""
UNKNOWN_LIFETIME = 60.0
"""Lifetime in seconds of a token for which the identity server sends none."""
MAX_FAILURE = 3600.0
"""Longest time in seconds for which a failure is shared."""


class Token(msgspec.Struct, frozen=True):
    """An access token.

    :ivar value: the bearer token; never shown.
    :ivar scope: the OAuth scope that it is valid for.
    :ivar obtained: when it was requested.
    :ivar lifetime: seconds for which it is valid from then on.
    :ivar replacement: whether it replaced a token that an API had rejected.
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
        """Return for how many more seconds it may be sent."""
        return self.lifetime - min(MARGIN, self.lifetime / 10) - self.obtained.elapsed(moment)

    def needs_refresh(self, moment: Instant) -> bool:
        """Return whether it expires soon."""
        return self.lifetime - self.obtained.elapsed(moment) < min(REFRESH_AHEAD, self.lifetime / 5)


class Failure(msgspec.Struct, frozen=True):
    """A failure to get a token. It is shared, so that an identity server in trouble gets one request instead of many.

    :ivar error: the error as plain data.
    :ivar at: when it happened.
    :ivar seconds: for how long no caller sends another request.
    """

    error: dict[str, Any]
    at: Instant
    seconds: Seconds

    def __post_init__(self) -> None:
        """Reject data that do not describe an error: a later version of this package may have written them.

        :raises ValueError, TypeError: the data do not describe an error.
        """
        self.recreate(self.at)

    @classmethod
    def of(cls, error: OpenmarketsError, moment: Instant) -> Self:
        """Turn an error into a failure that can be shared."""
        return cls(error.as_dict(), moment, failure_seconds(error))

    def is_active(self, moment: Instant) -> bool:
        """Return whether it still prevents requests."""
        return self.at.elapsed(moment) < self.seconds

    def recreate(self, moment: Instant) -> OpenmarketsError:
        """Return the exception, with the remaining wait as ``retry_after`` if it is transient."""
        error = from_dict(self.error)
        if error.transient:
            # At least the rest of the failure: an earlier attempt would get this same failure.
            error.retry_after = max(0.0, (error.retry_after or self.seconds) - self.at.elapsed(moment))
        return error


def failure_seconds(error: OpenmarketsError) -> float:
    """Return for how many seconds callers that need the same token share a failure."""
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
    """The data that processes share about one token.

    :ivar written: when it was written; the newer of two entries wins.
    """

    written: Instant
    token: Token | None = None
    failure: Failure | None = None

    def seconds_of_use(self) -> float:
        """Return the seconds from its writing until both its token and its failure have expired."""
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
    """The token is valid but expires soon: one caller requests a new one, the others send this one."""
    REQUEST = enum.auto()
    """There is no valid token: request one."""


def decide(entry: TokenEntry | None, moment: Instant, rejected: str | None) -> tuple[Decision, Token | None]:
    """Decide what a caller does.

    :param entry: the entry; None if there is none.
    :param rejected: the token that an API has just rejected, if any.
    :return: the decision, with a token for USE and REFRESH. USE with the rejected token itself means that it is a
        recent replacement, which is not replaced again.
    :raises OpenmarketsError: the shared failure, while it is active and there is no valid token.
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
