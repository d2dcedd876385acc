"""Tables for the rows of a query: their columns, types and keys, and whether an existing table fits."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable, SetColumnComment
from sqlalchemy.types import UserDefinedType

from openmarkets_provider.exceptions import OpenmarketsDatabaseError
from openmarkets_provider.landing import mysql
from openmarkets_provider.landing.columns import LOAD_ID, LOAD_ROW
from openmarkets_provider.landing.database import TableName
from openmarkets_provider.landing.layout import DECIMALS, DIGITS, Column, Layout, Storage
from openmarkets_provider.landing.modes import APPEND, REPLACE_RANGE, STAGE, UPSERT

if TYPE_CHECKING:
    from sqlalchemy.types import TypeEngine

log = logging.getLogger(__name__)

_MAX_KEY = 64
_SINGLE = 24
"""Binary digits of a single-precision number."""
_ROUNDING = (sa.Numeric, sa.Float, sa.Integer, sa.DateTime, postgresql.MONEY)
_CATEGORIES = {
    Storage.TEXT: "S",
    Storage.INTEGER: "N",
    Storage.DECIMAL: "N",
    Storage.BOOLEAN: "B",
    Storage.DATE: "D",
    Storage.TIME: "D",
}
"""PostgreSQL's categories of types that can be compared with one another."""
_MAX_LOAD_ID = 760
"""Length of three names in Airflow, with 250 characters each, and a number."""


def table_of(layout: Layout, name: TableName, mode: str, dialect: str) -> sa.Table:
    """Return the table for a layout's rows, as it is created if there is none.

    :param dialect: name of the database's dialect.
    """
    keyed = mode != APPEND
    # In other databases, a comment is part of a column's definition, or there are no comments.
    commented = dialect == "postgresql"
    columns = [
        _column(column, primary_key=keyed and column.key, comment=(commented and column.unit) or None)
        for column in layout.columns
    ]
    if not keyed:
        columns.append(sa.Column(LOAD_ID, _index_text(_MAX_LOAD_ID), nullable=False, index=True))
    return sa.Table(name.name, sa.MetaData(), *columns, schema=name.schema, **mysql.OPTIONS)


def stage_of(layout: Layout) -> sa.Table:
    """Return the temporary table that rows are sent to first. It ends with the transaction or the connection."""
    number = sa.Column(LOAD_ROW, sa.BigInteger, autoincrement=False)
    columns = (number, *map(_column, layout.columns))
    options: dict[str, Any] = {"postgresql_on_commit": "DROP", **mysql.OPTIONS}
    return sa.Table(STAGE, sa.MetaData(), *columns, prefixes=["TEMPORARY"], **options)


def _column(column: Column, **options: Any) -> sa.Column[Any]:
    kind = _index_text(_MAX_KEY) if column.key and column.storage is Storage.TEXT else _type(column.storage)
    return sa.Column(column.name, kind, autoincrement=False, **options)


def _type(storage: Storage) -> TypeEngine[Any]:
    match storage:
        case Storage.TEXT:
            return mysql.vary(sa.UnicodeText(), mysql.LONG_TEXT)
        case Storage.INTEGER:
            return sa.BigInteger()
        case Storage.DECIMAL:
            return sa.Numeric(DIGITS, DECIMALS).with_variant(sa.Numeric(), "postgresql")
        case Storage.BOOLEAN:
            return sa.Boolean()
        case Storage.DATE:
            return sa.Date()
        case Storage.TIME:
            return mysql.vary(sa.DateTime(), mysql.TIME).with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")
        case Storage.JSON:
            return mysql.vary(sa.UnicodeText(), mysql.LONG_TEXT).with_variant(postgresql.JSONB(), "postgresql")


def _index_text(length: int) -> TypeEngine[Any]:
    """Return a type of text for a column of an index."""
    return mysql.vary(sa.UnicodeText(), mysql.index_text(length))


