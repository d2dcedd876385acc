from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmarkets_provider.client.endpoints import MAX_SECURITIES
from openmarkets_provider.client.planning import ApiCall, check, is_literal, is_repeatable, plan
from openmarkets_provider.exceptions import OpenmarketsQueryError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
CODES = st.from_regex(r"[A-Za-z0-9_-]{1,6}", fullmatch=True)


class Later:
    """Known later only, as the result of an upstream task is."""

    def resolve(self, context: object) -> object:
        raise AssertionError("nobody but Airflow resolves it")


def request(**changes: Any) -> dict[str, Any]:
    query = {
        "endpoint": "request",
        "api": "news",
        "method": "GET",
        "path": "announcements/v1",
        "params": None,
        "json": None,
        "safe_to_repeat": None,
    }
    return query | changes


def quotes(securities: Any) -> dict[str, Any]:
    return {"endpoint": "quotes", "securities": securities}


def only_call(query: Mapping[str, Any]) -> ApiCall:
    (call,) = plan(query)
    return call


# --- paths


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
        check(request(path=path))


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
    with pytest.raises(OpenmarketsQueryError, match="must not hold blanks") as caught:
        check(request(path=path))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("path", ["", "/", "//", None, 5, [], {}, True])
def test_a_path_that_is_no_text_or_empty_is_refused(path: Any):
    with pytest.raises(OpenmarketsQueryError, match="path must be a text such as 'securities/v1'"):
        check(request(path=path))


@pytest.mark.parametrize("path", ["a" * 2001, "%" + "25" * 100_000], ids=["long", "encoded over and over"])
def test_a_very_long_path_is_refused_at_once(path: str):
    with pytest.raises(OpenmarketsQueryError, match="2000 are the most"):
        check(request(path=path))


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
    assert only_call(request(path=path)).path == path


def test_one_leading_slash_is_dropped():
    assert only_call(request(path="/securities/v1")).path == "securities/v1"


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
    assert only_call(request(api=api, method="POST", path=path, json={})).safe_to_repeat is True


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
    query = request(api="oms", method=method, path=path)
    assert only_call(query).safe_to_repeat is False
    assert only_call(query | {"safe_to_repeat": False}).safe_to_repeat is False
    with pytest.raises(OpenmarketsQueryError, match="is never safe to repeat"):
        check(query | {"safe_to_repeat": True})


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_an_unknown_call_is_unsafe_unless_declared_safe(method: str):
    query = request(method=method)
    assert only_call(query).safe_to_repeat is False
    assert only_call(query | {"safe_to_repeat": True}).safe_to_repeat is True


def test_every_get_is_safe_unless_declared_unsafe():
    assert only_call(request()).safe_to_repeat is True
    assert only_call(request(safe_to_repeat=False)).safe_to_repeat is False


def test_a_query_is_repeatable_when_all_its_calls_are():
    assert is_repeatable(quotes(["BHP"]))
    assert is_repeatable({"endpoint": "accounts"})
    assert not is_repeatable(request(method="POST"))


# --- the generic request


def test_a_request_becomes_one_call_as_written():
    query = request(api="oms", method="pAtCh", path="x/v1", params={"a": [1, "b", True]}, json={"c": None})
    assert plan(query) == [ApiCall("oms", "PATCH", "x/v1", {"a": [1, "b", True]}, {"c": None}, False, None)]
    assert only_call(query).label == "PATCH oms x/v1"


def test_empty_params_are_no_params():
    assert only_call(request(params={})).params is None


@pytest.mark.parametrize("body", [0, "", False, [], {}])
def test_a_body_that_is_falsy_is_still_sent(body: Any):
    assert only_call(request(method="POST", json=body)).json == body


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"api": "News"}, "api 'News' is unknown; allowed are market_data, news, oms"),
        ({"api": None}, "api None is unknown"),
        ({"api": []}, "api a value of type list is unknown"),
        ({"api": {}}, "api a value of type dict is unknown"),
        ({"api": 5}, "api a value of type int is unknown"),
        ({"method": "HEAD"}, "method 'HEAD' is unknown; allowed are GET, POST, PUT, PATCH, DELETE"),
        ({"method": "GET "}, "method 'GET ' is unknown"),
        ({"method": None}, "method None is unknown"),
        ({"method": []}, "method a value of type list is unknown"),
        ({"params": [["a", 1]]}, "params must be a dict, not a value of type list"),
        ({"params": "a=b"}, "params must be a dict, not a value of type str"),
        ({"params": False}, "params must be a dict, not a value of type bool"),
        ({"params": {"a": None}}, "params\\['a'\\] must be a text.*not None"),
        ({"params": {"a": {"b": 1}}}, "params\\['a'\\] must be a text.*not a value of type dict"),
        ({"params": {"a": [1, [2]]}}, "params\\['a'\\] must be a text.*not a value of type list"),
        ({"params": {1: "a"}}, "the names in params must be texts, not a value of type int"),
        ({"json": {}}, "json does not go with GET; use params"),
        ({"json": 0, "method": "get"}, "json does not go with GET; use params"),
        ({"safe_to_repeat": 1}, "safe_to_repeat must be True, False or None, not a value of type int"),
        ({"safe_to_repeat": "True"}, "safe_to_repeat must be True, False or None, not a value of type str"),
    ],
)
def test_a_malformed_argument_of_a_request_is_named(changes: dict[str, Any], message: str):
    for look in (check, plan):
        with pytest.raises(OpenmarketsQueryError, match=f"^request: {message}"):
            look(request(**changes))


