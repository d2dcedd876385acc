"""The server, or a plain word on what to install when the packages that it needs are missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openmarkets_provider.sandbox.server import SandboxServer


class MissingExtraError(ImportError):
    """The packages of the `sandbox` extra aren't installed."""


def server_class() -> type[SandboxServer]:
    """Import the server."""
    try:
        from openmarkets_provider.sandbox.server import SandboxServer
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn"):
            raise
        raise MissingExtraError(
            "The Openmarkets sandbox needs more packages: pip install 'airflow-provider-openmarkets[sandbox]'"
        ) from error
    return SandboxServer
