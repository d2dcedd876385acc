"""Incremental loads, with the state stores of Airflow as dicts; tests/airflow has them in a real one."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import airflow
import pyarrow.parquet as pq
import pytest
from airflow.sdk import DAG, Asset
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from openmarkets_provider import queries
from openmarkets_provider.exceptions import OpenmarketsError, OpenmarketsQueryError
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
from openmarkets_provider.landing.destination import LoadResult
from openmarkets_provider.landing.incremental import load_incrementally
from openmarkets_provider.transfers._transfer import instance_id
from openmarkets_provider.transfers.openmarkets_to_object_storage import OpenmarketsToObjectStorageOperator
from openmarkets_provider.transfers.openmarkets_to_sql import OpenmarketsToSqlOperator
from tests.support.deployment import Deployment

TRADES = "/market-data/pricing/trades/BHP.ASX@TM"


@pytest.fixture
def deployment() -> Deployment:
    return Deployment()


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    return tmp_path / "lake"


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "etl.db"
    monkeypatch.setenv("AIRFLOW_CONN_DB", json.dumps({"conn_type": "sqlite", "host": str(path)}))
    return path


def trades(end: str, securities: Any = "BHP") -> queries.Query:
    return queries.trades(securities, start="2026-03-02", end=end)


def to_files(folder: Path, query: queries.Query, task_id: str = "files", **kwargs: Any) -> Any:
    with DAG("etl", schedule=None):
        return OpenmarketsToObjectStorageOperator(
            task_id=task_id, query=query, destination=str(folder), incremental=True, **{"partition": "day"} | kwargs
        )


def to_table(query: queries.Query, task_id: str = "table", **kwargs: Any) -> Any:
    with DAG("etl", schedule=None):
        return OpenmarketsToSqlOperator(
            task_id=task_id, query=query, table="trades", conn_id="db", incremental=True, **kwargs
        )


def landed(folder: Path) -> list[str]:
    return [row["trade_number"] for path in sorted(folder.glob("*/*")) for row in pq.read_table(path).to_pylist()]


def in_table(database: Path) -> list[str]:
    with closing(sqlite3.connect(database)) as connection:
        return [number for (number,) in connection.execute("select trade_number from trades order by trade_date_time")]


def pulled(query: queries.Query) -> list[str]:
    return [row["trade_number"] for row in OpenmarketsHook().run(query)]


@pytest.mark.parametrize("overlap", [timedelta(days=1), timedelta(0)], ids=["a day", "none"])
def test_what_came_late_is_landed_by_the_overlap_and_nothing_twice(
    openmarkets_sandbox, deployment, database, lake, overlap
):
    def trades(end: str) -> queries.Query:
        return queries.trades("BHP", start="2026-03-03", end=end)

    day = OpenmarketsHook().run({**trades("2026-03-04"), "raw": True})
    # Each of the first loads makes one call; of the day's trades one is missing, which comes later.
    openmarkets_sandbox.fault(target=TRADES, kind="body", body=day[:-1], times=2)

    def load(end: str) -> None:
        deployment.run(to_files(lake, trades(end), overlap=overlap), end)
        deployment.run(to_table(trades(end), overlap=overlap), end)

    load("2026-03-04")
    late = day[-1]["tradeNumber"]
    everything = pulled(trades("2026-03-05"))
    assert str(late) in everything
    load("2026-03-05")
    complete = everything if overlap else [number for number in everything if number != str(late)]
    assert sorted(in_table(database)) == sorted(complete)
    assert sorted(landed(lake)) == sorted(complete)


def test_a_partition_that_was_begun_is_completed_whole(openmarkets_sandbox, deployment, lake):
    for number, end in enumerate(("2026-03-03T11:00:00", "2026-03-03T12:00:00", "2026-03-03T15:00:00")):
        deployment.run(to_files(lake, trades(end), overlap=timedelta(0)), str(number))
        assert landed(lake) == pulled(trades(end))


def test_an_earlier_run_that_is_repeated_takes_nothing_of_a_later_one_away(openmarkets_sandbox, deployment, lake):
    first = to_files(lake, trades("2026-03-03T11:00:00"))
    deployment.run(first, "first")
    deployment.run(to_files(lake, trades("2026-03-03T15:00:00")), "second")
    deployment.run(first, "first")
    assert landed(lake) == pulled(trades("2026-03-03T15:00:00"))


@pytest.mark.parametrize("runs", [2, 5])
def test_a_cleared_load_takes_its_range_again(openmarkets_sandbox, deployment, database, runs):
    def load(day: int) -> dict[str, str]:
        task = to_table(trades(f"2026-03-0{day}"), overlap=timedelta(0))
        return deployment.run(task, f"run {day}")["range"]

    ranges = [load(day) for day in range(3, 3 + runs)]
    assert [load(day) for day in range(3, 3 + runs)] == ranges
    assert in_table(database) == pulled(trades(f"2026-03-0{2 + runs}"))


def test_nothing_new_skips_the_task_and_asks_for_nothing(openmarkets_sandbox, deployment, lake):
    deployment.run(to_files(lake, trades("2026-03-04")), "first")
    before = openmarkets_sandbox.stats()["by_path"]
    with pytest.raises(AirflowSkipException, match=r"Nothing to load: .* is loaded up to 2026-03-03T13:00:00\+00:00"):
        deployment.run(to_files(lake, trades("2026-03-03")), "second")
    assert openmarkets_sandbox.stats()["by_path"] == before


def test_a_load_that_fails_moves_nothing_and_its_retry_takes_the_same_range(openmarkets_sandbox, deployment, lake):
    deployment.run(to_files(lake, trades("2026-03-03")), "first")
    (store,) = deployment.assets.values()
    (key,) = (key for key, value in store.values.items() if "watermark" in value)
    before = store.values[key]
    openmarkets_sandbox.fault(target=TRADES, kind="status", status=400)
    task = to_files(lake, trades("2026-03-05"))
    with pytest.raises(AirflowFailException):
        deployment.run(task, "second")
    assert store.values[key] == before
    # The query of the retry ends later, as one that is rendered with the time of day may.
    deployment.run(to_files(lake, trades("2026-03-06")), "second")
    assert landed(lake) == pulled(trades("2026-03-05"))


@pytest.mark.parametrize(
    "other",
    [
        lambda folder: to_files(folder, trades("2026-03-05"), task_id="other"),
        lambda folder: to_files(folder, trades("2026-03-05", ["BHP", "CBA"])),
    ],
    ids=["another task", "another query"],
)
def test_a_folder_belongs_to_one_task_and_one_query(openmarkets_sandbox, deployment, lake, other):
    deployment.run(to_files(lake, trades("2026-03-04")), "first")
    with pytest.raises(AirflowFailException, match=r"was loaded by task etl\.files.*full_refresh=True"):
        deployment.run(other(lake), "second")
    assert landed(lake) == pulled(trades("2026-03-04"))


def test_a_folder_belongs_to_one_task_whatever_assets_others_name(openmarkets_sandbox, deployment, lake):
    deployment.run(to_files(lake, trades("2026-03-04"), outlets=[Asset("one")]), "first")
    other = to_files(lake, trades("2026-03-04", ["CBA"]), task_id="other", outlets=[Asset("two")])
    assert [asset.name for asset in other.outlets] == ["two", f"file://{lake}"]
    with pytest.raises(AirflowFailException, match=r"was loaded by task etl\.files"):
        deployment.run(other, "first")
    assert landed(lake) == pulled(trades("2026-03-04"))


def test_a_first_load_that_failed_takes_the_corrected_query(openmarkets_sandbox, deployment, lake):
    openmarkets_sandbox.fault(target=TRADES, kind="status", status=400)
    with pytest.raises(AirflowFailException):
        deployment.run(to_files(lake, queries.trades("BHP", start="2026-03-01", end="2026-03-03")), "first")
    deployment.run(to_files(lake, trades("2026-03-04")), "first")
    assert landed(lake) == pulled(trades("2026-03-04"))


def test_a_first_range_that_lies_ahead_is_skipped(openmarkets_sandbox, deployment, lake):
    ahead = queries.trades("BHP", start="2190-01-01", end="2190-01-05")
    with pytest.raises(AirflowSkipException, match="has no rows yet, and the range is in the future"):
        deployment.run(to_files(lake, ahead), "first")


@pytest.mark.parametrize("form", [{"partition": "month"}, {"format": "csv"}, {"compression": "zstd"}], ids=str)
def test_a_folder_keeps_its_form(openmarkets_sandbox, deployment, lake, form):
    deployment.run(to_files(lake, trades("2026-03-04")), "first")
    with pytest.raises(AirflowFailException, match=r"another query .*, partition or format"):
        deployment.run(to_files(lake, trades("2026-03-05"), **form), "second")
    assert landed(lake) == pulled(trades("2026-03-04"))


def test_a_folder_whose_first_load_is_under_way_belongs_to_its_task(openmarkets_sandbox, deployment, lake):
    openmarkets_sandbox.fault(target=TRADES, kind="status", status=400)
    with pytest.raises(AirflowFailException):
        deployment.run(to_files(lake, trades("2026-03-04")), "first")
    with pytest.raises(AirflowFailException, match=r"was loaded by task etl\.files"):
        deployment.run(to_files(lake, trades("2026-03-04"), task_id="other"), "first")


def test_a_destination_that_is_gone_is_not_filled_with_its_end_only(openmarkets_sandbox, deployment, database, lake):
    deployment.run(to_files(lake, trades("2026-03-04")), "first")
    deployment.run(to_table(trades("2026-03-04")), "first")
    for path in lake.glob("*/*"):
        path.unlink()
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("drop table trades")
    for task in (to_files(lake, trades("2026-03-05")), to_table(trades("2026-03-05"))):
        with pytest.raises(AirflowFailException, match=r"is now missing or empty.*full_refresh=True"):
            deployment.run(task, "second")
    deployment.assets.clear()
    deployment.run(to_files(lake, trades("2026-03-05")), "third")
    deployment.run(to_table(trades("2026-03-05")), "third")
    assert landed(lake) == in_table(database) == pulled(trades("2026-03-05"))


def test_a_folder_that_never_had_a_row_is_not_missed(openmarkets_sandbox, deployment, lake):
    # It starts with a Saturday and a Sunday.
    weekend = queries.trades("BHP", start="2026-03-07", end="2026-03-10")
    for day in ("2026-03-08", "2026-03-09", "2026-03-10"):
        deployment.run(to_files(lake, weekend | {"end": day}), day)
    assert landed(lake) == pulled(weekend | {"end": "2026-03-10"}) != []


def test_begun_anew_after_its_state_was_deleted(openmarkets_sandbox, deployment, lake):
    first = to_files(lake, trades("2026-03-03"))
    second = to_files(lake, trades("2026-03-04"))
    deployment.run(first, "first")
    deployment.run(second, "second")
    deployment.assets.clear()
    for path in lake.glob("*/*"):
        path.unlink()
    # This run has a claim that starts where the first one ended.
    deployment.run(second, "second")
    assert landed(lake) == pulled(trades("2026-03-04"))


def test_a_table_takes_several_queries_each_with_a_watermark_of_its_own(openmarkets_sandbox, deployment, database):
    deployment.run(to_table(trades("2026-03-04")), "first")
    deployment.run(to_table(trades("2026-03-03", ["CBA"]), task_id="other"), "first")
    (store,) = deployment.assets.values()
    assert {state["watermark"] for state in store.values.values() if "watermark" in state} == {
        "2026-03-02T13:00:00+00:00",
        "2026-03-03T13:00:00+00:00",
    }
    everything = pulled(trades("2026-03-04")) + pulled(trades("2026-03-03", ["CBA"]))
    assert sorted(in_table(database)) == sorted(everything)


class Beside:
    """A destination that is the table of :func:`to_table`, and into which another task loads first."""

    name, format, is_exclusive = "db/trades", "", False

    def __init__(self, load: Callable[[], Any]) -> None:
        self._load = load

    def exists(self) -> bool:
        return True

    def range_to_pull(self, query: Any, start: Any, end: Any, watermark: Any) -> tuple[Any, Any]:
        return start, end

    def land(self, source: Any, query: Any) -> LoadResult:
        self._load()
        return LoadResult("trades", 1, None, [], None, [])

    def cancel(self) -> None:
        pass


def load_beside(deployment: Deployment, task: Any, run_id: str, other: Any) -> None:
    """Load while another task runs as a whole."""
    stores = deployment.context(task, run_id)
    load_incrementally(
        OpenmarketsHook(),
        task.query,
        Beside(lambda: deployment.run(other, "other")),
        stores["asset_state_store"][task.outlets[0]],
        store_name="asset",
        owner="etl.table",
        run=instance_id(stores),
        overlap=task.overlap,
    )


def test_first_loads_of_a_table_at_once_leave_no_gap_behind_the_watermark(openmarkets_sandbox, deployment, database):
    early = to_table(trades("2026-03-03"))
    late = to_table(queries.trades("BHP", start="2026-03-05", end="2026-03-06"))

    with pytest.raises(OpenmarketsError, match="the time between them is not loaded") as caught:
        load_beside(deployment, late, "late", early)
    assert caught.value.transient
    # Airflow's retry.
    deployment.run(late, "late")
    assert in_table(database) == pulled(trades("2026-03-06"))


def test_a_first_load_that_ends_after_a_later_one_moves_no_watermark(openmarkets_sandbox, deployment, database):
    early = to_table(trades("2026-03-03"))
    late = to_table(queries.trades("BHP", start="2026-03-05", end="2026-03-06"))

    with pytest.raises(OpenmarketsError, match="the time between them is not loaded"):
        load_beside(deployment, early, "early", late)
    with pytest.raises(AirflowFailException, match="is before 2026-03-04T13:00:00"):
        deployment.run(early, "early")


def interval(first: int, last: int) -> dict[str, datetime]:
    """Return the data interval of a run: days of March, both at the exchange's midnight."""
    start, end = (datetime(2026, 3, day, tzinfo=ZoneInfo("Australia/Sydney")) for day in (first, last))
    return {"data_interval_start": start, "data_interval_end": end}