# --- what is not a query at all


@pytest.mark.parametrize("query", [None, "quotes", ["quotes"], 5, object()])
def test_what_is_not_a_dict_is_refused(query: Any):
    with pytest.raises(OpenmarketsQueryError, match=r"expected what a function of openmarkets_provider\.queries"):
        plan(query)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("endpoint", [None, "", "Quotes", "depth", 5, [], {}, nested(100_000)])
def test_an_unknown_endpoint_is_refused_with_the_known_ones(endpoint: Any):
    with pytest.raises(OpenmarketsQueryError, match="is unknown; allowed are accounts, quotes, request, securities"):
        plan({"endpoint": endpoint})


def test_a_dict_without_an_endpoint_is_refused():
    with pytest.raises(OpenmarketsQueryError, match="endpoint None is unknown"):
        plan({})


def test_unknown_arguments_are_named():
    with pytest.raises(OpenmarketsQueryError, match=r"quotes: unknown argument 'a', 1; allowed are securities\."):
        plan(quotes(["BHP"]) | {1: 2, "a": 1})
    with pytest.raises(OpenmarketsQueryError, match=r"accounts: unknown argument 'x'; allowed are none\."):
        plan({"endpoint": "accounts", "x": 1})


@pytest.mark.parametrize("name", ["api", "method", "path", "params", "json", "safe_to_repeat"])
def test_a_missing_argument_is_named(name: str):
    query = request()
    del query[name]
    with pytest.raises(OpenmarketsQueryError, match=f"request: argument {name} is missing"):
        plan(query)


def circle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({1, 2}, "a value of type set is not JSON-able"),
        (b"x", "a value of type bytes is not JSON-able"),
        (object(), "a value of type object is not JSON-able"),
        (MappingProxyType({}), "a value of type mappingproxy is not JSON-able"),
        ([float("nan")], "not JSON compliant"),
        ([float("inf")], "not JSON compliant"),
        ({(1, 2): 3}, "keys must be str"),
        (["\ud800"], "surrogates not allowed"),
        (10**5000, "Exceeds the limit"),
        (circle(), "Circular reference"),
        (nested(100_000), "maximum recursion depth"),
    ],
    ids=["set", "bytes", "object", "proxy", "nan", "inf", "tuple key", "surrogate", "huge", "circle", "deep"],
)
def test_what_json_cannot_hold_is_refused(value: Any, message: str):
    for look in (check, plan):
        with pytest.raises(OpenmarketsQueryError, match=f"query: argument json: .*{message}.*ISO 8601"):
            look(request(method="POST", json=value))


# --- templates and upstream results


@pytest.mark.parametrize(
    "query",
    [
        request(api=Later()),
        request(method=Later()),
        request(path=Later()),
        request(params=Later()),
        request(params={"a": Later()}),
        request(params={"a": ["b", Later()]}),
        request(method="POST", json=Later()),
        request(method="POST", json={"a": [Later()]}),
        request(method="POST", safe_to_repeat=Later()),
        request(safe_to_repeat="{{ params.safe }}"),
        request(api="{{ params.api }}"),
        request(method="{% if x %}GET{% endif %}"),
        request(params="{{ params }}"),
        quotes(Later()),
        quotes([Later()]),
        quotes(["BHP", Later(), "{{ params.code }}"]),
        quotes("{{ params.codes }}"),
        quotes("BHP, {# a comment #}"),
        {"endpoint": "securities", "exchange": Later()},
        {"endpoint": "securities", "exchange": "{{ params.exchange }}"},
    ],
)
def test_templates_and_upstream_results_pass_when_made_and_are_refused_when_run(query: dict[str, Any]):
    assert check(query) is query
    with pytest.raises(OpenmarketsQueryError):
        plan(query)


@pytest.mark.parametrize(
    "query",
    [
        request(path="orders/{{ ds }}"),
        request(params={"a": "{{ ds }}"}),
        request(method="POST", json={"a": "{{ ds }}"}),
    ],
)
def test_texts_with_templates_pass_when_made(query: dict[str, Any]):
    assert check(query) is query


