"""Rows as Parquet files. Imported only when needed, because pyarrow is heavy and an extra."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from openmarkets_provider.landing.arrow import AT_ONCE, ArrowConverter
from openmarkets_provider.landing.layout import Columns, Layout

ROW_GROUP = 32_768
"""Rows in a row group."""


class ParquetWriter:
    """Writes rows as Parquet, a row group at a time.

    :param compression: a codec of Parquet, or None.
    """

    def __init__(self, file: IO[bytes], layout: Layout, compression: str | None) -> None:
        self._converter = ArrowConverter(layout)
        self._batches: list[pa.RecordBatch] = []
        self._writer = pq.ParquetWriter(file, self._converter.schema, compression=compression or "none")

    def write(self, columns: Columns) -> None:
        """Add a batch of :meth:`Layout.values`.

        :raises OpenmarketsInvalidResponse: a value does not fit; the text names column, row and key.
        """
        self._put(self._converter.add(columns))

    def close(self) -> None:
        """Complete the file, and leave it open.

        :raises OpenmarketsInvalidResponse: see :meth:`write`.
        """
        self._put(self._converter.finish(), last=True)
        self._writer.close()

    def discard(self) -> None:
        """Complete a file that nobody will read. Otherwise pyarrow does it later, when the file is already closed."""
        with suppress(Exception):
            self._writer.close()

    def _put(self, batches: Iterable[pa.RecordBatch], *, last: bool = False) -> None:
        """Write complete row groups, and the last one at the end."""
        self._batches += batches
        table = pa.Table.from_batches(self._batches, self._converter.schema)
        count = table.num_rows if last else table.num_rows // ROW_GROUP * ROW_GROUP
        if count:
            self._writer.write_table(table.slice(0, count), row_group_size=ROW_GROUP)
            self._batches = table.slice(count).to_batches()


def read_batches(file: IO[bytes], layout: Layout) -> Iterator[Columns]:
    """Yield the rows of a file in the form of :meth:`Layout.values`; a column that the file lacks is None."""
    for batch in pq.ParquetFile(file).iter_batches(AT_ONCE):
        names = batch.schema.names
        yield [
            batch.column(column.name).to_pylist() if column.key or column.name in names else [None] * len(batch)
            for column in layout.columns
        ]
