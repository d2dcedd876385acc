"""Rows in a table of a database."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from openmarkets_provider.landing.columns import Choice
from openmarkets_provider.landing.database import Database
from openmarkets_provider.landing.destination import LoadResult, SharedDestination, Source, name_codes, range_texts
from openmarkets_provider.landing.layout import layout_of
from openmarkets_provider.landing.modes import REPLACE_RANGE, check_mode, coverage_of
from openmarkets_provider.landing.spool import Spool, open_scratch, scratch_folder
from openmarkets_provider.landing.table_load import Loader
from openmarkets_provider.query.query import Query

if TYPE_CHECKING:
    import sqlalchemy as sa


class TableDestination(SharedDestination):
    """A table.

    :param engine: it must close a connection when it is returned.
    :param table: ``table`` or ``schema.table``.
    :param conn_id: id of the connection.
    :param mode: one of :data:`openmarkets_provider.landing.modes.MODES`.
    :param create: create the table if there is none.
    :param evolve: add columns that the table lacks.
    :param columns: names in the table by column, to load these columns and the key; None for all columns.
    :param load_id: identifies the rows of a load, with mode ``append``.
    """

    def __init__(
        self,
        engine: sa.Engine,
        table: str,
        *,
        conn_id: str,
        mode: str,
        create: bool = True,
        evolve: bool = False,
        columns: Mapping[str, str] | None = None,
        load_id: str = "",
    ) -> None:
        self.name = f"{conn_id}/{table}"
        self._database = Database(engine, table, conn_id)
        self._mode = mode
        self._columns = columns
        self._options: dict[str, Any] = {"create": create, "evolve": evolve, "load_id": load_id}

    def exists(self) -> bool:
        """Tell whether the table has a row."""
        return self._database.has_rows()

    def land(self, source: Source, query: Query) -> LoadResult:
        """Pull the rows into a temporary file, then load them in one transaction.

        So no lock waits for a slow or failing API.
        """
        check_mode(self._mode, query, incremental=False)
        layout = layout_of(query, datetime.now(UTC))
        choice = Choice(layout, self._columns)
        loader = Loader(self._database, choice.layout, self._mode, **self._options)
        loader.rehearse()
        replace = self._mode == REPLACE_RANGE
        pulled = name_codes(source, query) if replace else query
        skipped: set[str] = set()
        with open_scratch() as file:
            spool: Spool[None] = Spool(file, scratch_folder())
            with closing(source.stream_columns(pulled, skipped)) as batches:
                for batch in batches:
                    spool.add(None, choice.take(layout.values(batch)))
            count = loader.load(spool, choice.cover(coverage_of(pulled, layout, skipped)) if replace else None)
        return LoadResult(str(self._database.table), count, None, [], range_texts(query), sorted(skipped))

    def cancel(self) -> None:
        """Cancel the running statement."""
        self._database.cancel()
