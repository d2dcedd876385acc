"""Rows of one query by column. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from openmarkets_provider.query.schema import Row

RECORD = "record"
"""The only column of records as the API sends them: those of ``request``, and with ``raw=True``."""


class Batch:
    """Rows by column, never changed.

    :ivar columns: values by the column's name, in order; all are equally long.
    """

    def __init__(self, columns: Mapping[str, list[Any]]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def rows(self) -> list[Row]:
        """Return the rows as dicts: copies of one that has all names, which is faster than dict(zip())."""
        blank: Row = dict.fromkeys(self.columns)
        rows = [blank.copy() for _ in range(len(self))]
        for name, column in self.columns.items():
            for row, value in zip(rows, column, strict=True):
                row[name] = value
        return rows

    def keys(self, names: Sequence[str]) -> list[tuple[Any, ...]]:
        """Return the values of some columns, row by row."""
        return list(zip(*(self.columns[name] for name in names), strict=True))

    def take(self, rows: list[int]) -> Batch:
        """Return some rows, by their numbers from 0, in that order."""
        if rows == list(range(len(self))):
            return self
        return Batch({name: [column[row] for row in rows] for name, column in self.columns.items()})


def concat(batches: Sequence[Batch]) -> Batch:
    """Put batches together, at least one; where a batch lacks a column, its rows have None."""
    names = dict.fromkeys(chain.from_iterable(batch.columns for batch in batches))
    return Batch(
        {
            name: list(chain.from_iterable(batch.columns.get(name) or [None] * len(batch) for batch in batches))
            for name in names
        }
    )
