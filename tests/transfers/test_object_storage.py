from __future__ import annotations

import csv
import gzip
import io
import json
import logging
import os
import resource
import sys
import threading
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from airflow.providers.common.compat.sdk import (
    DAG,
    AirflowFailException,
    AirflowNotFoundException,
    Asset,
    ObjectStoragePath,
    TaskDeferred,
    XComArg,
    task_group,
)
from airflow.providers.standard.operators.empty import EmptyOperator

from openmarkets_provider import queries
from openmarkets_provider.exceptions import OpenmarketsError, OpenmarketsQueryError, OpenmarketsServerError
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
from openmarkets_provider.landing.formats import FORMATS
from openmarkets_provider.transfers.openmarkets_to_object_storage import OpenmarketsToObjectStorageOperator
from tests.support.context import context
from tests.support.holds import end_holds
from tests.support.landed import without_loaded_at
from tests.support.queries import Later, of_every_kind

START, END = "2026-03-02", "2026-03-09"
SECURITIES = ["BHP", "CBA", "RIO"]
BARS = queries.time_series(SECURITIES, start=START, end=END)
DAYS = [f"exchange_date=2026-03-0{day}" for day in range(2, 7)]


def transfer(destination: Any, query: Any = BARS, **kwargs: Any) -> OpenmarketsToObjectStorageOperator:
    return OpenmarketsToObjectStorageOperator(task_id="land", query=query, destination=str(destination), **kwargs)


def land(destination: Any, query: Any = BARS, **kwargs: Any) -> dict[str, Any]:
    return transfer(destination, query, **kwargs).execute(context())


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Give an empty folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


