"""MySQL and MariaDB: sessions, types, statements, errors. The tests use MariaDB."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from openmarkets_provider.exceptions import OpenmarketsDatabaseError

if TYPE_CHECKING:
    from sqlalchemy.types import TypeEngine

NAMES = ("mysql", "mariadb")
"""Names of their dialects."""
# In other collations, x and X, or ss and ß, are the same key.
_TEXT = {"charset": "utf8mb4", "collation": "utf8mb4_bin"}
# By default, DATETIME keeps only seconds.
TIME = mysql.DATETIME(fsp=6)
LONG_TEXT = mysql.LONGTEXT(**_TEXT)
OPTIONS: dict[str, Any] = {f"{name}_engine": "InnoDB" for name in NAMES}
"""Options of new tables. The default engine of a server may have no transactions."""
REFUSALS = frozenset((1264, 1265, 1292, 1366, 1369, 1406, 1644, 3140, 3819, 4025))
"""Errors about the values of a row, by number, that drivers do not raise as such: out of range, CHECK, SIGNAL."""
_TRANSIENT = frozenset(
    (1020, 1040, 1045, 1053, 1152, 1158, 1159, 1160, 1161, 1184, 1203, 1205, 1213, 1317, 1927, 1969, 3024)
)
"""Transient errors of the server, by number: too many connections, shutdown, locks, time-outs."""
_OF_CLIENTS = range(2000, 3000)
_ENGINE = sa.text(
    "SELECT t.engine FROM information_schema.tables t JOIN information_schema.engines e ON e.engine = t.engine "
    "WHERE t.table_schema = COALESCE(:schema, DATABASE()) AND t.table_name = :name AND e.savepoints <> 'YES'"
)
_COLLATIONS = sa.text(
    "SELECT column_name, collation_name FROM information_schema.columns "
    "WHERE table_schema = COALESCE(:schema, DATABASE()) AND table_name = :name"
)


def vary(kind: TypeEngine[Any], own: TypeEngine[Any]) -> TypeEngine[Any]:
    """Return a type that is different on MySQL and MariaDB."""
    for name in NAMES:
        kind = kind.with_variant(own, name)
    return kind


def index_text(length: int) -> TypeEngine[Any]:
    """Return a type of text for a column of an index, which needs a length."""
    return mysql.VARCHAR(length, **_TEXT)


def prepare_session(connection: sa.Connection) -> None:
    """Set the session's time zone to UTC, and let it refuse values that it would truncate."""
    connection.execute(sa.text("SET SESSION time_zone = '+00:00'"))
    connection.execute(sa.text("SET SESSION sql_mode = CONCAT(@@sql_mode, ',STRICT_ALL_TABLES')"))


def check_table(connection: sa.Connection, table: sa.Table, keys: Sequence[str]) -> None:
    """Refuse an existing table that can't roll back a load, or for which different keys are the same.

    :param table: as it would be created.
    :param keys: the text columns of its key.
    :raises OpenmarketsDatabaseError: it is such a table. The text has the statement that changes it.
    """
    name = {"schema": table.schema, "name": table.name}
    prepare = connection.dialect.identifier_preparer
    altering = f"ALTER TABLE {prepare.format_table(table)}".replace("%%", "%")
    engine = connection.execute(_ENGINE, name).scalar()
    if engine:
        statement = f"{altering} ENGINE=InnoDB"
        raise OpenmarketsDatabaseError(
            f"{table.fullname}: the table's engine {engine} can't roll back a load. To change that: {statement};"
        )
    # Binary columns have no collation.
    collations = {column: collation for column, collation in connection.execute(_COLLATIONS, name) if collation}
    inexact = [column for column in keys if not collations.get(column, "_bin").endswith("_bin")]
    if inexact:
        columns = [table.c[column] for column in inexact]
        changes = (
            f"MODIFY {prepare.format_column(column)} {column.type.compile(connection.dialect)} NOT NULL"
            for column in columns
        )
        statement = f"{altering} {', '.join(changes)}"
        raise OpenmarketsDatabaseError(
            f"{table.fullname}: the table compares {', '.join(inexact)} without case or accents, so different "
            f"keys would be equal. To change that: {statement};"
        )


def rounds(value: Any, kind: TypeEngine[Any]) -> Any:
    """Return the condition that a column of this type would round a number or a time."""
    if isinstance(kind, sa.DateTime):
        return sa.cast(value, mysql.DATETIME(fsp=getattr(kind, "fsp", None))) != value
    return sa.func.round(value, getattr(kind, "scale", 0) or 0) != value


def exact(dialect: str, value: sa.Column[Any]) -> Any:
    """Return a column that can be compared with a column of any collation."""
    is_text = dialect in NAMES and isinstance(value.type, sa.String)
    return sa.collate(value, _TEXT["collation"]) if is_text else value


def number_of(error: BaseException) -> int | None:
    """Return the number of a driver's error."""
    number = error.args[0] if error.args else None
    return number if isinstance(number, int) else None


def is_permanent(number: int | None) -> bool:
    """Tell whether an error is permanent although its kind is transient: drivers use one kind for most errors."""
    return bool(number) and number not in _TRANSIENT and number not in _OF_CLIENTS


def upsert(table: sa.Table, key: Sequence[str], rows: sa.Select[Any]) -> Any:
    """Return the statement that puts rows into a table and replaces those with the same key."""
    names = rows.selected_columns.keys()
    statement = mysql.insert(table).from_select(names, rows)
    return statement.on_duplicate_key_update({name: statement.inserted[name] for name in names if name not in key})
