"""Columns as Arrow. Imported only when needed, because pyarrow is heavy and an extra.

Arrow takes whole numbers as they are in memory, and reads everything else as one JSON text. ``pyarrow.array`` is not
faster, but imports pandas if it is installed, which costs a second of CPU and 50 MB in every task.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import date
from decimal import Context, Decimal, Inexact, InvalidOperation
from itertools import chain
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.json import ParseOptions, ReadOptions, read_json

from openmarkets_provider.landing.layout import Column, Columns, Layout, Storage
from openmarkets_provider.query.batch import Scaled, join

AT_ONCE = 8192
"""Rows that are converted at once. Each call of Arrow releases the GIL and waits to get it back, so fewer calls are
faster; more rows need more memory."""
_TYPES: Mapping[Storage, pa.DataType] = {
    Storage.TEXT: pa.string(),
    Storage.INTEGER: pa.int64(),
    Storage.BOOLEAN: pa.bool_(),
    Storage.DATE: pa.date32(),
    Storage.TIME: pa.timestamp("us", tz="UTC"),
    Storage.JSON: pa.string(),
}
# Decimals keep all their digits; Arrow reads no dates from JSON.
_READ_AS = {Storage.DECIMAL: pa.string(), Storage.DATE: pa.string()}
_DAY_0 = date(1970, 1, 1).toordinal()
_INT64_DIGITS = 19
_SURE_TO_FIT = 20
"""A number with this many characters never overflows in Arrow."""
_encoder = msgspec.json.Encoder(decimal_format="string")


class ArrowConverter:
    """Converts batches of rows to Arrow.

    :ivar schema: of the converted rows.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.schema = schema_of(layout)
        self._waiting: list[Columns] = []
        self._converted = self._rows = 0

    def add(self, columns: Columns) -> list[pa.RecordBatch]:
        """Add a batch of :meth:`Layout.values`, and return the rows that are converted so far.

        :raises OpenmarketsInvalidResponse: a value does not fit; the text names column, row and key.
        """
        self._waiting.append(columns)
        self._rows += len(columns[0])
        return self.finish() if self._rows >= AT_ONCE else []

    def finish(self) -> list[pa.RecordBatch]:
        """Convert and return the remaining rows.

        :raises OpenmarketsInvalidResponse: see :meth:`add`.
        """
        if not self._rows:
            return []
        parts = list(zip(*self._waiting, strict=True))
        try:
            arrays = to_arrays(self._layout.columns, parts)
        except (ArithmeticError, ValueError):
            values = list(map(join, parts))
            arrays = [
                self._convert_closely(column, each, values)
                for column, each in zip(self._layout.columns, values, strict=True)
            ]
        self._converted += self._rows
        self._waiting, self._rows = [], 0
        return [pa.record_batch(arrays, schema=self.schema)]

    def _convert_closely(self, column: Column, cells: Sequence[Any], values: Columns) -> pa.Array:
        """Convert a column. If that fails, find the value that does not fit."""
        with suppress(ArithmeticError, ValueError):
            return to_arrays([column], [[cells]])[0]
        fitting = [self._fit(column, row, value, values) for row, value in enumerate(cells)]
        return _read([(column, fitting)])[column.name].cast(type_of(column))

    def _fit(self, column: Column, row: int, value: Any, values: Columns) -> Any:
        """Return a value; a number with exactly the decimals of its column.

        :raises OpenmarketsInvalidResponse: it does not fit.
        """
        if value is None:
            return None
        try:
            if column.storage is Storage.DECIMAL:
                return _quantize(value, *column.precision)
            to_arrays([column], [[[value]]])
        except (ArithmeticError, ValueError) as error:
            problem = f"can't be stored: {error}"
            if column.storage is Storage.DECIMAL:
                digits, decimals = column.precision
                problem = (
                    f"does not fit decimal({digits}, {decimals}): it has more than {digits - decimals} digits before "
                    f"the point or {decimals} after it. format='csv', 'jsonl' and hook.run hold it."
                )
            elif column.storage is Storage.INTEGER:
                problem = "does not fit 64 bits. format='csv', 'jsonl' and hook.run hold it."
            raise self._layout.unfit(values, column, row, self._converted, problem) from error
        return value


def schema_of(layout: Layout) -> pa.Schema:
    """Return the names, types and units of a layout's columns in Arrow."""
    return pa.schema([_field(column) for column in layout.columns])


def type_of(column: Column) -> pa.DataType:
    """Return the type of a column in Arrow."""
    return pa.decimal128(*column.precision) if column.storage is Storage.DECIMAL else _TYPES[column.storage]


