"""Opens databases with Airflow connections."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from openmarkets_provider.exceptions import OpenmarketsConfigurationError
from openmarkets_provider.landing.modes import STAGE

if TYPE_CHECKING:
    from airflow.providers.common.sql.hooks.sql import DbApiHook
    from sqlalchemy import Engine

_CONN_TYPES = ("postgres", "mysql", "sqlite")
_TABLE = re.compile(r"""(?:[^.\s"'`\[\]]+\.)?[^.\s"'`\[\]]+""")


def check_table(table: str) -> None:
    """Check the rendered name of a table."""
    # A template without a value renders as "None". Some databases ignore case.
    is_name = isinstance(table, str) and _TABLE.fullmatch(table) and table != "None"
    if not is_name or table.rpartition(".")[2].casefold() == STAGE.casefold():
        raise OpenmarketsConfigurationError(
            f"table must be 'table' or 'schema.table', without quotes and spaces, not {table!r:.200}. Check the "
            "rendered template."
        )


def check_conn_id(conn_id: str) -> None:
    """Check that a rendered connection id is not empty."""
    if not isinstance(conn_id, str) or not conn_id.strip():
        raise OpenmarketsConfigurationError(
            f"conn_id must be the id of a connection to a database, not {conn_id!r:.200}."
        )


def hook_of(conn_id: str) -> DbApiHook:
    """Return the hook of a connection to a database.

    :raises OpenmarketsConfigurationError: the connection has another type, or a package is missing.
    """
    from airflow.providers.common.compat.sdk import AirflowException, BaseHook

    try:
        import sqlalchemy  # noqa: F401
        from airflow.providers.common.sql.hooks.sql import DbApiHook
    except ImportError as error:
        raise OpenmarketsConfigurationError(f"{error}. Run: pip install 'airflow-provider-openmarkets[sql]'") from error
    connection = BaseHook.get_connection(conn_id)
    if not connection.conn_type:
        raise OpenmarketsConfigurationError(
            f"conn_id: connection {conn_id!r} has no type. Set it, for example to postgres."
        )
    try:
        hook = connection.get_hook()
    except (AirflowException, ImportError) as error:
        raise OpenmarketsConfigurationError(
            f"conn_id: connection {conn_id!r} has the type {connection.conn_type!r}, whose provider is not "
            f"installed ({error}). Try: pip install apache-airflow-providers-{connection.conn_type}"
        ) from error
    if not isinstance(hook, DbApiHook):
        raise OpenmarketsConfigurationError(
            f"conn_id: connection {conn_id!r} has the type {connection.conn_type!r}, which is not a SQL database "
            f"({type(hook).__name__} is not a DbApiHook)."
        )
    return hook


@contextmanager
def open_engine(hook: DbApiHook) -> Iterator[Engine]:
    """Yield an engine that opens connections through the hook, with its tokens, TLS and settings."""
    from sqlalchemy.exc import NoSuchModuleError
    from sqlalchemy.pool import NullPool

    from openmarkets_provider.landing.database import DIALECTS

    def connect() -> Any:
        connection = hook.get_conn()
        if hook.supports_autocommit:
            hook.set_autocommit(connection, False)
        try:
            _adapt_connection(connection, engine.dialect)
        except OpenmarketsConfigurationError:
            connection.close()
            raise
        return connection

    try:
        engine = hook.get_sqlalchemy_engine({"creator": connect, "poolclass": NullPool, "hide_parameters": True})
    except Exception as error:
        # Hooks of unsupported databases may fail in any way.
        if hook.conn_type not in _CONN_TYPES:
            raise _unsupported(hook) from error
        if not isinstance(error, ImportError | ValueError | NoSuchModuleError):
            raise
        raise OpenmarketsConfigurationError(
            f"conn_id: SQLAlchemy can't load the database driver of connection {hook.get_conn_id()!r} ({error}). "
            "Install it, or remove sqlalchemy_scheme from the connection's Extra."
        ) from error
    # The hook for Amazon Redshift returns a PostgreSQL engine.
    if engine.dialect.name not in DIALECTS or hook.conn_type == "redshift":
        raise _unsupported(hook)
    try:
        yield engine
    finally:
        engine.dispose()


def _unsupported(hook: DbApiHook) -> OpenmarketsConfigurationError:
    return OpenmarketsConfigurationError(
        f"conn_id: connection {hook.get_conn_id()!r} has the type {hook.conn_type!r}; only PostgreSQL, MySQL, "
        "MariaDB and SQLite are supported. For others, land files with OpenmarketsToObjectStorageOperator, and "
        "load them with the database's own operator."
    )


def _adapt_connection(connection: Any, dialect: Any) -> None:
    """Make rows tuples and text Unicode, which the connection's Extra may have changed.

    :raises OpenmarketsConfigurationError: the connection uses another driver.
    """
    if dialect.name == "postgresql":
        driver = type(connection).__module__.partition(".")[0]
        if driver != dialect.driver:
            raise OpenmarketsConfigurationError(
                f"conn_id: the hook connects with {driver}, but sqlalchemy_scheme in the connection's Extra "
                f"names {dialect.driver}. Remove sqlalchemy_scheme."
            )
        if driver == "psycopg":
            connection.row_factory = dialect.dbapi.rows.tuple_row
        else:
            connection.cursor_factory = None
    elif hasattr(connection, "cursorclass"):
        # mysqlclient and pymysql only: mysql-connector-python has neither setting.
        connection.cursorclass = dialect.dbapi.cursors.Cursor
        connection.set_character_set("utf8mb4")