def ddl(statement: Any, connection: sa.Connection) -> str:
    """Return a statement as text for a message."""
    return _single_percent(connection, " ".join(str(statement.compile(dialect=connection.dialect)).split()))


def _single_percent(connection: sa.Connection, text: str) -> str:
    """Undo the doubling of % that some drivers need in statements with values."""
    return text.replace("%%", "%") if "format" in connection.dialect.paramstyle else text


class Fit(NamedTuple):
    """How the rows fit an existing table.

    :ivar is_unique: whether the key is unique in the table.
    :ivar other_types: types of PostgreSQL columns that can't be compared with ours, such as an enum, by name.
    """

    is_unique: bool
    other_types: Mapping[str, TypeEngine[Any]] = MappingProxyType({})


def check_absent(connection: sa.Connection, table: sa.Table, *, create: bool) -> None:
    """Refuse a table that does not exist and cannot be created.

    :raises OpenmarketsDatabaseError: ``create`` is False, its schema does not exist, or its name differs only in case
        from another.
    """
    if not create:
        raise OpenmarketsDatabaseError(
            f"{table.fullname}: the table does not exist. create_table=True creates it, or: "
            f"{ddl(CreateTable(table), connection)}"
        )
    schemas = sa.inspect(connection).get_schema_names() if table.schema else []
    if table.schema and table.schema not in schemas:
        raise OpenmarketsDatabaseError(f"{table.fullname}: schema {table.schema!r} does not exist; create it first.")
    _check_name(connection, table)


def check_present(
    connection: sa.Connection, table: sa.Table, layout: Layout, mode: str, *, evolve: bool = False
) -> Fit:
    """Refuse an existing table that does not fit the rows: it lacks a column or a unique key, or has a wrong type.

    Types that round only some values are checked with the values; see :func:`rounding_types`.

    :param table: as it would be created.
    :param evolve: add columns that it lacks.
    :raises OpenmarketsDatabaseError: the text says what is wrong, and which statement fixes it.
    """
    if connection.dialect.name == "sqlite":
        # SQLite finds a table by a name in another case, but not its indexes.
        _check_name(connection, table)
    keys = _unique_keys(connection, table)
    if mode == APPEND:
        narrow = next((key for key in keys if key <= set(layout.key)), None)
        if narrow:
            names = ", ".join(name for name in layout.key if name in narrow)
            raise OpenmarketsDatabaseError(
                f"{table.fullname}: {names} is unique in the table, as mode={UPSERT!r} needs, but mode={mode!r} "
                f"keeps every load. Use another table, or mode={UPSERT!r}."
            )
    missing = missing_columns(connection, table, layout)
    if missing:
        _add_columns(connection, table, missing, evolve=evolve and all(map(can_be_added, missing)))
    # Read after that: another load may have added a column at any time before.
    existing = _read_columns(connection, table)
    _check_types(connection, table, layout, existing)
    _check_others(connection, table, mode, existing)
    if connection.dialect.name in mysql.NAMES:
        texts = [column.name for column in layout.columns if column.key and column.storage is Storage.TEXT]
        mysql.check_table(connection, table, () if mode == APPEND else texts)
    unique = set(layout.key) in keys and set(layout.key) not in _deferrable_keys(connection, table)
    if mode == UPSERT and not unique:
        if table.name in sa.inspect(connection).get_view_names(table.schema):
            raise OpenmarketsDatabaseError(
                f"{table.fullname}: this is a view, which has no key for mode={mode!r}. Load the table behind "
                f"it, or use mode={REPLACE_RANGE!r}."
            )
        index = sa.Index(f"{table.name}_key", *(table.c[name] for name in layout.key), unique=True)
        raise OpenmarketsDatabaseError(
            f"{table.fullname}: mode={mode!r} needs a primary key, unique constraint or unique index of exactly "
            f"the columns {', '.join(layout.key)}. To add one: {ddl(CreateIndex(index), connection)};"
        )
    if unique and connection.dialect.name in mysql.NAMES:
        _check_other_keys(table, layout, keys)
    return Fit(unique, _other_types(connection, table, layout))


