"""Total time-outs: connections that respect a deadline, for threads and event loops.

httpcore has time-outs for single reads and writes only. Its pools use this module as their ``network_backend``.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError, wait
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, TypeVar

import httpcore

T = TypeVar("T")
Limit = TypeVar("Limit", float, float | None)

CONNECT_TIMEOUT = 10.0
"""Longest time in seconds for opening a connection, including the look-up of the host."""
_PART = 1 << 16
"""Bytes that are written at a time."""
_LOOK = 0.5
"""Seconds between checks whether an exchange is cancelled."""


class _Deadline(threading.local):
    """The limits of the exchanges of this thread.

    :ivar at: the deadline of the current exchange, on the monotonic clock; None between exchanges.
    :ivar cancelled: when this is set, an exchange without a reply ends within half a second; None if it can't be
        cancelled.
    """

    at: float | None = None
    cancelled: threading.Event | None = None

    @property
    def is_cancelled(self) -> bool:
        return self.cancelled is not None and self.cancelled.is_set()

    def cap(self, timeout: Limit, error: type[Exception]) -> Limit | float:
        """Return the time-out of one step in seconds, shortened to the time until the deadline."""
        if self.at is None:
            return timeout
        left = self.at - time.monotonic()
        if left <= 0:
            raise error("the total timeout has expired")
        return left if timeout is None else min(timeout, left)


_deadline = _Deadline()


def cancel_on(event: threading.Event) -> None:
    """Make an event cancel the exchanges of this thread. They end within half a second unless the reply arrives."""
    _deadline.cancelled = event


@contextmanager
def ignore_cancel() -> Iterator[None]:
    """Protect the exchanges of this thread in a block from the event of :func:`cancel_on`."""
    event, _deadline.cancelled = _deadline.cancelled, None
    try:
        yield
    finally:
        _deadline.cancelled = event


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Limit the time that this thread sends and receives on connections of :class:`DeadlineBackend` in a block.

    :raises httpcore.TimeoutException: inside the block, after the deadline.
    """
    _deadline.at = time.monotonic() + seconds
    try:
        yield
    finally:
        _deadline.at = None


