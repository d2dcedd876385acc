"""The transfer to a database table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote

from openmarkets_provider._airflow import Asset
from openmarkets_provider.landing.columns import check_columns
from openmarkets_provider.landing.modes import EVOLVE, FREEZE, SCHEMA_POLICIES, UPSERT, check_mode
from openmarkets_provider.query.arguments import is_literal
from openmarkets_provider.query.query import Query
from openmarkets_provider.transfers._databases import check_conn_id, check_table, hook_of, open_engine
from openmarkets_provider.transfers._lineage import Dataset
from openmarkets_provider.transfers._transfer import Transfer, instance_id

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context
    from airflow.providers.common.sql.hooks.sql import DbApiHook

    from openmarkets_provider.landing.table_destination import TableDestination


class OpenmarketsToSqlOperator(Transfer):
    """Loads the rows of a query into a database table, in one transaction.

    The rows are kept on the worker's disk until all have been pulled, so no lock is held while the API is slow. Running
    a task instance again changes only ``loaded_at``, in every mode:

    - ``upsert`` updates rows with the same key and inserts the others. It deletes nothing: a row that the API no longer
      returns, such as a closed position, stays. Columns that the query does not have keep their values. Bars of several
      frequencies or intervals can share a table.
    - ``replace_range`` deletes the rows in the query's range, of its securities or accounts, and bars of its frequency
      or interval only; then it inserts. Rows of skipped securities stay.
    - ``append`` adds rows, for a history of snapshots. The column ``load_id`` identifies the task instance. If it runs
      again, it replaces its own rows.

    An existing table may have other types and more columns. If a column would round a price, count or time, the row is
    refused, and the message names it. ``DOUBLE PRECISION`` is accepted, with its 15 digits.

    PostgreSQL, SQLite and MariaDB are tested, MySQL is not. Other databases are refused.

    Returns ``destination``, ``rows``, ``bytes`` (None), ``files`` (empty), ``range`` and ``skipped`` (securities) as
    XCom, not the rows.

    :param query: a query from :mod:`openmarkets_provider.queries`. Templated. ``request`` and ``raw=True`` have one
        column, ``record``, and need ``mode="append"``.
    :param table: ``table`` or ``schema.table``, in the case that the database uses. Templated.
    :param conn_id: id of a connection of type ``postgres``, ``mysql`` or ``sqlite``. Templated.
    :param mode: ``upsert``, ``append`` or ``replace_range``.
    :param create_table: create the table if it does not exist, with types, primary key and (PostgreSQL) units as
        comments. Before the first request, the task checks that the table can be created, or that the existing table
        fits.
    :param schema_policy: what to do if an existing table lacks a column, for example after an upgrade of this package.
        ``evolve`` adds it (``ALTER TABLE``, NULL in existing rows) and logs a warning. ``freeze`` fails the task; the
        message has the statement. Both refuse a table without a key column.
    :param columns: columns of the query with their names in the table, such as ``{"close_price": "close"}``. Only these
        are loaded, plus those for key, security or account, and time. None loads all columns.
    :param incremental: load only new data since this query's last load of this table. Needs Airflow 3.3; not with
        ``append``.
    :param overlap: a timedelta: how far before the end of the last load an incremental load starts, for late data
        (default: one day).
    :param full_refresh: with ``incremental``: load the whole range of the query. A bool, or a template such as
        ``{{ params.full_refresh }}``.
    :param emit_partitions: emit one asset event for each session in the query's range, with its date as partition key
        (``2026-04-02``), instead of one event. Needs Airflow 3.3; not with ``incremental``.
    :param outlets: assets that the task updates (default: the table, if ``conn_id`` and ``table`` are literal).
    :param openmarkets_conn_id: id of a connection of type ``openmarkets``. Templated.
    :param deferrable: defer the task if the server asks for a long wait; with False, Airflow's ``retries`` apply
        (default: Airflow's ``[operators] default_deferrable``).
    :raises ValueError: when the DAG is parsed, if mode, table or conn_id is malformed.
    :raises OpenmarketsQueryError: when the DAG is parsed, if the query is malformed or conflicts with the mode.
    """

    template_fields: Sequence[str] = (*Transfer.template_fields, "table", "conn_id")
    is_exclusive: ClassVar[bool] = False

    def __init__(
        self,
        *,
        query: Query,
        table: str,
        conn_id: str,
        mode: str = UPSERT,
        create_table: bool = True,
        schema_policy: str = EVOLVE,
        columns: dict[str, str] | None = None,
        incremental: bool = False,
        **kwargs: Any,
    ) -> None:
        check_mode(mode, query, incremental=incremental)
        if schema_policy not in SCHEMA_POLICIES:
            raise ValueError(f"schema_policy must be {EVOLVE!r} or {FREEZE!r}, not {schema_policy!r}.")
        check_columns(columns, query)
        if is_literal(table):
            check_table(table)
        if is_literal(conn_id):
            check_conn_id(conn_id)
        asset_uri = _asset_uri(conn_id, table) if is_literal(table) and is_literal(conn_id) else None
        super().__init__(query=query, incremental=incremental, asset_uri=asset_uri, **kwargs)
        self.table = table
        self.conn_id = conn_id
        self.mode = mode
        self.create_table = create_table
        self.schema_policy = schema_policy
        self.columns = columns

    @contextmanager
    def open_destination(self, context: Context) -> Iterator[tuple[TableDestination, Callable[[], Dataset]]]:
        """Return a context with the table. Its connections are closed at the end."""
        check_table(self.table)
        check_conn_id(self.conn_id)
        hook = hook_of(self.conn_id)
        # Imports SQLAlchemy, which hook_of has checked.
        from openmarkets_provider.landing.table_destination import TableDestination

        with open_engine(hook) as engine:
            destination = TableDestination(
                engine,
                self.table,
                conn_id=self.conn_id,
                mode=self.mode,
                create=self.create_table,
                evolve=self.schema_policy == EVOLVE,
                columns=self.columns,
                load_id=instance_id(context),
            )
            # The engine knows its default schema after its first connection.
            yield destination, lambda: _dataset_of(hook, self.table, engine.dialect.default_schema_name)


def _asset_uri(conn_id: str, table: str) -> str:
    return f"sql://{quote(conn_id)}/{quote(table)}"


def _dataset_of(hook: DbApiHook, table: str, default_schema: str | None) -> Dataset:
    """Return the lineage names of a table, from its hook."""
    conn_id = hook.get_conn_id()
    connection = hook.get_connection(conn_id)
    info = None
    if connection.host:
        # Works only if the OpenLineage provider is installed.
        with suppress(Exception):
            info = hook.get_openlineage_database_info(connection)
    if info is not None:
        namespace, database = f"{info.scheme}://{info.authority}", info.database
    else:
        namespace, database = f"{connection.conn_type}://{connection.host or conn_id}", connection.schema
    schema, _, name = table.rpartition(".")
    parts = [part for part in (database, schema or default_schema, name) if part]
    uri = _asset_uri(conn_id, table)
    if info is not None:
        # Providers check the URIs of their databases.
        with suppress(ValueError):
            uri = str(Asset("/".join([namespace, *map(quote, parts)])).uri)
    return Dataset(uri, namespace, ".".join(parts))
