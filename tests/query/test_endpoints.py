from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qsl

import pytest

from openmarkets_provider import queries
from openmarkets_provider.client.environments import ENVIRONMENTS, SCOPES
from openmarkets_provider.query.endpoints import ENDPOINTS, MAX_DAYS, find_endpoint
from openmarkets_provider.query.query import Query
from tests.client.conftest import MakeClient
from tests.query.test_exchange_time import INTERVALS
from tests.support import hostile
from tests.support.hostile import HostileServer

# As the APIs' public description has them: API, method, path, safe to repeat.
PUBLIC = [
    ("market_data", "GET", "securities/v1", True),
    ("market_data", "POST", "securities/information/v2", True),
    ("market_data", "POST", "pricing/quotes/v3", True),
    ("market_data", "GET", "pricing/depth/{security}/v1", True),
    ("market_data", "GET", "pricing/timeseries/{security}/v2", True),
    ("market_data", "GET", "pricing/timeseriesintraday/{security}/v1", True),
    ("market_data", "POST", "pricing/trades/{security}/v2", True),
    ("oms", "GET", "accounts/v1", True),
    ("oms", "GET", "accounts/portfoliolinks/v1", True),
    ("oms", "POST", "portfolios/details/by-portfolio/v2", True),
    ("oms", "POST", "portfolios/cash/by-portfolio/v2", True),
    ("oms", "POST", "portfolios/positions/v2", True),
    ("oms", "GET", "orders/by-account/{account}/v4", True),
    ("oms", "GET", "trades/by-account/{account}/v1", True),
    ("oms", "POST", "orders/v4", False),
    ("oms", "PUT", "orders/{orderNumber}/v4", False),
    ("oms", "DELETE", "orders/{orderNumber}/v1", False),
]


def concrete(path: str) -> str:
    return re.sub(r"\{\w+\}", "BHP.ASX@TM", path)


@pytest.mark.parametrize(("api", "method", "path", "safe"), PUBLIC)
def test_every_public_call_is_found_by_its_concrete_path(api: str, method: str, path: str, safe: bool):
    endpoint = find_endpoint(api, method, concrete(path))
    assert endpoint is not None
    assert (endpoint.api, endpoint.method, endpoint.safe_to_repeat) == (api, method, safe)
    assert concrete(endpoint.path) == concrete(path)


def test_the_table_holds_nothing_but_the_public_calls():
    held = sorted((e.api, e.method, concrete(e.path), e.safe_to_repeat) for e in ENDPOINTS.values())
    assert held == sorted((api, method, concrete(path), safe) for api, method, path, safe in PUBLIC)


def test_only_what_takes_a_list_of_codes_has_a_limit_of_a_thousand():
    limits = {name: e.max_codes for name, e in ENDPOINTS.items() if e.max_codes is not None}
    names = ["security_information", "quotes", "portfolio_details", "cash", "positions"]
    assert limits == dict.fromkeys(names, 1000)


@pytest.mark.parametrize("interval", INTERVALS)
def test_the_longest_range_of_an_intraday_call_is_the_public_one(interval: int):
    assert MAX_DAYS[interval] == (7 if interval < 10 else 30 if interval <= 30 else 60)


def test_there_are_no_other_intervals_and_all_divide_an_hour():
    assert tuple(MAX_DAYS) == INTERVALS
    assert not any(60 % interval for interval in INTERVALS)


def test_only_quotes_come_wrapped():
    assert {name: e.records for name, e in ENDPOINTS.items() if e.records} == {"quotes": "quotes"}


@pytest.mark.parametrize("name", ENDPOINTS)
def test_an_endpoint_is_filed_under_its_name_and_belongs_to_an_api(name: str):
    endpoint = ENDPOINTS[name]
    assert endpoint.name == name
    assert endpoint.api in SCOPES
    assert endpoint.path == endpoint.path.strip("/").lower()


