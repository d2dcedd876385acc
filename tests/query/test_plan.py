from __future__ import annotations

import itertools
import json
import re
import tracemalloc
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote

import httpcore
import httpx
import pendulum
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openmarkets_provider import queries
from openmarkets_provider.client.http.clients import HttpClient, Options
from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.query.arguments import is_literal
from openmarkets_provider.query.endpoints import MAX_DAYS, MAX_SECURITIES
from openmarkets_provider.query.exchange_time import Span, exchange_span, to_utc
from openmarkets_provider.query.plan import ApiCall, plan
from openmarkets_provider.query.query import check, endpoint_of, is_repeatable, resolve, subject_of, window
from openmarkets_provider.query.rows import select_range
from tests.query.test_exchange_time import INSTANTS, LENGTHS, RANGES, SYDNEY, instants_of, written
from tests.support.queries import SCHEMAS, Later, LazySequence, of_every_kind

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
CODES = st.from_regex(r"[A-Za-z0-9_-]{1,6}", fullmatch=True)


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


def quotes(securities: Any, **changes: Any) -> dict[str, Any]:
    return {
        "endpoint": "quotes",
        "securities": securities,
        "exchange": None,
        "on_invalid": "error",
        "raw": False,
    } | changes


def listed(exchange: Any) -> dict[str, Any]:
    return {"endpoint": "securities", "exchange": exchange, "raw": False}


RANGE = {"start": "2026-01-05", "end": "2026-01-06"}
VALID = {"request": request(), **of_every_kind(**RANGE)}
RANGED = [name for name, query in VALID.items() if "start" in query]


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
    assert is_repeatable({"endpoint": "accounts", "raw": False})
    assert not is_repeatable(request(method="POST"))


def test_whether_a_query_is_repeatable_is_known_before_what_it_asks_about():
    assert is_repeatable(quotes(None, exchange="ASX"))
    assert is_repeatable(queries.positions())


# --- the generic request


def test_a_request_becomes_one_call_as_written():
    query = request(api="oms", method="pAtCh", path="x/v1", params={"a": [1, "b", True]}, json={"c": None})
    assert list(plan(query)) == [ApiCall("oms", "PATCH", "x/v1", {"a": [1, "b", True]}, {"c": None}, False)]
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
        ({"api": 5}, r"api a value of type int \(5\) is unknown"),
        ({"api": 5.5}, r"api a value of type float \(5\.5\) is unknown"),
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


@pytest.mark.parametrize("endpoint", [None, "", "Quotes", "create_order", 5, [], {}, nested(100_000)])
def test_an_unknown_endpoint_is_refused_with_the_known_ones(endpoint: Any):
    with pytest.raises(OpenmarketsQueryError, match=r"is unknown; allowed are accounts, cash, depth, .*, trades\."):
        plan({"endpoint": endpoint})


def test_an_endpoint_that_is_a_number_too_long_to_write_is_refused():
    with pytest.raises(OpenmarketsQueryError, match=r"endpoint a value of type int.* is unknown"):
        plan({"endpoint": 10**5000})


def test_a_dict_without_an_endpoint_is_refused():
    with pytest.raises(OpenmarketsQueryError, match="endpoint None is unknown"):
        plan({})


def test_unknown_arguments_are_named():
    with pytest.raises(
        OpenmarketsQueryError,
        match=r"quotes: unknown argument 'a', 1; allowed are securities, exchange, on_invalid, raw\.",
    ):
        plan(quotes(["BHP"]) | {1: 2, "a": 1})
    with pytest.raises(OpenmarketsQueryError, match=r"accounts: unknown argument 'x'; allowed are raw\."):
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
        (nested(100_000), "nested too deep"),
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
        listed(Later()),
        listed("{{ params.exchange }}"),
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
    assert list(plan(listed("ASX"))) == [
        ApiCall("market_data", "GET", "securities/v1", {"exchanges": "ASX"}, safe_to_repeat=True, exact=True)
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
        (5, r"a value of type int \(5\)"),
        (1.5, r"a value of type float \(1\.5\)"),
    ],
)
def test_a_malformed_exchange_is_shown(exchange: Any, shown: str):
    with pytest.raises(OpenmarketsQueryError, match=f"securities: exchange must be a code such as 'ASX', not {shown}"):
        check(listed(exchange))


def test_accounts():
    assert list(plan(queries.accounts())) == [ApiCall("oms", "GET", "accounts/v1", safe_to_repeat=True, exact=True)]


def test_numbers_of_records_that_stay_untouched_are_not_decoded_exactly():
    assert only_call(queries.accounts(raw=True)).exact is False
    assert only_call(quotes("BHP", raw=True)).exact is False


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
    call = only_call(quotes(securities))
    assert call.json == {"securities": full}
    assert all(type(security) is str for security in call.json["securities"])


