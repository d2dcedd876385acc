"""The statements that put rows into a table by its key, and rows as text for PostgreSQL's COPY. Pure."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from openmarkets_provider.landing import mysql
from openmarkets_provider.landing.columns import LOAD_ROW
from openmarkets_provider.landing.layout import Column, Storage

if TYPE_CHECKING:
    from sqlalchemy.types import TypeEngine

Merge = Callable[["sa.Table", Sequence[str], "sa.Select[Any]"], Any]
"""Makes the statement from the table, the columns of its key, and the query for the rows."""
# The backslash first, because the others add more of them.
_ESCAPES = (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r"))


def rows_of(
    stage: sa.Table,
    names: Sequence[str],
    more: Sequence[Any],
    distinct: Sequence[str],
    casts: Mapping[str, TypeEngine[Any]],
) -> sa.Select[Any]:
    """Return the query for the rows with the numbers ``first`` to ``last`` of the temporary table.

    :param names: their columns.
    :param more: further columns.
    :param distinct: if rows have the same values in these columns, the last row counts.
    :param casts: the types of columns that need a cast.
    """
    columns: Any = stage.c
    conditions = []
    if distinct:
        rank = sa.func.row_number().over(
            partition_by=[columns[name] for name in distinct], order_by=columns[LOAD_ROW].desc()
        )
        columns = sa.select(stage, rank.label("rank_of_key")).subquery("ranked").c
        conditions = [columns.rank_of_key == 1]
    in_range = columns[LOAD_ROW].between(sa.bindparam("first"), sa.bindparam("last"))
    selected = (sa.cast(columns[name], casts[name]).label(name) if name in casts else columns[name] for name in names)
    return sa.select(*selected, *more).where(in_range, *conditions)


def rounds(dialect: str, value: Any, kind: TypeEngine[Any]) -> Any:
    """Return the condition that a column of this type would round a number or a time."""
    return mysql.rounds(value, kind) if dialect in mysql.NAMES else sa.cast(sa.cast(value, kind), value.type) != value


def copy_text(columns: Sequence[Column], values: Sequence[Sequence[Any]]) -> bytes:
    """Return rows, by column, as text for PostgreSQL's COPY."""
    texts = [_copy_texts(column.storage, cells) for column, cells in zip(columns, values, strict=True)]
    return "\n".join([*map("\t".join, zip(*texts, strict=True)), ""]).encode()


def _copy_texts(storage: Storage, values: Sequence[Any]) -> list[str]:
    if storage in (Storage.DATE, Storage.TIME):
        # Securities share dates and times: convert each only once.
        distinct = {value: "\\N" if value is None else str(value) for value in set(values)}
        return [distinct[value] for value in values]
    if storage not in (Storage.TEXT, Storage.JSON):
        return ["\\N" if value is None else str(value) for value in values]
    everything = "".join(filter(None, values))
    escapes = [(plain, escaped) for plain, escaped in _ESCAPES if plain in everything]
    return ["\\N" if value is None else _escape(value, escapes) if escapes else value for value in values]


def _escape(text: str, escapes: Sequence[tuple[str, str]]) -> str:
    for plain, escaped in escapes:
        text = text.replace(plain, escaped)
    return text


def same_key(dialect: str, stage: sa.Table, table: sa.Table, key: Sequence[str], casts: Container[str]) -> list[Any]:
    """Return the conditions for rows of the temporary table and of the table to have the same key.

    :param casts: the columns of the table that need a cast.
    """
    return [own(table, name, casts) == mysql.exact(dialect, stage.c[name]) for name in key]


def own(table: sa.Table, name: str, casts: Container[str]) -> Any:
    """Return a column of the table, cast to our type."""
    return sa.cast(table.c[name], table.c[name].type) if name in casts else table.c[name]


def upsert_of(dialect: str) -> Merge:
    """Return the function for the statement that puts rows into a table and replaces those with the same key."""
    if dialect in mysql.NAMES:
        return mysql.upsert
    return _on_conflict(postgresql.insert if dialect == "postgresql" else sqlite.insert)


def insert_only(table: sa.Table, key: Sequence[str], rows: sa.Select[Any]) -> Any:
    """Return the statement that adds rows to a table without rows with the same key, or without a key."""
    return sa.insert(table).from_select(rows.selected_columns.keys(), rows)


def _on_conflict(insert: Callable[[sa.Table], Any]) -> Merge:
    def merge(table: sa.Table, key: Sequence[str], rows: sa.Select[Any]) -> Any:
        names = rows.selected_columns.keys()
        statement = insert(table).from_select(names, rows)
        values = {name: statement.excluded[name] for name in names if name not in key}
        return statement.on_conflict_do_update(index_elements=list(key), set_=values)

    return merge
