"""Bars, accounts, positions and cash that a user set, over HTTP and from Python."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import httpx
import pytest

from openmarkets_provider import queries
from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
from openmarkets_provider.sandbox.server import SandboxServer

BHP, CBA = "BHP.ASX@TM", "CBA.ASX@TM"
MINE = [{"accountCode": "MINE", "accountName": "My fund"}, {"accountCode": "YOURS"}]
ORDER = {
    "accountCode": "SBX0001",
    "securityCode": "BHP",
    "exchange": "ASX",
    "destination": "ASX",
    "side": "Buy",
    "orderVolume": 1,
    "lifetime": "EndOfDay",
    "pricingInstruction": "Market",
}


def closes(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(row["security_code"], row["time_series_date"].day, row["close_price"]) for row in rows]


def test_own_bars_replace_those_of_a_security_and_frequency(openmarkets_sandbox: SandboxServer) -> None:
    before = OpenmarketsHook().run(queries.time_series(["CBA"], start="2026-03-02", end="2026-03-05"))
    openmarkets_sandbox.set_bars(
        BHP,
        [
            {"timeSeriesDate": "2026-03-02", "closePrice": 4500},
            {"timeSeriesDate": "2026-03-04T00:00:00", "closePrice": 4512.5, "totalVolume": 10},
            {"timeSeriesDate": "2026-03-05", "closePrice": 1},
        ],
    )
    query = queries.time_series(["BHP", "CBA"], start="2026-03-02", end="2026-03-05")
    rows = OpenmarketsHook().run(query)
    assert closes(rows)[:2] == [("BHP", 2, Decimal(45)), ("BHP", 4, Decimal("45.125"))]
    assert rows[2:] == before
    first, second = rows[:2]
    assert (first["open_price"], first["total_volume"], first["adjustment_factor"]) == (None, None, 1)
    assert (second["total_volume"], second["exchange"]) == (10, "ASX")
    weekly = OpenmarketsHook().run(
        queries.time_series(["BHP"], start="2026-03-02", end="2026-03-07", frequency="Weekly")
    )
    assert {row["open_price"] is None for row in weekly} == {False}
    openmarkets_sandbox.reset()
    assert len(OpenmarketsHook().run(query)) == 6


def test_own_weeks_and_minutes(openmarkets_sandbox: SandboxServer) -> None:
    openmarkets_sandbox.set_bars(BHP, [{"timeSeriesDate": "2026-03-06", "closePrice": 4500}], frequency="Weekly")
    openmarkets_sandbox.set_bars(
        BHP,
        [
            {"timeSeriesDateTime": "2026-03-05T10:00:00", "closePrice": 4500},
            {"timeSeriesDateTime": "2026-03-05T00:00:00Z", "closePrice": 4600},
            {"timeSeriesDateTime": "2026-03-05T12:00:00", "closePrice": 4700},
        ],
        frequency="Minutes",
    )
    hook = OpenmarketsHook()
    weekly = hook.run(queries.time_series(["BHP"], start="2026-02-28", end="2026-03-07", frequency="Weekly"))
    assert closes(weekly) == [("BHP", 6, Decimal(45))]
    rows = hook.run(
        queries.intraday_time_series(
            ["BHP"], start="2026-03-05T10:00:00+11:00", end="2026-03-05T12:00:00+11:00", interval=60
        )
    )
    shown = [(row["time_series_date_time"], row["close_price"]) for row in rows]
    start = datetime(2026, 3, 4, 23, tzinfo=UTC)
    assert shown == [(start, Decimal(45)), (start.replace(day=5, hour=0), Decimal(46))]


def test_own_bars_may_be_none_or_later_than_the_present(openmarkets_sandbox: SandboxServer) -> None:
    openmarkets_sandbox.set_bars(BHP, [])
    openmarkets_sandbox.set_bars(CBA, [{"timeSeriesDate": "2050-01-04", "closePrice": 1}])
    query = queries.time_series(["BHP", "CBA"], start="2050-01-03", end="2050-01-06")
    assert closes(OpenmarketsHook().run(query)) == [("CBA", 4, Decimal("0.01"))]


def test_an_added_security_is_as_any_other(openmarkets_sandbox: SandboxServer, api: httpx.Client) -> None:
    openmarkets_sandbox.add_security("NEW.ASX@TM", currencyCode="USD", priceMultiplier=1, securityType="Fund")
    openmarkets_sandbox.set_security("NEW.ASX@TM", lastPrice=12.5)
    hook = OpenmarketsHook()
    (listed,) = (row for row in hook.run(queries.securities()) if row["security_code"] == "NEW")
    assert (listed["security_type"], listed["security_description"]) == ("Fund", "Security NEW")
    (information,) = hook.run(queries.security_information(["NEW"]))
    assert (information["currency_code"], information["price_multiplier"]) == ("USD", 1)
    quotes = hook.run(queries.quotes(["NEW", "BHP"]))
    assert [row["security_code"] for row in quotes] == ["NEW", "BHP"]
    assert (quotes[0]["last_price"], 8 < quotes[0]["bid_price"] < 12) == (Decimal("12.5"), True)
    for query in (
        queries.depth(["NEW"]),
        queries.time_series(["NEW"], start="2026-03-02", end="2026-03-07"),
        queries.intraday_time_series(["NEW"], start="2026-03-02", end="2026-03-03", interval=60),
        queries.trades(["NEW"], start="2026-03-02", end="2026-03-03"),
    ):
        assert {row["security_code"] for row in hook.run(query)} == {"NEW"}
    assert api.post("/oms/orders/v4", json=ORDER | {"securityCode": "NEW"}).status_code == 200
    orders = hook.run(queries.orders("SBX0001"))
    assert [row["price_multiplier"] for row in orders if row["security_code"] == "NEW"] == [1]
    openmarkets_sandbox.reset()
    assert api.post("/oms/orders/v4", json=ORDER | {"securityCode": "NEW"}).status_code == 400


def test_an_added_security_without_a_multiplier(openmarkets_sandbox: SandboxServer) -> None:
    openmarkets_sandbox.add_security("NEW.ASX@TM", priceMultiplier=None)
    with pytest.raises(OpenmarketsQueryError, match="no price multiplier is known"):
        OpenmarketsHook().run(queries.security_information(["NEW"]))
    query = queries.security_information(["NEW"], on_missing_multiplier="cents")
    (information,) = OpenmarketsHook().run(query)
    assert (information["price_multiplier"], information["price_multiplier_assumed"]) == (Decimal("0.01"), True)


@pytest.mark.parametrize(
    ("security", "fields", "words"),
    [
        ("BHP.ASX@TM", {}, "a new security must be written like NEW.ASX@TM and not exist yet; it is 'BHP.ASX@TM'"),
        ("NEW", {}, "a new security must be written like"),
        ("NEW.CXA@CX", {}, "a new security must be written like"),
        ("NEW.ASX@TM", {"price_multiplier": 1}, "unknown: price_multiplier (did you mean priceMultiplier?)"),
        ("NEW.ASX@TM", {"priceMultiplier": 0.5}, "priceMultiplier must be one of 1, 0.1, 0.01, 0.001, 0.0001, or null"),
        ("NEW.ASX@TM", {"priceMultiplier": 0}, "priceMultiplier must be one of"),
        ("NEW.ASX@TM", {"isin": []}, "isin must be a string, a number"),
    ],
)
def test_wrong_securities_are_not_added(
    openmarkets_sandbox: SandboxServer, anonymous: httpx.Client, security: str, fields: dict[str, Any], words: str
) -> None:
    reply = anonymous.put(f"/_sandbox/securities/{security}", json=fields)
    assert reply.status_code == 400
    assert words in reply.json()["detail"]
    with pytest.raises(ValueError, match=re.escape(words)):
        openmarkets_sandbox.add_security(security, **fields)


def test_own_accounts_replace_all_and_are_empty(openmarkets_sandbox: SandboxServer) -> None:
    openmarkets_sandbox.set_positions("SBX0001P", [{"securityCode": "BHP"}])
    openmarkets_sandbox.set_accounts(MINE)
    hook = OpenmarketsHook()
    accounts = hook.run(queries.accounts())
    assert [(row["account_code"], row["account_name"]) for row in accounts] == [("MINE", "My fund"), ("YOURS", None)]
    assert hook.run(queries.positions()) == hook.run(queries.cash()) == hook.run(queries.orders()) == []
    assert hook.run(queries.order_trades(start=date(2026, 3, 1), end=date(2026, 3, 10))) == []
    openmarkets_sandbox.set_positions("MINE", [{"securityCode": "BHP"}])
    openmarkets_sandbox.set_accounts(MINE)
    assert hook.run(queries.positions()) == []
    details = hook.run(queries.portfolio_details("MINE"))
    assert [(row["portfolio_code"], row["portfolio_name"]) for row in details] == [("MINE", "My fund")]
    openmarkets_sandbox.reset()
    assert len(hook.run(queries.accounts())) == 3
    assert len(hook.run(queries.positions("SBX0001"))) == 10


def test_own_positions_and_cash(openmarkets_sandbox: SandboxServer) -> None:
    openmarkets_sandbox.set_accounts(MINE)
    openmarkets_sandbox.set_positions("MINE", [{"securityCode": "BHP", "actualVolume": 10.5, "averagePrice": 4400}])
    openmarkets_sandbox.set_cash("MINE", [{"cashBalance": 5000.25}, {"cashBalance": 7, "currencyCode": "USD"}])
    hook = OpenmarketsHook()
    (position,) = hook.run(queries.positions())
    assert {name: position[name] for name in ("account_code", "portfolio_code", "security_code", "exchange")} == {
        "account_code": "MINE",
        "portfolio_code": "MINE",
        "security_code": "BHP",
        "exchange": "ASX",
    }
    assert (position["actual_volume"], position["average_price"]) == (Decimal("10.5"), Decimal(44))
    balances = [(row["account_code"], row["currency_code"], row["cash_balance"]) for row in hook.run(queries.cash())]
    assert balances == [("MINE", "AUD", Decimal("5000.25")), ("MINE", "USD", 7)]


def test_positions_and_cash_of_one_portfolio_leave_the_others(openmarkets_sandbox: SandboxServer) -> None:
    hook = OpenmarketsHook()
    portfolios = ["SBX0001P", "SBX0002P"]
    before = hook.run(queries.cash(portfolios=portfolios))
    openmarkets_sandbox.set_positions("SBX0001P", [])
    openmarkets_sandbox.set_cash("SBX0001P", [{"cashBalance": 1}])
    after = hook.run(queries.cash(portfolios=portfolios))
    assert (after[0]["cash_balance"], after[0]["portfolio_cash_code"]) == (1, "SBX0001C")
    assert after[1:] == before[1:]
    held = {row["portfolio_code"] for row in hook.run(queries.positions(portfolios=portfolios))}
    assert held == {"SBX0002P"}


def test_an_order_of_an_own_account(openmarkets_sandbox: SandboxServer, api: httpx.Client) -> None:
    openmarkets_sandbox.set_accounts([{"accountCode": "SBX0001"}])
    number = api.post("/oms/orders/v4", json=ORDER).json()["orderNumber"]
    listed = api.get("/oms/orders/by-account/SBX0001/v4").json()
    assert [order["orderNumber"] for order in listed] == [number]
    assert api.post("/oms/orders/v4", json=ORDER | {"accountCode": "SBX0002"}).status_code == 400


def test_all_of_it_over_http(api: httpx.Client) -> None:
    bodies = {
        "accounts": {"accounts": MINE},
        "portfolios/MINE/positions": {"positions": [{"securityCode": "BHP", "actualVolume": 1}]},
        "portfolios/MINE/cash": {"cash": [{"cashBalance": 5}]},
        f"securities/{BHP}/bars": {"bars": [{"timeSeriesDate": "2026-03-06"}], "frequency": "Weekly"},
        f"securities/{CBA}/bars": {"bars": [{"timeSeriesDate": f"2026-03-{day}"} for day in ("01", "05", "09")]},
    }
    for path, body in bodies.items():
        assert api.post(f"/_sandbox/{path}", json=body).status_code == 204
    assert [each["accountCode"] for each in api.get("/oms/accounts/v1").json()] == ["MINE", "YOURS"]
    codes = {"portfolioCodes": ["MINE"]}
    assert api.post("/oms/portfolios/positions/v2", json=codes).json()[0]["actualVolume"] == 1
    assert api.post("/oms/portfolios/cash/by-portfolio/v2", json=codes).json()[0]["cashBalance"] == 5
    for security, frequency, dated in ((BHP, "Weekly", "2026-03-06"), (CBA, "Daily", "2026-03-05")):
        params = {"frequency": frequency, "dateFrom": "2026-03-02", "dateTo": "2026-03-08"}
        bars = api.get(f"/market-data/pricing/timeseries/{security}/v2", params=params).json()
        assert [bar["timeSeriesDate"] for bar in bars] == [dated]


@pytest.mark.parametrize(
    ("path", "call", "words"),
    [
        (
            f"securities/{BHP}/bars",
            lambda sandbox, body: sandbox.set_bars(BHP, body["bars"], body.get("frequency", "Daily")),
            {
                '{"bars": [{"close_price": 1}]}': "unknown in bars: close_price (did you mean closePrice?); allowed: ",
                '{"bars": [{"colour": 1}]}': "unknown in bars: colour; allowed",
                '{"bars": [{}]}': "each of the bars needs timeSeriesDate, a string",
                '{"bars": [{"timeSeriesDate": "x"}]}': "timeSeriesDate must be an ISO 8601 date or time; it is 'x'",
                '{"bars": {}}': "bars must be a list of objects with the fields openPrice, highPrice",
                '{"bars": [1]}': "bars must be a list of objects",
                '{"bars": [{"closePrice": [1]}]}': "closePrice must be a string, a number, true, false or null; it is",
                '{"bars": [], "frequency": "Hourly"}': "frequency must be one of Daily, Weekly, Minutes",
                '{"bars": [{"timeSeriesDate": ""}], "frequency": "Minutes"}': "(did you mean timeSeriesDateTime?)",
            },
        ),
        (
            "securities/NOPE.ASX@TM/bars",
            lambda sandbox, body: sandbox.set_bars("NOPE.ASX@TM", body["bars"]),
            {'{"bars": []}': "the sandbox doesn't know the security 'NOPE.ASX@TM'; write it like BHP.ASX@TM"},
        ),
        (
            "portfolios/SBX0001P/positions",
            lambda sandbox, body: sandbox.set_positions("SBX0001P", body["positions"]),
            {
                '{"positions": [{"volume": 1}]}': "unknown in positions: volume (did you mean",
                '{"positions": [{"securityCode": ""}]}': "each of the positions needs securityCode, a string",
            },
        ),
        (
            "portfolios/SBX0001/positions",
            lambda sandbox, body: sandbox.set_positions("SBX0001", body["positions"]),
            {'{"positions": []}': "the sandbox has no portfolio 'SBX0001'; it has SBX0001P, SBX0001Q"},
        ),
        (
            "portfolios/SBX0001P/cash",
            lambda sandbox, body: sandbox.set_cash("SBX0001P", body["cash"]),
            {
                '{"cash": [{"balance": 1}]}': "unknown in cash: balance (did you mean cashBalance?)",
                '{"cash": [{"total_cfd_realised_profit": 1}]}': "(did you mean totalCfdRealisedProfit?)",
            },
        ),
        (
            "accounts",
            lambda sandbox, body: sandbox.set_accounts(body["accounts"]),
            {'{"accounts": [{"accountCode": 5}]}': "each of the accounts needs accountCode, a string"},
        ),
    ],
)
def test_wrong_records_are_refused_in_both_ways(
    openmarkets_sandbox: SandboxServer,
    anonymous: httpx.Client,
    path: str,
    call: Callable[[SandboxServer, dict[str, Any]], None],
    words: dict[str, str],
) -> None:
    for text, expected in words.items():
        reply = anonymous.post(f"/_sandbox/{path}", content=text)
        assert reply.status_code == 400
        assert expected in reply.json()["detail"]
        with pytest.raises(ValueError, match=re.escape(expected)):
            call(openmarkets_sandbox, httpx.Response(200, text=text).json())


def test_a_body_without_its_field_is_refused(anonymous: httpx.Client) -> None:
    reply = anonymous.post(f"/_sandbox/securities/{BHP}/bars", json={"bar": []})
    assert (reply.status_code, reply.json()["detail"]) == (
        400,
        "unknown: bar (did you mean bars?); allowed: bars, frequency",
    )
    assert "the body needs bars" in anonymous.post(f"/_sandbox/securities/{BHP}/bars", json={}).json()["detail"]