def test_a_backfill_loads_its_own_interval_and_leaves_the_watermark_alone(
    openmarkets_sandbox, deployment, database, lake
):
    for task in (to_files(lake, trades("2026-03-05")), to_table(trades("2026-03-05"))):
        deployment.run(task, "first")
    before = {name: dict(store.values) for name, store in deployment.assets.items()}
    first = to_files(lake, trades("2026-03-05")), to_table(trades("2026-03-05"))
    for days, rendered in (
        (interval(3, 4), "2026-03-09"),
        (interval(2, 3), "2026-02-01"),
        (interval(9, 10), "2026-03-09"),
    ):
        asked = pulled(queries.trades("BHP", start=days["data_interval_start"], end=days["data_interval_end"]))
        for task in first:
            task.query = {**task.query, "end": rendered}
            assert deployment.run(task, "past", "backfill", **days)["rows"] == len(asked) > 0
    assert {name: store.values for name, store in deployment.assets.items()} == before
    everything = pulled(trades("2026-03-05")) + asked
    assert landed(lake) == in_table(database) == everything


def test_a_backfill_within_a_partition_writes_all_of_it(openmarkets_sandbox, deployment, lake):
    query = queries.trades("BHP", start="2026-03-01", end="2026-03-06")
    deployment.run(to_files(lake, query, partition="month"), "first")
    deployment.run(to_files(lake, query, partition="month"), "past", "backfill", **interval(2, 3))
    assert landed(lake) == pulled(query)


