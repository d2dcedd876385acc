"""Clients of one host: send a request and return the reply, with limits of time and size, without redirects.

They use httpcore's connection pools directly, which takes less CPU than httpx.
"""

from __future__ import annotations

import asyncio
import functools
import os
import re
import ssl
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from json import dumps
from typing import Any, NamedTuple
from urllib.parse import urlencode

import httpcore
import httpx

from openmarkets_provider.client.http.body import MAX_REPLY, Body
from openmarkets_provider.client.http.deadline import CONNECT_TIMEOUT, async_deadline, deadline
from openmarkets_provider.client.http.network import IdleConnections, core_url, open_async_connection, open_connection
from openmarkets_provider.client.settings import MAX_ASYNC_CONCURRENCY, MAX_CONCURRENCY
from openmarkets_provider.exceptions import (
    OpenmarketsConfigurationError,
    OpenmarketsError,
    OpenmarketsQueryError,
    OpenmarketsTransportError,
)

_NO_ANSWER = (
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.UnsupportedProtocol,
)
"""Errors of httpcore if there is no reply."""
_PLAIN = re.compile(r"(?:[\w/.~@:,=&?+*-]|%[0-9A-Fa-f]{2}){0,2000}", re.ASCII)
"""A path and query string that need no encoding and are short enough for a URL."""
_NEVER_SENT = (
    httpcore.ConnectError,
    httpcore.ConnectTimeout,
    httpcore.PoolTimeout,
    httpcore.ProxyError,
    httpcore.UnsupportedProtocol,
)
"""The errors after which certainly no byte of the request has left this machine."""


class NoAnswer(Exception):
    """There was no answer.

    :ivar sent: False if certainly no byte of the request has left this machine.
    """

    def __init__(self, base_url: str, error: Exception) -> None:
        super().__init__(": ".join(part for part in (type(error).__name__, str(error)) if part))
        self.sent = not isinstance(error, _NEVER_SENT)
        self._base_url = base_url

    def explain(self, label: str, advice: str = "", request_id: str | None = None) -> OpenmarketsError:
        """Return the error for users.

        :param label: the name of the call.
        :param advice: a further sentence, with a leading space.
        """
        cause: BaseException | None = self
        while cause is not None:
            if isinstance(cause, ssl.SSLCertVerificationError):
                return OpenmarketsConfigurationError(
                    f"{label}: the TLS certificate of {self._base_url} can't be verified: "
                    f"{cause.verify_message}. If your network has its own certificate authority, set ca_bundle "
                    "in the connection."
                )
            cause = cause.__cause__ or cause.__context__
        return OpenmarketsTransportError(
            f"{label}: no answer from {self._base_url}: {self}.{advice}",
            endpoint=label,
            sent=self.sent,
            request_id=request_id,
        )


class Options(NamedTuple):
    """Options that the clients of all hosts share.

    :ivar timeout: longest time in seconds for one request in total, until the whole reply has arrived.
    :ivar ca_bundle: PEM file with the certificate authorities to trust; None trusts the usual ones.
    :ivar user_agent: the ``User-Agent`` header.
    """

    timeout: float
    ca_bundle: str | None
    user_agent: str

    @property
    def headers(self) -> dict[str, str]:
        """The headers of every request."""
        return {"User-Agent": self.user_agent, "Accept": "application/json", "Accept-Encoding": "gzip"}

    @property
    def timeouts(self) -> dict[str, float]:
        """The time-outs of the steps of a request in seconds, by httpcore's names."""
        steps = dict.fromkeys(("connect", "read", "write", "pool"), self.timeout)
        return steps | {"connect": min(CONNECT_TIMEOUT, self.timeout)}


class HttpRequest(NamedTuple):
    """A request that is ready to be sent.

    :ivar timeouts: of the steps, in seconds, by httpcore's names; None uses the client's.
    :ivar max_bytes: most bytes of the decoded reply.
    :ivar before_send: called on an open connection, right before the first byte of the request is written. If it
        raises, nothing is sent. For blocking clients.
    """

    method: str
    url: httpcore.URL
    headers: tuple[tuple[bytes, bytes], ...]
    content: bytes = b""
    max_bytes: int = MAX_REPLY
    timeouts: Mapping[str, float | None] | None = None
    before_send: Callable[[], None] | None = None

    def with_header(self, name: bytes, value: bytes) -> HttpRequest:
        """Return the request with one more header."""
        return self._replace(headers=(*self.headers, (name, value)))

    def __repr__(self) -> str:
        # The headers contain the token.
        return f"<Request [{self.method}]>"