@pytest.mark.parametrize(
    ("api", "method", "path"),
    [
        ("market_data", "POST", "orders/v4"),
        ("oms", "PATCH", "orders/5/v4"),
        ("oms", "GET", "orders/v4"),
        ("oms", "POST", "orders/v5"),
        ("oms", "POST", "orders/v4/more"),
        ("oms", "POST", "more/orders/v4"),
        ("oms", "PUT", "orders/5/6/v4"),
        ("oms", "PUT", "orders//v4"),
        ("market_data", "GET", "pricing/depth/v1"),
        ("market_data", "POST", "pricing/quotesxv3"),
        ("news", "GET", "securities/v1"),
        ("", "", ""),
    ],
)
def test_anything_else_is_no_public_call(api: str, method: str, path: str):
    assert find_endpoint(api, method, path) is None


@pytest.mark.parametrize(
    "path", ["Orders/V4", "orders/v4/", "/orders/v4", "orders//v4", "%6frders/v4", "orders%2Fv4", "ORDERS%2fV4//"]
)
def test_another_spelling_of_a_path_does_not_hide_the_endpoint(path: str):
    assert find_endpoint("oms", "POST", path) is ENDPOINTS["create_order"]


def test_a_dot_of_a_path_is_only_a_dot():
    assert find_endpoint("market_data", "GET", "pricing/depth/BHP.ASX@TM/v1") is ENDPOINTS["depth"]
    assert find_endpoint("market_data", "GET", "pricing/depth/BHP/ASX/v1") is None


@pytest.mark.parametrize(
    ("environment", "identity", "apis"),
    [
        ("production", "https://identity.openmarkets.com.au", "https://{}-api.openmarkets.com.au"),
        ("test", "https://stage-identity.openmarkets.com.au", "https://test-{}-api.openmarkets.com.au"),
    ],
)
def test_the_hosts_of_an_environment(environment: str, identity: str, apis: str):
    servers = ENVIRONMENTS[environment]
    assert servers.identity_url == identity
    assert dict(servers.api_urls) == {api: apis.format(api.replace("_", "-")) for api in SCOPES}


def test_there_are_two_environments_and_three_scopes():
    assert list(ENVIRONMENTS) == ["production", "test"]
    assert dict(SCOPES) == {"market_data": "market-data-api", "news": "news-api", "oms": "oms-api"}


# --- what each query sends, as a server receives it

BHP, CBA = "BHP.ASX@TM", "CBA.ASX@TM"
LINKS = [{"accountCode": "A1", "portfolioCode": "P1", "linkRemoved": False}]
LISTED = [{"securityCode": "BHP", "exchange": "CXA"}]
SUMMER = {"start": "2026-01-05T10:00:00", "end": "2026-01-05T05:00:00Z"}
TIMES = {"dateTimeFrom": "2026-01-05T10:00:00", "dateTimeTo": "2026-01-05T16:00:00"}
TIMES_IN_URL = [*TIMES.items()]
WEEK = {"start": "2026-01-05", "end": "2026-01-12"}

Sent = tuple[str, str, list[tuple[str, str]], Any]
"""API and method, path, query string, JSON body."""

