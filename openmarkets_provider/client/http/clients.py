"""Clients of one host: send a request, return the reply, within a bound on time and size, without redirects.

They use httpcore's connection pools directly: a request through the whole of httpx costs twice the CPU.
"""

from __future__ import annotations

import asyncio
import functools
import os
import ssl
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from json import dumps
from typing import Any, NamedTuple

import httpcore
import httpx

from openmarkets_provider.client.http.body import MAX_REPLY, Body, UnreadableBodyError
from openmarkets_provider.client.http.deadline import async_deadline, deadline
from openmarkets_provider.client.http.network import core_url, open_async_pool, open_pool
from openmarkets_provider.client.settings import MAX_ASYNC_CONCURRENCY, MAX_CONCURRENCY
from openmarkets_provider.exceptions import (
    OpenmarketsConfigurationError,
    OpenmarketsError,
    OpenmarketsInvalidResponse,
    OpenmarketsQueryError,
    OpenmarketsTransportError,
)

CONNECT_TIMEOUT = 10.0
_NO_ANSWER = (
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.UnsupportedProtocol,
)
"""What httpcore raises when there is no reply."""
_NEVER_SENT = (
    httpcore.ConnectError,
    httpcore.ConnectTimeout,
    httpcore.PoolTimeout,
    httpcore.ProxyError,
    httpcore.UnsupportedProtocol,
)
"""Those after which it is certain that no byte of the request left this machine."""


class NoAnswer(Exception):
    """There was no answer.

    :ivar sent: False when it is certain that no byte of the request left this machine.
    """

    def __init__(self, base_url: str, error: Exception) -> None:
        super().__init__(": ".join(part for part in (type(error).__name__, str(error)) if part))
        self.sent = not isinstance(error, _NEVER_SENT)
        self._base_url = base_url

    def explain(self, label: str, advice: str = "", request_id: str | None = None) -> OpenmarketsError:
        """Return the error for users.

        :param label: names the call.
        :param advice: what else to say, with a blank in front.
        """
        cause: BaseException | None = self
        while cause is not None:
            if isinstance(cause, ssl.SSLCertVerificationError):
                return OpenmarketsConfigurationError(
                    f"{label}: the TLS certificate of {self._base_url} can't be verified: {cause.verify_message}. If "
                    "your network has a certificate authority of its own, set ca_bundle in the connection."
                )
            cause = cause.__cause__ or cause.__context__
        return OpenmarketsTransportError(
            f"{label}: no answer from {self._base_url}: {self}.{advice}",
            endpoint=label,
            sent=self.sent,
            request_id=request_id,
        )


class Options(NamedTuple):
    """What the clients of all hosts have in common.

    :ivar timeout: seconds that one request may take in total, the whole reply included.
    :ivar ca_bundle: PEM file with the certificate authorities to trust; None trusts the usual ones.
    :ivar user_agent: the ``User-Agent`` header.
    """

    timeout: float
    ca_bundle: str | None
    user_agent: str

    @property
    def headers(self) -> dict[str, str]:
        """The headers that every request has."""
        return {"User-Agent": self.user_agent, "Accept": "application/json", "Accept-Encoding": "gzip"}

    @property
    def timeouts(self) -> dict[str, float]:
        """The time-outs of the steps of a request, as httpcore names them."""
        steps = dict.fromkeys(("connect", "read", "write", "pool"), self.timeout)
        return steps | {"connect": min(CONNECT_TIMEOUT, self.timeout)}


class HttpRequest(NamedTuple):
    """A request that is ready to be sent.

    :ivar timeouts: of the steps, in seconds, as httpcore names them; None takes the client's.
    :ivar max_bytes: most bytes of the decoded reply.
    """

    method: str
    url: httpcore.URL
    headers: tuple[tuple[bytes, bytes], ...]
    content: bytes = b""
    max_bytes: int = MAX_REPLY
    timeouts: Mapping[str, float | None] | None = None

    def with_header(self, name: bytes, value: bytes) -> HttpRequest:
        """Return the request with one more header."""
        return self._replace(headers=(*self.headers, (name, value)))

    def __repr__(self) -> str:
        # Without the token in its headers.
        return f"<HttpRequest [{self.method}]>"


