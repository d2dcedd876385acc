"""A real, temporary Airflow 2, with a webserver instead of the API server, and no separate DAG processor."""

from __future__ import annotations

import secrets
from typing import Any, ClassVar

from tests.support.airflow import START_TIMEOUT, RealAirflow


class RealAirflow2(RealAirflow):
    """Airflow 2.11 behind the interface of :class:`RealAirflow`. XComs are text."""

    api_path = "/api/v1"
    health_path = "/api/v1/health"
    components = frozenset({"scheduler", "triggerer"})
    of_no_date: ClassVar[dict[str, Any]] = {}
    order_of_tasks: ClassVar[dict[str, Any]] = {}

    def _environment(self) -> dict[str, str]:
        return super()._environment() | {
            # The other executors want a database server.
            "AIRFLOW__CORE__EXECUTOR": "SequentialExecutor",
            "AIRFLOW__API__AUTH_BACKENDS": "airflow.api.auth.backend.default",
            "AIRFLOW__WEBSERVER__BASE_URL": self.base_url,
            "AIRFLOW__WEBSERVER__SECRET_KEY": secrets.token_hex(32),
            "AIRFLOW__WEBSERVER__WORKERS": "1",
        }

    def _start_components(self) -> None:
        # All clients on loopback may do everything, as with Airflow 3.
        (self.home / "webserver_config.py").write_text("AUTH_ROLE_PUBLIC = 'Admin'\nWTF_CSRF_ENABLED = False\n")
        self._migrate()
        port = self.base_url.rpartition(":")[2]
        self._spawn("webserver", "airflow", "webserver", "--hostname", "127.0.0.1", "--port", port)
        self._spawn("scheduler", "airflow", "scheduler", "--skip-serve-logs")
        self.start_triggerer()
        self.wait_until("the webserver", self._health, START_TIMEOUT)
