"""The transfer to an Iceberg table, as a task: a folder with its own catalog, and catalogs by connection."""

from __future__ import annotations

import json
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from openmarkets_provider import queries
from openmarkets_provider.exceptions import OpenmarketsConfigurationError, OpenmarketsQueryError
from openmarkets_provider.transfers._stores import CATALOG, CATALOG_FILE
from openmarkets_provider.transfers.openmarkets_to_iceberg import OpenmarketsToIcebergOperator
from tests.support.context import context
from tests.support.iceberg_rest import rest_catalog
from tests.support.lake_process import PATIENCE, loads

WEEK = {"start": "2026-03-02", "end": "2026-03-07"}
# Since Airflow 3.2: before it has no SQLAlchemy 2.
SqlCatalog: Any = pytest.importorskip("pyiceberg.catalog.sql", exc_type=ImportError).SqlCatalog
BARS = queries.time_series(["BHP", "CBA"], **WEEK)


def to_iceberg(query: queries.Query = BARS, **kwargs: Any) -> OpenmarketsToIcebergOperator:
    return OpenmarketsToIcebergOperator(task_id="load", query=query, **{"table": "market.bars"} | kwargs)


def rows_in(warehouse: Path, name: str = CATALOG) -> list[tuple[Any, ...]]:
    catalog = SqlCatalog(name, uri=f"sqlite:///{warehouse / CATALOG_FILE}", warehouse=warehouse.as_uri())
    names = ("security_code", "time_series_date")
    table = catalog.load_table("market.bars").scan(selected_fields=names).to_arrow()
    catalog.close()
    return sorted(tuple(row.values()) for row in table.to_pylist())


@pytest.fixture
def warehouse(tmp_path: Path) -> Path:
    return tmp_path / "lake"


def test_a_task_says_what_it_has_loaded(openmarkets_sandbox, warehouse):
    where = context()
    task = to_iceberg(warehouse=str(warehouse), partition="month")
    expected = {"destination": "market.bars", "rows": 10, "bytes": None, "files": [], "range": WEEK, "skipped": []}
    assert task.execute(where) == expected
    assert [asset.uri for asset in task.outlets] == [f"{warehouse.as_uri()}/market/bars"]
    ((_, event),) = where["outlet_events"].items()
    assert event.extra["rows"] == 10
    assert len(rows_in(warehouse)) == 10
    assert (warehouse / "market" / "bars" / "metadata").is_dir()


def test_a_task_instance_that_runs_again_replaces_what_it_has_appended(openmarkets_sandbox, warehouse):
    for run_id in ("one", "two", "two"):
        to_iceberg(queries.quotes("BHP"), warehouse=str(warehouse), mode="append", table="market.quotes").execute(
            context(run_id)
        )
    catalog = SqlCatalog(CATALOG, uri=f"sqlite:///{warehouse / CATALOG_FILE}")
    loads_in = catalog.load_table("market.quotes").scan().to_arrow()["load_id"].to_pylist()
    catalog.close()
    assert sorted(loads_in) == ["dag/one/load/-1", "dag/two/load/-1"]


def test_many_loads_at_once_give_each_row_once(openmarkets_sandbox, warehouse):
    def some(*codes: str) -> list[dict[str, Any]]:
        query = queries.time_series(codes, **WEEK)
        return [{"query": query, "table": "market.bars", "warehouse": str(warehouse), "partition": "month"}] * 5

    with (
        loads(OpenmarketsToIcebergOperator, *some("BHP", "CBA")) as one,
        loads(OpenmarketsToIcebergOperator, *some("CBA", "RIO")) as other,
    ):
        one.join(PATIENCE)
        other.join(PATIENCE)
    assert (one.exitcode, other.exitcode) == (0, 0)
    assert len(rows_in(warehouse)) == len(set(rows_in(warehouse))) == 15


