"""Transactions on one table of a database, and the meaning of the database's errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import blake2b
from typing import Any, NamedTuple

import sqlalchemy as sa

from openmarkets_provider.exceptions import OpenmarketsDatabaseError
from openmarkets_provider.landing import mysql

DIALECTS = ("postgresql", "sqlite", *mysql.NAMES)
"""Supported dialects of SQLAlchemy, by name."""
OLDEST_POSTGRES = (12,)
"""The oldest supported version. Amazon Redshift reports version 8."""
LOCK_WAIT = 600
"""Seconds to wait for a lock of another session of PostgreSQL, MySQL or MariaDB."""
BUSY_WAIT = 30
"""Seconds to wait while another process writes to the same SQLite file."""
CANCEL_TIMEOUT = 5.0
"""Most seconds for cancelling a statement."""
_MAX_REASON = 1000
_ABOUT_VALUES = ("22", "23", "44", "P0")
"""PostgreSQL's classes of errors about values: data, constraints, conditions of views, errors from triggers."""
_QUOTES_THE_ROW = ("23502", "23514", "44000")
"""PostgreSQL's errors whose detail contains the whole row: NOT NULL, CHECK, and the condition of a view."""


class TableName(NamedTuple):
    """A table; without a schema it is in the default schema."""

    schema: str | None
    name: str

    @classmethod
    def of(cls, text: str) -> TableName:
        """Read ``table`` or ``schema.table``."""
        schema, _, name = text.rpartition(".")
        return cls(schema or None, name)

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}" if self.schema else self.name


