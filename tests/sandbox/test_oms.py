"""The order-management endpoints, over HTTP."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest

from openmarkets_provider.sandbox.accounts import ACCOUNTS
from openmarkets_provider.sandbox.orders import filled

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


ORDER_FIELDS = fields(
    """rootParentOrderNumber, orderNumber, parentOrderNumber, accountCode, securityCode, exchange, destination,
    subDestination, pricingInstructions, orderState, lastAction, actionStatus, orderVolume, orderPrice,
    remainingVolume, doneVolumeTotal, doneValueTotal, averagePrice, lifetime, currency, expiryDateTime,
    stateDescription, createDateTime, updateDateTime, destinationOrderNumber, side, priceMultiplier,
    postTradeStatus, notes"""
)


def first_orders(api: httpx.Client, account: str = ACCOUNT, **params: str) -> list[dict[str, Any]]:
    """Return the account's orders without those behind its fills, of which there may be another at any moment."""
    listed = rows(api.get(ORDERS.replace(ACCOUNT, account), params=params))
    return [found for found in listed if found["orderNumber"] < 100_000]


def child(order: dict[str, Any]) -> bool:
    return order["parentOrderNumber"] is not None


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
    assert [account["accountCode"] for account in accounts] == ["SBX0001", "SBX0002", "SBX0003"]
    links = rows(api.get("/oms/accounts/portfoliolinks/v1"))
    assert set(links[0]) == fields("accountCode, portfolioCode, accessType, linkRemoved, linkSequenceNumber")
    assert [(link["accountCode"], link["portfolioCode"]) for link in links if not link["linkRemoved"]] == [
        ("SBX0001", "SBX0001P"),
        ("SBX0001", "SBX0001Q"),
        ("SBX0002", "SBX0002P"),
        ("SBX0003", "SBX0003P"),
        ("SBX0003", "SBX0002P"),
    ]
    assert [(link["accountCode"], link["portfolioCode"]) for link in links if link["linkRemoved"]] == [
        ("SBX0002", "SBX0009P")
    ]


