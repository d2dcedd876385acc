"""Faults that the sandbox applies to requests.

A fault is a JSON object. All faults have

    target       "identity", "market_data", "news", "oms", or the start of a path such as "/market-data/pricing"
    kind         see below
    times        how many requests it affects (default 1, or null with a probability); null: until it is cleared
    after        how many matching requests pass first, even if another fault answers them (default 0)
    seconds      how long it waits before it acts (default 0)
    probability  probability that it affects a matching request, from 0 to 1 (default 1)
    seed         an integer: the same seed gives the same failures (default 0)
    process_first  true: the request is processed before the wait, and only its answer is lost (default false)

and the kinds are

    status  answers with `status` (200 to 599), `retry_after` (seconds or an HTTP date), `body`, `headers`
    body    answers 200 with `body` and `headers`; the content type is JSON unless the headers have another
    delay   waits `seconds`, then the request is answered normally, also with `process_first`
    reset   cuts the TCP connection without an answer, or after the start of an answer if there is a `body`

A `body` that is a string is sent unchanged, anything else as JSON. If several faults match a request, only the oldest
that is due acts. `{"kind": "revoke_tokens"}` acts immediately: it makes all issued tokens invalid.

Whether a fault with a `probability` acts depends on its kind, status, target and seed, the request (method, path, query
and body), and the number of equal requests before. Other requests and their order do not matter.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from openmarkets_provider.sandbox.answers import check, check_answer, encode, is_header_value, is_number, is_whole
from openmarkets_provider.sandbox.chance import share_of
from openmarkets_provider.sandbox.fields import check_names

TARGETS = ("identity", "market_data", "news", "oms")
PREFIXES = ("/identity", "/market-data", "/news", "/oms")

_COMMON = ("target", "kind", "times", "after", "seconds", "probability", "seed", "process_first")
_FIELDS = {
    "status": (*_COMMON, "status", "retry_after", "body", "headers"),
    "body": (*_COMMON, "body", "headers"),
    "delay": _COMMON,
    "reset": (*_COMMON, "body"),
    "revoke_tokens": ("kind",),
}
_REQUIRED = {"status": "status", "body": "body", "delay": "seconds"}


@dataclass
class Fault:
    """A checked fault, with its remaining counts."""

    kind: str
    target: str = ""
    times: int | None = 1
    after: int = 0
    seconds: float = 0
    probability: float = 1
    seed: int = 0
    process_first: bool = False
    status: int = 200
    retry_after: int | str | None = None
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the fields.

        :raises ValueError: a field is invalid.
        """
        meant = self.kind == "revoke_tokens" or self.target in TARGETS or self._is_prefix()
        check(meant, f"target must be one of {', '.join(TARGETS)}, or start with {', '.join(PREFIXES)}")
        check(is_whole(self.after, 0), "after must be an integer, 0 or more")
        check(is_number(self.seconds), "seconds must be a number, 0 or more")
        check(is_number(self.probability, 1), "probability must be a number from 0 to 1")
        check(type(self.seed) is int, "seed must be an integer")
        check(type(self.process_first) is bool, "process_first must be true or false")
        if self.retry_after is not None and not is_whole(self.retry_after, 0):
            check(is_header_value(self.retry_after), "retry_after must be whole seconds or an HTTP date")
        check_answer(self.times, self.status, self.headers)
        self._visits: Counter[str] = Counter()

    def _is_prefix(self) -> bool:
        return isinstance(self.target, str) and self.target.startswith(PREFIXES)

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> Fault:
        """Return the fault that a JSON object describes."""
        kind = fields.get("kind")
        if not isinstance(kind, str) or kind not in _FIELDS:
            raise ValueError(f"kind must be one of {', '.join(_FIELDS)}")
        allowed = _FIELDS[kind]
        check_names(fields, allowed, f" for kind {kind}")
        required = _REQUIRED.get(kind)
        check(required is None or required in fields, f"kind {kind} needs {required}")
        return cls(**{"times": None if "probability" in fields else 1, **fields})

    def matches(self, target: str, path: str) -> bool:
        """Return whether a request matches the fault."""
        return self.target == target or (self._is_prefix() and path.startswith(self.target))

    def draw(self, request: str) -> bool:
        """Return whether the fault acts on a matching request, by its probability."""
        if self.probability == 1:
            return True
        self._visits[request] += 1
        share = share_of(self.seed, self.kind, self.status, self.target, request, self._visits[request])
        return share < self.probability

    def content(self) -> bytes | None:
        """Return the bytes to send, or None."""
        return None if self.body is None and self.kind != "body" else encode(self.body)

    def describe(self) -> dict[str, Any]:
        """Return the fault as JSON, with its remaining counts."""
        return {name: value for name, value in asdict(self).items() if name in _FIELDS[self.kind]}


class Faults:
    """The active faults, oldest first."""

    def __init__(self) -> None:
        """Start empty."""
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> None:
        """Activate a fault."""
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

    def take(self, target: str, path: str, request: str) -> Fault | None:
        """Return the fault that acts on a request, and use up one of its times.

        :param request: identifies the request, for faults with a probability.
        """
        with self._lock:
            matching = [fault for fault in self._faults if fault.matches(target, path)]
            due = [fault for fault in matching if not fault.after]
            for fault in matching:
                fault.after = max(0, fault.after - 1)
            # All faults draw, so that none depends on the others.
            drawn = [fault for fault in due if fault.draw(request)]
            acting = drawn[0] if drawn else None
            if acting is not None and acting.times is not None:
                acting.times -= 1
                if not acting.times:
                    self._faults.remove(acting)
            return acting
