from __future__ import annotations

import json
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmarkets_provider import queries
from openmarkets_provider.conditions import check_condition, describe_poll, evaluate
from openmarkets_provider.exceptions import OpenmarketsQueryError
from tests.support.queries import Later

QUOTES = [
    {
        "security_code": "BHP",
        "last_price": Decimal("45.125"),
        "ask_volume": 500,
        "trade_date_time": datetime(2026, 1, 4, 23, 0, 0, 123000, tzinfo=UTC),
        "first_listed_date": date(2000, 1, 4),
        "link_removed": False,
        "condition_codes": {"nested": [Decimal("0.5"), date(2026, 1, 5)]},
    },
    {"security_code": "CBA", "last_price": None},
]
"""Rows as queries give them: decimals, dates and times."""
BHP = queries.quotes(["BHP"])
ANY = queries.request("news", "GET", "announcements/v1")


@pytest.mark.parametrize(
    ("condition", "result", "value"),
    [
        ("length(@)", QUOTES, 2),
        ("[?security_code=='BHP'].last_price | [0]", QUOTES, 45.125),
        ("[?last_price > `45`].security_code", QUOTES, ["BHP"]),
        ("[0].{code: security_code}", QUOTES, {"code": "BHP"}),
        ("@", "text", "text"),
        ("@ == `false`", False, True),
    ],
)
def test_a_condition_gives_a_value(condition: str, result: Any, value: Any):
    assert evaluate(condition, result) == value


@pytest.mark.parametrize(
    ("condition", "value"),
    [
        ("[0].last_price", 45.125),
        ("[0].ask_volume", 500),
        ("[0].trade_date_time", "2026-01-04T23:00:00.123000+00:00"),
        ("[0].first_listed_date", "2000-01-04"),
        ("[0].link_removed", False),
        ("[1].last_price", None),
        ("[0].condition_codes.nested", [0.5, "2026-01-05"]),
        ("[?starts_with(trade_date_time || '', '2026-01-04')].security_code", ["BHP"]),
        ("sum([].last_price | [?@ != `null`])", 45.125),
    ],
)
def test_rows_are_seen_as_json(condition: str, value: Any):
    seen = evaluate(condition, QUOTES)
    assert (type(seen), seen) == (type(value), value)


def test_what_a_condition_gives_is_json_and_the_rows_stay_as_they_are():
    before = str(QUOTES)
    assert json.loads(json.dumps(evaluate("@", QUOTES), allow_nan=False)) == evaluate("@", QUOTES)
    assert str(QUOTES) == before
    assert type(QUOTES[0]["last_price"]) is Decimal


def test_times_can_be_compared_by_a_sort_of_their_texts():
    rows = [{"time": datetime(2026, 1, day, tzinfo=UTC)} for day in (5, 9, 7)]
    assert evaluate("max_by(@, &time).time", rows) == "2026-01-09T00:00:00+00:00"


def test_a_decimal_that_no_json_number_can_hold_is_not_infinite():
    with pytest.raises(OpenmarketsQueryError, match="does not fit the result"):
        evaluate("[0].cash_balance", [{"cash_balance": Decimal("1e400")}])


def test_a_result_that_is_nested_too_deep_is_a_query_error():
    result: Any = 1
    for _ in range(100_000):
        result = [result]
    with pytest.raises(OpenmarketsQueryError, match="does not fit the result"):
        evaluate("@", result)


@pytest.mark.parametrize("result", [False, None, 0, 0.0, "", [], {}])
def test_false_null_zero_and_empty_are_not_met(result: Any):
    assert not evaluate("@", result)


@pytest.mark.parametrize("result", [True, 1, -1, 0.1, "0", "false", [None], [[]], {"a": None}])
def test_everything_else_is_met(result: Any):
    assert evaluate("@", result)


