"""Rows in an Iceberg table. Imported only when needed, because pyiceberg and pyarrow are heavy and an extra."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, date, datetime
from functools import reduce
from itertools import count
from typing import Any

import pyarrow as pa
import pyiceberg.expressions
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import (
    CommitFailedException,
    NamespaceAlreadyExistsError,
    NoSuchTableError,
    TableAlreadyExistsError,
    ValidationException,
)
from pyiceberg.expressions import BooleanExpression
from pyiceberg.io.pyarrow import write_file
from pyiceberg.manifest import DataFile
from pyiceberg.partitioning import PartitionField, PartitionFieldValue, PartitionKey, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import Table, WriteTask
from pyiceberg.transforms import DayTransform, MonthTransform, Transform, YearTransform
from pyiceberg.types import (
    BooleanType,
    DateType,
    DecimalType,
    IcebergType,
    LongType,
    NestedField,
    StringType,
    TimestamptzType,
)

from openmarkets_provider.exceptions import OpenmarketsError
from openmarkets_provider.landing.arrow import ArrowConverter
from openmarkets_provider.landing.destination import LoadResult, Moment, SharedDestination, Source
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

ROWS_IN_FILE = 131_072
"""Most rows of a data file. One file at a time is in memory, even if an overwrite keeps some of its rows."""
_TRANSFORMS: Mapping[str, Transform[Any, Any]] = {
    "day": DayTransform(),
    "month": MonthTransform(),
    "year": YearTransform(),
}
_FIRST_PARTITION_FIELD = 1000
_EPOCH = date(1970, 1, 1).toordinal()
_TYPES: Mapping[Storage, IcebergType] = {
    Storage.TEXT: StringType(),
    Storage.INTEGER: LongType(),
    Storage.BOOLEAN: BooleanType(),
    Storage.DATE: DateType(),
    Storage.TIME: TimestamptzType(),
    Storage.JSON: StringType(),
}
_EXCHANGE_DATE = Column("exchange_date", Storage.DATE, "exchange date")
# Its classes are generated, so mypy does not see their arguments.
_expressions: Any = pyiceberg.expressions
_CONFLICTS = (CommitFailedException, ValidationException)


class IcebergDestination(SharedDestination):
    """An Iceberg table.

    :param catalog: the catalog of the table.
    :param table: ``namespace.table``; the namespace may have several parts.
    :param catalog_name: identifies the catalog: the id of its connection, or its folder.
    :param mode: one of :data:`openmarkets_provider.landing.modes.MODES`.
    :param partition: None, ``day``, ``month`` or ``year``: a transform of the rows' exchange date.
    :param load_id: identifies the rows of a load, with mode ``append``.
    """

    def __init__(
        self,
        catalog: Catalog,
        table: str,
        *,
        catalog_name: str,
        mode: str,
        partition: str | None = None,
        load_id: str = "",
    ) -> None:
        self.name = f"{catalog_name}/{table}"
        self._catalog = catalog
        self._table = table
        self._mode = mode
        self._partition = partition
        self._load_id = load_id

    def exists(self) -> bool:
        """Tell whether the table has a row."""
        with explain_errors(f"Cannot read {self.name}"):
            try:
                return self._catalog.load_table(self._table).scan().count() > 0
            except NoSuchTableError:
                return False

    def land(self, source: Source, query: Query) -> LoadResult:
        """Pull the rows to the local disk, write data files, then replace the rows of the table in one commit."""
        check_lake_query(self._mode, query, self._partition, incremental=False)
        plain = layout_of(query)
        partitioning = self._partitioning(plain)
        layout = lake_layout(plain, self._mode, partitioning)
        with explain_errors(f"Cannot open {self.name}"):
            table = self._open(layout, plain)
        with pull(source, query, mode=self._mode, partitioning=partitioning, load_id=self._load_id) as load:
            if not load.is_empty:
                with explain_errors(f"Cannot write {self.name}", sent=True):
                    self._replace(table, load)
        return load.result._replace(destination=self._table)

    def cancel(self) -> None:
        """Do nothing: what is not committed is not there."""

    def _partitioning(self, layout: Layout) -> Partitioning:
        """Return how rows are partitioned: by their date, or by an added column if they have a time."""
        has_time = any(column.name == layout.time and column.storage is Storage.TIME for column in layout.columns)
        return Partitioning(self._partition, _EXCHANGE_DATE if self._partition and has_time else None)

    def _open(self, layout: Layout, plain: Layout) -> Table:
        """Return the table with all columns of the layout; create what is missing.

        :raises OpenmarketsConfigurationError: it has other partitions or types.
        """
        schema = schema_of(layout)
        column = self._partitioning(plain).column
        spec = spec_of(schema, self._partition, column.name if column else str(plain.time))
        try:
            table = self._catalog.load_table(self._table)
        except NoSuchTableError:
            with suppress(NamespaceAlreadyExistsError):
                self._catalog.create_namespace(self._table.rpartition(".")[0])
            try:
                table = self._catalog.create_table(self._table, schema, partition_spec=spec)
            except TableAlreadyExistsError:
                table = self._catalog.load_table(self._table)
        theirs, ours = (_describe(*each) for each in ((table.spec(), table.schema()), (spec, schema)))
        check_partitioning(self.name, theirs, ours, self._partition)
        check_types(self.name, _types_in(table.schema()), _types_in(schema))
        if missing := [column.name for column in layout.columns if column.name not in table.schema().column_names]:

            def add_columns() -> None:
                with table.refresh().update_schema() as update:
                    update.union_by_name(schema.select(*missing))

            commit_again(self.name, add_columns, *_CONFLICTS)
        return table.refresh()

    def _replace(self, table: Table, load: Load) -> None:
        files = list(_write(table, load))
        chosen = filter_of(load.filter)

        def commit() -> None:
            with table.refresh().transaction() as transaction, warnings.catch_warnings():
                # There may be no row to replace.
                warnings.filterwarnings("ignore", message="Delete operation did not match any records")
                transaction.delete(chosen)
                if files:
                    with transaction.update_snapshot().fast_append() as append:
                        for file in files:
                            append.append_data_file(file)

        try:
            commit_again(self.name, commit, *_CONFLICTS)
        except OpenmarketsError:
            for file in files:
                table.io.delete(file.file_path)
            raise


def schema_of(layout: Layout) -> Schema:
    """Return the names, types and units of a layout's columns in Iceberg."""
    return Schema(
        *(
            NestedField(number, column.name, _type_of(column), required=False, doc=column.unit or None)
            for number, column in enumerate(layout.columns, 1)
        )
    )


