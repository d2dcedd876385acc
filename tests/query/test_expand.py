from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmarkets_provider import queries
from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.query.expand import expand, lookup_query
from openmarkets_provider.query.plan import plan
from openmarkets_provider.query.query import Query, resolve
from tests.client.conftest import MakeClient

TODAY = date(2026, 1, 15)
RANGE = {"start": "2026-01-05", "end": "2026-01-10"}
ByExchange = Callable[[str], Query]

WITHOUT_RANGE: list[ByExchange] = [
    lambda exchange: queries.security_information(exchange=exchange),
    lambda exchange: queries.quotes(exchange=exchange),
    lambda exchange: queries.depth(exchange=exchange),
]
WITH_RANGE: list[ByExchange] = [
    lambda exchange: queries.time_series(exchange=exchange, **RANGE),
    lambda exchange: queries.intraday_time_series(exchange=exchange, interval=5, **RANGE),
    lambda exchange: queries.trades(exchange=exchange, **RANGE),
]
BY_PORTFOLIO: list[Callable[..., Query]] = [queries.portfolio_details, queries.cash, queries.positions]
BY_ACCOUNT: list[Callable[..., Query]] = [
    queries.orders,
    lambda *args, **more: queries.order_trades(*args, **more, **RANGE),
]


def security(
    code: str, first: str | None = None, last: str | None = None, exchange: str | None = "ASX"
) -> dict[str, Any]:
    return {
        "security_code": code,
        "exchange": exchange,
        "first_listed_date": None if first is None else date.fromisoformat(first),
        "last_listed_date": None if last is None else date.fromisoformat(last),
    }


def link(
    account: str | None, portfolio: str | None, removed: bool | None = False, number: str | None = None
) -> dict[str, Any]:
    return {
        "account_code": account,
        "portfolio_code": portfolio,
        "link_removed": removed,
        "link_sequence_number": number,
    }


LINKS = [
    link("A2", "P1"),
    link("A1", "P2"),
    link("A1", "P1"),
    link("A1", "P2"),
    link("A3", "P3", removed=True),
    link("A4", "P4", removed=None),
]


# --- what has to be looked up first


@pytest.mark.parametrize("make", [*WITHOUT_RANGE, *WITH_RANGE])
def test_an_exchange_needs_its_securities(make: ByExchange):
    assert lookup_query(make("CXA")) == queries.securities("CXA")


@pytest.mark.parametrize("make", BY_PORTFOLIO)
def test_portfolios_of_accounts_and_all_portfolios_need_the_links(make: Callable[..., Query]):
    assert lookup_query(make(["A1"])) == lookup_query(make()) == queries.portfolio_links()


@pytest.mark.parametrize("make", BY_ACCOUNT)
def test_accounts_of_portfolios_need_the_links_and_all_accounts_their_list(make: Callable[..., Query]):
    assert lookup_query(make(portfolios=["P1"])) == queries.portfolio_links()
    assert lookup_query(make()) == queries.accounts()


@pytest.mark.parametrize(
    "query",
    [
        queries.securities(),
        queries.accounts(),
        queries.portfolio_links(),
        queries.quotes("BHP"),
        queries.depth("BHP"),
        queries.trades("BHP", **RANGE),
        *(make(portfolios="P1") for make in BY_PORTFOLIO),
        *(make("A1") for make in BY_ACCOUNT),
    ],
)
def test_a_query_that_names_its_subject_needs_nothing(query: Query):
    assert lookup_query(query) is None


