"""The interface for counters, timers and traces. Pure."""

from __future__ import annotations


class Metrics:
    """Ignores all metrics; a subclass records them. No method may block or raise."""

    def count(self, name: str, by: int = 1) -> None:
        """Add to a counter, such as ``polls.sent``."""

    def time(self, name: str, seconds: float) -> None:
        """Record a duration in seconds."""

    def sent(self, endpoint: str, request_id: str, status: int | None) -> None:
        """Record a request in the current trace.

        :param endpoint: the call, such as ``GET oms accounts/v1``.
        :param request_id: the ``X-Request-ID`` that was sent.
        :param status: HTTP status; None if there was no reply.
        """


NO_METRICS = Metrics()