class Reply(NamedTuple):
    """A reply, read in full.

    :ivar headers: by name, in small letters.
    :ivar body: decoded.
    :ivar hidden: texts of the request that an error must not show, where the server repeats them.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    hidden: tuple[str, ...] = ()

    def __repr__(self) -> str:
        # Without the token that it may hold.
        return f"<Reply [{self.status}]>"


class _Host:
    """What the clients for threads and for event loops have in common: how requests are built, and errors told.

    :param base_url: an ``https`` or a loopback ``http`` URL, without a trailing slash.
    """

    def __init__(self, base_url: str, options: Options) -> None:
        self._base_url = base_url
        self._options = options
        self._timeouts = options.timeouts
        url = httpx.URL(base_url)
        self._origin = _origin(core_url(url))
        headers = {"Host": url.netloc.decode("ascii")} | options.headers
        self._headers = tuple((name.encode(), value.encode()) for name, value in headers.items())

    def build(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        content: bytes = b"",
        headers: Mapping[str, str],
    ) -> HttpRequest:
        """Build a request.

        :param path: below the base URL, without a leading slash.
        :param params: of the query string.
        :param json: the body, sent as JSON; None leaves it to ``content``.
        :raises OpenmarketsQueryError: path and params make no URL.
        """
        query = f"?{httpx.QueryParams(params)}" if params else ""
        try:
            url = _read_url(f"{self._base_url}/{path}{query}")
        except httpx.InvalidURL as error:
            raise OpenmarketsQueryError(f"path and params make no URL: {error}") from None
        more = [(name.encode(), value.encode()) for name, value in headers.items()]
        if json is not None:
            content = dumps(json, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
            more.append((b"Content-Type", b"application/json"))
        if content or method in ("POST", "PUT", "PATCH"):
            more.append((b"Content-Length", b"%d" % len(content)))
        return HttpRequest(method, url, (*self._headers, *more), content)

    def check_origin(self, request: HttpRequest) -> None:
        """Refuse a request to another server.

        :raises OpenmarketsConfigurationError: scheme, host or port are not those of the base URL.
        """
        if (origin := _origin(request.url)) != self._origin:
            raise OpenmarketsConfigurationError(
                f"A request to {_shown(origin)} was refused: the access token goes to {_shown(self._origin)} only. Use "
                "a path relative to the API's base URL."
            )

    def _core_request(self, request: HttpRequest) -> httpcore.Request:
        self.check_origin(request)
        return httpcore.Request(
            request.method,
            request.url,
            headers=list(request.headers),
            content=request.content,
            extensions={"timeout": request.timeouts or self._timeouts},
        )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Say that there was no answer, whatever httpcore has for it."""
        try:
            yield
        except _NO_ANSWER as error:
            raise NoAnswer(self._base_url, error) from error


class HttpClient(_Host):
    """A client of one host for the threads of one process.

    :param keep_alive: keep connections open for further requests.
    """

    def __init__(self, base_url: str, options: Options, *, keep_alive: bool = True) -> None:
        super().__init__(base_url, options)
        kept = MAX_CONCURRENCY if keep_alive else 0
        self._pool = open_pool(base_url, options.ca_bundle, MAX_CONCURRENCY, kept)
        self._lock = threading.Lock()
        self._sending = 0
        self._is_closed = False
        # Nobody has to close a hook: its connections go with it.
        weakref.finalize(self, _close_pool, self._pool, os.getpid()).atexit = False

    def send(self, request: HttpRequest) -> Reply:
        """Send a request, and read the whole reply.

        :raises NoAnswer: there was no answer, or the server's certificate can't be verified.
        :raises OpenmarketsInvalidResponse: the body is too large, or wrongly encoded.
        """
        with self._in_use(), self._errors(), deadline(self._options.timeout):
            response = self._pool.handle_request(self._core_request(request))
            try:
                with _reading(response) as headers:
                    body = Body(headers.get("content-encoding", "").strip().lower(), request.max_bytes)
                    for chunk in response.iter_stream():
                        body.add(chunk)
                    return Reply(response.status, headers, body.read())
            finally:
                response.close()

    def close(self) -> None:
        """Close the connections, when the requests that other threads have sent are answered; wait for none of them."""
        with self._lock:
            self._is_closed = True
            is_idle = not self._sending
        if is_idle:
            self._pool.close()

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        with self._lock:
            self._sending += 1
        try:
            yield
        finally:
            with self._lock:
                self._sending -= 1
                is_last = self._is_closed and not self._sending
            if is_last:
                self._pool.close()


