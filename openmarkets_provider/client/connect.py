"""A client for programs without Airflow."""

from __future__ import annotations

from typing import Any

from openmarkets_provider import __version__
from openmarkets_provider.client.client import OpenmarketsClient
from openmarkets_provider.client.settings import Settings


class _NoMasker:
    """Hides nothing: without Airflow, nothing logs the secrets."""

    def mask(self, value: str) -> None:
        pass

    async def amask(self, value: str) -> None:
        pass


def connect(client_id: str, client_secret: str, **settings: Any) -> OpenmarketsClient:
    """Return a client of the Openmarkets APIs that works without Airflow. It shares no tokens with other processes.

    The first query opens the connections; ``close()`` closes them.

    :param client_id: OAuth client id.
    :param client_secret: OAuth client secret.
    :param settings: further fields of the connection by name, such as ``environment="test"``.
    :raises OpenmarketsConfigurationError: a value is not allowed; the message names the field.
    """
    return OpenmarketsClient(
        Settings(client_id=client_id, client_secret=client_secret, **settings),
        store=None,
        masker=_NoMasker(),
        user_agent=f"airflow-provider-openmarkets/{__version__}",
    )
