"""Rows as Arrow, and Arrow as Parquet files. Imported only where it is needed: pyarrow is heavy, and an extra.

Arrow reads the values as one JSON text. ``pyarrow.array`` is as fast, but it imports pandas wherever it is installed,
for a second of CPU and 50 MB in every task.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from decimal import ROUND_HALF_EVEN, Context, InvalidOperation
from typing import IO, Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow.json import ParseOptions, ReadOptions, read_json

from openmarkets_provider.landing.layout import DECIMALS, DIGITS, LAST_DIGIT, Column, Layout, Storage

log = logging.getLogger(__name__)

ROW_GROUP = 32_768
"""Rows in a row group."""
_AT_ONCE = 8192
"""Rows that are converted at once. Each call of Arrow releases the GIL and waits to get it back, so few calls are
cheap; many rows take memory."""
TYPES: Mapping[Storage, pa.DataType] = {
    Storage.TEXT: pa.string(),
    Storage.INTEGER: pa.int64(),
    Storage.DECIMAL: pa.decimal128(DIGITS, DECIMALS),
    Storage.BOOLEAN: pa.bool_(),
    Storage.DATE: pa.date32(),
    Storage.TIME: pa.timestamp("us", tz="UTC"),
    Storage.JSON: pa.string(),
}
# Decimals keep all their digits; Arrow reads no dates from JSON.
_READ_AS = {Storage.DECIMAL: pa.string(), Storage.DATE: pa.string()}
_NAMES = {Storage.INTEGER: "64 bits", Storage.DECIMAL: f"decimal({DIGITS}, {DECIMALS})"}
_SURE_TO_FIT = 20
"""A number of so many characters has at most 20 digits before the point and 18 after it."""
_ROUNDING = Context(prec=DIGITS, rounding=ROUND_HALF_EVEN, traps=[InvalidOperation])
_encoder = msgspec.json.Encoder(decimal_format="string")


class ParquetWriter:
    """Writes rows as Parquet, a row group at a time.

    :param compression: a codec of Parquet, or None.
    """

    def __init__(self, file: IO[bytes], layout: Layout, compression: str | None) -> None:
        self._layout = layout
        self._schema = pa.schema([_field(column) for column in layout.columns])
        self._values: list[list[Any]] = [[] for _ in layout.columns]
        self._batches: list[pa.RecordBatch] = []
        self._converted = 0
        self._rounded: set[str] = set()
        self._writer = pq.ParquetWriter(file, self._schema, compression=compression or "none")

    def write(self, columns: Sequence[Sequence[Any]]) -> None:
        """Add a batch of :meth:`Layout.values`.

        :raises OpenmarketsInvalidResponse: a value does not fit; the text names column, row and key.
        """
        for values, more in zip(self._values, columns, strict=True):
            values.extend(more)
        if len(self._values[0]) >= _AT_ONCE:
            self._convert()
            self._write_row_groups()

    def close(self) -> None:
        """Complete the file, and leave it open.

        :raises OpenmarketsInvalidResponse: as :meth:`write`.
        """
        if self._values[0]:
            self._convert()
        self._write_row_groups(last=True)
        self._writer.close()

    def discard(self) -> None:
        """Complete a file that nobody will read. Otherwise pyarrow does so later, when the file is closed already."""
        with suppress(Exception):
            self._writer.close()

    def _convert(self) -> None:
        try:
            arrays = to_arrays(self._layout.columns, self._values)
        except (ArithmeticError, ValueError):
            pairs = zip(self._layout.columns, self._values, strict=True)
            arrays = [self._convert_closely(column, values) for column, values in pairs]
        self._batches.append(pa.record_batch(arrays, schema=self._schema))
        self._converted += len(self._values[0])
        self._values = [[] for _ in self._layout.columns]

    def _write_row_groups(self, *, last: bool = False) -> None:
        table = pa.Table.from_batches(self._batches, self._schema)
        count = table.num_rows if last else table.num_rows // ROW_GROUP * ROW_GROUP
        if count:
            self._writer.write_table(table.slice(0, count), row_group_size=ROW_GROUP)
            self._batches = table.slice(count).to_batches()

    def _convert_closely(self, column: Column, values: list[Any]) -> pa.Array:
        """Convert a column, and find the value that does not fit."""
        with suppress(ArithmeticError, ValueError):
            return to_arrays([column], [values])[0]
        fitting = [self._fit(column, row, value) for row, value in enumerate(values)]
        if column.name not in self._rounded and fitting != values:
            self._rounded.add(column.name)
            log.warning(
                "%s: column %s has numbers with more than %d digits after the point. Parquet files have them rounded "
                "half to even; CSV and JSON lines keep all digits.",
                self._layout.name,
                column.name,
                DECIMALS,
            )
        return _read([column], [fitting])[0].cast(TYPES[column.storage])

    def _fit(self, column: Column, row: int, value: Any) -> Any:
        """Return a value, a number rounded to the digits of its column.

        :raises OpenmarketsInvalidResponse: it does not fit.
        """
        if value is None:
            return None
        try:
            if column.storage is not Storage.DECIMAL:
                to_arrays([column], [[value]])
            elif (value := value.quantize(LAST_DIGIT, context=_ROUNDING)).is_nan():
                raise ValueError("not a number")
        except (ArithmeticError, ValueError) as error:
            name = _NAMES.get(column.storage)
            problem = f"does not fit {name}; format='csv' and 'jsonl' hold it." if name else f"can't be stored: {error}"
            raise self._layout.unfit(self._values, column, row, self._converted, problem) from error
        return value


def to_arrays(columns: Sequence[Column], values: Sequence[Sequence[Any]]) -> list[pa.Array]:
    """Return values by column, some of them None, as arrays of :data:`TYPES`.

    :raises ArithmeticError: a value does not fit.
    :raises ValueError: likewise, or a number may not fit.
    """
    rows = len(values[0])
    # Many columns have the same value in all rows: Arrow reads it once.
    distinct = [each[:1] if each[0] == each[-1] and each.count(each[0]) == rows else each for each in values]
    arrays = []
    for column, array in zip(columns, _read(columns, distinct), strict=True):
        array = _to_decimals(array) if column.storage is Storage.DECIMAL else array.cast(TYPES[column.storage])
        arrays.append(array if len(array) == rows else pa.repeat(array[0], rows))
    return arrays


def _read(columns: Sequence[Column], values: Sequence[Sequence[Any]]) -> list[pa.Array]:
    """Return arrays as Arrow reads them from JSON."""
    types = [_READ_AS.get(column.storage, TYPES[column.storage]) for column in columns]
    fields = [(column.name, pa.list_(type_)) for column, type_ in zip(columns, types, strict=True)]
    text = _encoder.encode(dict(zip((column.name for column in columns), values, strict=True)))
    table = read_json(
        pa.BufferReader(text),
        # The text is one JSON object, which Arrow reads as one block.
        read_options=ReadOptions(use_threads=False, block_size=len(text)),
        parse_options=ParseOptions(explicit_schema=pa.schema(fields)),
    )
    return [column.chunk(0).values for column in table.columns]


def _to_decimals(texts: pa.Array) -> pa.Array:
    # Arrow 17 turns a number that does not fit into another one, without an error. The "E" of an exponent is small
    # where the user's decimal context says so.
    longest = pc.max(pc.binary_length(texts)).as_py() or 0
    if longest > _SURE_TO_FIT or pc.any(pc.match_substring(texts, "E", ignore_case=True)).as_py():
        raise ValueError("a number that needs a closer look")
    return texts.cast(TYPES[Storage.DECIMAL])


def _field(column: Column) -> pa.Field:
    return pa.field(column.name, TYPES[column.storage], metadata={"unit": column.unit} if column.unit else None)


def read_batches(file: IO[bytes], layout: Layout) -> Iterator[list[list[Any]]]:
    """Yield the rows of a file as :meth:`Layout.values` gave them; a column that the file lacks is None."""
    for batch in pq.ParquetFile(file).iter_batches(_AT_ONCE):
        names = batch.schema.names
        yield [
            batch.column(column.name).to_pylist() if column.key or column.name in names else [None] * len(batch)
            for column in layout.columns
        ]
