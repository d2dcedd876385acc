"""Imports the server, which needs the extra ``sandbox``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openmarkets_provider.sandbox.server import SandboxServer


class MissingExtraError(ImportError):
    """The packages of the extra ``sandbox`` are not installed."""


def import_server() -> type[SandboxServer]:
    """Import the server's class.

    :raises MissingExtraError: the extra is not installed.
    """
    try:
        from openmarkets_provider.sandbox.server import SandboxServer
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn"):
            raise
        raise MissingExtraError(
            "The Openmarkets sandbox needs more packages. Run: pip install 'airflow-provider-openmarkets[sandbox]'"
        ) from error
    return SandboxServer
