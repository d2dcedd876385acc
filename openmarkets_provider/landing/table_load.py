"""Loading rows into a table: all of them in one transaction, or none.

The transaction creates the table if there is none, sends the rows to a temporary table, deletes the rows that they
replace, and puts them into the table. A PostgreSQL table without these keys gets the rows directly. Nobody sees a
change before the transaction ends.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from decimal import Context, Inexact, InvalidOperation
from functools import partial
from io import BytesIO
from itertools import islice
from typing import Any

import sqlalchemy as sa

from openmarkets_provider.client.progress import PROGRESS_EVERY
from openmarkets_provider.landing.columns import LOAD_ID, LOAD_ROW
from openmarkets_provider.landing.database import Database
from openmarkets_provider.landing.layout import DECIMALS, DIGITS, LAST_DIGIT, Column, Columns, Layout, Storage
from openmarkets_provider.landing.merging import copy_text, insert_only, own, rounds, rows_of, same_key, upsert_of
from openmarkets_provider.landing.modes import APPEND, REPLACE_RANGE, UPSERT, Coverage
from openmarkets_provider.landing.spool import Spool
from openmarkets_provider.landing.tables import (
    Fit,
    can_be_added,
    check_absent,
    check_present,
    is_plain,
    missing_columns,
    quote_table,
    rounding_types,
    stage_of,
    table_of,
)

log = logging.getLogger(__name__)

_UNDOES_DDL = ("postgresql", "sqlite")
"""Databases that can roll back a CREATE TABLE."""


class Loader:
    """Loads the rows of one query into a table.

    :param layout: of the rows.
    :param mode: one of :data:`openmarkets_provider.landing.modes.MODES`.
    :param create: create the table if there is none.
    :param evolve: add columns that the table lacks.
    :param load_id: identifies the rows of this load, with mode ``append``.
    """

    def __init__(
        self,
        database: Database,
        layout: Layout,
        mode: str,
        *,
        create: bool = True,
        evolve: bool = False,
        load_id: str = "",
    ) -> None:
        self._database = database
        self._layout = layout
        self._mode = mode
        self._create = create
        self._evolve = evolve
        self._load_id = load_id
        self._key = () if mode == APPEND else layout.key
        self._table = table_of(layout, database.table, mode, database.dialect)
        self._stage = stage_of(layout)
        self._names = [column.name for column in layout.columns]
        self._rounded: set[str] = set()

    def rehearse(self) -> None:
        """Load no rows and roll back, to find problems early: tables, columns, types, privileges.

        The table is created, and columns are added, only if the database can roll that back.

        :raises OpenmarketsDatabaseError: a load would fail (the text says what is missing), or the database failed.
        """
        with self._database.transaction(commit=False, wait=False) as connection:
            has_table = self._database.has_table(connection)
            if not has_table:
                check_absent(connection, self._table, create=self._create)
            elif not self._would_alter(connection):
                self._load_nothing(connection)
        if not has_table and self._database.dialect in _UNDOES_DDL:
            with self._database.transaction(commit=False) as connection:
                self._load_nothing(connection)

    def load(self, spool: Spool[None], coverage: Coverage | None = None) -> int:
        """Load the rows.

        :param coverage: the rows to delete first, with mode ``replace_range``.
        :return: the number of rows in the table. If rows have the same key, the last one counts.
        :raises OpenmarketsDatabaseError: the database refuses a row, which the text names, or it failed (transient).
        """
        with self._database.transaction(commit=True) as connection:
            fit = self._prepare(connection)
            if fit.is_unique:
                self._delete(connection, coverage, fit)
                if self._copy_new(connection, spool, fit):
                    return spool.rows
            self._send(connection, spool)
            if not fit.is_unique:
                self._delete(connection, coverage, fit)
            count = self._count(connection, spool.rows)
            if spool.rows:
                log.info("%s: all %d rows are sent; moving them into the table.", self._table.fullname, spool.rows)
                self._check_exact(connection, spool.rows)
                self._merge(connection, spool.rows, fit, has_duplicates=count < spool.rows)
        return count

    def _would_alter(self, connection: sa.Connection) -> bool:
        """Tell whether a load would change the table in a way that the database can't roll back."""
        if not self._evolve or self._database.dialect in _UNDOES_DDL:
            return False
        missing = missing_columns(connection, self._table, self._layout)
        return bool(missing) and all(map(can_be_added, missing))

    def _load_nothing(self, connection: sa.Connection) -> None:
        fit = self._prepare(connection)
        self._stage.create(connection)
        if self._mode != UPSERT:
            read = (LOAD_ID,) if self._mode == APPEND else (*self._layout.key, self._layout.time)
            columns = [column for column in self._table.c if column.name in read]
            nothing = sa.delete(self._table).where(sa.text("1 = 0"), *(column.is_not(None) for column in columns))
            connection.execute(nothing)
        self._merge(connection, 0, fit, has_duplicates=False)

    def _prepare(self, connection: sa.Connection) -> Fit:
        """Check or create the table."""
        if self._database.has_table(connection):
            return check_present(connection, self._table, self._layout, self._mode, evolve=self._evolve)
        check_absent(connection, self._table, create=self._create)
        self._table.create(connection)
        return Fit(bool(self._key))

    def _copy_new(self, connection: sa.Connection, spool: Spool[None], fit: Fit) -> bool:
        """Send the rows directly to a PostgreSQL table, which is three times as fast, if it has none of their keys.

        :return: False, and the table is unchanged, if it has such a key or refuses a row. The usual way then names it.
        """
        if not spool.rows or fit.other_types or not is_plain(connection, self._table):
            return False
        if rounding_types(connection, self._table, self._layout):
            return False

        def texts() -> Iterator[bytes]:
            for first, columns in self._number(spool):
                self._check_key(first, columns)
                yield copy_text(self._layout.columns, columns)

        def work() -> None:
            # A COPY reports an existing key only at its end. So the first batch goes alone: overlapping loads begin
            # with such a key. One COPY follows for the rest: the database works while the next rows are written out.
            rest = texts()
            for some in (islice(rest, 1), rest):
                _copy(connection, self._table, self._layout.columns, some)

        return self._database.attempt_whole(connection, work)

    def _send(self, connection: sa.Connection, spool: Spool[None]) -> None:
        """Fill the temporary table."""
        self._stage.create(connection)
        for first, columns in self._number(spool):
            self._send_batch(connection, first, columns)

    def _number(self, spool: Spool[None]) -> Iterator[tuple[int, Columns]]:
        """Yield each batch and the number of its first row, and log the progress."""
        started = reported = time.monotonic()
        first = 1
        for columns in spool.batches(None):
            yield first, columns
            first += len(columns[0])
            now = time.monotonic()
            if now - reported >= PROGRESS_EVERY:
                reported, rate = now, (first - 1) / (now - started)
                log.info("%s: %d of %d rows sent, %.0f rows/s.", self._table.fullname, first - 1, spool.rows, rate)

    def _check_key(self, first: int, columns: Columns) -> None:
        """Check that all rows have a complete key.

        :raises OpenmarketsInvalidResponse: a row lacks a part of its key.
        """
        for column, values in zip(self._layout.columns, columns, strict=True):
            if column.name in self._key and None in values:
                problem = "is not allowed, because the column is part of the key."
                raise self._layout.unfit(columns, column, values.index(None), first - 1, problem)

    def _send_batch(self, connection: sa.Connection, first: int, columns: Columns) -> None:
        self._check_key(first, columns)
        is_exact = connection.dialect.name == "postgresql"
        last = first + len(columns[0]) - 1
        numbered = [list(range(first, last + 1)), *(columns if is_exact else self._reduce(first, columns))]

        def work(start: int, end: int) -> None:
            some = [values[start - first : end - first + 1] for values in numbered]
            if is_exact:
                every = [Column(LOAD_ROW, Storage.INTEGER), *self._layout.columns]
                _copy(connection, self._stage, every, [copy_text(every, some)])
            else:
                _insert_many(connection, self._stage, some)

        def key_of(row: int) -> dict[str, Any]:
            pairs = zip(self._layout.columns, columns, strict=True)
            return {column.name: values[row - first] for column, values in pairs if column.key}

        self._database.attempt(connection, work, first, last, key_of)

    def _reduce(self, first: int, columns: Columns) -> Columns:
        """Return values for databases without time zones and exact decimals: naive UTC and rounded numbers."""
        reduced: Columns = []
        for column, values in zip(self._layout.columns, columns, strict=True):
            if column.storage is Storage.TIME:
                reduced.append([None if value is None else value.replace(tzinfo=None) for value in values])
            elif column.storage is Storage.DECIMAL:
                reduced.append(self._round(column, first, values, columns))
            else:
                reduced.append(values)
        return reduced

    def _round(self, column: Column, first: int, values: Sequence[Any], columns: Columns) -> list[Any]:
        context = Context(prec=DIGITS, traps=[InvalidOperation])
        numbers: list[Any] = []
        try:
            numbers.extend(None if value is None else context.quantize(value, LAST_DIGIT) for value in values)
        except InvalidOperation:
            problem = f"has more than {DIGITS - DECIMALS} digits before the point, which this database can't store."
            raise self._layout.unfit(columns, column, len(numbers), first - 1, problem) from None
        if context.flags[Inexact] and column.name not in self._rounded:
            self._rounded.add(column.name)
            log.warning(
                "%s: column %s is rounded to %d digits after the point.", self._table.fullname, column.name, DECIMALS
            )
        return numbers

    def _delete(self, connection: sa.Connection, coverage: Coverage | None, fit: Fit) -> None:
        """Delete the rows that the new ones replace."""
        table, casts = self._table, fit.other_types
        if self._mode == APPEND:
            connection.execute(sa.delete(table).where(table.c[LOAD_ID] == self._load_id))
        if self._mode != REPLACE_RANGE or coverage is None or not coverage.subjects:
            return
        moment = own(table, coverage.time, casts)
        of_subject = [own(table, name, casts) == sa.bindparam(f"of_{name}") for name in coverage.columns]
        statement = sa.delete(table).where(*of_subject, moment >= sa.bindparam("start"), moment < sa.bindparam("end"))
        bounds = {"start": coverage.start, "end": coverage.end}
        if isinstance(coverage.start, datetime) and connection.dialect.name != "postgresql":
            bounds = {name: bound.astimezone(UTC).replace(tzinfo=None) for name, bound in bounds.items()}
        names = [f"of_{name}" for name in coverage.columns]
        connection.execute(
            statement, [bounds | dict(zip(names, subject, strict=True)) for subject in coverage.subjects]
        )
        if not fit.is_unique:
            # A reply may write a security differently from the query: in upper case, or from another data source.
            same = same_key(connection.dialect.name, self._stage, table, self._layout.key, casts)
            connection.execute(sa.delete(table).where(sa.exists().where(*same).select_from(self._stage)))

    def _count(self, connection: sa.Connection, rows: int) -> int:
        """Return the number of distinct keys of the rows; log a warning if there are fewer keys than rows."""
        if not self._key:
            return rows
        distinct = sa.select(*(self._stage.c[name] for name in self._key)).distinct().subquery()
        count: int = connection.execute(sa.select(sa.func.count()).select_from(distinct)).scalar_one()
        if count < rows:
            log.warning(
                "%s: %d of %d rows have the same key (%s) as a later row, and are left out.",
                self._table.fullname,
                rows - count,
                rows,
                ", ".join(self._key),
            )
        return count

    def _merge(self, connection: sa.Connection, rows: int, fit: Fit, *, has_duplicates: bool) -> None:
        """Put the rows of the temporary table into the table."""
        merge = upsert_of(connection.dialect.name) if fit.is_unique else insert_only
        more = [sa.literal(self._load_id).label(LOAD_ID)] if self._mode == APPEND else []
        # PostgreSQL converts any type to text automatically, but text to no other type.
        texts = {column.name for column in self._layout.columns if column.storage is Storage.TEXT}
        casts = {name: kind for name, kind in fit.other_types.items() if name in texts}
        rows_to_put = rows_of(self._stage, self._names, more, self._key if has_duplicates else (), casts)

        def work(first: int, last: int) -> None:
            connection.execute(merge(self._table, self._key, rows_to_put), {"first": first, "last": last})

        self._database.attempt(connection, work, 1, rows, partial(self._read_key, connection))

    def _read_key(self, connection: sa.Connection, row: int) -> dict[str, Any]:
        return self._read(connection, row, self._layout.key)

    def _read(self, connection: sa.Connection, row: int, names: Sequence[str]) -> dict[str, Any]:
        """Return values of a row of the temporary table."""
        if not names:
            return {}
        query = sa.select(*(self._stage.c[name] for name in names)).where(self._stage.c[LOAD_ROW] == row)
        return dict(zip(names, connection.execute(query).one(), strict=True))

    def _check_exact(self, connection: sa.Connection, rows: int) -> None:
        """Refuse a row with a number or time that a column of the user's table would round. Databases round silently.

        :raises OpenmarketsDatabaseError: the text names the row, the column and both types.
        """
        kinds = rounding_types(connection, self._table, self._layout)
        stage = self._stage.c

        def work(first: int, last: int) -> None:
            for name, kind in kinds.items():
                changes = rounds(connection.dialect.name, stage[name], kind)
                query = sa.select(sa.func.min(stage[LOAD_ROW])).where(stage[LOAD_ROW].between(first, last), changes)
                row = connection.execute(query).scalar_one()
                if row is not None:
                    value = self._read(connection, row, [name])[name]
                    theirs, ours = (each.compile(connection.dialect) for each in (kind, stage[name].type))
                    reason = f"{name} is {value}, which its column ({theirs}) would round. Change the column to {ours}."
                    raise self._database.refusal(row, self._read_key(connection, row), reason)

        if kinds:
            self._database.attempt(connection, work, 1, rows, partial(self._read_key, connection))


