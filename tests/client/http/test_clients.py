from __future__ import annotations

import asyncio
import gc
import gzip
import os
import random
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpcore
import pytest
import trustme

from openmarkets_provider.client.http.clients import (
    AsyncHttpClient,
    HttpClient,
    HttpRequest,
    NoAnswer,
    Options,
    Reply,
)
from openmarkets_provider.client.http.deadline import (
    AsyncioBackend,
    DeadlineBackend,
    async_deadline,
    cancel_on,
    deadline,
)
from openmarkets_provider.exceptions import OpenmarketsConfigurationError, OpenmarketsInvalidResponse
from tests.support import hostile
from tests.support.black_hole import black_hole
from tests.support.hostile import HostileServer

TIMEOUT = 0.4
WELL_BELOW_A_HANG = 10.0

Fetch = Callable[..., Reply]


def request_of(http: HttpClient | AsyncHttpClient, content: bytes, bound: int | None) -> HttpRequest:
    request = http.build("POST" if content else "GET", "thing", content=content, headers={})
    return request if bound is None else request._replace(max_bytes=bound)


def fetch_sync(
    url: str, *, timeout: float = 5.0, ca_bundle: str | None = None, bound: int | None = None, content: bytes = b""
) -> Reply:
    http = HttpClient(url, Options(timeout, ca_bundle, "t/1"))
    try:
        return http.send(request_of(http, content, bound))
    finally:
        http.close()


def fetch_async(
    url: str, *, timeout: float = 5.0, ca_bundle: str | None = None, bound: int | None = None, content: bytes = b""
) -> Reply:
    async def fetch() -> Reply:
        http = AsyncHttpClient(url, Options(timeout, ca_bundle, "t/1"))
        try:
            return await http.send(request_of(http, content, bound))
        finally:
            await http.aclose()

    return asyncio.run(fetch())


def send(http: HttpClient) -> Reply:
    return http.send(request_of(http, b"", None))


@contextmanager
def no_answer(*kinds: type[Exception], match: str = ".") -> Iterator[None]:
    """Expect that there is no answer, for one of these reasons."""
    with pytest.raises(NoAnswer, match=match) as caught:
        yield
    assert isinstance(caught.value.__cause__, kinds)


