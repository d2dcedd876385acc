"""The transfer to a MariaDB table through the hook for MySQL. pymysql is used if mysqlclient is missing."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Any

import pymysql.constants
import pymysql.cursors
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from openmarkets_provider import queries
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
from openmarkets_provider.landing.modes import APPEND, MODES
from openmarkets_provider.transfers.openmarkets_to_sql import OpenmarketsToSqlOperator
from tests.support.context import context
from tests.support.databases import MariadbDatabase

WEEK = {"start": "2026-03-02", "end": "2026-03-07"}
BARS = queries.time_series(["BHP", "CBA"], **WEEK)

pytestmark = pytest.mark.filterwarnings("ignore:.*'(passwd|db)'.*:DeprecationWarning")


@pytest.fixture
def database(mariadb: Any, monkeypatch: pytest.MonkeyPatch) -> MariadbDatabase:
    made = MariadbDatabase(mariadb)
    monkeypatch.setenv("AIRFLOW_CONN_DB", made.airflow_connection)
    if find_spec("MySQLdb") is None:
        # What pymysql.install_as_MySQLdb() does, for one test.
        for name, module in {"": pymysql, ".cursors": pymysql.cursors, ".constants": pymysql.constants}.items():
            monkeypatch.setitem(sys.modules, f"MySQLdb{name}", module)
    return made


def task(query: queries.Query = BARS, table: str = "bars", **kwargs: Any) -> OpenmarketsToSqlOperator:
    return OpenmarketsToSqlOperator(task_id="load", query=query, table=table, conn_id="db", **kwargs)


def columns(database: MariadbDatabase, *names: str) -> list[tuple[Any, ...]]:
    return database.execute(f"SELECT {', '.join(names)} FROM bars ORDER BY security_code, time_series_date")


@pytest.mark.parametrize("mode", MODES)
def test_the_rows_of_the_query_exactly_and_once(openmarkets_sandbox, database, mode):
    for _ in range(2):
        assert task(mode=mode).execute(context())["rows"] == 10
    names = [name for name in database.columns("bars") if name not in ("loaded_at", "other_fields", "load_id")]
    pulled = [tuple(row[name] for name in names) for row in OpenmarketsHook().run(BARS)]
    assert columns(database, *names) == pulled


def test_moments_are_in_utc(openmarkets_sandbox, database):
    query = queries.trades("BHP", start="2026-03-02T10:00", end="2026-03-02T11:00")
    for _ in range(2):
        task(query, mode="replace_range").execute(context())
    moments = sorted(row["trade_date_time"].replace(tzinfo=None) for row in OpenmarketsHook().run(query))
    assert [moment for (moment,) in database.execute("SELECT trade_date_time FROM bars ORDER BY 1")] == moments
    assert moments


@pytest.mark.parametrize(
    "extra", [{"cursor": "dictcursor"}, {"cursor": "ssdictcursor"}, {"cursor": "sscursor"}, {"charset": "latin1"}]
)
def test_settings_of_the_connection_that_a_load_can_not_take_are_overridden(
    openmarkets_sandbox, database, monkeypatch, extra
):
    monkeypatch.setenv("AIRFLOW_CONN_DB", database.server.airflow_connection(database.name, **extra))
    for _ in range(2):
        assert task(table="bārs", mode=APPEND).execute(context())["rows"] == 10
    assert database.execute("SELECT count(*) FROM bārs") == [(10,)]


def test_a_bad_row_is_named_and_loses_nothing(openmarkets_sandbox, database):
    task(queries.time_series("BHP", **WEEK)).execute(context())
    database.execute("ALTER TABLE bars ADD CHECK (security_code <> 'CBA')")
    with pytest.raises(
        AirflowFailException,
        match=r"bars: the database refuses row 6 \(security_code=CBA, .*time_series_date=2026-03-02\)",
    ):
        task().execute(context())
    assert {code for (code,) in columns(database, "security_code")} == {"BHP"}


def test_the_dataset_of_a_table(openmarkets_sandbox, database):
    done = task()
    done.execute(context())
    assert done._lineage.dataset[1:] == ("mysql://localhost:3306", "test.bars")
