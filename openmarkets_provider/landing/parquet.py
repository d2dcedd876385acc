"""Parquet files, by Arrow's own writer. Imported only where one is written: pyarrow is heavy, and an extra.

Arrays are made from buffers, and not by ``pyarrow.array``: that imports pandas wherever it is installed, for a second
of CPU and 50 MB in every task. It is no slower.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Context, Decimal, InvalidOperation
from itertools import accumulate
from typing import Any, BinaryIO

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from openmarkets_provider.landing.layout import DECIMALS, DIGITS, LAST_DIGIT, Column, Layout, Storage

log = logging.getLogger(__name__)

ROW_GROUP = 32_768
"""Rows in a row group."""
_AT_ONCE = 8192
"""Rows that are converted at once. Each call of Arrow lets the threads that fetch have the interpreter, and waits to
get it back: few calls are cheap, and many rows take memory."""
TYPES: Mapping[Storage, pa.DataType] = {
    Storage.TEXT: pa.string(),
    Storage.INTEGER: pa.int64(),
    Storage.DECIMAL: pa.decimal128(DIGITS, DECIMALS),
    Storage.BOOLEAN: pa.bool_(),
    Storage.DATE: pa.date32(),
    Storage.TIME: pa.timestamp("us", tz="UTC"),
    Storage.JSON: pa.string(),
}
_NAMES = {Storage.INTEGER: "64 bits", Storage.DECIMAL: f"decimal({DIGITS}, {DECIMALS})"}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_SURE_TO_FIT = 20
"""A number of so many characters has at most 20 digits before the point and 18 after it."""
_ROUNDING = Context(prec=DIGITS, rounding=ROUND_HALF_EVEN, traps=[InvalidOperation])
_encoder = msgspec.json.Encoder(decimal_format="number")


class ParquetWriter:
    """Writes rows as Parquet, a row group at a time.

    :param compression: a codec of Parquet, or None.
    """

    def __init__(self, file: BinaryIO, layout: Layout, compression: str | None) -> None:
        self._layout = layout
        self._schema = pa.schema([_field(column) for column in layout.columns])
        self._values: list[list[Any]] = [[] for _ in layout.columns]
        self._batches: list[pa.RecordBatch] = []
        self._converted = 0
        self._rounded: set[str] = set()
        self._sink = _Sink(file)
        with self._sink.open():
            self._writer = pq.ParquetWriter(self._sink, self._schema, compression=compression or "none")

    def write(self, rows: Sequence[Any]) -> None:
        """Add a batch of ``hook.stream``.

        :raises OpenmarketsInvalidResponse: a value does not fit; the text names column, row and key.
        """
        for values, added in zip(self._values, self._layout.values(rows), strict=True):
            values.extend(added)
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
        with self._sink.open():
            self._writer.close()

    def _convert(self) -> None:
        arrays = [
            self._array(column, values) for column, values in zip(self._layout.columns, self._values, strict=True)
        ]
        self._batches.append(pa.record_batch(arrays, schema=self._schema))
        self._converted += len(self._values[0])
        self._values = [[] for _ in self._layout.columns]

    def _write_row_groups(self, *, last: bool = False) -> None:
        table = pa.Table.from_batches(self._batches, self._schema)
        count = table.num_rows if last else table.num_rows // ROW_GROUP * ROW_GROUP
        if count:
            with self._sink.open():
                self._writer.write_table(table.slice(0, count), row_group_size=ROW_GROUP)
            self._batches = table.slice(count).to_batches()

    def _array(self, column: Column, values: list[Any]) -> pa.Array:
        try:
            return to_array(column.storage, values)
        except (ArithmeticError, ValueError):
            fitting = [self._fitting(column, row, value) for row, value in enumerate(values)]
            if column.storage is not Storage.DECIMAL:
                raise
        if column.name not in self._rounded and fitting != values:
            self._rounded.add(column.name)
            log.warning(
                "%s: column %s has numbers with more than %d digits after the point. In Parquet they are rounded, half "
                "to even; CSV and JSON lines keep all digits.",
                self._layout.name,
                column.name,
                DECIMALS,
            )
        return to_array(column.storage, fitting, _fitting_decimals)

    def _fitting(self, column: Column, row: int, value: Any) -> Any:
        """Return a value, a number rounded to the digits that there are, or say that it does not fit."""
        if value is None:
            return None
        try:
            if column.storage is not Storage.DECIMAL:
                to_array(column.storage, [value])
            elif (value := value.quantize(LAST_DIGIT, context=_ROUNDING)).is_nan():
                raise ValueError("not a number")
        except (ArithmeticError, ValueError) as error:
            name = _NAMES.get(column.storage)
            problem = f"does not fit {name}; format='csv' and 'jsonl' hold it." if name else f"can't be stored: {error}"
            raise self._layout.unfit(self._values, column, row, self._converted, problem) from error
        return value


class _Sink:
    """Passes on what pyarrow writes, as long as it is open.

    A writer of pyarrow that is thrown away completes its file: what a failed load left would look whole.
    """

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._is_open = False
        self._size = 0

    @contextmanager
    def open(self) -> Iterator[None]:
        self._is_open = True
        try:
            yield
        finally:
            self._is_open = False

    def write(self, data: Any) -> None:
        if self._is_open:
            self._file.write(data)
        self._size += len(data)

    def tell(self) -> int:
        return self._size


def _field(column: Column) -> pa.Field:
    return pa.field(column.name, TYPES[column.storage], metadata={"unit": column.unit} if column.unit else None)


def to_array(storage: Storage, values: list[Any], build: Callable[[list[Any]], pa.Array] | None = None) -> pa.Array:
    """Return values, some of them None, as an array of :data:`TYPES`.

    :param values: not empty.
    :param build: makes an array of values without None, in another way than the usual one.
    :raises ArithmeticError: a value does not fit.
    :raises ValueError: likewise, or it is a number that needs a closer look.
    """
    build = build or _BUILD[storage]
    # Most columns that name something, and those that are empty, hold one value.
    if values[0] == values[-1] and values.count(values[0]) == len(values):
        if values[0] is None:
            return pa.nulls(len(values), TYPES[storage])
        return pa.repeat(build(values[:1])[0], len(values))
    try:
        return build(values)
    except TypeError:
        # None is among them. A null takes a place in the buffers, and it doesn't matter what is there.
        some = next(value for value in values if value is not None)
    filled = build([some if value is None else value for value in values])
    is_valid = _booleans([value is not None for value in values]).buffers()[1]
    return pa.Array.from_buffers(filled.type, len(values), [is_valid, *filled.buffers()[1:]])


def _from_buffers(type_: pa.DataType, length: int, *buffers: Any) -> pa.Array:
    return pa.Array.from_buffers(type_, length, [None, *map(pa.py_buffer, buffers)])


def _texts(values: list[str]) -> pa.Array:
    text = "".join(values)
    data = text.encode()
    lengths = map(len, values) if len(data) == len(text) else (len(value.encode()) for value in values)
    return _from_buffers(pa.string(), len(values), array("i", accumulate(lengths, initial=0)), data)


def _integers(values: list[int]) -> pa.Array:
    return _from_buffers(pa.int64(), len(values), array("q", values))


def _decimals(values: list[Decimal]) -> pa.Array:
    text = _encoder.encode(values)[1:-1]
    texts = _split(text)
    # Arrow 17 makes another number of one that does not fit, without a word. The user's decimal context may have a
    # small e.
    if b"E" in text or b"e" in text or pc.max(pc.binary_length(texts)).as_py() > _SURE_TO_FIT:
        raise ValueError("a number that needs a closer look")
    return texts.cast(TYPES[Storage.DECIMAL])


def _fitting_decimals(values: list[Decimal]) -> pa.Array:
    return _split(_encoder.encode(values)[1:-1]).cast(TYPES[Storage.DECIMAL])


def _split(text: bytes) -> pa.Array:
    # One text for all, which Arrow splits and reads: the fastest way that is exact.
    if b"null" in text:
        raise TypeError
    return pc.split_pattern(_from_buffers(pa.string(), 1, array("i", [0, len(text)]), text), ",").values


def _booleans(values: list[bool]) -> pa.Array:
    return _from_buffers(pa.int8(), len(values), bytes(values)).cast(pa.bool_())


def _dates(values: list[date]) -> pa.Array:
    first = _EPOCH.toordinal()
    days = array("i", [ordinal - first for ordinal in map(date.toordinal, values)])
    return _from_buffers(TYPES[Storage.DATE], len(values), days)


def _times(values: list[datetime]) -> pa.Array:
    microseconds = array("q", [(value - _EPOCH) // _MICROSECOND for value in values])
    return _from_buffers(TYPES[Storage.TIME], len(values), microseconds)


_BUILD: Mapping[Storage, Callable[[list[Any]], pa.Array]] = {
    Storage.TEXT: _texts,
    Storage.INTEGER: _integers,
    Storage.DECIMAL: _decimals,
    Storage.BOOLEAN: _booleans,
    Storage.DATE: _dates,
    Storage.TIME: _times,
    Storage.JSON: _texts,
}
"""What makes an array of values. None among them is a TypeError."""
