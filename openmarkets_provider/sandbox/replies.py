"""Canned replies to one method and path, which may or may not have an endpoint.

Such requests need a token, and faults act on them, as on all others.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from openmarkets_provider.sandbox.answers import check, check_answer, encode
from openmarkets_provider.sandbox.faults import PREFIXES
from openmarkets_provider.sandbox.fields import check_names

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


@dataclass
class Reply:
    """A checked reply, with its remaining times; None for unlimited."""

    method: str
    path: str
    body: Any = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    times: int | None = None

    def __post_init__(self) -> None:
        """Check the fields.

        :raises ValueError: a field is invalid.
        """
        check(self.method in METHODS, f"method must be one of {', '.join(METHODS)}")
        is_path = isinstance(self.path, str) and self.path.startswith(tuple(f"{prefix}/" for prefix in PREFIXES))
        check(
            is_path and not set(self.path) & set("?#"),
            f"path must start with {', '.join(PREFIXES)}, and have no query string; it is {self.path!r}",
        )
        check_answer(self.times, self.status, self.headers)
        self.content = encode(self.body)

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Reply:
        """Return the reply that a JSON object describes."""
        check_names(values, [each.name for each in fields(cls)])
        check({"method", "path"} <= set(values), "a reply needs a method and a path")
        return cls(**values)

    def answers(self, method: str, path: str) -> bool:
        """Return whether the reply answers a request."""
        return (self.method, self.path) == (method, path)


class Replies:
    """The canned replies, oldest first."""

    def __init__(self) -> None:
        """Start empty."""
        self._replies: list[Reply] = []
        self._lock = threading.Lock()

    def add(self, values: Mapping[str, Any]) -> None:
        """Add a reply, which is used after earlier ones for the same requests. It replaces an unlimited one.

        :raises ValueError: a field is unknown or invalid.
        """
        reply = Reply.parse(values)
        with self._lock:
            kept = [
                each for each in self._replies if each.times is not None or not each.answers(reply.method, reply.path)
            ]
            self._replies = [*kept, reply]

    def take(self, method: str, path: str) -> Reply | None:
        """Return the reply to a request, and use up one of its times."""
        with self._lock:
            reply = next((each for each in self._replies if each.answers(method, path)), None)
            if reply is not None and reply.times is not None:
                reply.times -= 1
                if not reply.times:
                    self._replies.remove(reply)
            return reply

    def clear(self) -> None:
        """Remove all."""
        with self._lock:
            self._replies.clear()
