"""A StatsD server that remembers: what the metrics of a deployment are sent to."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from types import TracebackType
from typing import Self


class StatsdServer:
    """Receives metrics over UDP on loopback, and reports them."""

    def __enter__(self) -> Self:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        # To wake up the thread at the end.
        self._socket.settimeout(0.2)
        self.port: int = self._socket.getsockname()[1]
        self._lines: list[str] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._receive)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self._socket.close()

    def settings(self) -> dict[str, str]:
        """Return the environment that makes Airflow send its metrics here."""
        return {
            "AIRFLOW__METRICS__STATSD_ON": "True",
            "AIRFLOW__METRICS__STATSD_HOST": "127.0.0.1",
            "AIRFLOW__METRICS__STATSD_PORT": str(self.port),
            "AIRFLOW__METRICS__STATSD_PREFIX": "airflow",
        }

    def counters(self, prefix: str) -> Counter[str]:
        """Return the sums of the counters with a prefix, without the prefix."""
        sums: Counter[str] = Counter()
        for line in list(self._lines):
            name, _, rest = line.partition(":")
            value, _, kind = rest.partition("|")
            if name.startswith(prefix) and kind == "c":
                sums[name.removeprefix(prefix)] += int(value)
        return sums

    def timers(self, prefix: str) -> dict[str, list[float]]:
        """Return the milliseconds of the timers with a prefix, without the prefix."""
        found: dict[str, list[float]] = {}
        for line in list(self._lines):
            name, _, rest = line.partition(":")
            value, _, kind = rest.partition("|")
            if name.startswith(prefix) and kind == "ms":
                found.setdefault(name.removeprefix(prefix), []).append(float(value))
        return found

    def text(self) -> str:
        """Return all that came."""
        return "\n".join(self._lines)

    def _receive(self) -> None:
        while not self._over.is_set():
            try:
                packet = self._socket.recv(65536)
            except TimeoutError:
                continue
            self._lines += packet.decode().splitlines()