@pytest.mark.parametrize(
    ("securities", "message"),
    [
        ([], "securities is empty"),
        ("", "securities is empty"),
        (" , \n", "securities is empty"),
        (None, "name the securities, or an exchange"),
        (True, "securities must be a list.*not a value of type bool"),
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
        ([5], r"securities: a value of type int \(5\) is malformed"),
        ("['BHP', 'CBA']", r"securities: \"\['BHP'\" is malformed"),
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
    assert len(calls) == len(sizes)


@given(st.lists(CODES, min_size=1, max_size=30), st.integers(1, 150))
def test_every_security_is_in_exactly_one_batch_in_its_order(codes: list[str], times: int):
    wanted = [f"{code}x{number}" for number in range(times) for code in codes]
    calls = plan(quotes(wanted))
    batches = [call.json["securities"] for call in calls]
    assert [security for batch in batches for security in batch] == [f"{c}.ASX@TM" for c in dict.fromkeys(wanted)]
    assert all(1 <= len(batch) <= MAX_SECURITIES for batch in batches)
    assert all(call.safe_to_repeat for call in calls)


# --- arguments of typed queries


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (VALID["depth"] | {"levels": 0}, "levels must be a whole number from 1 to 100, not 0"),
        (VALID["depth"] | {"levels": 101}, "levels must be a whole number from 1 to 100, not 101"),
        (VALID["depth"] | {"levels": -1}, "levels must be a whole number from 1 to 100, not -1"),
        (VALID["depth"] | {"levels": True}, "levels must be a whole number from 1 to 100, not True"),
        (VALID["depth"] | {"levels": 5.0}, "levels must be a whole number from 1 to 100, not 5.0"),
        (VALID["depth"] | {"levels": "0"}, "levels must be a whole number from 1 to 100, not '0'"),
        (VALID["depth"] | {"levels": "-5"}, "levels must be a whole number from 1 to 100, not '-5'"),
        (VALID["depth"] | {"levels": "٥"}, "levels must be a whole number from 1 to 100, not '٥'"),  # noqa: RUF001 - an Arabic digit
        (VALID["depth"] | {"levels": "None"}, "levels must be a whole number from 1 to 100, not 'None'"),
        (VALID["depth"] | {"levels": None}, "levels must be a whole number from 1 to 100, not None"),
        (VALID["depth"] | {"levels": "9" * 5000}, "levels must be a whole number from 1 to 100, not '999"),
        (VALID["depth"] | {"levels": 10**4000}, "levels must be a whole number from 1 to 100, not 1000"),
        (VALID["depth"] | {"on_invalid": "ignore"}, "on_invalid must be one of 'error', 'warn', not 'ignore'"),
        (VALID["depth"] | {"on_invalid": None}, "on_invalid must be one of 'error', 'warn', not None"),
        (VALID["depth"] | {"raw": 1}, "raw must be True or False, not 1"),
        (VALID["depth"] | {"raw": "no"}, "raw must be True or False, not 'no'"),
        (VALID["depth"] | {"exchange": "ASX"}, "securities and exchange don't go together"),
        (VALID["depth"] | {"securities": None}, "name the securities, or an exchange"),
        (VALID["depth"] | {"securities": None, "exchange": "A/X"}, "exchange must be a code such as 'ASX', not 'A/X'"),
        (VALID["time_series"] | {"frequency": "daily"}, "frequency must be one of 'Daily', 'Weekly', not 'daily'"),
        (VALID["time_series"] | {"frequency": "Minutes"}, "frequency must be one of 'Daily', 'Weekly', not 'Minutes'"),
        (VALID["time_series"] | {"frequency": 1}, "frequency must be one of 'Daily', 'Weekly', not 1"),
        (VALID["intraday_time_series"] | {"interval": 7}, "interval must be one of 1, 2, 3, .* 60 (minutes), not 7"),
        (VALID["intraday_time_series"] | {"interval": 0}, "interval must be one of 1, 2, 3, .* 60 (minutes), not 0"),
        (VALID["intraday_time_series"] | {"interval": True}, "interval must be one of .* (minutes), not True"),
        (VALID["intraday_time_series"] | {"interval": "5m"}, "interval must be one of .* (minutes), not '5m'"),
        (VALID["intraday_time_series"] | {"interval": None}, "interval must be one of .* (minutes), not None"),
        (VALID["trades"] | {"start": None}, "start must be a date or a time such as .*not None"),
        (VALID["trades"] | {"start": "None"}, "start must be a date or a time such as .*not 'None'"),
        (VALID["trades"] | {"start": "0001-01-01"}, "start must be a date or a time such as .*not '0001-01-01'"),
        (VALID["trades"] | {"end": "9999-12-31"}, "end must be a date or a time such as .*not '9999-12-31'"),
        (VALID["trades"] | {"end": 20260105}, "end must be a date or a time such as .*not a value of type int"),
        (VALID["trades"] | {"end": True}, "end must be a date or a time such as .*not a value of type bool"),
        (VALID["trades"] | {"end": ["2026-01-05"]}, "end must be a date or a time such as .*not a value of type list"),
        (VALID["order_trades"] | {"start": "yesterday"}, "start must be a date or a time such as .*not 'yesterday'"),
        (VALID["orders"] | {"include_child_orders": 1}, "include_child_orders must be True or False, not 1"),
        (VALID["orders"] | {"portfolios": "P1"}, "accounts and portfolios don't go together"),
        (VALID["orders"] | {"accounts": 5}, "accounts must be a list such as ['12345'] .*not a value of type int"),
        (VALID["orders"] | {"accounts": ""}, "accounts is empty"),
        (VALID["orders"] | {"accounts": []}, "accounts is empty"),
        (VALID["orders"] | {"accounts": [5]}, "accounts: a value of type int (5) is malformed"),
        (VALID["orders"] | {"accounts": [True]}, "accounts: a value of type bool (True) is malformed"),
        (VALID["orders"] | {"accounts": [float("0.1")]}, "accounts: a value of type float (0.1) is malformed"),
        (VALID["orders"] | {"accounts": None}, "accounts and portfolios are None; name codes, or leave both out"),
        (VALID["orders"] | {"accounts": "*", "portfolios": "P1"}, "accounts and portfolios don't go together"),
        (VALID["cash"] | {"portfolios": [None]}, "portfolios: None is malformed"),
        (VALID["cash"] | {"portfolios": ["x" * 101]}, "portfolios: 'xxx.*is malformed"),
        (
            VALID["portfolio_details"] | {"include_same_cash_account": None},
            "include_same_cash_account must be True or False, not None",
        ),
    ],
)
def test_a_mistake_is_told_when_made_and_when_run(query: dict[str, Any], message: str):
    pattern = re.escape(f"{query['endpoint']}: {message}").replace(r"\.\*", ".*")
    for look in (check, plan):
        with pytest.raises(OpenmarketsQueryError, match=f"^{pattern}") as caught:
            look(query)
        assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "code", ["A/B", "A\\B", ".", "..", "/", "A\x00", "A\x7fB", "A\nB", "A\u2028B", "A\u202eB", " "]
)
@pytest.mark.parametrize(
    ("name", "argument"), [("orders", "accounts"), ("order_trades", "accounts"), ("positions", "portfolios")]
)
def test_a_code_that_could_lead_elsewhere_or_hide_is_refused(name: str, argument: str, code: str):
    for look in (check, plan):
        with pytest.raises(OpenmarketsQueryError, match=f"{argument}: .* is malformed") as caught:
            look(VALID[name] | {argument: [code]})
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("argument", ["accounts", "portfolios"])
@pytest.mark.parametrize(
    "codes",
    [
        *("['A', 'B']", '["A", "B"]', "['A']", "[]", "[A]", "A, 'B'", 'A "B"', ["['A', 'B']"], ["A", "B]"]),
        *(["*"], "* A", "A*", ["%2a"], ["%5BA%5D"], ["%27A%27"], ["%22A%22"]),
    ],
)
def test_a_list_that_a_template_turned_into_text_is_no_list_of_codes(argument: str, codes: Any):
    for look in (check, plan):
        with pytest.raises(
            OpenmarketsQueryError, match=f"{argument}: .* is malformed.*that a template turned into text"
        ):
            look(VALID["orders"] | {"accounts": None} | {argument: codes})


