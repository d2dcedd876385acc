"""Rows as tests write them, by column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openmarkets_provider.landing.layout import Columns, Layout
from openmarkets_provider.query.batch import RECORD, Batch


def batch_of(rows: Sequence[dict[str, Any]]) -> Batch:
    """Return rows by column; at least one, and all have the same names."""
    return Batch({name: [row[name] for row in rows] for name in rows[0]})


def values_of(layout: Layout, rows: Sequence[Any]) -> Columns:
    """Return the values of rows, or of records without a schema, by column of a layout."""
    if not layout.has_schema:
        return layout.values(Batch({RECORD: rows}))
    return layout.values(batch_of(rows) if rows else Batch({column.name: [] for column in layout.columns}))
