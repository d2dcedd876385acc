"""Counters, timers and traces through Airflow's own metrics: StatsD, Datadog or OpenTelemetry."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta

from openmarkets_provider.client.metrics import Metrics

PREFIX = "openmarkets."


class AirflowMetrics(Metrics):
    """Passes counters, timers and requests to Airflow. An error in a metric never fails a task.

    Details are part of the metric's name instead of tags, because plain StatsD drops tags.
    """

    def count(self, name: str, by: int = 1) -> None:
        """Add to a counter."""
        with suppress(Exception):
            from airflow.providers.common.compat.sdk import Stats

            Stats.incr(PREFIX + name, by)

    def time(self, name: str, seconds: float) -> None:
        """Record a duration in seconds."""
        with suppress(Exception):
            from airflow.providers.common.compat.sdk import Stats

            Stats.timing(PREFIX + name, timedelta(seconds=seconds))

    def sent(self, endpoint: str, request_id: str, status: int | None) -> None:
        """Add a request as an event to the current span, which is the task's. Shared polls of triggers have no span."""
        attributes: dict[str, str | int] = {"openmarkets.endpoint": endpoint, "openmarkets.request_id": request_id}
        if status is not None:
            attributes["http.response.status_code"] = status
        # In Airflow 2, OpenTelemetry is an optional extra.
        with suppress(Exception):
            from opentelemetry.trace import get_current_span

            get_current_span().add_event("openmarkets.request", attributes)
