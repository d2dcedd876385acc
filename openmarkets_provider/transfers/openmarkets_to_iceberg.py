"""The transfer to an Iceberg table, in a catalog or in a folder with its own catalog."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote

from openmarkets_provider.exceptions import OpenmarketsConfigurationError
from openmarkets_provider.landing.lake import check_lake_query
from openmarkets_provider.landing.modes import REPLACE_RANGE
from openmarkets_provider.landing.places import LOCAL
from openmarkets_provider.query.arguments import is_literal
from openmarkets_provider.transfers._lineage import Dataset
from openmarkets_provider.transfers._stores import check_place, open_catalog
from openmarkets_provider.transfers._transfer import Transfer, instance_id

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from openmarkets_provider.landing.iceberg import IcebergDestination
    from openmarkets_provider.queries import Query


class OpenmarketsToIcebergOperator(Transfer):
    """Loads the rows of a query into an Iceberg table, in one commit.

    The rows are kept on the worker's disk until all have been pulled. One commit then replaces rows in all partitions.
    Readers see it as one step; the table's history shows a snapshot that deletes and one that appends. Tasks can load a
    table concurrently: if another task has changed the same rows, the commit is repeated, at most 10 times. The modes
    are those of :class:`~openmarkets_provider.transfers.openmarkets_to_delta.OpenmarketsToDeltaOperator`.

    A missing table or namespace is created, and missing columns are added. A column with another type is refused. A
    task that is killed before its commit leaves invisible files.

    Returns ``destination``, ``rows``, ``bytes`` (None), ``files`` (empty), ``range`` and ``skipped`` (securities) as
    XCom, not the rows. Needs ``pip install 'airflow-provider-openmarkets[iceberg]'``.

    :param query: a query from :mod:`openmarkets_provider.queries`. Templated. ``request`` and ``raw=True`` have one
        column, ``record``, and need ``mode="append"``.
    :param table: ``namespace.table``. Templated.
    :param conn_id: id of a connection of type ``iceberg`` to a catalog. Templated.
    :param warehouse: instead of ``conn_id``: the absolute path of a folder that all workers share. It contains the
        tables and an SQLite catalog (``catalog.db``, named ``openmarkets``); no server is needed. Needs SQLAlchemy 2
        (Airflow 3.2). Templated.
    :param mode: ``replace_range``, ``upsert`` or ``append``.
    :param partition: None, ``day``, ``month`` or ``year``: a hidden partition by the exchange date (Australia/Sydney).
        Rows with a time get a column ``exchange_date`` for it.
    :param incremental: load only new data since this query's last load of this table. Needs Airflow 3.3; not with
        ``append``.
    :param overlap: a timedelta: how far before the end of the last load an incremental load starts, for late data
        (default: one day).
    :param full_refresh: with ``incremental``: load the whole range of the query. A bool, or a template such as
        ``{{ params.full_refresh }}``.
    :param emit_partitions: emit one asset event for each session in the query's range, with its date as partition key
        (``2026-04-02``), instead of one event. Needs Airflow 3.3; not with ``incremental``.
    :param outlets: assets that the task updates (default: the table, if its name is literal).
    :param openmarkets_conn_id: id of a connection of type ``openmarkets``. Templated.
    :param deferrable: defer the task if the server asks for a long wait; with False, Airflow's ``retries`` apply
        (default: Airflow's ``[operators] default_deferrable``).
    :raises ValueError: when the DAG is parsed, if a literal argument is malformed or conflicts with another.
    """

    template_fields: Sequence[str] = (*Transfer.template_fields, "table", "conn_id", "warehouse")
    is_exclusive: ClassVar[bool] = False

    def __init__(
        self,
        *,
        query: Query,
        table: str,
        conn_id: str | None = None,
        warehouse: str | None = None,
        mode: str = REPLACE_RANGE,
        partition: str | None = None,
        incremental: bool = False,
        **kwargs: Any,
    ) -> None:
        check_lake_query(mode, query, partition, incremental=incremental)
        asset_uri = None
        if all(map(is_literal, (table, conn_id, warehouse))):
            check_place(table, conn_id, warehouse)
            asset_uri = _dataset_of(table, conn_id, warehouse).uri
        super().__init__(query=query, incremental=incremental, asset_uri=asset_uri, **kwargs)
        self.table = table
        self.conn_id = conn_id
        self.warehouse = warehouse
        self.mode = mode
        self.partition = partition

    @contextmanager
    def open_destination(self, context: Context) -> Iterator[tuple[IcebergDestination, Callable[[], Dataset]]]:
        """Return a context with the table. Its catalog is closed at the end."""
        check_place(self.table, self.conn_id, self.warehouse)
        try:
            from openmarkets_provider.landing.iceberg import IcebergDestination
        except ImportError as error:
            raise OpenmarketsConfigurationError(
                f"{error}. Run: pip install 'airflow-provider-openmarkets[iceberg]'"
            ) from error
        catalog = open_catalog(self.conn_id, self.warehouse)
        try:
            destination = IcebergDestination(
                catalog,
                self.table,
                catalog_name=self.warehouse or str(self.conn_id),
                mode=self.mode,
                partition=self.partition,
                load_id=instance_id(context),
            )
            yield destination, lambda: _dataset_of(self.table, self.conn_id, self.warehouse)
        finally:
            catalog.close()


def _dataset_of(table: str, conn_id: str | None, warehouse: str | None) -> Dataset:
    if warehouse:
        folder = Path(warehouse, *table.split("."))
        return Dataset(folder.as_uri(), LOCAL, str(folder))
    catalog = f"iceberg://{quote(str(conn_id))}"
    return Dataset(f"{catalog}/{quote(table)}", catalog, table)
