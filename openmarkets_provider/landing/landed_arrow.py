"""What was landed in Parquet files, Delta tables and Iceberg tables, by session and security.

Imported only when needed, because pyarrow, deltalake and pyiceberg are heavy and extras.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from datetime import date
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from openmarkets_provider.landing.completeness import KEY, Wanted
from openmarkets_provider.landing.errors import explain_errors, no_table
from openmarkets_provider.query.exchange_time import day_of

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog

_PARTITIONS = (("exchange_date", "%Y-%m-%d"), ("exchange_month", "%Y-%m"), ("exchange_year", "%Y"))
"""The folders of partitions, and the format of their values."""


class _LandedBatches(ABC):
    """Rows that come as Arrow record batches.

    :ivar name: of the destination, for messages.
    """

    name: str

    def read_keys(self, wanted: Wanted) -> Iterator[tuple[date, str, str]]:
        """Yield the exchange date, the security's code and its exchange of the rows. Keys may repeat."""
        with explain_errors(f"Cannot read {self.name}"):
            for batch in self._scan(wanted, [wanted.time, *KEY]):
                yield from _keys_of(batch, wanted.time)

    @abstractmethod
    def _scan(self, wanted: Wanted, columns: list[str]) -> Iterable[pa.RecordBatch]:
        """Return some columns of the rows."""


class LandedFiles(_LandedBatches):
    """A folder of Parquet files, with or without partitions. A folder that does not exist has no rows.

    :param url: of the folder, for messages.
    :param path: of the folder within its file system.
    :param fs: the fsspec file system of its store; None for a local folder.
    """

    def __init__(self, url: str, path: str, fs: Any | None = None) -> None:
        self.name = url
        self._path = path
        self._fs = fs

    def _scan(self, wanted: Wanted, columns: list[str]) -> Iterable[pa.RecordBatch]:
        partitions = pa.schema([(name, pa.string()) for name, _ in _PARTITIONS])
        if self._fs is not None:
            self._fs.invalidate_cache()
        try:
            dataset = ds.dataset(
                self._path,
                filesystem=self._fs,
                format="parquet",
                partitioning=ds.partitioning(partitions, flavor="hive"),
            )
        except FileNotFoundError:
            return []
        if not dataset.files:
            return []
        chosen = _filter_of(wanted)
        for name, text in _PARTITIONS:
            # Do not open folders of other partitions.
            first, last = (day_of(each).strftime(text) for each in (wanted.start, wanted.end))
            value = ds.field(name)
            chosen &= value.is_null() | ((value >= first) & (value <= last))
        batches: Iterable[pa.RecordBatch] = dataset.to_batches(columns=columns, filter=chosen)
        return batches


class LandedDelta(_LandedBatches):
    """A Delta table.

    :param url: of its folder: an absolute path, or ``s3://bucket/path``.
    :param storage_options: see :class:`openmarkets_provider.landing.delta.DeltaDestination`.
    """

    def __init__(self, url: str, storage_options: Callable[[], dict[str, str]] = dict) -> None:
        self.name = url
        self._options = storage_options

    def _scan(self, wanted: Wanted, columns: list[str]) -> Iterable[pa.RecordBatch]:
        from deltalake import DeltaTable
        from deltalake.exceptions import TableNotFoundError

        try:
            table = DeltaTable(self.name, storage_options=self._options())
        except TableNotFoundError:
            raise no_table(self.name) from None
        batches: Iterable[pa.RecordBatch] = table.to_pyarrow_dataset().to_batches(
            columns=columns, filter=_filter_of(wanted)
        )
        return batches


class LandedIceberg(_LandedBatches):
    """An Iceberg table.

    :param catalog: the catalog of the table.
    :param table: ``namespace.table``.
    """

    def __init__(self, catalog: Catalog, table: str) -> None:
        self.name = table
        self._catalog = catalog

    def _scan(self, wanted: Wanted, columns: list[str]) -> Iterable[pa.RecordBatch]:
        from pyiceberg import expressions
        from pyiceberg.exceptions import NoSuchTableError

        # Its classes are generated, so mypy does not see their arguments.
        of: Any = expressions
        try:
            table = self._catalog.load_table(self.name)
        except NoSuchTableError:
            raise no_table(self.name) from None
        start, end = wanted.start.isoformat(), wanted.end.isoformat()
        chosen = [of.GreaterThanOrEqual(wanted.time, start), of.LessThan(wanted.time, end)]
        if wanted.length:
            chosen.append(of.EqualTo(*wanted.length))
        batches: Iterable[pa.RecordBatch] = table.scan(
            of.And(*chosen), selected_fields=tuple(columns)
        ).to_arrow_batch_reader()
        return batches


def _filter_of(wanted: Wanted) -> Any:
    time = ds.field(wanted.time)
    chosen = (time >= wanted.start) & (time < wanted.end)
    if wanted.length:
        column, value = wanted.length
        chosen &= ds.field(column) == value
    return chosen


def _keys_of(batch: pa.RecordBatch, time: str) -> Iterator[tuple[date, str, str]]:
    """Yield the distinct keys of a batch."""
    columns = {name: batch.column(name) for name in (time, *KEY)}
    if pa.types.is_timestamp(columns[time].type):
        # Sydney's midnight is on a full hour of UTC.
        columns[time] = pc.floor_temporal(columns[time], unit="hour")
    keys = pa.table(columns).group_by(list(columns)).aggregate([])
    for moment, code, exchange in zip(*(keys.column(name).to_pylist() for name in columns), strict=True):
        yield day_of(moment), code, exchange