@pytest.fixture(params=[fetch_sync, fetch_async], ids=["sync", "async"])
def fetch(request: pytest.FixtureRequest) -> Fetch:
    return request.param


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def bundle(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


def server_tls(authority: trustme.CA, name: str = "127.0.0.1") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


@pytest.fixture
def secure(authority: trustme.CA) -> Iterator[HostileServer]:
    with HostileServer(hostile.answering(hostile.reply(b'"safe"')), tls=server_tls(authority)) as server:
        yield server


def dripping(start: bytes, drop: bytes) -> hostile.Handler:
    """Send something small again and again, always before a single read would time out."""

    def handle(sock: socket.socket, request: bytes) -> None:
        sock.sendall(start)
        while True:
            sock.sendall(drop)
            time.sleep(0.1)

    return handle


def stalling(start: bytes) -> hostile.Handler:
    """Send something and then nothing more."""

    def handle(sock: socket.socket, request: bytes) -> None:
        sock.sendall(start)
        hostile.silent(sock, request)

    return handle


class TestTotalTimeout:
    @pytest.mark.parametrize(
        "handler",
        [
            pytest.param(dripping(b"HTTP/1.1 200 OK\r\nX-A: ", b"a"), id="header"),
            pytest.param(dripping(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"), id="headers"),
            pytest.param(dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), id="informational"),
            pytest.param(dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n", b"x"), id="body"),
            pytest.param(
                dripping(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"), id="chunks"
            ),
            pytest.param(
                dripping(
                    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(b"")[:10],
                    b"\0\0\0\xff\xff",
                ),
                id="gzip of nothing",
            ),
            pytest.param(stalling(b"HTTP/1.1 200 OK\r\nX-"), id="stalled header"),
            pytest.param(stalling(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n["), id="stalled body"),
            pytest.param(hostile.silent, id="no answer"),
        ],
    )
    def test_ends_an_exchange_that_goes_on(self, fetch: Fetch, handler: hostile.Handler) -> None:
        with HostileServer(handler) as server:
            began = time.monotonic()
            with no_answer(httpcore.TimeoutException):
                fetch(server.url, timeout=TIMEOUT)
            assert time.monotonic() - began < WELL_BELOW_A_HANG
            assert server.closed.wait(WELL_BELOW_A_HANG)

    def test_ends_a_tls_handshake_without_an_end(self, fetch: Fetch) -> None:
        with HostileServer(hostile.silent, waits=False) as server:
            began = time.monotonic()
            with no_answer(httpcore.TimeoutException):
                fetch(server.url.replace("http:", "https:"), timeout=TIMEOUT)
            assert time.monotonic() - began < WELL_BELOW_A_HANG

    async def test_leaves_no_connection_open_on_the_event_loop(self) -> None:
        with HostileServer(hostile.silent, waits=False) as server:
            url = server.url.replace("http:", "https:")
            http = AsyncHttpClient(url, Options(0.3, None, "t/1"))
            with no_answer(httpcore.TimeoutException):
                await http.send(request_of(http, b"", None))
            assert await asyncio.to_thread(server.closed.wait, WELL_BELOW_A_HANG)
            await http.aclose()

    @pytest.mark.parametrize("pause", [60.0, 0.1], ids=["not at all", "slowly"])
    def test_ends_a_request_that_nobody_reads(self, fetch: Fetch, pause: float) -> None:
        done = threading.Event()

        def handle(sock: socket.socket, request: bytes) -> None:
            while not done.wait(pause) and sock.recv(1 << 16):
                pass

        with HostileServer(handle, waits=False) as server:
            began = time.monotonic()
            with no_answer(httpcore.TimeoutException):
                fetch(server.url, timeout=TIMEOUT, content=bytes(64 << 20))
            done.set()
            assert time.monotonic() - began < WELL_BELOW_A_HANG

    def test_covers_the_tls_exchange_too(self, fetch: Fetch, authority: trustme.CA, bundle: str) -> None:
        handler = dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n", b"x")
        with HostileServer(handler, tls=server_tls(authority)) as server:
            began = time.monotonic()
            with no_answer(httpcore.TimeoutException):
                fetch(server.url, timeout=TIMEOUT, ca_bundle=bundle)
            assert time.monotonic() - began < WELL_BELOW_A_HANG

    def test_starts_anew_with_each_request(self) -> None:
        def slow(sock: socket.socket, request: bytes) -> None:
            time.sleep(0.3)
            sock.sendall(hostile.reply())

        with HostileServer(slow) as server:
            http = HttpClient(server.url, Options(1.0, None, "t/1"))
            assert [send(http).status for _ in range(4)] == [200] * 4
            http.close()
        assert server.connections == 1


class Loop(asyncio.SelectorEventLoop):
    """An event loop that looks no name up: every host has the same addresses."""

    addresses: Sequence[str] = ()

    async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> list[Any]:
        kind = socket.SOCK_STREAM
        return [(socket.AF_INET, kind, socket.IPPROTO_TCP, "", (each, port)) for each in self.addresses]


def connect_sync(port: int, *addresses: str, timeout: float) -> None:
    """Connect to a host of several addresses."""
    backend = DeadlineBackend(lambda host, port: list(addresses))
    with deadline(timeout):
        backend.connect_tcp("several.example", port, timeout=timeout).close()


def connect_async(port: int, *addresses: str, timeout: float) -> None:
    async def connect() -> None:
        async with async_deadline(timeout):
            stream = await AsyncioBackend().connect_tcp("several.example", port, timeout=timeout)
            await stream.aclose()

    loop = Loop()
    loop.addresses = addresses
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(connect())


class TestConnectTimeout:
    @pytest.mark.parametrize("connect", [connect_sync, connect_async], ids=["sync", "async"])
    def test_is_one_for_all_addresses_of_a_host(self, connect: Callable[..., None]) -> None:
        addresses = [f"127.0.0.{number}" for number in range(1, 9)]
        with ExitStack() as holes:
            port = holes.enter_context(black_hole()).getsockname()[1]
            for address in addresses[1:]:
                holes.enter_context(black_hole(address, port))
            start = time.monotonic()
            with pytest.raises(httpcore.TimeoutException):
                connect(port, *addresses, timeout=TIMEOUT)
            # Each of the eight would have as much.
            assert time.monotonic() - start < 4 * TIMEOUT

    @pytest.mark.parametrize("connect", [connect_sync, connect_async], ids=["sync", "async"])
    def test_leaves_time_for_the_second_address(self, connect: Callable[..., None]) -> None:
        with black_hole() as hole, socket.create_server(("127.0.0.2", hole.getsockname()[1])) as listener:
            connect(hole.getsockname()[1], "127.0.0.1", "127.0.0.2", timeout=2.0)
            listener.settimeout(WELL_BELOW_A_HANG)
            listener.accept()[0].close()

    def test_covers_the_look_up_of_the_name(self) -> None:
        found = threading.Event()

        def resolve(host: str, port: int) -> list[str]:
            found.wait(WELL_BELOW_A_HANG)
            return ["127.0.0.1"]

        with HostileServer(hostile.silent) as server:
            with pytest.raises(httpcore.ConnectTimeout), deadline(TIMEOUT):
                DeadlineBackend(resolve).connect_tcp("slow.example", server.port, timeout=60.0)
            found.set()

    def test_closes_a_connection_that_comes_while_the_caller_gives_up(self) -> None:
        asked = threading.Event()

        class Over(threading.Event):
            def is_set(self) -> bool:
                """Say so when the connection has come."""
                asked.set()
                (opening,) = (each for each in threading.enumerate() if each.name == "openmarkets-connect")
                opening.join(WELL_BELOW_A_HANG)
                return True

        def resolve(host: str, port: int) -> list[str]:
            asked.wait(WELL_BELOW_A_HANG)
            return ["127.0.0.1"]

        def connect(port: int) -> None:
            cancel_on(Over())
            with suppress(httpcore.ConnectTimeout):
                DeadlineBackend(resolve).connect_tcp("slow.example", port, timeout=60.0)

        with socket.create_server(("127.0.0.1", 0)) as listener:
            thread = threading.Thread(target=connect, args=(listener.getsockname()[1],))
            thread.start()
            thread.join(WELL_BELOW_A_HANG)
            listener.settimeout(WELL_BELOW_A_HANG)
            sock, _ = listener.accept()
            with sock:
                sock.settimeout(TIMEOUT)
                assert sock.recv(1) == b""

    def test_closes_a_connection_that_has_no_time_left_for_tls(self) -> None:
        with HostileServer(hostile.silent) as server, deadline(TIMEOUT):
            stream = DeadlineBackend().connect_tcp("127.0.0.1", server.port)
            sock = stream.get_extra_info("socket")
            time.sleep(2 * TIMEOUT)
            with pytest.raises(httpcore.ConnectTimeout):
                stream.start_tls(ssl.create_default_context(), "127.0.0.1")
            assert sock.fileno() == -1

    async def test_closes_what_it_has_opened_whenever_its_task_is_cancelled(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            for steps in range(12):
                task = asyncio.create_task(AsyncioBackend().connect_tcp("127.0.0.1", listener.getsockname()[1]))
                for _ in range(steps):
                    await asyncio.sleep(0)
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await (await task).aclose()
            await asyncio.sleep(0)
        # Python warns of a socket that nobody has closed, and pytest makes an error of it.
        gc.collect()

    def test_does_not_keep_a_run_that_is_over(self) -> None:
        over = threading.Event()
        problems = []

        def connect(port: int) -> None:
            cancel_on(over)
            try:
                DeadlineBackend().connect_tcp("127.0.0.1", port, timeout=600.0)
            except httpcore.ConnectTimeout as error:
                problems.append(error)

        with black_hole() as listener:
            thread = threading.Thread(target=connect, args=(listener.getsockname()[1],), daemon=True)
            thread.start()
            over.set()
            thread.join(WELL_BELOW_A_HANG)
            assert problems
            # After the one that fills the queue comes the one that is too late: it is closed again.
            listener.settimeout(WELL_BELOW_A_HANG)
            listener.accept()[0].close()
            with listener.accept()[0] as late:
                late.settimeout(WELL_BELOW_A_HANG)
                assert late.recv(1) == b""

    @pytest.mark.parametrize("host", ["no-such-host.invalid", f"{'a' * 70}.example", "a..example"])
    def test_a_name_without_an_address_is_a_connect_error(self, fetch: Fetch, host: str) -> None:
        with no_answer(httpcore.ConnectError):
            fetch(f"https://{host}")


class TestConnection:
    def test_a_refused_connection_is_a_connect_error(self, fetch: Fetch) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        with no_answer(httpcore.ConnectError):
            fetch(f"http://127.0.0.1:{port}")

    def test_a_reset_is_a_read_error(self, fetch: Fetch) -> None:
        with HostileServer(hostile.reset) as server, no_answer(httpcore.ReadError):
            fetch(server.url)

    @pytest.mark.parametrize(
        "handler",
        [
            pytest.param(hostile.ending(b"HTTP/1.1 200 OK\r\n", b"X-Long: " + b"x" * 4096 + b"\r\n"), id="headers"),
            pytest.param(hostile.ending(b"HTTP/1.1 200 OK\r\nX-Long: ", b"x" * 65536), id="header"),
            pytest.param(hostile.ending(b"", b"no HTTP at all"), id="not HTTP"),
            pytest.param(hostile.ending(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[1,2"), id="body cut short"),
            pytest.param(
                hostile.ending(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n[1,2\r\n"),
                id="no last chunk",
            ),
            pytest.param(hostile.ending(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"), id="negative length"),
            pytest.param(
                hostile.ending(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"), id="two lengths"
            ),
            pytest.param(hostile.ending(b""), id="nothing"),
        ],
    )
    def test_what_is_not_http_is_a_protocol_error(self, fetch: Fetch, handler: hostile.Handler) -> None:
        with HostileServer(handler) as server, no_answer(httpcore.RemoteProtocolError):
            fetch(server.url)

    @pytest.mark.parametrize("more", [b"", hostile.reply(b'"stray"', 408)], ids=["closed", "stray reply"])
    @pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
    @pytest.mark.parametrize("kind", ["sync", "async"])
    def test_that_the_server_gave_up_is_not_used_again(self, kind: str, busy: bool, more: bytes) -> None:
        """A request that is not safe to repeat would fail there, or get another one's reply."""

        def handle(sock: socket.socket, request: bytes) -> None:
            sock.sendall(hostile.reply(b'"right"'))
            if len(server.requests) == 1:
                time.sleep(0.05)
                sock.sendall(more)
                if not more:
                    sock.close()

        async def twice(url: str) -> list[bytes]:
            http = AsyncHttpClient(url, Options(5.0, None, "t/1"))
            first = await http.send(request_of(http, b"", None))
            time.sleep(0.3 * busy)  # noqa: ASYNC251 - the event loop sees nothing of what arrives
            await asyncio.sleep(0.3 * (not busy))
            second = await http.send(request_of(http, b"x", None))
            await http.aclose()
            return [first.body, second.body]

        with HostileServer(handle) as server:
            if kind == "async":
                bodies = asyncio.run(twice(server.url))
            else:
                http = HttpClient(server.url, Options(5.0, None, "t/1"))
                bodies = [send(http).body]
                time.sleep(0.3)
                bodies.append(http.send(request_of(http, b"x", None)).body)
                http.close()
            assert bodies == [b'"right"'] * 2
            assert server.connections == 2

    def test_redirects_are_not_followed(self, fetch: Fetch) -> None:
        with HostileServer(hostile.answering(hostile.reply())) as other:
            away = hostile.reply(b"", 302, [f"Location: {other.url}/elsewhere"])
            with HostileServer(hostile.answering(away)) as server:
                assert fetch(server.url).status == 302
        assert other.connections == 0

    def test_netrc_is_not_used(self, fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        netrc = tmp_path / "netrc"
        netrc.write_text("machine 127.0.0.1 login somebody password else\ndefault login x password y\n")
        netrc.chmod(0o600)
        monkeypatch.setenv("NETRC", str(netrc))
        with HostileServer(hostile.answering(hostile.reply())) as server:
            fetch(server.url)
        assert hostile.header(server.requests[0], "authorization") is None

    def test_headers_say_who_asks_and_what_is_understood(self, fetch: Fetch) -> None:
        with HostileServer(hostile.answering(hostile.reply())) as server:
            fetch(server.url)
        [request] = server.requests
        assert hostile.header(request, "user-agent") == "t/1"
        assert hostile.header(request, "accept") == "application/json"
        assert hostile.header(request, "accept-encoding") == "gzip"


def test_headers_have_one_name_each_in_small_letters(fetch: Fetch) -> None:
    lines = ["X-Request-ID: r1", "Link: <a>", "LINK: <b>", "X-Name: \xe9"]
    with HostileServer(hostile.answering(hostile.reply(b"", 200, lines))) as server:
        headers = fetch(server.url).headers
    assert headers == {"content-length": "0", "x-request-id": "r1", "link": "<a>, <b>", "x-name": "\xe9"}


def encoded(data: bytes, encoding: str = "gzip", *, framed: bool = True) -> bytes:
    """Return a reply with a content encoding, and its length or an end by closing."""
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {encoding}\r\n"
    head += f"Content-Length: {len(data)}\r\n\r\n" if framed else "Connection: close\r\n\r\n"
    return head.encode() + data


class TestBody:
    @pytest.mark.parametrize("framed", [True, False], ids=["length", "close"])
    @pytest.mark.parametrize(
        ("data", "encoding", "expected"),
        [
            pytest.param(gzip.compress(b"[1]"), "gzip", b"[1]", id="gzip"),
            pytest.param(gzip.compress(b"[1]"), " GZip ", b"[1]", id="letter case"),
            pytest.param(b"[1]", "identity", b"[1]", id="identity"),
            pytest.param(b"[1]", "", b"[1]", id="empty name"),
            pytest.param(gzip.compress(b""), "gzip", b"", id="gzip of nothing"),
            pytest.param(b"", "gzip", b"", id="nothing"),
            pytest.param(gzip.compress(bytes(5 << 20)), "gzip", bytes(5 << 20), id="several pieces"),
        ],
    )
    def test_is_decoded(self, fetch: Fetch, data: bytes, encoding: str, expected: bytes, framed: bool) -> None:
        with HostileServer(hostile.ending(encoded(data, encoding, framed=framed))) as server:
            response = fetch(server.url)
        assert response.body == expected

    @pytest.mark.parametrize("cut", [1 << 20, (1 << 20) + 1, (3 << 20) - 1])
    def test_is_whole_however_it_arrives(self, fetch: Fetch, cut: int) -> None:
        # sizes around the one of a piece, and a network that cuts anywhere
        chance = random.Random(cut)
        content = chance.randbytes(1000) * (cut // 1000) + chance.randbytes(cut % 1000)
        data = gzip.compress(content)

        def handle(sock: socket.socket, request: bytes) -> None:
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n")
            at = 0
            while part := data[at : at + chance.randint(1, 2000)]:
                sock.sendall(b"%x\r\n%b\r\n" % (len(part), part))
                at += len(part)
            sock.sendall(b"0\r\n\r\n")

        with HostileServer(handle) as server:
            assert fetch(server.url).body == content

    @pytest.mark.parametrize("encoding", ["gzip, gzip", "br", "deflate", "zstd", "gzip, identity", "x" * 9999])
    def test_is_refused_in_an_encoding_that_was_not_asked_for(self, fetch: Fetch, encoding: str) -> None:
        with HostileServer(hostile.answering(encoded(gzip.compress(b"[1]"), encoding))) as server:
            with pytest.raises(OpenmarketsInvalidResponse, match="content encoding") as caught:
                fetch(server.url)
            assert server.closed.wait(WELL_BELOW_A_HANG), "the connection of a refused reply stays open"
        assert caught.value.status == 200
        assert caught.value.sent
        assert len(str(caught.value)) < 300

    def test_that_is_encoded_twice_is_refused(self, fetch: Fetch) -> None:
        twice = hostile.reply(gzip.compress(gzip.compress(b"[1]")), 200, ["Content-Encoding: gzip"] * 2)
        with (
            HostileServer(hostile.answering(twice)) as server,
            pytest.raises(OpenmarketsInvalidResponse, match="content encoding 'gzip, gzip'"),
        ):
            fetch(server.url)

    @pytest.mark.parametrize("framed", [True, False], ids=["length", "close"])
    @pytest.mark.parametrize(
        ("data", "problem"),
        [
            pytest.param(b"[1]", "damaged gzip", id="not gzip"),
            pytest.param(gzip.compress(b"[1]" * 99)[:10] + b"\xff" * 9, "damaged gzip", id="damaged"),
            pytest.param(gzip.compress(b"[1]")[:-5] + b"\0" * 5, "damaged gzip", id="wrong checksum"),
            pytest.param(zlib.compress(b"[1]"), "damaged gzip", id="zlib"),
            pytest.param(gzip.compress(os.urandom(4000))[:-1000], "truncated gzip", id="truncated"),
            pytest.param(gzip.compress(b"[1]")[:-1], "truncated gzip", id="truncated checksum"),
            pytest.param(gzip.compress(b"[1]")[:11], "truncated gzip", id="truncated before any content"),
            pytest.param(gzip.compress(b"[1]")[:1], "truncated gzip", id="truncated in its header"),
            pytest.param(gzip.compress(b"[1]") + b"more", "extra data at the end", id="trailing data"),
            pytest.param(gzip.compress(b"[1]") + gzip.compress(b"[2]"), "extra data at the end", id="two members"),
        ],
    )
    def test_of_bad_gzip_is_refused(self, fetch: Fetch, data: bytes, problem: str, framed: bool) -> None:
        answer = encoded(data, framed=framed)
        with HostileServer(hostile.answering(answer) if framed else hostile.ending(answer)) as server:
            with pytest.raises(OpenmarketsInvalidResponse, match=problem) as caught:
                fetch(server.url)
            assert not framed or server.closed.wait(WELL_BELOW_A_HANG)
        assert caught.value.status == 200

    def test_that_trails_the_gzip_in_a_chunk_of_its_own_is_refused(self, fetch: Fetch) -> None:
        data = gzip.compress(b"[1]")
        start = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
        start += b"%x\r\n%b\r\n" % (len(data), data)
        with (
            HostileServer(hostile.ending(start, b"1000\r\n" + b"x" * 4096 + b"\r\n")) as server,
            pytest.raises(OpenmarketsInvalidResponse, match="extra data at the end"),
        ):
            fetch(server.url)

    def test_may_be_as_large_as_its_bound_and_no_larger(self, fetch: Fetch) -> None:
        with HostileServer(hostile.answering(hostile.reply(b"x" * 1000))) as server:
            assert len(fetch(server.url, bound=1000).body) == 1000
            with pytest.raises(OpenmarketsInvalidResponse, match="larger than 999 bytes"):
                fetch(server.url, bound=999)

    def test_without_an_end_is_refused(self, fetch: Fetch) -> None:
        with HostileServer(hostile.ending(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65536)) as server:
            with pytest.raises(OpenmarketsInvalidResponse, match="larger than") as caught:
                fetch(server.url, bound=1 << 20)
            assert server.closed.wait(WELL_BELOW_A_HANG)
        assert caught.value.sent

    @pytest.mark.parametrize("kind", ["sync", "async"])
    @pytest.mark.parametrize("attack", ["bomb", "endless", "trailing"])
    def test_never_needs_much_memory(self, kind: str, attack: str) -> None:
        # in a separate process, so that its peak memory is that of this exchange
        bound = 16 << 20
        squeezer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        zeros = squeezer.compress(bytes(64 << 20)) + squeezer.flush(zlib.Z_FULL_FLUSH)
        gzip_head = gzip.compress(b"")[:10]
        start, more = {
            # 4 GB in 4 MB
            "bomb": (encoded(gzip_head, framed=False) + zeros * 64, b""),
            "endless": (b"HTTP/1.1 200 OK\r\n\r\n", b"x" * (1 << 20)),
            "trailing": (encoded(gzip.compress(b"{}"), framed=False), b"x" * (1 << 20)),
        }[attack]
        script = """
            import resource, sys
            from openmarkets_provider.exceptions import OpenmarketsInvalidResponse
            from tests.client.http.test_clients import fetch_async, fetch_sync
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            fetch = {"sync": fetch_sync, "async": fetch_async}[sys.argv[2]]
            try:
                fetch(sys.argv[1], timeout=20.0, bound=int(sys.argv[3]))
            except OpenmarketsInvalidResponse as error:
                print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)
        """
        with HostileServer(hostile.ending(start, more)) as server:
            command = [sys.executable, "-c", textwrap.dedent(script), server.url, kind, str(bound)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        kilobytes, _, message = done.stdout.partition(" ")
        assert message, "the reply was taken"
        # the pieces and their whole, and what the modules that are imported late take
        assert int(kilobytes) < (2 * bound + (24 << 20)) / 1024


class TestTls:
    def test_works_with_the_authority_of_the_bundle(self, fetch: Fetch, secure: HostileServer, bundle: str) -> None:
        assert fetch(secure.url, ca_bundle=bundle).body == b'"safe"'

    def test_an_unknown_authority_is_refused(self, fetch: Fetch, secure: HostileServer) -> None:
        with no_answer(httpcore.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            fetch(secure.url)
        assert secure.requests == []

    def test_another_hosts_certificate_is_refused(self, fetch: Fetch, authority: trustme.CA, bundle: str) -> None:
        with HostileServer(hostile.silent, tls=server_tls(authority, "openmarkets.example")) as server:
            with no_answer(httpcore.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                fetch(server.url, ca_bundle=bundle)
            assert server.requests == []

    def test_a_server_without_tls_is_a_connect_error(self, fetch: Fetch) -> None:
        with (
            HostileServer(hostile.ending(b"HTTP/1.1 400 Speak plainly\r\n\r\n"), waits=False) as server,
            no_answer(httpcore.ConnectError),
        ):
            fetch(server.url.replace("http:", "https:"))

    @pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"], ids=["head", "body"])
    def test_noise_on_the_connection_is_a_transport_error(
        self, fetch: Fetch, authority: trustme.CA, bundle: str, start: bytes
    ) -> None:
        def handle(sock: socket.socket, request: bytes) -> None:
            sock.sendall(start)
            os.write(sock.fileno(), b"this is no TLS record" * 99)

        with (
            HostileServer(handle, tls=server_tls(authority)) as server,
            no_answer(httpcore.ReadError, httpcore.RemoteProtocolError),
        ):
            fetch(server.url, ca_bundle=bundle)

    def test_a_server_that_wants_a_client_certificate_is_a_transport_error(
        self, fetch: Fetch, authority: trustme.CA, bundle: str
    ) -> None:
        context = server_tls(authority)
        context.verify_mode = ssl.CERT_REQUIRED
        authority.configure_trust(context)
        with (
            HostileServer(hostile.silent, tls=context) as server,
            no_answer(httpcore.NetworkError, httpcore.ProtocolError),
        ):
            fetch(server.url, ca_bundle=bundle)

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"this is no PEM file",
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            b"\0\xff" * 999,
        ],
        ids=["empty", "text", "no certificate", "binary"],
    )
    def test_a_bundle_without_certificates_is_named(self, fetch: Fetch, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "ca.pem"
        path.write_bytes(content)
        with pytest.raises(OpenmarketsConfigurationError, match=f"ca_bundle: '{path}'"):
            fetch("https://127.0.0.1:1", ca_bundle=str(path))

    def test_a_bundle_that_went_away_is_named(self, fetch: Fetch, tmp_path: Path) -> None:
        with pytest.raises(OpenmarketsConfigurationError, match=r"ca_bundle: .*gone\.pem"):
            fetch("https://127.0.0.1:1", ca_bundle=str(tmp_path / "gone.pem"))

    def test_the_environments_bundle_is_named_when_it_can_not_be_used(
        self, fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "gone.pem"))
        with pytest.raises(OpenmarketsConfigurationError, match="SSL_CERT_FILE"):
            fetch("https://127.0.0.1:1")

    @pytest.mark.parametrize("kind", ["sync", "async"])
    @pytest.mark.parametrize("name", ["ca_bundle", "SSL_CERT_FILE"])
    def test_a_renewed_bundle_counts_for_the_next_connection(
        self, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str
    ) -> None:
        path = tmp_path / "ca.pem"
        trustme.CA().cert_pem.write_to_path(str(path))
        monkeypatch.setenv("SSL_CERT_FILE", str(path))

        def send_twice(url: str) -> bytes:
            http = HttpClient(url, options)
            with no_answer(httpcore.ConnectError):
                send(http)
            authority.cert_pem.write_to_path(str(path))
            reply = send(http)
            http.close()
            return reply.body

        async def send_twice_on_a_loop(url: str) -> bytes:
            http = AsyncHttpClient(url, options)
            with no_answer(httpcore.ConnectError):
                await http.send(request_of(http, b"", None))
            authority.cert_pem.write_to_path(str(path))
            reply = await http.send(request_of(http, b"", None))
            await http.aclose()
            return reply.body

        options = Options(5.0, str(path) if name == "ca_bundle" else None, "t/1")
        with HostileServer(hostile.answering(hostile.reply(b'"safe"')), tls=server_tls(authority)) as server:
            body = send_twice(server.url) if kind == "sync" else asyncio.run(send_twice_on_a_loop(server.url))
        assert body == b'"safe"'

    def test_one_context_serves_all_clients_of_a_process(
        self, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = []
        original = ssl.create_default_context

        def create(*args: Any, **kwargs: Any) -> ssl.SSLContext:
            made.append(original(*args, **kwargs))
            return made[-1]

        bundle = str(tmp_path / "ca.pem")
        authority.cert_pem.write_to_path(bundle)
        monkeypatch.setattr(ssl, "create_default_context", create)
        for port in range(1, 4):
            HttpClient(f"https://h:{port}", Options(1.0, bundle, "t/1"))
            AsyncHttpClient(f"https://h:{port}", Options(1.0, bundle, "t/1"))
        assert len(made) == 1


class TestProxy:
    @pytest.fixture
    def proxy(self) -> Iterator[HostileServer]:
        with HostileServer(hostile.answering(hostile.reply(b"", 407))) as server:
            yield server

    @pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
    @pytest.mark.parametrize("scheme", ["http://", ""], ids=["URL", "host and port"])
    def test_of_the_environment_is_used_and_may_refuse(
        self, fetch: Fetch, proxy: HostileServer, monkeypatch: pytest.MonkeyPatch, name: str, scheme: str
    ) -> None:
        monkeypatch.setenv(name, f"{scheme}somebody:pass%40word@127.0.0.1:{proxy.port}")
        with no_answer(httpcore.ProxyError):
            fetch("https://openmarkets.invalid/api")
        [request] = proxy.requests
        assert hostile.target(request) == "CONNECT openmarkets.invalid:443"
        assert hostile.header(request, "proxy-authorization") == "Basic c29tZWJvZHk6cGFzc0B3b3Jk"

    @pytest.mark.parametrize("excepted", ["127.0.0.1", "127.0.0.1:{port}", "x.example,127.0.0.1", "*"])
    def test_is_not_used_for_excepted_hosts(
        self,
        fetch: Fetch,
        proxy: HostileServer,
        monkeypatch: pytest.MonkeyPatch,
        excepted: str,
        secure: HostileServer,
        bundle: str,
    ) -> None:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", excepted.format(port=secure.port))
        assert fetch(secure.url, ca_bundle=bundle).body == b'"safe"'
        assert proxy.connections == 0

    @pytest.mark.parametrize("name", ["HTTP_PROXY", "ALL_PROXY"])
    def test_never_sees_what_goes_to_this_machine_in_clear(
        self, fetch: Fetch, proxy: HostileServer, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.setenv(name, proxy.url)
        with HostileServer(hostile.answering(hostile.reply(b'"directly"'))) as server:
            assert fetch(server.url).body == b'"directly"'
        assert proxy.connections == 0

    def test_carries_tls_through_a_tunnel(
        self, fetch: Fetch, monkeypatch: pytest.MonkeyPatch, secure: HostileServer, bundle: str
    ) -> None:
        def tunnel(sock: socket.socket, request: bytes) -> None:
            with socket.create_connection(("127.0.0.1", secure.port)) as onward:
                sock.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
                # request and reply, split in any way
                for end in (sock, onward):
                    end.settimeout(0.05)
                while True:
                    for source, sink in ((sock, onward), (onward, sock)):
                        try:
                            data = source.recv(1 << 16)
                        except TimeoutError:
                            continue
                        if not data:
                            return
                        sink.sendall(data)

        with HostileServer(tunnel) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", proxy.url)
            assert fetch(secure.url, ca_bundle=bundle).body == b'"safe"'
            assert [hostile.target(request) for request in proxy.requests] == [f"CONNECT 127.0.0.1:{secure.port}"]

    def test_that_is_silent_does_not_outlast_the_total_timeout(
        self, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with HostileServer(hostile.silent) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", proxy.url)
            began = time.monotonic()
            with no_answer(httpcore.TimeoutException):
                fetch("https://openmarkets.invalid", timeout=TIMEOUT)
            assert time.monotonic() - began < WELL_BELOW_A_HANG

    @pytest.mark.parametrize(
        "url",
        [
            "ftp://somebody:hush@127.0.0.1:1",
            "socks5://somebody:hush@127.0.0.1:1",
            "http://somebody:hush@127.0.0.1:99999",
            "http://somebody:hush@127.0.0.1:port",
            "http://somebody:hu#sh@127.0.0.1:1",
            "http://somebody:hush@[::1",
            "http://somebody:hush@",
            "http://",
            "somebody:hush",
        ],
    )
    def test_that_can_not_be_is_a_configuration_error_without_its_credentials(
        self, fetch: Fetch, monkeypatch: pytest.MonkeyPatch, url: str
    ) -> None:
        monkeypatch.setenv("HTTPS_PROXY", url)
        with pytest.raises(OpenmarketsConfigurationError, match="proxy that the environment sets for https") as caught:
            fetch("https://openmarkets.invalid")
        assert "hu" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__
