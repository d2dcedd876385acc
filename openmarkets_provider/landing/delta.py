"""Rows in a Delta table. Imported only when needed, because deltalake and pyarrow are heavy and an extra."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime

import pyarrow as pa
from deltalake import DeltaTable, WriterProperties, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.exceptions import TableNotFoundError as NoTable

from openmarkets_provider.landing.arrow import ArrowConverter, schema_of
from openmarkets_provider.landing.destination import LoadResult, SharedDestination, Source
from openmarkets_provider.landing.errors import explain_errors
from openmarkets_provider.landing.lake import (
    Filter,
    Load,
    Partitioning,
    check_lake_query,
    check_partitioning,
    check_types,
    commit_again,
    lake_layout,
    pull,
)
from openmarkets_provider.landing.layout import Column, Layout, Storage, layout_of
from openmarkets_provider.query.query import Query

PARTITIONINGS: Mapping[str | None, Partitioning] = {
    None: Partitioning(),
    "day": Partitioning("day", Column("exchange_date", Storage.DATE, "exchange date")),
    "month": Partitioning(
        "month", Column("exchange_month", Storage.TEXT, "exchange month"), lambda day: f"{day:%Y-%m}"
    ),
    "year": Partitioning("year", Column("exchange_year", Storage.INTEGER, "exchange year"), lambda day: day.year),
}
"""By the argument ``partition``. Delta partitions by stored columns."""
# The writer keeps a file for each partition open, and all data that is not written yet in memory.
_FILE_SIZE = 2 << 20
_WRITER = WriterProperties(max_row_group_size=8192, compression="ZSTD")


class DeltaDestination(SharedDestination):
    """A Delta table.

    :param url: of its folder: an absolute path, or ``s3://bucket/path``.
    :param mode: one of :data:`openmarkets_provider.landing.modes.MODES`.
    :param partition: a key of :data:`PARTITIONINGS`.
    :param load_id: identifies the rows of a load, with mode ``append``.
    :param storage_options: returns credentials and settings of the object store for ``deltalake``. It is called for
        each access, because credentials may expire during a load.
    """

    def __init__(
        self,
        url: str,
        *,
        mode: str,
        partition: str | None = None,
        load_id: str = "",
        storage_options: Callable[[], dict[str, str]] = dict,
    ) -> None:
        self.name = url
        self._mode = mode
        self._partition = partition
        self._partitioning = PARTITIONINGS[partition]
        self._load_id = load_id
        self._options = storage_options

    def exists(self) -> bool:
        """Tell whether the table has a file with rows."""
        with explain_errors(f"Cannot read {self.name}"):
            table = self._open()
            return table is not None and bool(table.file_uris())

    def land(self, source: Source, query: Query) -> LoadResult:
        """Pull the rows to the local disk, then replace those in the table in one commit."""
        check_lake_query(self._mode, query, self._partition, incremental=False)
        self._prepare(lake_layout(layout_of(query), self._mode, self._partitioning))
        pulling = pull(source, query, mode=self._mode, partitioning=self._partitioning, load_id=self._load_id)
        with pulling as load:
            if not load.is_empty:
                with explain_errors(f"Cannot write {self.name}", sent=True):
                    commit_again(self.name, lambda: self._commit(load), CommitFailedError)
        return load.result._replace(destination=self.name)

    def cancel(self) -> None:
        """Do nothing: what is not committed is not there."""

    def _open(self) -> DeltaTable | None:
        options = self._options()
        try:
            return DeltaTable(self.name, storage_options=options)
        except NoTable:
            return None

    def _prepare(self, layout: Layout) -> None:
        """Create the table if there is none, before the first request. Two loads must not both create it.

        :raises OpenmarketsError: that failed, or the table has other partitions or types.
        """
        column = self._partitioning.column
        columns = [column.name] if column else []
        schema = schema_of(layout)
        with explain_errors(f"Cannot open {self.name}"):
            table = self._open()
            if table is None:
                try:
                    table = DeltaTable.create(self.name, schema, partition_by=columns, storage_options=self._options())
                except DeltaError:
                    # Another load may have created it meanwhile.
                    table = self._open()
                    if table is None:
                        raise
            existing = table.metadata().partition_columns
            theirs = pa.schema(table.schema().to_arrow())
        check_partitioning(self.name, existing, columns, self._partition)
        check_types(self.name, _types_in(theirs), _types_in(schema))

    def _commit(self, load: Load) -> None:
        converter = ArrowConverter(load.layout)
        failures: list[Exception] = []

        def batches() -> Iterator[pa.RecordBatch]:
            try:
                for partition in load.list_partitions():
                    yield from load.convert(partition, converter)
            except Exception as error:
                # The writer keeps the text only.
                failures.append(error)
                raise

        try:
            write_deltalake(
                self.name,
                pa.RecordBatchReader.from_batches(converter.schema, batches()),
                mode="overwrite",
                schema_mode="merge",
                predicate=predicate_of(load.filter),
                target_file_size=_FILE_SIZE,
                writer_properties=_WRITER,
                storage_options=self._options(),
            )
        except Exception as error:
            if failures:
                raise failures[0] from error
            raise


def predicate_of(chosen: Filter) -> str:
    """Return a filter as a condition in SQL for ``deltalake``."""
    groups = (
        " AND ".join(f"{name} IN ({', '.join(map(_literal, values))})" for name, values in group.items())
        for group in chosen.groups
    )
    condition = " OR ".join(f"({group})" for group in groups)
    if chosen.time is None:
        return condition
    start, end = _literal(chosen.start), _literal(chosen.end)
    return f"{chosen.time} >= {start} AND {chosen.time} < {end} AND ({condition})"


def _types_in(schema: pa.Schema) -> dict[str, pa.DataType]:
    return dict(zip(schema.names, schema.types, strict=True))


def _literal(value: str | int | date) -> str:
    if isinstance(value, int):
        return str(value)
    if isinstance(value, datetime):
        value = value.astimezone(UTC)
    text = value if isinstance(value, str) else value.isoformat()
    return "'" + text.replace("'", "''") + "'"
