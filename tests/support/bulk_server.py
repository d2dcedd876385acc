"""A server for benchmarks that costs little: data of any security, the same for all, after a set latency.

The sandbox makes its data up and takes more of a small machine than the client that is measured. This one keeps the
bytes of each range. It knows five calls: token, security information, daily bars, quotes, orders of an account. It
counts requests and connections.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
from abc import ABC, abstractmethod
from datetime import date, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit
from urllib.request import urlopen

from tests.support.process import ServerProcess

TOKEN = "the-token-of-the-bulk-server"
SERIES, INFORMATION, LOGIN = "/pricing/timeseries/", "/securities/information/v2", "/connect/token"
QUOTES, ORDERS, COUNTS = "/pricing/quotes/v3", "/orders/by-account/", "/_counts"


class BulkServer(ServerProcess):
    """Runs the server in a separate process, on a free port of loopback.

    :param latency: seconds before each reply.
    """

    def __init__(self, latency: float) -> None:
        super().__init__("tests.support.bulk_server", "--latency", str(latency))

    def has_started(self) -> bool:
        self.url = self._process.stdout.readline().strip()
        return bool(self.url)

    @property
    def connection_json(self) -> str:
        """The Airflow connection, as ``AIRFLOW_CONN_OPENMARKETS_DEFAULT`` takes it."""
        extra = {"market_data_url": self.url, "oms_url": self.url, "scopes": ["market-data-api", "oms-api"]}
        connection = {"conn_type": "openmarkets", "host": self.url, "login": "bulk", "password": "bulk-secret"}
        return json.dumps({**connection, "extra": extra})

    def counts(self) -> dict[str, int]:
        """Return the requests, and the most connections that were open at a time, since the last time it was asked."""
        with urlopen(f"{self.url}{COUNTS}", timeout=30) as response:
            return json.load(response)


class _Counts:
    """What was counted, over all connections."""

    def __init__(self) -> None:
        self.open = self.requests = self.connections = 0

    def take(self) -> dict[str, int]:
        counts = {"requests": self.requests, "connections": self.connections}
        self.requests, self.connections = 0, self.open
        return counts


class RequestProtocol(asyncio.Protocol, ABC):
    """Reads the requests of one connection."""

    def __init__(self) -> None:
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        request_line, *lines = head.decode("ascii").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if len(body) < int(headers.get("content-length", 0)):
            return
        # Clients wait for the reply before they send on.
        self._received = b""
        method, target, _ = request_line.split(" ")
        self.requested(method, target, headers.get("authorization", ""), body)

    @abstractmethod
    def requested(self, method: str, target: str, authorization: str, body: bytes) -> None:
        """Answer a complete request."""


class _Connection(RequestProtocol):
    """Answers the requests of one connection, each when its latency is over."""

    def __init__(self, latency: float, counts: _Counts) -> None:
        super().__init__()
        self._latency = latency
        self._counts = counts

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._counts.open += 1
        self._counts.connections = max(self._counts.connections, self._counts.open)

    def connection_lost(self, error: Exception | None) -> None:
        self._counts.open -= 1

    def requested(self, method: str, target: str, authorization: str, body: bytes) -> None:
        if target == COUNTS:
            # The connection of this request is not counted either.
            self._counts.connections -= 1
            self._transport.write(reply(200, _json(self._counts.take())))
            self._transport.close()
            return
        self._counts.requests += 1
        answered = answer(method, target, authorization, body)
        asyncio.get_running_loop().call_later(self._latency, self._transport.write, answered)


def answer(method: str, target: str, authorization: str, body: bytes) -> bytes:
    """Return the whole reply to a request."""
    url = urlsplit(target)
    if (method, url.path) == ("POST", LOGIN):
        return reply(200, _json({"access_token": TOKEN, "expires_in": 3600, "token_type": "Bearer"}))
    if authorization != f"Bearer {TOKEN}":
        return reply(401, b"")
    if (method, url.path) == ("POST", INFORMATION):
        return reply(200, _json(list(map(_information, json.loads(body)["securities"]))))
    if method == "GET" and url.path.startswith(SERIES) and url.path.endswith("/v2"):
        params = parse_qs(url.query)
        return _bars(params["dateFrom"][0], params["dateTo"][0])
    if (method, url.path) == ("POST", QUOTES):
        quotes = b",".join(map(_quote, json.loads(body)["securities"]))
        return reply(200, b'{"quotes":[%b],"invalidSecurities":[]}' % quotes)
    if method == "GET" and url.path.startswith(ORDERS):
        return _orders()
    return reply(404, b"")


@functools.cache
def _bars(first: str, last: str) -> bytes:
    """Return the reply with a bar for each weekday of a range, both ends in it; prices are in cents."""
    start = date.fromisoformat(first)
    days = (start + timedelta(days=number) for number in range((date.fromisoformat(last) - start).days + 1))
    return reply(200, _json([_bar(day) for day in days if day.weekday() < 5]))


def _bar(day: date) -> dict[str, Any]:
    turn = day.toordinal()
    middle, volume = 4000 + turn * 37 % 500, 3_000_000 + turn * 7919 % 4_000_000
    return {
        "openPrice": middle - turn % 13,
        "highPrice": middle + 20 + turn % 17,
        "lowPrice": middle - 20 - turn % 19,
        "closePrice": middle + turn % 11,
        "totalVolume": volume,
        "totalValue": (volume * middle + turn % 100) / 100,
        "tradeCount": 12_000 + turn % 9000,
        "timeSeriesDate": day.isoformat(),
        "marketVwap": middle + turn % 9973 / 10_000,
        "adjustmentFactor": 1,
    }


def _information(security: str) -> dict[str, Any]:
    code, _, exchange = security.partition("@")[0].partition(".")
    return {
        "securityCode": code,
        "exchange": exchange,
        "securityType": "Equity",
        "securityDescription": f"{code} Limited",
        "currencyCode": "AUD",
        "isin": None,
        "lotSize": 1,
        "maturityDate": None,
        "exerciseDate": None,
        "exercisePrice": None,
        "callOrPut": None,
        "sharesPerContract": None,
        "priceMultiplier": 0.01,
        "minimumPriceStep": 1,
        "underlyingInstrumentCode": None,
        "underlyingInstrumentExchange": None,
    }


@functools.cache
def _quote(security: str) -> bytes:
    code, _, exchange = security.partition("@")[0].partition(".")
    counts = dict.fromkeys(("askCount", "askVolume", "bidCount", "bidVolume", "totalVolume", "tradeCount"), 1234)
    prices = dict.fromkeys(("askPrice", "bidPrice", "highPrice", "lastPrice", "lowPrice", "openPrice"), 4005.5)
    times = dict.fromkeys(("tradeDateTime", "updateDateTime"), "2026-03-05T12:00:00")
    names = {"securityCode": code, "exchange": exchange, "dataSource": "TM", "tradingStatus": "PRE_OPEN"}
    return _json({**names, **counts, **prices, **times, "totalValue": 123456.78, "priceMultiplier": 0.01})


@functools.cache
def _orders() -> bytes:
    names = {"orderNumber": 1, "accountCode": "A", "securityCode": "BHP", "exchange": "ASX", "orderState": "ACTIVE"}
    amounts = {"orderVolume": 100, "orderPrice": 4005, "remainingVolume": 100, "doneVolumeTotal": 0}
    return reply(200, _json([{**names, **amounts, "priceMultiplier": 0.01}]))


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def reply(status: int, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status} .\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def serve(latency: float) -> None:
    """Serve until the process is ended; the URL is printed first."""
    counts = _Counts()
    # A queue for a thousand clients that connect simultaneously.
    server = await asyncio.get_running_loop().create_server(
        lambda: _Connection(latency, counts), "127.0.0.1", 0, backlog=4096
    )
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency", type=float, required=True)
    asyncio.run(serve(parser.parse_args().latency))