def test_literal_parts_beside_a_template_are_checked_when_made():
    with pytest.raises(OpenmarketsQueryError, match="'B P' is malformed"):
        check(quotes(["{{ params.code }}", "B P"]))
    with pytest.raises(OpenmarketsQueryError, match="api 'x' is unknown"):
        check(request(api="x", path="{{ params.path }}"))
    with pytest.raises(OpenmarketsQueryError, match="params\\['b'\\]"):
        check(request(params={"a": Later(), "b": None}))


def test_a_template_left_in_a_path_does_not_run():
    with pytest.raises(OpenmarketsQueryError, match="must not hold blanks"):
        plan(request(path="orders/{{ ds }}"))


@pytest.mark.parametrize(
    ("value", "literal"),
    [
        ("BHP", True),
        ("{ not a template }", True),
        ("{{ ds }}", False),
        ("a{% if b %}", False),
        ("{# c #}", False),
        (None, True),
        (5, True),
        ([], True),
        (Later(), False),
        (Path("x"), False),
    ],
)
def test_what_is_literal(value: Any, literal: bool):
    assert is_literal(value) is literal


# --- typed queries


def test_securities_of_an_exchange():
    assert plan({"endpoint": "securities", "exchange": "ASX"}) == [
        ApiCall("market_data", "GET", "securities/v1", {"exchanges": "ASX"}, None, True, None)
    ]


@pytest.mark.parametrize(
    ("exchange", "shown"),
    [
        ("", "''"),
        ("A X", "'A X'"),
        ("ASX\n", r"'ASX\\n'"),
        ("ASX,CXA", "'ASX,CXA'"),
        ("ＡＳＸ", "'ＡＳＸ'"),  # noqa: RUF001 - full-width letters
        (None, "None"),
        (["ASX"], "a value of type list"),
        (5, "a value of type int"),
    ],
)
def test_a_malformed_exchange_is_shown(exchange: Any, shown: str):
    with pytest.raises(OpenmarketsQueryError, match=f"securities: exchange must be a code such as 'ASX', not {shown}"):
        check({"endpoint": "securities", "exchange": exchange})


def test_accounts():
    assert plan({"endpoint": "accounts"}) == [ApiCall("oms", "GET", "accounts/v1", safe_to_repeat=True)]


class Code(StrEnum):
    BHP = "BHP"


@pytest.mark.parametrize(
    ("securities", "full"),
    [
        (["BHP"], ["BHP.ASX@TM"]),
        (["BHP.CXA"], ["BHP.CXA@TM"]),
        (["BHP.CXA@DL"], ["BHP.CXA@DL"]),
        (["BHP@DL"], ["BHP.ASX@DL"]),
        ([" BHP \n"], ["BHP.ASX@TM"]),
        (["A-B_1"], ["A-B_1.ASX@TM"]),
        (("CBA", "BHP"), ["CBA.ASX@TM", "BHP.ASX@TM"]),
        ("CBA", ["CBA.ASX@TM"]),
        ("CBA, BHP.ASX\nANZ,,  CBA", ["CBA.ASX@TM", "BHP.ASX@TM", "ANZ.ASX@TM"]),
        (["BHP", "BHP.ASX", "BHP.ASX@TM", "BHP"], ["BHP.ASX@TM"]),
        ([Code.BHP], ["BHP.ASX@TM"]),
    ],
)
def test_securities_are_completed_and_asked_for_once_in_the_order_given(securities: Any, full: list[str]):
    assert plan(quotes(securities)) == [
        ApiCall("market_data", "POST", "pricing/quotes/v3", None, {"securities": full}, True, "quotes")
    ]


@pytest.mark.parametrize(
    ("securities", "message"),
    [
        ([], "securities is empty"),
        ("", "securities is empty"),
        (" , \n", "securities is empty"),
        (None, "securities must be a list.*not None"),
        (5, "securities must be a list.*not a value of type int"),
        ({"BHP": 1}, "securities must be a list.*not a value of type dict"),
        ([""], "'' is malformed"),
        (["B P"], "'B P' is malformed"),
        (["BHP."], "is malformed"),
        (["BHP@"], "is malformed"),
        ([".ASX"], "is malformed"),
        (["BHP.ASX.X"], "is malformed"),
        (["BHP@TM@TM"], "is malformed"),
        (["BHP/../x"], "is malformed"),
        (["ＢＨＰ"], "is malformed"),  # noqa: RUF001 - full-width letters
        (["x" * 10_000 + "!"], "is malformed"),
        ([None], "securities: None is malformed"),
        ([5], "securities: a value of type int is malformed"),
        ([["BHP"]], "securities: a value of type list is malformed"),
    ],
)
def test_malformed_securities_are_refused(securities: Any, message: str):
    for look in (check, plan):
        with pytest.raises(OpenmarketsQueryError, match=f"^quotes: .*{message}") as caught:
            look(quotes(securities))
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(1, [1]), (1000, [1000]), (1001, [1000, 1]), (2000, [1000, 1000]), (2500, [1000, 1000, 500])],
)
def test_batches_hold_a_thousand(count: int, sizes: list[int]):
    calls = plan(quotes([f"S{number}" for number in range(count)]))
    assert [len(call.json["securities"]) for call in calls] == sizes