@pytest.mark.parametrize("days", [{}, interval(3, 3)], ids=["none", "empty"])
def test_a_backfill_without_an_interval_is_refused(openmarkets_sandbox, deployment, lake, days):
    with pytest.raises(AirflowFailException, match=r"data interval of its run.*CronDataIntervalTimetable"):
        deployment.run(to_files(lake, trades("2026-03-04")), "first", "backfill", **days)
    assert openmarkets_sandbox.stats()["by_path"] == {}


def test_a_run_with_a_partition_key_is_refused(openmarkets_sandbox, deployment, lake):
    with pytest.raises(AirflowFailException, match=r"already has a range.*session=\"\{\{ partition_key \}\}\""):
        deployment.run(to_files(lake, trades("2026-03-04")), "run", partition_key="2026-03-03")
    assert openmarkets_sandbox.stats()["by_path"] == {}
    # As Airflow gives it to other runs.
    assert deployment.run(to_files(lake, trades("2026-03-04")), "run", partition_key=None)["rows"] > 0


class TestFullRefresh:
    def test_it_loads_the_whole_range_and_later_loads_go_on_from_there(
        self, openmarkets_sandbox, deployment, database, lake
    ):
        query = trades("2026-03-05")
        for make in (lambda **more: to_files(lake, query, **more), lambda **more: to_table(query, **more)):
            whole = deployment.run(make(), "first")
            refreshed = deployment.run(make(full_refresh="True"), "second")
            assert refreshed["range"] == whole["range"]
            assert refreshed["rows"] == whole["rows"]
            with pytest.raises(AirflowSkipException):
                deployment.run(make(full_refresh="False"), "third")
        assert landed(lake) == in_table(database) == pulled(query)

    def test_what_is_gone_is_loaded_anew(self, openmarkets_sandbox, deployment, lake):
        deployment.run(to_files(lake, trades("2026-03-04")), "first")
        for path in lake.glob("*/*"):
            path.unlink()
        task = to_files(lake, trades("2026-03-05"), full_refresh="{{ params.full_refresh }}")
        assert "full_refresh" in task.template_fields
        task.full_refresh = "True"
        deployment.run(task, "second")
        assert landed(lake) == pulled(trades("2026-03-05"))

    def test_files_of_another_query_must_not_stay(self, openmarkets_sandbox, deployment, lake):
        deployment.run(to_files(lake, trades("2026-03-04")), "first")
        renamed = to_files(lake, trades("2026-03-04"), task_id="renamed", full_refresh=True)
        assert deployment.run(renamed, "second")["rows"] > 0
        other = to_files(lake, trades("2026-03-04", ["CBA"]), task_id="renamed", full_refresh=True)
        with pytest.raises(AirflowFailException, match=r"full_refresh: .* Empty it first"):
            deployment.run(other, "third")
        for path in lake.glob("*/*"):
            path.unlink()
        deployment.run(other, "third")
        assert landed(lake) == pulled(trades("2026-03-04", ["CBA"]))

    def test_only_true_and_false_are_taken(self, openmarkets_sandbox, deployment, lake, tmp_path):
        with pytest.raises(AirflowFailException, match="full_refresh must be true or false, not 'maybe'"):
            deployment.run(to_files(lake, trades("2026-03-04"), full_refresh="maybe"), "first")
        with pytest.raises(ValueError, match="full_refresh can only be set with incremental=True"):
            OpenmarketsToObjectStorageOperator(
                task_id="files", query=trades("2026-03-04"), destination=str(tmp_path / "x.parquet"), full_refresh=True
            )