TABLE: list[tuple[Query, list[Sent]]] = [
    (queries.securities(), [("market_data GET", "securities/v1", [("exchanges", "ASX")], None)]),
    (queries.securities("CXA"), [("market_data GET", "securities/v1", [("exchanges", "CXA")], None)]),
    (
        queries.security_information(["BHP", "CBA"]),
        [("market_data POST", "securities/information/v2", [], {"securities": [BHP, CBA]})],
    ),
    (queries.quotes("BHP, CBA"), [("market_data POST", "pricing/quotes/v3", [], {"securities": [BHP, CBA]})]),
    (
        queries.quotes(exchange="CXA"),
        [
            ("market_data GET", "securities/v1", [("exchanges", "CXA")], None),
            ("market_data POST", "pricing/quotes/v3", [], {"securities": ["BHP.CXA@TM"]}),
        ],
    ),
    (
        queries.depth("BHP CBA"),
        [
            (
                "market_data GET",
                f"pricing/depth/{security}/v1",
                [("askLevelMax", "10"), ("bidLevelMax", "10"), ("groupBy", "Price")],
                None,
            )
            for security in (BHP, CBA)
        ],
    ),
    (
        queries.depth("BHP.CXA@DL", levels=100),
        [
            (
                "market_data GET",
                "pricing/depth/BHP.CXA@DL/v1",
                [("askLevelMax", "100"), ("bidLevelMax", "100"), ("groupBy", "Price")],
                None,
            )
        ],
    ),
    (
        queries.time_series("BHP", **WEEK),
        [
            (
                "market_data GET",
                f"pricing/timeseries/{BHP}/v2",
                [("frequency", "Daily"), ("dateFrom", "2026-01-05"), ("dateTo", "2026-01-12")],
                None,
            )
        ],
    ),
    (
        queries.time_series("BHP", frequency="Weekly", **WEEK),
        [
            (
                "market_data GET",
                f"pricing/timeseries/{BHP}/v2",
                [("frequency", "Weekly"), ("dateFrom", "2026-01-03"), ("dateTo", "2026-01-10")],
                None,
            )
        ],
    ),
    (
        queries.intraday_time_series("BHP", interval=10, **SUMMER),
        [
            (
                "market_data GET",
                f"pricing/timeseriesintraday/{BHP}/v1",
                [("frequency", "Minutes"), ("consolidationInterval", "10"), *TIMES_IN_URL],
                None,
            )
        ],
    ),
    (
        queries.intraday_time_series("BHP", interval=5, start="2026-01-05", end="2026-01-13"),
        [
            (
                "market_data GET",
                f"pricing/timeseriesintraday/{BHP}/v1",
                [
                    ("frequency", "Minutes"),
                    ("consolidationInterval", "5"),
                    ("dateTimeFrom", f"2026-01-{start}T00:00:00"),
                    ("dateTimeTo", f"2026-01-{end}T00:00:00"),
                ],
                None,
            )
            for start, end in [("05", "12"), ("12", "13")]
        ],
    ),
    (queries.trades("BHP", **SUMMER), [("market_data POST", f"pricing/trades/{BHP}/v2", [], TIMES)]),
    (
        queries.trades("BHP CBA", start="2026-01-05", end="2026-01-07"),
        [
            (
                "market_data POST",
                f"pricing/trades/{security}/v2",
                [],
                {"dateTimeFrom": f"2026-01-{start}T00:00:00", "dateTimeTo": f"2026-01-{end}T00:00:00"},
            )
            for security in (BHP, CBA)
            for start, end in [("05", "06"), ("06", "07")]
        ],
    ),
    (queries.accounts(), [("oms GET", "accounts/v1", [], None)]),
    (queries.portfolio_links(), [("oms GET", "accounts/portfoliolinks/v1", [], None)]),
    (
        queries.portfolio_details(portfolios="P1 P2", include_same_cash_account=True),
        [
            (
                "oms POST",
                "portfolios/details/by-portfolio/v2",
                [],
                {"portfolioCodes": ["P1", "P2"], "includePortfoliosWithSameCashAccount": True},
            )
        ],
    ),
    (
        queries.portfolio_details("A1"),
        [
            ("oms GET", "accounts/portfoliolinks/v1", [], None),
            (
                "oms POST",
                "portfolios/details/by-portfolio/v2",
                [],
                {"portfolioCodes": ["P1"], "includePortfoliosWithSameCashAccount": False},
            ),
        ],
    ),
    (
        queries.cash(portfolios=["P1"]),
        [("oms POST", "portfolios/cash/by-portfolio/v2", [], {"portfolioCodes": ["P1"]})],
    ),
    (
        queries.positions(),
        [
            ("oms GET", "accounts/portfoliolinks/v1", [], None),
            ("oms POST", "portfolios/positions/v2", [], {"portfolioCodes": ["P1"]}),
        ],
    ),
    (
        queries.orders("A1 A2"),
        [
            (
                "oms GET",
                f"orders/by-account/{account}/v4",
                [("orderFilter", "AllOrdersForTheLast3Days"), ("includeChildOrders", "true")],
                None,
            )
            for account in ("A1", "A2")
        ],
    ),
    (
        queries.orders(portfolios="P1", include_child_orders=False),
        [
            ("oms GET", "accounts/portfoliolinks/v1", [], None),
            (
                "oms GET",
                "orders/by-account/A1/v4",
                [("orderFilter", "AllOrdersForTheLast3Days"), ("includeChildOrders", "false")],
                None,
            ),
        ],
    ),
    (
        queries.orders(["a b?c=d#é%41&"]),
        [
            (
                "oms GET",
                "orders/by-account/a%20b%3Fc%3Dd%23%C3%A9%2541%26/v4",
                [("orderFilter", "AllOrdersForTheLast3Days"), ("includeChildOrders", "true")],
                None,
            )
        ],
    ),
    (
        queries.order_trades(**SUMMER),
        [
            ("oms GET", "accounts/v1", [], None),
            ("oms GET", "trades/by-account/A1/v1", TIMES_IN_URL, None),
        ],
    ),
    (
        queries.request("oms", "PUT", "orders/17/v4", params={"a": [1, True]}, json={"orderVolume": 5}),
        [("oms PUT", "orders/17/v4", [("a", "1"), ("a", "true")], {"orderVolume": 5})],
    ),
]


