"""Loading rows into a table of a database: all of them in one transaction, or none.

Rows are kept in a file of this process alone until the last one has come, so that an API that is slow or fails never
holds a lock. Then one transaction makes the table where there is none, sends the rows to a temporary table, takes away
what they replace and puts them into the table. Nothing of it is seen, and nothing stays, before its end.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from decimal import Context, Inexact, InvalidOperation
from hashlib import blake2b
from io import BytesIO
from typing import Any

import sqlalchemy as sa

from openmarkets_provider.client.progress import PROGRESS_EVERY
from openmarkets_provider.exceptions import OpenmarketsDatabaseError
from openmarkets_provider.landing.layout import DECIMALS, DIGITS, LAST_DIGIT, Column, Layout, Storage
from openmarkets_provider.landing.merging import copy_text, insert_only, rows_of, upsert_of
from openmarkets_provider.landing.modes import APPEND, REPLACE_RANGE, UPSERT, Covered
from openmarkets_provider.landing.spool import Columns, Spool
from openmarkets_provider.landing.tables import (
    LOAD_ID,
    LOAD_ROW,
    TableName,
    check_absent,
    check_present,
    rounding_types,
    stage_of,
    table_of,
)

log = logging.getLogger(__name__)

LOCK_WAIT = 600
"""Seconds to wait for a lock that another session of PostgreSQL holds on the table."""
LOCKED_FOR = 30
"""Seconds to wait for another process that writes to the same SQLite file."""
CANCEL_TIMEOUT = 5.0
"""Seconds that it may take to end a statement."""
_MAX_SAID = 1000
_UNDOES_DDL = ("postgresql", "sqlite")
"""Databases that take back a table that a transaction made."""
_ABOUT_VALUES = ("22", "23", "44", "P0")
"""Classes of PostgreSQL's errors: data, constraints, conditions of views, and what triggers raise."""
_TELLS_THE_ROW = ("23502", "23514", "44000")
"""PostgreSQL's errors whose detail is the whole row: NOT NULL, CHECK, and the condition of a view."""


