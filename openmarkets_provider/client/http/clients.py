"""How bytes move: one host a client, a bound on the time and on the size of every exchange, no redirects."""

from __future__ import annotations

import asyncio
import functools
import importlib
import os
import ssl
import threading
import time
import weakref
import zlib
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpcore
import httpx

from openmarkets_provider.client.settings import MAX_ASYNC_CONCURRENCY, MAX_CONCURRENCY
from openmarkets_provider.exceptions import OpenmarketsConfigurationError, OpenmarketsInvalidResponse

CONNECT_TIMEOUT = 10.0
MAX_REPLY = 64 << 20
"""Bytes of a decoded reply that are read, where a request does not say otherwise."""
_PIECE = 1 << 20
"""Decoded bytes at a time."""
_PART = 1 << 16
"""Bytes that are written at a time."""
_MAX_BYTES = "openmarkets_max_bytes"


def limits(max_bytes: int) -> dict[str, Any]:
    """Return the request extensions that bound the decoded reply."""
    return {_MAX_BYTES: max_bytes}


def sync_client(
    base_url: str,
    *,
    timeout: float,
    ca_bundle: str | None,
    user_agent: str,
    auth: httpx.Auth | None = None,
    keep_alive: bool = True,
) -> httpx.Client:
    """Make a client for one host.

    :param timeout: seconds that one request may take in total, the whole reply included.
    :param keep_alive: keep connections open for further requests.
    """
    kept = MAX_CONCURRENCY if keep_alive else 0
    inner = httpx.HTTPTransport(**_transport_options(base_url, ca_bundle, MAX_CONCURRENCY, kept))
    # httpx has no total time-out and offers no public place for one: its pool takes the network from here.
    inner._pool._network_backend = _DeadlineBackend(inner._pool._network_backend)  # noqa: SLF001
    transport = _LimitedTransport(inner, timeout)
    client = _Client(transport=transport, **_client_options(base_url, timeout, user_agent, auth))
    # Nobody has to close a hook: its connections go with it.
    weakref.finalize(client, transport.close).atexit = False
    return client


def async_client(
    base_url: str, *, timeout: float, ca_bundle: str | None, user_agent: str, auth: httpx.Auth | None = None
) -> httpx.AsyncClient:
    """Make a client for one host and one event loop; the parameters are those of :func:`sync_client`."""
    inner = httpx.AsyncHTTPTransport(
        **_transport_options(base_url, ca_bundle, MAX_ASYNC_CONCURRENCY, MAX_ASYNC_CONCURRENCY)
    )
    inner._pool._network_backend = _AsyncClosingBackend(inner._pool._network_backend)  # noqa: SLF001
    transport = _AsyncLimitedTransport(inner, timeout)
    return httpx.AsyncClient(transport=transport, **_client_options(base_url, timeout, user_agent, auth))


