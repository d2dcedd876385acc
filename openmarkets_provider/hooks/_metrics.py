"""Counters, timers and traces through Airflow's own: StatsD, Datadog, OpenTelemetry, whatever the deployment has."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta

from openmarkets_provider.client.metrics import Metrics

PREFIX = "openmarkets."


class AirflowMetrics(Metrics):
    """Tells Airflow what is counted and timed. That a figure can't be told fails nothing, least of all an order.

    What a figure is about is part of its name, and not a tag, since plain StatsD drops tags.
    """

    def count(self, name: str, by: int = 1) -> None:
        """Add to a counter."""
        with suppress(Exception):
            from airflow.providers.common.compat.sdk import Stats

            Stats.incr(PREFIX + name, by)

    def time(self, name: str, seconds: float) -> None:
        """Note how long something took."""
        with suppress(Exception):
            from airflow.providers.common.compat.sdk import Stats

            Stats.timing(PREFIX + name, timedelta(seconds=seconds))

    def sent(self, endpoint: str, request_id: str, status: int | None) -> None:
        """Note one request as an event of the current span, the task's. Polls that triggers share have none."""
        attributes: dict[str, str | int] = {"openmarkets.endpoint": endpoint, "openmarkets.request_id": request_id}
        if status is not None:
            attributes["http.response.status_code"] = status
        # Airflow before 3 brings it as an extra only.
        with suppress(Exception):
            from opentelemetry.trace import get_current_span

            get_current_span().add_event("openmarkets.request", attributes)
