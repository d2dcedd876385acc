"""The clock that a user sets: what follows it, and what it refuses."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest

from openmarkets_provider.sandbox.server import SandboxServer

SYDNEY = ZoneInfo("Australia/Sydney")
NOW = datetime(2026, 3, 5, 12, 30, tzinfo=SYDNEY)
BHP = "BHP.ASX@TM"
ORDER = {
    "accountCode": "SBX0001",
    "securityCode": "BHP",
    "exchange": "ASX",
    "destination": "ASX",
    "side": "Buy",
    "orderPrice": 4400,
    "orderVolume": 1,
    "lifetime": "EndOfDay",
    "pricingInstruction": "Limit",
}


@pytest.fixture
def standing(openmarkets_sandbox: SandboxServer, api: httpx.Client) -> httpx.Client:
    """A client of a sandbox whose time is fixed to 12:30 on a trading day."""
    openmarkets_sandbox.now = NOW
    return api


def quote(api: httpx.Client) -> dict[str, Any]:
    reply = api.post("/market-data/pricing/quotes/v3", json={"securities": [BHP]}).json()
    return dict(reply["quotes"][0])


def daily(api: httpx.Client) -> list[str]:
    params = {"frequency": "Daily", "dateFrom": "2026-03-04", "dateTo": "2026-03-31"}
    bars = api.get(f"/market-data/pricing/timeseries/{BHP}/v2", params=params).json()
    return [bar["timeSeriesDate"] for bar in bars]


def intraday(api: httpx.Client) -> list[str]:
    params = {
        "frequency": "Minutes",
        "consolidationInterval": "60",
        "dateTimeFrom": "2026-03-05T00:00",
        "dateTimeTo": "2026-03-06T00:00",
    }
    bars = api.get(f"/market-data/pricing/timeseriesintraday/{BHP}/v1", params=params).json()
    return [bar["timeSeriesDateTime"] for bar in bars]


def last_trade(api: httpx.Client) -> str:
    body = {"dateTimeFrom": "2026-03-05T00:00", "dateTimeTo": "2026-03-06T00:00"}
    return max(trade["tradeDateTime"] for trade in api.post(f"/market-data/pricing/trades/{BHP}/v2", json=body).json())


def last_fill(api: httpx.Client) -> str:
    params = {"dateTimeFrom": "2026-03-01T00:00", "dateTimeTo": "2026-03-31T00:00"}
    return max(fill["tradeDateTime"] for fill in api.get("/oms/trades/by-account/SBX0001/v1", params=params).json())


def last_news(api: httpx.Client) -> str:
    return max(item["announcementDateTime"] for item in api.get("/news/announcements/v1").json())


def last_position(api: httpx.Client) -> str:
    reply = api.post("/oms/portfolios/positions/v2", json={"portfolioCodes": ["SBX0001P"]}).json()
    return max(position["updateDateTime"] for position in reply)


def orders(api: httpx.Client) -> list[dict[str, Any]]:
    return list(api.get("/oms/orders/by-account/SBX0001/v4").json())


def test_bars_are_there_up_to_the_time_and_no_further(
    openmarkets_sandbox: SandboxServer, standing: httpx.Client
) -> None:
    assert daily(standing) == ["2026-03-04", "2026-03-05"]
    assert intraday(standing) == ["2026-03-05T10:00:00", "2026-03-05T11:00:00", "2026-03-05T12:00:00"]
    openmarkets_sandbox.now += timedelta(hours=1)
    assert intraday(standing)[-1] == "2026-03-05T13:00:00"
    openmarkets_sandbox.now += timedelta(days=1)
    assert daily(standing) == ["2026-03-04", "2026-03-05", "2026-03-06"]


@pytest.mark.parametrize(
    "latest",
    [last_trade, last_fill, last_news, last_position, lambda api: quote(api)["tradeDateTime"]],
    ids=["trades", "fills", "news", "positions", "quotes"],
)
def test_nothing_is_later_than_the_time_nor_long_ago(
    standing: httpx.Client, latest: Callable[[httpx.Client], str]
) -> None:
    assert "2026-03-04T12:30" <= latest(standing) <= "2026-03-05T12:30"


def test_orders_are_created_changed_and_filled_at_the_time(
    openmarkets_sandbox: SandboxServer, standing: httpx.Client
) -> None:
    begun = {order["createDateTime"] for order in orders(standing) if order["orderNumber"] < 100_000}
    assert begun == {"2026-03-05T10:00:00.000"}
    filled = [order for order in orders(standing) if order["orderNumber"] > 100_000]
    assert {order["createDateTime"][:10] for order in filled} >= {"2026-03-03", "2026-03-04"}
    assert all(order["createDateTime"] <= "2026-03-05T12:30" for order in filled)
    number = standing.post("/oms/orders/v4", json=ORDER).json()["orderNumber"]
    openmarkets_sandbox.now += timedelta(minutes=5)
    standing.delete(f"/oms/orders/{number}/v1")
    (order,) = (order for order in orders(standing) if order["orderNumber"] == number)
    assert (order["createDateTime"], order["updateDateTime"]) == ("2026-03-05T12:30:00.000", "2026-03-05T12:35:00.000")


def test_an_announcement_is_published_at_the_time(openmarkets_sandbox: SandboxServer, standing: httpx.Client) -> None:
    published = openmarkets_sandbox.publish(BHP)
    assert published["announcementDateTime"] == "2026-03-05T12:30:00.000"


def test_it_stands_still_until_it_is_set_or_reset(openmarkets_sandbox: SandboxServer, standing: httpx.Client) -> None:
    first = quote(standing)
    assert openmarkets_sandbox.now == NOW
    assert quote(standing) == first
    openmarkets_sandbox.now += timedelta(hours=3)
    assert quote(standing)["totalVolume"] > first["totalVolume"]
    openmarkets_sandbox.now = NOW
    assert quote(standing) == first
    for back in (lambda: setattr(openmarkets_sandbox, "now", None), openmarkets_sandbox.reset):
        openmarkets_sandbox.now = NOW
        back()
        assert abs(openmarkets_sandbox.now - datetime.now(UTC)) < timedelta(minutes=1)


def test_a_server_begins_at_its_time_and_goes_back_to_it() -> None:
    sandbox = SandboxServer(now=NOW)
    sandbox.now = NOW + timedelta(days=1)
    sandbox.reset()
    assert sandbox.now == NOW


def test_tokens_expire_by_the_real_time() -> None:
    with SandboxServer(now=NOW, token_lifetime=1) as sandbox, httpx.Client(base_url=sandbox.url) as client:
        reply = client.post(
            "/identity/connect/token",
            data={"grant_type": "client_credentials", "scope": "oms-api"},
            auth=(sandbox.client_id, sandbox.client_secret),
        ).json()
        headers = {"Authorization": f"Bearer {reply['access_token']}"}
        sandbox.now += timedelta(days=1)
        start = time.monotonic()
        while client.get("/oms/accounts/v1", headers=headers).status_code == 200:
            assert time.monotonic() < start + 10
        assert time.monotonic() > start + 0.5


def test_it_is_set_over_http_too(standing: httpx.Client) -> None:
    assert standing.get("/_sandbox/clock").json() == {"now": "2026-03-05T12:30:00+11:00"}
    reply = standing.post("/_sandbox/clock", json={"now": "2026-07-01T00:00:00Z"})
    assert (reply.status_code, reply.json()) == (200, {"now": "2026-07-01T10:00:00+10:00"})
    now = standing.post("/_sandbox/clock", json={"now": None}).json()["now"]
    assert abs(datetime.fromisoformat(now) - datetime.now(UTC)) < timedelta(minutes=1)


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (NOW.replace(tzinfo=None), "now must have a time zone, such as datetime(2026, 3, 5, 10, 30, tzinfo=ZoneInfo"),
        ("2026-03-05T12:00:00+11:00", "now must have a time zone"),
        (NOW.replace(year=2000), "now must be in the years 2001 to 2099"),
        (datetime.max.replace(tzinfo=UTC), "now must be in the years 2001 to 2099"),
    ],
)
def test_wrong_times_are_refused(openmarkets_sandbox: SandboxServer, now: Any, words: str) -> None:
    for attempt in (lambda: SandboxServer(now=now), lambda: setattr(openmarkets_sandbox, "now", now)):
        with pytest.raises(ValueError, match=words.partition("(")[0]) as raised:
            attempt()
        assert words in str(raised.value)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"now": "2026-03-05T12:00:00"}, "now must have a time zone"),
        ({"now": "noon"}, "it is 'noon'"),
        ({"now": 5}, "it is 5"),
        ({"now": "1999-12-31T12:00:00Z"}, "now must be in the years 2001 to 2099; it is 1999-12-31 12:00:00+00:00"),
        ({"time": None}, "unknown: time; allowed: now"),
        ({}, "the body needs now"),
    ],
)
def test_wrong_times_are_refused_over_http(anonymous: httpx.Client, body: dict[str, Any], words: str) -> None:
    reply = anonymous.post("/_sandbox/clock", json=body)
    assert reply.status_code == 400
    assert words in reply.json()["detail"]
