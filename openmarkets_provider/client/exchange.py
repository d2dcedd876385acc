"""When a call is sent again: the whole policy. Pure."""

from __future__ import annotations

import random

from openmarkets_provider.exceptions import OpenmarketsError, OpenmarketsRateLimited

MAX_ATTEMPTS = 4
MAX_WAIT = 60.0
"""Longest pause in seconds. A server that asks for more is not waited for in the worker."""
DEFAULT_HOLD = 5.0
"""Seconds for which an API is left alone that said 429 and not for how long."""
MAX_SPREAD = 15.0
"""Longest time in seconds over which those who were told to wait come back."""
_FIRST_WAIT = 0.5


def pause(error: OpenmarketsError, attempt: int, *, safe_to_repeat: bool) -> float | None:
    """Return the seconds to wait before the next attempt, or None to give up.

    :param error: what the attempt came to.
    :param attempt: 1 for the first.
    :param safe_to_repeat: the endpoint's fact; when False, only a call that certainly did not leave this machine
        is sent again.
    """
    if not error.transient or attempt >= MAX_ATTEMPTS or (error.sent and not safe_to_repeat):
        return None
    asked = error.retry_after
    if asked is not None and asked > MAX_WAIT:
        return None
    backoff: float = _FIRST_WAIT * 2 ** (attempt - 1)
    # Not for secrecy: it keeps tasks that failed together from coming back together.
    jitter: float = random.uniform(0.5, 1.0)  # noqa: S311
    if isinstance(error, OpenmarketsRateLimited):
        asked = DEFAULT_HOLD if asked is None else asked
        return asked + spread(asked)
    if asked is None:
        return backoff * jitter
    return min(asked + backoff * (jitter - 0.5), MAX_WAIT)


def spread(seconds: float) -> float:
    """Return how many seconds longer than asked one of many waits, so that they don't all come back at once.

    :param seconds: what they were all asked to wait; 0 is at once for everyone.
    """
    if not seconds:
        return 0.0
    return random.uniform(0.0, min(max(1.0, seconds / 2), MAX_SPREAD))  # noqa: S311