class Loader:
    """Loads rows into one table.

    :param engine: its connections are closed when they are given back.
    :param layout: of the rows.
    :param table: ``table`` or ``schema.table``.
    :param mode: one of :data:`openmarkets_provider.landing.modes.MODES`.
    :param create: make the table where there is none.
    :param load_id: what the rows of this load are known by in an appended table.
    :param conn_id: what the database is known by, for errors.
    """

    def __init__(
        self,
        engine: sa.Engine,
        layout: Layout,
        table: str,
        mode: str,
        *,
        create: bool = True,
        load_id: str = "",
        conn_id: str = "",
    ) -> None:
        self._engine = engine
        self._layout = layout
        self._mode = mode
        self._create = create
        self._load_id = load_id
        self._conn_id = conn_id
        self._key = () if mode == APPEND else layout.key
        self._table = table_of(layout, TableName.of(table), mode, engine.dialect.name)
        self._stage = stage_of(layout, engine.dialect.name)
        self._names = [column.name for column in layout.columns]
        self._errors: Any = engine.dialect.dbapi
        self._driver: Any = None
        self._rounded: set[str] = set()

    def rehearse(self) -> None:
        """Find out whether a load would work, by one without rows that is taken back: tables, columns, types, rights.

        A database that can't take back a table that was made is not asked to make it.

        :raises OpenmarketsDatabaseError: it would not, and the text says what is missing; or the database failed.
        """
        with self._transaction(keep=False, alone=False) as connection:
            is_there = self._has_table(connection)
            if is_there:
                self._try_out(connection)
            else:
                check_absent(connection, self._table, create=self._create)
        if not is_there and self._engine.dialect.name in _UNDOES_DDL:
            with self._transaction(keep=False) as connection:
                self._try_out(connection)

    def load(self, spool: Spool, replaced: Covered | None = None) -> int:
        """Load the rows.

        :param replaced: what goes away before, with mode ``replace_range``.
        :return: how many there are now: of rows with one key the last one counts.
        :raises OpenmarketsDatabaseError: the database refuses a row, and the text says which; or it failed (transient).
        """
        with self._transaction(keep=True) as connection:
            is_unique = self._prepare(connection)
            self._send(connection, spool)
            self._take_away(connection, replaced, is_unique=is_unique)
            count = self._count(connection, spool)
            if spool.rows:
                log.info("%s: all %d rows are sent, and go into the table now.", self._table.fullname, spool.rows)
                self._check_exact(connection, spool.rows)
                self._put(connection, spool.rows, is_unique=is_unique, have_doubles=count < spool.rows)
        return count

    def is_there(self) -> bool:
        """Tell whether the table exists and has a row.

        :raises OpenmarketsDatabaseError: the database failed.
        """
        with self._transaction(keep=False, alone=False) as connection:
            some = sa.select(sa.literal(1)).select_from(self._table).limit(1)
            return self._has_table(connection) and connection.execute(some).first() is not None

    def cancel(self) -> None:
        """End what the database is doing for this load, if its driver can; for a signal handler.

        A server that waits for a lock does not see that nobody waits for it any more.
        """
        driver = self._driver
        with suppress(Exception):
            if hasattr(driver, "cancel_safe"):
                driver.cancel_safe(timeout=CANCEL_TIMEOUT)
            elif hasattr(driver, "cancel"):
                driver.cancel()

    @contextmanager
    def _transaction(self, *, keep: bool, alone: bool = True) -> Iterator[sa.Connection]:
        """Yield a connection with one transaction. Whatever ends it early, a signal too, it leaves nothing.

        Only when the answer to its commit is lost nobody knows: then all is there, or nothing.

        :param keep: commit at the end.
        :param alone: wait for other loads of the table to end, where the database has a means for it.
        """
        committing = False
        try:
            with self._engine.connect() as connection:
                try:
                    transaction = connection.begin()
                    self._driver = connection.connection.driver_connection
                    _begin(connection, self._table, alone=alone)
                    yield connection
                    if keep:
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
                raise self._failure(error, sent=keep, committing=committing) from _cause(error)
            raise

    def _try_out(self, connection: sa.Connection) -> None:
        is_unique = self._prepare(connection)
        self._stage.create(connection)
        if self._mode != UPSERT:
            read = (LOAD_ID,) if self._mode == APPEND else (*self._layout.key, self._layout.time)
            columns = [column for column in self._table.c if column.name in read]
            nothing = sa.delete(self._table).where(sa.text("1 = 0"), *(column.is_not(None) for column in columns))
            connection.execute(nothing)
        self._put(connection, 0, is_unique=is_unique, have_doubles=False)

    def _has_table(self, connection: sa.Connection) -> bool:
        return bool(sa.inspect(connection).has_table(self._table.name, self._table.schema))

    def _prepare(self, connection: sa.Connection) -> bool:
        """Check or make the table, and return whether the key is unique in it."""
        if self._has_table(connection):
            return check_present(connection, self._table, self._layout, self._mode)
        check_absent(connection, self._table, create=self._create)
        self._table.create(connection)
        return bool(self._key)

    def _send(self, connection: sa.Connection, spool: Spool) -> None:
        """Fill the temporary table."""
        self._stage.create(connection)
        started = said = time.monotonic()
        for first, columns in spool.batches():
            self._send_batch(connection, first, columns)
            now = time.monotonic()
            if now - said >= PROGRESS_EVERY:
                said, last = now, first + len(columns[0]) - 1
                rate = last / (now - started)
                log.info("%s: %d of %d rows sent, %.0f rows/s.", self._table.fullname, last, spool.rows, rate)

    def _send_batch(self, connection: sa.Connection, first: int, columns: Columns) -> None:
        for column, values in zip(self._layout.columns, columns, strict=True):
            if column.name in self._key and None in values:
                problem = "is missing, and is part of the key."
                raise self._layout.unfit(columns, column, values.index(None), first - 1, problem)
        is_exact = connection.dialect.name == "postgresql"
        given = columns if is_exact else self._without_zone_and_exactness(first, columns)
        last = first + len(columns[0]) - 1
        numbered = [list(range(first, last + 1)), *given]

        def part(start: int, end: int) -> None:
            some = [values[start - first : end - first + 1] for values in numbered]
            (_copy if is_exact else _insert_many)(connection, self._stage, self._layout, some)

        def key_of(row: int) -> dict[str, Any]:
            pairs = zip(self._layout.columns, columns, strict=True)
            return {column.name: values[row - first] for column, values in pairs if column.key}

        self._attempt(connection, part, first, last, key_of)

    def _without_zone_and_exactness(self, first: int, columns: Columns) -> Columns:
        """Return what databases without zones and exact decimals hold: UTC without saying so, and so many digits."""
        made: Columns = []
        for column, values in zip(self._layout.columns, columns, strict=True):
            if column.storage is Storage.TIME:
                made.append([None if value is None else value.replace(tzinfo=None) for value in values])
            elif column.storage is Storage.DECIMAL:
                made.append(self._quantized(column, first, values, columns))
            else:
                made.append(values)
        return made

    def _quantized(self, column: Column, first: int, values: list[Any], columns: Columns) -> list[Any]:
        context = Context(prec=DIGITS, traps=[InvalidOperation])
        made: list[Any] = []
        try:
            made.extend(None if value is None else context.quantize(value, LAST_DIGIT) for value in values)
        except InvalidOperation:
            problem = f"has more than {DIGITS - DECIMALS} digits before the point, which this database can't hold."
            raise self._layout.unfit(columns, column, len(made), first - 1, problem) from None
        if context.flags[Inexact] and column.name not in self._rounded:
            self._rounded.add(column.name)
            log.warning("%s: %s is rounded to %d digits after the point.", self._table.fullname, column.name, DECIMALS)
        return made

    def _take_away(self, connection: sa.Connection, replaced: Covered | None, *, is_unique: bool) -> None:
        table = self._table
        if self._mode == APPEND:
            connection.execute(sa.delete(table).where(table.c[LOAD_ID] == self._load_id))
        if self._mode != REPLACE_RANGE or replaced is None or not replaced.subjects:
            return
        moment = table.c[replaced.time]
        of_subject = [table.c[name] == sa.bindparam(f"of_{name}") for name in replaced.columns]
        statement = sa.delete(table).where(*of_subject, moment >= sa.bindparam("start"), moment < sa.bindparam("end"))
        bounds = {"start": replaced.start, "end": replaced.end}
        if isinstance(replaced.start, datetime) and connection.dialect.name != "postgresql":
            bounds = {name: bound.astimezone(UTC).replace(tzinfo=None) for name, bound in bounds.items()}
        names = [f"of_{name}" for name in replaced.columns]
        connection.execute(
            statement, [bounds | dict(zip(names, subject, strict=True)) for subject in replaced.subjects]
        )
        if not is_unique:
            # A reply may name a row otherwise than the query did: in capitals, or from another data source.
            same = [self._stage.c[name] == table.c[name] for name in self._layout.key]
            connection.execute(sa.delete(table).where(sa.exists().where(*same).select_from(self._stage)))

    def _count(self, connection: sa.Connection, spool: Spool) -> int:
        """Return how many rows there will be, and tell when some have a key in common."""
        if not self._key:
            return spool.rows
        distinct = sa.select(*(self._stage.c[name] for name in self._key)).distinct().subquery()
        count: int = connection.execute(sa.select(sa.func.count()).select_from(distinct)).scalar_one()
        if count < spool.rows:
            log.warning(
                "%s: %d of %d rows have the key (%s) of a row that came later, which counts.",
                self._table.fullname,
                spool.rows - count,
                spool.rows,
                ", ".join(self._key),
            )
        return count

    def _put(self, connection: sa.Connection, rows: int, *, is_unique: bool, have_doubles: bool) -> None:
        """Put the rows that were sent into the table."""
        merge = upsert_of(connection.dialect.name) if is_unique else insert_only
        added = [sa.literal(self._load_id).label(LOAD_ID)] if self._mode == APPEND else []
        chosen = rows_of(self._stage, self._names, added, self._key if have_doubles else ())

        def part(first: int, last: int) -> None:
            for statement in merge(self._table, self._key, chosen):
                connection.execute(statement, {"first": first, "last": last})

        self._attempt(connection, part, 1, rows, lambda row: self._sent(connection, row, self._layout.key))

    def _sent(self, connection: sa.Connection, row: int, names: Sequence[str]) -> dict[str, Any]:
        """Return some values of a row that was sent."""
        if not names:
            return {}
        wanted = sa.select(*(self._stage.c[name] for name in names)).where(self._stage.c[LOAD_ROW] == row)
        return dict(zip(names, connection.execute(wanted).one(), strict=True))

    def _check_exact(self, connection: sa.Connection, rows: int) -> None:
        """Refuse a row whose number or time a column of the user would round: no database says so of itself."""
        kinds = rounding_types(connection, self._table, self._layout)
        stage = self._stage.c

        def part(first: int, last: int) -> None:
            for name, kind in kinds.items():
                changed = sa.cast(sa.cast(stage[name], kind), stage[name].type) != stage[name]
                wanted = sa.select(sa.func.min(stage[LOAD_ROW])).where(stage[LOAD_ROW].between(first, last), changed)
                row = connection.execute(wanted).scalar_one()
                if row is not None:
                    value = self._sent(connection, row, [name])[name]
                    theirs, ours = (each.compile(connection.dialect) for each in (kind, stage[name].type))
                    said = f"{name} is {value}, which its column ({theirs}) would round. Make the column {ours}."
                    raise self._refused(row, self._sent(connection, row, self._layout.key), said)

        if kinds:
            self._attempt(connection, part, 1, rows, lambda row: self._sent(connection, row, self._layout.key))

    def _attempt(
        self,
        connection: sa.Connection,
        work: Callable[[int, int], None],
        first: int,
        last: int,
        key_of: Callable[[int], Mapping[str, Any]],
    ) -> None:
        """Do something with the rows from first to last; when the database refuses, find out which row it is."""
        refusal = self._tried(connection, work, first, last)
        if refusal is None:
            return
        if first > last:
            # Without a row it is the statement.
            raise self._failure(refusal, sent=False) from _cause(refusal)
        while first < last:
            middle = (first + last) // 2
            if self._tried(connection, work, first, middle) is None:
                first = middle + 1
            else:
                last = middle
        own = self._tried(connection, work, first, last)
        if own is None:
            # Not a row by itself, but something that they are together.
            raise OpenmarketsDatabaseError(
                f"{self._table.fullname}: the rows are refused: {_said(refusal)} Nothing was changed.", sent=True
            ) from _cause(refusal)
        raise self._refused(first, key_of(first), _said(own)) from _cause(own)

    def _tried(
        self, connection: sa.Connection, work: Callable[[int, int], None], first: int, last: int
    ) -> Exception | None:
        """Do something with some rows, or leave no trace and return what the database has against it."""
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
        """Tell whether the fault may be a row's."""
        # The drivers of PostgreSQL differ in what kind of error they make of a trigger's.
        state = _state(error)
        if state is not None:
            return state[:2] in _ABOUT_VALUES
        return isinstance(
            _origin(error), self._errors.IntegrityError | self._errors.DataError | ValueError | OverflowError
        )

    def _failure(self, error: Exception, *, sent: bool, committing: bool = False) -> OpenmarketsDatabaseError:
        """Return what to tell of an error that is no row's."""
        passing = self._errors.OperationalError | self._errors.InterfaceError | self._errors.InternalError
        is_refusal = self._is_refusal(error)
        outcome = "Nothing was changed."
        if committing and not is_refusal:
            outcome = "Whether the rows are there is not known; running the task again is safe."
        by = f" (conn_id {self._conn_id!r})" if self._conn_id else ""
        return OpenmarketsDatabaseError(
            f"{self._table.fullname}{by}: {_said(error)} {outcome}",
            transient=isinstance(_origin(error), passing) and not is_refusal and not _stays(error),
            sent=sent,
        )

    def _refused(self, row: int, key: Mapping[str, Any], said: str) -> OpenmarketsDatabaseError:
        shown = ", ".join(f"{name}={value}" for name, value in key.items())
        return OpenmarketsDatabaseError(
            f"{self._table.fullname}: row {row}{f' ({shown})' if shown else ''} is refused: "
            f"{said} Nothing was changed.",
            row=row,
            key={name: str(value) for name, value in key.items()},
            sent=True,
        )


