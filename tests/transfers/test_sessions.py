"""Loads by session: runs with a partition key, and the keys that a load of many sessions emits."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import airflow
import pytest
from airflow.sdk import DAG, Asset
from airflow.sdk.exceptions import AirflowFailException
from airflow.sdk.execution_time.context import OutletEventAccessors

from openmarkets_provider import queries
from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.transfers.openmarkets_to_object_storage import OpenmarketsToObjectStorageOperator
from openmarkets_provider.transfers.openmarkets_to_sql import OpenmarketsToSqlOperator
from tests.support.deployment import Deployment

EASTER = {"start": "2026-04-01", "end": "2026-04-11"}
"""Ten days, of which six are sessions."""
SESSIONS = ["2026-04-01", "2026-04-02", "2026-04-07", "2026-04-08", "2026-04-09", "2026-04-10"]


def to_files(folder: Path, query: Any, **kwargs: Any) -> Any:
    with DAG("etl", schedule=None):
        return OpenmarketsToObjectStorageOperator(
            task_id="files", query=query, destination=str(folder), **{"partition": "day"} | kwargs
        )


def run(task: Any, key: str | None = None) -> tuple[dict[str, Any], Any]:
    """Carry a task out, and return its result and the event of its asset.

    :param key: the partition key of the run.
    """
    events = OutletEventAccessors()
    given = {"partition_key": key, "outlet_events": events}
    context = Deployment().context(task, "run") | given
    if key:
        task.render_template_fields(context)
    return task.execute(context), events[task.outlets[0]]


def files(folder: Path) -> list[str]:
    return sorted(path.parent.name.removeprefix("exchange_date=") for path in folder.glob("*/*"))


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    return tmp_path / "lake"


@pytest.mark.parametrize(
    "query",
    [queries.time_series("BHP", **EASTER), queries.trades("BHP", **EASTER)],
    ids=["dates", "times"],
)
def test_a_load_of_many_sessions_writes_all_partitions_and_emits_all_keys(openmarkets_sandbox, lake, query):
    landed, event = run(to_files(lake, query, emit_partitions=True))
    assert files(lake) == SESSIONS
    assert sorted(event.partition_keys) == SESSIONS
    assert event.extra == {name: landed[name] for name in ("destination", "rows", "bytes", "range", "skipped")}


def test_a_session_without_rows_has_a_key_and_no_file(openmarkets_sandbox, lake):
    path = "/market-data/pricing/timeseries/BHP.ASX@TM/v2"
    run(to_files(lake, queries.time_series("BHP", session="2026-04-02")))
    openmarkets_sandbox.fault(target=path, kind="body", body=[])
    landed, event = run(to_files(lake, queries.time_series("BHP", session="2026-04-02"), emit_partitions=True))
    assert (landed["rows"], landed["files"], files(lake)) == (0, [], [])
    assert event.partition_keys == {"2026-04-02"}


@pytest.mark.parametrize("emit", [False, True])
def test_a_run_with_a_key_writes_the_file_of_its_session_and_no_other(openmarkets_sandbox, lake, emit):
    run(to_files(lake, queries.time_series("BHP", **EASTER)))
    before = {path: path.stat().st_mtime_ns for path in lake.glob("*/*")}
    task = to_files(lake, queries.time_series("BHP", session="{{ partition_key }}"), emit_partitions=emit)
    landed, event = run(task, "2026-04-07")
    after = {path: path.stat().st_mtime_ns for path in lake.glob("*/*")}
    assert [path.parent.name for path in after if after[path] != before[path]] == ["exchange_date=2026-04-07"]
    assert landed["files"] == [f"file://{lake}/exchange_date=2026-04-07/part-0.parquet"]
    assert event.extra["range"] == {"start": "2026-04-07", "end": "2026-04-08"}
    # Airflow adds the key of the run to an event without one.
    assert event.partition_keys == ({"2026-04-07"} if emit else set())


def test_a_load_that_goes_on_after_a_failure_emits_all_keys(openmarkets_sandbox, lake):
    task = to_files(lake, queries.time_series(["BHP", "CBA"], **EASTER), emit_partitions=True)
    openmarkets_sandbox.fault(target="/market-data/pricing/timeseries/CBA.ASX@TM/v2", kind="status", status=400)
    with pytest.raises(AirflowFailException):
        run(task)
    _, event = run(task)
    assert sorted(event.partition_keys) == files(lake) == SESSIONS
    calls = openmarkets_sandbox.stats()["by_path"]
    assert {path: count for path, count in calls.items() if "/timeseries/" in path} == {
        "GET /market-data/pricing/timeseries/BHP.ASX@TM/v2": 1,
        "GET /market-data/pricing/timeseries/CBA.ASX@TM/v2": 2,
    }


def test_every_asset_gets_the_keys_whatever_the_destination(openmarkets_sandbox, tmp_path, monkeypatch):
    connection = {"conn_type": "sqlite", "host": str(tmp_path / "bars.db")}
    monkeypatch.setenv("AIRFLOW_CONN_DB", json.dumps(connection))
    with DAG("etl", schedule=None):
        task = OpenmarketsToSqlOperator(
            task_id="table",
            query=queries.time_series("BHP", **EASTER),
            table="bars",
            conn_id="db",
            emit_partitions=True,
            outlets=[Asset("one"), Asset("two")],
        )
    events = OutletEventAccessors()
    task.execute(Deployment().context(task, "run") | {"outlet_events": events})
    assert [sorted(events[Asset(name)].partition_keys) for name in ("one", "two")] == [SESSIONS, SESSIONS]


def test_sessions_to_come_have_no_key(openmarkets_sandbox, lake, capsys):
    task = to_files(lake, queries.time_series("BHP", start="2034-04-03", end="2034-04-06"), emit_partitions=True)
    _, event = run(task)
    assert event.partition_keys == set()
    assert "emit_partitions: no session from 2034-04-03 to 2034-04-06 has closed" in capsys.readouterr().out


def test_years_that_the_calendar_lacks_are_refused_before_the_first_call(openmarkets_sandbox, lake):
    task = to_files(lake, queries.time_series("BHP", start="1999-01-04", end="2001-01-01"), emit_partitions=True)
    with pytest.raises(AirflowFailException, match="emit_partitions: 1999-01-04 is outside the calendar"):
        run(task)
    assert openmarkets_sandbox.stats()["by_path"] == {}


@pytest.mark.parametrize(
    "query", [queries.quotes("BHP"), queries.request("oms", "GET", "x")], ids=["quotes", "request"]
)
def test_a_query_without_a_range_has_no_sessions(openmarkets_sandbox, lake, query):
    with pytest.raises(OpenmarketsQueryError, match="emit_partitions needs a query with a range"):
        to_files(lake, query, partition=None, emit_partitions=True)
    task = to_files(lake / "x.parquet", "{{ params.query }}", partition=None, emit_partitions=True)
    task.query = query
    with pytest.raises(AirflowFailException, match="emit_partitions needs a query with a range"):
        run(task)


def test_emit_partitions_does_not_go_with_incremental(lake):
    with pytest.raises(ValueError, match="emit_partitions can't be used with incremental"):
        to_files(lake, queries.time_series("BHP", **EASTER), incremental=True, emit_partitions=True)


def test_without_an_asset_there_is_nothing_to_emit():
    query = queries.time_series("BHP", **EASTER)
    with pytest.raises(ValueError, match=r"emit_partitions: the events need an asset.*outlets="):
        to_files(Path("{{ params.lake }}"), query, emit_partitions=True)
    with DAG("etl", schedule=None):
        mapped = OpenmarketsToObjectStorageOperator.partial(task_id="files", partition="day", emit_partitions=True)
        task = mapped.expand_kwargs([{"query": query, "destination": "/lake"}])
    with pytest.raises(ValueError, match="emit_partitions: the events need an asset"):
        task.unmap({"query": query, "destination": "/lake"})


@pytest.mark.parametrize("version", ["3.2.1", "2.11.2"])
def test_before_airflow_3_3_emit_partitions_is_an_error_that_says_what_to_do(monkeypatch, lake, version):
    monkeypatch.setattr(airflow, "__version__", version)
    with pytest.raises(
        ValueError, match=rf"emit_partitions=True needs Airflow 3\.3 or later.*this is {version}. Remove it"
    ):
        to_files(lake, queries.time_series("BHP", **EASTER), emit_partitions=True)


def test_a_session_that_closed_after_its_replies_were_pulled_has_no_key(openmarkets_sandbox, lake):
    task = to_files(lake, queries.time_series(["BHP", "CBA"], **EASTER), emit_partitions=True)
    openmarkets_sandbox.fault(target="/market-data/pricing/timeseries/CBA.ASX@TM/v2", kind="status", status=400)
    with pytest.raises(AirflowFailException):
        run(task)
    (replies,) = Path(os.environ["AIRFLOW__OPENMARKETS__RESUME_FOLDER"]).glob("*/*.replies")
    # The name of the file has the time at which the first attempt began.
    before_close = int(datetime(2026, 4, 10, 6, 9, tzinfo=UTC).timestamp() * 1e9)
    replies.rename(replies.with_name(f"{before_close:019d}{replies.name[19:]}"))
    _, event = run(task)
    assert sorted(event.partition_keys) == SESSIONS[:-1]