def test_every_linked_portfolio_is_known(api: httpx.Client) -> None:
    codes = {link["portfolioCode"] for link in rows(api.get("/oms/accounts/portfoliolinks/v1"))}
    for path in (DETAILS, CASH, POSITIONS):
        found = rows(api.post(path, json={"portfolioCodes": sorted(codes)}))
        assert {row["portfolioCode"] for row in found} == codes


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
        todayProfit, closedProfit, actualVolume, shortSellVolume, securityType, sandboxField"""
    )
    shares = {"securities": [f"{row['securityCode']}.ASX@TM" for row in positions]}
    information = rows(api.post("/market-data/securities/information/v2", json=shares))
    multipliers = {row["securityCode"]: row["priceMultiplier"] for row in information}
    assert {0.01, 1, 0.001} == set(multipliers.values())
    for row in positions:
        cost = row["averagePrice"] * row["actualVolume"] * multipliers[row["securityCode"]]
        assert row["costValue"] == pytest.approx(cost)
        assert row["marketValue"] - row["costValue"] == pytest.approx(row["totalProfit"])
    for account in cash:
        held = [row["marketValue"] for row in positions if row["portfolioCode"] == account["portfolioCode"]]
        assert account["totalNonCfdMarketValue"] == pytest.approx(sum(held), rel=0.02)  # the session may move


def test_a_holding_of_an_option_names_its_underlying(api: httpx.Client) -> None:
    positions = rows(api.post(POSITIONS, json={"portfolioCodes": ["SBX0001Q"]}))
    (option,) = (row for row in positions if row["securityType"] == "Option")
    names = ("securityCode", "underlyingSecurityCode", "underlyingExchange")
    assert [option[name] for name in names] == ["BHPXA7", "BHP", "ASX"]


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


def test_trades_carry_their_securitys_multiplier(api: httpx.Client) -> None:
    span = {"dateTimeFrom": "2026-04-01T00:00:00", "dateTimeTo": "2026-04-07T23:59:59"}
    trades = rows(api.get(TRADES.replace(ACCOUNT, "SBX0003"), params=span))
    assert [trade["tradeDateTime"][:10] for trade in trades[::2]] == ["2026-04-01", "2026-04-02", "2026-04-07"]
    for trade in trades:
        assert (trade["securityCode"], trade["priceMultiplier"]) == ("Z0002", 0.001)
        assert trade["tradeValue"] == pytest.approx(trade["tradePrice"] * trade["tradeVolume"] * 0.001)


def test_finished_orders_are_behind_the_trades() -> None:
    # a Thursday noon: the fills of the three days before and some of the day itself
    now = datetime.fromisoformat("2026-01-08T12:00")
    for account in ACCOUNTS.values():
        orders = list(filled(account, now - timedelta(days=3), now))
        made = {trade["orderNumber"]: trade for order in orders for trade in order.trades(now - timedelta(days=3), now)}
        finished = [order.record(now) for order in orders]
        assert 6 <= len(finished) <= 8
        for found in finished:
            assert set(found) == ORDER_FIELDS
            trade = made[found["orderNumber"]]
            assert (found["orderState"], found["remainingVolume"]) == ("INACTIVE", 0)
            assert found["doneVolumeTotal"] == found["orderVolume"] == trade["tradeVolume"]
            assert found["doneValueTotal"] == pytest.approx(trade["tradeValue"])
            assert found["averagePrice"] == trade["tradePrice"]


@pytest.mark.parametrize("account", ["SBX0001", "SBX0002", "SBX0003"])
def test_orders_of_every_state_are_there_at_the_start(api: httpx.Client, account: str) -> None:
    names = ("orderState", "lastAction", "actionStatus", "doneVolumeTotal", "orderVolume")
    identity = ("orderNumber", *names)
    known = first_orders(api, account)
    assert all(set(found) == ORDER_FIELDS for found in known)
    first = {found["securityCode"]: found for found in known if not child(found)}
    assert {code: tuple(found[name] for name in names) for code, found in first.items()} == {
        "BHP": ("ACTIVE", "CREATE", "OK", 200, 500),
        "CBA": ("ACTIVE", "CREATE", "OK", 0, 500),
        "Z0003": ("ACTIVE", "CREATE", "OK", 0, 500),
        "WES": ("INACTIVE", "CREATE", "OK", 0, 500),
        "RIO": ("ACTIVE", "CANCEL", "OK", 0, 500),
        "TLS": ("ACTIVE", "PURGE", "OK", 0, 500),
        "NAB": ("ACTIVE", "CREATE", "OK", 500, 500),
        "ANZ": ("PENDING", "CREATE", "FAILED", 0, 500),
        "WBC": ("PENDING", "CREATE", "DENIED", 0, 500),
        "QAN": ("PENDING", "CREATE", "PENDING", 0, 500),
    }
    assert (first["CBA"]["pricingInstructions"], first["CBA"]["orderPrice"]) == ("Market", None)
    assert first["Z0003"]["priceMultiplier"] == 0.0001
    (only_child,) = filter(child, known)
    parent = first["BHP"]["orderNumber"]
    assert (only_child["parentOrderNumber"], only_child["rootParentOrderNumber"]) == (parent, parent)
    assert first["BHP"]["doneValueTotal"] == pytest.approx(first["BHP"]["averagePrice"] * 200 * 0.01)
    for found in first.values():
        reply = api.delete(f"/oms/orders/{found['orderNumber']}/v1")
        assert reply.status_code == (200 if found["securityCode"] in ("BHP", "CBA", "Z0003") else 409)
    api.post("/_sandbox/reset")
    again = first_orders(api, account)
    assert [[found[name] for name in identity] for found in again] == [
        [found[name] for name in identity] for found in known
    ]


def test_child_orders_may_be_left_out(api: httpx.Client) -> None:
    everything = first_orders(api)
    without = first_orders(api, includeChildOrders="false")
    assert without == [found for found in everything if not child(found)]
    assert len(everything) == len(without) + 1


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


def test_an_order_of_another_multiplier_has_a_native_price(api: httpx.Client) -> None:
    created = order(api, create(api, securityCode="Z0001", orderPrice=0.075))
    assert (created["orderPrice"], created["priceMultiplier"]) == (0.075, 1)


def test_an_order_cannot_be_amended_below_what_is_done(api: httpx.Client) -> None:
    assert api.put("/oms/orders/1001/v4", json={"orderVolume": 199}).status_code == 400
    assert order(api, 1001)["lastAction"] == "CREATE"
    assert api.put("/oms/orders/1001/v4", json={"pricingInstruction": "Market"}).status_code == 200
    amended = order(api, 1001)
    assert (amended["orderPrice"], amended["remainingVolume"]) == (None, 300)
    assert amended["doneValueTotal"] == pytest.approx(amended["averagePrice"] * 200 * 0.01)


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


def test_a_price_beyond_all_numbers_is_refused(api: httpx.Client) -> None:
    text = json.dumps(LIMIT).replace("4400.5", "1e400")
    assert "1e400" in text
    assert api.post("/oms/orders/v4", content=text).status_code == 400
