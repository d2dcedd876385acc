"""An S3-compatible server (moto) as a separate process, behind a proxy that a test controls."""

from __future__ import annotations

import json
import logging
import re
import socket
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import pytest

from tests.support.hostile import Handler, HostileServer, reply, target
from tests.support.process import ServerProcess

WAIT = 60.0
KEY, SECRET = "the-access-key", "the-secret-key-of-the-tests"


class S3Process(ServerProcess):
    """Runs moto's server on a free port of loopback."""

    def __init__(self) -> None:
        super().__init__("tests.support.s3_server")
        self.url = ""

    def has_started(self) -> bool:
        self.url = self._process.stdout.readline().strip()
        return bool(self.url)


class S3Server:
    """A server with one bucket, behind a proxy. Faults act on requests that match, such as ``PUT /bucket/a``.

    :ivar requests: method and target of each request, in the order of their arrival.
    """

    BUCKET = "bucket"

    def __enter__(self) -> Self:
        self._faults: list[tuple[re.Pattern[str], list[int], Handler]] = []
        self._lock = threading.Lock()
        # moto fails when an object is replaced while it answers for it.
        self._one = threading.Lock()
        self._server = S3Process()
        self._server.__enter__()
        self._proxy = _Proxy(self._handle)
        self._proxy.__enter__()
        self.client = self._client()
        self.client.create_bucket(Bucket=self.BUCKET)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.client.close()
        self._proxy.__exit__(kind, error, traceback)
        self._server.__exit__(kind, error, traceback)

    @property
    def url(self) -> str:
        """Where clients go: the proxy."""
        return self._proxy.url

    @property
    def requests(self) -> list[str]:
        return [target(request) for request in list(self._proxy.requests)]

    @property
    def connection_json(self) -> str:
        """The Airflow connection, as an environment variable takes it; the client does not ask again for long."""
        config = {"retries": {"max_attempts": 0}}
        extra = {"endpoint_url": self.url, "region_name": "us-east-1", "config_kwargs": config}
        return json.dumps({"conn_type": "aws", "login": KEY, "password": SECRET, "extra": extra})

    def reset(self) -> None:
        """Forget faults, requests, objects and uploads."""
        self._faults.clear()
        self._proxy.requests.clear()
        self.abort_uploads()
        for key in self.keys():
            self.client.delete_object(Bucket=self.BUCKET, Key=key)

    def fault(self, pattern: str, handler: Handler, *, after: int = 0, times: int = 1) -> None:
        """Give requests whose method and target match to a handler, instead of the server."""
        with self._lock:
            self._faults.append((re.compile(pattern), [after, times], handler))

    def hold(self, pattern: str, *, after: int = 0, times: int = 1) -> Hold:
        """Keep requests waiting before they reach the server."""
        hold = Hold(self.forward, times)
        self.fault(pattern, hold, after=after, times=times)
        return hold

    def fail(self, pattern: str, status: int, code: str, *, after: int = 0, times: int = 1) -> None:
        """Answer requests with an error."""
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>The message of {code}.</Message></Error>"
        answer = reply(body.encode(), status, ["Content-Type: application/xml"])
        self.fault(pattern, lambda sock, request: sock.sendall(answer), after=after, times=times)

    def forward(self, sock: socket.socket, request: bytes) -> None:
        """Ask the server, and pass its answer on."""
        where = urlsplit(self._server.url)
        head, _, body = request.partition(b"\r\n\r\n")
        lines = [line for line in head.split(b"\r\n") if not line.lower().startswith((b"connection:", b"expect:"))]
        with self._one, socket.create_connection((where.hostname, where.port), timeout=WAIT) as server:
            server.sendall(b"\r\n".join([*lines, b"Connection: close", b"", b""]) + body)
            while answer := server.recv(1 << 16):
                sock.sendall(answer)
        sock.close()

    def keys(self) -> list[str]:
        """Return the keys of all objects."""
        return [each["Key"] for each in self.client.list_objects_v2(Bucket=self.BUCKET).get("Contents", [])]

    def read(self, key: str) -> bytes:
        """Return an object."""
        return self.client.get_object(Bucket=self.BUCKET, Key=key)["Body"].read()

    def put(self, key: str, content: bytes) -> None:
        """Make an object."""
        self.client.put_object(Bucket=self.BUCKET, Key=key, Body=content)

    def uploads(self) -> list[dict[str, Any]]:
        """Return the multi-part uploads that have not ended."""
        return self.client.list_multipart_uploads(Bucket=self.BUCKET).get("Uploads", [])

    def abort_uploads(self) -> None:
        """Do what a rule of a bucket does with old multi-part uploads."""
        for upload in self.uploads():
            self.client.abort_multipart_upload(Bucket=self.BUCKET, Key=upload["Key"], UploadId=upload["UploadId"])

    def _client(self) -> Any:
        """Return a client that goes to the server itself."""
        import botocore.session

        return botocore.session.get_session().create_client(
            "s3",
            endpoint_url=self._server.url,
            region_name="us-east-1",
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
        )

    def _handle(self, sock: socket.socket, request: bytes) -> None:
        self._acting(target(request))(sock, request)

    def _acting(self, request: str) -> Callable[[socket.socket, bytes], None]:
        with self._lock:
            for pattern, left, handler in self._faults:
                if pattern.search(request):
                    if left[0]:
                        left[0] -= 1
                    elif left[1]:
                        left[1] -= 1
                        return handler
        return self.forward


class _Proxy(HostileServer):
    """Tells clients to continue with the body of a request (status 100), as S3 clients expect."""

    def _receive(self, sock: socket.socket) -> bytes:
        data = super()._receive(sock)
        if b"\r\nexpect: 100-continue\r\n" in data.lower():
            sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        return data


class Hold:
    """Requests that wait.

    :ivar reached: set once as many as were meant to are waiting.
    """

    def __init__(self, forward: Handler, count: int) -> None:
        self._forward = forward
        self._missing = count
        self._is_dropped = False
        self._lock = threading.Lock()
        self._released = threading.Event()
        self.reached = threading.Event()

    def __call__(self, sock: socket.socket, request: bytes) -> None:
        with self._lock:
            self._missing -= 1
            if not self._missing:
                self.reached.set()
        assert self._released.wait(WAIT), "nobody released a request"
        if self._is_dropped:
            sock.close()
        else:
            self._forward(sock, request)

    def release(self) -> None:
        """Resume them."""
        self._released.set()

    def drop(self) -> None:
        """Close their connections; the server never gets them."""
        self._is_dropped = True
        self._released.set()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """Give a server for all tests of this process: Airflow keeps a connection's file system as long as it lives."""
    with S3Server() as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """Give the server, empty and without faults; the connection ``landing_s3`` leads to it."""
    s3_server.reset()
    monkeypatch.setenv("AIRFLOW_CONN_LANDING_S3", s3_server.connection_json)
    return s3_server


def closed_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def serve() -> None:
    """Serve until the process is ended; the URL is printed first."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    print(f"http://{host}:{port}", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    serve()
