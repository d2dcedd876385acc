"""Queries as templates and upstream results make them, conditions, and the connection's fields."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

from hypothesis import given
from hypothesis import strategies as st

from openmarkets_provider import queries
from openmarkets_provider.client.cache.redis import redis_options
from openmarkets_provider.client.client import _request
from openmarkets_provider.client.http.clients import HttpClient, Options
from openmarkets_provider.client.settings import Settings
from openmarkets_provider.conditions import check_condition, evaluate
from openmarkets_provider.exceptions import OpenmarketsConfigurationError, OpenmarketsQueryError
from openmarkets_provider.get_provider_info import CONNECTION_FIELDS
from openmarkets_provider.hooks._connection_settings import make_settings
from openmarkets_provider.query.plan import plan
from openmarkets_provider.query.query import check, window
from tests.fuzz.bounds import SHORT, bounded, check_error
from tests.fuzz.strategies import changed, literals, python_values, scalars, texts, values, write
from tests.fuzz.test_replies import QUERIES, complete

REQUESTS: list[dict[str, Any]] = [
    {
        "endpoint": "request",
        "api": "news",
        "method": "GET",
        "path": "announcements/BHP",
        "params": {"limit": 5, "tags": ["a", "b"]},
        "json": None,
        "safe_to_repeat": None,
    },
    {
        "endpoint": "request",
        "api": "oms",
        "method": "POST",
        "path": "orders/v4",
        "params": None,
        "json": {"side": "Buy", "orderPrice": 4005.5, "notes": ["x"]},
        "safe_to_repeat": False,
    },
]
TYPED = [complete(query) for query in QUERIES]
TEMPLATES = st.sampled_from(["{{ ds }}", "{% x %}", "{{", SimpleNamespace(resolve=None)])
CALLS = 50
"""Of a plan that are looked at: a range may be very long."""
EXPRESSIONS = [
    "[0].last_price > `40`",
    "length(@)",
    "[?state=='working'].order_number | [0]",
    "max_by(@, &a).b",
    "a || b",
]
PIECES = ["@", "*", "[]", "[?a]", "[0]", "[-1:]", ".a", "|", "&&", "||", "!", "`1`", "'x'", "sort(@)", "to_string(@)"]
WORDS = ["sum([*].a)", "avg(@)", "join(',', @)", "merge(@, @)", "{a: @, b: @}", "[@, @]", "to_number(@)", "keys(@)"]
conditions = st.one_of(
    st.sampled_from(EXPRESSIONS).flatmap(lambda text: st.sampled_from(PIECES + WORDS).map(lambda more: text + more)),
    st.lists(st.sampled_from(PIECES + WORDS), max_size=8).map("".join),
    texts,
    st.sampled_from(["(" * 400, "[" * 400, "!" * 900, "a." * 900 + "a", "`" + "[" * 5000 + "`", "@" * 3, "'\\u0000'"]),
)


def size_of(value: Any) -> int:
    try:
        return len(repr(value))
    except (ValueError, RecursionError):
        return 10_000


@SHORT
@given(st.sampled_from(TYPED + REQUESTS).flatmap(lambda query: changed(query, python_values | TEMPLATES)))
def test_queries(query):
    """While a DAG is parsed, when it runs, and on the way to the wire."""
    size = size_of(query)
    with bounded(size + 20_000):
        for work in (check, plan, window):
            try:
                made = work(query)
            except OpenmarketsQueryError as error:
                check_error(error)
                continue
            if work is plan:
                _check_calls(made)


def _check_calls(calls: Any) -> None:
    for _, call in zip(range(CALLS), calls, strict=False):
        try:
            request = _request(HTTP, call, "fuzz")
        except OpenmarketsQueryError as error:
            check_error(error)
            continue
        assert (request.url.scheme, request.url.host, request.url.port) == (b"http", b"127.0.0.1", 1)
        path = unquote(request.url.target.partition(b"?")[0].decode("ascii"))
        assert path.startswith("/base/")
        assert ".." not in path.split("/")


HTTP = HttpClient("http://127.0.0.1:1/base", Options(1.0, None, "fuzz"))


QUOTES = queries.quotes("BHP")


@SHORT
@given(conditions, values | python_values)
def test_conditions(condition, result):
    with bounded(len(condition) + size_of(result) + 5_000):
        try:
            check_condition(condition, QUOTES)
            evaluate(condition, result)
        except OpenmarketsQueryError as error:
            check_error(error)


EXTRA = {
    "environment": "test",
    "market_data_url": "https://market.example.com/base",
    "news_url": "",
    "oms_url": None,
    "scopes": ["market-data-api"],
    "timeout": 30,
    "ca_bundle": None,
    "client_auth_encoding": "raw",
    "cache_backend": "redis",
    "redis_conn_id": "redis_default",
}
URLS = [
    "http://[::1",
    "https://a@b",
    "https://x:99999",
    "https://x:-1",
    "http://127.0.0.1:0",
    "//",
    "https://é",
    "http://[v1.x]",
]


@SHORT
@given(
    changed({name: EXTRA.get(name) for name in CONNECTION_FIELDS}, values | literals | st.sampled_from(URLS)).map(write)
    | st.binary(max_size=50),
    st.none() | texts | st.sampled_from(URLS),
    st.none() | texts,
    st.sampled_from([None, "", "S3CR3T", "S3CR3T+%: é", "S3CR3T\0", "S3CR3T\ud800", "S3CR3T" * 999]),
    st.none() | st.integers(-1, 70_000),
)
def test_connections(extra, host, login, password, port):
    connection = SimpleNamespace(
        conn_id="openmarkets_default",
        conn_type="openmarkets",
        extra=extra.decode("utf-8", "replace"),
        host=host,
        login=login,
        password=password,
        port=port,
    )
    with bounded(len(extra) + 5_000):
        try:
            settings = make_settings(connection)
        except OpenmarketsConfigurationError as error:
            check_error(error, "S3CR3T")
            return
    assert isinstance(settings, Settings)
    assert all(url.startswith(("https://", "http://")) for url in (settings.identity_url, settings.oms_url))


@SHORT
@given(
    changed({"db": 0, "ssl": True, "ssl_cert_reqs": "none", "ssl_ca_certs": "ca.pem", "cluster": False}, python_values),
    st.none() | texts,
    st.none() | st.integers(-1, 70_000),
    st.none() | texts,
    scalars,
)
def test_redis_connections(extra, host, port, login, password):
    with bounded(size_of(extra)):
        try:
            options = redis_options(host=host, port=port, login=login, password=password, extra=extra)
        except ValueError as error:
            check_error(error)
            return
    assert isinstance(options["db"], int)
    json.dumps({name: value for name, value in options.items() if name != "password"})
