from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmarkets_provider.conditions import check_condition, evaluate
from openmarkets_provider.exceptions import OpenmarketsQueryError

QUOTES = [{"securityCode": "BHP", "lastPrice": 4512.5}, {"securityCode": "CBA", "lastPrice": None}]


class Later:
    def resolve(self, context: object) -> object:
        raise AssertionError("nobody but Airflow resolves it")


@pytest.mark.parametrize(
    ("condition", "result", "value"),
    [
        ("length(@)", QUOTES, 2),
        ("[?securityCode=='BHP'].lastPrice | [0]", QUOTES, 4512.5),
        ("[?lastPrice > `4000`].securityCode", QUOTES, ["BHP"]),
        ("[0].{code: securityCode}", QUOTES, {"code": "BHP"}),
        ("@", "text", "text"),
        ("@ == `false`", False, True),
    ],
)
def test_a_condition_gives_a_value(condition: str, result: Any, value: Any):
    assert evaluate(condition, result) == value


@pytest.mark.parametrize("result", [False, None, 0, 0.0, "", [], {}])
def test_false_null_zero_and_empty_are_not_met(result: Any):
    assert not evaluate("@", result)


@pytest.mark.parametrize("result", [True, 1, -1, 0.1, "0", "false", [None], [[]], {"a": None}])
def test_everything_else_is_met(result: Any):
    assert evaluate("@", result)


@pytest.mark.parametrize("condition", ["nothing", "[5]", "[?securityCode=='XYZ']", "a.b.c", "[?lastPrice > `9000`]"])
def test_what_is_not_there_is_not_met(condition: str):
    assert not evaluate(condition, QUOTES)


@pytest.mark.parametrize(
    "condition",
    ["", " ", "a[", "length(", "a b", "==", "a = 'b'", "\ud800", "(" * 100_000, "a[" + "1" * 5000 + "]"],
    ids=["empty", "blank", "open", "call", "two words", "operator", "single =", "surrogate", "deep", "huge index"],
)
def test_a_malformed_expression_is_refused_when_made_and_when_run(condition: str):
    with pytest.raises(OpenmarketsQueryError, match="is not a JMESPath expression"):
        check_condition(condition)
    with pytest.raises(OpenmarketsQueryError, match="is not a JMESPath expression"):
        evaluate(condition, QUOTES)


@pytest.mark.parametrize(
    "condition",
    [
        "length(`1`)",
        "abs('a')",
        "unknown(@)",
        "length(@, @)",
        "sort_by(@, &lastPrice)",
        # The library lets these errors of Python through.
        "contains('abc', `1`)",
        "'a' < `1`",
        "ceil(to_number('1e999'))",
        "to_number(&a)",
    ],
)
def test_an_expression_that_does_not_fit_the_result_is_a_query_error(condition: str):
    check_condition(condition)
    with pytest.raises(OpenmarketsQueryError, match="does not fit the result"):
        evaluate(condition, QUOTES)


def test_a_large_result_is_not_repeated_in_the_message():
    with pytest.raises(OpenmarketsQueryError) as caught:
        evaluate("abs(@)", ["x" * 100] * 10_000)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "condition", ["{{ params.condition }}", "length(@) > `{{ n }}`", "{% if a %}a[{% endif %}", Later()]
)
def test_what_is_still_a_template_is_left_alone_when_made(condition: Any):
    check_condition(condition)


def test_a_template_that_was_never_rendered_does_not_run():
    with pytest.raises(OpenmarketsQueryError, match="is not a JMESPath expression"):
        evaluate("{{ params.condition }}", QUOTES)


@pytest.mark.parametrize("condition", [None, 5, True, ["@"], b"@", len])
def test_what_is_no_text_is_refused(condition: Any):
    with pytest.raises(OpenmarketsQueryError, match="expected a JMESPath expression, got"):
        check_condition(condition)
    with pytest.raises(OpenmarketsQueryError, match="expected a JMESPath expression, got"):
        evaluate(condition, QUOTES)


@given(st.text(alphabet=st.sampled_from("ab0[]{}()@&|?!<>=`'\",.:*- \\length_by"), max_size=25))
def test_any_text_is_evaluated_or_refused_with_a_query_error(condition: str):
    try:
        check_condition(condition)
        evaluate(condition, {"a": [1, {"b": "x"}], "b": None})
    except OpenmarketsQueryError as error:
        assert str(error).startswith("condition: ")  # noqa: PT017 - any other error fails the test
