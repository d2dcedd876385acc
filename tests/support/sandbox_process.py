"""The sandbox as a separate process, for tests that fork or that start other processes."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

import httpx

from tests.support.process import ServerProcess


class SandboxControl:
    """The control paths of a sandbox that runs."""

    url: str

    def stats(self) -> dict[str, Any]:
        """Return what the sandbox counted."""
        return self._control("GET", "stats")

    def reset(self) -> None:
        """Zero the counts, drop faults and overrides."""
        self._control("POST", "reset")

    def fault(self, **fields: Any) -> None:
        """Make a fault active."""
        self._control("POST", "faults", fields)

    def clear_faults(self) -> None:
        """End all faults."""
        self._control("DELETE", "faults")

    def set_security(self, security: str, **fields: Any) -> None:
        """Change a security's quote from now on."""
        self._control("POST", f"securities/{security}", fields)

    def publish(self, security: str, **fields: Any) -> dict[str, Any]:
        """Publish an announcement, and return it."""
        published: dict[str, Any] = self._control("POST", "announcements", {"security": security, **fields})
        return published

    def set_accounts(self, accounts: list[dict[str, Any]]) -> None:
        """Replace all accounts."""
        self._control("POST", "accounts", {"accounts": accounts})

    def set_order_behaviour(self, **fields: Any) -> None:
        """Set how orders behave that are created from now on."""
        self._control("POST", "orders/behaviour", fields)

    def orders(self) -> list[dict[str, Any]]:
        """Return every order that a client created."""
        orders: list[dict[str, Any]] = self._control("GET", "orders")["orders"]
        return orders

    def change_secret(self, client_id: str, client_secret: str) -> None:
        """Have the identity server refuse a client's secret from now on, and take another one."""
        self._control("POST", f"clients/{client_id}", {"client_secret": client_secret})

    def issued_tokens(self) -> list[str]:
        """Return every access token that was issued."""
        tokens: list[str] = self._control("GET", "tokens")["tokens"]
        return tokens

    def _control(self, method: str, path: str, body: Any = None) -> Any:
        response = httpx.request(method, f"{self.url}/_sandbox/{path}", json=body, timeout=30, trust_env=False)
        response.raise_for_status()
        return response.json() if response.content else None


class SandboxProcess(SandboxControl, ServerProcess):
    """Runs ``python -m openmarkets_provider.sandbox`` on a free port of loopback."""

    def __init__(self, *options: str) -> None:
        super().__init__("openmarkets_provider.sandbox", "--port", "0", *options)
        self.connection: dict[str, Any] = {}

    def has_started(self) -> bool:
        for line in self._process.stdout:
            if match := re.fullmatch(r"URL: (\S+)\n", line):
                self.url = match[1]
            if line.startswith("export "):
                self.connection = json.loads(shlex.split(line)[1].partition("=")[2])
                return True
        return False

    @property
    def connection_json(self) -> str:
        """The Airflow connection, as ``AIRFLOW_CONN_OPENMARKETS_DEFAULT`` takes it."""
        return json.dumps(self.connection)