@pytest.mark.parametrize("query", [*(make("ASX") for make in [*WITHOUT_RANGE, *WITH_RANGE]), queries.orders(raw=True)])
def test_what_is_needed_comes_as_rows_even_when_the_query_wants_records(query: Query):
    before = lookup_query(query | {"raw": True})
    assert before is not None
    assert before["raw"] is False
    assert len(plan(before)) == 1


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (
            {"endpoint": "quotes"},
            "quotes: argument securities, exchange, on_invalid, "
            "on_missing_multiplier, on_missing_field, raw is missing",
        ),
        (queries.orders() | {"accounts": []}, "orders: accounts is empty"),
        (queries.orders() | {"raw": "no"}, "orders: raw must be True or False"),
        (queries.depth(exchange="ASX") | {"levels": 0}, "depth: levels must be"),
        (queries.trades(exchange="ASX", start="{{ a }}", end="{{ b }}"), "trades: start must be"),
        (
            queries.trades(exchange="ASX", **RANGE) | {"end": RANGE["start"]},
            "trades: start '2026-01-05' and end '2026-01-05' are an empty or reversed range",
        ),
    ],
)
def test_a_malformed_query_is_refused_before_anything_is_asked_for_it(query: Query, message: str):
    with pytest.raises(OpenmarketsQueryError, match=f"^{message}"):
        lookup_query(query)


# --- an exchange


@pytest.mark.parametrize("make", [*WITHOUT_RANGE, *WITH_RANGE])
def test_an_exchange_becomes_the_securities_that_it_lists(make: ByExchange):
    query = make("CXA")
    named = expand(query, [security("BHP", exchange="CXA"), security("CBA", exchange="CXA")], TODAY)
    assert named == resolve(query) | {"securities": ["BHP.CXA@TM", "CBA.CXA@TM"], "exchange": None}
    assert lookup_query(named) is None
    assert plan(named)
    assert query == make("CXA")


@pytest.mark.parametrize("make", WITH_RANGE)
@pytest.mark.parametrize(
    ("first", "last", "listed"),
    [
        (None, None, True),
        ("2026-01-01", None, True),
        ("2026-01-05", None, True),
        ("2026-01-09", None, True),
        pytest.param("2026-01-10", None, False, id="listed first on the day that is not part of the range"),
        ("2026-01-11", None, False),
        (None, "2026-01-04", False),
        (None, "2026-01-05", True),
        ("2026-01-07", "2026-01-08", True),
        ("2020-01-01", "2030-01-01", True),
        # long gone, and not yet there, today
        ("2025-01-01", "2026-01-06", True),
        ("2026-01-20", "2026-01-21", False),
    ],
)
def test_with_a_range_a_security_counts_when_it_is_listed_on_some_day_of_it(
    make: ByExchange, first: str | None, last: str | None, listed: bool
):
    named = expand(make("ASX"), [security("X", first, last), security("ALWAYS")], TODAY)
    assert named["securities"] == (["X.ASX@TM"] if listed else []) + ["ALWAYS.ASX@TM"]


@pytest.mark.parametrize("make", WITHOUT_RANGE)
@pytest.mark.parametrize(
    ("first", "last", "listed"),
    [
        (None, None, True),
        ("2026-01-15", "2026-01-15", True),
        ("2026-01-16", None, False),
        (None, "2026-01-14", False),
        ("2020-01-01", "2030-01-01", True),
    ],
)
def test_without_a_range_a_security_counts_when_it_is_listed_today(
    make: ByExchange, first: str | None, last: str | None, listed: bool
):
    named = expand(make("ASX"), [security("X", first, last), security("ALWAYS")], TODAY)
    assert named["securities"] == (["X.ASX@TM"] if listed else []) + ["ALWAYS.ASX@TM"]


def test_the_days_of_a_range_are_the_exchange_s():
    # 2026-01-05 23:59 to 2026-01-06 00:01 in Sydney
    query = queries.trades(exchange="ASX", start="2026-01-05T12:59:00Z", end="2026-01-05T13:01:00Z")
    rows = [
        security("GONE", last="2026-01-04"),
        security("LAST", last="2026-01-05"),
        security("NEW", first="2026-01-06"),
        security("LATER", first="2026-01-07"),
    ]
    named = expand(query, rows, TODAY)
    assert named["securities"] == ["LAST.ASX@TM", "NEW.ASX@TM"]