class Database:
    """A database, for loads of one table.

    :param engine: it must close a connection when it is returned.
    :param table: ``table`` or ``schema.table``.
    :param conn_id: id of the connection, for messages.
    """

    def __init__(self, engine: sa.Engine, table: str, conn_id: str = "") -> None:
        self.engine = engine
        self.table = TableName.of(table)
        self.dialect = engine.dialect.name
        self._is_mysql = self.dialect in mysql.NAMES
        self._conn_id = conn_id
        self._errors: Any = engine.dialect.dbapi
        self._driver: Any = None

    @contextmanager
    def transaction(self, *, commit: bool, wait: bool = True) -> Iterator[sa.Connection]:
        """Yield a connection in a transaction. Any error or signal rolls it back.

        If the connection is lost during the commit, it is unknown whether the transaction took effect.

        :param commit: False rolls it back at the end.
        :param wait: wait for other loads of the table to end, if the database supports it.
        :raises OpenmarketsDatabaseError: the database failed.
        """
        committing = False
        try:
            with self.engine.connect() as connection:
                try:
                    transaction = connection.begin()
                    self._driver = connection.connection.driver_connection
                    self._begin(connection, wait=wait)
                    yield connection
                    if commit:
                        committing = True
                        transaction.commit()
                    else:
                        transaction.rollback()
                except BaseException:
                    # Not a rollback: the connection may be broken, or in the middle of a statement.
                    connection.invalidate()
                    raise
                finally:
                    self._driver = None
        except Exception as error:
            if isinstance(error, sa.exc.SQLAlchemyError | self._errors.Error):
                raise self._failure(error, sent=commit, committing=committing) from _cause(error)
            raise

    def has_table(self, connection: sa.Connection) -> bool:
        """Tell whether the table exists."""
        return bool(sa.inspect(connection).has_table(self.table.name, self.table.schema))

    def has_rows(self) -> bool:
        """Tell whether the table exists and has a row.

        :raises OpenmarketsDatabaseError: the database failed.
        """
        table = sa.table(self.table.name, schema=self.table.schema)
        with self.transaction(commit=False, wait=False) as connection:
            row = sa.select(sa.literal(1)).select_from(table).limit(1)
            return self.has_table(connection) and connection.execute(row).first() is not None

    def cancel(self) -> None:
        """Cancel the running statement, if the driver can. For use in a signal handler.

        A server that waits for a lock does not notice that its client is gone.
        """
        driver = self._driver
        with suppress(Exception):
            if hasattr(driver, "cancel_safe"):
                driver.cancel_safe(timeout=CANCEL_TIMEOUT)
            elif hasattr(driver, "cancel"):
                driver.cancel()

    def attempt(
        self,
        connection: sa.Connection,
        work: Callable[[int, int], None],
        first: int,
        last: int,
        key_of: Callable[[int], Mapping[str, Any]],
    ) -> None:
        """Do some work with the rows from first to last. If the database refuses a row, find out which one.

        :raises OpenmarketsDatabaseError: it refuses a row, or all rows together.
        """
        refusal = self._try(connection, work, first, last)
        if refusal is None:
            return
        if first > last:
            # Without rows, the statement is at fault.
            raise self._failure(refusal, sent=False) from _cause(refusal)
        while first < last:
            middle = (first + last) // 2
            if self._try(connection, work, first, middle) is None:
                first = middle + 1
            else:
                last = middle
        alone = self._try(connection, work, first, last)
        if alone is None:
            # No single row is refused, so they are refused together.
            raise OpenmarketsDatabaseError(
                f"{self.table}: the database refuses the rows: {_reason(refusal)} Nothing was changed.", sent=True
            ) from _cause(refusal)
        raise self.refusal(first, key_of(first), _reason(alone)) from _cause(alone)

    def attempt_whole(self, connection: sa.Connection, work: Callable[[], None]) -> bool:
        """Do some work with all rows. If the database refuses one, undo it; return whether it is done."""
        return self._try(connection, lambda first, last: work(), 0, 0) is None

    def refusal(self, row: int, key: Mapping[str, Any], reason: str) -> OpenmarketsDatabaseError:
        """Return the error for a refused row."""
        pairs = ", ".join(f"{name}={value}" for name, value in key.items())
        return OpenmarketsDatabaseError(
            f"{self.table}: the database refuses row {row}{f' ({pairs})' if pairs else ''}: {reason} "
            "Nothing was changed.",
            row=row,
            key={name: str(value) for name, value in key.items()},
            sent=True,
        )

    def _begin(self, connection: sa.Connection, *, wait: bool) -> None:
        match self.dialect:
            case "postgresql":
                version: Any = connection.dialect.server_version_info
                if version < OLDEST_POSTGRES:
                    raise OpenmarketsDatabaseError(
                        f"{self.table}: a load needs PostgreSQL {OLDEST_POSTGRES[0]} or later, and the server is "
                        f"{'.'.join(map(str, version))} (Amazon Redshift reports 8). Land files with "
                        "OpenmarketsToObjectStorageOperator, and load them with the database's own operator."
                    )
                # So that reads after the lock see what the previous load committed.
                connection.execute(sa.text("SET TRANSACTION ISOLATION LEVEL READ COMMITTED"))
                connection.execute(sa.text("SET LOCAL TIME ZONE 'UTC'"))
                connection.execute(sa.text("SET LOCAL DateStyle = 'ISO, YMD'"))
                connection.execute(sa.text(f"SET LOCAL lock_timeout = '{LOCK_WAIT}s'"))
                if wait:
                    number = int.from_bytes(self._lock_name(connection), signed=True)
                    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.literal(number, sa.BigInteger))))
            case "mysql" | "mariadb":
                mysql.prepare_session(connection)
                connection.execute(sa.text(f"SET SESSION innodb_lock_wait_timeout = {LOCK_WAIT}"))
                # Closing the connection releases it.
                lock = sa.func.get_lock(f"openmarkets {self._lock_name(connection).hex()}", LOCK_WAIT)
                if wait and connection.execute(sa.select(lock)).scalar_one() != 1:
                    raise OpenmarketsDatabaseError(
                        f"{self.table}: another load of the table is running. Nothing was changed.", transient=True
                    )
            case "sqlite":
                # By default, the driver begins no transaction before a CREATE TABLE.
                connection.connection.driver_connection.isolation_level = None  # type: ignore[union-attr]
                connection.exec_driver_sql(f"PRAGMA busy_timeout = {1000 * BUSY_WAIT}")
                connection.exec_driver_sql("BEGIN IMMEDIATE")

    def _lock_name(self, connection: sa.Connection) -> bytes:
        """Return a key that identifies the table within the database."""
        schema = self.table.schema or connection.dialect.default_schema_name
        return blake2b(f"openmarkets {schema}.{self.table.name}".encode(), digest_size=8).digest()

    def _try(
        self, connection: sa.Connection, work: Callable[[int, int], None], first: int, last: int
    ) -> Exception | None:
        """Do some work with some rows. If the database refuses, undo it and return the error."""
        savepoint = connection.begin_nested()
        try:
            work(first, last)
        except Exception as error:
            if not self._is_refusal(error):
                raise
            savepoint.rollback()
            return error
        savepoint.commit()
        return None

    def _is_refusal(self, error: Exception) -> bool:
        """Tell whether a row may be at fault."""
        origin = _origin(error)
        if self._is_mysql and mysql.number_of(origin) in mysql.REFUSALS:
            return True
        # The drivers of PostgreSQL raise different kinds of errors for an error in a trigger.
        state = _state(error)
        if state is not None:
            return state[:2] in _ABOUT_VALUES
        return isinstance(origin, self._errors.IntegrityError | self._errors.DataError | ValueError | OverflowError)

    def _failure(self, error: Exception, *, sent: bool, committing: bool = False) -> OpenmarketsDatabaseError:
        """Return the error for a failure that is not caused by a row."""
        transient = self._errors.OperationalError | self._errors.InterfaceError | self._errors.InternalError
        is_refusal = self._is_refusal(error)
        is_permanent = mysql.is_permanent(mysql.number_of(_origin(error))) if self._is_mysql else _is_permanent(error)
        outcome = "Nothing was changed."
        if committing and not is_refusal:
            outcome = "It is unknown whether the rows were committed; it is safe to run the task again."
        by = f" (conn_id {self._conn_id!r})" if self._conn_id else ""
        return OpenmarketsDatabaseError(
            f"{self.table}{by}: {_reason(error)} {outcome}",
            transient=isinstance(_origin(error), transient) and not is_refusal and not is_permanent,
            sent=sent,
        )


