"""Checks and encoding of status, headers and body, for faults and canned replies."""

from __future__ import annotations

import json
import math
import re
import sys
from typing import Any

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\x21-\x7e]([\t\x20-\x7e]*[\x21-\x7e])?")
# The server sets the length: a wrong one would break the connection, which is not what the fault asks for.
_FRAMING = ("content-length", "transfer-encoding")


def encode(body: Any) -> bytes:
    """Return the bytes to send: text unchanged, anything else as JSON."""
    return (body if isinstance(body, str) else json.dumps(body)).encode()


def check(right: bool, message: str) -> None:
    """Raise a ValueError with the message unless a condition is true."""
    if not right:
        raise ValueError(message)


def check_answer(times: object, status: object, headers: object) -> None:
    """Check the number of times, the status and the headers.

    :raises ValueError: one is invalid; the message names it.
    """
    check(is_whole(times, 1) or times is None, "times must be an integer above 0, or null")
    check(is_whole(status, 200, 599), "status must be an integer from 200 to 599")
    if not isinstance(headers, dict):
        raise ValueError("headers must be an object")
    for name, value in headers.items():
        check(_HEADER_NAME.fullmatch(name) is not None, f"{name!r} isn't a valid header name")
        check(name.lower() not in _FRAMING, f"the server sets {name}")
        check(is_header_value(value), f"header {name} has a value that can't be sent")


def is_whole(value: object, low: int, high: float = math.inf) -> bool:
    """Return whether a value is an integer from low to high."""
    return type(value) is int and low <= value <= high


def is_number(value: object, high: float = sys.float_info.max) -> bool:
    """Return whether a value is a finite number from 0 to high."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= high


def is_header_value(value: object) -> bool:
    """Return whether a value can be sent in a header."""
    return isinstance(value, str) and _HEADER_VALUE.fullmatch(value) is not None
