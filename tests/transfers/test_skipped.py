"""What ``on_invalid="warn"`` leaves out of a load: where it is listed, what stays, and how it comes back."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException

from openmarkets_provider import queries
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
from openmarkets_provider.landing.skipped import MAX_ADDED
from openmarkets_provider.sandbox.server import SandboxServer
from openmarkets_provider.transfers.openmarkets_to_object_storage import OpenmarketsToObjectStorageOperator
from openmarkets_provider.transfers.openmarkets_to_sql import OpenmarketsToSqlOperator
from tests.support.context import context
from tests.support.databases import Database, PostgresDatabase, SqliteDatabase
from tests.support.deployment import Deployment

CBA = "CBA.ASX@TM"
INFORMATION = "/market-data/securities/information"
PRICED = {"securityCode": "BHP", "exchange": "ASX", "priceMultiplier": 0.01}
UNPRICED = {"securityCode": "CBA", "exchange": "ASX"}

Load = Callable[..., dict[str, Any]]


def hide(sandbox: SandboxServer, how: str = "404") -> None:
    """Make CBA a security that is left out, until the sandbox is reset."""
    pricing = [f"/market-data/pricing/{kind}/{CBA}" for kind in ("trades", "timeseries")]
    if how == "404":
        for target in pricing:
            sandbox.fault(target=target, kind="status", status=404, times=None)
        return
    records = [PRICED, UNPRICED] if how == "unpriced" else [PRICED]
    sandbox.fault(target=INFORMATION, kind="body", body=records, times=None)
    if how == "nothing":
        for target in pricing:
            sandbox.fault(target=target, kind="body", body=[], times=None)


def trades(end: str, start: str = "2026-03-02", **kwargs: Any) -> queries.Query:
    return queries.trades(["BHP", "CBA"], start=start, end=end, **{"on_invalid": "warn"} | kwargs)


def bars(end: str, start: str = "2026-03-02", **kwargs: Any) -> queries.Query:
    return queries.time_series(["BHP", "CBA"], start=start, end=end, **{"on_invalid": "warn"} | kwargs)


class Destination:
    """A folder or a table that is loaded incrementally."""

    def __init__(self, deployment: Deployment, folder: Path | None, database: Database | None) -> None:
        self.deployment = deployment
        self._folder = folder
        self._database = database

    def load(self, query: queries.Query, run_id: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Load in a separate run, unless one is named."""
        shared: Any = {"task_id": "load", "query": query, "incremental": True}
        with DAG("etl", schedule=None):
            task: Any = (
                OpenmarketsToObjectStorageOperator(
                    **shared, destination=str(self._folder), **{"partition": "day"} | kwargs
                )
                if self._folder
                else OpenmarketsToSqlOperator(**shared, table="landed", conn_id="db")
            )
        return self.deployment.run(task, run_id or str(query["end"]))

    def rows(self, *names: str) -> list[tuple[Any, ...]]:
        """Return some columns of all rows, in order."""
        if self._database:
            found = self._database.execute(f"SELECT {', '.join(names)} FROM landed")
            return sorted(tuple(str(value) for value in row) for row in found)
        assert self._folder
        tables = [pq.read_table(path).to_pylist() for path in self._folder.glob("*/*")]
        return sorted(tuple(str(row[name]) for name in names) for rows in tables for row in rows)

    def state(self) -> dict[str, Any]:
        (store,) = self.deployment.assets.values()
        (state,) = (value for value in store.values.values() if "watermark" in value)
        return state


