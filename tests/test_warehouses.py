"""The recipes of docs/howto/warehouses.md: the one for DuckDB is run, of the others the SQL is rendered."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import duckdb
import jinja2
import pytest

from openmarkets_provider import queries
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
from tests.support.context import context
from tests.support.pages import BLOCKS

PAGE = "docs/howto/warehouses.md"
FILES = ["lake/bars/exchange_date=2026-03-02/part-0.parquet", "lake/bars/exchange_date=2026-03-03/part-0.parquet"]
RANGE = {"start": "2026-03-02", "end": "2026-03-04"}

# Of Airflow's provider for DuckDB.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def recipe(text: str, data: str = "/data") -> dict[str, Any]:
    """Run the block of the page that has a text in it, with another folder in place of ``/data``."""
    (block,) = (block for block in BLOCKS if (block.page, block.kind) == (PAGE, "python") and text in block.text)
    names: dict[str, Any] = {}
    exec(compile(block.text.replace("/data/", f"{data}/"), PAGE, "exec"), names)
    return names


def render(sql: str, landed: dict[str, Any]) -> str:
    ti = SimpleNamespace(xcom_pull=lambda task_id: landed if task_id == "lake" else None)
    return jinja2.Template(sql, undefined=jinja2.StrictUndefined).render(ti=ti)


def statements(name: str, scheme: str, files: list[str]) -> list[str]:
    sql = recipe(f"\n{name} = ")[name].sql
    rendered = render(sql, {"files": [f"{scheme}://{file}" for file in files], "range": RANGE})
    return [" ".join(each.split()) for each in rendered.split(";") if each.strip()]


@pytest.mark.parametrize("days", [("2026-03-02", "2026-03-04"), ("2026-03-07", "2026-03-08")], ids=["two", "none"])
def test_days_in_duckdb_are_replaced_by_what_was_landed(openmarkets_sandbox, tmp_path, days):
    tasks = recipe("def bars_in_duckdb", str(tmp_path))["bars_in_duckdb"]().task_dict
    template = tasks["warehouse"].sql

    def run(start: str, end: str) -> int:
        tasks["lake"].query = query = queries.time_series(["BHP", "CBA"], start=start, end=end)
        landed = tasks["lake"].execute(context())
        tasks["warehouse"].sql = render(template, landed)
        tasks["warehouse"].execute({})
        return len(OpenmarketsHook().run(query))

    first = run("2026-03-02", "2026-03-07")
    database = str(tmp_path / "market.duckdb")
    with duckdb.connect(database) as connection:
        before = connection.sql("FROM daily_bars ORDER BY ALL").fetchall()
        assert len(before) == first == 10
        assert "exchange_date" not in connection.sql("FROM daily_bars").columns
        # Stale rows within these days go, and those of other days stay.
        connection.sql("INSERT INTO daily_bars (security_code, time_series_date) VALUES ('OLD', '2026-02-27')")
        connection.sql(f"INSERT INTO daily_bars (security_code, time_series_date) VALUES ('STALE', '{days[0]}')")
    run(*days)
    with duckdb.connect(database) as connection:
        codes = connection.sql("SELECT security_code, count(*) FROM daily_bars GROUP BY 1 ORDER BY 1").fetchall()
    assert codes == [("BHP", 5), ("CBA", 5), ("OLD", 1)]


def test_what_snowflake_is_told():
    assert [each.split(" ")[0] for each in statements("snowflake", "s3", [])] == ["BEGIN", "DELETE", "COMMIT"]
    begin, delete, first, _, commit = statements("snowflake", "s3", FILES)
    assert (begin, commit) == ("BEGIN", "COMMIT")
    assert delete.endswith("WHERE time_series_date >= '2026-03-02' AND time_series_date < '2026-03-04'")
    assert first.startswith(f"COPY INTO daily_bars FROM '@{FILES[0]}' FILE_FORMAT = (TYPE = PARQUET ")


def test_what_redshift_is_told():
    assert len(statements("redshift", "s3", [])) == 1
    delete, first, _ = statements("redshift", "s3", FILES)
    assert delete.endswith("WHERE time_series_date >= '2026-03-02' AND time_series_date < '2026-03-04'")
    assert first == f"COPY market.daily_bars FROM 's3://{FILES[0]}' IAM_ROLE DEFAULT FORMAT AS PARQUET"


def test_what_bigquery_is_told():
    assert statements("bigquery", "gs", []) == []
    first, second = statements("bigquery", "gs", FILES)
    assert "OVERWRITE PARTITIONS (time_series_date = '2026-03-02')" in first
    assert re.search(rf"uris = \['gs://{re.escape(FILES[1])}'\]", second)
