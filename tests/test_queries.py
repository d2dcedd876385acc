from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable
from typing import Any

import pytest

from openmarkets_provider import queries
from openmarkets_provider.client.planning import check, plan
from openmarkets_provider.exceptions import OpenmarketsQueryError


class Later:
    """Known later only, as the result of an upstream task is."""

    def resolve(self, context: object) -> object:
        raise AssertionError("nobody but Airflow resolves it")


EXAMPLES = [
    (queries.accounts(), {"endpoint": "accounts"}),
    (queries.securities(), {"endpoint": "securities", "exchange": "ASX"}),
    (queries.securities("CXA"), {"endpoint": "securities", "exchange": "CXA"}),
    (queries.quotes(["BHP", "CBA.ASX@TM"]), {"endpoint": "quotes", "securities": ["BHP", "CBA.ASX@TM"]}),
    (queries.quotes("BHP, CBA"), {"endpoint": "quotes", "securities": "BHP, CBA"}),
    (
        queries.request("news", "GET", "announcements/v1"),
        {
            "endpoint": "request",
            "api": "news",
            "method": "GET",
            "path": "announcements/v1",
            "params": None,
            "json": None,
            "safe_to_repeat": None,
        },
    ),
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


@pytest.mark.parametrize(("query", "expected"), EXAMPLES)
def test_a_query_is_plain_data_that_survives_json(query: queries.Query, expected: dict[str, Any]):
    assert query == expected
    again = json.loads(json.dumps(query))
    assert again == expected
    assert check(again) == expected
    assert plan(again) == plan(query)


@pytest.mark.parametrize(("query", "expected"), EXAMPLES)
def test_planning_leaves_the_query_as_it_was(query: queries.Query, expected: dict[str, Any]):
    before = copy.deepcopy(query)
    plan(query)
    assert query == before == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: queries.quotes([]), "quotes: securities is empty"),
        (lambda: queries.quotes(["B P"]), "quotes: securities: 'B P' is malformed"),
        (lambda: queries.securities(""), "securities: exchange must be"),
        (lambda: queries.request("x", "GET", "y"), "request: api 'x' is unknown"),
        (lambda: queries.request("oms", "POST", "orders/v4", safe_to_repeat=True), "is never safe to repeat"),
        (lambda: queries.request("oms", "GET", "x", params={"at": object()}), "ISO 8601"),
    ],
)
def test_a_literal_mistake_is_told_while_the_dag_is_parsed(make: Callable[[], object], message: str):
    with pytest.raises(OpenmarketsQueryError, match=message):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda later: queries.quotes(later),
        lambda later: queries.quotes(["BHP", later]),
        lambda later: queries.securities(later),
        lambda later: queries.request(later, later, later, later, later, later),
        lambda later: queries.request("oms", "POST", "x", params={"a": later}, json={"b": [later]}),
    ],
)
@pytest.mark.parametrize("later", [Later(), "{{ params.x }}"])
def test_templates_and_upstream_results_are_kept_as_they_are(make: Callable[[Any], queries.Query], later: Any):
    assert holds(make(later), later)


def holds(value: Any, wanted: object) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    return value is wanted or (isinstance(value, list) and any(holds(item, wanted) for item in value))


def test_an_upstream_task_of_airflow_counts_as_known_later():
    from airflow.providers.common.compat.sdk import DAG, XComArg, task

    @task
    def codes() -> list[str]:
        raise AssertionError("it does not run while the DAG is parsed")

    with DAG("d", schedule=None):
        query = queries.quotes(codes())
    assert isinstance(query["securities"], XComArg)


def test_the_public_names_are_the_query_functions_each_with_a_description():
    functions = {
        name for name, each in inspect.getmembers(queries, inspect.isfunction) if each.__module__ == queries.__name__
    }
    assert set(queries.__all__) == functions | {"Query"}
    for name in functions:
        assert inspect.getdoc(getattr(queries, name))
        assert inspect.signature(getattr(queries, name)).return_annotation == "Query"
