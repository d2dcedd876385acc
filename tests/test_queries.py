from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pendulum
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmarkets_provider import queries
from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.query.expand import lookup_query
from openmarkets_provider.query.plan import plan
from openmarkets_provider.query.query import check, resolve
from tests.support.queries import Later, LazySequence
from tests.support.versions import moved

RANGE = {"start": "2026-01-05", "end": "2026-01-06"}
BY_SECURITY = {
    "securities": None,
    "exchange": None,
    "on_invalid": "error",
    "on_missing_multiplier": "error",
    "on_missing_field": "warn",
    "raw": False,
}
BY_ACCOUNT = {"accounts": None, "portfolios": None, "on_missing_field": "warn", "raw": False}
BY_PRICED_ACCOUNT = BY_ACCOUNT | {"on_missing_multiplier": "error"}
REQUEST = {"api": "news", "method": "GET", "path": "x/v1", "params": None, "json": None, "safe_to_repeat": None}

EXAMPLES = [
    (queries.accounts(), {"endpoint": "accounts", "on_missing_field": "warn", "raw": False}),
    (queries.accounts(raw=True), {"endpoint": "accounts", "on_missing_field": "warn", "raw": True}),
    (queries.portfolio_links(), {"endpoint": "portfolio_links", "on_missing_field": "warn", "raw": False}),
    (queries.securities(), {"endpoint": "securities", "exchange": "ASX", "on_missing_field": "warn", "raw": False}),
    (
        queries.securities("CXA"),
        {"endpoint": "securities", "exchange": "CXA", "on_missing_field": "warn", "raw": False},
    ),
    (
        queries.security_information("BHP", on_invalid="warn"),
        BY_SECURITY | {"endpoint": "security_information", "securities": "BHP", "on_invalid": "warn"},
    ),
    (
        queries.quotes(["BHP", "CBA.ASX@TM"]),
        BY_SECURITY | {"endpoint": "quotes", "securities": ["BHP", "CBA.ASX@TM"]},
    ),
    (queries.quotes("BHP, CBA"), BY_SECURITY | {"endpoint": "quotes", "securities": "BHP, CBA"}),
    (queries.quotes(exchange="ASX"), BY_SECURITY | {"endpoint": "quotes", "exchange": "ASX"}),
    (queries.depth("BHP"), BY_SECURITY | {"endpoint": "depth", "securities": "BHP", "levels": 10}),
    (queries.depth("BHP", levels=100), BY_SECURITY | {"endpoint": "depth", "securities": "BHP", "levels": 100}),
    (
        queries.time_series("BHP", **RANGE),
        BY_SECURITY | RANGE | {"endpoint": "time_series", "securities": "BHP", "frequency": "Daily", "adjusted": False},
    ),
    (
        queries.time_series(exchange="ASX", frequency="Weekly", raw=True, **RANGE | {"end": "2026-02-01"}),
        BY_SECURITY
        | RANGE
        | {"endpoint": "time_series", "exchange": "ASX", "end": "2026-02-01", "frequency": "Weekly", "raw": True}
        | {"adjusted": False},
    ),
    (
        queries.time_series("BHP", adjusted="event_divide", **RANGE),
        BY_SECURITY
        | RANGE
        | {"endpoint": "time_series", "securities": "BHP", "frequency": "Daily", "adjusted": "event_divide"},
    ),
    (
        queries.intraday_time_series("BHP", interval=15, **RANGE),
        BY_SECURITY | RANGE | {"endpoint": "intraday_time_series", "securities": "BHP", "interval": 15},
    ),
    (queries.trades("BHP", **RANGE), BY_SECURITY | RANGE | {"endpoint": "trades", "securities": "BHP"}),
    (
        queries.portfolio_details("A1"),
        BY_ACCOUNT | {"endpoint": "portfolio_details", "accounts": "A1", "include_same_cash_account": False},
    ),
    (queries.cash(portfolios=["P1"]), BY_ACCOUNT | {"endpoint": "cash", "portfolios": ["P1"]}),
    (queries.positions(), BY_PRICED_ACCOUNT | {"endpoint": "positions", "accounts": "*"}),
    (queries.orders("A1"), BY_PRICED_ACCOUNT | {"endpoint": "orders", "accounts": "A1", "include_child_orders": True}),
    (
        queries.orders(portfolios="P1", include_child_orders=False),
        BY_PRICED_ACCOUNT | {"endpoint": "orders", "portfolios": "P1", "include_child_orders": False},
    ),
    (
        queries.order_trades(["A1"], **RANGE),
        BY_PRICED_ACCOUNT | RANGE | {"endpoint": "order_trades", "accounts": ["A1"]},
    ),
    (queries.request("news", "GET", "x/v1"), REQUEST | {"endpoint": "request"}),
    (
        queries.request("oms", "POST", "x/v1", params={"a": 1}, json=[{}], safe_to_repeat=True),
        {
            "endpoint": "request",
            "api": "oms",
            "method": "POST",
            "path": "x/v1",
            "params": {"a": 1},
            "json": [{}],
            "safe_to_repeat": True,
        },
    ),
]
IDS = [query["endpoint"] for query, _ in EXAMPLES]