@pytest.fixture(params=["files", "sqlite", "postgres"])
def destination(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Destination:
    if request.param == "files":
        return Destination(Deployment(), tmp_path / "lake", None)
    made = SqliteDatabase(tmp_path / "test.db") if request.param == "sqlite" else None
    database: Database = made or PostgresDatabase(request.getfixturevalue("postgres"))
    monkeypatch.setenv("AIRFLOW_CONN_DB", database.airflow_connection)
    return Destination(Deployment(), None, database)


TRADE = ("security_code", "trade_number")
BAR = ("security_code", "time_series_date")


def expected(query: queries.Query, names: tuple[str, ...]) -> list[tuple[str, ...]]:
    return sorted(tuple(str(row[name]) for name in names) for row in OpenmarketsHook().run(query))


@pytest.mark.parametrize("how", ["404", "nothing", "unpriced"])
def test_what_is_skipped_comes_with_the_load_in_which_the_api_knows_it_again(openmarkets_sandbox, destination, how):
    hide(openmarkets_sandbox, how)
    for end in ("2026-03-04", "2026-03-05"):
        assert destination.load(trades(end))["skipped"] == [CBA]
        assert destination.state()["skipped"] == {CBA: "2026-03-01T13:00:00+00:00"}
    (event,) = destination.deployment.events.values()
    assert event.extra["skipped"] == [CBA]
    assert destination.rows(*TRADE) == expected(queries.trades("BHP", start="2026-03-02", end="2026-03-05"), TRADE)

    openmarkets_sandbox.reset()
    result = destination.load(trades("2026-03-06"))
    assert (result["skipped"], destination.state()["skipped"], event.extra["skipped"]) == ([], {}, [])
    # The range of the event starts with the added rows.
    assert event.extra["range"] == {"start": "2026-03-01T13:00:00+00:00", "end": "2026-03-05T13:00:00+00:00"}
    assert destination.rows(*TRADE) == expected(trades("2026-03-06"), TRADE)
    assert len(result["files"]) == len(set(result["files"]))


def test_only_what_was_skipped_is_asked_for_again(openmarkets_sandbox, destination):
    hide(openmarkets_sandbox)
    for end in ("2026-03-04", "2026-03-05"):
        destination.load(trades(end))
    openmarkets_sandbox.reset()
    destination.load(trades("2026-03-06"))
    calls = openmarkets_sandbox.stats()["by_path"]
    # A call for each day: of the last one and the overlap's, and for CBA of the two before.
    assert {path[-13:-3]: count for path, count in calls.items() if "/pricing/trades/" in path} == {
        "BHP.ASX@TM": 2,
        CBA: 4,
    }


def test_a_day_without_rows_of_what_was_skipped_keeps_those_of_the_others(openmarkets_sandbox, destination):
    hide(openmarkets_sandbox)
    destination.load(trades("2026-03-04"))
    openmarkets_sandbox.reset()
    # The load itself makes two calls.
    openmarkets_sandbox.fault(target=f"/market-data/pricing/trades/{CBA}", kind="body", body=[], after=2)
    destination.load(trades("2026-03-05"))
    shown = [row for row in destination.rows(*TRADE) if row[0] == "BHP"]
    assert shown == expected(queries.trades("BHP", start="2026-03-02", end="2026-03-05"), TRADE)


@pytest.mark.parametrize("end", ["2026-03-05", "2026-03-06"], ids=["retried", "later"])
def test_a_load_that_fails_while_it_adds_what_was_skipped_adds_it_when_it_is_repeated(
    openmarkets_sandbox, destination, end
):
    hide(openmarkets_sandbox)
    destination.load(trades("2026-03-04"))
    openmarkets_sandbox.reset()
    # The load itself makes two calls.
    target = f"/market-data/pricing/trades/{CBA}"
    openmarkets_sandbox.fault(target=target, kind="status", status=400, after=2)
    with pytest.raises(AirflowFailException):
        destination.load(trades("2026-03-05"))
    assert destination.state()["skipped"] == {CBA: "2026-03-01T13:00:00+00:00"}
    assert destination.state()["watermark"] == "2026-03-04T13:00:00+00:00"
    assert destination.load(trades(end))["skipped"] == []
    assert destination.rows(*TRADE) == expected(trades(end), TRADE)


def test_a_cleared_run_completes_what_it_has_left_out(openmarkets_sandbox, destination):
    hide(openmarkets_sandbox)
    for end in ("2026-03-04", "2026-03-05", "2026-03-06"):
        destination.load(trades(end))
    openmarkets_sandbox.reset()
    destination.load(trades("2026-03-04"))
    assert destination.state()["skipped"] == {}
    assert destination.rows(*TRADE) == expected(trades("2026-03-06"), TRADE)


def test_a_cleared_run_takes_no_row_away_of_what_the_api_knew(openmarkets_sandbox, destination):
    for end in ("2026-03-04", "2026-03-05"):
        destination.load(trades(end))
    hide(openmarkets_sandbox)
    assert destination.load(trades("2026-03-04"))["skipped"] == [CBA]
    assert destination.load(trades("2026-03-06"))["skipped"] == [CBA]
    day = queries.trades("BHP", start="2026-03-05", end="2026-03-06")
    assert destination.state()["skipped"] == {CBA: "2026-03-01T13:00:00+00:00"}
    shown = destination.rows(*TRADE)
    openmarkets_sandbox.reset()
    assert shown == sorted(expected(trades("2026-03-05"), TRADE) + expected(day, TRADE))
    destination.load(trades("2026-03-07"))
    assert destination.rows(*TRADE) == expected(trades("2026-03-07"), TRADE)


@pytest.mark.parametrize("form", [{"format": "parquet"}, {"format": "csv", "compression": "gzip"}, {"format": "jsonl"}])
def test_a_partition_that_is_replaced_keeps_the_rows_of_what_is_skipped(openmarkets_sandbox, tmp_path, form):
    lake = Destination(Deployment(), tmp_path / "lake", None)
    form |= {"partition": "month"}
    lake.load(bars("2026-03-05"), **form)

    def content() -> str:
        (path,) = (tmp_path / "lake").glob("*/*")
        if form["format"] == "parquet":
            return "\n".join(
                f"{row['security_code']} {row['time_series_date']}" for row in pq.read_table(path).to_pylist()
            )
        import gzip

        return (gzip.decompress(path.read_bytes()) if "compression" in form else path.read_bytes()).decode()

    hide(openmarkets_sandbox)
    assert lake.load(bars("2026-03-10"), **form)["skipped"] == [CBA]
    assert (content().count("CBA"), content().count("BHP")) == (3, 6)
    openmarkets_sandbox.reset()
    assert lake.load(bars("2026-03-11"), **form)["skipped"] == []
    assert (content().count("CBA"), content().count("BHP")) == (7, 7)


def test_a_past_that_is_too_long_for_one_load_comes_with_several(openmarkets_sandbox, destination):
    start, end = date(2023, 1, 2), date(2026, 3, 2)

    def load(day: int, **kwargs: Any) -> dict[str, Any]:
        return destination.load(bars(str(end + day * timedelta(days=1)), str(start)), partition="month")

    hide(openmarkets_sandbox)
    load(0)
    openmarkets_sandbox.reset()
    loads = 0
    while load(loads + 1)["skipped"]:
        loads += 1
        assert date.fromisoformat(destination.state()["skipped"][CBA]) - start >= loads * MAX_ADDED
    # Of files with whole months.
    assert 1 < loads <= (end - start) // MAX_ADDED
    query = bars(str(end + (loads + 1) * timedelta(days=1)), str(start))
    assert destination.rows(*BAR) == expected(query, BAR)


def test_what_the_exchange_lists_no_longer_leaves_the_list(openmarkets_sandbox, destination, caplog):
    listed = [{"securityCode": code, "exchange": "ASX"} for code in ("BHP", "CBA")]

    def load(end: str, codes: int) -> dict[str, Any]:
        openmarkets_sandbox.reset()
        hide(openmarkets_sandbox)
        openmarkets_sandbox.fault(target="/market-data/securities/v1", kind="body", body=listed[:codes], times=None)
        query = queries.time_series(exchange="ASX", start="2026-03-02", end=end, on_invalid="warn")
        return destination.load(query)

    assert load("2026-03-04", 2)["skipped"] == [CBA]
    assert load("2026-03-05", 1)["skipped"] == []
    assert f"the query no longer names ['{CBA}']" in caplog.text
    assert destination.state()["skipped"] == {}


def test_a_load_that_leaves_out_nothing_may_leave_out_something_later(openmarkets_sandbox, destination):
    destination.load(trades("2026-03-04", on_invalid="error"))
    hide(openmarkets_sandbox)
    with pytest.raises(AirflowFailException, match="404"):
        destination.load(trades("2026-03-05", on_invalid="error"))
    assert destination.load(trades("2026-03-05"))["skipped"] == [CBA]
    openmarkets_sandbox.reset()
    assert destination.load(trades("2026-03-06", on_invalid="error"))["skipped"] == []
    assert destination.rows(*TRADE) == expected(trades("2026-03-06"), TRADE)


def test_a_load_that_leaves_out_everything_fails_and_changes_nothing(openmarkets_sandbox, destination):
    destination.load(trades("2026-03-04"))
    before = destination.rows(*TRADE)
    openmarkets_sandbox.fault(target="/market-data/pricing", kind="status", status=404, times=None)
    with pytest.raises(AirflowFailException, match="knows none of the 2 securities"):
        destination.load(trades("2026-03-05"))
    assert destination.rows(*TRADE) == before
    assert destination.state()["watermark"] == "2026-03-03T13:00:00+00:00"


class TestReplacingARange:
    def load(self, query: queries.Query, **kwargs: Any) -> dict[str, Any]:
        task = OpenmarketsToSqlOperator(
            task_id="load", query=query, table="landed", conn_id="db", mode="replace_range", **kwargs
        )
        return task.execute(context())

    @pytest.mark.parametrize("exchange", [False, True])
    def test_rows_of_what_is_skipped_are_not_deleted(self, openmarkets_sandbox, database, exchange):
        week = {"start": "2026-03-02", "end": "2026-03-07", "on_invalid": "warn"}
        listed = [{"securityCode": code, "exchange": "ASX"} for code in ("BHP", "CBA")]
        query = queries.time_series(exchange="ASX", **week) if exchange else queries.time_series("BHP, CBA", **week)
        self.load(bars("2026-03-07"))
        database.execute("UPDATE landed SET time_series_date = '2026-03-01' WHERE time_series_date = '2026-03-02'")
        database.execute("UPDATE landed SET total_volume = 1")
        hide(openmarkets_sandbox)
        openmarkets_sandbox.fault(target="/market-data/securities/v1", kind="body", body=listed, times=None)
        assert self.load(query)["skipped"] == [CBA]
        found = database.execute(
            "SELECT security_code, count(*), sum(CASE total_volume WHEN 1 THEN 1 ELSE 0 END) FROM landed "
            "WHERE time_series_date > '2026-03-01' GROUP BY 1 ORDER BY 1"
        )
        assert found == [("BHP", 5, 0), ("CBA", 4, 4)]


@pytest.mark.parametrize("partition", [None, "day"])
def test_a_load_that_is_not_incremental_lists_what_it_skips(openmarkets_sandbox, tmp_path, partition):
    hide(openmarkets_sandbox)
    place = tmp_path / ("lake" if partition else "bars.parquet")
    task = OpenmarketsToObjectStorageOperator(
        task_id="load", query=bars("2026-03-04"), destination=str(place), partition=partition
    )
    assert task.execute(context())["skipped"] == [CBA]


def test_quotes_that_are_skipped_are_listed(openmarkets_sandbox, database):
    task = OpenmarketsToSqlOperator(
        task_id="load", query=queries.quotes("XX1, BHP, XX2", on_invalid="warn"), table="landed", conn_id="db"
    )
    assert task.execute(context())["skipped"] == ["XX1.ASX@TM", "XX2.ASX@TM"]
