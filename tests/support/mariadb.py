"""A real MariaDB for tests: a new server in a temporary folder, on a socket there, removed at the end."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

PATIENCE = 60.0
_SETTINGS = (
    # Without accounts it needs no system tables, so it starts in a second. Nobody else can reach the socket.
    "--skip-grant-tables",
    "--skip-networking",
    # What a load must not depend on.
    "--character-set-server=latin1",
    "--default-time-zone=+10:00",
    "--default-storage-engine=Aria",
    "--sql-mode=",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-flush-method=nosync",
    "--innodb-buffer-pool-size=16M",
    "--innodb-log-file-size=4M",
)


class Mariadb:
    """Runs a server of MariaDB.

    :raises RuntimeError: it isn't installed; the text says what to install.
    """

    def __init__(self) -> None:
        program = shutil.which("mariadbd", path="/usr/sbin:/usr/local/sbin:/usr/bin")
        if program is None:
            raise RuntimeError("MariaDB is missing. As root: apt-get install mariadb-server-core")
        self._program = program

    def __enter__(self) -> Self:
        self._home = Path(tempfile.mkdtemp(prefix="openmarkets-mariadb-"))
        self.socket = self._home / "socket"
        (self._home / "data").mkdir()
        places = (f"--datadir={self._home / 'data'}", f"--socket={self.socket}", f"--pid-file={self._home / 'pid'}")
        with (self._home / "log").open("wb") as log:
            self._process = subprocess.Popen(
                # Only root has to be named.
                [self._program, "--no-defaults", "--user=root", *places, *_SETTINGS],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + PATIENCE
        while not self.socket.exists():
            if self._process.poll() is not None or time.monotonic() > end:
                self._process.kill()
                raise RuntimeError(f"MariaDB does not start: {(self._home / 'log').read_text()}")
            time.sleep(0.02)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait(PATIENCE)
        shutil.rmtree(self._home)

    def connect(self, database: str | None = None) -> Any:
        """Return a connection that commits every statement."""
        import pymysql

        return pymysql.connect(unix_socket=str(self.socket), user="root", database=database, autocommit=True)

    def empty_database(self, name: str) -> None:
        """Create a database again, empty."""
        with self.connect() as connection, connection.cursor() as cursor:
            cursor.execute(f"DROP DATABASE IF EXISTS {name}")
            cursor.execute(f"CREATE DATABASE {name}")

    def airflow_connection(self, database: str, **extra: Any) -> str:
        """Return a connection as Airflow takes it from an environment variable."""
        extra = {"unix_socket": str(self.socket), **extra}
        return json.dumps(
            {"conn_type": "mysql", "host": "localhost", "login": "root", "schema": database, "extra": extra}
        )

    def url(self, database: str, dialect: str) -> str:
        """Return a URL for SQLAlchemy, which has two dialects for MariaDB: ``mariadb`` and ``mysql``."""
        return f"{dialect}+pymysql://root@/{database}?unix_socket={self.socket}"


@pytest.fixture(scope="session")
def mariadb() -> Iterator[Mariadb]:
    """Give a MariaDB server that all tests share."""
    try:
        server = Mariadb()
    except RuntimeError as error:
        pytest.fail(str(error), pytrace=False)
    with server:
        yield server
