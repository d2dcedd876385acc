"""A real PostgreSQL for tests: a new cluster in a temporary folder, on loopback, removed at the end."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

USER = "loader"
_SPEED = ("fsync=off", "full_page_writes=off")
"""What only a machine that fails could make up for; the server itself may fail."""


class Postgres:
    """Runs a server of the newest PostgreSQL that is installed.

    :raises RuntimeError: none is; the text says what to install.
    """

    def __init__(self) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
        initdb = str(found[-1]) if found else shutil.which("initdb")
        if initdb is None:
            raise RuntimeError("PostgreSQL is missing. As root: apt-get install postgresql")
        self._bin = Path(initdb).resolve().parent
        self.password = secrets.token_hex(16)

    def __enter__(self) -> Self:
        self._home = Path(tempfile.mkdtemp(prefix="openmarkets-postgres-"))
        password = self._home / "password"
        password.write_text(self.password)
        if os.geteuid() == 0:
            # It refuses to run as root.
            for path in (self._home, password):
                shutil.chown(path, "postgres", "postgres")
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        options = ("-U", USER, "--auth=scram-sha-256", f"--pwfile={password}", "-E", "UTF8", "--no-locale", "--no-sync")
        self._command("initdb", "-D", str(self._home / "data"), *options)
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self._home)

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        settings = " ".join(f"-c {setting}" for setting in _SPEED)
        options = f"-h 127.0.0.1 -p {self.port} -k {self._home} {settings}"
        self._command(
            "pg_ctl", "-D", str(self._home / "data"), "-l", str(self._home / "log"), "-w", "-o", options, "start"
        )

    def stop(self, mode: str = "immediate") -> None:
        """Stop the server; immediately means as if the machine had failed."""
        self._command("pg_ctl", "-D", str(self._home / "data"), "-w", "-m", mode, "stop")

    def connect(self, database: str = "postgres", **options: Any) -> Any:
        """Return a connection that commits every statement."""
        import psycopg

        where = {"host": "127.0.0.1", "port": self.port, "user": USER, "password": self.password}
        return psycopg.connect(**where, dbname=database, autocommit=True, **options)

    def empty_database(self, name: str) -> None:
        """Make a database, or take everything out of it: far faster than a new one."""
        with self.connect() as connection:
            if not connection.execute("SELECT FROM pg_database WHERE datname = %s", (name,)).rowcount:
                connection.execute(f"CREATE DATABASE {name}")
            connection.execute(f"ALTER DATABASE {name} RESET ALL")
        with self.connect(name) as connection:
            schemas = connection.execute(
                "SELECT nspname FROM pg_namespace WHERE nspname !~ '^(pg_|information_schema)'"
            )
            for (schema,) in schemas.fetchall():
                connection.execute(f"DROP SCHEMA {schema} CASCADE")
            connection.execute("CREATE SCHEMA public")
            connection.execute("GRANT USAGE ON SCHEMA public TO public")

    def airflow_connection(self, database: str, **extra: Any) -> str:
        """Return a connection as Airflow takes it from an environment variable."""
        fields = {"host": "127.0.0.1", "port": self.port, "login": USER, "password": self.password, "schema": database}
        return json.dumps({"conn_type": "postgres", **fields, "extra": extra})

    def url(self, database: str, driver: str) -> str:
        """Return a URL for SQLAlchemy."""
        return f"postgresql+{driver}://{USER}:{self.password}@127.0.0.1:{self.port}/{database}"

    def _command(self, name: str, *arguments: str) -> None:
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"] if os.geteuid() == 0 else []
        # Into a file: the server that pg_ctl starts would keep a pipe open.
        with tempfile.TemporaryFile() as output:
            done = subprocess.run(
                [*as_user, str(self._bin / name), *arguments],
                cwd="/",
                env={"PATH": os.environ["PATH"]},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=120,
                check=False,
            )
            if done.returncode:
                output.seek(0)
                raise RuntimeError(f"{name} failed: {output.read().decode(errors='replace')}")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Give a PostgreSQL server that all tests share."""
    try:
        server = Postgres()
    except RuntimeError as error:
        pytest.fail(str(error), pytrace=False)
    with server:
        yield server
