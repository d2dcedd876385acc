"""How long and how often a task waits if the server asks it to. Needs no Airflow."""

from __future__ import annotations

from datetime import timedelta

WAITS_AFTER_429 = 10
"""Most waits of a task after its own 429s."""
WAITS_FOR_HOLDS = 100
"""Most waits of a task for holds: another task got the 429, and this one sent nothing."""
LONGEST_WAIT = timedelta(hours=24)
"""Longest single wait."""


def wait_after(retry_after: float) -> timedelta:
    """Return how long a task waits before it runs again.

    The wait varies, so that tasks with the same Retry-After do not all come back at once.

    :param retry_after: seconds that the server asked for.
    """
    from openmarkets_provider.client.ratelimit.hold import spread

    return timedelta(seconds=retry_after + spread(retry_after))


def time_after(wait: timedelta) -> str:
    """Return when a wait is over, as a text in UTC."""
    import pendulum

    return f"{(pendulum.now('UTC') + wait).to_datetime_string()} UTC"


def advise_later(error: Exception, wait: timedelta) -> str:
    """Return the text of an error, with the time at which to run the task again."""
    return f"{error} Run the task again after {time_after(wait)}."
