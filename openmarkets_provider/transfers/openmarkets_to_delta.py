"""The transfer to a Delta table, on a disk or in S3."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from openmarkets_provider.exceptions import OpenmarketsConfigurationError
from openmarkets_provider.landing.lake import check_lake_query
from openmarkets_provider.landing.modes import REPLACE_RANGE
from openmarkets_provider.landing.places import LOCAL, static_url
from openmarkets_provider.query.arguments import is_literal
from openmarkets_provider.transfers._lineage import Dataset
from openmarkets_provider.transfers._stores import read_table_place, storage_options
from openmarkets_provider.transfers._transfer import Transfer, instance_id

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from openmarkets_provider.landing.delta import DeltaDestination
    from openmarkets_provider.queries import Query


class OpenmarketsToDeltaOperator(Transfer):
    """Loads the rows of a query into a Delta table, in one commit.

    The rows are kept on the worker's disk until all have been pulled. One commit then replaces rows in all partitions.
    Tasks can load a table concurrently: if another task has changed the same files, the commit is repeated, at most 10
    times. Running a task instance again changes only ``loaded_at``, in every mode:

    - ``replace_range`` replaces the rows in the query's range, of its securities or accounts, and bars of its frequency
      or interval only. Rows of skipped securities stay.
    - ``upsert`` replaces rows with the same key and adds the others; at most 10,000 rows.
    - ``append`` adds rows, for a history of snapshots. The column ``load_id`` identifies the task instance. If it runs
      again, it replaces its own rows.

    A missing table is created, and missing columns are added. A column with another type is refused. A task that is
    killed before its commit leaves invisible files; ``vacuum`` removes them.

    Returns ``destination``, ``rows``, ``bytes`` (None), ``files`` (empty), ``range`` and ``skipped`` (securities) as
    XCom, not the rows. Needs ``pip install 'airflow-provider-openmarkets[delta]'``.

    :param query: a query from :mod:`openmarkets_provider.queries`. Templated. ``request`` and ``raw=True`` have one
        column, ``record``, and need ``mode="append"``.
    :param destination: the table's folder: ``s3://bucket/path`` or an absolute path. ``s3://conn@bucket/path`` includes
        the connection. Templated.
    :param conn_id: id of a connection of type ``aws``; None uses the worker's credentials. Templated.
    :param mode: ``replace_range``, ``upsert`` or ``append``.
    :param partition: None, ``day``, ``month`` or ``year``, by the rows' exchange time (Australia/Sydney), in a column
        ``exchange_date`` (date), ``exchange_month`` (``2026-11``) or ``exchange_year`` (integer).
    :param incremental: load only new data since this query's last load of this table. Needs Airflow 3.3; not with
        ``append``.
    :param overlap: a timedelta: how far before the end of the last load an incremental load starts, for late data
        (default: one day).
    :param full_refresh: with ``incremental``: load the whole range of the query. A bool, or a template such as
        ``{{ params.full_refresh }}``.
    :param emit_partitions: emit one asset event for each session in the query's range, with its date as partition key
        (``2026-04-02``), instead of one event. Needs Airflow 3.3; not with ``incremental``.
    :param outlets: assets that the task updates (default: the destination up to its first template).
    :param openmarkets_conn_id: id of a connection of type ``openmarkets``. Templated.
    :param deferrable: defer the task if the server asks for a long wait; with False, Airflow's ``retries`` apply
        (default: Airflow's ``[operators] default_deferrable``).
    :raises ValueError: when the DAG is parsed, if a literal argument is malformed or conflicts with another.
    """

    template_fields: Sequence[str] = (*Transfer.template_fields, "destination", "conn_id")
    is_exclusive: ClassVar[bool] = False

    def __init__(
        self,
        *,
        query: Query,
        destination: str,
        conn_id: str | None = None,
        mode: str = REPLACE_RANGE,
        partition: str | None = None,
        incremental: bool = False,
        **kwargs: Any,
    ) -> None:
        check_lake_query(mode, query, partition, incremental=incremental)
        if is_literal(destination):
            read_table_place(destination)
        asset_uri = static_url(destination) if isinstance(destination, str) else None
        super().__init__(query=query, incremental=incremental, asset_uri=asset_uri, **kwargs)
        self.destination = destination
        self.conn_id = conn_id
        self.mode = mode
        self.partition = partition

    @contextmanager
    def open_destination(self, context: Context) -> Iterator[tuple[DeltaDestination, Callable[[], Dataset]]]:
        """Return a context with the table."""
        try:
            from openmarkets_provider.landing.delta import DeltaDestination
        except ImportError as error:
            raise OpenmarketsConfigurationError(
                f"{error}. Run: pip install 'airflow-provider-openmarkets[delta]'"
            ) from error
        place = read_table_place(self.destination)
        conn_id = self.conn_id or place.conn_id
        destination = DeltaDestination(
            place.path if place.scheme == LOCAL else place.url,
            mode=self.mode,
            partition=self.partition,
            load_id=instance_id(context),
            storage_options=(lambda: storage_options(conn_id)) if conn_id and place.scheme != LOCAL else dict,
        )
        yield destination, lambda: Dataset(place.url, *place.lineage)
