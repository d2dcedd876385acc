from __future__ import annotations

import re
from datetime import date
from enum import Enum, IntEnum, StrEnum
from pathlib import Path
from typing import Any

import pytest

from openmarkets_provider import queries
from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.query.arguments import is_literal
from openmarkets_provider.query.plan import plan
from openmarkets_provider.query.query import check, resolve, window
from tests.support.queries import (
    VALID,
    Later,
    LazySequence,
    only_call,
    quotes_query,
    securities_query,
)


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
        check(securities_query(exchange))


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
    call = only_call(quotes_query(securities))
    assert call.json == {"securities": full}
    assert all(type(security) is str for security in call.json["securities"])


@pytest.mark.parametrize(
    ("securities", "message"),
    [
        ([], "securities is empty"),
        ("", "securities is empty"),
        (" , \n", "securities is empty"),
        (None, "set securities, or an exchange"),
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
            look(quotes_query(securities))
        assert len(str(caught.value)) < 400


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
        (VALID["depth"] | {"exchange": "ASX"}, "securities can't be used with exchange"),
        (VALID["depth"] | {"securities": None}, "set securities, or an exchange"),
        (VALID["depth"] | {"securities": None, "exchange": "A/X"}, "exchange must be a code such as 'ASX', not 'A/X'"),
        (VALID["time_series"] | {"frequency": "daily"}, "frequency must be one of 'Daily', 'Weekly', not 'daily'"),
        (VALID["time_series"] | {"frequency": "Minutes"}, "frequency must be one of 'Daily', 'Weekly', not 'Minutes'"),
        (VALID["time_series"] | {"frequency": 1}, "frequency must be one of 'Daily', 'Weekly', not 1"),
        (
            VALID["time_series"] | {"adjusted": 1},
            "adjusted must be True, False or one of 'cumulative_multiply', .*not 1",
        ),
        (
            VALID["time_series"] | {"adjusted": None},
            "adjusted must be True, False or one of .*'event_divide', not None",
        ),
        (VALID["time_series"] | {"adjusted": "divide"}, "adjusted must be True, False or one of .*not 'divide'"),
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
        (VALID["orders"] | {"portfolios": "P1"}, "accounts can't be used with portfolios"),
        (VALID["orders"] | {"accounts": 5}, "accounts must be a list such as ['12345'] .*not a value of type int"),
        (VALID["orders"] | {"accounts": ""}, "accounts is empty"),
        (VALID["orders"] | {"accounts": []}, "accounts is empty"),
        (VALID["orders"] | {"accounts": [5]}, "accounts: a value of type int (5) is malformed"),
        (VALID["orders"] | {"accounts": [True]}, "accounts: a value of type bool (True) is malformed"),
        (VALID["orders"] | {"accounts": [float("0.1")]}, "accounts: a value of type float (0.1) is malformed"),
        (VALID["orders"] | {"accounts": None}, "accounts and portfolios are None; set codes, or remove both arguments"),
        (VALID["orders"] | {"accounts": "*", "portfolios": "P1"}, "accounts can't be used with portfolios"),
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
        with pytest.raises(OpenmarketsQueryError, match=f"{argument}: .* is malformed.*If a template rendered a list"):
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
        with pytest.raises(OpenmarketsQueryError, match=f"^{name}: accounts and portfolios are None; set codes, or"):
            look(nothing)


@pytest.mark.parametrize("argument", ["securities", "exchange"])
def test_a_date_is_no_code_of_a_security_or_an_exchange(argument: str):
    query = quotes_query(None) | {argument: date(2026, 1, 5)}
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
        only_call(securities_query(Choice.ASX)).params["exchanges"],
    ]
    assert list(map(str, params)) == ["Daily", "ASX"]
    assert only_call(quotes_query([Choice.ASX])).json == {"securities": ["ASX.ASX@TM"]}


def test_the_results_of_a_mapped_task_are_taken_as_a_list():
    (call,) = plan(quotes_query(LazySequence("BHP", "CBA")))
    assert call.json == {"securities": ["BHP.ASX@TM", "CBA.ASX@TM"]}
    with pytest.raises(OpenmarketsQueryError, match="securities is empty"):
        plan(quotes_query(LazySequence()))
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