@asynccontextmanager
async def async_deadline(seconds: float) -> AsyncIterator[None]:
    """Limit the time of the current task in a block.

    :raises httpcore.ReadTimeout: after the deadline.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise httpcore.ReadTimeout("the total timeout has expired") from None


class _DeadlineStream(httpcore.NetworkStream):
    """A connection whose reads and writes end at the deadline."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        while True:
            limit = _deadline.cap(timeout, httpcore.ReadTimeout)
            step = limit if limit is None or _deadline.cancelled is None else min(limit, _LOOK)
            try:
                return self._stream.read(max_bytes, step)
            except httpcore.ReadTimeout:
                if step == limit or _deadline.is_cancelled:
                    raise

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        # In parts: the time-out restarts whenever the other side has received something.
        for start in range(0, len(buffer), _PART):
            self._stream.write(buffer[start : start + _PART], _deadline.cap(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        try:
            limit = _deadline.cap(timeout, httpcore.ConnectTimeout)
            return _DeadlineStream(self._stream.start_tls(ssl_context, server_hostname, limit))
        except BaseException:
            # httpcore does not close it.
            self.close()
            raise

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def resolve(host: str, port: int) -> list[str]:
    """Look up the numeric addresses of a host, in the system's order of preference."""
    return list(dict.fromkeys(str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))


class DeadlineBackend(httpcore.NetworkBackend):
    """Opens connections that respect the deadline of the thread that uses them.

    :param resolve: looks up the numeric addresses of a host and port.
    """

    def __init__(self, resolve: Callable[[str, int], Sequence[str]] = resolve) -> None:
        self._backend = httpcore.SyncBackend()
        self._resolve = resolve

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Open a connection.

        :param timeout: longest time in seconds for looking up the host and trying all of its addresses.
        """
        limit = _deadline.cap(CONNECT_TIMEOUT if timeout is None else timeout, httpcore.ConnectTimeout)
        end = time.monotonic() + limit
        connection: Future[httpcore.NetworkStream] = Future()
        # In a thread, which is abandoned at the deadline: look-ups and attempts to connect can't be cancelled.
        args = (connection, host, port, end, local_address, socket_options)
        threading.Thread(target=self._connect, args=args, name="openmarkets-connect", daemon=True).start()
        try:
            while not wait([connection], min(_LOOK, max(0.0, end - time.monotonic()))).done:
                if _deadline.is_cancelled or time.monotonic() >= end:
                    raise httpcore.ConnectTimeout(f"no connection within {limit:.3g} s")
        except BaseException:
            if not connection.cancel() and connection.exception() is None:
                # The connection was opened in the meantime.
                connection.result().close()
            raise
        return _DeadlineStream(connection.result())

    def _connect(self, connection: Future[httpcore.NetworkStream], *where: Any) -> None:
        try:
            stream = self._connect_in_turn(*where)
        except Exception as error:  # noqa: BLE001 - the caller gets it
            with suppress(InvalidStateError):
                connection.set_exception(error)
            return
        try:
            connection.set_result(stream)
        except InvalidStateError:
            # The caller has stopped waiting.
            stream.close()

    def _connect_in_turn(self, host: str, port: int, end: float, *options: Any) -> httpcore.NetworkStream:
        """Try the addresses of a host in turn, each for an equal part of the remaining time."""
        with _map_errors(httpcore.ConnectError):
            addresses = self._resolve(host, port)
        problem: Exception = httpcore.ConnectTimeout()
        for number, address in enumerate(addresses):
            seconds = (end - time.monotonic()) / (len(addresses) - number)
            if seconds <= 0:
                break
            try:
                return self._backend.connect_tcp(address, port, seconds, *options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                problem = error
        raise problem


@contextmanager
def _map_errors(error: type[Exception]) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeError) as problem:
        # UnicodeError: the host name can't be encoded.
        raise error(str(problem)) from problem


class _AsyncioStream(httpcore.AsyncNetworkStream):
    """A connection of asyncio. Reads and writes have no time-outs: the caller's task has a deadline."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _map_errors(httpcore.ReadError):
            return await self._reader.read(max_bytes)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with _map_errors(httpcore.WriteError):
            self._writer.write(buffer)
            await self._writer.drain()

    async def aclose(self) -> None:
        # close() of a TLS connection would wait for the other side.
        self._writer.transport.abort()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        try:
            with _map_errors(httpcore.ConnectError):
                await _within(self._writer.start_tls(ssl_context, server_hostname=server_hostname), timeout)
        except BaseException:
            await self.aclose()
            raise
        return self

    def get_extra_info(self, info: str) -> Any:
        match info:
            case "is_readable":
                return self._is_readable()
            case "client_addr" | "server_addr":
                return self._writer.get_extra_info("sockname" if info == "client_addr" else "peername")
        return self._writer.get_extra_info(info)

    def _is_readable(self) -> bool:
        """Return whether the server has closed an idle connection, or sent unexpected data."""
        if self._writer.is_closing():
            return True
        # asyncio reads ahead: one step of a read ends immediately if there is data.
        step = self._reader.read(1)
        try:
            step.send(None)
        except Exception:  # noqa: BLE001 - StopIteration, or an error
            return True
        step.close()
        # A busy event loop may not have read the data yet.
        poll = select.poll()
        poll.register(self._writer.get_extra_info("socket"), select.POLLIN)
        return bool(poll.poll(0))


class AsyncioBackend(httpcore.AsyncNetworkBackend):
    """Opens asyncio streams, which take less CPU than httpcore's default backend, anyio."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Open a connection, as :meth:`DeadlineBackend.connect_tcp`."""
        # With several addresses, a task cancelled in asyncio.open_connection may leave a socket open.
        with _map_errors(httpcore.ConnectError):
            sock = await _within(_connect_in_turn(host, port, timeout), timeout)
            return _AsyncioStream(*await asyncio.open_connection(sock=sock))


async def _connect_in_turn(host: str, port: int, seconds: float | None) -> socket.socket:
    """Try the addresses of a host in turn, each for an equal part of the remaining time."""
    loop = asyncio.get_running_loop()
    end = loop.time() + (CONNECT_TIMEOUT if seconds is None else seconds)
    addresses = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for left in range(len(addresses), 0, -1):
        family, kind, protocol, _, address = addresses[-left]
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            # The last address gets all of the remaining time, which the caller limits.
            async with asyncio.timeout((end - loop.time()) / left if left > 1 else None):
                await loop.sock_connect(sock, address)
        except BaseException as error:
            sock.close()
            if left == 1 or not isinstance(error, OSError):
                raise
        else:
            return sock
    raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL), host)


async def _within(step: Awaitable[T], seconds: float | None) -> T:
    scope = asyncio.timeout(seconds)
    try:
        async with scope:
            return await step
    except TimeoutError:
        # The system's own time-out for connecting raises the same error.
        if not scope.expired():
            raise
        raise httpcore.ConnectTimeout(f"no connection within {seconds:g} s") from None
