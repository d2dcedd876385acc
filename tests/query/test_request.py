from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmarkets_provider import queries
from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.query.plan import ApiCall, plan
from openmarkets_provider.query.query import check, is_repeatable
from tests.support.queries import (
    only_call,
    quotes_query,
    request_query,
    url_of,
)


@pytest.mark.parametrize(
    "path",
    [
        "https://evil.example/x",
        "HTTPS://evil.example/x",
        "http:evil",
        "http:orders/v4",
        "/x:orders/v4",
        "mailto:x",
        ":x",
        "https%3A%2F%2Fevil.example",
        "https%253A%252F%252Fevil.example",
        "//evil.example/x",
        "///evil.example/x",
        "%2F/evil.example",
        "/%2fevil.example",
        "%252f%252fevil.example",
        "..",
        "../x",
        "a/../../x",
        "a/..",
        "./a",
        "a/./b",
        "%2e%2e/x",
        "a/%2E%2E/x",
        "a/.%2e/x",
        "%252e%252e/x",
        "%25252e%25252e%25252fx",
        "a%2f..%2fb",
        "\\\\evil.example\\x",
        "a\\b",
        "/\\evil.example",
        "a%5c..%5cb",
    ],
)
def test_a_path_that_could_lead_elsewhere_is_refused(path: str):
    with pytest.raises(OpenmarketsQueryError, match="must be relative to the API's base URL"):
        check(request_query(path=path))


@pytest.mark.parametrize(
    "path",
    [
        "a?b=c",
        "a#b",
        "?",
        "a b",
        " a",
        "a%20b",
        "a%2520b",
        "a\n",
        "a\r\nX",
        "a%0d%0aX",
        "a\tb",
        "a\x00",
        "a%00",
        "a\x7f",
        "a\u00a0b",
        "a\u2028b",
        "a\u202eb",
    ],
)
def test_a_path_with_blanks_or_control_characters_or_a_query_string_is_refused(path: str):
    with pytest.raises(OpenmarketsQueryError, match="must not contain spaces") as caught:
        check(request_query(path=path))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("path", ["", "/", "//", None, 5, [], {}, True])
def test_a_path_that_is_no_text_or_empty_is_refused(path: Any):
    with pytest.raises(OpenmarketsQueryError, match="path must be a string such as 'securities/v1'"):
        check(request_query(path=path))


@pytest.mark.parametrize("path", ["a" * 2001, "%" + "25" * 100_000], ids=["long", "encoded over and over"])
def test_a_very_long_path_is_refused_at_once(path: str):
    with pytest.raises(OpenmarketsQueryError, match="the maximum is 2000"):
        check(request_query(path=path))


@pytest.mark.parametrize(
    "path",
    [
        "a",
        "securities/v1",
        "pricing/depth/BHP.ASX@TM/v1",
        "a/b:c",
        "a/...",
        "a..b/c",
        ".well-known/x",
        "a%3Fb",
        "a%23b",
        "a%2Fb",
        "100%/x",
        "~a;b,c=d&e+f!$'()*",
        "börse/v1",
        "a/",
        "a" * 2000,
    ],
)
def test_a_path_below_the_base_url_goes_out_as_it_is(path: str):
    assert only_call(request_query(path=path)).path == path


def test_one_leading_slash_is_dropped():
    assert only_call(request_query(path="/securities/v1")).path == "securities/v1"


# --- what may be repeated


@pytest.mark.parametrize(
    ("api", "path"),
    [
        ("market_data", "pricing/quotes/v3"),
        ("market_data", "/pricing/quotes/v3"),
        ("market_data", "securities/information/v2"),
        ("market_data", "pricing/trades/BHP.ASX@TM/v2"),
        ("oms", "portfolios/positions/v2"),
    ],
)
def test_a_post_that_is_known_to_only_read_is_safe_to_repeat(api: str, path: str):
    assert only_call(request_query(api=api, method="POST", path=path, json={})).safe_to_repeat is True


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "orders/v4"),
        ("post", "/orders/v4"),
        ("POST", "Orders/V4/"),
        ("POST", "%6frders%2fv4"),
        ("PUT", "orders/17/v4"),
        ("DELETE", "orders/17/v1"),
    ],
)
def test_creating_amending_and_cancelling_is_never_safe_to_repeat(method: str, path: str):
    query = request_query(api="oms", method=method, path=path)
    assert only_call(query).safe_to_repeat is False
    assert only_call(query | {"safe_to_repeat": False}).safe_to_repeat is False
    with pytest.raises(OpenmarketsQueryError, match="is never safe to repeat"):
        check(query | {"safe_to_repeat": True})


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_an_unknown_call_is_unsafe_unless_declared_safe(method: str):
    query = request_query(method=method)
    assert only_call(query).safe_to_repeat is False
    assert only_call(query | {"safe_to_repeat": True}).safe_to_repeat is True