def _copy(connection: sa.Connection, table: sa.Table, columns: Sequence[Column], texts: Iterable[bytes]) -> None:
    """Send rows to PostgreSQL, six times as fast as with INSERT."""
    prepare = connection.dialect.identifier_preparer
    names = ", ".join(prepare.quote(column.name) for column in columns)
    statement = f"COPY {quote_table(connection, table)} ({names}) FROM STDIN WITH (ENCODING 'UTF8')"
    cursor: Any = connection.connection.cursor()
    try:
        if hasattr(cursor, "copy"):
            with cursor.copy(statement) as copy:
                for text in texts:
                    copy.write(text)
        else:
            reader = _Reader(texts)
            try:
                cursor.copy_expert(statement, reader)
            except Exception:
                # psycopg2 reports an error of the reader only as text.
                if reader.error:
                    raise reader.error from None
                raise
    finally:
        cursor.close()


class _Reader:
    """Texts as a file for reading, one after another."""

    def __init__(self, texts: Iterable[bytes]) -> None:
        self._texts = iter(texts)
        self._current = BytesIO()
        self.error: Exception | None = None

    def read(self, size: int) -> bytes:
        while not (data := self._current.read(size)):
            try:
                text = next(self._texts, None)
            except Exception as error:
                self.error = error
                raise
            if text is None:
                break
            self._current = BytesIO(text)
        return data


def _insert_many(connection: sa.Connection, stage: sa.Table, columns: Columns) -> None:
    names = [column.name for column in stage.columns]
    connection.execute(sa.insert(stage), [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)])
