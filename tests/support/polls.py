"""Consumers of shared polls, and a server of quotes that refuses some securities."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Awaitable
from typing import Any

import pytest

from openmarkets_provider.sandbox.server import SandboxServer
from openmarkets_provider.triggers._shared_polls import Reading, poll_shared
from tests.client.conftest import token_reply
from tests.support import hostile

CONNECTION = "AIRFLOW_CONN_OPENMARKETS_DEFAULT"
CONN_ID = "openmarkets_default"
LONG = 1000.0
"""Seconds between polls: longer than any test."""
QUOTES = "POST /market-data/pricing/quotes/v3"
INFORMATION = "POST /market-data/securities/information/v2"
"""Asked for the currencies once, by the first quotes of a client."""


async def take(
    query: Any, count: int = 1, interval: float = 0.05, conn_id: str = CONN_ID, **options: Any
) -> list[Reading]:
    async with contextlib.aclosing(poll_shared(conn_id, query, interval, **options)) as polls:
        return [await anext(polls) for _ in range(count)]


async def at_once(*taking: Awaitable[list[Reading]]) -> list[list[Reading]]:
    """Take with all of them, and leave with none before each has what it takes."""
    return await asyncio.wait_for(asyncio.gather(*taking), 60)


class Waiter:
    """Waits in its own task, like a trigger."""

    def __init__(self, query: Any, interval: float = LONG, conn_id: str = CONN_ID, **options: Any) -> None:
        self.seen: list[Reading] = []
        self._came = asyncio.Event()
        self._task = asyncio.create_task(self._wait(conn_id, query, interval, options))

    async def _wait(self, conn_id: str, query: Any, interval: float, options: dict[str, Any]) -> None:
        async with contextlib.aclosing(poll_shared(conn_id, query, interval, **options)) as polls:
            async for reading in polls:
                self.seen.append(reading)
                self._came.set()

    async def has(self, count: int) -> Reading:
        async with asyncio.timeout(60):
            while len(self.seen) < count:
                self._came.clear()
                coming = asyncio.ensure_future(self._came.wait())
                await asyncio.wait({coming, self._task}, return_when=asyncio.FIRST_COMPLETED)
                coming.cancel()
                if self._task.done():
                    self._task.result()
        return self.seen[-1]

    async def cancel(self) -> None:
        self._task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self._task


class QuotesServer:
    """A server of tokens and quotes that takes offence at some securities."""

    def __init__(self) -> None:
        self.refused: set[str] = set()
        self.malformed: set[str] = set()
        self.stray: set[str] = set()
        self.calls: list[list[str]] = []
        self.hold = threading.Event()
        self.hold.set()

    def __call__(self, sock: Any, request: bytes) -> None:
        if "connect/token" in hostile.target(request):
            sock.sendall(token_reply())
            return
        asked = json.loads(hostile.body(request))["securities"]
        self.calls.append(asked)
        assert self.hold.wait(60)
        if self.refused & set(asked):
            sock.sendall(hostile.reply(b'{"title": "Bad Request"}', 400))
            return
        quotes = [self._quote(security) for security in asked]
        sock.sendall(hostile.reply(json.dumps({"quotes": quotes, "invalidSecurities": []}).encode()))

    def _quote(self, security: str) -> dict[str, Any]:
        code = security.partition(".")[0]
        if security in self.stray:
            code = f"{code}NEW"
        volume = "many" if security in self.malformed else 100
        return {"securityCode": code, "exchange": "ASX", "totalVolume": volume, "priceMultiplier": 0.01}


def connection_to(url: str, secret: str = "a-secret") -> str:
    extra = {"market_data_url": url, "scopes": ["market-data-api"]}
    given = {"conn_type": "openmarkets", "host": url, "login": "someone", "password": secret}
    return json.dumps({**given, "extra": extra})


def full(*codes: str) -> list[str]:
    return [f"{code}.ASX@TM" for code in codes]


def codes_of(reading: Reading) -> list[str]:
    return [row["security_code"] for row in reading.result()]


def market_data(sandbox: SandboxServer) -> int:
    return sandbox.stats()["requests"]["market_data"]