def calls_of(query: queries.Query) -> Any:
    """Return the calls of a query, or the query that has to run before it."""
    before = None if query["endpoint"] == "request" else lookup_query(query)
    return before or list(plan(query))


@pytest.mark.parametrize(("query", "expected"), EXAMPLES, ids=IDS)
def test_a_query_is_plain_data_that_survives_json(query: queries.Query, expected: dict[str, Any]):
    assert query == expected
    again = json.loads(json.dumps(query))
    assert again == expected
    assert check(again) == expected
    assert calls_of(again) == calls_of(query)


@pytest.mark.parametrize(("query", "expected"), EXAMPLES, ids=IDS)
def test_planning_leaves_the_query_as_it_was(query: queries.Query, expected: dict[str, Any]):
    before = copy.deepcopy(query)
    calls_of(query)
    assert query == before == expected


def test_there_is_an_example_of_every_query():
    assert {name for name in queries.__all__ if name != "Query"} == set(IDS)


# --- ranges


@pytest.mark.parametrize(
    ("bound", "kept", "moment"),
    [
        (date(2026, 1, 5), "2026-01-05", "2026-01-04T13:00:00"),
        ("2026-01-05", "2026-01-05", "2026-01-04T13:00:00"),
        (datetime(2026, 1, 5, 10), "2026-01-05T10:00:00", "2026-01-04T23:00:00"),  # noqa: DTZ001 - exchange time
        (datetime(2026, 1, 5, 10, tzinfo=UTC), "2026-01-05T10:00:00+00:00", "2026-01-05T10:00:00"),
        (
            datetime(2026, 1, 5, 10, tzinfo=ZoneInfo("Asia/Kathmandu")),
            "2026-01-05T10:00:00+05:45",
            "2026-01-05T04:15:00",
        ),
        (pendulum.datetime(2026, 1, 5, 10), "2026-01-05T10:00:00+00:00", "2026-01-05T10:00:00"),
        (pendulum.naive(2026, 1, 5, 10), "2026-01-05T10:00:00", "2026-01-04T23:00:00"),
        (pendulum.date(2026, 1, 5), "2026-01-05", "2026-01-04T13:00:00"),
        ("2026-01-05 10:00:00+00:00", "2026-01-05 10:00:00+00:00", "2026-01-05T10:00:00"),
    ],
)
def test_a_bound_may_be_a_date_a_datetime_or_a_text(bound: Any, kept: str, moment: str):
    instant = datetime.fromisoformat(moment).replace(tzinfo=UTC)
    for query, meant in (
        (queries.trades("BHP", start=bound, end="2026-02-01"), instant),
        (queries.order_trades("A1", start=bound, end="2026-02-01"), instant),
        # Of bars it means the one that it is in.
        (queries.time_series("BHP", start=bound, end="2026-02-01"), date(2026, 1, 5)),
        (queries.time_series("BHP", start=bound, end="2026-02-01", frequency="Weekly"), date(2026, 1, 3)),
        (queries.intraday_time_series("BHP", start=bound, end="2026-02-01", interval=60), instant.replace(minute=0)),
    ):
        assert query["start"] == kept
        assert type(query["start"]) is str
        start = resolve(query)["start"]
        assert start == meant
        assert type(start) is type(meant)
    # A value that a template of native Python objects renders.
    native = queries.trades("BHP", start="{{ x }}", end="2026-02-01") | {"start": bound}
    assert resolve(native)["start"] == instant


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize(
    ("start", "end", "times"),
    [
        ("data_interval_start", "data_interval_end", ("2026-01-05T11:00:00", "2026-01-06T11:00:00")),
        ("ts", "data_interval_end | ts", ("2026-01-05T11:00:00", "2026-01-06T11:00:00")),
        ("ds", "data_interval_end | ds", ("2026-01-05T00:00:00", "2026-01-06T00:00:00")),
        ("ds", "macros.ds_add(ds, 2)", ("2026-01-05T00:00:00", "2026-01-07T00:00:00")),
    ],
)
def test_a_range_may_be_what_airflow_renders(start: str, end: str, times: tuple[str, str], native: bool):
    from airflow.providers.common.compat.sdk import DAG, BaseOperator

    class Holder(BaseOperator):
        template_fields = ("query",)

        def __init__(self, *, query: queries.Query, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.query = query

    begin, stop = pendulum.datetime(2026, 1, 5), pendulum.datetime(2026, 1, 6)
    with DAG("d", schedule=None, render_template_as_native_obj=native):
        query = queries.order_trades("A1", start=f"{{{{ {start} }}}}", end=f"{{{{ {end} }}}}")
        task = Holder(task_id="t", query=query)
    macros = moved("airflow.sdk.execution_time.macros", "airflow.macros")

    task.render_template_fields(
        {
            "data_interval_start": begin,
            "data_interval_end": stop,
            "ts": begin.isoformat(),
            "ds": "2026-01-05",
            "macros": macros,
        }
    )
    (call,) = plan(task.query)
    assert call.params == {"dateTimeFrom": times[0], "dateTimeTo": times[1]}


# --- mistakes


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: queries.quotes([]), "quotes: securities is empty"),
        (lambda: queries.quotes(["B P"]), "quotes: securities: 'B P' is malformed"),
        (lambda: queries.quotes(), "quotes: set securities, or an exchange"),
        (lambda: queries.quotes("BHP", exchange="ASX"), "quotes: securities can't be used with exchange"),
        (lambda: queries.quotes("BHP", on_invalid="skip"), "quotes: on_invalid must be one of"),
        (lambda: queries.security_information("BHP/X"), "security_information: securities: 'BHP/X' is malformed"),
        (lambda: queries.securities(""), "securities: exchange must be"),
        (lambda: queries.securities(None), "securities: exchange must be"),
        (lambda: queries.depth("BHP", levels=0), "depth: levels must be a whole number from 1 to 100, not 0"),
        (lambda: queries.depth("BHP", levels=101), "depth: levels must be a whole number from 1 to 100, not 101"),
        (lambda: queries.depth("BHP", levels=True), "depth: levels must be a whole number from 1 to 100, not True"),
        (lambda: queries.time_series("BHP", frequency="Monthly", **RANGE), "time_series: frequency must be one of"),
        (lambda: queries.time_series("BHP", start="x", end="2026-01-05"), "time_series: start must be a date"),
        (
            lambda: queries.time_series("BHP", start=date(2026, 1, 5), end=date(2026, 1, 5)),
            "time_series: start '2026-01-05' and end '2026-01-05' are an empty or reversed range",
        ),
        (
            lambda: queries.time_series("BHP", start="2026-01-05", end="2026-01-05T16:00"),
            "time_series: start '2026-01-05' and end '2026-01-05T16:00' are an empty or reversed range",
        ),
        (
            lambda: queries.time_series("BHP", frequency="Weekly", **RANGE),
            "time_series: start '2026-01-05' and end '2026-01-06' are an empty or reversed range",
        ),
        (
            lambda: queries.intraday_time_series("BHP", interval=60, start="2026-01-05T10:07", end="2026-01-05T10:59"),
            "intraday_time_series: .* are an empty or reversed range. end is exclusive",
        ),
        (lambda: queries.intraday_time_series("BHP", interval=7, **RANGE), "intraday_time_series: interval must be"),
        (lambda: queries.trades("BHP", start=RANGE["end"], end=RANGE["start"]), "trades: .*empty or reversed range"),
        (
            lambda: queries.trades("BHP", start=None, end="2026-01-05"),
            "trades: the range is missing; set start and end",
        ),
        (lambda: queries.portfolio_details("A1", include_same_cash_account=1), "include_same_cash_account must be"),
        (lambda: queries.cash("A1", portfolios="P1"), "cash: accounts can't be used with portfolios"),
        (lambda: queries.cash(portfolios=[]), "cash: portfolios is empty"),
        (lambda: queries.cash(None), "cash: accounts and portfolios are None; set codes, or remove both arguments"),
        (lambda: queries.orders(None, portfolios=None), "orders: accounts and portfolios are None"),
        (lambda: queries.positions("['A1', 'A2']"), "positions: accounts: .* is malformed"),
        (lambda: queries.positions(["*"]), "positions: accounts: .* is malformed"),
        (lambda: queries.positions(["../P1"]), "positions: accounts: '../P1' is malformed"),
        (
            lambda: queries.orders("A1", include_child_orders="yes"),
            "orders: include_child_orders must be True or False",
        ),
        (lambda: queries.orders(["A/1"]), "orders: accounts: 'A/1' is malformed"),
        (lambda: queries.order_trades("A1", start=5, end="2026-01-05"), "order_trades: start must be a date"),
        (lambda: queries.accounts(raw=1), "accounts: raw must be True or False"),
        (lambda: queries.portfolio_links(raw=None), "portfolio_links: raw must be True or False"),
        (lambda: queries.request("x", "GET", "y"), "request: api must be one of .*, not 'x'"),
        (lambda: queries.request("oms", "POST", "orders/v4", safe_to_repeat=True), "is never safe to repeat"),
        (lambda: queries.request("oms", "GET", "x", params={"at": object()}), "ISO 8601"),
    ],
)
def test_a_literal_mistake_is_told_while_the_dag_is_parsed(make: Callable[[], object], message: str):
    with pytest.raises(OpenmarketsQueryError, match=message):
        make()