class TestOneFile:
    def test_it_returns_what_landed_and_not_the_rows(self, openmarkets_sandbox, here):
        result = land(here / "bars.parquet")
        url = f"file://{here}/bars.parquet"
        assert result == {
            "destination": url,
            "rows": 15,
            "bytes": (here / "bars.parquet").stat().st_size,
            "files": [url],
            "range": {"start": START, "end": END},
            "skipped": [],
        }
        assert json.loads(json.dumps(result)) == result
        assert files(here) == ["bars.parquet"]

    def test_the_rows_of_the_hook_are_in_the_file(self, openmarkets_sandbox, here):
        land(here / "bars.parquet")
        landed = pq.read_table(here / "bars.parquet").to_pylist()
        assert [
            {name: row[name] for name in landed[0] if name not in ("loaded_at", "other_fields")} for row in landed
        ] == OpenmarketsHook().run(BARS)

    @pytest.mark.parametrize("partition", [None, "day"])
    def test_all_rows_of_a_load_have_the_time_at_which_it_began(self, openmarkets_sandbox, here, partition):
        before, times = datetime.now(UTC), []
        for number in range(2):
            name = here / f"{number}" / ("" if partition else "x.parquet")
            land(name, partition=partition)
            landed = [pq.read_table(path).to_pylist() for path in (here / f"{number}").rglob("*.parquet")]
            found = {row["loaded_at"] for rows in landed for row in rows}
            assert len(found) == 1
            times += found
        assert before <= times[0] < times[1] <= datetime.now(UTC)

    def test_the_same_load_gives_the_same_rows(self, openmarkets_sandbox, here):
        for name in ("a.parquet", "b.csv.gz", "c.jsonl.zst"):
            kind = name.split(".")[1]
            land(here / name, format=kind)
            first = without_loaded_at((here / name).read_bytes())
            land(here / name, format=kind)
            assert without_loaded_at((here / name).read_bytes()) == first

    @pytest.mark.parametrize("kind", FORMATS)
    def test_any_query_lands_in_any_format(self, openmarkets_sandbox, here, kind):
        every = of_every_kind(START, "2026-03-03", account="SBX0001", portfolio="SBX0001-P1")
        every["raw"] = queries.quotes(SECURITIES, raw=True)
        every["request"] = queries.request("oms", "GET", "accounts/v1")
        hook = OpenmarketsHook()
        for name, query in every.items():
            result = land(here / f"{name}.{kind}", query, format=kind)
            assert result["rows"] == len(hook.run(query)), name

    def test_no_rows_give_a_file_with_columns(self, openmarkets_sandbox, here):
        weekend = queries.time_series("BHP", start="2026-03-07", end="2026-03-09")
        assert land(here / "x.parquet", weekend)["rows"] == 0
        assert "close_price" in pq.read_table(here / "x.parquet").column_names
        land(here / "x.csv", weekend, format="csv")
        assert (here / "x.csv").read_text().startswith("security_code,exchange,data_source,frequency,time_series_date,")

    def test_a_field_that_is_new_does_not_end_a_load(self, openmarkets_sandbox, here):
        bar = {"timeSeriesDate": START, "openPrice": 1, "closePrice": 2, "newField": {"of": ["the", "API"]}}
        openmarkets_sandbox.fault(target="/market-data/pricing/timeseries/CBA", kind="body", body=[bar])
        for partition in (None, "day"):
            where = here / ("x.csv" if partition is None else "x")
            openmarkets_sandbox.fault(target="/market-data/pricing/timeseries/CBA", kind="body", body=[bar])
            land(where, format="csv", partition=partition)
            text = (where if partition is None else where / DAYS[0] / "part-0.csv").read_text()
            others = {row["security_code"]: row["other_fields"] for row in csv.DictReader(io.StringIO(text))}
            assert json.loads(others["CBA"]) == {"new_field": {"of": ["the", "API"]}}
            assert others["BHP"] == ""

    def test_a_permanent_error_fails_the_task_at_once_and_leaves_the_old_file(self, openmarkets_sandbox, here):
        (here / "x.jsonl").write_text("old")
        with pytest.raises(AirflowFailException, match="404"):
            land(here / "x.jsonl", queries.request("oms", "GET", "nothing/v1"), format="jsonl")
        assert files(here) == ["x.jsonl"]
        assert (here / "x.jsonl").read_text() == "old"

    def test_a_task_that_is_deferred_leaves_nothing_behind(self, openmarkets_sandbox, here):
        openmarkets_sandbox.fault(target="market_data", kind="status", status=429, retry_after=120, after=2)
        task = transfer(here / "x.csv", format="csv", deferrable=True)
        with pytest.raises(TaskDeferred) as deferred:
            task.execute(context())
        assert files(here) == []
        end_holds()
        result = task.resume_execution(deferred.value.method_name, {**deferred.value.kwargs, "event": None}, context())
        assert result["rows"] == 15

    def test_templates_are_rendered_and_checked_again(self, openmarkets_sandbox, here):
        with DAG("dag", schedule=None):
            task = transfer(f"{here}/{{{{ ds }}}}.csv", format="csv", conn_id="{{ params.conn }}")
        task.render_template_fields({"ds": START, "params": {"conn": "ignored_for_local_files"}})
        assert task.execute(context())["files"] == [f"file://{here}/{START}.csv"]
        with DAG("dag2", schedule=None):
            task = transfer("{{ params.where }}/x.parquet")
        task.render_template_fields({"params": {"where": "somewhere"}})
        with pytest.raises(AirflowFailException, match=r"destination: 'somewhere/x.parquet' is not absolute"):
            task.execute(context())
        with DAG("dag3", schedule=None):
            task = transfer("{{ params.where }}")
        task.render_template_fields({"params": {"where": f"{here}/x.csv"}})
        with pytest.raises(AirflowFailException, match=r"ends in \.csv, but format is 'parquet'"):
            task.execute(context())
        assert openmarkets_sandbox.stats()["by_path"].get("POST /market-data/securities/information/v2") == 1

    def test_a_package_that_is_missing_is_named_before_anything_is_pulled(self, openmarkets_sandbox, here, monkeypatch):
        monkeypatch.delitem(sys.modules, "openmarkets_provider.landing.parquet", raising=False)
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(AirflowFailException, match=r"pip install 'airflow-provider-openmarkets\[parquet\]'"):
            land(here / "x.parquet")
        assert openmarkets_sandbox.stats()["by_path"] == {}


