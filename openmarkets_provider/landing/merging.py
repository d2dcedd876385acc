"""The statements that put rows into a table, by its key, and rows as the text that PostgreSQL copies. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite

from openmarkets_provider.landing.layout import Storage
from openmarkets_provider.landing.tables import LOAD_ROW

Merge = Callable[["sa.Table", Sequence[str], "sa.Select[Any]"], list[Any]]
"""Makes the statements from the table, the columns of its key, and the query for the rows."""


def rows_of(stage: sa.Table, names: Sequence[str], added: Sequence[Any], distinct: Sequence[str]) -> sa.Select[Any]:
    """Return the query for the rows that were sent, numbered from ``first`` to ``last``.

    :param names: their columns.
    :param added: what else each row has.
    :param distinct: of rows that have these columns in common the last one counts.
    """
    sent: Any = stage.c
    conditions = []
    if distinct:
        newest = sa.func.row_number().over(
            partition_by=[sent[name] for name in distinct], order_by=sent[LOAD_ROW].desc()
        )
        sent = sa.select(stage, newest.label("newest")).subquery("ranked").c
        conditions = [sent.newest == 1]
    is_wanted = sent[LOAD_ROW].between(sa.bindparam("first"), sa.bindparam("last"))
    return sa.select(*(sent[name] for name in names), *added).where(is_wanted, *conditions)


def copy_text(storages: Sequence[Storage], columns: Sequence[Sequence[Any]]) -> str:
    """Return rows as COPY of PostgreSQL reads them."""
    texts = [_copy_texts(storage, values) for storage, values in zip(storages, columns, strict=True)]
    return "".join(map("%s\n".__mod__, map("\t".join, zip(*texts, strict=True))))


def _copy_texts(storage: Storage, values: Sequence[Any]) -> list[str]:
    if storage in (Storage.TEXT, Storage.JSON):
        return ["\\N" if value is None else _escaped(value) for value in values]
    return ["\\N" if value is None else str(value) for value in values]


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def upsert_of(dialect: str) -> Merge:
    """Return what puts rows into a table, over those with the same key."""
    return {
        "postgresql": _on_conflict(postgresql.insert),
        "sqlite": _on_conflict(sqlite.insert),
        "mysql": _on_duplicate_key,
        "mariadb": _on_duplicate_key,
    }.get(dialect, update_and_insert)


def insert_only(table: sa.Table, key: Sequence[str], chosen: sa.Select[Any]) -> list[Any]:
    """Return what adds rows to a table where nothing can be in their way."""
    return [sa.insert(table).from_select(chosen.selected_columns.keys(), chosen)]


def _on_conflict(insert: Callable[[sa.Table], Any]) -> Merge:
    def merge(table: sa.Table, key: Sequence[str], chosen: sa.Select[Any]) -> list[Any]:
        names = chosen.selected_columns.keys()
        statement = insert(table).from_select(names, chosen)
        changed = {name: statement.excluded[name] for name in names if name not in key}
        return [statement.on_conflict_do_update(index_elements=list(key), set_=changed)]

    return merge


def _on_duplicate_key(table: sa.Table, key: Sequence[str], chosen: sa.Select[Any]) -> list[Any]:
    names = chosen.selected_columns.keys()
    statement = mysql.insert(table).from_select(names, chosen)
    return [statement.on_duplicate_key_update({name: statement.inserted[name] for name in names if name not in key})]


def update_and_insert(table: sa.Table, key: Sequence[str], chosen: sa.Select[Any]) -> list[Any]:
    """Return the statements for a database without one of its own: plain SQL that any understands."""
    names, source, there = chosen.selected_columns.keys(), chosen.subquery("source"), table.alias("there")
    same = sa.and_(*(source.c[name] == table.c[name] for name in key))
    changed = {
        name: sa.select(source.c[name]).where(same).correlate(table).scalar_subquery()
        for name in names
        if name not in key
    }
    known = sa.exists().select_from(there).where(*(there.c[name] == source.c[name] for name in key))
    return [
        sa.update(table).values(changed).where(sa.exists().select_from(source).where(same)),
        sa.insert(table).from_select(names, sa.select(*(source.c[name] for name in names)).where(~known)),
    ]
