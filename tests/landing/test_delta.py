"""What is particular to Delta; test_lake.py has what Iceberg does, too."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import duckdb
import polars as pl
import pytest
from deltalake import DeltaTable

from openmarkets_provider import queries
from openmarkets_provider.landing.delta import predicate_of
from openmarkets_provider.landing.lake import Filter
from tests.support.lakes import DeltaLake

BARS = queries.time_series(["BHP", "CBA"], start="2026-03-02", end="2026-03-07")


@pytest.fixture
def lake(tmp_path: Path) -> DeltaLake:
    return DeltaLake(tmp_path)


def test_the_history_after_a_repeat_and_an_overlap(openmarkets_sandbox, lake):
    for end in ("2026-03-07", "2026-03-07", "2026-03-10"):
        lake.land(queries.time_series("BHP", start="2026-03-02", end=end), partition="month")
    history = list(reversed(DeltaTable(lake.name).history()))
    assert [commit["operation"] for commit in history] == ["CREATE TABLE", "WRITE", "WRITE", "WRITE"]
    assert [commit["operationMetrics"]["num_added_rows"] for commit in history[1:]] == [5, 5, 6]
    assert len(lake.rows()) == 6


@pytest.mark.parametrize(
    ("partition", "folders"),
    [
        ("day", ["exchange_date=2026-02-27", "exchange_date=2026-03-02"]),
        ("month", ["exchange_month=2026-02", "exchange_month=2026-03"]),
        ("year", ["exchange_year=2026"]),
    ],
)
def test_folders_of_exchange_days_months_and_years(openmarkets_sandbox, lake, partition, folders):
    lake.land(queries.time_series("BHP", start="2026-02-27", end="2026-03-03"), partition=partition)
    assert sorted(path.name for path in Path(lake.name).glob("exchange_*")) == folders


def test_prices_can_be_multiplied(openmarkets_sandbox, lake):
    lake.land(BARS)
    bars = DeltaTable(lake.name).to_pyarrow_dataset()  # noqa: F841 (DuckDB reads it by its name)
    values = duckdb.sql("SELECT close_price * total_volume, market_vwap * close_price FROM bars").fetchall()
    assert all(type(value) is Decimal for row in values for value in row)


def test_duckdb_polars_and_pyarrow_read_the_same(openmarkets_sandbox, lake):
    lake.land(BARS, partition="month")
    bars = DeltaTable(lake.name).to_pyarrow_dataset()
    names = ["security_code", "time_series_date", "close_price", "loaded_at"]
    by_pyarrow = bars.to_table(names).to_pylist()
    with duckdb.connect() as database:
        database.execute("SET TimeZone='UTC'")
        by_duckdb = database.sql(f"SELECT {', '.join(names)} FROM bars").to_arrow_table().to_pylist()
    by_polars = pl.read_delta(lake.name).select(names).to_dicts()
    assert by_pyarrow == by_duckdb == by_polars
    assert type(by_polars[0]["close_price"]) is Decimal
    assert by_polars[0]["loaded_at"].utcoffset() == UTC.utcoffset(None)


@pytest.mark.parametrize(
    ("chosen", "condition"),
    [
        (Filter(None, None, None, [{"load_id": ["it's"]}]), "(load_id IN ('it''s'))"),
        (
            Filter("day", date(2026, 3, 2), date(2026, 3, 3), [{"code": ["A", "B"], "interval": [5]}, {"code": ["C"]}]),
            "day >= '2026-03-02' AND day < '2026-03-03'"
            " AND ((code IN ('A', 'B') AND interval IN (5)) OR (code IN ('C')))",
        ),
        (
            Filter("t", datetime(2026, 3, 2, tzinfo=UTC), datetime(2026, 3, 3, tzinfo=UTC), [{"code": ["A"]}]),
            "t >= '2026-03-02T00:00:00+00:00' AND t < '2026-03-03T00:00:00+00:00' AND ((code IN ('A')))",
        ),
    ],
)
def test_a_filter_in_sql(chosen, condition):
    assert predicate_of(chosen) == condition