def spec_of(schema: Schema, partition: str | None, column: str) -> PartitionSpec:
    """Return the partition spec of a table.

    :param column: the column with the exchange date.
    """
    if partition is None:
        return PartitionSpec()
    source = schema.find_field(column).field_id
    return PartitionSpec(
        PartitionField(source, _FIRST_PARTITION_FIELD, _TRANSFORMS[partition], f"{column}_{partition}")
    )


def filter_of(chosen: Filter) -> BooleanExpression:
    """Return a filter as an Iceberg expression."""
    groups = [
        reduce(_expressions.And, (_expressions.In(name, values) for name, values in group.items()))
        for group in chosen.groups
    ]
    condition: BooleanExpression = groups[0] if len(groups) == 1 else _expressions.Or(*groups)
    if chosen.time is None:
        return condition
    start = _expressions.GreaterThanOrEqual(chosen.time, _text(chosen.start))
    end = _expressions.LessThan(chosen.time, _text(chosen.end))
    both: BooleanExpression = _expressions.And(start, end, condition)
    return both


def _text(moment: Moment) -> str:
    return (moment.astimezone(UTC) if isinstance(moment, datetime) else moment).isoformat()


def _type_of(column: Column) -> IcebergType:
    return DecimalType(*column.precision) if column.storage is Storage.DECIMAL else _TYPES[column.storage]


def _types_in(schema: Schema) -> dict[str, IcebergType]:
    return {field.name: field.field_type for field in schema.fields}


def _describe(spec: PartitionSpec, schema: Schema) -> list[str]:
    return [f"{field.transform}({schema.find_column_name(field.source_id)})" for field in spec.fields]


def _write(table: Table, load: Load) -> Iterator[DataFile]:
    """Write all rows to data files, which are invisible until they are committed."""
    name, numbers = uuid.uuid4(), count()
    schema = Schema(*(table.schema().find_field(column.name) for column in load.layout.columns))
    for partition in load.list_partitions():
        key = _key_of(table, partition)
        batches: list[pa.RecordBatch] = []
        for batch in load.convert(partition, ArrowConverter(load.layout)):
            if sum(map(len, batches)) + len(batch) > ROWS_IN_FILE and batches:
                yield from _write_one(table, WriteTask(name, next(numbers), schema, batches, partition_key=key))
                batches = []
            batches.append(batch)
        if batches:
            yield from _write_one(table, WriteTask(name, next(numbers), schema, batches, partition_key=key))


def _write_one(table: Table, task: WriteTask) -> Iterator[DataFile]:
    return write_file(table.io, table.metadata, iter([task]))


def _key_of(table: Table, partition: date | None) -> PartitionKey | None:
    if partition is None:
        return None
    (field,) = table.spec().fields
    value = field.transform.transform(DateType())(partition.toordinal() - _EPOCH)
    return PartitionKey([PartitionFieldValue(field, value)], table.spec(), table.schema())