def test_a_task_that_is_killed_before_it_commits_has_changed_nothing(openmarkets_sandbox, warehouse):
    to_iceberg(warehouse=str(warehouse)).execute(context())
    before, files = rows_in(warehouse), set(warehouse.rglob("*.parquet"))
    longer = queries.time_series(["BHP", "CBA"], start="2026-03-02", end="2026-03-10")
    # In SQLite a writer waits for 5 s.
    blocker = sqlite3.connect(warehouse / CATALOG_FILE, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    load = {"query": longer, "table": "market.bars", "warehouse": str(warehouse)}
    with loads(OpenmarketsToIcebergOperator, load) as process:
        deadline = time.monotonic() + PATIENCE
        while set(warehouse.rglob("*.parquet")) == files and time.monotonic() < deadline:
            time.sleep(0.01)
    blocker.close()
    assert process.exitcode == -signal.SIGKILL
    assert set(warehouse.rglob("*.parquet")) > files
    assert rows_in(warehouse) == before
    to_iceberg(longer, warehouse=str(warehouse)).execute(context())
    assert len(rows_in(warehouse)) == 12


class TestConnections:
    def connect(self, monkeypatch: pytest.MonkeyPatch, **connection: Any) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_CATALOG", json.dumps(connection))

    def test_a_catalog_in_a_database(self, openmarkets_sandbox, warehouse, monkeypatch):
        warehouse.mkdir()
        extra = {"type": "sql", "uri": f"sqlite:///{warehouse / CATALOG_FILE}", "warehouse": warehouse.as_uri()}
        self.connect(monkeypatch, conn_type="iceberg", extra=extra)
        task = to_iceberg(conn_id="catalog")
        assert task.execute(context())["rows"] == len(rows_in(warehouse, "catalog")) == 10
        assert [asset.uri for asset in task.outlets] == ["iceberg://catalog/market.bars"]

    def test_a_rest_catalog(self, openmarkets_sandbox, warehouse, monkeypatch, caplog):
        warehouse.mkdir()
        behind = SqlCatalog(CATALOG, uri=f"sqlite:///{warehouse / CATALOG_FILE}", warehouse=warehouse.as_uri())
        with rest_catalog(behind) as served, caplog.at_level("DEBUG"):
            extra = {"oauth2-server-uri": f"{served.url}/v1/oauth/tokens"}
            self.connect(
                monkeypatch, conn_type="iceberg", host=served.url, login="me", password="the-secret", extra=extra
            )
            for _ in range(2):
                assert to_iceberg(conn_id="catalog", partition="day").execute(context())["rows"] == 10
        behind.close()
        assert len(rows_in(warehouse)) == 10
        assert served.requests.count("POST /v1/namespaces/market/tables/bars") == 2
        assert "the-secret" not in caplog.text

    def test_a_rest_catalog_that_refuses_the_client(self, openmarkets_sandbox, warehouse, monkeypatch):
        warehouse.mkdir()
        behind = SqlCatalog(CATALOG, uri=f"sqlite:///{warehouse / CATALOG_FILE}", warehouse=warehouse.as_uri())
        with rest_catalog(behind) as served:
            self.connect(monkeypatch, conn_type="iceberg", host=served.url, extra={"token": "another"})
            with pytest.raises(Exception, match=r"^Cannot open .*'catalog': UnauthorizedError"):
                to_iceberg(conn_id="catalog").execute(context())
        behind.close()
        assert openmarkets_sandbox.stats()["by_path"] == {}

    def test_a_connection_of_another_type(self, openmarkets_sandbox, monkeypatch):
        self.connect(monkeypatch, conn_type="sqlite", host="/lake.db")
        with pytest.raises(Exception, match="must have the type iceberg, not 'sqlite'"):
            to_iceberg(conn_id="catalog").execute(context())
        assert openmarkets_sandbox.stats()["by_path"] == {}


@pytest.mark.parametrize(
    ("kwargs", "kind", "problem"),
    [
        ({"table": "bars"}, OpenmarketsConfigurationError, "must be 'namespace.table'"),
        ({"conn_id": "catalog"}, OpenmarketsConfigurationError, "Set either conn_id"),
        ({"warehouse": None}, OpenmarketsConfigurationError, "Set either conn_id"),
        ({"warehouse": "s3://bucket/lake"}, OpenmarketsConfigurationError, "warehouse must be an absolute path"),
        ({"mode": "merge"}, ValueError, "mode must be one of"),
        ({"query": queries.quotes("BHP"), "mode": "upsert", "partition": "day"}, OpenmarketsQueryError, "no time"),
    ],
)
def test_what_is_refused_while_the_dag_is_parsed(kwargs, kind, problem):
    with pytest.raises(kind, match=problem):
        to_iceberg(**{"warehouse": "/lake"} | kwargs)
