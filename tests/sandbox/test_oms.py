"""The order-management endpoints, over HTTP."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest

ACCOUNT, PORTFOLIO = "SBX0001", "SBX0001P"
DETAILS, CASH, POSITIONS = (
    f"/oms/portfolios/{name}/v2" for name in ("details/by-portfolio", "cash/by-portfolio", "positions")
)
ORDERS = f"/oms/orders/by-account/{ACCOUNT}/v4"
TRADES = f"/oms/trades/by-account/{ACCOUNT}/v1"
LIMIT = {
    "accountCode": ACCOUNT,
    "securityCode": "BHP",
    "exchange": "ASX",
    "destination": "ASX",
    "side": "Buy",
    "orderPrice": 4400.5,
    "orderVolume": 100,
    "lifetime": "EndOfDay",
    "pricingInstruction": "Limit",
}


def rows(reply: httpx.Response) -> list[dict[str, Any]]:
    assert reply.status_code == 200, reply.text
    found = reply.json()
    assert isinstance(found, list)
    return found


def fields(text: str) -> set[str]:
    return set(text.replace("\n", " ").replace(",", " ").split())


def create(api: httpx.Client, **changes: object) -> int:
    reply = api.post("/oms/orders/v4", json=LIMIT | changes)
    assert reply.status_code == 200, reply.text
    assert set(reply.json()) == {"orderNumber"}
    return int(reply.json()["orderNumber"])


def order(api: httpx.Client, number: int) -> dict[str, Any]:
    (found,) = (row for row in rows(api.get(ORDERS)) if row["orderNumber"] == number)
    return found


def test_accounts_and_their_portfolios(api: httpx.Client) -> None:
    accounts = rows(api.get("/oms/accounts/v1"))
    assert accounts[0] == {
        "accountCode": ACCOUNT,
        "accountName": "Sandbox account 1",
        "accountDesignation": None,
    }
    links = rows(api.get("/oms/accounts/portfoliolinks/v1"))
    assert [link["accountCode"] for link in links] == [account["accountCode"] for account in accounts]
    assert set(links[0]) == fields("accountCode, portfolioCode, accessType, linkRemoved, linkSequenceNumber")
    assert links[0]["portfolioCode"] == PORTFOLIO


def test_portfolio_details(api: httpx.Client) -> None:
    body = {"portfolioCodes": [PORTFOLIO, "NOPE"], "includePortfoliosWithSameCashAccount": False}
    (row,) = rows(api.post(DETAILS, json=body))
    assert row == {
        "portfolioCode": PORTFOLIO,
        "portfolioName": "Sandbox account 1",
        "portfolioCashCode": "SBX0001C",
    }
    assert api.post(DETAILS, json=body | {"includePortfoliosWithSameCashAccount": 1}).status_code == 400


def test_cash_is_worth_the_positions(api: httpx.Client) -> None:
    asked = {"portfolioCodes": [PORTFOLIO, "SBX0002P", PORTFOLIO]}
    cash = rows(api.post(CASH, json=asked))
    assert [row["portfolioCode"] for row in cash] == [PORTFOLIO, "SBX0002P"]
    assert set(cash[0]) == fields(
        """portfolioCode, accountCode, portfolioCashCode, portfolioCashName, currencyCode,
        createDateTime, updateDateTime, cashBalance, netCash, inMarketBuyValue, inMarketSellValue,
        netUnsettledValueToday, glv, freeEquity, totalInitialMargin, totalCfdRealisedProfit,
        totalCfdUnrealisedProfit, totalNonCfdMarketValue, trustBalance"""
    )
    assert (cash[0]["currencyCode"], cash[0]["accountCode"]) == ("AUD", ACCOUNT)
    positions = rows(api.post(POSITIONS, json=asked))
    assert {row["portfolioCode"] for row in positions} == {PORTFOLIO, "SBX0002P"}
    assert len(positions) == 10
    assert set(positions[0]) == fields(
        """accountCode, portfolioCode, securityCode, exchange, underlyingSecurityCode,
        underlyingExchange, createDateTime, updateDateTime, volumeStartOfDay, averagePriceStartOfDay,
        averagePrice, buyVolume, sellVolume, availableVolume, costValue, marketValue, totalProfit,
        todayProfit, closedProfit, actualVolume, shortSellVolume, securityType"""
    )
    for row in positions:
        assert row["costValue"] == pytest.approx(row["averagePrice"] * row["actualVolume"] / 100)
        assert row["marketValue"] - row["costValue"] == pytest.approx(row["totalProfit"])


@pytest.mark.parametrize("path", [DETAILS, CASH, POSITIONS])
@pytest.mark.parametrize("body", [{}, {"portfolioCodes": []}, {"portfolioCodes": PORTFOLIO}])
def test_wrong_lists_of_portfolios(api: httpx.Client, path: str, body: dict[str, object]) -> None:
    assert api.post(path, json=body).status_code == 400


def test_trades_of_an_account(api: httpx.Client) -> None:
    span = {"dateTimeFrom": "2026-01-05T00:00:00", "dateTimeTo": "2026-01-09T23:59:59"}
    trades = rows(api.get(TRADES, params=span))
    assert [trade["side"] for trade in trades] == ["Buy", "Sell"] * 5
    assert set(trades[0]) == fields(
        """tradeNumber, orderNumber, accountCode, securityCode, exchange, destination, tradeVolume,
        tradePrice, tradeValue, tradeDateTime, destinationTradeNumber, side, priceMultiplier,
        tradeDateTimeGmt"""
    )
    assert len({trade["tradeNumber"] for trade in trades}) == 10
    first = trades[0]
    assert first["tradeValue"] == pytest.approx(first["tradePrice"] * first["tradeVolume"] * 0.01)
    local, utc = (datetime.fromisoformat(first[name]) for name in ("tradeDateTime", "tradeDateTimeGmt"))
    assert local - utc == timedelta(hours=11)
    only = {"dateTimeFrom": first["tradeDateTime"], "dateTimeTo": first["tradeDateTime"]}
    assert rows(api.get(TRADES, params=only)) == [first]


def test_finished_orders_are_behind_the_trades(api: httpx.Client) -> None:
    now = datetime.now(ZoneInfo("Australia/Sydney")).replace(tzinfo=None)
    span = {"dateTimeFrom": str(now - timedelta(days=7)), "dateTimeTo": str(now)}
    trades = {trade["orderNumber"]: trade for trade in rows(api.get(TRADES, params=span))}
    params = {"orderFilter": "AllOrdersForTheLast3Days", "includeChildOrders": "true"}
    for found in rows(api.get(ORDERS, params=params)):
        assert set(found) == fields(
            """rootParentOrderNumber, orderNumber, parentOrderNumber, accountCode, securityCode,
            exchange, destination, subDestination, pricingInstructions, orderState, lastAction,
            actionStatus, orderVolume, orderPrice, remainingVolume, doneVolumeTotal, doneValueTotal,
            averagePrice, lifetime, currency, expiryDateTime, stateDescription, createDateTime,
            updateDateTime, destinationOrderNumber, side, priceMultiplier, postTradeStatus, notes"""
        )
        trade = trades[found["orderNumber"]]
        assert (found["orderState"], found["remainingVolume"]) == ("INACTIVE", 0)
        assert found["doneVolumeTotal"] == found["orderVolume"] == trade["tradeVolume"]
        assert found["doneValueTotal"] == pytest.approx(trade["tradeValue"])


@pytest.mark.parametrize(
    ("path", "params", "status"),
    [
        (ORDERS, {"orderFilter": "Everything"}, 400),
        (ORDERS, {"includeChildOrders": "1"}, 400),
        (ORDERS.replace(ACCOUNT, "NOPE"), {}, 404),
        (TRADES, {}, 400),
        (TRADES, {"dateTimeFrom": "2026-01-06", "dateTimeTo": "2026-01-05"}, 400),
        (TRADES.replace(ACCOUNT, "NOPE"), {}, 404),
    ],
)
def test_wrong_lists_of_orders_and_trades(api: httpx.Client, path: str, params: dict[str, str], status: int) -> None:
    assert api.get(path, params=params).status_code == status


def test_life_of_an_order(api: httpx.Client) -> None:
    number = create(api, notes="first")
    created = order(api, number)
    assert (created["orderState"], created["lastAction"], created["actionStatus"]) == (
        "ACTIVE",
        "CREATE",
        "OK",
    )
    assert (created["remainingVolume"], created["doneVolumeTotal"], created["notes"]) == (100, 0, "first")
    assert (created["priceMultiplier"], created["orderPrice"]) == (0.01, 4400.5)

    reply = api.put(f"/oms/orders/{number}/v4", json={"orderVolume": 50, "accountCode": "SBX0002"})
    assert (reply.status_code, reply.content) == (200, b"")
    amended = order(api, number)
    assert (amended["orderVolume"], amended["lastAction"]) == (50, "AMEND")
    assert (amended["accountCode"], amended["orderPrice"]) == (ACCOUNT, 4400.5)
    assert amended["createDateTime"] == created["createDateTime"] <= amended["updateDateTime"]

    api.put(f"/oms/orders/{number}/v4", json={"pricingInstruction": "Market"})
    assert order(api, number)["orderPrice"] is None

    reply = api.delete(f"/oms/orders/{number}/v1")
    assert (reply.status_code, reply.content) == (200, b"")
    cancelled = order(api, number)
    assert (cancelled["orderState"], cancelled["lastAction"]) == ("INACTIVE", "CANCEL")
    assert api.delete(f"/oms/orders/{number}/v1").status_code == 409
    assert api.put(f"/oms/orders/{number}/v4", json={}).status_code == 409


def test_orders_belong_to_their_account_and_end_with_a_reset(api: httpx.Client) -> None:
    first, second = create(api), create(api, accountCode="SBX0002")
    numbers = [row["orderNumber"] for row in rows(api.get(ORDERS))]
    assert first in numbers
    assert second not in numbers
    api.post("/_sandbox/reset")
    assert first not in [row["orderNumber"] for row in rows(api.get(ORDERS))]
    assert create(api) == first


def test_an_unknown_order_cannot_be_changed(api: httpx.Client) -> None:
    assert api.put("/oms/orders/7/v4", json={}).status_code == 404
    assert api.delete("/oms/orders/7/v1").status_code == 404


@pytest.mark.parametrize(
    "changes",
    [
        {"pricingInstruction": "Market", "orderPrice": None},
        {"lifetime": "Date", "expiryDateTime": "2999-01-01T16:00:00"},
        {"side": "Short", "lifetime": "FillOrKill", "orderPrice": 1, "orderGiver": "a", "orderTaker": "b"},
    ],
)
def test_right_orders(api: httpx.Client, changes: dict[str, object]) -> None:
    created = order(api, create(api, **changes))
    assert created["pricingInstructions"] == changes.get("pricingInstruction", "Limit")
    assert created["expiryDateTime"] == changes.get("expiryDateTime")


@pytest.mark.parametrize(
    "changes",
    [
        {"accountCode": "NOPE"},
        {"accountCode": ["SBX0001"]},
        {"securityCode": "NOPE"},
        {"securityCode": None},
        {"exchange": "NSX"},
        {"destination": ""},
        {"destination": 1},
        {"side": "Hold"},
        {"orderPrice": None},
        {"orderPrice": "4400"},
        {"orderPrice": 0},
        {"orderPrice": True},
        {"orderVolume": 0},
        {"orderVolume": 1.5},
        {"orderVolume": True},
        {"lifetime": "Forever"},
        {"lifetime": "Date"},
        {"expiryDateTime": "soon"},
        {"pricingInstruction": "Guess"},
        {"pricingInstruction": "Market"},
    ],
)
def test_wrong_orders(api: httpx.Client, changes: dict[str, object]) -> None:
    reply = api.post("/oms/orders/v4", json=LIMIT | changes)
    assert reply.status_code == 400
    assert reply.json()["detail"]
    number = create(api)
    if set(changes) & {"side", "orderPrice", "orderVolume", "lifetime", "pricingInstruction"}:
        amended = api.put(f"/oms/orders/{number}/v4", json={"orderPrice": 4400} | changes)
        assert amended.status_code == 400
        assert order(api, number)["lastAction"] == "CREATE"
