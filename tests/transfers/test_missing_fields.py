"""The API no longer sends a field: a load that refuses this leaves the landed rows unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from openmarkets_provider import queries
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
from openmarkets_provider.transfers.openmarkets_to_object_storage import OpenmarketsToObjectStorageOperator
from openmarkets_provider.transfers.openmarkets_to_sql import OpenmarketsToSqlOperator
from tests.support.context import context
from tests.support.databases import SqliteDatabase
from tests.support.landed import rows_in

MONTH = {"start": "2026-03-01", "end": "2026-04-01"}


def bars(**more: Any) -> queries.Query:
    return queries.time_series(["BHP", "CBA"], **MONTH, **more)


def lose_a_field(sandbox: Any) -> None:
    """Make the API send daily bars without average prices."""
    for code in ("BHP", "CBA"):
        records = OpenmarketsHook().run(queries.time_series(code, **MONTH, raw=True))
        without = [{name: value for name, value in record.items() if name != "marketVwap"} for record in records]
        sandbox.fault(target=f"/market-data/pricing/timeseries/{code}", kind="body", body=without, times=None)


@pytest.mark.parametrize("partition", [None, "month"])
def test_of_files(openmarkets_sandbox, tmp_path: Path, caplog, partition):
    path = tmp_path / ("bars" if partition else "bars.parquet")

    def land(query: queries.Query) -> set[Any]:
        task = OpenmarketsToObjectStorageOperator(
            task_id="land", query=query, destination=str(path), partition=partition
        )
        task.execute(context())
        return set(pq.read_table(path)["market_vwap"].to_pylist())

    before = land(bars())
    assert None not in before
    lose_a_field(openmarkets_sandbox)
    with pytest.raises(AirflowFailException, match="has the fields marketVwap"):
        land(bars(on_missing_field="error"))
    assert set(pq.read_table(path)["market_vwap"].to_pylist()) == before
    assert land(bars()) == {None}
    assert "has the fields marketVwap. Their columns are None." in caplog.text


@pytest.mark.parametrize("mode", ["upsert", "replace_range"])
def test_of_a_table(openmarkets_sandbox, tmp_path: Path, monkeypatch, mode):
    database = SqliteDatabase(tmp_path / "test.db")
    monkeypatch.setenv("AIRFLOW_CONN_DB", database.airflow_connection)

    def load(query: queries.Query) -> None:
        OpenmarketsToSqlOperator(task_id="load", query=query, table="bars", conn_id="db", mode=mode).execute(context())

    load(bars())
    before = rows_in(database, "bars")
    lose_a_field(openmarkets_sandbox)
    with pytest.raises(AirflowFailException, match="has the fields marketVwap"):
        load(bars(on_missing_field="error"))
    assert rows_in(database, "bars") == before
    load(bars())
    assert database.execute("SELECT count(*) FROM bars WHERE market_vwap IS NOT NULL") == [(0,)]