@given(st.lists(CODES, min_size=1, max_size=30), st.integers(1, 150))
def test_every_security_is_in_exactly_one_batch_in_its_order(codes: list[str], times: int):
    wanted = [f"{code}x{number}" for number in range(times) for code in codes]
    calls = plan(quotes(wanted))
    batches = [call.json["securities"] for call in calls]
    assert [security for batch in batches for security in batch] == [f"{c}.ASX@TM" for c in dict.fromkeys(wanted)]
    assert all(1 <= len(batch) <= MAX_SECURITIES for batch in batches)
    assert all(call.safe_to_repeat for call in calls)


# --- any data


ARGUMENTS = st.fixed_dictionaries(
    {"endpoint": st.sampled_from(["request", "quotes", "securities", "accounts"]) | JSON},
    optional={
        "api": st.sampled_from(["news", "oms"]) | JSON,
        "method": st.sampled_from(["GET", "POST"]) | JSON,
        "path": st.sampled_from(["a/b", "orders/v4"]) | JSON,
        "params": JSON,
        "json": JSON,
        "safe_to_repeat": JSON,
        "securities": JSON,
        "exchange": JSON,
    },
)
COMPLETE_REQUESTS = st.fixed_dictionaries(
    {
        "endpoint": st.just("request"),
        "api": st.sampled_from(["news", "oms"]) | JSON,
        "method": st.sampled_from(["GET", "POST"]) | JSON,
        "path": st.sampled_from(["a/b", "orders/v4"]) | st.text() | JSON,
        "params": st.none() | JSON,
        "json": st.none() | JSON,
        "safe_to_repeat": st.none() | st.booleans() | JSON,
    }
)
QUOTES = st.fixed_dictionaries({"endpoint": st.just("quotes"), "securities": JSON | st.lists(CODES)})


@given(JSON | ARGUMENTS | COMPLETE_REQUESTS | QUOTES)
def test_any_json_is_planned_or_refused_with_a_query_error(query: Any):
    try:
        checked = check(query)
    except OpenmarketsQueryError:
        with pytest.raises(OpenmarketsQueryError):
            plan(query)
        return
    assert checked is query
    assert check(json.loads(json.dumps(query))) == query
    try:
        calls = plan(query)
    except OpenmarketsQueryError:
        assert not is_literal_throughout(query)
        return
    assert plan(json.loads(json.dumps(query))) == calls
    for call in calls:
        assert call.api in ("market_data", "news", "oms")
        assert not call.path.startswith("/")
        assert isinstance(call.safe_to_repeat, bool)


def is_literal_throughout(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(is_literal_throughout, value.values()))
    if isinstance(value, list):
        return all(map(is_literal_throughout, value))
    return is_literal(value)


@given(st.text(alphabet=st.sampled_from("./\\%2eEfFcC5:a?#@ \n"), max_size=20))
def test_no_accepted_path_leaves_the_base_url(path: str):
    import httpx

    try:
        call = only_call(request(path=path))
    except OpenmarketsQueryError:
        return
    base = "https://api.example/base/"
    with httpx.Client(base_url=base, trust_env=False) as http:
        url = http.build_request("GET", call.path).url
    assert str(url).startswith(base)
    assert url.query == b""
    assert url.fragment == ""
    assert ".." not in url.path.split("/")
    # Nothing of what was planned gets lost on the way.
    assert url.path.removeprefix("/base/") == httpx.URL("https://h/" + call.path).path.removeprefix("/")


class LazySequence(Sequence):
    """What Airflow makes of the results of a mapped task: a sequence that is no list."""

    def __init__(self, *items: str) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index):
        return self._items[index]


def test_the_results_of_a_mapped_task_are_taken_as_a_list():
    (call,) = plan({"endpoint": "quotes", "securities": LazySequence("BHP", "CBA")})
    assert call.json == {"securities": ["BHP.ASX@TM", "CBA.ASX@TM"]}
    with pytest.raises(OpenmarketsQueryError, match="securities is empty"):
        plan({"endpoint": "quotes", "securities": LazySequence()})