def _begin(connection: sa.Connection, table: sa.Table, *, alone: bool) -> None:
    match connection.dialect.name:
        case "postgresql":
            # So that what is read after the lock was got is what the load before it left.
            connection.execute(sa.text("SET TRANSACTION ISOLATION LEVEL READ COMMITTED"))
            connection.execute(sa.text("SET LOCAL TIME ZONE 'UTC'"))
            connection.execute(sa.text(f"SET LOCAL lock_timeout = '{LOCK_WAIT}s'"))
            if alone:
                name = f"openmarkets {table.schema or connection.dialect.default_schema_name}.{table.name}"
                number = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), signed=True)
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.literal(number, sa.BigInteger))))
        case "sqlite":
            # The driver itself begins none before a table is made.
            connection.connection.driver_connection.isolation_level = None  # type: ignore[union-attr]
            connection.exec_driver_sql(f"PRAGMA busy_timeout = {1000 * LOCKED_FOR}")
            connection.exec_driver_sql("BEGIN IMMEDIATE")


def _copy(connection: sa.Connection, stage: sa.Table, layout: Layout, columns: Columns) -> None:
    """Send rows to PostgreSQL: six times as fast as by INSERT."""
    prepare = connection.dialect.identifier_preparer
    names = ", ".join(map(prepare.format_column, stage.columns))
    statement = f"COPY {prepare.format_table(stage)} ({names}) FROM STDIN WITH (ENCODING 'UTF8')"
    storages = [Storage.INTEGER, *(column.storage for column in layout.columns)]
    lines = copy_text(storages, columns).encode()
    cursor: Any = connection.connection.cursor()
    try:
        if hasattr(cursor, "copy"):
            with cursor.copy(statement) as copy:
                copy.write(lines)
        else:
            # psycopg2
            cursor.copy_expert(statement, BytesIO(lines))
    finally:
        cursor.close()


