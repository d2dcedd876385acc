"""Files in Google Cloud Storage and in Azure, by their own libraries, against emulators: ``nox -s stores``.

S3 has tests of its own: its server is in every environment.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from openmarkets_provider import queries
from openmarkets_provider.exceptions import OpenmarketsError
from openmarkets_provider.landing.places import CHUNK
from openmarkets_provider.transfers.openmarkets_to_object_storage import OpenmarketsToObjectStorageOperator
from tests.support.context import context
from tests.support.object_stores import CONTAINER, Azure, Gcs, azure, gcs
from tests.support.s3_server import closed_port

pytestmark = pytest.mark.skipif("AZURITE" not in os.environ, reason="nox -s stores installs what this needs")

BARS = queries.time_series(["BHP", "CBA"], start="2026-03-02", end="2026-03-05")
DAYS = [f"exchange_date=2026-03-0{day}" for day in (2, 3, 4)]


@pytest.fixture(scope="module", params=[gcs, azure])
def server(request) -> Iterator[Any]:
    with request.param() as server:
        yield server


@pytest.fixture
def store(server, monkeypatch) -> Any:
    monkeypatch.setenv(f"AIRFLOW_CONN_STORE_{server.scheme.upper()}", server.connection_json)
    for path in server.fs.find(CONTAINER):
        server.fs.rm_file(path)
    return server


def url(store: Any, path: str) -> str:
    return f"{store.scheme}://store_{store.scheme}@{CONTAINER}/{path}"


def land(store: Any, path: str, **arguments: Any) -> dict[str, Any]:
    arguments = {"query": BARS, "destination": url(store, path), "format": "csv", **arguments}
    return OpenmarketsToObjectStorageOperator(task_id="land", **arguments).execute(context())


def test_one_object_that_is_replaced(openmarkets_sandbox, store):
    for _ in range(2):
        assert land(store, "bars/x.csv")["rows"] == 6
    content = store.fs.cat_file(f"{CONTAINER}/bars/x.csv")
    assert content.count(b"\n") == 7
    assert store.properties(f"{CONTAINER}/bars/x.csv")["type"] == "text/csv"


def test_partitions_of_which_one_loses_its_rows(openmarkets_sandbox, store):
    store.fs.pipe_file(f"{CONTAINER}/bars/exchange_date=2026-03-07/part-0.csv", b"old")
    land(store, "bars", partition="day", query={**BARS, "end": "2026-03-09"})
    found = [path.split("/")[2] for path in store.fs.find(f"{CONTAINER}/bars")]
    assert found == [*DAYS, "exchange_date=2026-03-05", "exchange_date=2026-03-06"]


@pytest.mark.parametrize("mode", ["error", "skip"])
def test_what_is_there_stays(openmarkets_sandbox, store, mode):
    store.fs.pipe_file(f"{CONTAINER}/x.csv", b"old")
    if mode == "skip":
        assert land(store, "x.csv", if_exists=mode)["files"] == []
    else:
        with pytest.raises(Exception, match=r"x\.csv already exists"):
            land(store, "x.csv", if_exists=mode)
    assert store.fs.cat_file(f"{CONTAINER}/x.csv") == b"old"


def test_a_new_file_keeps_rows_of_securities_that_are_left_out(openmarkets_sandbox, store):
    both = {**BARS, "on_invalid": "warn"}
    land(store, "bars", partition="day", query=both)
    openmarkets_sandbox.fault(target="/market-data/pricing/timeseries/CBA", kind="status", status=404, times=None)
    land(store, "bars", partition="day", query=both)
    text = store.fs.cat_file(f"{CONTAINER}/bars/{DAYS[0]}/part-0.csv").decode()
    assert [line.split(",")[0] for line in text.splitlines()[1:]] == ["BHP", "CBA"]


@pytest.mark.parametrize("records", [1, 2 * CHUNK])
def test_an_object_has_its_properties_whether_it_is_small_or_sent_in_parts(openmarkets_sandbox, store, records):
    body = [{"text": "x" * records}]
    openmarkets_sandbox.fault(target="oms", kind="body", body=body, times=None)
    query = queries.request("oms", "GET", "accounts/v1")
    result = land(store, "x.jsonl", query=query, format="jsonl", object_options=store.options)
    content = store.fs.cat_file(f"{CONTAINER}/x.jsonl")
    assert result["bytes"] == len(content) > records
    assert store.properties(f"{CONTAINER}/x.jsonl") == {
        "type": "application/x-ndjson",
        "tags": {"team": "data"},
        "cache": "no-cache",
    }


@pytest.mark.parametrize("kind", [Gcs, Azure])
def test_a_store_that_is_out_of_reach_fails_within_ten_seconds(openmarkets_sandbox, monkeypatch, kind):
    gone = kind(closed_port())
    # Another connection: Airflow keeps a connection's file system as long as the process lives.
    monkeypatch.setenv("AIRFLOW_CONN_GONE", gone.connection_json)
    started = time.monotonic()
    with pytest.raises(OpenmarketsError, match=f"Cannot reach the bucket {CONTAINER}") as error:
        land(gone, "x.csv", destination=f"{gone.scheme}://gone@{CONTAINER}/x.csv")
    assert time.monotonic() - started < 15
    assert error.value.transient
    assert openmarkets_sandbox.stats()["by_path"] == {}


def test_a_container_that_is_missing_is_told(openmarkets_sandbox, store):
    with pytest.raises(Exception, match="Bucket 'nowhere' does not exist"):
        land(store, "", destination=url(store, "x.csv").replace(CONTAINER, "nowhere"))
    assert openmarkets_sandbox.stats()["by_path"] == {}
