"""What both transfers have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowFailException, Asset

from openmarkets_provider import queries
from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.transfers.openmarkets_to_object_storage import OpenmarketsToObjectStorageOperator
from openmarkets_provider.transfers.openmarkets_to_sql import OpenmarketsToSqlOperator
from tests.support.context import context

BARS = queries.time_series("BHP", start="2026-03-02", end="2026-03-04")
READING = queries.request("news", "GET", "announcements/v1")
WRITING = queries.request("oms", "POST", "orders/v4", json={"side": "Buy"})
UNKNOWN = queries.request("oms", "POST", "something/v1", json={"code": "{{ params.code }}"})


def to_file(query: Any, destination: Any = "/lake/x.jsonl", **kwargs: Any) -> OpenmarketsToObjectStorageOperator:
    return OpenmarketsToObjectStorageOperator(
        task_id="files", query=query, destination=destination, format="jsonl", **kwargs
    )


def to_table(query: Any, **kwargs: Any) -> OpenmarketsToSqlOperator:
    return OpenmarketsToSqlOperator(
        task_id="table", **{"query": query, "table": "market.bars", "conn_id": "db", "mode": "append"} | kwargs
    )


@pytest.mark.parametrize("make", [to_file, to_table])
@pytest.mark.parametrize("query", [WRITING, UNKNOWN])
def test_a_request_that_must_not_be_sent_twice_is_refused_while_the_dag_is_parsed(make, query):
    with pytest.raises(OpenmarketsQueryError, match="not known to be safe to repeat"):
        make(query)


def test_one_that_is_known_when_it_is_rendered_is_refused_before_it_is_sent(openmarkets_sandbox, tmp_path: Path):
    query = {**WRITING, "path": "{{ params.path }}"}
    with DAG("dag", schedule=None, params={"path": "orders/v4"}):
        task = to_file(query, str(tmp_path / "x.jsonl"))
    task.render_template_fields({"params": {"path": "orders/v4"}})
    with pytest.raises(AirflowFailException, match="not known to be safe to repeat"):
        task.execute(context())
    assert openmarkets_sandbox.stats()["by_path"] == {}


@pytest.mark.parametrize("make", [to_file, to_table])
@pytest.mark.parametrize(
    "query",
    [
        BARS,
        READING,
        {**UNKNOWN, "safe_to_repeat": True},
        queries.request("market_data", "POST", "pricing/quotes/v3", json={"securities": ["BHP.ASX@TM"]}),
        queries.request("news", "GET", "{{ params.path }}", params={"since": "{{ ds }}"}),
    ],
    ids=["bars", "GET", "said to be safe", "known to be safe", "templated"],
)
def test_what_only_reads_may_be_landed(make, query):
    assert make(query).query == query


@pytest.mark.parametrize(
    ("task", "uris"),
    [
        (lambda: to_file(BARS, "s3://lake/bars.jsonl"), ["s3://lake/bars.jsonl"]),
        (lambda: to_file(BARS, "s3://aws@lake/bars.jsonl"), ["s3://lake/bars.jsonl"]),
        (lambda: to_file(BARS, "s3://lake/bars/{{ ds }}.jsonl"), ["s3://lake/bars"]),
        (lambda: to_file(BARS, "{{ params.lake }}/bars.jsonl"), []),
        (lambda: to_file(BARS, "/data/bars.jsonl"), ["file:///data/bars.jsonl"]),
        (lambda: to_file(BARS, "s3://lake/bars.jsonl", outlets=[Asset("mine")]), ["mine"]),
        (lambda: to_table(BARS), ["sql://db/market.bars"]),
        (lambda: to_table(BARS, table="{{ params.table }}"), []),
        (lambda: to_table(BARS, outlets=[Asset("mine")]), ["mine"]),
    ],
)
def test_the_destination_is_an_outlet_unless_others_are_named(task, uris):
    assert [outlet.uri for outlet in task().outlets] == uris


def test_a_mapped_task_has_the_outlets_that_its_dag_was_parsed_with():
    with DAG("dag", schedule=None):
        mapped = OpenmarketsToObjectStorageOperator.partial(task_id="files", format="jsonl").expand_kwargs(
            [{"query": BARS, "destination": "/lake/x.jsonl"}]
        )
    assert mapped.unmap({"query": BARS, "destination": "/lake/x.jsonl"}).outlets == []


# Before, datasets have no names.
@pytest.mark.since("3.0")
def test_every_asset_among_the_outlets_is_told_what_was_landed(openmarkets_sandbox, tmp_path: Path):
    one, other = Asset("one"), Asset("other")
    task = to_file(BARS, str(tmp_path / "x.jsonl"), outlets=[one, other])
    report = context()
    landed = task.execute(report)
    assert landed["rows"] == 2
    extra = {name: landed[name] for name in ("destination", "rows", "bytes", "range", "skipped")}
    assert {asset.name: event.extra for asset, event in report["outlet_events"].items()} == {
        "one": extra,
        "other": extra,
    }


def test_a_kill_after_the_load_stops_nothing(openmarkets_sandbox, tmp_path: Path):
    task = to_file(BARS, str(tmp_path / "x.jsonl"))
    task.on_kill()
    task.execute(context())
    task.on_kill()
    assert (tmp_path / "x.jsonl").read_text().count("\n") == 2