@pytest.mark.parametrize("condition", ["nothing", "[5]", "[?security_code=='XYZ']", "a.b.c", "[?last_price > `9000`]"])
def test_what_is_not_there_is_not_met(condition: str):
    assert not evaluate(condition, QUOTES)


@pytest.mark.parametrize(
    "condition",
    ["", " ", "a[", "length(", "a b", "==", "a = 'b'", "\ud800", "(" * 100_000, "a[" + "1" * 5000 + "]"],
    ids=["empty", "blank", "open", "call", "two words", "operator", "single =", "surrogate", "deep", "huge index"],
)
def test_a_malformed_expression_is_refused_when_made_and_when_run(condition: str):
    with pytest.raises(OpenmarketsQueryError, match="is not a JMESPath expression"):
        check_condition(condition, ANY)
    with pytest.raises(OpenmarketsQueryError, match="is not a JMESPath expression"):
        evaluate(condition, QUOTES)


@pytest.mark.parametrize(
    "condition",
    [
        "length(`1`)",
        "abs('a')",
        "unknown(@)",
        "length(@, @)",
        "sort_by(@, &last_price)",
        # The library lets these errors of Python through.
        "contains('abc', `1`)",
        "'a' < `1`",
        "ceil(to_number('1e999'))",
        "to_number(&a)",
    ],
)
def test_an_expression_that_does_not_fit_the_result_is_a_query_error(condition: str):
    check_condition(condition, ANY)
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
    check_condition(condition, ANY)


def test_a_template_that_was_never_rendered_does_not_run():
    with pytest.raises(OpenmarketsQueryError, match="is not a JMESPath expression"):
        evaluate("{{ params.condition }}", QUOTES)


@pytest.mark.parametrize("condition", [None, 5, True, ["@"], b"@", len])
def test_what_is_no_text_is_refused(condition: Any):
    with pytest.raises(OpenmarketsQueryError, match="expected a JMESPath expression, got"):
        check_condition(condition, ANY)
    with pytest.raises(OpenmarketsQueryError, match="expected a JMESPath expression, got"):
        evaluate(condition, QUOTES)


@pytest.mark.parametrize(
    ("condition", "query", "column", "nearest"),
    [
        ("[0].tradingStatus == 'OPEN'", BHP, "tradingStatus", "trading_status"),
        ("[0].traiding_status", BHP, "traiding_status", "trading_status"),
        ("[?lastPrice > `1`].security_code", BHP, "lastPrice", "last_price"),
        ("length([?bid_volume > `1`].securityCode) > `2`", BHP, "securityCode", "security_code"),
        ("sort_by(@, &lastPrice)[0].last_price", BHP, "lastPrice", "last_price"),
        ("sort_by(@, &last_price)[0].lastPrice", BHP, "lastPrice", "last_price"),
        ("max_by([?last_price], &last_price).lastPrice", BHP, "lastPrice", "last_price"),
        ("[] | reverse(@) | [-1].lastPrice", BHP, "lastPrice", "last_price"),
        ("[0:2].[security_code, lastPrice]", BHP, "lastPrice", "last_price"),
        ("[0].{code: securityCode}", BHP, "securityCode", "security_code"),
        ("[?last_price > `1` && !(askVolume > `5`)]", BHP, "askVolume", "ask_volume"),
        ("([?last_price] || @)[0].lastPrice", BHP, "lastPrice", "last_price"),
        ("[?@.lastPrice]", BHP, "lastPrice", "last_price"),
        ("tradingStatus", BHP, "tradingStatus", "trading_status"),
        ("[0].orderState", queries.orders(), "orderState", "order_state"),
        ("[0].x", queries.quotes("{{ params.code }}"), "x", None),
    ],
)
def test_a_column_that_the_rows_of_a_query_lack_is_refused(
    condition: str, query: queries.Query, column: str, nearest: str | None
):
    advice = f"did you mean '{nearest}'[?]$" if nearest else f"for another field of the API, write not_null.@..{column}"
    with pytest.raises(OpenmarketsQueryError, match=f"^condition: '{column}' is not a column of .*; {advice}"):
        check_condition(condition, query)