def _origin(error: BaseException) -> BaseException:
    return getattr(error, "orig", None) or error


def _state(error: BaseException) -> str | None:
    """Return PostgreSQL's error code (SQLSTATE)."""
    origin = _origin(error)
    return getattr(origin, "sqlstate", None) or getattr(origin, "pgcode", None)


def _is_permanent(error: BaseException) -> bool:
    """Tell whether an error is permanent although its kind is transient, such as a file that can't be written."""
    state, name = _state(error) or "", getattr(_origin(error), "sqlite_errorname", "")
    # An object in use, or a lock, is transient.
    is_object = state.startswith("55") and state not in ("55006", "55P03")
    return is_object or name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN"))


def _cause(error: Exception) -> Exception | None:
    """Return an error for the log, or None if its text contains the whole row."""
    return None if _state(error) in _QUOTES_THE_ROW else error


def _reason(error: BaseException) -> str:
    """Return the database's own message, without the statement and its values."""
    origin = _origin(error)
    # PostgreSQL's drivers have the message in parts.
    parts = getattr(origin, "diag", None)
    names = ("message_primary", "message_detail")[: 1 if _state(error) in _QUOTES_THE_ROW else 2]
    words = [getattr(parts, name, None) or "" for name in names]
    # MySQL's drivers also have a number.
    whole = origin.args[1] if mysql.number_of(origin) is not None and len(origin.args) > 1 else origin
    text = " ".join((". ".join(filter(None, words)) or str(whole)).split())
    text = text[:_MAX_REASON].rstrip(".")
    return text if text.endswith(("?", "!")) else f"{text}."
