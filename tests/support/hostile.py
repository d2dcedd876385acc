"""A server on loopback that a test controls, down to single bytes."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Self

Handler = Callable[[socket.socket, bytes], None]

STOP_TIMEOUT = 10.0
_READ = 1 << 16


class HostileServer:
    """Gives every request that arrives to a handler, one thread a connection.

    The handler writes what it likes and returns for the next request of the connection, or closes the socket.
    When the test ends, all sockets are shut down, so that a handler may read or write for ever.

    :param handler: called with the connection and the bytes of a request, header and body.
    :param tls: makes it a TLS server.
    :param waits: False calls the handler with no bytes as soon as a client has connected.
    :param listener: the socket to listen on, when it is already known to somebody.
    :ivar requests: the bytes of each request, in the order of their arrival.
    :ivar ports: the client's port of each request, which identifies the connection.
    :ivar closed: set when a client has closed a connection that was open.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        tls: ssl.SSLContext | None = None,
        waits: bool = True,
        listener: socket.socket | None = None,
    ) -> None:
        self._handler = handler
        self._tls = tls
        self._waits = waits
        self._listener = listener or socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._failures: list[BaseException] = []
        self._lock = threading.Lock()
        self._stopping = False
        self.port: int = self._listener.getsockname()[1]
        self.requests: list[bytes] = []
        self.ports: list[int] = []
        self.connections = 0
        self.closed = threading.Event()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        # a listener of others may have no queue yet
        self._listener.listen()
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            self._stopping = True
            for sock in self._open:
                _shut(sock)
        # close() alone would leave the thread in accept()
        _shut(self._listener)
        self._listener.close()
        for thread in [*self._threads]:
            thread.join(STOP_TIMEOUT)
            assert not thread.is_alive(), "a handler of the server does not end"
        if self._failures and error is None:
            raise self._failures[0]

    def _start(self, work: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=self._guard, args=(work, *args), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _guard(self, work: Callable[..., None], *args: object) -> None:
        try:
            work(*args)
        except OSError:
            # the other side went away, or the test has ended
            pass
        except BaseException as error:
            self._failures.append(error)

    def _accept(self) -> None:
        while True:
            sock, (_, port) = self._listener.accept()
            with self._lock:
                if self._stopping:
                    sock.close()
                    return
                self.connections += 1
                self._open.add(sock)
            self._start(self._serve, sock, port)

    def _serve(self, plain: socket.socket, port: int) -> None:
        sock = plain
        try:
            if self._tls is not None:
                sock = self._tls.wrap_socket(plain, server_side=True)
                with self._lock:
                    self._open.remove(plain)
                    self._open.add(sock)
            if not self._waits:
                self._handle(sock, b"")
                return
            while sock.fileno() != -1 and (request := self._read_request(sock)):
                with self._lock:
                    self.requests.append(request)
                    self.ports.append(port)
                self._handle(sock, request)
        finally:
            with self._lock:
                self._open -= {plain, sock}
            sock.close()
            plain.close()

    def _handle(self, sock: socket.socket, request: bytes) -> None:
        try:
            self._handler(sock, request)
        except OSError:
            self.closed.set()
            raise

    def _read_request(self, sock: socket.socket) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            if not (chunk := self._receive(sock)):
                return b""
            data += chunk
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(header(data, "content-length") or 0)
        while len(body) < length:
            if not (chunk := self._receive(sock)):
                return b""
            body += chunk
        return head + b"\r\n\r\n" + body

    def _receive(self, sock: socket.socket) -> bytes:
        try:
            data = sock.recv(_READ)
        except OSError:
            data = b""
        if not data:
            self.closed.set()
        return data


def header(request: bytes, name: str) -> str | None:
    """Return a header of a request; None when it has none of that name."""
    for line in request.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name.lower().encode():
            return value.strip().decode("latin-1")
    return None


def body(request: bytes) -> bytes:
    """Return the body of a request."""
    return request.partition(b"\r\n\r\n")[2]


def target(request: bytes) -> str:
    """Return method and target of a request, as its first line has them."""
    method, place, _ = request.partition(b"\r\n")[0].decode().split(" ")
    return f"{method} {place}"


def reply(content: bytes = b"[]", status: int = 200, headers: Iterable[str] = ()) -> bytes:
    """Return a valid reply with some other headers."""
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(content)}", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + content


def answering(*replies: bytes) -> Handler:
    """Make a handler that gives these replies, one a request; the last one again and again."""
    left = list(replies)
    lock = threading.Lock()

    def handle(sock: socket.socket, request: bytes) -> None:
        with lock:
            answer = left.pop(0) if len(left) > 1 else left[0]
        sock.sendall(answer)

    return handle


def ending(start: bytes, endless: bytes = b"") -> Handler:
    """Make a handler that sends a start, and then either ends the connection or sends something for ever."""

    def handle(sock: socket.socket, request: bytes) -> None:
        sock.sendall(start)
        while endless:
            sock.sendall(endless)
        sock.close()

    return handle


def reset(sock: socket.socket, request: bytes) -> None:
    """Cut the connection, so that the other side sees a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def silent(sock: socket.socket, request: bytes) -> None:
    """Never answer."""
    while sock.recv(_READ):
        pass
    raise ConnectionAbortedError


def _shut(sock: socket.socket) -> None:
    # it may be closed already
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
