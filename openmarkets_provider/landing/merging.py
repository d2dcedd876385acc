"""The statements that put rows into a table, by its key. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite

Merge = Callable[["sa.Table", Sequence[str], "sa.Select[Any]"], list[Any]]
"""Makes the statements from the table, the columns of its key, and the query for the rows."""


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
