"""The check for missing sessions of securities."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, date, datetime
from importlib import import_module
from itertools import islice
from typing import TYPE_CHECKING, Any

from openmarkets_provider.exceptions import OpenmarketsConfigurationError, OpenmarketsError
from openmarkets_provider.landing.columns import check_columns
from openmarkets_provider.landing.completeness import BY_API, COMPARE, Landed, Report, check_query, find_missing
from openmarkets_provider.landing.places import LOCAL, read_place
from openmarkets_provider.operators.base import QueryOperator
from openmarkets_provider.sessions.calendar import Day, SessionCalendar
from openmarkets_provider.transfers._databases import check_conn_id, check_table, hook_of, open_engine
from openmarkets_provider.transfers._stores import (
    check_place,
    open_catalog,
    open_file_system,
    read_table_place,
    storage_options,
)
from openmarkets_provider.xcom import DEFAULT_MAX_XCOM_BYTES, ensure_fits_xcom

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
    from openmarkets_provider.queries import Query

PARQUET, DELTA = FORMATS = ("parquet", "delta")
FAIL, WARN = ON_MISSING = ("fail", "warn")
ICEBERG = "iceberg"
"""The type of a connection to an Iceberg catalog."""
MAX_LISTED = 1000
"""Most missing sessions that the XCom lists."""
MAX_LOGGED = 50
"""Most missing sessions that the log lists."""
_NAMED = 3


class OpenmarketsCompletenessCheck(QueryOperator):
    """Finds the sessions of securities that a destination lacks, and the queries that load them.

    The check expects a row of each security on each session of the query's range that is over. It skips sessions on
    which the security is not listed (first and last listed date of ``queries.securities``); a security that the list
    lacks counts as listed. Other securities, sessions and lengths of bars in the destination are ignored. A session of
    intraday bars or trades is there if one of its rows is, because a load writes all rows or none.

    A listed security may have no trades in a session, for example if it is suspended. ``compare`` says what then counts
    as missing:

    - ``api``: only what the API has a row for. So a session without trades is not missing. The same goes for a security
      that the API does not know. Only securities that lack a session are looked up: for daily bars with one call each,
      whatever the range. If nothing is absent, the check makes one call.
    - ``calendar``: everything that is absent, with one call. Use it for securities that trade in every session.

    The result, in XCom, is a list of queries for a mapped transfer; empty if nothing is missing. They make as few calls
    as possible: for daily bars one for each security, whatever the range. The XCom ``missing`` and the log list what is
    missing. The XCom has at most 1,000 dicts with ``session`` (ISO 8601 date) and ``security`` (in full form).

    :param query: what was loaded: the result of ``queries.time_series`` (daily bars), ``intraday_time_series`` or
        ``trades``. Its range says what to check. Templated.
    :param destination: the folder of Parquet files or of a Delta table, as in the transfers. Templated.
    :param format: ``parquet`` or ``delta``: what is at the destination.
    :param table: instead of ``destination``: ``schema.table`` of a database, or ``namespace.table`` of Iceberg.
        Templated.
    :param conn_id: id of the connection to the object store, the database, or the Iceberg catalog (type ``iceberg``).
        Templated.
    :param warehouse: instead of ``conn_id``, the folder of an Iceberg table with its own catalog. Templated.
    :param columns: as in :class:`~openmarkets_provider.transfers.openmarkets_to_sql.OpenmarketsToSqlOperator`.
    :param compare: ``api`` or ``calendar``.
    :param extra_closures: weekdays on which the exchange is closed and that the calendar lacks, as in
        ``TradingDayTimetable``.
    :param on_missing: ``fail`` the task immediately, without retries, or ``warn`` in its log.
    :param openmarkets_conn_id: id of a connection of type ``openmarkets``. Templated.
    :param deferrable: defer the task if the server asks for a long wait (default: Airflow's
        ``[operators] default_deferrable``).
    :raises ValueError: when the DAG is parsed: a literal argument is malformed, or does not go with another.
    """

    template_fields: Sequence[str] = (*QueryOperator.template_fields, "destination", "table", "conn_id", "warehouse")

    def __init__(
        self,
        *,
        query: Query,
        destination: str | None = None,
        format: str = PARQUET,  # noqa: A002
        table: str | None = None,
        conn_id: str | None = None,
        warehouse: str | None = None,
        columns: dict[str, str] | None = None,
        compare: str = BY_API,
        extra_closures: Iterable[Day] = (),
        on_missing: str = FAIL,
        **kwargs: Any,
    ) -> None:
        for name, value, allowed in (
            ("format", format, FORMATS),
            ("compare", compare, COMPARE),
            ("on_missing", on_missing, ON_MISSING),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}.")
        if (destination is None) == (table is None):
            raise ValueError("Set either destination (a folder) or table.")
        if destination is not None and (warehouse or columns):
            raise ValueError("warehouse and columns can only be set with table.")
        check_query(query)
        check_columns(columns, query)
        calendar = SessionCalendar.with_extras(extra_closures)
        super().__init__(query=query, **kwargs)
        self.destination = destination
        self.format = format
        self.table = table
        self.conn_id = conn_id
        self.warehouse = warehouse
        self.columns = columns
        self.compare = compare
        self.calendar = calendar
        self.on_missing = on_missing

    def answer(self, hook: OpenmarketsHook, context: Context) -> list[Query]:
        """Return the queries for what is missing.

        :raises OpenmarketsError: something is missing, with ``on_missing="fail"``.
        """
        now = datetime.now(UTC)
        with self._open() as landed:
            report = find_missing(
                hook.client, self.query, landed, compare=self.compare, now=now, calendar=self.calendar
            )
        self._log(report)
        listed = [{"session": str(day), "security": each} for day, each in _first(report, MAX_LISTED)]
        context["ti"].xcom_push(key="missing", value=listed)
        if report.missing and self.on_missing == FAIL:
            raise OpenmarketsError(f"{self._summary(report)} The XCom 'missing' and the log list them.")
        ensure_fits_xcom(report.queries, DEFAULT_MAX_XCOM_BYTES)
        return report.queries

    def _log(self, report: Report) -> None:
        if not report.sessions:
            self.log.warning("Nothing was checked: no session in the range has ended.")
        if report.strange:
            self.log.warning(
                "The check ignores the rows of %d days on which the exchange does not trade, such as %s.",
                len(report.strange),
                report.strange[0],
            )
        if not report.missing:
            self.log.info(
                "Nothing is missing: %d sessions, %d securities, %d rows expected, %d of them not traded.",
                len(report.sessions),
                report.securities,
                report.expected,
                report.untraded,
            )
            return
        lines = [f"{day}  {security}" for day, security in _first(report, MAX_LOGGED)]
        more = f"\n... and {report.total - MAX_LOGGED} more" if report.total > MAX_LOGGED else ""
        self.log.warning("%s\nsession     security\n%s%s", self._summary(report), "\n".join(lines), more)

    def _summary(self, report: Report) -> str:
        where = self.table or read_place(self.destination, is_folder=True).url
        examples = ", ".join(f"{security} on {day}" for day, security in _first(report, _NAMED))
        return (
            f"{where}: {report.total} of {report.expected} expected sessions are missing "
            f"({examples}{', ...' if report.total > _NAMED else ''})."
        )

    @contextmanager
    def _open(self) -> Iterator[Landed]:
        """Open the destination of the rendered arguments for reading."""
        if self.destination is not None:
            yield self._open_delta(self.destination) if self.format == DELTA else self._open_files(self.destination)
        elif self.warehouse or _conn_type(self.conn_id) == ICEBERG:
            check_place(self.table, self.conn_id, self.warehouse)
            _require(ICEBERG, "pyarrow", "pyiceberg")
            from openmarkets_provider.landing.landed_arrow import LandedIceberg

            with closing(open_catalog(self.conn_id, self.warehouse)) as catalog:
                yield LandedIceberg(catalog, str(self.table))
        else:
            table, conn_id = str(self.table), str(self.conn_id)
            check_table(table)
            hook = hook_of(conn_id)
            # Needs SQLAlchemy, which hook_of looks for.
            from openmarkets_provider.landing.landed_table import LandedTable

            with open_engine(hook) as engine:
                yield LandedTable(engine, table, query=self.query, columns=self.columns, conn_id=conn_id)

    def _open_files(self, destination: str) -> Landed:
        place = read_place(destination, is_folder=True)
        _require(PARQUET, "pyarrow")
        from openmarkets_provider.landing.landed_arrow import LandedFiles

        fs = None if place.scheme == LOCAL else open_file_system(place, self.conn_id)
        return LandedFiles(place.url, posixpath.join(place.bucket, place.path), fs)

    def _open_delta(self, destination: str) -> Landed:
        place = read_table_place(destination)
        _require(DELTA, "pyarrow", "deltalake")
        from openmarkets_provider.landing.landed_arrow import LandedDelta

        conn_id = self.conn_id or place.conn_id
        if place.scheme == LOCAL:
            return LandedDelta(place.path)
        return LandedDelta(place.url, (lambda: storage_options(conn_id)) if conn_id else dict)


def _first(report: Report, count: int) -> list[tuple[date, str]]:
    return list(islice(report.rows(), count))


def _conn_type(conn_id: Any) -> str | None:
    from airflow.providers.common.compat.sdk import BaseHook

    check_conn_id(conn_id)
    conn_type: str | None = BaseHook.get_connection(conn_id).conn_type
    return conn_type


def _require(extra: str, *modules: str) -> None:
    """Check that the packages of an extra are installed.

    :raises OpenmarketsConfigurationError: one is missing.
    """
    try:
        for module in modules:
            import_module(module)
    except ImportError as error:
        raise OpenmarketsConfigurationError(
            f"{error}. Run: pip install 'airflow-provider-openmarkets[{extra}]'"
        ) from error
