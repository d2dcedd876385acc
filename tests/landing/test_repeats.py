"""Rows that the API sends twice: files and tables follow the same rule."""

from __future__ import annotations

import logging
from collections.abc import Generator
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from openmarkets_provider import queries
from openmarkets_provider.landing.destination import keep_last
from openmarkets_provider.landing.file_destination import FileDestination
from openmarkets_provider.landing.folders import LocalFolder
from openmarkets_provider.landing.formats import FileFormat
from openmarkets_provider.landing.layout import layout_of
from openmarkets_provider.landing.modes import UPSERT
from openmarkets_provider.landing.places import read_place
from openmarkets_provider.landing.table_destination import TableDestination
from openmarkets_provider.query.batch import Batch
from openmarkets_provider.query.query import schema_of
from tests.support.batches import batch_of
from tests.support.databases import SqliteDatabase

QUERY = queries.time_series("BHP", start="2026-03-02", end="2026-03-07")
LAYOUT = layout_of(QUERY)


def bar(day: int, volume: int, code: str | None = "BHP") -> dict[str, Any]:
    blank = dict.fromkeys(field.name for field in schema_of(QUERY).fields)
    key = {"security_code": code, "exchange": "ASX", "data_source": "TM", "frequency": "Daily"}
    return {**blank, **key, "time_series_date": date(2026, 3, day), "total_volume": volume}


class Replies:
    """A source whose reply has a bar three times."""

    def run(self, query: Any) -> Any:
        raise AssertionError("Nothing is looked up.")

    def stream_columns(self, query: Any, skipped: Any = None) -> Generator[Batch, None, None]:
        yield batch_of([bar(2, 1), bar(3, 2), bar(2, 3), bar(2, 4), bar(4, 5)])


@pytest.mark.parametrize("partition", [None, "day"])
def test_a_file_has_the_rows_that_a_table_has(tmp_path: Path, partition):
    place = read_place(str(tmp_path / "bars" if partition else tmp_path / "bars.parquet"), is_folder=bool(partition))
    folder = LocalFolder(place if partition else place.folder)
    files = FileDestination(place, folder, FileFormat("parquet", None), partition)
    assert files.land(Replies(), QUERY).rows == 3
    landed = [row for file in sorted(tmp_path.rglob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    database = SqliteDatabase(tmp_path / "test.db")
    engine = sa.create_engine(database.url, poolclass=NullPool)
    assert TableDestination(engine, "bars", conn_id="db", mode=UPSERT).land(Replies(), QUERY).rows == 3
    engine.dispose()
    loaded = database.execute("SELECT time_series_date, total_volume FROM bars ORDER BY 1")
    assert sorted((str(row["time_series_date"]), row["total_volume"]) for row in landed) == loaded
    assert [volume for _, volume in loaded] == [4, 2, 5]


def test_the_last_one_counts_and_the_log_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        (kept,) = keep_last(Replies().stream_columns(QUERY), LAYOUT)
    assert kept.columns["total_volume"] == [2, 4, 5]
    assert "time_series: 2 of 5 rows have the same key (security_code, exchange" in caplog.text


def test_a_batch_without_repeats_stays_as_it_is():
    batch = batch_of([bar(2, 1), bar(3, 2)])
    assert next(keep_last([batch], LAYOUT)) is batch


def test_rows_without_a_part_of_their_key_stay():
    (kept,) = keep_last([batch_of([bar(2, 1, None), bar(2, 2, None), bar(3, 3), bar(3, 4)])], LAYOUT)
    assert kept.columns["total_volume"] == [1, 2, 4]


def test_records_have_no_key():
    batch = Batch({"record": [1, 1]})
    assert next(keep_last([batch], layout_of({**QUERY, "raw": True}))) is batch