def test_all_is_said_of_accounts_alone():
    assert resolve(queries.orders())["accounts"] == "*"
    assert resolve(queries.orders("*")) == resolve(queries.orders())
    with pytest.raises(OpenmarketsQueryError, match=r"portfolios: '\*' is malformed"):
        queries.orders(portfolios="*")


OMS = [name for name, query in VALID.items() if "accounts" in query]


@pytest.mark.parametrize("name", OMS)
@pytest.mark.parametrize("argument", ["accounts", "portfolios"])
@pytest.mark.parametrize("later", ["{{ params.codes }}", Later()], ids=["template", "upstream"])
def test_codes_that_turn_out_to_be_none_are_refused_and_do_not_mean_all(name: str, argument: str, later: Any):
    query = VALID[name] | {"accounts": None, "portfolios": None} | {argument: later}
    assert check(query) is query
    nothing = query | {argument: None}
    for look in (check, plan, resolve, window):
        with pytest.raises(OpenmarketsQueryError, match=f"^{name}: accounts and portfolios are None; name codes, or"):
            look(nothing)


@pytest.mark.parametrize("argument", ["securities", "exchange"])
def test_a_date_is_no_code_of_a_security_or_an_exchange(argument: str):
    query = quotes(None) | {argument: date(2026, 1, 5)}
    for look in (check, plan):
        with pytest.raises(OpenmarketsQueryError, match=argument):
            look(query)


def test_a_date_is_no_account_code():
    for look in (check, plan):
        with pytest.raises(OpenmarketsQueryError, match="accounts"):
            look(VALID["orders"] | {"accounts": date(2026, 1, 5)})


@pytest.mark.parametrize(("levels", "sent"), [(1, 1), (100, 100), ("1", 1), ("010", 10), (IntEnum("L", {"A": 7}).A, 7)])
def test_a_number_may_be_the_text_that_a_template_renders(levels: Any, sent: int):
    params = only_call(VALID["depth"] | {"levels": levels}).params
    assert params == {"askLevelMax": sent, "bidLevelMax": sent, "groupBy": "Price"}
    query = VALID["intraday_time_series"] | {"interval": "60"}
    assert only_call(query).params["consolidationInterval"] == 60


class Choice(str, Enum):  # noqa: UP042 - StrEnum would not do
    """Unlike StrEnum its members are not written as their values."""

    DAILY = "Daily"
    ASX = "ASX"
    WARN = "warn"


def test_a_member_of_an_enumeration_of_texts_is_sent_as_its_text():
    params = [
        only_call(VALID["time_series"] | {"frequency": Choice.DAILY}).params["frequency"],
        only_call(listed(Choice.ASX)).params["exchanges"],
    ]
    assert list(map(str, params)) == ["Daily", "ASX"]
    assert only_call(quotes([Choice.ASX])).json == {"securities": ["ASX.ASX@TM"]}


def url_of(call: ApiCall) -> httpcore.URL:
    """Return the URL that the client asks."""
    http = HttpClient("https://api.example/base", Options(1.0, None, "t/1"))
    return http.build(call.method, call.path, params=call.params, headers={}).url