def test_of_daily_bars_the_day_of_the_end_is_not_part_of_the_range_whatever_its_time():
    query = queries.time_series(exchange="ASX", start="2026-01-05T15:00:00", end="2026-01-06T15:00:00")
    named = expand(query, [security("NEW", first="2026-01-06"), security("LAST", last="2026-01-05")], TODAY)
    assert named["securities"] == ["LAST.ASX@TM"]


@pytest.mark.parametrize("make", [*WITHOUT_RANGE, *WITH_RANGE])
@pytest.mark.parametrize("rows", [[], [security("OLD", last="2020-01-01")]])
def test_an_exchange_that_lists_nothing_is_an_error_that_names_it(make: ByExchange, rows: list[dict[str, Any]]):
    query = make("NSX")
    with pytest.raises(OpenmarketsQueryError, match=f"^{query['endpoint']}: exchange 'NSX': the API lists no"):
        expand(query, rows, TODAY)


def test_a_listed_security_without_an_exchange_belongs_to_the_one_asked_for():
    named = expand(queries.quotes(exchange="CXA"), [security("BHP", exchange=None)], TODAY)
    assert named["securities"] == ["BHP.CXA@TM"]


# --- accounts and portfolios


@pytest.mark.parametrize("make", BY_PORTFOLIO)
@pytest.mark.parametrize(
    ("accounts", "portfolios"),
    [
        ("A1", ["P2", "P1"]),
        (["A2"], ["P1"]),
        (["A2", "A1"], ["P1", "P2"]),
        (["A1", "A2", "A1"], ["P2", "P1"]),
        ("A4, A2", ["P4", "P1"]),
        ("*", ["P1", "P2", "P4"]),
    ],
)
def test_accounts_become_the_portfolios_that_are_linked_to_them(
    make: Callable[..., Query], accounts: Any, portfolios: list[str]
):
    query = make(accounts)
    named = expand(query, LINKS, TODAY)
    assert named == resolve(query) | {"accounts": None, "portfolios": portfolios}
    assert [call.json["portfolioCodes"] for call in plan(named)] == [portfolios]
    assert query == make(accounts)


@pytest.mark.parametrize("make", BY_ACCOUNT)
@pytest.mark.parametrize(
    ("portfolios", "accounts"),
    [("P1", ["A2", "A1"]), (["P2", "P1"], ["A1", "A2"]), (("P4",), ["A4"])],
)
def test_portfolios_become_the_accounts_that_are_linked_to_them(
    make: Callable[..., Query], portfolios: Any, accounts: list[str]
):
    query = make(portfolios=portfolios)
    named = expand(query, LINKS, TODAY)
    assert named == resolve(query) | {"accounts": accounts, "portfolios": None}
    assert [call.path.split("/")[2] for call in plan(named)] == accounts


@pytest.mark.parametrize("make", BY_ACCOUNT)
def test_with_neither_all_accounts_of_the_list_are_asked_for(make: Callable[..., Query]):
    named = expand(make(), [{"account_code": "A1"}, {"account_code": "A2"}, {"account_code": "A1"}], TODAY)
    assert named == resolve(make(["A1", "A2"]))


@pytest.mark.parametrize(
    ("query", "lonely"),
    [
        (queries.cash("A9"), "accounts: no portfolio code is linked to A9"),
        (queries.cash(["A1", "A8", "A9"]), "accounts: no portfolio code is linked to A8, A9"),
        (queries.positions("A3"), "accounts: no portfolio code is linked to A3"),
        (queries.portfolio_details("a1"), "accounts: no portfolio code is linked to a1"),
        (queries.orders(portfolios="P3"), "portfolios: no account code is linked to P3"),
        (queries.order_trades(portfolios=["P9", "P1"], **RANGE), "portfolios: no account code is linked to P9"),
        (queries.cash("A5"), "accounts: no portfolio code is linked to A5"),
        (queries.cash(["A1", "A5"]), "accounts: no portfolio code is linked to A5"),
    ],
)
def test_a_code_without_a_link_is_an_error_that_names_it(query: Query, lonely: str):
    # A5's link leads nowhere
    with pytest.raises(OpenmarketsQueryError, match=rf"^{query['endpoint']}: {lonely}\. Check the codes"):
        expand(query, [*LINKS, link("A5", None)], TODAY)


