"""A file or a folder as a destination, without Airflow; tests/transfers has it as a task."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from openmarkets_provider import queries
from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
from openmarkets_provider.landing.file_destination import SKIP, FileDestination
from openmarkets_provider.landing.folders import LocalFolder
from openmarkets_provider.landing.formats import FileFormat
from openmarkets_provider.landing.places import read_place
from openmarkets_provider.query.query import schema_of
from tests.support.batches import batch_of


def folder(path: Path | str, partition: str, *, open_end: bool = True) -> FileDestination:
    place = read_place(str(path), is_folder=True)
    return FileDestination(place, LocalFolder(place), FileFormat("csv", None), partition, open_end=open_end)


def test_a_range_begins_with_a_partition_and_ends_where_the_destination_is_loaded():
    bars = queries.time_series("BHP", start="2026-01-01", end="2027-01-01")
    start, end = date(2026, 11, 5), date(2026, 11, 9)
    months = folder("/data/bars", "month")
    assert months.range_to_pull(bars, start, end, None) == (date(2026, 11, 1), date(2026, 11, 9))
    assert months.range_to_pull(bars, start, end, "2026-11-20") == (date(2026, 11, 1), date(2026, 11, 20))
    assert months.range_to_pull(bars, start, end, "2026-12-20") == (date(2026, 11, 1), date(2026, 12, 1))


def test_so_does_a_range_of_times():
    trades = queries.trades("BHP", start="2026-11-01", end="2027-01-01")
    start, end = datetime(2026, 11, 19, 15, tzinfo=UTC), datetime(2026, 11, 20, 2, tzinfo=UTC)
    start, end = folder("/data/trades", "day").range_to_pull(trades, start, end, "2026-11-20T05:00:00+00:00")
    assert start == datetime(2026, 11, 19, 13, tzinfo=UTC)
    assert end - start == timedelta(hours=16)


def test_an_unfinished_partition_lands_and_is_replaced_by_the_next_load(openmarkets_sandbox, tmp_path):
    lake = tmp_path / "lake"
    months = folder(lake, "month")
    assert not months.exists()
    for end, rows in (("2026-03-05", 3), ("2026-03-10", 6)):
        result = months.land(OpenmarketsHook(), queries.time_series("BHP", start="2026-03-01", end=end))
        assert result.rows == rows
        (file,) = (path for path in lake.rglob("*") if path.is_file())
        assert file.relative_to(lake) == Path("exchange_month=2026-03/part-0.csv")
        assert len(file.read_text().splitlines()) == rows + 1
    assert months.exists()


def test_without_an_open_end_an_unfinished_partition_is_refused(tmp_path):
    query = queries.time_series("BHP", start="2026-03-01", end="2026-03-05")
    with pytest.raises(OpenmarketsQueryError, match="only part of"):
        folder(tmp_path, "month", open_end=False).land(OpenmarketsHook(), query)


@pytest.mark.parametrize("other", range(3))
def test_a_file_that_another_task_publishes_meanwhile_changes_no_other(tmp_path, other):
    query = queries.time_series("BHP", start="2026-03-02", end="2026-03-05")
    paths = [tmp_path / f"bars/exchange_date=2026-03-0{day}/part-0.csv" for day in (2, 3, 4)]

    class Slow:
        def run(self, query):
            raise AssertionError("Nothing is looked up.")

        def stream_columns(self, query, skipped=None):
            blank = dict.fromkeys(field.name for field in schema_of(query).fields)
            yield batch_of(
                [{**blank, "security_code": "BHP", "time_series_date": date(2026, 3, day)} for day in (2, 3, 4)]
            )
            paths[other].parent.mkdir(parents=True)
            paths[other].write_text("another\ntask's\n")

    place = read_place(str(tmp_path / "bars"), is_folder=True)
    FileDestination(place, LocalFolder(place), FileFormat("csv", None), "day", SKIP).land(Slow(), query)
    texts = [path.read_text() for path in paths]
    assert texts.pop(other) == "another\ntask's\n"
    assert [len(text.splitlines()) for text in texts] == [2, 2]
