"""What is particular to Iceberg; test_lake.py has what Delta does, too."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from openmarkets_provider import queries
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
from openmarkets_provider.landing.iceberg import IcebergDestination, filter_of
from openmarkets_provider.landing.lake import Filter
from openmarkets_provider.landing.modes import REPLACE_RANGE
from tests.support.lakes import IcebergLake

# Since Airflow 3.2: before it has no SQLAlchemy 2.
SqlCatalog: Any = pytest.importorskip("pyiceberg.catalog.sql", exc_type=ImportError).SqlCatalog
BARS = queries.time_series(["BHP", "CBA"], start="2026-03-02", end="2026-03-07")
TRADES = queries.trades("BHP", start="2026-03-03", end="2026-03-05")


@pytest.fixture
def lake(tmp_path: Path) -> IcebergLake:
    return IcebergLake(tmp_path)


def test_the_history_after_a_repeat_and_an_overlap(openmarkets_sandbox, lake):
    for end in ("2026-03-07", "2026-03-07", "2026-03-10"):
        lake.land(queries.time_series("BHP", start="2026-03-02", end=end), partition="month")
    table = lake.catalog.load_table(lake.name)
    summaries = [snapshot.summary for snapshot in table.snapshots()]
    # A commit is one step for readers, but may have two snapshots.
    assert [summary.operation.value for summary in summaries] == ["append", "delete", "append", "delete", "append"]
    assert summaries[-1]["total-records"] == "6"
    assert lake.commits() == 3
    assert len(lake.rows()) == 6


@pytest.mark.parametrize(
    ("query", "partition", "folders"),
    [
        (BARS, "day", [f"time_series_date_day=2026-03-0{day}" for day in range(2, 7)]),
        (BARS, "month", ["time_series_date_month=2026-03"]),
        (BARS, "year", ["time_series_date_year=2026"]),
        (TRADES, "day", ["exchange_date_day=2026-03-03", "exchange_date_day=2026-03-04"]),
        (TRADES, "month", ["exchange_date_month=2026-03"]),
    ],
)
def test_partitions_are_transforms_of_the_exchange_date(openmarkets_sandbox, lake, tmp_path, query, partition, folders):
    lake.land(query, partition=partition)
    assert sorted(path.name for path in tmp_path.glob("market/bars/data/*")) == folders


def test_a_scan_reads_the_partitions_that_it_needs(openmarkets_sandbox, lake):
    lake.land(TRADES, partition="day")
    scan = lake.catalog.load_table(lake.name).scan(row_filter="exchange_date = '2026-03-04'")
    assert len(list(scan.plan_files())) == 1
    assert scan.count() == len([day for (day,) in lake.rows("exchange_date") if day == date(2026, 3, 4)]) > 0


def test_columns_have_their_units(openmarkets_sandbox, lake):
    lake.land(BARS)
    schema = lake.catalog.load_table(lake.name).schema()
    assert schema.find_field("loaded_at").doc == "UTC"
    assert str(schema.find_field("loaded_at").field_type) == "timestamptz"
    assert str(schema.find_field("close_price").field_type) == "decimal(18, 6)"


def test_pyiceberg_reads_what_polars_reads(openmarkets_sandbox, lake):
    lake.land(BARS, partition="month")
    names = ["security_code", "time_series_date", "close_price", "loaded_at"]
    rows = lake.catalog.load_table(lake.name).scan(selected_fields=names).to_arrow().to_pylist()
    assert rows == lake.scan().select(names).collect().to_dicts()
    assert type(rows[0]["close_price"]) is Decimal
    assert rows[0]["loaded_at"].utcoffset() == UTC.utcoffset(None)


class LateCatalog(SqlCatalog):
    """A catalog in which a rival commits just before the first commit."""

    rival: Callable[[], Any] | None = None

    def commit_table(self, *args: Any, **kwargs: Any) -> Any:
        if self.rival:
            rival, self.rival = self.rival, None
            rival()
        return super().commit_table(*args, **kwargs)


@pytest.mark.parametrize("codes", [["BHP", "CBA"], ["BHP"], ["RIO"]])
def test_a_rival_that_commits_first(openmarkets_sandbox, lake, tmp_path, codes, caplog):
    lake.land(BARS, partition="month")
    late = LateCatalog("lake", **lake.catalog.properties)
    rival = queries.time_series(codes, start="2026-03-04", end="2026-03-10")
    late.rival = lambda: lake.land(rival, partition="month")
    own = IcebergDestination(late, lake.name, catalog_name="lake", mode=REPLACE_RANGE, partition="month")
    with caplog.at_level("INFO"):
        own.land(OpenmarketsHook(), BARS)
    # The library itself commits again when the rows are others.
    assert ("another load committed first; attempt 1 of 10" in caplog.text) == (codes != ["RIO"])
    keys = lake.rows("security_code", "time_series_date")
    assert len(keys) == len(set(keys)) == {"BHP": 11 if len(codes) == 1 else 12, "RIO": 14}[codes[0]]
    late.close()


def test_a_bound_in_another_zone():
    sydney = timezone(timedelta(hours=11))
    chosen = Filter("t", datetime(2026, 3, 2, tzinfo=sydney), datetime(2026, 3, 3, tzinfo=sydney), [{"code": ["A"]}])
    assert "2026-03-01T13:00:00+00:00" in repr(filter_of(chosen))