FUNCTIONS = {name: getattr(queries, name) for name in queries.__all__ if name != "Query"}
USABLE: dict[str, dict[str, Any]] = {
    query["endpoint"]: {key: value for key, value in query.items() if key != "endpoint"} for query, _ in EXAMPLES
}
PLACES = [
    (name, argument) for name, function in FUNCTIONS.items() for argument in inspect.signature(function).parameters
]
ANY_VALUE = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.dates() | st.datetimes()
) | st.sampled_from([object(), 1j, {1}, ["BHP", None], {}, (), range(2), ZoneInfo("UTC"), Later(), [Later()]])


@given(st.sampled_from(PLACES), ANY_VALUE)
def test_any_argument_makes_a_query_or_a_query_error(place: tuple[str, str], value: Any):
    name, argument = place
    try:
        query = FUNCTIONS[name](**USABLE[name] | {argument: value})
    except OpenmarketsQueryError:
        return
    assert query["endpoint"] == name
    assert set(query) == {"endpoint", *USABLE[name]}


# --- templates and upstream results


@pytest.mark.parametrize(("name", "argument"), PLACES)
@pytest.mark.parametrize("later", [Later(), "{{ params.x }}"], ids=["upstream", "template"])
def test_every_argument_may_be_a_template_or_an_upstream_result_and_is_kept_as_it_is(
    name: str, argument: str, later: Any
):
    given = USABLE[name] | {argument: later}
    # Only one of these two can be given.
    others = {"securities": "exchange", "exchange": "securities", "accounts": "portfolios", "portfolios": "accounts"}
    if others.get(argument) in given:
        given[others[argument]] = None
    if argument == "session":
        given |= {"start": None, "end": None}
    assert FUNCTIONS[name](**given)[argument] is later


