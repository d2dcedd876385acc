"""The transfer into a Delta table, as a task, on a disk and in S3."""

from __future__ import annotations

import signal
import threading
from typing import Any

import polars as pl
import pytest

from openmarkets_provider import queries
from openmarkets_provider.exceptions import OpenmarketsConfigurationError, OpenmarketsQueryError
from openmarkets_provider.transfers.openmarkets_to_delta import OpenmarketsToDeltaOperator
from tests.support.context import context
from tests.support.lake_process import PATIENCE, loads
from tests.support.s3_server import KEY, SECRET, S3Server

WEEK = {"start": "2026-03-02", "end": "2026-03-07"}
BARS = queries.time_series(["BHP", "CBA"], **WEEK)
LONGER = queries.time_series(["BHP", "CBA"], start="2026-03-02", end="2026-03-10")
IN_S3 = {"destination": "s3://bucket/lake/bars", "conn_id": "landing_s3"}


def to_delta(query: queries.Query = BARS, **kwargs: Any) -> OpenmarketsToDeltaOperator:
    return OpenmarketsToDeltaOperator(task_id="load", query=query, **kwargs)


def options(s3: S3Server) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": s3.url,
        "AWS_ALLOW_HTTP": "true",
    }


def rows_in_s3(s3: S3Server) -> list[tuple[Any, ...]]:
    table = pl.read_delta(IN_S3["destination"], storage_options=options(s3))
    return sorted(table.select("security_code", "time_series_date").rows())


class TestOnADisk:
    def test_a_task_says_what_it_has_loaded(self, openmarkets_sandbox, tmp_path):
        folder = str(tmp_path / "bars")
        where = context()
        task = to_delta(destination=f"file://{folder}", partition="month")
        expected = {
            "destination": folder,
            "rows": 10,
            "bytes": None,
            "files": [],
            "range": WEEK,
            "skipped": [],
        }
        assert task.execute(where) == expected
        assert [asset.uri for asset in task.outlets] == [f"file://{folder}"]
        ((_, event),) = where["outlet_events"].items()
        assert event.extra["rows"] == 10
        assert len(pl.read_delta(folder)) == 10

    def test_a_task_instance_that_runs_again_replaces_what_it_has_appended(self, openmarkets_sandbox, tmp_path):
        for run_id in ("one", "two", "two"):
            task = to_delta(queries.quotes("BHP"), destination=str(tmp_path), mode="append")
            task.execute(context(run_id))
        loads = pl.read_delta(str(tmp_path))["load_id"].to_list()
        assert sorted(loads) == ["dag/one/load/-1", "dag/two/load/-1"]


def test_many_loads_at_once_give_each_row_once(openmarkets_sandbox, tmp_path):
    def some(*codes: str) -> list[dict[str, Any]]:
        return [{"query": queries.time_series(codes, **WEEK), "destination": str(tmp_path / "bars")}] * 5

    with (
        loads(OpenmarketsToDeltaOperator, *some("BHP", "CBA")) as one,
        loads(OpenmarketsToDeltaOperator, *some("CBA", "RIO")) as other,
    ):
        one.join(PATIENCE)
        other.join(PATIENCE)
    assert (one.exitcode, other.exitcode) == (0, 0)
    keys = pl.read_delta(str(tmp_path / "bars")).select("security_code", "time_series_date").rows()
    assert len(keys) == len(set(keys)) == 15


class TestInS3:
    def test_the_connection_leads_there(self, openmarkets_sandbox, s3):
        for conn_id, destination in (
            ("landing_s3", "s3://bucket/lake/bars"),
            (None, "s3://landing_s3@bucket/lake/bars"),
        ):
            assert to_delta(destination=destination, conn_id=conn_id).execute(context())["rows"] == 10
        assert len(rows_in_s3(s3)) == 10

    def test_two_commits_at_once_give_each_row_once(self, openmarkets_sandbox, s3):
        to_delta(**IN_S3).execute(context())
        hold = s3.hold(r"PUT .*_delta_log/0+2\.json")
        first = threading.Thread(target=lambda: to_delta(**IN_S3).execute(context("first")))
        first.start()
        assert hold.reached.wait(PATIENCE)
        to_delta(**IN_S3).execute(context("second"))
        hold.release()
        first.join(PATIENCE)
        assert not first.is_alive()
        assert len(set(rows_in_s3(s3))) == len(rows_in_s3(s3)) == 10
        log = [f"lake/bars/_delta_log/{version:020}.json" for version in range(4)]
        assert sorted(each for each in set(s3.keys()) if each.endswith(".json")) == log

    def test_a_task_that_is_killed_before_it_commits_has_changed_nothing(self, openmarkets_sandbox, s3):
        to_delta(**IN_S3).execute(context())
        before, files = rows_in_s3(s3), set(s3.keys())
        hold = s3.hold(r"PUT .*_delta_log/0+2\.json")
        with loads(OpenmarketsToDeltaOperator, {"query": LONGER, **IN_S3}) as process:
            assert hold.reached.wait(PATIENCE)
        hold.drop()
        assert len(set(s3.keys()) - files) == 1
        assert rows_in_s3(s3) == before
        to_delta(LONGER, **IN_S3).execute(context())
        assert len(rows_in_s3(s3)) == 12
        assert process.exitcode == -signal.SIGKILL

    def test_no_credentials_in_what_is_said(self, openmarkets_sandbox, s3, caplog):
        s3.fail(r"PUT .*_delta_log/0+1\.json", 403, "AccessDenied", times=100)
        with pytest.raises(Exception, match="Cannot write s3://bucket/lake/bars") as caught:
            to_delta(**IN_S3).execute(context())
        assert SECRET not in f"{caught.value}{caplog.text}"

    def test_a_connection_that_is_missing(self, openmarkets_sandbox):
        with pytest.raises(Exception, match="nowhere"):
            to_delta(destination="s3://bucket/bars", conn_id="nowhere").execute(context())
        assert openmarkets_sandbox.stats()["by_path"] == {}


@pytest.mark.parametrize(
    ("kwargs", "kind", "problem"),
    [
        ({"destination": "lake/bars"}, OpenmarketsConfigurationError, "is not absolute"),
        ({"destination": "gs://bucket/bars"}, OpenmarketsConfigurationError, "is not on a disk or in S3"),
        ({"mode": "merge"}, ValueError, "mode must be one of"),
        ({"partition": "week"}, ValueError, "partition must be None or one of day, month, year, not 'week'"),
        ({"mode": "append", "incremental": True}, ValueError, "can't be used with incremental"),
        ({"query": queries.quotes("BHP")}, OpenmarketsQueryError, "needs a query with a range"),
    ],
)
def test_what_is_refused_while_the_dag_is_parsed(kwargs, kind, problem):
    with pytest.raises(kind, match=problem):
        to_delta(**{"destination": "/lake/bars"} | kwargs)


def test_a_template_is_read_when_it_is_rendered(openmarkets_sandbox, tmp_path):
    task = to_delta(destination="{{ params.lake }}/bars")
    assert task.outlets == []
    task.destination = "relative/bars"
    with pytest.raises(Exception, match="is not absolute"):
        task.execute(context())
