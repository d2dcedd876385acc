"""Rows of one query by column. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from decimal import Context, Decimal, Inexact, InvalidOperation, Overflow, Subnormal, localcontext
from itertools import chain, repeat
from operator import mul
from typing import Any, overload

from openmarkets_provider.query.schema import Row

RECORD = "record"
"""The only column of records as the API sends them: those of ``request``, and with ``raw=True``."""
EXACT = Context(prec=60, Emax=60, Emin=-60, traps=[Inexact, InvalidOperation, Overflow, Subnormal])
"""Arithmetic that raises an error if a result is not exact."""


class Scaled(Sequence[Decimal]):
    """Decimals with the same number of digits after the point, which are made when they are read.

    :ivar units: the numbers in units of their last digit, such as 4011 for 40.11, as 64-bit integers.
    :ivar decimals: digits after the point.
    """

    __slots__ = ("decimals", "units")

    def __init__(self, units: array[int], decimals: int) -> None:
        self.units = units
        self.decimals = decimals

    def __len__(self) -> int:
        return len(self.units)

    def __iter__(self) -> Iterator[Decimal]:
        unit = Decimal((0, (1,), -self.decimals))
        with localcontext(EXACT):
            return iter(list(map(mul, repeat(unit), self.units)))

    @overload
    def __getitem__(self, index: int) -> Decimal: ...
    @overload
    def __getitem__(self, index: slice) -> Scaled: ...
    def __getitem__(self, index: int | slice) -> Decimal | Scaled:
        if isinstance(index, slice):
            return Scaled(self.units[index], self.decimals)
        return next(iter(self.take([index])))

    def take(self, rows: Sequence[int]) -> Scaled:
        """Return the numbers of some rows."""
        return Scaled(array("q", [self.units[row] for row in rows]), self.decimals)


Column = Sequence[Any]
"""The values of a column: a list, or :class:`Scaled`."""


class Batch:
    """Rows by column; immutable.

    :ivar columns: values by the column's name, in order; all have the same length.
    """

    def __init__(self, columns: Mapping[str, Column]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def rows(self) -> list[Row]:
        """Return the rows as dicts."""
        # Copies of one dict with all names: faster than dict(zip()).
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
        """Return the rows with these numbers, from 0, in this order."""
        if rows == list(range(len(self))):
            return self
        return Batch({name: _take(column, rows) for name, column in self.columns.items()})


def _take(column: Column, rows: Sequence[int]) -> Column:
    return column.take(rows) if isinstance(column, Scaled) else [column[row] for row in rows]


def join(parts: Sequence[Column]) -> Column:
    """Join the parts of a column; at least one."""
    scaled = [part for part in parts if isinstance(part, Scaled)]
    if len(scaled) == len(parts) and len({part.decimals for part in scaled}) == 1:
        return Scaled(sum((part.units for part in scaled[1:]), scaled[0].units), scaled[0].decimals)
    return list(chain.from_iterable(parts))


def concat(batches: Sequence[Batch]) -> Batch:
    """Join batches; at least one. If a batch lacks a column, its rows have None."""
    names = dict.fromkeys(chain.from_iterable(batch.columns for batch in batches))
    return Batch({name: join([batch.columns.get(name, [None] * len(batch)) for batch in batches]) for name in names})