def answer(sock: socket.socket, request: bytes) -> None:
    content: Any = []
    path = hostile.target(request)
    if "quotes" in path:
        content = {"quotes": [], "invalidSecurities": []}
    elif "portfoliolinks" in path or "accounts/v1" in path:
        content = LINKS
    elif "information" in path:
        asked = [security.partition(".")[0] for security in json.loads(hostile.body(request))["securities"]]
        content = [{"securityCode": code, "exchange": "ASX"} for code in asked]
    elif "securities/v1" in path:
        content = LISTED
    sock.sendall(hostile.reply(json.dumps(content).encode()))


def sent(request: bytes) -> Sent:
    method, place = hostile.target(request).split(" ")
    path, _, params = place.partition("?")
    api, _, path = path.removeprefix("/").partition("/")
    content = hostile.body(request)
    pairs = parse_qsl(params, keep_blank_values=True, strict_parsing=bool(params))
    return f"{api} {method}", path, pairs, json.loads(content) if content else None


@pytest.fixture
def server() -> Iterator[HostileServer]:
    with HostileServer(answer) as running:
        yield running


@pytest.mark.parametrize(("query", "expected"), TABLE, ids=[query["endpoint"] for query, _ in TABLE])
def test_a_query_sends_what_the_public_description_says(
    query: Query, expected: list[Sent], server: HostileServer, make_client: MakeClient, run: Callable[..., Any]
):
    client = make_client(market_data_url=f"{server.url}/market_data", oms_url=f"{server.url}/oms")
    if "raw" in query:
        # Rows would need price multipliers from elsewhere.
        query = query | {"raw": True}
    run(client, query)
    # Calls that don't wait for one another arrive in any order.
    assert sorted(map(sent, server.requests), key=str) == sorted(expected, key=str)
    for request in server.requests:
        assert hostile.header(request, "accept") == "application/json"
        assert (hostile.header(request, "authorization") or "").startswith("Bearer ")
        assert hostile.header(request, "content-type") == ("application/json" if hostile.body(request) else None)


def test_the_table_has_every_query():
    assert {query["endpoint"] for query, _ in TABLE} == set(queries.__all__) - {"Query"}


@pytest.mark.parametrize(
    "query",
    [
        queries.depth("BHP CBA"),
        queries.time_series("BHP CBA", **WEEK),
        queries.intraday_time_series("BHP CBA", interval=5, **WEEK),
        queries.trades("BHP CBA", **WEEK),
    ],
    ids=lambda query: query["endpoint"],
)
def test_rows_of_what_has_no_price_multiplier_take_one_more_call_before_the_others(
    query: Query, server: HostileServer, make_client: MakeClient, run: Callable[..., Any]
):
    client = make_client(market_data_url=f"{server.url}/market_data", oms_url=f"{server.url}/oms")
    run(client, query)
    first, *others = map(sent, server.requests)
    assert first == ("market_data POST", "securities/information/v2", [], {"securities": [BHP, CBA]})
    assert others
    assert not any("information" in path for _, path, _, _ in others)


def test_request_ids_are_fresh(server: HostileServer, make_client: MakeClient, run: Callable[..., Any]):
    client = make_client(market_data_url=f"{server.url}/market_data")
    run(client, queries.trades("BHP", raw=True, **WEEK))
    ids = [hostile.header(request, "x-request-id") for request in server.requests]
    assert len(set(ids)) == len(ids) == 5
    assert None not in ids