BY_CODES = [name for name, query in USABLE.items() if "accounts" in query]
LEFT_OUT = {name: RANGE if name == "order_trades" else {} for name in BY_CODES}


@pytest.mark.parametrize("name", BY_CODES)
def test_without_codes_a_query_is_about_all_and_with_portfolios_it_is_not(name: str):
    query = FUNCTIONS[name](**LEFT_OUT[name])
    assert (query["accounts"], query["portfolios"]) == ("*", None)
    query = FUNCTIONS[name](portfolios="P1", **LEFT_OUT[name])
    assert (query["accounts"], query["portfolios"]) == (None, "P1")


@pytest.mark.parametrize("name", BY_CODES)
@pytest.mark.parametrize("argument", ["accounts", "portfolios"])
def test_none_is_no_way_to_say_all_when_made_or_when_a_template_renders_it(name: str, argument: str):
    from airflow.providers.common.compat.sdk import DAG, BaseOperator

    class Holder(BaseOperator):
        template_fields = ("query",)

        def __init__(self, *, query: queries.Query, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.query = query

    message = f"^{name}: accounts and portfolios are None; set codes, or remove both arguments"
    with pytest.raises(OpenmarketsQueryError, match=message):
        FUNCTIONS[name](accounts=None, portfolios=None, **LEFT_OUT[name])
    with DAG("d", schedule=None, render_template_as_native_obj=True):
        task = Holder(task_id="t", query=FUNCTIONS[name](**{argument: "{{ codes }}"}, **LEFT_OUT[name]))
    task.render_template_fields({"codes": None})
    assert task.query[argument] is None
    for look in (plan, lookup_query):
        with pytest.raises(OpenmarketsQueryError, match=message):
            look(task.query)


@pytest.mark.parametrize(
    "make",
    [
        lambda later: queries.quotes(["BHP", later]),
        lambda later: queries.positions(["A1", later]),
        lambda later: queries.request(later, later, later, later, later, later),
        lambda later: queries.request("oms", "POST", "x", params={"a": later}, json={"b": [later]}),
    ],
)
@pytest.mark.parametrize("later", [Later(), "{{ params.x }}"], ids=["upstream", "template"])
def test_what_is_known_later_may_be_a_part_of_an_argument(make: Callable[[Any], queries.Query], later: Any):
    assert holds(make(later), later)


def holds(value: Any, wanted: object) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    return value is wanted or (isinstance(value, list) and any(holds(item, wanted) for item in value))


def test_an_upstream_task_of_airflow_counts_as_known_later():
    from airflow.providers.common.compat.sdk import DAG, XComArg, task

    @task
    def upstream() -> list[str]:
        raise AssertionError("it does not run while the DAG is parsed")

    with DAG("d", schedule=None):
        query = queries.quotes(upstream())
        ranged = queries.trades("BHP", start=upstream(), end=upstream())
        mapped = queries.orders(upstream.partial().expand_kwargs([{}, {}]))
    assert isinstance(query["securities"], XComArg)
    assert isinstance(ranged["start"], XComArg)
    assert isinstance(mapped["accounts"], XComArg)


def test_results_of_a_mapped_task_are_taken_as_they_load():
    (call,) = plan(queries.quotes(LazySequence("BHP", "CBA")))
    assert call.json == {"securities": ["BHP.ASX@TM", "CBA.ASX@TM"]}
    assert [call.path for call in plan(queries.orders(LazySequence("A", "B")))] == [
        "orders/by-account/A/v4",
        "orders/by-account/B/v4",
    ]
    with pytest.raises(OpenmarketsQueryError, match="accounts is empty"):
        queries.orders(LazySequence())


def test_a_query_made_of_the_results_of_a_mapped_task_is_plain_data_too():
    query = queries.quotes(LazySequence("BHP", "CBA"))
    assert json.loads(json.dumps(query)) == queries.quotes(["BHP", "CBA"])


def test_the_public_names_are_the_query_functions_each_with_a_description():
    functions = {
        name: each
        for name, each in inspect.getmembers(queries, inspect.isfunction)
        if each.__module__ == queries.__name__ and not name.startswith("_")
    }
    assert set(queries.__all__) == set(functions) | {"Query"}
    for function in functions.values():
        described = inspect.getdoc(function) or ""
        signature = inspect.signature(function)
        assert signature.return_annotation == "Query"
        for parameter in signature.parameters:
            assert f":param {parameter}:" in described, function