@given(st.text(min_size=1, max_size=12) | st.text(alphabet="./\\%2eEfFcC5:a?#@ \n;é", min_size=1, max_size=12))
def test_every_account_code_that_is_accepted_stays_one_segment_of_the_path(code: str):
    try:
        call = only_call(VALID["orders"] | {"accounts": [code]})
    except OpenmarketsQueryError:
        return
    raw = url_of(call).target.partition(b"?")[0].decode("ascii")
    before, orders, by_account, segment, version = raw.removeprefix("/").split("/")
    assert (before, orders, by_account, version) == ("base", "orders", "by-account", "v4")
    assert unquote(segment) == code.strip()


def test_accounts_are_asked_for_once_in_the_order_given():
    calls = list(plan(VALID["orders"] | {"accounts": "B, A B\nC,,A"}))
    assert [call.path for call in calls] == [f"orders/by-account/{code}/v4" for code in "BAC"]
    assert [call.piece for call in calls] == ["B", "A", "C"]


@pytest.mark.parametrize("name", ["portfolio_details", "cash", "positions"])
def test_batches_of_portfolios_hold_a_thousand(name: str):
    codes = [f"P{number}" for number in range(2001)]
    batches = [call.json["portfolioCodes"] for call in plan(VALID[name] | {"portfolios": [*codes, "P0"]})]
    assert [len(batch) for batch in batches] == [1000, 1000, 1]
    assert [code for batch in batches for code in batch] == codes


def test_what_is_asked_for_by_one_security_a_call_is_in_the_order_of_the_securities():
    for name in ("depth", "time_series", "intraday_time_series", "trades"):
        calls = list(plan(VALID[name] | {"securities": "CBA BHP.CXA CBA"}))
        assert [call.security for call in calls] == ["CBA.ASX@TM", "BHP.CXA@TM"]
        assert all(f"/{call.security}/" in call.path for call in calls)
        assert all(call.piece.startswith(str(call.security)) for call in calls)


def test_batches_say_which_part_they_are():
    first, second = plan(quotes([f"S{number}" for number in range(1003)]))
    assert (first.piece, second.piece) == (
        "1000 securities from S0.ASX@TM on",
        "3 securities from S1000.ASX@TM on",
    )
    assert first.security is None


# --- ranges


@pytest.mark.parametrize("name", RANGED)
@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("2026-01-05", "2026-01-05"),
        ("2026-01-05", "2026-01-05T00:00:00"),
        ("2026-01-06", "2026-01-05"),
        # the same instant, written in two ways
        ("2026-01-05T00:00:00", "2026-01-04T13:00:00Z"),
        # the texts are in order, the instants are not
        ("2026-01-05T10:00:00Z", "2026-01-05T11:00:00"),
        # the hour that is missing in October means the next one
        ("2026-10-04T02:30:00", "2026-10-04T03:30:00"),
        ("2026-10-04T02:30:00", "2026-10-04T03:00:00"),
        (date(2026, 1, 5), date(2026, 1, 5)),
    ],
)
def test_an_empty_or_reversed_range_is_refused(name: str, start: Any, end: Any):
    for look in (check, plan):
        with pytest.raises(
            OpenmarketsQueryError,
            match=f"^{name}: start '.*' and end '.*' are an empty or reversed range. end must be after start; of bars",
        ):
            look(VALID[name] | {"start": start, "end": end})


@pytest.mark.parametrize("name", RANGED)
def test_a_range_with_a_template_is_checked_when_it_runs(name: str):
    query = VALID[name] | {"start": "{{ data_interval_start }}", "end": "2026-01-05"}
    assert check(query) is query
    with pytest.raises(OpenmarketsQueryError, match="start must be a date or a time"):
        plan(query)
    with pytest.raises(OpenmarketsQueryError, match="empty or reversed range"):
        plan(query | {"start": "2026-01-05 00:00:00+00:00"})
    assert plan(query | {"start": "2026-01-03 00:00:00+00:00"})


@pytest.mark.parametrize("name", RANGED)
def test_the_literal_bound_beside_a_template_is_checked_when_made(name: str):
    with pytest.raises(OpenmarketsQueryError, match="end must be a date or a time"):
        check(VALID[name] | {"start": "{{ ds }}", "end": "someday"})
    with pytest.raises(OpenmarketsQueryError, match="start must be a date or a time"):
        check(VALID[name] | {"start": "someday", "end": Later()})


@pytest.mark.parametrize(
    ("start", "end", "days"),
    [
        ("2026-01-05", "2026-01-06", ("2026-01-05", "2026-01-06")),
        ("2026-01-05T23:59", "2026-01-06T00:00", ("2026-01-05", "2026-01-06")),
        ("2026-01-05T15:00", "2026-01-09T15:00", ("2026-01-05", "2026-01-09")),
        ("2026-01-04T13:00:00Z", "2026-01-05T12:59:59Z", None),
        ("2026-01-04T12:59:59Z", "2026-01-04T13:00:00Z", ("2026-01-04", "2026-01-05")),
        # a day of Airflow's, midnight to midnight UTC, is the exchange day that it begins in
        ("2026-01-05T00:00:00+00:00", "2026-01-06T00:00:00+00:00", ("2026-01-05", "2026-01-06")),
        (date(2026, 1, 5), datetime(2026, 1, 6, tzinfo=UTC), ("2026-01-05", "2026-01-06")),
    ],
)
def test_daily_bars_are_those_of_the_exchange_days_of_the_bounds(start: Any, end: Any, days: tuple[str, str] | None):
    query = VALID["time_series"] | {"start": start, "end": end}
    if days is None:
        for look in (check, plan):
            with pytest.raises(
                OpenmarketsQueryError, match=r"of bars it must be in a later one \(another exchange day"
            ):
                look(query)
        return
    assert only_call(query).params == {"frequency": "Daily", "dateFrom": days[0], "dateTo": days[1]}
    assert window(query) == tuple(map(date.fromisoformat, days))


