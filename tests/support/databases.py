"""Databases of all kinds that are tested for real, as a test sees them: from outside, and not through the package."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy

from tests.support.mariadb import Mariadb
from tests.support.postgres import Postgres

POSTGRES_DRIVERS = ["psycopg", "psycopg2"] if sqlalchemy.__version__ >= "2" else ["psycopg2"]
"""Those that this SQLAlchemy knows."""


class Database(Protocol):
    """An empty database.

    :ivar airflow_connection: as Airflow takes it from an environment variable.
    :ivar url: for SQLAlchemy.
    """

    airflow_connection: str
    url: str

    def execute(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Carry out a statement, commit, and return the rows that it gives."""
        ...

    def tables(self) -> list[str]:
        """Return the names of the tables."""
        ...

    def columns(self, table: str) -> list[str]:
        """Return the names of a table's columns."""
        ...


class PostgresDatabase:
    """A database of the server that the tests started; one a name at a time."""

    def __init__(self, server: Postgres, driver: str = POSTGRES_DRIVERS[0], name: str = "test") -> None:
        self.server = server
        self.name = name
        server.empty_database(name)
        self.airflow_connection = server.airflow_connection(self.name)
        self.url = server.url(self.name, driver)

    def execute(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with self.server.connect(self.name) as connection:
            cursor = connection.execute(sql, values or None)
            return cursor.fetchall() if cursor.description else []

    def tables(self) -> list[str]:
        found = self.execute(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' ORDER BY 1"
        )
        return [name for (name,) in found]

    def columns(self, table: str) -> list[str]:
        sql = "SELECT column_name FROM information_schema.columns WHERE table_name = %s ORDER BY ordinal_position"
        return [name for (name,) in self.execute(sql, table)]

    def others(self) -> list[tuple[Any, ...]]:
        """Return process, state, kind of wait and statement of every other connection."""
        return self.execute(
            "SELECT pid, state, wait_event_type, query FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )


class MariadbDatabase:
    """A database of the server that the tests started.

    :param dialect: ``mariadb`` or ``mysql``, as SQLAlchemy names it.
    """

    def __init__(self, server: Mariadb, dialect: str = "mariadb", name: str = "test") -> None:
        self.server = server
        self.name = name
        server.empty_database(name)
        self.airflow_connection = server.airflow_connection(name)
        self.url = server.url(name, dialect)

    def execute(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with self.server.connect(self.name) as connection, connection.cursor() as cursor:
            cursor.execute(sql, values or None)
            return list(cursor.fetchall())

    def tables(self) -> list[str]:
        return [name for (name,) in self.execute("SHOW TABLES")]

    def columns(self, table: str) -> list[str]:
        return [row[0] for row in self.execute(f"SHOW COLUMNS FROM `{table}`")]


class SqliteDatabase:
    """A file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.airflow_connection = json.dumps({"conn_type": "sqlite", "host": str(path)})
        self.url = f"sqlite:///{path}"

    def execute(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(self._path)
        try:
            rows = connection.execute(sql.replace("%s", "?"), values).fetchall()
            connection.commit()
        finally:
            connection.close()
        return rows

    def tables(self) -> list[str]:
        return [name for (name,) in self.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY 1")]

    def columns(self, table: str) -> list[str]:
        return [row[1] for row in self.execute(f"PRAGMA table_info({table})")]
