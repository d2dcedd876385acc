from __future__ import annotations

import re

import pytest

from openmarkets_provider.client.endpoints import ENDPOINTS, find_endpoint
from openmarkets_provider.client.environments import ENVIRONMENTS, SCOPES

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


def test_only_what_takes_a_list_of_securities_has_a_limit_of_a_thousand():
    limits = {name: e.max_securities for name, e in ENDPOINTS.items() if e.max_securities is not None}
    assert limits == {"quotes": 1000, "security_information": 1000}


def test_only_quotes_come_wrapped():
    assert {name: e.rows for name, e in ENDPOINTS.items() if e.rows} == {"quotes": "quotes"}


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
