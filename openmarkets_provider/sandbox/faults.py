"""Faults: what the sandbox does instead of, or before, an answer.

A fault is a JSON object. Every one has

    target   "identity", "market_data", "news", "oms", or the start of a path such as "/market-data/pricing"
    kind     see below
    times    how many requests it acts on (default 1); null: until the faults are cleared
    after    how many matching requests it lets pass first, whatever answers those (default 0)
    seconds  how long it waits before it acts (default 0)

and the kinds are

    status   answers with `status` (200 to 599), `retry_after` (seconds or an HTTP date), `body`, `headers`
    body     answers 200 with `body` and `headers`; the content type is JSON unless the headers say else
    delay    waits `seconds`, then the request is answered normally
    reset    cuts the TCP connection without an answer, or after the start of one when `body` is given

A `body` that is a string is sent as it is, anything else as JSON. When several faults match a request, the
oldest that is due acts, alone. `{"kind": "revoke_tokens"}` isn't kept: it makes every token that was issued
invalid at once.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

TARGETS = ("identity", "market_data", "news", "oms")
PREFIXES = ("/identity", "/market-data", "/news", "/oms")

_COMMON = ("target", "kind", "times", "after", "seconds")
_FIELDS = {
    "status": (*_COMMON, "status", "retry_after", "body", "headers"),
    "body": (*_COMMON, "body", "headers"),
    "delay": _COMMON,
    "reset": (*_COMMON, "body"),
    "revoke_tokens": ("kind",),
}
_REQUIRED = {"status": "status", "body": "body", "delay": "seconds"}
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\x21-\x7e]([\t\x20-\x7e]*[\x21-\x7e])?")
# the length is the server's to state: a wrong one breaks the connection in another way than a fault says
_FRAMING = ("content-length", "transfer-encoding")


@dataclass
class Fault:
    """A checked fault, with the counts that are left."""

    kind: str
    target: str = ""
    times: int | None = 1
    after: int = 0
    seconds: float = 0
    status: int = 200
    retry_after: int | str | None = None
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what no fault can mean."""
        meant = self.kind == "revoke_tokens" or self.target in TARGETS or self._is_prefix()
        _check(meant, f"target must be one of {', '.join(TARGETS)}, or start with {', '.join(PREFIXES)}")
        _check(_is_whole(self.times, 1) or self.times is None, "times must be an integer above 0, or null")
        _check(_is_whole(self.after, 0), "after must be an integer, 0 or more")
        _check(_is_seconds(self.seconds), "seconds must be a number, 0 or more")
        _check(_is_whole(self.status, 200, 599), "status must be an integer from 200 to 599")
        if self.retry_after is not None and not _is_whole(self.retry_after, 0):
            _check(_is_header_value(self.retry_after), "retry_after must be whole seconds or an HTTP date")
        _check(isinstance(self.headers, dict), "headers must be an object")
        for name, value in self.headers.items():
            _check(_HEADER_NAME.fullmatch(name) is not None, f"{name!r} isn't a header's name")
            _check(name.lower() not in _FRAMING, f"the server sets {name} itself")
            _check(_is_header_value(value), f"header {name} has a value that can't be sent")

    def _is_prefix(self) -> bool:
        return isinstance(self.target, str) and self.target.startswith(PREFIXES)

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> Fault:
        """Return the fault that a JSON object describes."""
        kind = fields.get("kind")
        if not isinstance(kind, str) or kind not in _FIELDS:
            raise ValueError(f"kind must be one of {', '.join(_FIELDS)}")
        allowed = _FIELDS[kind]
        unknown = ", ".join(sorted(set(fields) - set(allowed)))
        _check(not unknown, f"unknown for kind {kind}: {unknown}; allowed: {', '.join(allowed)}")
        required = _REQUIRED.get(kind)
        _check(required is None or required in fields, f"kind {kind} needs {required}")
        return cls(**fields)

    def matches(self, target: str, path: str) -> bool:
        """Whether a request is one that the fault is meant for."""
        return self.target == target or (self._is_prefix() and path.startswith(self.target))

    def content(self) -> bytes | None:
        """Return the bytes to send, if there are any."""
        if self.body is None and self.kind != "body":
            return None
        return (self.body if isinstance(self.body, str) else json.dumps(self.body)).encode()

    def describe(self) -> dict[str, Any]:
        """Return the fault as JSON, with the counts that are left."""
        return {name: value for name, value in asdict(self).items() if name in _FIELDS[self.kind]}


class Faults:
    """The active faults, oldest first."""

    def __init__(self) -> None:
        """Begin without any."""
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> None:
        """Make a fault active."""
        with self._lock:
            self._faults.append(fault)

    def clear(self) -> None:
        """End all faults."""
        with self._lock:
            self._faults.clear()

    def describe(self) -> list[dict[str, Any]]:
        """Return the active faults as JSON."""
        with self._lock:
            return [fault.describe() for fault in self._faults]

    def take(self, target: str, path: str) -> Fault | None:
        """Return the fault that acts on a request, and use up one of its times."""
        with self._lock:
            matching = [fault for fault in self._faults if fault.matches(target, path)]
            acting = next((fault for fault in matching if not fault.after), None)
            for fault in matching:
                fault.after = max(0, fault.after - 1)
            if acting is not None and acting.times is not None:
                acting.times -= 1
                if not acting.times:
                    self._faults.remove(acting)
            return acting


def _check(right: bool, message: str) -> None:
    if not right:
        raise ValueError(message)


def _is_whole(value: object, low: int, high: float = math.inf) -> bool:
    return type(value) is int and low <= value <= high


def _is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _is_header_value(value: object) -> bool:
    return isinstance(value, str) and _HEADER_VALUE.fullmatch(value) is not None
