"""What a parser may take: memory and steps, by the size of what it reads. Never seconds: the machine may be busy."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import HealthCheck, settings

from openmarkets_provider.client.http.replies import MAX_RETRY_AFTER
from openmarkets_provider.exceptions import OpenmarketsError, from_dict

STEPS, STEPS_A_BYTE = 60_000, 40
MEMORY, MEMORY_A_BYTE = 6 << 20, 100
LONGEST_MESSAGE = 20_000

SHORT = settings(
    max_examples=60,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
"""For a usual run."""


class TooMuchWork(AssertionError):
    """A parser does more steps than its input is worth."""


@contextmanager
def bounded(size: int) -> Iterator[None]:
    """Fail when what is done inside takes more calls of functions, or more memory, than an input of a size is worth.

    :param size: of the input, in bytes or characters.
    """
    left = STEPS + STEPS_A_BYTE * size
    traced = tracemalloc.is_tracing()
    if not traced:
        tracemalloc.start()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            sys.setprofile(None)
            raise TooMuchWork(f"more than {STEPS + STEPS_A_BYTE * size} steps for {size} bytes")

    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(None)
        peak = tracemalloc.get_traced_memory()[1] - before
        if not traced:
            tracemalloc.stop()
    assert peak <= MEMORY + MEMORY_A_BYTE * size, f"{peak} bytes of memory for {size} bytes"


def check_error(error: Exception, *hidden: str) -> None:
    """Check that an error can go to a log and to another process.

    :param hidden: texts that its message must not contain.
    """
    text = str(error)
    assert text
    assert len(text) <= LONGEST_MESSAGE, f"{len(text)} characters"
    text.encode()
    for each in (*hidden, "int_max_str_digits"):
        assert each not in text
    if isinstance(error, OpenmarketsError):
        assert type(from_dict(error.as_dict())) is type(error)
        assert error.retry_after is None or 0 <= error.retry_after <= MAX_RETRY_AFTER
