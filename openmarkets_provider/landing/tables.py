"""Tables for the rows of a query: their columns, types and keys, and whether a table that is there will do."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import mssql, mysql, oracle, postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

from openmarkets_provider.exceptions import OpenmarketsDatabaseError
from openmarkets_provider.landing.layout import DECIMALS, Column, Layout, Storage
from openmarkets_provider.landing.modes import APPEND, UPSERT

if TYPE_CHECKING:
    from sqlalchemy.types import TypeEngine

LOAD_ID = "load_id"
"""The column of an appended table that says which task instance a row comes from."""
LOAD_ROW = "load_row"
"""The column of a staging table that holds the number of a row, 1 for the first."""
STAGE = "openmarkets_load"
PRECISION = 38
"""Digits of a decimal where a database wants their number fixed."""
_MAX_KEY = 64
_MAX_LOAD_ID = 760
"""Three names of Airflow, of 250 characters each, and a number."""
_BOUNDED = ("mysql", "mariadb", "mssql", "oracle")
"""Databases that put no text without a length into an index."""


class Place(NamedTuple):
    """Where a table is; without a schema it is in the default one."""

    schema: str | None
    name: str

    @classmethod
    def of(cls, table: str) -> Place:
        """Read ``table`` or ``schema.table``."""
        schema, _, name = table.rpartition(".")
        return cls(schema or None, name)


def table_of(layout: Layout, place: Place, mode: str, dialect: str) -> sa.Table:
    """Return the table that a layout's rows are loaded into, as it is made where there is none.

    :param dialect: name of the database's dialect.
    """
    keyed = mode != APPEND
    # Elsewhere a comment is part of a column's definition, or a procedure call, or nothing.
    commented = dialect == "postgresql"
    columns = [
        _column(column, primary_key=keyed and column.key, comment=(commented and column.unit) or None)
        for column in layout.columns
    ]
    if not keyed:
        columns.append(sa.Column(LOAD_ID, _text(_MAX_LOAD_ID), nullable=False, index=True))
    return sa.Table(place.name, sa.MetaData(), *columns, schema=place.schema)


def stage_of(layout: Layout, dialect: str) -> sa.Table:
    """Return the temporary table that rows are sent to first; it ends with the transaction or the connection."""
    name, prefixes = STAGE, ["TEMPORARY"]
    if dialect == "mssql":
        name, prefixes = f"#{STAGE}", []
    elif dialect == "oracle":
        name, prefixes = f"ora$ptt_{STAGE}", ["PRIVATE TEMPORARY"]
    number = sa.Column(LOAD_ROW, sa.BigInteger, autoincrement=False)
    columns = (number, *map(_column, layout.columns))
    return sa.Table(name, sa.MetaData(), *columns, prefixes=prefixes, postgresql_on_commit="DROP")


def _column(column: Column, **options: Any) -> sa.Column[Any]:
    kind = _text(_MAX_KEY) if column.key and column.storage is Storage.TEXT else _type(column.storage)
    return sa.Column(column.name, kind, autoincrement=False, **options)


def _type(storage: Storage) -> TypeEngine[Any]:
    match storage:
        case Storage.TEXT:
            return sa.UnicodeText()
        case Storage.INTEGER:
            return sa.BigInteger()
        case Storage.DECIMAL:
            return sa.Numeric(PRECISION, DECIMALS).with_variant(sa.Numeric(), "postgresql")
        case Storage.BOOLEAN:
            return sa.Boolean()
        case Storage.DATE:
            return sa.Date()
        case Storage.TIME:
            # By default some of them keep seconds, or their thousandths, only.
            time = sa.DateTime().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")
            time = time.with_variant(mysql.DATETIME(fsp=6), "mysql").with_variant(mysql.DATETIME(fsp=6), "mariadb")
            exact = mssql.DATETIME2(6)  # type: ignore[no-untyped-call]
            return time.with_variant(exact, "mssql").with_variant(oracle.TIMESTAMP(), "oracle")
        case Storage.JSON:
            long = sa.UnicodeText().with_variant(mysql.LONGTEXT(), "mysql").with_variant(mysql.LONGTEXT(), "mariadb")
            return long.with_variant(postgresql.JSONB(), "postgresql")


def _text(length: int) -> TypeEngine[Any]:
    """Return a type of text that can be in an index."""
    kind: TypeEngine[Any] = sa.UnicodeText()
    for dialect in _BOUNDED:
        kind = kind.with_variant(sa.Unicode(length), dialect)
    return kind


def ddl(statement: Any, connection: sa.Connection) -> str:
    """Return a statement as text, for people."""
    return " ".join(str(statement.compile(dialect=connection.dialect)).split())


def check_absent(connection: sa.Connection, table: sa.Table, *, create: bool) -> None:
    """Refuse a table that is not there and can't be made.

    :raises OpenmarketsDatabaseError: it must be there, or its schema is not.
    """
    if not create:
        raise OpenmarketsDatabaseError(
            f"{table.fullname}: there is no such table. create_table=True makes it, or: "
            f"{ddl(CreateTable(table), connection)}"
        )
    schemas = sa.inspect(connection).get_schema_names() if table.schema else []
    if table.schema and table.schema not in schemas:
        raise OpenmarketsDatabaseError(f"{table.fullname}: there is no schema {table.schema!r}; make it first.")


def check_present(connection: sa.Connection, table: sa.Table, mode: str, key: Sequence[str]) -> bool:
    """Refuse a table that lacks a column or, for an upsert, what makes the key unique.

    Columns of its own, and their types, are its owner's business.

    :param table: as it would be made.
    :return: whether the key is unique in the table.
    :raises OpenmarketsDatabaseError: the text says what is missing, and which statement adds it.
    """
    there = {column["name"] for column in sa.inspect(connection).get_columns(table.name, table.schema)}
    missing = [column for column in table.columns if column.name not in there]
    prepare = connection.dialect.identifier_preparer
    where = prepare.format_table(table)
    if missing:
        adding = "; ".join(
            f"ALTER TABLE {where} ADD {prepare.format_column(column)} {column.type.compile(connection.dialect)}"
            for column in missing
        )
        names = ", ".join(column.name for column in missing)
        raise OpenmarketsDatabaseError(f"{table.fullname}: the table has no column {names}. To add them: {adding};")
    unique = bool(key) and _is_unique(connection, table, key)
    if mode == UPSERT and not unique:
        index = sa.Index(f"{table.name}_key", *(table.c[name] for name in key), unique=True)
        raise OpenmarketsDatabaseError(
            f"{table.fullname}: the table has no primary key, unique constraint or unique index of exactly the columns "
            f"{', '.join(key)}, which mode={UPSERT!r} goes by. To add one: {ddl(CreateIndex(index), connection)};"
        )
    return unique


def _is_unique(connection: sa.Connection, table: sa.Table, key: Collection[str]) -> bool:
    inspector = sa.inspect(connection)
    keys: list[Sequence[str | None]] = [inspector.get_pk_constraint(table.name, table.schema)["constrained_columns"]]
    for index in inspector.get_indexes(table.name, table.schema):
        # One that holds for some of the rows only has a condition.
        partial = any(name.endswith("_where") for name in index.get("dialect_options", {}))
        if index["unique"] and not partial:
            keys.append(index["column_names"])
    # Where it is not implemented, they are among the indexes.
    with suppress(NotImplementedError):
        keys += (unique["column_names"] for unique in inspector.get_unique_constraints(table.name, table.schema))
    return any(set(columns) == set(key) for columns in keys)
