"""MySQL and MariaDB. The tests run against MariaDB."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

if TYPE_CHECKING:
    from sqlalchemy.types import TypeEngine

NAMES = ("mysql", "mariadb")
"""Names of their dialects."""
# DATETIME keeps seconds only.
TIME = mysql.DATETIME(fsp=6)
LONG_TEXT = mysql.LONGTEXT()


def vary(kind: TypeEngine[Any], own: TypeEngine[Any]) -> TypeEngine[Any]:
    """Return a type that is another one on MySQL and MariaDB."""
    for name in NAMES:
        kind = kind.with_variant(own, name)
    return kind


def upsert(table: sa.Table, key: Sequence[str], rows: sa.Select[Any]) -> list[Any]:
    """Return the statement that puts rows into a table, over those with the same key."""
    names = rows.selected_columns.keys()
    statement = mysql.insert(table).from_select(names, rows)
    return [statement.on_duplicate_key_update({name: statement.inserted[name] for name in names if name not in key})]