class AsyncHttpClient(_Host):
    """A client of one host for one event loop.

    :ivar room: limits how many requests are under way. In the pool, waiting for a connection would use up the time-out.
    """

    def __init__(self, base_url: str, options: Options) -> None:
        super().__init__(base_url, options)
        # The deadline is enough. httpcore gives time-outs to the network only to pass them on.
        self._timeouts = {"connect": options.timeouts["connect"]}
        self._pool = open_async_pool(base_url, options.ca_bundle, MAX_ASYNC_CONCURRENCY)
        self.room = asyncio.Semaphore(MAX_ASYNC_CONCURRENCY)

    async def send(self, request: HttpRequest) -> Reply:
        """Send a request, as :meth:`HttpClient.send`."""
        with self._errors():
            async with async_deadline(self._options.timeout):
                response = await self._pool.handle_async_request(self._core_request(request))
                try:
                    with _reading(response) as headers:
                        body = Body(headers.get("content-encoding", "").strip().lower(), request.max_bytes)
                        async for chunk in response.aiter_stream():
                            body.add(chunk)
                        return Reply(response.status, headers, body.read())
                finally:
                    await response.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._pool.aclose()


def httpx_client(
    base_url: str, options: Options, send: Callable[[HttpRequest], Reply], close: Callable[[], None]
) -> httpx.Client:
    """Return an ``httpx.Client`` that leaves sending to somebody else. Replies come to it as a whole.

    :param send: sends a request.
    :param close: called when the client is closed.
    """
    return httpx.Client(
        base_url=base_url,
        transport=_Transport(send, close),
        timeout=httpx.Timeout(options.timeout, connect=options.timeouts["connect"]),
        headers=options.headers,
        follow_redirects=False,
        # No netrc, no proxy: the transport knows the way.
        trust_env=False,
        # httpx would keep what a server sets, send it back, and fail at a value that is not ASCII.
        cookies=CookieJar(DefaultCookiePolicy(netscape=False, rfc2965=False)),
    )


class _Transport(httpx.BaseTransport):
    def __init__(self, send: Callable[[HttpRequest], Reply], close: Callable[[], None]) -> None:
        self._send = send
        self._close = close

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        # httpx makes one of credentials in a URL.
        headers = tuple((name, value) for name, value in request.headers.raw if name.lower() != b"authorization")
        timeouts = request.extensions.get("timeout")
        core = HttpRequest(request.method, core_url(request.url), headers, request.read(), timeouts=timeouts)
        try:
            reply = self._send(core)
        except NoAnswer as error:
            # Their names are the same, as httpx makes its errors of httpcore's.
            kind = getattr(httpx, type(error.__cause__).__name__, httpx.TransportError)
            raise kind(str(error.__cause__), request=request) from error
        lines = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in reply.headers.items()]
        return httpx.Response(reply.status, headers=lines, content=reply.body)

    def close(self) -> None:
        self._close()


def _origin(url: httpcore.URL) -> tuple[bytes, bytes, int | None]:
    return url.scheme, url.host, url.port


def _shown(origin: tuple[bytes, bytes, int | None]) -> str:
    return f"{origin[0].decode()}://{origin[1].decode()}"


@functools.lru_cache(256)
def _read_url(url: str) -> httpcore.URL:
    return core_url(httpx.URL(url))


@contextmanager
def _reading(response: httpcore.Response) -> Iterator[dict[str, str]]:
    """Give the headers, by name in small letters, without those that hold for the bytes before they were decoded.

    :raises OpenmarketsInvalidResponse: the body can't be read.
    """
    headers: dict[str, str] = {}
    for raw_name, raw_value in response.headers:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        # RFC 9110, section 5.3: lines of one name are one list.
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    try:
        yield headers
    except UnreadableBodyError as error:
        raise OpenmarketsInvalidResponse(f"The reply {error}.", status=response.status, sent=True) from None
    for name in ("content-encoding", "content-length", "transfer-encoding"):
        headers.pop(name, None)


def _close_pool(pool: httpcore.ConnectionPool, pid: int) -> None:
    # In a forked child the connections are the parent's, and another thread of it may have had the pool's lock.
    if os.getpid() == pid:
        pool.close()
