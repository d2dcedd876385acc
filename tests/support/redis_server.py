"""A real Redis for tests: Debian's redis-server on a free port of loopback, which can fail in many ways."""

from __future__ import annotations

import json
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
import trustme

PATIENCE = 60.0


class RedisServer:
    """Runs a redis-server that keeps nothing on disk.

    :param password: what clients log in with; made up when it is None, none at all when it is empty.
    :param tls: whether it speaks TLS, with a certificate for 127.0.0.1 from an authority in :attr:`ca_file`.
    :param settings: further settings of ``redis.conf``, with underscores for hyphens: ``maxmemory="2mb"``.
    :raises RuntimeError: it isn't installed; the text says what to install.
    """

    def __init__(self, *, password: str | None = None, tls: bool = False, **settings: str) -> None:
        program = shutil.which("redis-server")
        if program is None:
            raise RuntimeError("Redis is missing. As root: apt-get install redis-server")
        self._program = program
        self.password = secrets.token_hex(16) if password is None else password
        self.tls = tls
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._home = Path(tempfile.mkdtemp(prefix="openmarkets-redis-"))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        if self.tls:
            authority = trustme.CA()
            authority.cert_pem.write_to_path(str(self.ca_file))
            authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(self._home / "key.pem"))
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        shutil.rmtree(self._home)

    @property
    def ca_file(self) -> Path:
        """The certificate authority that clients must trust, with TLS."""
        return self._home / "ca.pem"

    def start(self) -> None:
        """Start the server, empty, and wait until it answers."""
        assert self._process is None, "it runs already"
        where = {"port": str(self.port)}
        if self.tls:
            key = str(self._home / "key.pem")
            where = {"port": "0", "tls-port": str(self.port), "tls-cert-file": key, "tls-key-file": key}
            where |= {"tls-ca-cert-file": str(self.ca_file), "tls-auth-clients": "no"}
        settings = {"bind": "127.0.0.1", "save": "", "appendonly": "no", "dir": str(self._home), **where}
        if self.password:
            settings["requirepass"] = self.password
        settings |= {name.replace("_", "-"): value for name, value in self._settings.items()}
        # Not as arguments, which everybody on the machine can read.
        text = "".join(f'{name} "{value}"\n' for name, value in settings.items())
        log = (self._home / "log").open("ab")
        with log:
            # In a session of its own: when the shell that runs the tests as a job ends, the kernel wakes what is
            # paused in the job.
            self._process = subprocess.Popen(
                [self._program, "-"], stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )
        assert self._process.stdin is not None
        with self._process.stdin as stdin:
            stdin.write(text.encode())
        self._wait()

    def _wait(self) -> None:
        import redis

        assert self._process is not None
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                with self.client() as client:
                    client.ping()
                return
            except redis.ConnectionError:
                time.sleep(0.01)
        raise RuntimeError(f"redis-server did not start:\n{(self._home / 'log').read_text()[-3000:]}")

    def kill(self) -> None:
        """Kill it, as if its machine failed. Does nothing if it isn't running."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE)
            self._process = None

    def pause(self) -> None:
        """Make it accept connections without answering, until :meth:`resume`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        # The signal takes effect later than the call; the state letter follows the command's name.
        while Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(") ")[2][0] != "T":
            time.sleep(0.001)

    def resume(self) -> None:
        """Resume it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def reset(self) -> None:
        """Start it if necessary, empty and with its first configuration."""
        if self._process is None or self._process.poll() is not None:
            self._process = None
            self.start()
        self.resume()
        with self.client() as client:
            client.replicaof("NO", "ONE")
            client.config_set("maxmemory", self._settings.get("maxmemory", "0"))
            client.flushall()
            client.config_resetstat()

    def client(self, **options: Any) -> Any:
        """Return a redis-py client that may do everything."""
        import redis

        where: dict[str, Any] = {"host": "127.0.0.1", "port": self.port, "password": self.password or None}
        if self.tls:
            where |= {"ssl": True, "ssl_ca_certs": str(self.ca_file)}
        return redis.Redis(**where | options)

    def connection_json(self, **extra: Any) -> str:
        """Return the Airflow connection, as an environment variable takes it."""
        tls = {"ssl": True, "ssl_ca_certs": str(self.ca_file)} if self.tls else {}
        fields = {"conn_type": "redis", "host": "127.0.0.1", "port": self.port, "password": self.password}
        return json.dumps({**fields, "extra": tls | extra})

    def url(self, database: int = 0) -> str:
        """Return a URL, as Celery's broker takes it."""
        scheme = "rediss" if self.tls else "redis"
        return f"{scheme}://:{self.password}@127.0.0.1:{self.port}/{database}"


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """Give a Redis that all tests of this process share."""
    try:
        server = RedisServer()
    except RuntimeError as error:
        pytest.fail(str(error), pytrace=False)
    with server:
        yield server


@pytest.fixture
def empty_redis(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> RedisServer:
    """Give the Redis, empty and unharmed; the connection ``redis_default`` leads to it."""
    redis_server.reset()
    monkeypatch.setenv("AIRFLOW_CONN_REDIS_DEFAULT", redis_server.connection_json())
    return redis_server
