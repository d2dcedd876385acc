"""Counters and traces of a hook, as a StatsD server and a span of OpenTelemetry get them."""

from __future__ import annotations

import ast
import asyncio
import re
import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.observability import stats
from airflow.sdk.observability.metrics import stats_utils
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import openmarkets_provider
from openmarkets_provider import queries
from openmarkets_provider.client.auth import provider as token_source
from openmarkets_provider.exceptions import OpenmarketsError
from openmarkets_provider.hooks._metrics import PREFIX
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
from openmarkets_provider.triggers._shared_polls import poll_shared
from tests.support.statsd import StatsdServer

QUOTES = queries.quotes(["BHP"])
ACCOUNTS = queries.accounts()
A_WEEK = queries.time_series(["BHP", "RIO", "CBA", "NAB"], start="2026-03-02", end="2026-03-06")


@pytest.fixture
def statsd(monkeypatch: pytest.MonkeyPatch) -> Iterator[StatsdServer]:
    with StatsdServer() as server:
        for name, value in server.settings().items():
            monkeypatch.setenv(name, value)
        logger = stats_utils.get_stats_factory()()
        stats.initialize(factory=lambda: logger, export_legacy_names=True)
        yield server
        logger.statsd.close()
        monkeypatch.undo()
        stats.initialize(factory=stats_utils.get_stats_factory(), export_legacy_names=True)


@contextmanager
def hooks() -> Iterator[OpenmarketsHook]:
    hook = OpenmarketsHook()
    try:
        yield hook
    finally:
        hook.close()


def wait_for(statsd: StatsdServer, **expected: int) -> None:
    """Wait until the counters are there; datagrams take a moment."""
    wanted = {name.replace("__", "."): count for name, count in expected.items()}
    deadline = time.monotonic() + 20
    while True:
        counters = statsd.counters(f"airflow.{PREFIX}")
        if {name: counters[name] for name in wanted} == wanted or time.monotonic() > deadline:
            assert {name: counters[name] for name in wanted} == wanted, counters
            return
        time.sleep(0.01)


def test_token_requests_and_hits_by_store_are_counted(openmarkets_sandbox, statsd: StatsdServer):
    with hooks() as hook:
        hook.run(ACCOUNTS)
        hook.run(ACCOUNTS)
    token_source.reset()
    with hooks() as hook:
        hook.run(ACCOUNTS)
        hook.run(ACCOUNTS)
    wait_for(statsd, token__requests=1, token__hits__memory=2, token__hits__file=1)
    assert set(statsd.timers(f"airflow.{PREFIX}")) == {"token.request_time", "token.lock_wait"}


def test_retries_are_counted_by_status(openmarkets_sandbox, statsd: StatsdServer):
    openmarkets_sandbox.fault(target="oms", kind="status", status=503, times=2)
    openmarkets_sandbox.fault(target="oms", kind="reset", times=1, after=2)
    with hooks() as hook:
        hook.run(ACCOUNTS)
    wait_for(statsd, retries__503=2, retries__transport=1)


def test_failed_token_requests_are_counted(openmarkets_sandbox, statsd: StatsdServer):
    openmarkets_sandbox.fault(target="identity", kind="status", status=401, body={"error": "invalid_client"})
    with hooks() as hook, pytest.raises(OpenmarketsError, match="invalid_client"):
        hook.run(ACCOUNTS)
    wait_for(statsd, token__requests=1, token__failures=1)


def test_nothing_secret_is_in_the_metrics(openmarkets_sandbox, statsd: StatsdServer):
    with hooks() as hook:
        hook.run(QUOTES)
        token = hook.get_access_token("market-data-api")
    wait_for(statsd, token__requests=1)
    for secret in (token, openmarkets_sandbox.client_id, openmarkets_sandbox.client_secret):
        assert secret not in statsd.text()


def test_the_span_of_a_task_names_every_request(openmarkets_sandbox):
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    openmarkets_sandbox.fault(target="oms", kind="status", status=503, times=1)
    with hooks() as hook, tracer.start_as_current_span("task"):
        hook.run(ACCOUNTS)
        list(hook.stream(A_WEEK))
    (span,) = exporter.get_finished_spans()
    sent = [
        (event.attributes["openmarkets.endpoint"], event.attributes.get("http.response.status_code"))
        for event in span.events
    ]
    assert sent[:2] == [("GET oms accounts/v1", 503), ("GET oms accounts/v1", 200)]
    # Those of the stream's threads, too.
    assert len(sent) == 7
    assert len({event.attributes["openmarkets.request_id"] for event in span.events}) == 7
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_a_backend_that_fails_fails_nothing(openmarkets_sandbox):
    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise OSError("no metrics today")

    stats.initialize(factory=Broken, export_legacy_names=True)
    try:
        with hooks() as hook:
            assert hook.run(ACCOUNTS)
    finally:
        stats.initialize(factory=stats_utils.get_stats_factory(), export_legacy_names=True)


async def test_polls_are_counted_once_and_those_who_share_them(openmarkets_sandbox, statsd: StatsdServer):
    async def one() -> None:
        async with aclosing(poll_shared("openmarkets_default", ACCOUNTS, 60)) as polls:
            await anext(polls)

    await asyncio.gather(one(), one(), one())
    wait_for(statsd, polls__sent=1, polls__shared=2)


def metric_names() -> set[str]:
    """Find what the code counts and times; what differs from one call to the next is a star."""
    names = set()
    for path in Path(openmarkets_provider.__file__).parent.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            match call:
                case ast.Call(
                    ast.Attribute(ast.Attribute(attr="_metrics") | ast.Name("metrics"), "count" | "time"), [name, *_]
                ):
                    parts = name.values if isinstance(name, ast.JoinedStr) else [name]
                    names.add("".join(part.value if isinstance(part, ast.Constant) else "*" for part in parts))
    return {name for name in names if not any(fnmatch(name, other) for other in names - {name})}


def test_every_metric_is_documented():
    guide = (Path(__file__).parents[2] / "docs" / "fleet.md").read_text()
    documented = re.findall(rf"^\| `{re.escape(PREFIX)}([^`]+)` \|", guide, re.MULTILINE)
    assert {re.sub("<[^>]*>", "*", name) for name in documented} == metric_names()