def _check_name(connection: sa.Connection, table: sa.Table) -> None:
    """Refuse a name that differs only in case from that of an existing table."""
    inspector = sa.inspect(connection)
    names = [*inspector.get_table_names(table.schema), *inspector.get_view_names(table.schema)]
    similar = next((name for name in names if name.casefold() == table.name.casefold()), None)
    if similar and table.name not in names:
        raise OpenmarketsDatabaseError(
            f"{table.fullname}: the table does not exist, but one with another case does: {similar!r}. Use that name."
        )


def _check_other_keys(table: sa.Table, layout: Layout, keys: Sequence[set[str | None]]) -> None:
    """Refuse a key by which an upsert of MySQL would change another row instead of refusing the new one."""
    loaded = {column.name for column in layout.columns}
    for key in keys:
        # A wider key can't belong to another row, and a column that is not loaded, such as a row number, fills itself.
        if key <= loaded | {None} and not key >= set(layout.key):
            names = ", ".join(sorted(name or "(expression)" for name in key))
            raise OpenmarketsDatabaseError(
                f"{table.fullname}: {names} is another unique key of the table, by which this database could "
                "change the wrong row. Drop that key, or use another table."
            )


def rounding_types(connection: sa.Connection, table: sa.Table, layout: Layout) -> dict[str, TypeEngine[Any]]:
    """Return the types of columns of an existing table that could round a number or a time, by name.

    Double precision is not among them: a user who chooses it accepts its 15 digits.

    :param table: as it would be created.
    """
    # SQLite keeps a number unchanged, whatever the declared type.
    if connection.dialect.name == "sqlite":
        return {}
    existing = {name: column["type"] for name, column in _read_columns(connection, table).items()}
    own = _as_declared(connection, table) if connection.dialect.name == "postgresql" else {}
    declared = existing | {name: kind for name, (kind, _) in own.items()}
    rounding: dict[str, TypeEngine[Any]] = {}
    for name, storage, *_ in layout.columns:
        kind = _plain(existing[name])
        if storage not in (Storage.DECIMAL, Storage.INTEGER, Storage.TIME) or not isinstance(kind, _ROUNDING):
            continue
        declared_as, ours = (each.compile(connection.dialect) for each in (declared[name], table.c[name].type))
        is_checked = isinstance(kind, sa.Integer) and connection.dialect.name in mysql.NAMES
        if not is_checked and not _is_double(connection, kind) and declared_as.upper() != ours:
            rounding[name] = declared[name]
    return rounding


def _is_double(connection: sa.Connection, kind: TypeEngine[Any]) -> bool:
    return isinstance(kind, sa.Float) and (
        "DOUBLE" in kind.compile(connection.dialect) or (kind.precision or 0) > _SINGLE
    )


def is_plain(connection: sa.Connection, table: sa.Table) -> bool:
    """Tell whether COPY works for a table of PostgreSQL.

    Views, and tables with rules or row security, need INSERT.
    """
    if connection.dialect.name != "postgresql":
        return False
    query = sa.text(
        "SELECT relkind IN ('r', 'p') AND NOT relhasrules AND NOT relrowsecurity FROM pg_class "
        "WHERE oid = CAST(:name AS regclass)"
    )
    return bool(connection.execute(query, {"name": quote_table(connection, table)}).scalar_one())


class _Declared(UserDefinedType):  # type: ignore[type-arg]  # which takes none in SQLAlchemy 1.4
    """A type in the database's own notation."""

    cache_ok = True

    def __init__(self, text: str) -> None:
        self.text = text

    def get_col_spec(self, **_: Any) -> str:
        return self.text