def _insert_many(connection: sa.Connection, stage: sa.Table, layout: Layout, columns: Columns) -> None:
    names = [column.name for column in stage.columns]
    connection.execute(sa.insert(stage), [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)])


def _origin(error: BaseException) -> BaseException:
    return getattr(error, "orig", None) or error


def _state(error: BaseException) -> str | None:
    """Return PostgreSQL's code."""
    origin = _origin(error)
    return getattr(origin, "sqlstate", None) or getattr(origin, "pgcode", None)


def _stays(error: BaseException) -> bool:
    """Tell whether an error stays although its kind passes: a file that can't be written, an object that won't do."""
    state, name = _state(error) or "", getattr(_origin(error), "sqlite_errorname", "")
    # An object that is in use, and a lock, are waited for.
    is_object = state.startswith("55") and state not in ("55006", "55P03")
    return is_object or name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN"))


def _cause(error: Exception) -> Exception | None:
    """Return an error for the log, or none where its text has the whole row."""
    return None if _state(error) in _TELLS_THE_ROW else error


def _said(error: BaseException) -> str:
    """Return the database's own words, without the statement and its values."""
    origin = _origin(error)
    # PostgreSQL's, in parts.
    parts = getattr(origin, "diag", None)
    names = ("message_primary", "message_detail")[: 1 if _state(error) in _TELLS_THE_ROW else 2]
    words = [getattr(parts, name, None) or "" for name in names]
    text = " ".join((". ".join(filter(None, words)) or str(origin)).split())
    text = text[:_MAX_SAID].rstrip(".")
    return text if text.endswith(("?", "!")) else f"{text}."
