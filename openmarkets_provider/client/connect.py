"""A client for programs without Airflow."""

from __future__ import annotations

from typing import Any

from openmarkets_provider import __version__
from openmarkets_provider.client.client import OpenmarketsClient
from openmarkets_provider.client.settings import Settings


class _NoMasker:
    """Nobody logs the secrets: there is nothing to hide."""

    def mask(self, value: str) -> None:
        pass

    async def amask(self, value: str) -> None:
        pass


def connect(client_id: str, client_secret: str, **settings: Any) -> OpenmarketsClient:
    """Return a client of the Openmarkets APIs that needs no Airflow. It shares tokens with no other process.

    Nothing is sent before the first query; ``close()`` closes the connections.

    :param client_id: OAuth client id.
    :param client_secret: OAuth client secret.
    :param settings: further settings by the names of the connection's fields, such as ``environment="test"``.
    :raises OpenmarketsConfigurationError: a value is not allowed; the text names the field.
    """
    return OpenmarketsClient(
        Settings(client_id=client_id, client_secret=client_secret, **settings),
        store=None,
        masker=_NoMasker(),
        user_agent=f"airflow-provider-openmarkets/{__version__}",
    )
