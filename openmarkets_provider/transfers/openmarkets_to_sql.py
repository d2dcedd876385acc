"""The transfer into a table of a database."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote

from openmarkets_provider._airflow import Asset
from openmarkets_provider.exceptions import OpenmarketsConfigurationError
from openmarkets_provider.landing.landed import Landed, range_of
from openmarkets_provider.landing.layout import layout_of
from openmarkets_provider.landing.modes import REPLACE_RANGE, STAGE, UPSERT, check_mode, rows_covered
from openmarkets_provider.landing.spool import Spool
from openmarkets_provider.query.arguments import is_literal
from openmarkets_provider.query.query import Query
from openmarkets_provider.transfers._transfer import Transfer

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context
    from airflow.providers.common.sql.hooks.sql import DbApiHook
    from sqlalchemy import Engine

    from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
    from openmarkets_provider.landing.table_load import Loader

_TABLE = re.compile(r"""(?:[^.\s"'`\[\]]+\.)?[^.\s"'`\[\]]+""")


class OpenmarketsToSqlOperator(Transfer):
    """Loads the rows of a query into a table of a database, all of them in one transaction or none.

    Rows are kept on the worker's disk until the last one has come, so that an API that is slow or fails holds no lock.
    Running the same task instance again changes nothing, in any mode:

    - ``upsert`` goes by the query's key: a row that is there gets new values, any other is added. Nothing is deleted:
      what the API does not give any more, such as a closed position, stays as it was. Columns that the query does not
      have keep their values. Bars of another interval or frequency have the same key, and need a table of their own.
    - ``replace_range`` deletes what the query covers, then inserts: the rows in its range, of the securities or
      accounts that it asks about.
    - ``append`` keeps every load, for a history of snapshots: the column ``load_id`` names the task instance, and
      what the same one loaded before goes away.

    A table of your own may have other types and more columns. A row whose price, count or time its column would round
    is refused, and named; ``DOUBLE PRECISION`` is taken as it is, with its 15 digits.

    PostgreSQL and SQLite are tested; MySQL, MariaDB and others are addressed in SQL of their own, or in plain SQL.

    Guide: ``docs/etl.md``. What a message means: ``docs/errors.md``.

    :param query: what a function of :mod:`openmarkets_provider.queries` returned. Templated. ``request`` and
        ``raw=True`` have one column, ``record``, and can only be appended.
    :param table: ``table`` or ``schema.table``, as the database writes it. Templated.
    :param conn_id: id of a connection whose hook is a ``DbApiHook``. Templated.
    :param mode: ``upsert``, ``append`` or ``replace_range``. The default never deletes, can be repeated at any time
        and goes with every query whose rows have a key.
    :param create_table: make the table where there is none, with types, primary key and (PostgreSQL) units as
        comments. Whether the table can be made, or one that is there will do, is found out before the first request.
    :param incremental: pull only what is new since the last load of this table by this query (Airflow 3.3 or later).
        Not with ``append``.
    :param overlap: how far before the end of the last load an incremental one begins, for data that came late; one day
        by default.
    :param openmarkets_conn_id: id of a connection of type ``openmarkets``. Templated.
    :param deferrable: False fails the task, with the time in the message, when the server asks for a long rest.
    :raises ValueError: when the DAG is parsed: mode, table or conn_id is malformed.
    :raises OpenmarketsQueryError: when the DAG is parsed: the query is malformed, or the mode does not go with it.
    """

    template_fields: Sequence[str] = ("query", "openmarkets_conn_id", "table", "conn_id")
    one_query_each: ClassVar[bool] = False

    def __init__(
        self,
        *,
        query: Query,
        table: str,
        conn_id: str,
        mode: str = UPSERT,
        create_table: bool = True,
        incremental: bool = False,
        **kwargs: Any,
    ) -> None:
        check_mode(mode, query, incremental=incremental)
        if is_literal(table):
            _check_table(table)
        if is_literal(conn_id):
            _check_conn_id(conn_id)
        is_known = is_literal(table) and is_literal(conn_id)
        super().__init__(
            query=query,
            incremental=incremental,
            asset_uri=_asset_uri(conn_id, table) if is_known else None,
            **kwargs,
        )
        self.table = table
        self.conn_id = conn_id
        self.mode = mode
        self.create_table = create_table
        self._loader: Loader | None = None
        self._dataset = ("", "", "")

    def land(self, hook: OpenmarketsHook, query: Query, context: Context) -> Landed:
        """Pull the rows, then load them."""
        check_mode(self.mode, query, incremental=self.incremental)
        _check_table(self.table)
        _check_conn_id(self.conn_id)
        layout = layout_of(query)
        database = _hook_of(self.conn_id)
        from openmarkets_provider.landing.table_load import Loader

        with _engine_of(database) as engine:
            loader = Loader(
                engine,
                layout,
                self.table,
                self.mode,
                create=self.create_table,
                load_id=_load_id(context),
                conn_id=self.conn_id,
            )
            self._loader = loader
            loader.rehearse()
            # Before the load: nothing must fail after it.
            self._dataset = _dataset_of(database, self.table, engine.dialect.default_schema_name)
            asked = _named(hook, query) if self.mode == REPLACE_RANGE else query
            with Spool(len(layout.columns)) as spool:
                for rows in hook.stream(asked):
                    spool.add(layout.values(rows))
                count = loader.load(spool, rows_covered(asked, layout) if self.mode == REPLACE_RANGE else None)
        return Landed(self.table, count, None, [], range_of(query))

    def is_there(self) -> bool:
        """Tell whether the table exists and has a row."""
        from openmarkets_provider.landing.table_load import Loader

        _check_table(self.table)
        _check_conn_id(self.conn_id)
        with _engine_of(_hook_of(self.conn_id)) as engine:
            return Loader(engine, layout_of(self.query), self.table, self.mode, conn_id=self.conn_id).is_there()

    def dataset(self) -> tuple[str, str, str]:
        """Return the table's URI, and its namespace and name for OpenLineage."""
        return self._dataset

    def on_kill(self) -> None:
        """Stop, the database's work too."""
        if self._loader is not None:
            self._loader.cancel()
        super().on_kill()

    def destination_text(self) -> str:
        """Return connection and table."""
        return f"{self.conn_id}/{self.table}"


def _check_table(table: str) -> None:
    # A template that has no value renders as the text None. Not every database tells capitals from small letters.
    is_name = isinstance(table, str) and _TABLE.fullmatch(table) and table != "None"
    if not is_name or table.rpartition(".")[2].casefold() == STAGE.casefold():
        raise OpenmarketsConfigurationError(
            f"table must be 'table' or 'schema.table', without quotes and blanks, not {table!r:.200}. Was it rendered "
            "as you meant?"
        )


def _check_conn_id(conn_id: str) -> None:
    if not isinstance(conn_id, str) or not conn_id.strip():
        raise OpenmarketsConfigurationError(
            f"conn_id must be the id of a connection to a database, not {conn_id!r:.200}."
        )


def _load_id(context: Context) -> str:
    instance: Any = context["ti"]
    return f"{instance.dag_id}/{instance.run_id}/{instance.task_id}/{instance.map_index}"


def _named(hook: OpenmarketsHook, query: Query) -> Query:
    """Return the query with its securities or accounts named: what they are must be known, to know what is replaced."""
    from datetime import UTC, datetime

    from openmarkets_provider.query.exchange_time import exchange_date
    from openmarkets_provider.query.expand import expand, lookup_query

    before = lookup_query(query)
    return query if before is None else expand(query, hook.run(before), exchange_date(datetime.now(UTC)))


def _hook_of(conn_id: str) -> DbApiHook:
    from airflow.providers.common.compat.sdk import AirflowException, BaseHook

    try:
        import sqlalchemy  # noqa: F401
        from airflow.providers.common.sql.hooks.sql import DbApiHook
    except ImportError as error:
        raise OpenmarketsConfigurationError(
            f"{error}. Loading into a database needs: pip install 'airflow-provider-openmarkets[sql]'."
        ) from error
    connection = BaseHook.get_connection(conn_id)
    if not connection.conn_type:
        raise OpenmarketsConfigurationError(f"conn_id: connection {conn_id!r} has no type; set it, such as postgres.")
    try:
        hook = connection.get_hook()
    except (AirflowException, ImportError) as error:
        raise OpenmarketsConfigurationError(
            f"conn_id: connection {conn_id!r} has the type {connection.conn_type!r}, and no provider for it is "
            f"installed ({error}). It is, by its common name, apache-airflow-providers-{connection.conn_type}."
        ) from error
    if not isinstance(hook, DbApiHook):
        raise OpenmarketsConfigurationError(
            f"conn_id: connection {conn_id!r} has the type {connection.conn_type!r}, which is no database with SQL "
            f"({type(hook).__name__} is no DbApiHook)."
        )
    return hook


@contextmanager
def _engine_of(hook: DbApiHook) -> Iterator[Engine]:
    """Yield an engine whose connections are the hook's own, with all that it does for them: tokens, TLS, settings."""
    from sqlalchemy.exc import NoSuchModuleError
    from sqlalchemy.pool import NullPool

    def connect() -> Any:
        connection = hook.get_conn()
        if hook.supports_autocommit:
            hook.set_autocommit(connection, False)
        if engine.dialect.name == "postgresql":
            try:
                _as_sqlalchemy_wants_it(connection, engine.dialect)
            except OpenmarketsConfigurationError:
                connection.close()
                raise
        return connection

    try:
        engine = hook.get_sqlalchemy_engine({"creator": connect, "poolclass": NullPool, "hide_parameters": True})
    except (ImportError, ValueError, NoSuchModuleError) as error:
        raise OpenmarketsConfigurationError(
            f"conn_id: SQLAlchemy does not know the database of connection {hook.get_conn_id()!r}, or lacks its driver "
            f"({error}). Take sqlalchemy_scheme out of the connection's Extra, or install what it names."
        ) from error
    try:
        yield engine
    finally:
        engine.dispose()


def _as_sqlalchemy_wants_it(connection: Any, dialect: Any) -> None:
    """Make rows tuples, which the connection's Extra may have changed; refuse a connection of another driver."""
    driver = type(connection).__module__.partition(".")[0]
    if driver != dialect.driver:
        raise OpenmarketsConfigurationError(
            f"conn_id: the hook connects with {driver}, and sqlalchemy_scheme in the connection's Extra names "
            f"{dialect.driver}. Take sqlalchemy_scheme out."
        )
    if driver == "psycopg":
        connection.row_factory = dialect.dbapi.rows.tuple_row
    else:
        connection.cursor_factory = None


def _asset_uri(conn_id: str, table: str) -> str:
    return f"sql://{quote(conn_id)}/{quote(table)}"


def _dataset_of(hook: DbApiHook, table: str, default_schema: str | None) -> tuple[str, str, str]:
    """Return URI, namespace and name of a table. What is not known of them is no reason to fail a load."""
    conn_id = hook.get_conn_id()
    connection = hook.get_connection(conn_id)
    info = None
    if connection.host:
        # Hooks describe their database in the terms of the OpenLineage provider, where that is installed.
        with suppress(Exception):
            info = hook.get_openlineage_database_info(connection)
    if info is not None:
        namespace, database = f"{info.scheme}://{info.authority}", info.database or connection.login
    else:
        namespace, database = f"{connection.conn_type}://{connection.host or conn_id}", connection.schema
    schema, _, name = table.rpartition(".")
    parts = [part for part in (database, schema or default_schema, name) if part]
    uri = _asset_uri(conn_id, table)
    if info is not None:
        # Providers say what a URI of their databases must look like.
        with suppress(ValueError):
            uri = str(Asset("/".join([namespace, *map(quote, parts)])).uri)
    return uri, namespace, ".".join(parts)