@pytest.mark.parametrize(
    ("start", "end", "saturdays"),
    [
        ("2026-01-03", "2026-01-10", ("2026-01-03", "2026-01-10")),
        ("2026-01-09", "2026-01-10", ("2026-01-03", "2026-01-10")),
        ("2026-01-05", "2026-01-16", ("2026-01-03", "2026-01-10")),
        ("2026-01-09T23:59:59", "2026-01-30T10:00", ("2026-01-03", "2026-01-24")),
        # Friday midnight of the exchange, written in UTC
        ("2026-01-09T12:59:59Z", "2026-01-09T13:00:00Z", ("2026-01-03", "2026-01-10")),
        # a week of Airflow's, Sunday to Sunday in UTC
        ("2026-01-04T00:00:00+00:00", "2026-01-11T00:00:00+00:00", ("2026-01-03", "2026-01-10")),
        # within one week
        ("2026-01-03", "2026-01-09T23:59:59", None),
        ("2026-01-05", "2026-01-06", None),
        ("2026-01-05", "2026-01-05", None),
        ("2026-01-09T13:00:00Z", "2026-01-16T12:59:59Z", None),
        ("2026-01-12", "2026-01-05", None),
    ],
)
def test_weekly_bars_are_those_of_the_weeks_from_saturday_that_the_bounds_are_in(
    start: str, end: str, saturdays: tuple[str, str] | None
):
    query = VALID["time_series"] | {"frequency": "Weekly", "start": start, "end": end}
    if saturdays is None:
        for look in (check, plan):
            with pytest.raises(OpenmarketsQueryError, match=r"are an empty or reversed range\. .* week or interval"):
                look(query)
        return
    assert check(query) is query
    assert only_call(query).params == {"frequency": "Weekly", "dateFrom": saturdays[0], "dateTo": saturdays[1]}
    assert window(query) == tuple(map(date.fromisoformat, saturdays))


@pytest.mark.parametrize(
    ("start", "end", "interval", "times"),
    [
        ("2026-01-05T10:07", "2026-01-05T12:07", 60, ("2026-01-05T10:00:00", "2026-01-05T12:00:00")),
        ("2026-01-05T10:59:59.9", "2026-01-05T11:00", 60, ("2026-01-05T10:00:00", "2026-01-05T11:00:00")),
        ("2026-01-05T10:07", "2026-01-05T10:31", 15, ("2026-01-05T10:00:00", "2026-01-05T10:30:00")),
        ("2026-01-04T23:07Z", "2026-01-05T00:07+00:00", 60, ("2026-01-05T10:00:00", "2026-01-05T11:00:00")),
        ("2026-01-05T10:07", "2026-01-05T10:08", 1, ("2026-01-05T10:07:00", "2026-01-05T10:08:00")),
        ("2026-01-05T10:07", "2026-01-05T10:59", 60, None),
        ("2026-01-05T10:00", "2026-01-05T10:59:59.999999", 60, None),
        ("2026-01-05T10:07:01", "2026-01-05T10:07:59", 1, None),
    ],
)
def test_intraday_bars_are_those_that_the_bounds_are_in(
    start: str, end: str, interval: int, times: tuple[str, str] | None
):
    query = VALID["intraday_time_series"] | {"start": start, "end": end, "interval": interval}
    if times is None:
        for look in (check, plan):
            with pytest.raises(OpenmarketsQueryError, match=r"are an empty or reversed range\. .* week or interval"):
                look(query)
        return
    assert check(query) is query
    call = only_call(query)
    assert (call.params["dateTimeFrom"], call.params["dateTimeTo"]) == times
    assert window(query) == tuple(to_utc(datetime.fromisoformat(moment)) for moment in times)


def test_a_range_of_bars_is_checked_when_it_runs_if_what_a_bar_is_comes_later():
    for name, argument in (("time_series", "frequency"), ("intraday_time_series", "interval")):
        bounds = {"start": "2026-01-05T10:00", "end": "2026-01-05T10:01"}
        query = VALID[name] | bounds | {argument: "{{ params.x }}"}
        assert check(query) is query
        with pytest.raises(OpenmarketsQueryError, match="empty or reversed range"):
            plan(query | {argument: VALID[name][argument]})
    assert len(plan(query | {"interval": "1"})) == 1