class _Client(httpx.Client):
    """A client whose ``close`` lets the requests that are under way in other threads end, and waits for none of them.

    httpx would close a socket under a thread that reads from it, by when its number may be another's, and would leave
    open what is just being connected.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._lock = threading.Lock()
        self._under_way = 0
        self._over = False

    def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        with self._lock:
            self._under_way += 1
        try:
            return super().send(request, **options)
        finally:
            with self._lock:
                self._under_way -= 1
                last = self._over and not self._under_way
            if last:
                super().close()

    def close(self) -> None:
        with self._lock:
            self._over = True
            idle = not self._under_way
        if idle:
            super().close()


def _transport_options(base_url: str, ca_bundle: str | None, connections: int, kept: int) -> dict[str, Any]:
    return {
        "verify": _ssl_context(ca_bundle, os.getpid()),
        "proxy": _proxy(base_url),
        "limits": httpx.Limits(max_connections=connections, max_keepalive_connections=kept),
    }


def _client_options(base_url: str, timeout: float, user_agent: str, auth: httpx.Auth | None) -> dict[str, Any]:
    return {
        "base_url": base_url,
        "auth": auth,
        "timeout": httpx.Timeout(timeout, connect=min(CONNECT_TIMEOUT, timeout)),
        "follow_redirects": False,
        # No netrc; the proxy is chosen above.
        "trust_env": False,
        # httpx would keep what a server sets, send it back, and fail at a value that is not ASCII.
        "cookies": CookieJar(DefaultCookiePolicy(netscape=False, rfc2965=False)),
        "headers": {"User-Agent": user_agent, "Accept": "application/json", "Accept-Encoding": "gzip"},
    }


@functools.cache
def _ssl_context(ca_bundle: str | None, pid: int) -> ssl.SSLContext:
    """Make the TLS context, the dear part of a client, once a process."""
    try:
        return ssl.create_default_context(cafile=ca_bundle) if ca_bundle else httpx.create_ssl_context()
    except OSError as error:
        what = f"ca_bundle: {ca_bundle!r}" if ca_bundle else "What SSL_CERT_FILE or SSL_CERT_DIR names"
        raise OpenmarketsConfigurationError(f"{what} can't be used: {error}") from None


def _proxy(base_url: str) -> httpx.Proxy | None:
    """Return the proxy that the environment names for a host (``HTTPS_PROXY``, ``NO_PROXY`` and so on)."""
    parts = urlsplit(base_url)
    if parts.scheme == "http":
        # To this machine only, as the settings hold: no proxy leads there, and one would see the secret in clear.
        return None
    proxies = getproxies()
    url = proxies.get(parts.scheme) or proxies.get("all")
    if not url or proxy_bypass(parts.netloc):
        return None
    try:
        proxy = httpx.Proxy(url if "://" in url else f"http://{url}")
        port = proxy.url.port
        if not proxy.url.host or not (port is None or 0 < port < 65536):
            raise ValueError
        if proxy.url.scheme.startswith("socks"):
            # httpx looks for it as late as when the transport is made.
            importlib.import_module("socksio")
    except (ValueError, ImportError, httpx.InvalidURL):
        # The URL may hold credentials, and so may what httpx says of it.
        raise OpenmarketsConfigurationError(
            f"The proxy that the environment names for {parts.scheme} is not one that httpx can use: it takes "
            "http://host:port, https://host:port and, with httpx[socks] installed, socks5://host:port."
        ) from None
    return proxy


class _Deadline(threading.local):
    """Until when the exchange that this thread is in may take; None between exchanges."""

    at: float | None = None

    def cap(self, timeout: float | None, error: type[Exception]) -> float | None:
        if self.at is None:
            return timeout
        left = self.at - time.monotonic()
        if left <= 0:
            raise error("the total time-out is used up")
        return left if timeout is None else min(timeout, left)


_deadline = _Deadline()


class _DeadlineStream(httpcore.NetworkStream):
    """A connection on which no single read or write waits beyond the deadline."""

    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _deadline.cap(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        # In parts: the time-out starts again whenever the other side has taken something.
        for start in range(0, len(buffer), _PART):
            self._inner.write(buffer[start : start + _PART], _deadline.cap(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        limit = _deadline.cap(timeout, httpcore.ConnectTimeout)
        return _DeadlineStream(self._inner.start_tls(ssl_context, server_hostname, limit))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _DeadlineBackend(httpcore.NetworkBackend):
    """Opens connections that keep to the deadline."""

    def __init__(self, inner: httpcore.NetworkBackend) -> None:
        self._inner = inner

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        limit = _deadline.cap(timeout, httpcore.ConnectTimeout)
        return _DeadlineStream(self._inner.connect_tcp(host, port, limit, local_address, socket_options))


class _LimitedTransport(httpx.BaseTransport):
    def __init__(self, inner: httpx.BaseTransport, timeout: float) -> None:
        self._inner = inner
        self._timeout = timeout

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        deadline = time.monotonic() + self._timeout
        _deadline.at = deadline
        try:
            response = self._inner.handle_request(request)
        finally:
            _deadline.at = None
        try:
            body = _Body(request, response)
        except BaseException:
            response.close()
            raise
        response.stream = _LimitedStream(response.stream, body, deadline)
        return response

    def close(self) -> None:
        self._inner.close()


class _AsyncClosingStream(httpcore.AsyncNetworkStream):
    """A connection that is closed when its TLS handshake is cancelled; httpcore would leave it open for ever."""

    def __init__(self, inner: httpcore.AsyncNetworkStream) -> None:
        self._inner = inner

    async def read(self, *args: Any, **kwargs: Any) -> bytes:
        return await self._inner.read(*args, **kwargs)

    async def write(self, *args: Any, **kwargs: Any) -> None:
        await self._inner.write(*args, **kwargs)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def start_tls(self, *args: Any, **kwargs: Any) -> httpcore.AsyncNetworkStream:
        try:
            return await self._inner.start_tls(*args, **kwargs)
        except asyncio.CancelledError:
            await self._inner.aclose()
            raise

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _AsyncClosingBackend(httpcore.AsyncNetworkBackend):
    """Opens connections that don't leak."""

    def __init__(self, inner: httpcore.AsyncNetworkBackend) -> None:
        self._inner = inner

    async def connect_tcp(self, *args: Any, **kwargs: Any) -> httpcore.AsyncNetworkStream:
        return _AsyncClosingStream(await self._inner.connect_tcp(*args, **kwargs))


