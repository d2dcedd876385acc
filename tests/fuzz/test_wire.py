"""Whole replies, byte by byte, over a socket: status lines, headers, framing and encodings."""

from __future__ import annotations

import functools
import socket
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from openmarkets_provider.client.client import OpenmarketsClient, _BlockingIo
from openmarkets_provider.client.exchange import Exchange
from openmarkets_provider.client.io import run_blocking
from openmarkets_provider.client.metrics import NO_METRICS
from openmarkets_provider.client.settings import Settings
from openmarkets_provider.exceptions import OpenmarketsError
from openmarkets_provider.query.plan import ApiCall
from tests.client.conftest import token_reply
from tests.fuzz.bounds import SHORT, bounded, check_error
from tests.fuzz.strategies import bodies, bomb, http_statuses, retry_afters, texts
from tests.support.hostile import HostileServer
from tests.support.processes import NoMasker

CALL = ApiCall("oms", "GET", "accounts/v1", safe_to_repeat=True, exact=True)
ACCOUNTS = [{"accountCode": "SBX0001", "accountName": "x", "accountDesignation": None}]
TOKEN = {"access_token": "b15ec9", "expires_in": 3600, "token_type": "Bearer"}
BOMB = bomb(80 << 20)
"""Unpacks to more than a reply may be: the client stops at 64 MB."""
names = st.sampled_from(
    [
        "Content-Encoding",
        "Content-Type",
        "Retry-After",
        "Location",
        "Set-Cookie",
        "X-Request-ID",
        "Connection",
        "Link",
        "WWW-Authenticate",
        "Trailer",
        "Upgrade",
        "Transfer-Encoding",
        "Content-Length",
        "Date",
        "",
        "A b",
        "é",
        "\x00",
    ]
)
header_values = st.one_of(
    retry_afters,
    texts,
    st.sampled_from(
        [
            "gzip",
            "GZIP",
            "gzip, gzip",
            "deflate",
            "br",
            "identity",
            "chunked",
            "0",
            "-1",
            "5",
            "9" * 30,
            "close",
            "h2c",
            "http://evil.example.com/",
            "//",
            "https://[",
            "/%zz",
            "\\\\host",
            "a=b; Domain=.com; Max-Age=1e400",
            "x" * 500,
            "text/html; charset=utf-7",
            "application/json; charset=klingon",
            "a=b; expires=Mon, 99 Foo 99999",
        ]
    ),
)
status_lines = st.one_of(
    http_statuses.map(lambda status: f"HTTP/1.1 {status} Whatever"),
    st.sampled_from(
        [
            "HTTP/1.0 200 OK",
            "HTTP/2 200",
            "HTTP/1.1 99 x",
            "HTTP/1.1 1000 x",
            "HTTP/1.1 200",
            "HTTP/1.1 101 Upgrade",
            "ICY",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK",
            "HTTP/1.1 204 x",
            "HTTP/1.1 304 x",
            "",
            "HTTP/1.1 200 \x00",
            "{}",
        ]
    ),
)


@st.composite
def wire_replies(draw: st.DrawFn, valid: Any) -> bytes:
    body = BOMB if draw(st.integers(0, 30)) == 0 else draw(bodies(valid))
    encoded = body.startswith(b"\x1f\x8b") and draw(st.integers(0, 4))
    lines = [draw(status_lines), *(["Content-Encoding: gzip"] if encoded else [])]
    lines += [f"{name}: {value}" for name, value in draw(st.lists(st.tuples(names, header_values), max_size=3))]
    match draw(st.sampled_from(["length"] * 4 + ["none", "more", "less", "chunked"])):
        case "length":
            lines.append(f"Content-Length: {len(body)}")
        case "more":
            lines.append(f"Content-Length: {len(body) + 5}")
        case "less":
            lines.append(f"Content-Length: {max(0, len(body) - 5)}")
        case "chunked":
            lines.append("Transfer-Encoding: chunked")
            chunk = draw(st.sampled_from(["%x", "%x;a=b", "-%x", "0%x", "%xg", "fffffffff%x"])) % len(body)
            body = (
                chunk.encode()
                + b"\r\n"
                + body
                + draw(st.sampled_from([b"\r\n0\r\n\r\n", b"", b"\r\n0\r\nA: b\r\n\r\n"]))
            )
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogatepass") + body


class _Wire:
    """A server that gives the next reply to each request of an API, or for a token, and a client of it."""

    def __init__(self) -> None:
        self.token = self.reply = b""
        # For as long as the process lives.
        server = HostileServer(self._answer)
        server.__enter__()
        settings = Settings(
            client_id="someone", client_secret="S3CR3T", identity_url=server.url, oms_url=server.url, timeout=20.0
        )
        self.client = OpenmarketsClient(settings, store=None, masker=NoMasker(), user_agent="fuzz")

    def _answer(self, sock: socket.socket, request: bytes) -> None:
        sock.sendall(self.token if request.startswith(b"POST /connect/token") else self.reply)
        # What is cut ends here, and is not waited for.
        sock.close()


class _WithoutHolds(_BlockingIo):
    """A 429 must not keep the next example waiting."""

    async def record_hold(self, api: str, seconds: float | None) -> None:
        pass


@functools.cache
def wire() -> _Wire:
    return _Wire()


@SHORT
@given(wire_replies(ACCOUNTS))
def test_replies_of_an_api(reply):
    there = wire()
    there.token, there.reply = token_reply("t0ken"), reply
    exchange = Exchange(_WithoutHolds(there.client), there.client.holds, NO_METRICS)
    with bounded(len(reply) + (3 << 19 if BOMB in reply else 200_000)):
        try:
            run_blocking(exchange.attempt(CALL))
        except OpenmarketsError as error:
            check_error(error, "t0ken")


@SHORT
@given(wire_replies(TOKEN))
def test_replies_of_the_identity_server(reply):
    there = wire()
    there.token = reply
    with bounded(len(reply) + 200_000):
        try:
            there.client._fetch_token("oms-api")
        except OpenmarketsError as error:
            check_error(error, "S3CR3T")
