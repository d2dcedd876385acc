from __future__ import annotations

import asyncio
import itertools
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from openmarkets_provider.client.cache.fallback import FallbackStore
from openmarkets_provider.client.cache.file import FileStore
from openmarkets_provider.client.cache.redis import RedisStore, redis_options
from openmarkets_provider.client.cache.store import Store
from openmarkets_provider.client.client import OpenmarketsClient
from openmarkets_provider.client.settings import Settings
from openmarkets_provider.queries import Query
from openmarkets_provider.sandbox.server import Client, SandboxServer
from tests.support import hostile
from tests.support.redis_server import RedisServer

ALL_SCOPES = ("market-data-api", "news-api", "oms-api")
USER_AGENT = "openmarkets-tests/1"
THREAD_TIMEOUT = 5
AWKWARD = Client("id+%: é", "s+e%c:r e~t/ü&=", ALL_SCOPES)
"""A client whose id and secret hold whatever an encoding can get wrong."""


class RecordingMasker:
    """Records the values to hide."""

    def __init__(self) -> None:
        self.masked: list[str] = []

    def mask(self, value: str) -> None:
        self.masked.append(value)

    async def amask(self, value: str) -> None:
        self.masked.append(value)


def token_reply(value: str = "t0ken-of-the-hostile-server", lifetime: int = 3600, status: int = 200) -> bytes:
    content = {"access_token": value, "expires_in": lifetime, "token_type": "Bearer"}
    return hostile.reply(json.dumps(content).encode(), status)


def texts_of(error: BaseException) -> str:
    """Return all that an error and those behind it say of themselves."""
    texts = []
    left: BaseException | None = error
    while left is not None:
        texts += [str(left), repr(left), repr(vars(left)), repr(left.args), repr(getattr(left, "__notes__", None))]
        left = left.__cause__ or left.__context__
    return "\n".join(texts)


def redis_store(server: RedisServer, **changes: Any) -> RedisStore:
    """Return a Redis store; changes apply to the fields of its connection."""
    connection = {"login": None, **json.loads(server.connection_json())} | changes
    connection.pop("conn_type")
    return RedisStore(redis_options(**connection))


@pytest.fixture(params=["file", "redis"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    """Makes stores for processes: of the same host, or each on another host."""
    if request.param == "file":
        return lambda: FileStore(tmp_path / "cache")
    server = request.getfixturevalue("empty_redis")
    return lambda: FallbackStore(redis_store(server), FileStore(tmp_path / f"host {os.getpid()}"), "Redis")


class MakeClient(Protocol):
    def __call__(self, **settings: Any) -> OpenmarketsClient: ...


class Runner(Protocol):
    def __call__(self, client: OpenmarketsClient, *queries: Query) -> Any: ...


@pytest.fixture(scope="session")
def sandbox_server() -> Iterator[SandboxServer]:
    with SandboxServer(clients=(Client("sandbox-client", "sandbox-secret"), AWKWARD)) as server:
        yield server


@pytest.fixture
def sandbox(sandbox_server: SandboxServer) -> SandboxServer:
    """A running sandbox without counts, faults and orders."""
    sandbox_server.reset()
    return sandbox_server


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the proxies and certificates of the machine."""
    for scheme in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{scheme}_proxy", raising=False)
        monkeypatch.delenv(f"{scheme}_proxy".upper(), raising=False)
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "NETRC"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def masker() -> RecordingMasker:
    return RecordingMasker()


@pytest.fixture
def make_client(
    sandbox: SandboxServer, masker: RecordingMasker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MakeClient]:
    """Makes clients of the sandbox, and closes them; settings override those that lead there."""
    clients = []
    numbers = itertools.count()
    root = tmp_path_factory.mktemp("tokens")

    def make(**settings: Any) -> OpenmarketsClient:
        defaults = {
            "client_id": sandbox.client_id,
            "client_secret": sandbox.client_secret,
            "environment": "test",
            "identity_url": sandbox.identity_url,
            "market_data_url": sandbox.market_data_url,
            "news_url": sandbox.news_url,
            "oms_url": sandbox.oms_url,
            "orders": "test",
            "timeout": 10.0,
        }
        checked = Settings(**defaults | settings)
        store = None if checked.cache_backend == "memory" else FileStore(root / str(next(numbers)))
        client = OpenmarketsClient(checked, store=store, masker=masker, user_agent=USER_AGENT)
        clients.append(client)
        return client

    yield make
    # A run that failed has left a thread with what it had sent; what it logs is not for the next test.
    for thread in threading.enumerate():
        if thread.name.startswith("openmarkets_"):
            thread.join(THREAD_TIMEOUT)
    for client in clients:
        client.close()


def run_sync(client: OpenmarketsClient, *queries: Query) -> Any:
    return [client.run(query) for query in queries][-1]


def run_async(client: OpenmarketsClient, *queries: Query) -> Any:
    async def run() -> Any:
        try:
            return [await client.arun(query) for query in queries][-1]
        finally:
            await client.aclose()

    return asyncio.run(run())


@pytest.fixture(params=[run_sync, run_async], ids=["sync", "async"])
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Answers queries one after another, and returns the last answer."""
    return request.param