def _as_declared(connection: sa.Connection, table: sa.Table) -> dict[str, tuple[TypeEngine[Any], str]]:
    """Return the types of a table of PostgreSQL by column, each with the letter of its category.

    SQLAlchemy 1.4 does not support domains and negative scales.
    """
    query = sa.text(
        "SELECT attname, format_type(atttypid, atttypmod), CAST(typcategory AS text) FROM pg_attribute "
        "JOIN pg_type ON pg_type.oid = atttypid "
        "WHERE attrelid = CAST(:name AS regclass) AND attnum > 0 AND NOT attisdropped"
    )
    rows = connection.execute(query, {"name": quote_table(connection, table)})
    return {column: (_Declared(kind), category) for column, kind, category in rows}


def _other_types(connection: sa.Connection, table: sa.Table, layout: Layout) -> dict[str, TypeEngine[Any]]:
    if connection.dialect.name != "postgresql":
        return {}
    declared = _as_declared(connection, table)
    return {
        name: declared[name][0]
        for name, storage, *_ in layout.columns
        if storage in _CATEGORIES and declared[name][1] != _CATEGORIES[storage]
    }


def quote_table(connection: sa.Connection, table: sa.Table) -> str:
    """Return a table's quoted name, for a value in which PostgreSQL expects a name."""
    return _single_percent(connection, connection.dialect.identifier_preparer.format_table(table))


def missing_columns(connection: sa.Connection, table: sa.Table, layout: Layout) -> list[sa.Column[Any]]:
    """Return the columns that an existing table lacks.

    :param table: as it would be created.
    :raises OpenmarketsDatabaseError: it lacks most of them.
    """
    existing = _read_columns(connection, table)
    missing = [column for column in table.columns if column.name not in existing]
    if 2 * len(missing) > len(table.columns):
        names = ", ".join(column.name for column in missing)
        raise OpenmarketsDatabaseError(
            f"{table.fullname}: this looks like the table of another query: it lacks {len(missing)} of the "
            f"{len(table.columns)} columns of {layout.name} ({names}). Use another table."
        )
    return missing


def can_be_added(column: sa.Column[Any]) -> bool:
    """Tell whether existing rows can lack a value of a column: it is not part of the key."""
    return not column.primary_key and column.name != LOAD_ID


def _add_columns(
    connection: sa.Connection, table: sa.Table, missing: Sequence[sa.Column[Any]], *, evolve: bool
) -> None:
    """Add columns, or refuse the table with the statements that add them.

    :raises OpenmarketsDatabaseError: the table is refused, or the database refuses the statements.
    """
    prepare, dialect = connection.dialect.identifier_preparer, connection.dialect
    # Two loads may detect a missing column at the same time.
    unless = "IF NOT EXISTS " if dialect.name == "postgresql" else ""
    alter = _single_percent(connection, f"ALTER TABLE {prepare.format_table(table)} ADD ")
    definitions = [
        _single_percent(connection, f"{prepare.format_column(column)} {column.type.compile(dialect)}")
        for column in missing
    ]
    names = ", ".join(column.name for column in missing)
    adding = "; ".join(alter + definition for definition in definitions)
    if not evolve:
        raise OpenmarketsDatabaseError(f"{table.fullname}: the table has no column {names}. To add it: {adding};")
    try:
        for column, definition in zip(missing, definitions, strict=True):
            connection.execute(sa.text((alter + unless + definition).replace(":", "\\:")))
            if column.comment:
                connection.execute(SetColumnComment(column))
    except sa.exc.ProgrammingError as error:
        raise OpenmarketsDatabaseError(
            f"{table.fullname}: the table has no column {names}, and the database refuses to add it "
            f"({error.orig}). To add it: {adding};"
        ) from error
    log.warning("%s: the table had no column %s. Added: %s;", table.fullname, names, adding)


def _read_columns(connection: sa.Connection, table: sa.Table) -> dict[str, Any]:
    return {column["name"]: column for column in sa.inspect(connection).get_columns(table.name, table.schema)}