class Reply(NamedTuple):
    """A reply, read in full.

    :ivar headers: by lower-case name.
    :ivar body: decoded.
    :ivar hidden: texts of the request that errors must not show if the server repeats them.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    hidden: tuple[str, ...] = ()

    def __repr__(self) -> str:
        # The body may contain the token.
        return f"<Reply [{self.status}]>"


class _Host:
    """The common part of the clients for threads and event loops: building requests and explaining errors.

    :param base_url: an ``https`` or a loopback ``http`` URL, without a trailing slash.
    """

    def __init__(self, base_url: str, options: Options) -> None:
        self._base_url = base_url
        self._options = options
        self._timeouts = options.timeouts
        url = httpx.URL(base_url)
        self._url = core_url(url)
        self._base = self._url.target.rstrip(b"/")
        self._origin = _origin(self._url)
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
        :param params: parameters of the query string.
        :param json: the body, sent as JSON; None sends ``content``.
        :raises OpenmarketsQueryError: path and params do not form a valid URL.
        """
        target = f"/{path}?{_query_string(params)}" if params else f"/{path}"
        if _PLAIN.fullmatch(target):
            # The usual case. It skips httpx's URL parser, which takes more CPU.
            url = httpcore.URL(
                scheme=self._url.scheme, host=self._url.host, port=self._url.port, target=self._base + target.encode()
            )
        else:
            try:
                url = core_url(httpx.URL(f"{self._base_url}{target}"))
            except httpx.InvalidURL as error:
                raise OpenmarketsQueryError(f"path and params do not make a valid URL: {error}") from None
        more = [(name.encode(), value.encode()) for name, value in headers.items()]
        if json is not None:
            content = dumps(json, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
            more.append((b"Content-Type", b"application/json"))
        if content or method in ("POST", "PUT", "PATCH"):
            more.append((b"Content-Length", b"%d" % len(content)))
        return HttpRequest(method, url, (*self._headers, *more), content)

    def check_origin(self, request: HttpRequest) -> None:
        """Refuse requests to other servers.

        :raises OpenmarketsConfigurationError: scheme, host or port differ from the base URL.
        """
        if (origin := _origin(request.url)) != self._origin:
            raise OpenmarketsConfigurationError(
                f"Refused to send a request to {_shown(origin)}: the access token is for {_shown(self._origin)} "
                "only. Use a path relative to the API's base URL."
            )

    @contextmanager
    def _no_answer(self) -> Iterator[None]:
        try:
            yield
        except _NO_ANSWER as error:
            raise NoAnswer(self._base_url, error) from error

    def _core_request(self, request: HttpRequest) -> httpcore.Request:
        self.check_origin(request)
        extensions: dict[str, Any] = {"timeout": request.timeouts or self._timeouts}
        if request.before_send is not None:
            extensions["trace"] = functools.partial(_call_before_send, request.before_send)
        return httpcore.Request(
            request.method,
            request.url,
            headers=list(request.headers),
            content=request.content,
            extensions=extensions,
        )


class HttpClient(_Host):
    """A client of one host, for the threads of one process.

    :param keep_alive: keep connections open for further requests.
    """

    def __init__(self, base_url: str, options: Options, *, keep_alive: bool = True) -> None:
        super().__init__(base_url, options)
        self._open = functools.partial(open_connection, base_url, options.ca_bundle, keep_alive=keep_alive)
        self._pid = os.getpid()
        self._slots = threading.Semaphore(MAX_CONCURRENCY)
        self._idle: IdleConnections[httpcore.ConnectionPool] = IdleConnections()
        # Fails now if the CA bundle or the proxy is wrong.
        self._idle.put_back(self._open())
        # Hooks need not be closed: the connections are closed with the client.
        weakref.finalize(self, _close, self._idle, self._pid).atexit = False

    def send(self, request: HttpRequest) -> Reply:
        """Send a request, and read the whole reply.

        :raises NoAnswer: there was no reply, or the server's certificate can't be verified.
        :raises OpenmarketsInvalidResponse: the body is too large, or has an encoding that was not requested.
        """
        core_request = self._core_request(request)
        with self._no_answer(), self._connection() as connection, deadline(self._options.timeout):
            response = connection.handle_request(core_request)
            try:
                headers = _headers(response)
                body = Body(response.status, headers.get("content-encoding", ""), request.max_bytes)
                for chunk in response.iter_stream():
                    body.add(chunk)
                return Reply(response.status, headers, body.read())
            finally:
                response.close()

    def close(self) -> None:
        """Close the connections. Those in use by other threads are closed after their replies."""
        _close(self._idle, self._pid)

    @contextmanager
    def _connection(self) -> Iterator[httpcore.ConnectionPool]:
        if not self._slots.acquire(timeout=self._options.timeout):
            raise httpcore.PoolTimeout("all connections are in use")
        try:
            self._close_expired()
            connection = self._idle.take() or self._open()
            try:
                yield connection
            except BaseException:
                connection.close()
                raise
            self._idle.put_back(connection)
            # The client may have been closed meanwhile.
            self._close_expired()
        finally:
            self._slots.release()

    def _close_expired(self) -> None:
        for expired in self._idle.pop_expired():
            expired.close()


class AsyncHttpClient(_Host):
    """A client of one host, for one event loop.

    :ivar room: limits the number of concurrent requests.
    """

    def __init__(self, base_url: str, options: Options) -> None:
        super().__init__(base_url, options)
        # The deadline bounds all other steps.
        self._timeouts = {"connect": options.timeouts["connect"]}
        self._open = functools.partial(open_async_connection, base_url, options.ca_bundle)
        self._idle: IdleConnections[httpcore.AsyncConnectionPool] = IdleConnections()
        self._idle.put_back(self._open())
        self.room = asyncio.Semaphore(MAX_ASYNC_CONCURRENCY)

    async def send(self, request: HttpRequest) -> Reply:
        """Send a request, as :meth:`HttpClient.send`."""
        core_request = self._core_request(request)
        await self._close_expired()
        connection = self._idle.take() or self._open()
        try:
            with self._no_answer():
                async with async_deadline(self._options.timeout):
                    response = await connection.handle_async_request(core_request)
                    try:
                        headers = _headers(response)
                        body = Body(response.status, headers.get("content-encoding", ""), request.max_bytes)
                        async for chunk in response.aiter_stream():
                            body.add(chunk)
                        reply = Reply(response.status, headers, body.read())
                    finally:
                        await response.aclose()
        except BaseException:
            await connection.aclose()
            raise
        self._idle.put_back(connection)
        # The client may have been closed meanwhile.
        await self._close_expired()
        return reply

    async def aclose(self) -> None:
        """Close the connections. Those in use by other tasks are closed after their replies."""
        self._idle.keep_alive = 0.0
        await self._close_expired()

    async def _close_expired(self) -> None:
        for expired in self._idle.pop_expired():
            await expired.aclose()


def _call_before_send(before_send: Callable[[], None], event: str, info: Mapping[str, Any]) -> None:
    """Handle httpcore's trace events of a request. A proxy's CONNECT emits the same events before."""
    if event.endswith(".send_request_headers.started"):
        before_send()


def _origin(url: httpcore.URL) -> tuple[bytes, bytes, int | None]:
    return url.scheme, url.host, url.port


def _shown(origin: tuple[bytes, bytes, int | None]) -> str:
    return f"{origin[0].decode()}://{origin[1].decode()}"


def _query_string(params: Mapping[str, Any]) -> str:
    """Return a query string, in which each item of a list is a parameter."""
    items: list[tuple[str, str]] = []
    for name, value in params.items():
        items += ((name, _param(each)) for each in (value if isinstance(value, list | tuple) else [value]))
    return urlencode(items)


def _param(value: str | float | bool | None) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _headers(response: httpcore.Response) -> dict[str, str]:
    headers: dict[str, str] = {}
    for raw_name, raw_value in response.headers:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        # Lines with the same name form a list (RFC 9110, section 5.3).
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _close(idle: IdleConnections[httpcore.ConnectionPool], pid: int) -> None:
    # In a forked child the connections belong to the parent, and another of its threads may have held their locks.
    if os.getpid() == pid:
        idle.keep_alive = 0.0
        for each in idle.pop_expired():
            each.close()