def test_every_get_is_safe_unless_declared_unsafe():
    assert only_call(request_query()).safe_to_repeat is True
    assert only_call(request_query(safe_to_repeat=False)).safe_to_repeat is False


def test_a_query_is_repeatable_when_all_its_calls_are():
    assert is_repeatable(quotes_query(["BHP"]))
    assert is_repeatable({"endpoint": "accounts", "on_missing_field": "warn", "raw": False})
    assert not is_repeatable(request_query(method="POST"))


def test_whether_a_query_is_repeatable_is_known_before_what_it_asks_about():
    assert is_repeatable(quotes_query(None, exchange="ASX"))
    assert is_repeatable(queries.positions())


# --- the generic request


def test_a_request_becomes_one_call_as_written():
    query = request_query(api="oms", method="pAtCh", path="x/v1", params={"a": [1, "b", True]}, json={"c": None})
    assert list(plan(query)) == [ApiCall("oms", "PATCH", "x/v1", {"a": [1, "b", True]}, {"c": None}, False)]
    assert only_call(query).label == "PATCH oms x/v1"


def test_empty_params_are_no_params():
    assert only_call(request_query(params={})).params is None


@pytest.mark.parametrize("body", [0, "", False, [], {}])
def test_a_body_that_is_falsy_is_still_sent(body: Any):
    assert only_call(request_query(method="POST", json=body)).json == body


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"api": "News"}, "api must be one of market_data, news, oms, not 'News'"),
        ({"api": None}, "api must be one of .*, not None"),
        ({"api": []}, "api must be one of .*, not a value of type list"),
        ({"api": {}}, "api must be one of .*, not a value of type dict"),
        ({"api": 5}, r"api must be one of .*, not a value of type int \(5\)"),
        ({"api": 5.5}, r"api must be one of .*, not a value of type float \(5\.5\)"),
        ({"method": "HEAD"}, "method must be one of GET, POST, PUT, PATCH, DELETE, not 'HEAD'"),
        ({"method": "GET "}, "method must be one of .*, not 'GET '"),
        ({"method": None}, "method must be one of .*, not None"),
        ({"method": []}, "method must be one of .*, not a value of type list"),
        ({"params": [["a", 1]]}, "params must be a dict, not a value of type list"),
        ({"params": "a=b"}, "params must be a dict, not a value of type str"),
        ({"params": False}, "params must be a dict, not a value of type bool"),
        ({"params": {"a": None}}, "params\\['a'\\] must be a string.*not None"),
        ({"params": {"a": {"b": 1}}}, "params\\['a'\\] must be a string.*not a value of type dict"),
        ({"params": {"a": [1, [2]]}}, "params\\['a'\\] must be a string.*not a value of type list"),
        ({"params": {1: "a"}}, "the names in params must be strings, not a value of type int"),
        ({"json": {}}, "json can't be used with GET; use params"),
        ({"json": 0, "method": "get"}, "json can't be used with GET; use params"),
        ({"safe_to_repeat": 1}, "safe_to_repeat must be True, False or None, not a value of type int"),
        ({"safe_to_repeat": "True"}, "safe_to_repeat must be True, False or None, not a value of type str"),
    ],
)
def test_a_malformed_argument_of_a_request_is_named(changes: dict[str, Any], message: str):
    for look in (check, plan):
        with pytest.raises(OpenmarketsQueryError, match=f"^request: {message}"):
            look(request_query(**changes))


@given(st.text(alphabet=st.sampled_from("./\\%2eEfFcC5:a?#@ \n"), max_size=20))
def test_no_accepted_path_leaves_the_base_url(path: str):
    try:
        call = only_call(request_query(path=path))
    except OpenmarketsQueryError:
        return
    url = url_of(call)
    assert (url.scheme, url.host, url.port) == (b"https", b"api.example", None)
    assert url.target.startswith(b"/base/")
    assert b"?" not in url.target
    assert "#" not in call.path
    target = unquote(url.target.decode("ascii"))
    assert ".." not in target.split("/")
    # Nothing of what was planned gets lost on the way.
    assert target.removeprefix("/base/") == httpx.URL("https://h/" + call.path).path.removeprefix("/")