class TestPartitions:
    @pytest.mark.parametrize(
        ("by", "start", "end", "names"),
        [
            ("day", START, END, DAYS),
            ("month", "2026-02-01", "2026-04-01", ["exchange_month=2026-02", "exchange_month=2026-03"]),
            ("year", "2025-01-01", "2026-01-01", ["exchange_year=2025"]),
        ],
    )
    def test_daily_bars_land_by_their_date(self, openmarkets_sandbox, here, by, start, end, names):
        query = queries.time_series(SECURITIES, start=start, end=end)
        result = land(here / "bars", query, partition=by)
        assert files(here / "bars") == [f"{name}/part-0.parquet" for name in names]
        assert result["files"] == [f"file://{here}/bars/{name}/part-0.parquet" for name in names]
        assert result["destination"] == f"file://{here}/bars"
        assert result["bytes"] == sum(path.stat().st_size for path in here.rglob("*.parquet"))
        whole = OpenmarketsHook().run(query)
        assert result["rows"] == len(whole)
        for name in names:
            rows = pq.read_table(here / "bars" / name / "part-0.parquet", partitioning=None).to_pylist()
            value = name.partition("=")[2]
            expected = [row for row in whole if row["time_series_date"].isoformat().startswith(value)]
            assert [{name: row[name] for name in expected[0]} for row in rows] == expected

    def test_readers_find_the_partitions(self, openmarkets_sandbox, here):
        land(here / "bars", partition="day")
        dataset = ds.dataset(here / "bars", partitioning="hive")
        assert dataset.count_rows(filter=ds.field("exchange_date") == "2026-03-03") == 3

    @pytest.mark.parametrize("name", ["intraday_time_series", "trades", "order_trades"])
    def test_times_land_by_the_day_at_the_exchange(self, openmarkets_sandbox, here, name):
        """Daylight-saving time ends on 5 April 2026."""
        query = of_every_kind("2026-04-02", "2026-04-08", account="SBX0001")[name]
        whole = OpenmarketsHook().run(query)
        land(here / "x", query, partition="day", format="csv", compression="gzip")
        found = {}
        for path in (here / "x").rglob("*.csv.gz"):
            rows = list(csv.DictReader(io.StringIO(gzip.decompress(path.read_bytes()).decode())))
            found[path.parent.name] = len(rows)
        from zoneinfo import ZoneInfo

        column = "time_series_date_time" if name == "intraday_time_series" else "trade_date_time"
        expected: dict[str, int] = defaultdict(int)
        for row in whole:
            expected[f"exchange_date={row[column].astimezone(ZoneInfo('Australia/Sydney')).date()}"] += 1
        assert found == expected

    def test_what_waits_for_its_partition_need_not_fit_into_memory(self, openmarkets_sandbox, here, monkeypatch):
        land(here / "a", partition="day", format="csv")
        monkeypatch.setattr("openmarkets_provider.landing.spool.MAX_ROWS", 2)
        land(here / "b", partition="day", format="csv")
        assert files(here / "a") == files(here / "b")
        assert [without_loaded_at((here / "a" / name).read_bytes()) for name in files(here / "a")] == [
            without_loaded_at((here / "b" / name).read_bytes()) for name in files(here / "b")
        ]

    def test_a_partition_that_has_no_rows_any_more_loses_its_file(self, openmarkets_sandbox, here):
        for name in ("exchange_date=2026-03-07", "exchange_date=2026-03-09", DAYS[0]):
            (here / name).mkdir()
            (here / name / "part-0.parquet").write_bytes(b"old")
        (here / "exchange_date=2026-03-07/other.parquet").write_bytes(b"of somebody else")
        land(here, partition="day")
        assert files(here) == sorted(
            [
                *(f"{day}/part-0.parquet" for day in DAYS),
                "exchange_date=2026-03-07/other.parquet",
                "exchange_date=2026-03-09/part-0.parquet",
            ]
        )

    def test_no_rows_at_all_write_nothing_and_take_away_what_was_there(self, openmarkets_sandbox, here):
        weekend = queries.time_series("BHP", start="2026-03-07", end="2026-03-09")
        (here / "exchange_date=2026-03-07").mkdir()
        (here / "exchange_date=2026-03-07/part-0.parquet").write_bytes(b"old")
        for _ in range(2):
            result = land(here, weekend, partition="day")
            assert (result["rows"], result["bytes"], result["files"]) == (0, 0, [])
            assert files(here) == []

    @pytest.mark.parametrize(
        ("query", "partition", "problem"),
        [
            (
                queries.time_series("BHP", start="2026-03-02", end="2026-03-09"),
                "month",
                "only part of exchange_month=2026-03",
            ),
            (queries.trades("BHP", start="2026-03-02T00:00Z", end="2026-03-03T00:00Z"), "day", "only part of"),
        ],
    )
    def test_a_range_that_does_not_fit_is_refused_while_the_dag_is_parsed_or_before_anything_is_asked(
        self, openmarkets_sandbox, here, query, partition, problem
    ):
        with pytest.raises(OpenmarketsQueryError, match=problem):
            transfer(here, query, partition=partition)
        task = transfer(here, {**query, "start": "{{ start }}", "end": "{{ end }}"}, partition=partition)
        task.render_template_fields({"start": query["start"], "end": query["end"]})
        with pytest.raises(AirflowFailException, match=problem):
            task.execute(context())
        assert openmarkets_sandbox.stats()["by_path"] == {}

    @pytest.mark.parametrize(
        "query",
        [
            queries.quotes("BHP"),
            queries.request("news", "GET", "announcements"),
            queries.time_series("BHP", start=START, end=END, raw=True),
        ],
    )
    def test_a_query_without_a_time_is_refused_while_the_dag_is_parsed(self, query):
        with pytest.raises(OpenmarketsQueryError, match=r"Remove partition"):
            transfer("/data/x", query, partition="day")

    @pytest.mark.parametrize("on_invalid", ["error", "warn"])
    def test_many_partitions_need_few_open_files(self, openmarkets_sandbox, here, on_invalid):
        query = queries.time_series(["BHP", "CBA"], start="2023-03-02", end="2026-03-02", on_invalid=on_invalid)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        open_now = len(os.listdir("/dev/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 40, limits[1]))
        try:
            result = land(here, query, partition="day", format="csv")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        rows = OpenmarketsHook().run(query)
        assert result["rows"] == len(rows)
        assert len(result["files"]) == len({row["time_series_date"] for row in rows}) > 600
        assert result["files"] == sorted(result["files"])
        assert len(files(here)) == len(result["files"])

    def test_weeks_do_not_go_into_months(self, openmarkets_sandbox, here):
        weekly = queries.time_series("BHP", start="2026-03-01", end="2026-04-01", frequency="Weekly")
        with pytest.raises(OpenmarketsQueryError, match="partition='month': weekly bars need whole weeks"):
            transfer(here, weekly, partition="month")
        assert land(here, weekly, partition="day")["rows"] == len(OpenmarketsHook().run(weekly))


class TestIfExists:
    def test_error_is_raised_before_anything_is_asked(self, openmarkets_sandbox, here):
        (here / "x.csv").write_text("old")
        with pytest.raises(AirflowFailException, match=r"x\.csv already exists, and if_exists is 'error'"):
            land(here / "x.csv", format="csv", if_exists="error")
        (here / "bars" / DAYS[1]).mkdir(parents=True)
        (here / "bars" / DAYS[1] / "part-0.csv").write_text("old")
        with pytest.raises(AirflowFailException, match=f"{DAYS[1]}/part-0.csv already exists"):
            land(here / "bars", format="csv", partition="day", if_exists="error")
        assert openmarkets_sandbox.stats()["by_path"] == {}

    def test_of_a_load_that_may_find_nothing_there_nothing_is_left_when_it_fails(self, openmarkets_sandbox, here):
        # Where the folder of the third partition should be is a file.
        (here / "bars").mkdir()
        (here / "bars" / DAYS[2]).write_text("in the way")
        with pytest.raises(AirflowFailException, match=DAYS[2]):
            land(here / "bars", format="csv", partition="day", if_exists="error")
        assert files(here / "bars") == [DAYS[2]]
        (here / "bars" / DAYS[2]).unlink()
        assert land(here / "bars", format="csv", partition="day", if_exists="error")["rows"] == 15

    def test_skip_pulls_nothing_when_it_is_there(self, openmarkets_sandbox, here):
        (here / "x.csv").write_text("old")
        result = land(here / "x.csv", format="csv", if_exists="skip")
        assert (result["rows"], result["bytes"], result["files"]) == (0, 0, [])
        assert (here / "x.csv").read_text() == "old"
        assert openmarkets_sandbox.stats()["by_path"] == {}

    def test_skip_pulls_and_writes_the_partitions_that_are_missing(self, openmarkets_sandbox, here, caplog):
        for day in (DAYS[0], DAYS[2], DAYS[4], "exchange_date=2026-03-07", "exchange_date=2026-03-08"):
            (here / day).mkdir()
            (here / day / "part-0.csv").write_text("old")
        with caplog.at_level(logging.INFO):
            result = land(here, format="csv", partition="day", if_exists="skip")
        assert "Skipping 5 of 7 files" in caplog.text
        assert result["files"] == [f"file://{here}/{day}/part-0.csv" for day in (DAYS[1], DAYS[3])]
        assert result["rows"] == 6
        assert (here / DAYS[2] / "part-0.csv").read_text() == "old"
        calls = [path for path in openmarkets_sandbox.stats()["by_path"] if "timeseries" in path]
        assert len(calls) == 3

    def test_skip_of_weekly_bars_pulls_the_whole_range_again(self, openmarkets_sandbox, here):
        """Days without a bar are always missing, and from the first to the last one need not be whole weeks."""
        week = queries.time_series("BHP", start="2026-03-07", end="2026-03-14", frequency="Weekly")
        (first,) = land(here, week, format="csv", partition="day", if_exists="skip")["files"]
        assert land(here, week, format="csv", partition="day", if_exists="skip")["files"] == []
        two_weeks = {**week, "end": "2026-03-21"}
        (second,) = land(here, two_weeks, format="csv", partition="day", if_exists="skip")["files"]
        assert first != second

    @pytest.mark.parametrize("mode", ["error", "skip"])
    def test_one_that_appears_meanwhile_counts_too(self, openmarkets_sandbox, s3, mode):
        def appear(sock, request):
            s3.put("x.csv", b"of another task")
            s3.forward(sock, request)

        # The second look.
        s3.fault("HEAD /bucket/x.csv", appear, after=1)
        task = transfer("s3://bucket/x.csv", format="csv", conn_id="landing_s3", if_exists=mode)
        if mode == "error":
            with pytest.raises(AirflowFailException, match=r"s3://bucket/x.csv already exists"):
                task.execute(context())
        else:
            assert task.execute(context())["files"] == []
        assert s3.read("x.csv") == b"of another task"
        assert openmarkets_sandbox.stats()["requests"]["market_data"] == 4

    def test_a_partition_without_rows_that_appears_meanwhile_stays(self, openmarkets_sandbox, s3):
        weekend = queries.time_series("BHP", start="2026-03-07", end="2026-03-09")
        key = "exchange_date=2026-03-07/part-0.csv"
        appeared = threading.Event()

        def appear(sock, request):
            s3.put(key, b"of another task")
            appeared.set()
            s3.forward(sock, request)

        # The last look at this day before files are put in place.
        s3.fault("HEAD /bucket/.*2026-03-08", appear, after=1)
        land("s3://landing_s3@bucket", weekend, format="csv", partition="day", if_exists="skip")
        # A client that waits too long asks again, and need not wait for the object then.
        assert appeared.wait(60)
        assert s3.read(key) == b"of another task"


class TestObjectStore:
    def test_one_object(self, openmarkets_sandbox, s3, here):
        result = land("s3://landing_s3@bucket/bars/x.parquet")
        assert (result["destination"], result["files"]) == (
            "s3://bucket/bars/x.parquet",
            ["s3://bucket/bars/x.parquet"],
        )
        land(here / "x.parquet")
        assert without_loaded_at(s3.read("bars/x.parquet")) == without_loaded_at((here / "x.parquet").read_bytes())
        assert result["bytes"] == len(s3.read("bars/x.parquet"))

    def test_partitions(self, openmarkets_sandbox, s3):
        s3.put("bars/exchange_date=2026-03-07/part-0.jsonl.gz", b"old")
        land("s3://bucket/bars/", conn_id="landing_s3", partition="day", format="jsonl", compression="gzip")
        assert s3.keys() == [f"bars/{day}/part-0.jsonl.gz" for day in DAYS]
        lines = [json.loads(line) for line in gzip.decompress(s3.read(s3.keys()[0])).splitlines()]
        assert [line["security_code"] for line in lines] == SECURITIES

    def test_a_whole_bucket(self, openmarkets_sandbox, s3):
        land("s3://landing_s3@bucket", partition="day")
        assert s3.keys() == [f"{day}/part-0.parquet" for day in DAYS]

    @pytest.mark.parametrize(
        ("kind", "compression", "content_type"),
        [
            ("parquet", "snappy", "application/vnd.apache.parquet"),
            ("csv", None, "text/csv"),
            ("jsonl", None, "application/x-ndjson"),
            ("csv", "gzip", "application/gzip"),
            ("jsonl", "zstd", "application/zstd"),
        ],
    )
    def test_objects_have_the_content_type_of_their_format(
        self, openmarkets_sandbox, s3, kind, compression, content_type
    ):
        land("s3://landing_s3@bucket", partition="day", format=kind, compression=compression)
        keys = s3.keys()
        assert {s3.client.head_object(Bucket=s3.BUCKET, Key=key)["ContentType"] for key in keys} == {content_type}

    def test_objects_have_the_options_of_the_task(self, openmarkets_sandbox, s3):
        with DAG("dag", schedule=None):
            task = transfer(
                "s3://landing_s3@bucket/x.parquet",
                object_options={"ServerSideEncryption": "AES256", "Tagging": "run={{ run_id }}", "ContentType": "x/y"},
            )
        task.render_template_fields({"run_id": "one"})
        task.execute(context())
        head = s3.client.head_object(Bucket=s3.BUCKET, Key="x.parquet")
        assert (head["ServerSideEncryption"], head["ContentType"]) == ("AES256", "x/y")
        tags = s3.client.get_object_tagging(Bucket=s3.BUCKET, Key="x.parquet")["TagSet"]
        assert tags == [{"Key": "run", "Value": "one"}]

    def test_options_of_a_destination_with_a_template_are_checked_before_anything_is_asked(
        self, openmarkets_sandbox, here
    ):
        with DAG("dag", schedule=None):
            task = transfer("{{ params.where }}", object_options={"Tagging": "a=b"})
        task.render_template_fields({"params": {"where": f"{here}/x.parquet"}})
        with pytest.raises(AirflowFailException, match="for object stores only"):
            task.execute(context())
        assert openmarkets_sandbox.stats()["by_path"] == {}

    def test_a_bucket_that_is_missing_fails_at_once_and_before_anything_is_asked(self, openmarkets_sandbox, s3):
        with pytest.raises(AirflowFailException, match="Bucket 'nowhere' does not exist"):
            land("s3://landing_s3@nowhere/x.parquet")
        assert openmarkets_sandbox.stats()["by_path"] == {}

    def test_a_store_that_fails_for_a_while_is_left_to_the_retries_of_airflow(self, openmarkets_sandbox, s3):
        s3.fail("PUT /bucket/x", 503, "ServiceUnavailable")
        task = transfer("s3://landing_s3@bucket/x.parquet")
        with pytest.raises(OpenmarketsError, match="ServiceUnavailable"):
            task.execute(context())
        assert s3.keys() == []
        assert task.execute(context())["rows"] == 15
        assert s3.keys() == ["x.parquet"]

    def test_a_provider_that_is_not_installed_is_named(self, openmarkets_sandbox):
        with pytest.raises(
            AirflowFailException,
            match=r"scheme gs\. Check that it is installed: pip install 'apache-airflow-providers-google'",
        ):
            land("gs://bucket/x.parquet")

    def test_a_library_that_is_not_installed_is_named(self, openmarkets_sandbox, s3, monkeypatch):
        monkeypatch.setitem(sys.modules, "s3fs", None)
        monkeypatch.setenv("AIRFLOW_CONN_LANDING_S3_NEW", s3.connection_json)
        with pytest.raises(AirflowFailException, match=r"pip install 'airflow-provider-openmarkets\[s3\]'") as error:
            land("s3://landing_s3_new@bucket/x.parquet")
        assert str(error.value).count("pip install") == 1

    def test_a_connection_that_is_missing_is_named(self, openmarkets_sandbox):
        with pytest.raises(AirflowNotFoundException, match="landing_s3_missing"):
            land("s3://landing_s3_missing@bucket/x.parquet")
        assert openmarkets_sandbox.stats()["by_path"] == {}


class TestParsing:
    @pytest.mark.parametrize(
        ("arguments", "problem"),
        [
            ({"destination": "bars.parquet"}, "destination: 'bars.parquet' is not absolute"),
            ({"destination": Path("/data/x.parquet")}, r"is a PosixPath.*pass str\(path\)"),
            ({"destination": ObjectStoragePath("s3://b/x.parquet")}, r"is a ObjectStoragePath.*pass str\(path\)"),
            ({"destination": "/data/x.csv"}, r"ends in \.csv, but format is 'parquet'"),
            ({"destination": "s3://K:secret@b/{{ ds }}.csv"}, r"destination: 's3://\*\*\*@b/{{ ds }}.csv' ends in"),
            ({"destination": "/data/{{ ds }}.csv"}, r"ends in \.csv, but format is 'parquet'"),
            ({"format": "orc"}, "format must be one of parquet, csv, jsonl, not 'orc'"),
            ({"compression": "rar"}, "compression must be"),
            ({"object_options": {"Tagging": "a=b"}}, "object_options are for object stores"),
            ({"object_options": "Tagging=a"}, "object_options must be a dict"),
            ({"object_options": {"Tag": "a"}, "destination": "s3://b/x.parquet"}, "Tag can't be set for s3://"),
            ({"partition": "week"}, "partition must be None or one of day, month, year, not 'week'"),
            ({"if_exists": "append"}, "if_exists must be one of replace, merge, error, skip, not 'append'"),
            ({"destination": "s3://a@b/x.parquet", "conn_id": "c"}, "conn_id: 'c' differs from the connection"),
            ({"incremental": True}, "incremental needs partition"),
            (
                {"incremental": True, "partition": "day", "destination": "/data", "if_exists": "skip"},
                "if_exists='replace'",
            ),
        ],
    )
    def test_a_mistake_in_a_literal_argument_is_told(self, arguments, problem):
        with pytest.raises(ValueError, match=problem):
            OpenmarketsToObjectStorageOperator(
                **{"task_id": "land", "query": BARS, "destination": "/data/x.parquet", **arguments}
            )

    def test_what_is_not_literal_is_left_alone(self):
        for destination in (Later(), "{{ params.where }}"):
            task = OpenmarketsToObjectStorageOperator(
                task_id="land", query=Later(), destination=destination, partition="day", conn_id="{{ params.conn }}"
            )
            assert task.outlets == []
        transfer("s3://a@b/x.parquet", conn_id="{{ params.conn }}")

    @pytest.mark.parametrize(
        ("destination", "uri"),
        [
            ("s3://conn@bucket/bars/x.parquet", "s3://bucket/bars/x.parquet"),
            ("s3://conn@bucket/bars/{{ ds }}.parquet", "s3://bucket/bars"),
            ("/data/bars.parquet", "file:///data/bars.parquet"),
        ],
    )
    def test_the_destination_is_an_asset_without_the_connection(self, destination, uri):
        assert [asset.uri for asset in transfer(destination).outlets] == [uri]
        mine = Asset("mine")
        assert transfer(destination, outlets=[mine]).outlets == [mine]

    def test_nothing_happens_at_construction(self, here, monkeypatch):
        monkeypatch.delenv("AIRFLOW_CONN_OPENMARKETS_DEFAULT", raising=False)
        transfer(here / "new/x.parquet", conn_id="nowhere")
        assert list(here.iterdir()) == []


def test_the_asset_event_and_lineage_tell_of_the_destination(openmarkets_sandbox, s3):
    task = transfer("s3://landing_s3@bucket/bars/x.parquet")
    given = context()
    task.execute(given)
    (extra,) = [event.extra for event in given["outlet_events"].values()]
    assert (extra["destination"], extra["rows"]) == ("s3://bucket/bars/x.parquet", 15)
    assert task._lineage.dataset == ("s3://bucket/bars/x.parquet", "s3://bucket", "bars/x.parquet")


class TestMapping:
    def mapped(self, count: int = 2, **arguments: Any) -> Any:
        """Return the first of some mapped tasks, as at run time, and its context."""
        partial = {name: value for name, value in arguments.items() if name != "expand"}
        with DAG("dag", schedule=None) as dag:
            mapped = OpenmarketsToObjectStorageOperator.partial(task_id="land", **partial)
            mapped.expand_kwargs([arguments["expand"]] * count)
        return dag.get_task("land").unmap(arguments["expand"]), context(map_index=0) | {"dag": dag, "ds": START}

    def test_one_destination_for_all_is_refused(self, openmarkets_sandbox, here):
        task, given = self.mapped(destination=f"{here}/x.parquet", expand={"query": BARS})
        with pytest.raises(AirflowFailException, match=r"mapped tasks would overwrite .*ti\.map_index"):
            task.execute(given)
        assert openmarkets_sandbox.stats()["by_path"] == {}

    def test_a_destination_with_a_template_is_not(self, openmarkets_sandbox, here):
        task, given = self.mapped(destination=f"{here}/{{{{ ti.map_index }}}}.parquet", expand={"query": BARS})
        task.render_template_fields({"ti": given["ti"]})
        assert task.execute(given)["files"] == [f"file://{here}/0.parquet"]

    def test_one_whose_template_is_the_same_for_all_is_refused(self, openmarkets_sandbox, here):
        task, given = self.mapped(destination=f"{here}/{{{{ ds }}}}.parquet", expand={"query": BARS})
        task.render_template_fields(given)
        with pytest.raises(AirflowFailException, match=r"mapped tasks would overwrite .*\{\{ ds \}\}"):
            task.execute(given)

    def test_nor_is_one_of_a_single_task(self, openmarkets_sandbox, here):
        task, given = self.mapped(1, query=BARS, expand={"destination": f"{here}/x.parquet"})
        assert task.execute(given)["rows"] == 15

    @pytest.mark.parametrize("is_upstream", [False, True])
    def test_ranges_that_do_not_overlap_share_a_folder(self, openmarkets_sandbox, here, is_upstream):
        weeks = [queries.time_series("BHP", start=f"2026-03-{day:02}", end=f"2026-03-{day + 7:02}") for day in (2, 9)]
        with DAG("dag", schedule=None) as dag:
            upstream = XComArg(EmptyOperator(task_id="weeks"))
            OpenmarketsToObjectStorageOperator.partial(task_id="land", destination=str(here), partition="day").expand(
                query=upstream if is_upstream else weeks
            )
        for index, query in enumerate(weeks):
            given = context(map_index=index) | {"dag": dag}
            given["ti"].xcom_pull = lambda **_: weeks
            task = dag.get_task("land").unmap({"query": query})
            assert task.execute(given)["rows"] == 5
        assert len(files(here)) == 10

    @pytest.mark.parametrize("ends", [("2026-03-09", "2026-03-16"), ("2026-03-10", "2026-03-17")])
    def test_ranges_that_overlap_do_not(self, openmarkets_sandbox, here, ends):
        mapped = [
            {"query": queries.time_series(code, start=f"2026-03-0{day}", end=end), "destination": f"{here}/"}
            for code, day, end in zip(("BHP", "CBA"), (2, 9), ends, strict=True)
        ]
        with DAG("dag", schedule=None) as dag:
            OpenmarketsToObjectStorageOperator.partial(task_id="land", partition="day").expand_kwargs(mapped)
        given = context(map_index=0) | {"dag": dag}
        task = dag.get_task("land").unmap(mapped[0])
        if ends[0] == "2026-03-09":
            assert task.execute(given)["rows"] == 5
            return
        with pytest.raises(
            AirflowFailException, match=r"mapped task 1 would overwrite exchange_date=2026-03-09 of file:"
        ):
            task.execute(given)
        assert openmarkets_sandbox.stats()["by_path"] == {}

    def test_files_that_are_mapped_with_the_query_must_differ(self, openmarkets_sandbox, here):
        mapped = [{"query": {**BARS, "securities": [code]}, "destination": f"{here}/x.csv"} for code in SECURITIES]
        mapped[2]["destination"] = f"{here}/{{{{ run_id }}}}.csv"
        with DAG("dag", schedule=None) as dag:
            OpenmarketsToObjectStorageOperator.partial(task_id="land", format="csv").expand_kwargs(mapped)
        for index, arguments in enumerate(mapped):
            task = dag.get_task("land").unmap(arguments)
            given = context(map_index=index) | {"dag": dag, "run_id": "run"}
            task.render_template_fields(given)
            if index < 2:
                with pytest.raises(AirflowFailException, match="mapped tasks would overwrite"):
                    task.execute(given)
            else:
                assert task.execute(given)["files"] == [f"file://{here}/run.csv"]

    @pytest.mark.parametrize("is_fixed", [True, False])
    def test_a_task_in_a_mapped_group_is_treated_alike(self, openmarkets_sandbox, here, is_fixed):
        destination = f"{here}/x.parquet" if is_fixed else f"{here}/{{{{ ti.map_index }}}}.parquet"
        with DAG("dag", schedule=None) as dag:

            @task_group
            def group(code: str) -> None:
                transfer(destination, queries.time_series(code, start=START, end=END))

            group.expand(code=["BHP", "CBA"])
        task = dag.get_task("group.land")
        task.query = BARS
        given = context(map_index=1) | {"dag": dag}
        task.render_template_fields({"ti": given["ti"]})
        if is_fixed:
            with pytest.raises(AirflowFailException, match="mapped tasks would overwrite"):
                task.execute(given)
        else:
            assert task.execute(given)["files"] == [f"file://{here}/1.parquet"]


def test_an_error_of_the_api_that_may_pass_is_left_to_the_retries_of_airflow(openmarkets_sandbox, here):
    openmarkets_sandbox.fault(target="market_data", kind="status", status=503, retry_after=0, times=None, after=2)
    with pytest.raises(OpenmarketsServerError):
        land(here / "x.parquet")
    assert files(here) == []