@pytest.mark.parametrize("version", ["3.2.1", "2.11.2"])
def test_before_airflow_3_3_it_is_an_error_that_says_what_to_do(monkeypatch, lake, version):
    monkeypatch.setattr(airflow, "__version__", version)
    with pytest.raises(ValueError, match=rf"needs Airflow 3\.3 or later.*this is {version}.*data_interval_start"):
        to_files(lake, trades("2026-03-04"))


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: to_table(queries.quotes("BHP")), OpenmarketsQueryError, "needs a query with a range"),
        (lambda: to_files(Path("/lake"), queries.request("oms", "GET", "x")), OpenmarketsQueryError, "range"),
        (lambda: to_table(trades("2026-03-04"), overlap=timedelta(-1)), ValueError, "overlap must be"),
        (lambda: to_table(trades("2026-03-04"), overlap=5), ValueError, "overlap must be"),
        (lambda: to_table(trades("2026-03-04"), mode="append"), ValueError, "append"),
        (
            lambda: to_table(queries.time_series("BHP", start="2026-03-02", end="2026-03-04", adjusted=True)),
            OpenmarketsQueryError,
            "adjusted can't be used with incremental",
        ),
        (
            lambda: to_files(Path("/lake/{{ params.where }}"), trades("2026-03-04"), max_active_tis_per_dag=2),
            ValueError,
            "max_active_tis_per_dag",
        ),
        (lambda: to_files(Path("/{{ params.where }}"), trades("2026-03-04")), ValueError, r"outlets=\[Asset"),
    ],
    ids=["quotes", "request", "negative", "number", "append", "adjusted", "at once", "no asset"],
)
def test_what_can_not_be_incremental_is_refused_while_the_dag_is_parsed(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_without_partitions_it_is_refused_while_the_dag_is_parsed(tmp_path):
    with pytest.raises(ValueError, match="partition"):
        OpenmarketsToObjectStorageOperator(
            task_id="files", query=trades("2026-03-04"), destination=str(tmp_path / "x.parquet"), incremental=True
        )


def test_loads_of_one_folder_wait_for_each_other(lake):
    assert to_files(lake, trades("2026-03-04")).max_active_tis_per_dag == 1
    assert to_table(trades("2026-03-04")).max_active_tis_per_dag is None


@pytest.mark.parametrize(
    ("of_dag", "of_task", "allowed"),
    [({}, {}, False), ({"max_active_runs": 1}, {}, True), ({}, {"max_active_tis_per_dag": 1}, True)],
    ids=["neither", "runs", "tasks"],
)
def test_mapped_loads_of_a_folder_must_not_run_at_once(openmarkets_sandbox, deployment, lake, of_dag, of_task, allowed):
    with DAG("etl", schedule=None, **of_dag) as dag:
        mapped = OpenmarketsToObjectStorageOperator.partial(
            task_id="files", partition="day", incremental=True, outlets=[Asset("lake")], **of_task
        ).expand_kwargs([{"query": trades("2026-03-03"), "destination": str(lake)}])
    task = mapped.unmap({"query": trades("2026-03-03"), "destination": str(lake)})
    # As in Airflow: the DAG of the context has the mapped operator.
    task.dag = dag
    if allowed:
        deployment.run(task, "first")
        assert landed(lake) == pulled(trades("2026-03-03"))
    else:
        with pytest.raises(AirflowFailException, match=r"max_active_tis_per_dag=1 in \.partial\(\)"):
            deployment.run(task, "first")