@pytest.mark.parametrize("make", [*BY_PORTFOLIO, *BY_ACCOUNT])
@pytest.mark.parametrize("rows", [[], [link("A1", "P1", removed=True)], [link(None, None)]])
def test_a_client_that_sees_none_at_all_leaves_nothing_to_ask_for(
    make: Callable[..., Query], rows: list[dict[str, Any]]
):
    assert not len(plan(expand(make(), rows, TODAY)))


def test_the_link_with_the_highest_sequence_number_decides():
    removed, restored = link("A1", "P1", removed=True, number="10"), link("A1", "P1", number="9")
    assert not len(plan(expand(queries.cash(), [removed, restored], TODAY)))
    again = link("A1", "P1", number="11")
    assert expand(queries.cash(), [again, removed, restored], TODAY)["portfolios"] == ["P1"]


CODES = st.sampled_from([f"C{number}" for number in range(6)])
NUMBERS = st.sampled_from([None, "9", "10", "011"])
ANY_LINKS = st.lists(st.builds(link, CODES, CODES, st.sampled_from([True, False, None]), NUMBERS), max_size=12)


@given(ANY_LINKS, st.lists(CODES, min_size=1, max_size=4))
def test_whatever_the_links_the_portfolios_are_those_linked_each_once(links: list[dict[str, Any]], wanted: list[str]):
    usable = set[tuple[str, str]]()
    for row in sorted(links, key=lambda row: (int(row["link_sequence_number"] or 0), row["link_removed"] is not True)):
        pair = (row["account_code"], row["portfolio_code"])
        (usable.discard if row["link_removed"] else usable.add)(pair)
    linked = {account: {portfolio for each, portfolio in usable if each == account} for account in wanted}
    query = queries.cash(wanted)
    if not all(linked.values()):
        with pytest.raises(OpenmarketsQueryError) as caught:
            expand(query, links, TODAY)
        for account in wanted:
            assert (account in str(caught.value)) is not bool(linked[account])
        return
    named = expand(query, links, TODAY)
    assert set(named["portfolios"]) == set().union(*linked.values())
    assert len(named["portfolios"]) == len(set(named["portfolios"]))
    # those of the first account come first
    assert set(named["portfolios"][: len(linked[wanted[0]])]) == linked[wanted[0]]


# --- against the sandbox


def test_the_lookup_goes_over_the_api(make_client: MakeClient, run: Callable[..., Any]):
    links = run(make_client(), queries.portfolio_links())
    by_account: dict[str, list[str]] = {}
    for row in links:
        if row["link_removed"] is not True:
            by_account.setdefault(row["account_code"], []).append(row["portfolio_code"])
    assert any(row["link_removed"] for row in links)
    for account, portfolios in by_account.items():
        rows = run(make_client(), queries.cash(account))
        assert {row["portfolio_code"] for row in rows} == set(portfolios)
    everything = run(make_client(), queries.cash())
    assert {row["portfolio_code"] for row in everything} == {code for codes in by_account.values() for code in codes}


def test_an_account_without_a_link_is_named_before_its_cash_is_asked_for(
    make_client: MakeClient, run: Callable[..., Any]
):
    with pytest.raises(
        OpenmarketsQueryError,
        match=r"^cash: accounts: no portfolio code is linked to NOBODY\. Check the codes",
    ):
        run(make_client(), queries.cash("NOBODY"))