def to_arrays(columns: Sequence[Column], parts: Sequence[Sequence[Sequence[Any]]]) -> list[pa.Array]:
    """Return columns as arrays. Each column comes in parts and has at least one value.

    :raises ArithmeticError: a value does not fit.
    :raises ValueError: a value does not fit, or a number may not fit.
    """
    pairs = list(zip(columns, parts, strict=True))
    arrays = {column.name: array for column, cells in pairs if (array := _from_memory(column, cells)) is not None}
    arrays |= _read([(column, join(cells)) for column, cells in pairs if column.name not in arrays])
    for column in columns:
        if column.storage is Storage.DECIMAL and pa.types.is_string(arrays[column.name].type):
            _check_sizes(arrays[column.name])
    return [arrays[column.name].cast(type_of(column)) for column in columns]


def _from_memory(column: Column, parts: Sequence[Sequence[Any]]) -> pa.Array | None:
    """Return an array of numbers or dates; None if there are other values, including None."""
    with suppress(TypeError, AttributeError, OverflowError):
        if column.storage is Storage.INTEGER:
            return _from_buffer(pa.int64(), array("q", chain.from_iterable(parts)))
        if column.storage is Storage.DATE:
            days = array("i", [day.toordinal() - _DAY_0 for day in chain.from_iterable(parts)])
            return _from_buffer(pa.date32(), days)
        if column.storage is Storage.DECIMAL:
            return _from_units(parts) if all(isinstance(part, Scaled) for part in parts) else _from_texts(column, parts)
    return None


def _from_units(parts: Sequence[Any]) -> pa.Array:
    """Return :class:`Scaled` numbers as an array of decimals, made from their units."""
    decimals = max(part.decimals for part in parts)
    units = array("q")
    for part in parts:
        factor = 10 ** (decimals - part.decimals)
        units.extend(part.units if factor == 1 else array("q", [unit * factor for unit in part.units]))
    whole = _from_buffer(pa.int64(), units).cast(pa.decimal128(_INT64_DIGITS, 0))
    return pa.Array.from_buffers(pa.decimal128(_INT64_DIGITS, decimals), len(units), whole.buffers())


def _from_texts(column: Column, parts: Sequence[Sequence[Any]]) -> pa.Array | None:
    cells = join(parts)
    if _is_constant(cells):
        return None
    text = ",".join(map(str, cells))
    # None, NaN.
    if "N" in text:
        return None
    return pc.split_pattern(pa.scalar(text), ",").values


def _from_buffer(kind: pa.DataType, values: array[int]) -> pa.Array:
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def _read(columns: Sequence[tuple[Column, Sequence[Any]]]) -> dict[str, pa.Array]:
    """Return arrays by name, which Arrow reads from JSON. Numbers are texts there, so that they keep their digits."""
    once = {column.name for column, cells in columns if _is_constant(cells)}
    text = _encoder.encode(
        {column.name: [cells[0]] if column.name in once else list(cells) for column, cells in columns}
    )
    fields = [(column.name, pa.list_(_READ_AS.get(column.storage) or type_of(column))) for column, _ in columns]
    table = read_json(
        pa.BufferReader(text),
        # The text is one JSON object, which Arrow reads as one block.
        read_options=ReadOptions(use_threads=False, block_size=len(text)),
        parse_options=ParseOptions(explicit_schema=pa.schema(fields)),
    )
    arrays = {column.name: table.column(column.name).chunk(0).values for column, _ in columns}
    return {
        column.name: pa.repeat(arrays[column.name][0], len(cells)) if column.name in once else arrays[column.name]
        for column, cells in columns
    }


def _is_constant(cells: Sequence[Any]) -> bool:
    """Tell whether all rows have the same value, as in many columns. Arrow then reads it once."""
    return bool(cells[0] == cells[-1]) and cells.count(cells[0]) == len(cells)


def _check_sizes(numbers: pa.Array) -> None:
    """Refuse numbers, as text, that may not fit. Arrow 17 changes some of these silently.

    :raises ValueError: a number may not fit.
    """
    # The user's decimal context can make the "E" of an exponent lower case.
    has_exponent = any(pc.any(pc.match_substring(numbers, each)).as_py() for each in "Ee")
    if has_exponent or (pc.max(pc.binary_length(numbers)).as_py() or 0) > _SURE_TO_FIT:
        raise ValueError("a number that needs a closer look")


def _quantize(number: Decimal, digits: int, decimals: int) -> Decimal:
    """Return a number with exactly these decimals.

    :raises ArithmeticError: it has more decimals, or too many digits before the point.
    :raises ValueError: it is not a number.
    """
    context = Context(prec=digits, traps=[InvalidOperation, Inexact])
    number = number.quantize(Decimal((0, (1,), -decimals)), context=context)
    if number.is_nan():
        raise ValueError("not a number")
    return number


def _field(column: Column) -> pa.Field:
    return pa.field(column.name, type_of(column), metadata={"unit": column.unit} if column.unit else None)
