"""A server that limits the rate of an API, as a separate process: ``python -m tests.support.limited_server 10 2``."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

from tests.support.process import ServerProcess


class LimitedServer(ServerProcess):
    """Answers a number of API requests per second, and further ones with 429. Counts both.

    :param rate: API requests a second.
    :param retry_after: what a 429 asks for, in seconds; None leaves the header out.
    """

    def __init__(self, rate: int, retry_after: int | None) -> None:
        super().__init__(
            "tests.support.limited_server", str(rate), *([] if retry_after is None else [str(retry_after)])
        )

    def has_started(self) -> bool:
        match = re.fullmatch(r"URL: (\S+)\n", self._process.stdout.readline())
        self.url = match[1] if match else ""
        return match is not None

    def settings(self) -> dict[str, Any]:
        """Return the settings of a client of this server."""
        apis = {f"{api}_url": f"{self.url}/{api}" for api in ("market_data", "news", "oms")}
        return {"client_id": "id", "client_secret": "secret", "identity_url": self.url, **apis}

    def stats(self) -> dict[str, int]:
        """Return how many API requests were answered with 200 and with 429."""
        stats: dict[str, int] = httpx.get(f"{self.url}/stats", timeout=30, trust_env=False).json()
        return stats


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Else the reply's body waits for the acknowledgement of its header.
    disable_nagle_algorithm = True
    rate = 0
    retry_after: str | None = None
    lock = threading.Lock()
    second, gone = 0, 0
    counts = {"200": 0, "429": 0}  # noqa: RUF012

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._reply(200, {"access_token": "t0ken", "expires_in": 3600, "token_type": "Bearer"})

    def do_GET(self) -> None:
        if self.path == "/stats":
            self._reply(200, self.counts)
            return
        with self.lock:
            second, kind = int(time.monotonic()), type(self)
            kind.gone = self.gone + 1 if second == self.second else 1
            kind.second = second
            status = 200 if self.gone <= self.rate else 429
            self.counts[str(status)] += 1
        self._reply(status, [])

    def _reply(self, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        if status == 429 and self.retry_after is not None:
            self.send_header("Retry-After", self.retry_after)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    request_queue_size = 256


def main(rate: str, retry_after: str | None = None) -> None:
    _Handler.rate, _Handler.retry_after = int(rate), retry_after
    server = _Server(("127.0.0.1", 0), _Handler)
    print(f"URL: http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