def test_without_a_column_of_a_similar_name_all_are_listed():
    columns = "account_code, account_name, account_designation"
    with pytest.raises(OpenmarketsQueryError, match=f"'zzz' is not a column of accounts; its columns are {columns};"):
        check_condition("[0].zzz", queries.accounts())


@pytest.mark.parametrize(
    "condition", ["trading_status == 'OPEN'", "[?last_price] | trading_status", "@.trading_status"]
)
def test_a_column_of_the_list_of_rows_is_refused(condition: str):
    advice = r"condition: the result is a list of rows; write \[0\]\.trading_status for the first row"
    with pytest.raises(OpenmarketsQueryError, match=advice):
        check_condition(condition, BHP)


@pytest.mark.parametrize(
    ("condition", "query"),
    [
        ("[0].trading_status == 'OPEN'", BHP),
        ("[?trading_status == 'OPEN'] | length(@) == `2`", BHP),
        ("sort_by(@, &last_price)[-1].security_code", BHP),
        # What is made of rows has other fields.
        ("[].{code: security_code} | [0].code", BHP),
        ("[0].{code: security_code}.code", BHP),
        ("[*].[security_code][0].x", BHP),
        ("[0].*.x", BHP),
        ("*.x", BHP),
        ("map(&security_code, @)[0].x", BHP),
        ("to_array(@)[0].x", BHP),
        ("[0].condition_codes.nested", queries.trades(["BHP"], start="2026-03-02", end="2026-03-03")),
        # Fields of the API that are no columns.
        ("not_null([0]).new_field", BHP),
        ("[?not_null(@).new_field == 'x']", BHP),
        # Rows are not what these give, or may not be.
        ("[0].tradingStatus", queries.quotes(["BHP"], raw=True)),
        ("[0].tradingStatus", BHP | {"raw": "{{ params.raw }}"}),
        ("[0].announcementId", ANY),
        ("[0].tradingStatus", Later()),
        ("[0].{{ params.column }}", BHP),
        # Too deep to be followed, and evaluating it says so.
        ("@" + "|@" * 20_000, BHP),
    ],
)
def test_what_may_be_there_is_let_through(condition: str, query: Any):
    check_condition(condition, query)


def test_a_field_that_the_api_has_beside_the_columns_can_be_asked_for():
    assert evaluate("[?not_null(@).new_field == 'x'].security_code", [{"security_code": "BHP", "new_field": "x"}])
    assert evaluate("not_null([0]).new_field", [{"new_field": 5}]) == 5
    assert evaluate("not_null([0]).new_field", []) is None


@pytest.mark.parametrize(
    ("condition", "result", "text"),
    [
        ("[0].last_price > `46`", QUOTES, "[0].last_price > `46` is False; the result has 2 rows."),
        ("[5]", QUOTES[:1], "[5] is None; the result has 1 row."),
        ("a", {"a": 1}, "a is 1; the result is a dict."),
    ],
)
def test_a_poll_is_described_by_its_value_and_number_of_rows(condition: str, result: Any, text: str):
    assert describe_poll(condition, evaluate(condition, result), result) == text


def test_the_description_of_a_large_value_is_short():
    result = [{f"field_{number}": "x" * 10_000 for number in range(1000)}] * 10_000
    assert len(describe_poll("@" + " || @" * 1000, result, result)) < 1500


@given(st.text(alphabet=st.sampled_from("ab0[]{}()@&|?!<>=`'\",.:*- \\length_by"), max_size=25))
def test_any_text_is_evaluated_or_refused_with_a_query_error(condition: str):
    try:
        check_condition(condition, BHP)
        evaluate(condition, {"a": [1, {"b": "x"}], "b": None})
    except OpenmarketsQueryError as error:
        assert str(error).startswith("condition: ")  # noqa: PT017 - any other error fails the test