def _check_types(connection: sa.Connection, table: sa.Table, layout: Layout, existing: Mapping[str, Any]) -> None:
    """Refuse types that can't store prices with a fraction, or times."""
    if connection.dialect.name == "sqlite":
        return
    is_mysql = connection.dialect.name in mysql.NAMES
    for column in layout.columns:
        kind = _plain(existing[column.name]["type"])
        is_whole = isinstance(kind, sa.Integer) or getattr(kind, "scale", None) == 0
        # MySQL compares single-precision numbers and decimals by other digits than it shows.
        is_single = is_mysql and isinstance(kind, sa.Float) and not _is_double(connection, kind)
        if (
            (column.storage is Storage.DECIMAL and (is_whole or is_single))
            or (column.storage is Storage.INTEGER and is_single)
            or (column.storage is Storage.TIME and isinstance(kind, sa.Date | sa.Time))
        ):
            raise OpenmarketsDatabaseError(
                f"{table.fullname}: column {column.name} has the type {kind.compile(connection.dialect)}, which "
                f"would round values. Change it to {table.c[column.name].type.compile(connection.dialect)}."
            )


def _check_others(connection: sa.Connection, table: sa.Table, mode: str, existing: Mapping[str, Any]) -> None:
    """Refuse the user's own columns that need a value. Values from a trigger can't be detected."""
    needed = [
        name
        for name, column in existing.items()
        if name not in table.c and not column["nullable"] and not _fills_itself(connection, column)
    ]
    if mode != APPEND and LOAD_ID in needed:
        raise OpenmarketsDatabaseError(
            f"{table.fullname}: the table was created for mode={APPEND!r} (it has the column {LOAD_ID}). Use "
            f"another table for mode={mode!r}."
        )
    if needed:
        raise OpenmarketsDatabaseError(
            f"{table.fullname}: column {', '.join(needed)} is NOT NULL without a default, and the load does not "
            "fill it. Add a default, or allow NULL."
        )


def _fills_itself(connection: sa.Connection, column: Mapping[str, Any]) -> bool:
    if column.get("default") is not None or column.get("computed") or column.get("identity"):
        return True
    # SQLite numbers the rows of such a column, and does not report it as a default.
    is_row_number = connection.dialect.name == "sqlite" and column.get("primary_key")
    return column.get("autoincrement") is True or (bool(is_row_number) and isinstance(column["type"], sa.Integer))


def _plain(kind: TypeEngine[Any]) -> TypeEngine[Any]:
    """Return a type; for a domain, its base type."""
    return getattr(kind, "data_type", kind)


def _unique_keys(connection: sa.Connection, table: sa.Table) -> list[set[str | None]]:
    """Return the sets of columns that are unique in a table. None stands for an expression in an index."""
    inspector = sa.inspect(connection)
    keys: list[Sequence[str | None]] = [inspector.get_pk_constraint(table.name, table.schema)["constrained_columns"]]
    for index in inspector.get_indexes(table.name, table.schema):
        # An index with a condition holds only for some of the rows.
        partial = any(name.endswith("_where") for name in index.get("dialect_options", {}))
        if index["unique"] and not partial:
            keys.append(index["column_names"])
    keys += (unique["column_names"] for unique in inspector.get_unique_constraints(table.name, table.schema))
    return [set(key) for key in keys if key]


def _deferrable_keys(connection: sa.Connection, table: sa.Table) -> list[set[str]]:
    """Return the keys with deferrable constraints (PostgreSQL): ON CONFLICT cannot use them."""
    if connection.dialect.name != "postgresql":
        return []
    query = sa.text(
        "SELECT array_agg(CAST(attname AS text)) FROM pg_constraint "
        "JOIN pg_attribute ON attrelid = conrelid AND attnum = ANY (conkey) "
        "WHERE conrelid = CAST(:name AS regclass) AND contype IN ('p', 'u') AND condeferrable "
        "GROUP BY pg_constraint.oid"
    )
    return [set(names) for (names,) in connection.execute(query, {"name": quote_table(connection, table)})]
