from __future__ import annotations

import itertools
import json
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pendulum
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.query.arguments import is_literal
from openmarkets_provider.query.plan import plan
from openmarkets_provider.query.query import check, endpoint_of, resolve, subject_of, window
from tests.support.queries import (
    RANGED,
    VALID,
    Later,
    LazySequence,
    nested,
    quotes_query,
    refusal,
    request_query,
    securities_query,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


# --- what is not a query at all


@pytest.mark.parametrize("query", [None, "quotes", ["quotes"], 5, object()])
def test_what_is_not_a_dict_is_refused(query: Any):
    with pytest.raises(OpenmarketsQueryError, match=r"query must be what a function of openmarkets_provider\.queries"):
        plan(query)


@pytest.mark.parametrize("endpoint", [None, "", "Quotes", "create_order", 5, [], {}, nested(100_000)])
def test_an_unknown_endpoint_is_refused_with_the_known_ones(endpoint: Any):
    with pytest.raises(OpenmarketsQueryError, match=r"is unknown; use one of accounts, cash, depth, .*, trades\."):
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
        match=r"quotes: unknown argument 'a', 1; use only .*, on_missing_multiplier, on_missing_field, raw\.",
    ):
        plan(quotes_query(["BHP"]) | {1: 2, "a": 1})
    with pytest.raises(
        OpenmarketsQueryError, match=r"accounts: unknown argument 'x'; use only on_missing_field, raw\."
    ):
        plan({"endpoint": "accounts", "x": 1})


@pytest.mark.parametrize("name", ["api", "method", "path", "params", "json", "safe_to_repeat"])
def test_a_missing_argument_is_named(name: str):
    query = request_query()
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
        ({1, 2}, "a value of type set can't be written as JSON"),
        (b"x", "a value of type bytes can't be written as JSON"),
        (object(), "a value of type object can't be written as JSON"),
        (MappingProxyType({}), "a value of type mappingproxy can't be written as JSON"),
        ([float("nan")], "not JSON compliant"),
        ([float("inf")], "not JSON compliant"),
        ({(1, 2): 3}, "keys must be str"),
        (["\ud800"], "surrogates not allowed"),
        (10**5000, "Exceeds the limit"),
        (circle(), "Circular reference"),
        (nested(100_000), "nested too deeply"),
    ],
    ids=["set", "bytes", "object", "proxy", "nan", "inf", "tuple key", "surrogate", "huge", "circle", "deep"],
)
def test_what_json_cannot_hold_is_refused(value: Any, message: str):
    for look in (check, plan):
        with pytest.raises(OpenmarketsQueryError, match=f"query: argument json: .*{message}.*ISO 8601"):
            look(request_query(method="POST", json=value))


# --- templates and upstream results


@pytest.mark.parametrize(
    "query",
    [
        request_query(api=Later()),
        request_query(method=Later()),
        request_query(path=Later()),
        request_query(params=Later()),
        request_query(params={"a": Later()}),
        request_query(params={"a": ["b", Later()]}),
        request_query(method="POST", json=Later()),
        request_query(method="POST", json={"a": [Later()]}),
        request_query(method="POST", safe_to_repeat=Later()),
        request_query(safe_to_repeat="{{ params.safe }}"),
        request_query(api="{{ params.api }}"),
        request_query(method="{% if x %}GET{% endif %}"),
        request_query(params="{{ params }}"),
        quotes_query(Later()),
        quotes_query([Later()]),
        quotes_query(["BHP", Later(), "{{ params.code }}"]),
        quotes_query("{{ params.codes }}"),
        quotes_query("BHP, {# a comment #}"),
        securities_query(Later()),
        securities_query("{{ params.exchange }}"),
    ],
)
def test_templates_and_upstream_results_pass_when_made_and_are_refused_when_run(query: dict[str, Any]):
    assert check(query) is query
    with pytest.raises(OpenmarketsQueryError):
        plan(query)


@pytest.mark.parametrize(
    "query",
    [
        request_query(path="orders/{{ ds }}"),
        request_query(params={"a": "{{ ds }}"}),
        request_query(method="POST", json={"a": "{{ ds }}"}),
    ],
)
def test_texts_with_templates_pass_when_made(query: dict[str, Any]):
    assert check(query) is query


def test_literal_parts_beside_a_template_are_checked_when_made():
    with pytest.raises(OpenmarketsQueryError, match="'B P' is malformed"):
        check(quotes_query(["{{ params.code }}", "B P"]))
    with pytest.raises(OpenmarketsQueryError, match=r"api must be one of .*, not 'x'"):
        check(request_query(api="x", path="{{ params.path }}"))
    with pytest.raises(OpenmarketsQueryError, match="params\\['b'\\]"):
        check(request_query(params={"a": Later(), "b": None}))


def test_a_template_left_in_a_path_does_not_run():
    with pytest.raises(OpenmarketsQueryError, match="must not contain spaces"):
        plan(request_query(path="orders/{{ ds }}"))


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


@pytest.mark.parametrize("name", [name for name in VALID if name not in RANGED])
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
        "on_missing_multiplier": "error",
        "on_missing_field": "warn",
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