@asynccontextmanager
async def _until(deadline: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError:
        raise httpx.ReadTimeout("the total time-out is used up") from None
    except ssl.SSLError as error:
        # After the handshake httpcore's asynchronous side lets it pass as it is.
        raise httpx.ReadError(str(error)) from error


class _AsyncLimitedTransport(httpx.AsyncBaseTransport):
    def __init__(self, inner: httpx.AsyncBaseTransport, timeout: float) -> None:
        self._inner = inner
        self._timeout = timeout

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        deadline = asyncio.get_running_loop().time() + self._timeout
        async with _until(deadline):
            response = await self._inner.handle_async_request(request)
        try:
            body = _Body(request, response)
        except BaseException:
            await response.aclose()
            raise
        response.stream = _AsyncLimitedStream(response.stream, body, deadline)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


class _LimitedStream(httpx.SyncByteStream):
    def __init__(self, inner: Any, body: _Body, deadline: float) -> None:
        self._inner = inner
        self._body = body
        self._deadline = deadline

    def __iter__(self) -> Iterator[bytes]:
        chunks = iter(self._inner)
        while True:
            _deadline.at = self._deadline
            try:
                chunk = next(chunks, None)
            finally:
                _deadline.at = None
            if chunk is None:
                break
            yield from self._body.feed(chunk)
        self._body.end()

    def close(self) -> None:
        self._inner.close()


class _AsyncLimitedStream(httpx.AsyncByteStream):
    def __init__(self, inner: Any, body: _Body, deadline: float) -> None:
        self._inner = inner
        self._body = body
        self._deadline = deadline

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunks = aiter(self._inner)
        while True:
            async with _until(self._deadline):
                chunk = await anext(chunks, None)
            if chunk is None:
                break
            for piece in self._body.feed(chunk):
                yield piece
        self._body.end()

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Body:
    """Decodes a reply piece by piece and stops at its bound, so that a small bomb never gets large."""

    def __init__(self, request: httpx.Request, response: httpx.Response) -> None:
        self._request = request
        self._status = response.status_code
        self._limit: int = request.extensions.get(_MAX_BYTES, MAX_REPLY)
        self._size = 0
        self._begun = False
        self._gzip = None
        encoding = response.headers.get("content-encoding", "").strip().lower()
        if encoding == "gzip":
            self._gzip = zlib.decompressobj(16 + zlib.MAX_WBITS)
            # Decoded here: httpx must not do it again.
            del response.headers["content-encoding"]
        elif encoding not in ("", "identity"):
            raise self._invalid(f"has the content encoding {encoding[:50]!r}, which was not asked for")

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        if self._gzip is None:
            yield self._count(chunk)
            return
        while chunk:
            self._begun = True
            if self._gzip.eof:
                raise self._invalid("is gzip that goes on after its end")
            try:
                piece = self._gzip.decompress(chunk, _PIECE)
            except zlib.error:
                raise self._invalid("is damaged gzip") from None
            yield self._count(piece)
            chunk = self._gzip.unconsumed_tail or self._gzip.unused_data

    def end(self) -> None:
        if self._gzip is not None and self._begun and not self._gzip.eof:
            raise self._invalid("is gzip that ends too early")

    def _count(self, piece: bytes) -> bytes:
        self._size += len(piece)
        if self._size > self._limit:
            raise self._invalid(f"is larger than {self._limit} bytes; ask for less in one call")
        return piece

    def _invalid(self, problem: str) -> OpenmarketsInvalidResponse:
        what = f"{self._request.method} {self._request.url.path}"
        return OpenmarketsInvalidResponse(
            f"{what}: the reply {problem}.", status=self._status, endpoint=what, sent=True
        )