def bar_of(name: str, length: Any, moment: datetime) -> date | datetime:
    """Tell in another way than the package which bar a moment is in."""
    shown = moment.astimezone(SYDNEY)
    if name == "intraday_time_series":
        return shown.replace(minute=shown.minute // length * length, second=0, microsecond=0).astimezone(UTC)
    saturdays = (shown.date() - timedelta(days=back) for back in range(7))
    return next(day for day in saturdays if length == "Daily" or day.isoweekday() == 6)


def asked_for_and_selected(query: dict[str, Any], written_as: date | datetime) -> bool:
    """Tell whether a range asks for a bar and keeps it; a range that is refused does neither."""
    if (refused := refusal(plan, query)) is not None:
        assert "empty or reversed range" in refused
        return False
    name, calls = query["endpoint"], list(plan(query))
    if isinstance(written_as, datetime):
        asked = sum(piece.start <= written_as < piece.end for piece in spans_of(calls))
        row = {SCHEMAS[name].time: to_utc(written_as)}
    else:
        (call,) = calls
        asked = call.params["dateFrom"] <= written_as.isoformat() < call.params["dateTo"]
        row = {SCHEMAS[name].time: written_as}
    selected = select_range(SCHEMAS[name], calls[0], [row], window(query))
    # What is kept must have been asked for, and by one call alone.
    assert asked == 1 or not selected
    return bool(selected)


@given(
    INSTANTS,
    LENGTHS,
    LENGTHS,
    st.sampled_from(
        [("time_series", "Daily"), ("time_series", "Weekly")]
        + [("intraday_time_series", interval) for interval in MAX_DAYS]
    ),
    st.data(),
)
@settings(max_examples=500)
def test_no_bar_is_in_two_ranges_that_follow_each_other_and_none_is_left_out(
    first: datetime, one: timedelta, other: timedelta, kind: tuple[str, Any], data: st.DataObject
):
    name, length = kind
    bounds = [first, first + one, first + one + other]
    argument = "frequency" if name == "time_series" else "interval"
    near = data.draw(st.sampled_from(list(itertools.pairwise(bounds))).flatmap(instants_of))
    if name == "time_series":
        # Whichever of its days the API dates a weekly bar by: a day of the week is as good as another.
        written_as: date | datetime = near.astimezone(SYDNEY).date()
        moment = datetime.combine(written_as, time(12), SYDNEY)
    else:
        written_as = written(bar_of(name, length, near))
        moment = to_utc(written_as)
    start, end = bar_of(name, length, bounds[0]), bar_of(name, length, bounds[-1])
    holding = [
        asked_for_and_selected(VALID[name] | {argument: length, "start": earlier, "end": later}, written_as)
        for earlier, later in itertools.pairwise(bounds)
    ]
    assert sum(holding) == (start <= bar_of(name, length, moment) < end)


@given(RANGES, st.sampled_from(["Daily", "Weekly"]))
def test_bars_of_days_and_weeks_take_one_call_however_long_the_range(wanted: tuple[datetime, datetime], frequency: str):
    query = VALID["time_series"] | {"start": wanted[0], "end": wanted[1], "frequency": frequency}
    start, end = (bar_of("time_series", frequency, bound) for bound in wanted)
    if start == end:
        with pytest.raises(OpenmarketsQueryError, match="empty or reversed range"):
            plan(query)
        return
    assert only_call(query).params == {
        "frequency": frequency,
        "dateFrom": start.isoformat(),
        "dateTo": end.isoformat(),
    }
    assert window(query) == (start, end)


@given(RANGES)
def test_trades_of_accounts_take_one_call_however_long_the_range(wanted: tuple[datetime, datetime]):
    query = VALID["order_trades"] | {"start": wanted[0], "end": wanted[1]}
    span = exchange_span(*wanted)
    assert only_call(query).params == {"dateTimeFrom": span.start.isoformat(), "dateTimeTo": span.end.isoformat()}
    assert window(query) == wanted


def spans_of(calls: Iterable[ApiCall]) -> list[Span[datetime]]:
    bounds = [call.json or call.params for call in calls]
    return [Span(*(datetime.fromisoformat(of[name]) for name in ("dateTimeFrom", "dateTimeTo"))) for of in bounds]


@given(RANGES, st.sampled_from(list(MAX_DAYS)), st.integers(1, 3), st.data())
def test_intraday_pieces_cover_the_range_once_and_none_is_too_long(
    wanted: tuple[datetime, datetime], interval: int, count: int, data: st.DataObject
):
    codes = [f"S{number}" for number in range(count)]
    query = VALID["intraday_time_series"] | {
        "securities": codes,
        "start": wanted[0],
        "end": wanted[1],
        "interval": interval,
    }
    start, end = (bar_of("intraday_time_series", interval, bound) for bound in wanted)
    if start == end:
        with pytest.raises(OpenmarketsQueryError, match="empty or reversed range"):
            plan(query)
        return
    assert window(query) == (start, end)
    calls = list(plan(query))
    for security, group in itertools.groupby(calls, lambda call: call.security):
        group = list(group)
        pieces = spans_of(group)
        assert (pieces[0].start, pieces[-1].end) == exchange_span(start, end)
        assert all(piece.end == following.start for piece, following in itertools.pairwise(pieces))
        limit = timedelta(days=7 if interval < 10 else 30 if interval <= 30 else 60)
        assert all(timedelta(0) < piece.end - piece.start <= limit for piece in pieces)
        assert [call.piece for call in group] == [f"{security}, {piece}" for piece in pieces]
        assert all(call.params["consolidationInterval"] == interval for call in group)
    assert list(dict.fromkeys(call.security for call in calls)) == [f"{code}.ASX@TM" for code in codes]
    bar = written(bar_of("intraday_time_series", interval, data.draw(instants_of(wanted))))
    if start <= to_utc(bar) < end:
        assert sum(piece.start <= bar < piece.end for piece in pieces) == 1


@given(RANGES, st.data())
def test_trades_are_asked_for_one_exchange_day_a_call(wanted: tuple[datetime, datetime], data: st.DataObject):
    pieces = spans_of(plan(VALID["trades"] | {"start": wanted[0], "end": wanted[1]}))
    assert (pieces[0].start, pieces[-1].end) == exchange_span(*wanted)
    assert all(piece.end == following.start for piece, following in itertools.pairwise(pieces))
    assert all(piece.start.date() == (piece.end - timedelta(microseconds=1)).date() for piece in pieces)
    row = written(data.draw(instants_of(wanted)))
    if wanted[0] <= to_utc(row) < wanted[1]:
        assert sum(piece.start <= row < piece.end for piece in pieces) == 1


@pytest.mark.parametrize(
    ("now", "days"),
    [
        ("2026-01-04T23:59:59", []),
        ("2026-01-05T00:00:00", ["2026-01-05"]),
        ("2026-01-05T09:59:59", ["2026-01-05"]),
        ("2026-01-05T23:59:59", ["2026-01-05"]),
        ("2026-01-06T00:00:00", ["2026-01-05", "2026-01-06"]),
        ("2026-02-01T00:00:00", ["2026-01-05", "2026-01-06", "2026-01-07"]),
    ],
)
def test_no_trades_are_asked_for_of_days_to_come(now: str, days: list[str]):
    query = VALID["trades"] | {"securities": "BHP CBA", "start": "2026-01-05", "end": "2026-01-08"}
    calls = plan(query, datetime.fromisoformat(now))
    assert [piece.start.date().isoformat() for piece in spans_of(calls)] == days * 2
    assert len(calls) == len(days) * 2


@pytest.mark.parametrize(
    ("start", "asked"),
    [
        ("2026-04-05T02:30:00+11:00", True),
        ("2026-04-05T02:10:00+10:00", True),
        ("2026-04-05T03:05:00+10:00", False),
    ],
)
def test_what_has_begun_is_asked_for_in_the_hour_that_comes_twice(start: str, asked: bool):
    query = VALID["trades"] | {"start": start, "end": "2026-04-06"}
    assert len(plan(query, datetime.fromisoformat("2026-04-05T02:10:00").replace(fold=1))) == asked


def test_no_bars_are_asked_for_of_pieces_to_come():
    query = VALID["intraday_time_series"] | {"start": "2026-01-05", "end": "2027-01-05"}
    first, second = plan(query, datetime.fromisoformat("2026-01-12T00:00:00"))
    assert spans_of([first, second]) == spans_of(itertools.islice(plan(query), 2))
    assert list(plan(query, datetime.fromisoformat("2026-01-04T23:59:59"))) == []


@given(RANGES, st.timedeltas(timedelta(days=-80), timedelta(days=80)))
def test_just_the_pieces_that_begin_after_now_are_left_out(wanted: tuple[datetime, datetime], off: timedelta):
    now = written(wanted[0] + off)
    for name in ("trades", "intraday_time_series"):
        query = VALID[name] | {"start": wanted[0], "end": wanted[1] + timedelta(minutes=5)}
        every = list(plan(query))
        begun = [call for call, piece in zip(every, spans_of(every), strict=True) if piece.start <= now]
        assert list(plan(query, now)) == begun


@pytest.mark.parametrize("name", ["trades", "intraday_time_series"])
def test_thirty_years_of_two_thousand_securities_are_planned_without_making_all_calls(name: str):
    codes = [f"S{number}" for number in range(2000)]
    query = VALID[name] | {"securities": codes, "start": "1996-01-01", "end": "2026-01-01"}
    days = (date(2026, 1, 1) - date(1996, 1, 1)).days
    tracemalloc.start()
    try:
        calls = plan(query)
        first = list(itertools.islice(calls, 3))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(calls) == 2000 * (days if name == "trades" else -(-days // 7))
    assert [call.security for call in first] == ["S0.ASX@TM"] * 3
    # All calls of trades would be gigabytes.
    assert peak < 20_000_000


def test_a_plan_can_be_gone_through_again():
    calls = plan(VALID["trades"] | {"securities": "BHP CBA"})
    assert list(calls) == list(calls)
    assert len(list(calls)) == len(calls) == 2


# --- what others ask of a query


@pytest.mark.parametrize(
    ("name", "subject"),
    [
        ("request", None),
        ("securities", None),
        ("accounts", None),
        ("portfolio_links", None),
        ("depth", "securities"),
        ("trades", "securities"),
        ("cash", "portfolios"),
        ("orders", "accounts"),
    ],
)
def test_what_a_query_asks_about(name: str, subject: str | None):
    assert subject_of(VALID[name]) == subject
    assert endpoint_of(VALID[name]) == name


@pytest.mark.parametrize("name", [name for name in VALID if name not in (*RANGED, "request")])
def test_a_query_without_a_range_has_no_window(name: str):
    assert window(VALID[name]) is None


def test_arguments_in_their_final_form():
    query = VALID["intraday_time_series"] | {"securities": "BHP, CBA.CXA", "interval": "5"}
    given = resolve(query)
    assert resolve(given) is given
    assert given == {
        "endpoint": "intraday_time_series",
        "securities": ["BHP.ASX@TM", "CBA.CXA@TM"],
        "exchange": None,
        "start": datetime(2026, 1, 4, 13, tzinfo=UTC),
        "end": datetime(2026, 1, 5, 13, tzinfo=UTC),
        "interval": 5,
        "on_invalid": "error",
        "raw": False,
    }


# --- any data


class Odd(StrEnum):
    NONE = "None"


ODD_VALUES = [
    *("", " ", ",", "None", "none", "null", "nan", "NaT", "True", "0", "-1", "1e3", "1.0", "٣", "é", "ＢＨＰ"),  # noqa: RUF001
    *("\ud800", "\x00", "A\x00B", "\u202e", "..", "../..", "A/B", "%2e%2e", "?x=1", "#", "{", "}}", "\\"),
    *("9" * 5000, "x" * 100_000, "2026-01-05" * 1000, 10**5000, -(10**5000), float("nan"), float("inf"), 0, -1, 5, 5.0),
    *("0001-01-01", "9999-12-31", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-01-05T25:00"),
    *(True, False, None, 1j, Decimal(5), ..., object(), object, len, range(3), range(0), MappingProxyType({})),
    *(b"", b"BHP", frozenset("a"), bytearray(b"abc"), memoryview(b"abc"), Odd.NONE, Path, UTC, iter("BHP")),
    *([], [[]], [{}], [[["BHP"]]], {}, {"BHP": 1}, ("BHP", None), ["BHP", b"CBA"], [True], [5], [date(2026, 1, 5)]),
    *(
        LazySequence("BHP", "CBA"),
        LazySequence(),
        [LazySequence("BHP")],
        timedelta(1),
        time(10),
        pendulum.duration(days=1),
    ),
    *(
        date.min,
        date.max,
        datetime.min.replace(tzinfo=UTC),
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-14))),
    ),
]
ANY_VALUE = (
    JSON
    | st.text(max_size=30)
    | st.text(alphabet="0123456789-:T+Z. ", max_size=30)
    | st.dates()
    | st.datetimes(timezones=st.none() | st.timezones())
    | st.lists(st.text(max_size=5) | st.integers() | st.none(), max_size=3)
)
PLACES = [(name, argument) for name, query in VALID.items() for argument in query if argument != "endpoint"]


def refusal(look: Callable[[dict[str, Any]], object], query: dict[str, Any]) -> str | None:
    try:
        look(query)
    except OpenmarketsQueryError as error:
        return str(error)
    return None


def begin(query: dict[str, Any]) -> None:
    """Plan a query, and make some of its calls."""
    for call in itertools.islice(plan(query), 3):
        assert call.path.isascii() or call.path == query["path"]


def assert_planned_or_refused_by_name(name: str, argument: str, value: Any) -> None:
    query = VALID[name] | {argument: value}
    when_made, when_run = refusal(check, query), refusal(begin, query)
    for text in (when_made, when_run):
        assert text is None or (argument in text and text.isprintable() and len(text) < 2000)
    if is_literal_throughout(value):
        assert when_made == when_run
    else:
        assert when_made is None or when_run is not None


@pytest.mark.parametrize(("name", "argument"), PLACES)
def test_an_odd_value_is_planned_or_refused_with_an_error_that_names_its_argument(name: str, argument: str):
    for value in ODD_VALUES:
        assert_planned_or_refused_by_name(name, argument, value)


@given(st.sampled_from(PLACES), ANY_VALUE)
@settings(max_examples=500)
def test_any_value_is_planned_or_refused_with_an_error_that_names_its_argument(place: tuple[str, str], value: Any):
    assert_planned_or_refused_by_name(*place, value)


ARGUMENTS = st.fixed_dictionaries(
    {"endpoint": st.sampled_from(list(VALID)) | JSON},
    optional={
        argument: st.sampled_from([query[argument] for query in VALID.values() if argument in query]) | JSON
        for argument in {argument for _, argument in PLACES}
    },
)
COMPLETE = st.sampled_from(list(VALID.values())).flatmap(
    lambda query: st.fixed_dictionaries(
        {key: st.just(value) if key == "endpoint" else st.just(value) | JSON for key, value in query.items()}
    )
)


@given(JSON | ARGUMENTS | COMPLETE)
@settings(max_examples=500)
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
        calls = list(itertools.islice(plan(query), 10))
    except OpenmarketsQueryError:
        assert not is_literal_throughout(query)
        return
    assert list(itertools.islice(plan(json.loads(json.dumps(query))), 10)) == calls
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
    try:
        call = only_call(request(path=path))
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


def test_the_results_of_a_mapped_task_are_taken_as_a_list():
    (call,) = plan(quotes(LazySequence("BHP", "CBA")))
    assert call.json == {"securities": ["BHP.ASX@TM", "CBA.ASX@TM"]}
    with pytest.raises(OpenmarketsQueryError, match="securities is empty"):
        plan(quotes(LazySequence()))
    calls = plan(VALID["orders"] | {"accounts": LazySequence("A", "B")})
    assert [call.path for call in calls] == ["orders/by-account/A/v4", "orders/by-account/B/v4"]


@pytest.mark.parametrize("code", ["%2e%2e", "a%2Fb", "%252e%252E", "a%255cb", "%00"])
def test_an_account_code_that_hides_another_path_is_malformed(code: str):
    with pytest.raises(OpenmarketsQueryError, match=r"orders: accounts: .* is malformed"):
        plan(queries.orders(["{{ later }}"]) | {"accounts": [code]})


@pytest.mark.parametrize(("rendered", "meant"), [("True", True), ("False", False)])
def test_a_flag_may_come_from_a_template(rendered: str, meant: bool):
    query = queries.orders("A", include_child_orders="{{ params.all }}") | {"include_child_orders": rendered}
    (call,) = plan(query)
    assert call.params["includeChildOrders"] is meant
    with pytest.raises(OpenmarketsQueryError, match="include_child_orders must be True or False, not 'true'"):
        plan(query | {"include_child_orders": "true"})
