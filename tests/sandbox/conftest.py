"""A client of the sandbox that has a token for every API."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from openmarkets_provider.sandbox.server import SandboxServer

ALL_SCOPES = "market-data-api news-api oms-api"


def fetch_token(sandbox: SandboxServer, scope: str = ALL_SCOPES) -> str:
    reply = httpx.post(
        f"{sandbox.identity_url}/connect/token",
        data={"grant_type": "client_credentials", "scope": scope},
        auth=(sandbox.client_id, sandbox.client_secret),
        trust_env=False,
    )
    return str(reply.raise_for_status().json()["access_token"])


@pytest.fixture
def anonymous(openmarkets_sandbox: SandboxServer) -> Iterator[httpx.Client]:
    """A client without a token."""
    with httpx.Client(base_url=openmarkets_sandbox.url, trust_env=False) as client:
        yield client


@pytest.fixture
def api(openmarkets_sandbox: SandboxServer, anonymous: httpx.Client) -> httpx.Client:
    """A client with a token; the counts are at zero again."""
    anonymous.headers["Authorization"] = f"Bearer {fetch_token(openmarkets_sandbox)}"
    openmarkets_sandbox.reset()
    return anonymous
