"""A server for benchmarks that costs little: daily bars of any security, the same ones for all, after a set latency.

The sandbox makes its data up and takes more of a small machine than the client that is measured. This one keeps the
bytes of each range. It knows three calls: token, security information, daily bars.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
from datetime import date, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.process import ServerProcess

TOKEN = "the-token-of-the-bulk-server"
SERIES, INFORMATION, LOGIN = "/pricing/timeseries/", "/securities/information/v2", "/connect/token"


class BulkServer(ServerProcess):
    """Runs the server in a process of its own, on a free port of loopback.

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
        extra = {"market_data_url": self.url, "scopes": ["market-data-api"]}
        connection = {"conn_type": "openmarkets", "host": self.url, "login": "bulk", "password": "bulk-secret"}
        return json.dumps({**connection, "extra": extra})


class _Connection(asyncio.Protocol):
    """Answers the requests of one connection, each when its latency is over."""

    def __init__(self, latency: float) -> None:
        self._latency = latency
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
        reply = answer(method, target, headers.get("authorization", ""), body)
        asyncio.get_running_loop().call_later(self._latency, self._transport.write, reply)


def answer(method: str, target: str, authorization: str, body: bytes) -> bytes:
    """Return the whole reply to a request."""
    url = urlsplit(target)
    if (method, url.path) == ("POST", LOGIN):
        return _reply(200, _json({"access_token": TOKEN, "expires_in": 3600, "token_type": "Bearer"}))
    if authorization != f"Bearer {TOKEN}":
        return _reply(401, b"")
    if (method, url.path) == ("POST", INFORMATION):
        return _reply(200, _json(list(map(_information, json.loads(body)["securities"]))))
    if method == "GET" and url.path.startswith(SERIES) and url.path.endswith("/v2"):
        params = parse_qs(url.query)
        return _bars(params["dateFrom"][0], params["dateTo"][0])
    return _reply(404, b"")


@functools.cache
def _bars(first: str, last: str) -> bytes:
    """Return the reply with a bar for each weekday of a range, both ends in it; prices are in cents."""
    start = date.fromisoformat(first)
    days = (start + timedelta(days=number) for number in range((date.fromisoformat(last) - start).days + 1))
    return _reply(200, _json([_bar(day) for day in days if day.weekday() < 5]))


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


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _reply(status: int, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status} .\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def serve(latency: float) -> None:
    """Serve until the process is ended; the URL is printed first."""
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(latency), "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency", type=float, required=True)
    asyncio.run(serve(parser.parse_args().latency))
