"""What operators of a deployment see: counters, timers and traces. Pure."""

from __future__ import annotations


class Metrics:
    """Takes what is counted and timed, and keeps nothing of it; a subclass does. No method may block or raise."""

    def count(self, name: str, by: int = 1) -> None:
        """Add to a counter, such as ``polls.sent``."""

    def time(self, name: str, seconds: float) -> None:
        """Note how long something took."""

    def sent(self, endpoint: str, request_id: str, status: int | None) -> None:
        """Note one request in the current trace.

        :param endpoint: the call, such as ``GET oms accounts/v1``.
        :param request_id: the ``X-Request-ID`` that was sent.
        :param status: HTTP status; None when there was no answer.
        """


NO_METRICS = Metrics()
