"""What was landed in a table of a database, by session and security."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from openmarkets_provider.exceptions import OpenmarketsConfigurationError
from openmarkets_provider.landing.columns import Choice
from openmarkets_provider.landing.completeness import KEY, Wanted
from openmarkets_provider.landing.database import Database
from openmarkets_provider.landing.errors import no_table
from openmarkets_provider.landing.layout import layout_of
from openmarkets_provider.landing.modes import UPSERT
from openmarkets_provider.landing.tables import table_of
from openmarkets_provider.query.exchange_time import day_of, read_moment
from openmarkets_provider.query.query import Query

DAYS_AT_ONCE = 31
"""Exchange days in one statement, if rows have times: it compares each row with the end of each day."""


class LandedTable:
    """A table.

    :param engine: it must close a connection when it is returned.
    :param table: ``table`` or ``schema.table``.
    :param query: the query of its rows; rendered or not.
    :param columns: see :class:`openmarkets_provider.landing.columns.Choice`.
    :param conn_id: id of the connection, for messages.
    """

    def __init__(
        self,
        engine: sa.Engine,
        table: str,
        *,
        query: Query,
        columns: Mapping[str, str] | None = None,
        conn_id: str = "",
    ) -> None:
        self._database = Database(engine, table, conn_id)
        layout = layout_of(query)
        self._names = {name: (columns or {}).get(name, name) for name in (column.name for column in layout.columns)}
        self._table = table_of(Choice(layout, columns).layout, self._database.table, UPSERT, engine.dialect.name)

    def read_keys(self, wanted: Wanted) -> Iterator[tuple[date, str, str]]:
        """Yield the exchange date, the security's code and its exchange of the rows.

        :raises OpenmarketsConfigurationError: the table does not exist, or has no such columns.
        :raises OpenmarketsDatabaseError: the database failed.
        """
        with self._database.transaction(commit=False, wait=False) as connection:
            if not self._database.has_table(connection):
                raise no_table(str(self._database.table))
            self._check_columns(connection, wanted)
            for statement, days in self._statements(wanted):
                for day, code, exchange in connection.execute(statement):
                    if days:
                        yield days[day], code, exchange
                    else:
                        # A table that a user created may have times for dates.
                        yield day.date() if isinstance(day, datetime) else day, code, exchange

    def _check_columns(self, connection: sa.Connection, wanted: Wanted) -> None:
        needed = [self._names[name] for name in (*KEY, wanted.time, *(wanted.length or ())[:1])]
        name = self._database.table
        existing = [column["name"] for column in sa.inspect(connection).get_columns(name.name, name.schema)]
        if missing := [each for each in needed if each not in existing]:
            raise OpenmarketsConfigurationError(
                f"{name}: the table has no column {', '.join(missing)}. Check that query, table and columns are "
                "those of the load."
            )

    def _statements(self, wanted: Wanted) -> Iterator[tuple[sa.Select[Any], Sequence[date]]]:
        """Yield statements that select keys, with the days for their numbers; no days if they select dates."""
        time = self._column(wanted.time)
        if not isinstance(wanted.start, datetime):
            yield self._select(time, wanted, wanted.start, wanted.end), []
            return
        first, end = day_of(wanted.start), day_of(wanted.end)
        days = [first + timedelta(days=number) for number in range((end - first).days)]
        for start in range(0, len(days), DAYS_AT_ONCE):
            some = days[start : start + DAYS_AT_ONCE]
            # Databases handle time zones differently, or not at all.
            bounds = [self._bound(day) for day in (*some, some[-1] + timedelta(days=1))]
            number = sa.case(*((time < bound, number) for number, bound in enumerate(bounds[1:])))
            yield self._select(number, wanted, bounds[0], bounds[-1]), some

    def _select(self, day: Any, wanted: Wanted, start: Any, end: Any) -> sa.Select[Any]:
        time = self._column(wanted.time)
        rows = [time >= start, time < end]
        if wanted.length:
            name, value = wanted.length
            rows.append(self._column(name) == value)
        return sa.select(day, *map(self._column, KEY)).where(*rows).distinct()

    def _column(self, name: str) -> sa.Column[Any]:
        return self._table.c[self._names[name]]

    def _bound(self, day: date) -> datetime:
        """Return when an exchange day begins, in the form that the database compares."""
        moment = read_moment(day.isoformat())
        return moment if self._database.dialect == "postgresql" else moment.astimezone(UTC).replace(tzinfo=None)
