"""A table as a destination, without Airflow; tests/transfers has it as a task."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from openmarkets_provider import queries
from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
from openmarkets_provider.landing.destination import LoadResult
from openmarkets_provider.landing.modes import REPLACE_RANGE, UPSERT
from openmarkets_provider.landing.table_destination import TableDestination
from tests.support.databases import SqliteDatabase

WEEK = queries.time_series(["BHP", "CBA"], start="2026-03-02", end="2026-03-07")


@pytest.fixture
def database(tmp_path: Path) -> SqliteDatabase:
    return SqliteDatabase(tmp_path / "test.db")


@pytest.fixture
def engine(database: SqliteDatabase) -> Iterator[sa.Engine]:
    engine = sa.create_engine(database.url, poolclass=NullPool)
    yield engine
    engine.dispose()


def test_rows_land_and_land_again(openmarkets_sandbox, database, engine):
    table = TableDestination(engine, "bars", conn_id="db", mode=UPSERT)
    assert (table.name, table.is_exclusive, table.exists()) == ("db/bars", False, False)
    for _ in range(2):
        result = table.land(OpenmarketsHook(), WEEK)
        assert result == LoadResult("bars", 10, None, [], {"start": "2026-03-02", "end": "2026-03-07"}, [])
    assert table.exists()
    assert database.execute("SELECT count(*) FROM bars") == [(10,)]


def test_what_is_new_is_what_is_pulled(engine):
    table = TableDestination(engine, "bars", conn_id="db", mode=UPSERT)
    new = date(2026, 3, 4), date(2026, 3, 6)
    assert table.range_to_pull(WEEK, *new, watermark="2026-03-05") == new


def test_a_mode_that_does_not_go_with_the_query_is_refused_before_anything_is_asked(openmarkets_sandbox, engine):
    table = TableDestination(engine, "bars", conn_id="db", mode=REPLACE_RANGE)
    with pytest.raises(OpenmarketsQueryError, match="needs a query with a range"):
        table.land(OpenmarketsHook(), queries.quotes("BHP"))
    assert openmarkets_sandbox.stats()["by_path"] == {}
