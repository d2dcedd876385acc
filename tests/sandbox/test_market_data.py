"""The market-data endpoints, over HTTP."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import Any

import httpx
import pytest

BHP = "BHP.ASX@TM"
QUOTES = "/market-data/pricing/quotes/v3"
INFORMATION = "/market-data/securities/information/v2"
DEPTH = f"/market-data/pricing/depth/{BHP}/v1"
SERIES = f"/market-data/pricing/timeseries/{BHP}/v2"
INTRADAY = f"/market-data/pricing/timeseriesintraday/{BHP}/v1"
TRADES = f"/market-data/pricing/trades/{BHP}/v2"


def rows(reply: httpx.Response) -> list[dict[str, Any]]:
    assert reply.status_code == 200, reply.text
    found = reply.json()
    assert isinstance(found, list)
    return found


def refusal(reply: httpx.Response) -> str:
    assert reply.status_code == 400, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    return str(reply.json()["detail"])


def fields(text: str) -> set[str]:
    return set(text.replace("\n", " ").replace(",", " ").split())


def test_list_of_securities(api: httpx.Client) -> None:
    listed = rows(api.get("/market-data/securities/v1", params={"exchanges": "ASX"}))
    assert listed == rows(api.get("/market-data/securities/v1"))
    by_code = {row["securityCode"]: row for row in listed}
    assert len(by_code) == len(listed) > 2000
    assert set(by_code["BHP"]) == fields(
        """securityCode, exchange, securityDescription, securityType, firstListedDate, lastListedDate,
        issuerCode, issuerExchange, issuerName, gicsCode, isin, sedol, cusip"""
    )
    assert set(by_code["BHP"]) - set(by_code["Z0001"]) == {"sedol"}
    option = by_code["BHPXY7"]
    assert (option["securityType"], option["issuerCode"], option["gicsCode"], option["isin"]) == (
        "Option",
        "BHP",
        None,
        None,
    )
    assert all(row["securityDescription"].startswith("Sandbox ") for code, row in by_code.items() if code[0] == "Z")
    assert rows(api.get("/market-data/securities/v1", params={"exchanges": "NSX"})) == []


def test_information_of_securities(api: httpx.Client) -> None:
    asked = [BHP, "NOPE.ASX@TM", "LKE.ASX@TM", BHP]
    bhp, lke = rows(api.post(INFORMATION, json={"securities": asked}))
    assert set(bhp) == fields(
        """securityCode, exchange, securityType, securityDescription, currencyCode, isin, lotSize,
        maturityDate, exerciseDate, exercisePrice, callOrPut, sharesPerContract, priceMultiplier,
        minimumPriceStep, underlyingInstrumentCode, underlyingInstrumentExchange"""
    )
    assert (bhp["securityDescription"], bhp["isin"]) == ("BHP Group Limited", "AU000000BHP4")
    assert (bhp["priceMultiplier"], bhp["minimumPriceStep"], lke["minimumPriceStep"]) == (0.01, 1, 0.1)


def test_information_of_an_option(api: httpx.Client) -> None:
    (option,) = rows(api.post(INFORMATION, json={"securities": ["CBAXY7.ASX@TM"]}))
    terms = ("securityType", "callOrPut", "exercisePrice", "priceMultiplier", "sharesPerContract", "isin")
    assert [option[name] for name in terms] == ["Option", "Put", 99990, 0.001, 100, None]
    assert (option["underlyingInstrumentCode"], option["underlyingInstrumentExchange"]) == ("CBA", "ASX")
    assert date.fromisoformat(option["maturityDate"]) > date(2030, 1, 1)


@pytest.mark.parametrize(
    ("code", "multiplier"),
    [
        ("BHP", 0.01),
        ("BHPXA7", 1),
        ("BHPXB7", 0.01),
        ("CBAXY7", 0.001),
        ("Z0001", 1),
        ("Z0002", 0.001),
        ("Z0003", 0.0001),
    ],
)
def test_each_security_has_its_own_multiplier(api: httpx.Client, code: str, multiplier: float) -> None:
    asked = {"securities": [f"{code}.ASX@TM"]}
    (information,) = rows(api.post(INFORMATION, json=asked))
    (quote,) = api.post(QUOTES, json=asked).json()["quotes"]
    assert information["priceMultiplier"] == quote["priceMultiplier"] == multiplier
    assert quote["askPrice"] * multiplier < 300


def test_a_quote_without_a_trade_has_null_fields(api: httpx.Client) -> None:
    asked = {"securities": ["BHPXY7.ASX@TM", "BHPXA7.ASX@TM"]}
    untraded, traded = api.post(QUOTES, json=asked).json()["quotes"]
    assert set(untraded) == set(traded)
    empty = {name for name, value in untraded.items() if value is None and traded[name] is not None}
    assert empty == fields(
        """lastPrice, openPrice, highPrice, lowPrice, movement, tradeDateTime, marketVwap, previousClosePrice"""
    )
    assert 0 < untraded["bidPrice"] < untraded["askPrice"]
    series = {"frequency": "Daily", "dateFrom": "2026-01-05", "dateTo": "2026-01-09"}
    assert rows(api.get(SERIES.replace("BHP", "BHPXY7"), params=series)) == []
    day = {"dateTimeFrom": "2026-01-05", "dateTimeTo": "2026-01-06"}
    assert rows(api.post(TRADES.replace("BHP", "BHPXY7"), json=day)) == []


def test_every_security_of_the_list_is_quoted(api: httpx.Client) -> None:
    listed = [f"{row['securityCode']}.ASX@TM" for row in rows(api.get("/market-data/securities/v1"))]
    bodies = [
        api.post(QUOTES, json={"securities": listed[at : at + 1000]}).json() for at in range(0, len(listed), 1000)
    ]
    assert [body["invalidSecurities"] for body in bodies] == [[], [], []]
    assert [f"{quote['securityCode']}.ASX@TM" for body in bodies for quote in body["quotes"]] == listed


def test_quotes_and_invalid_securities(api: httpx.Client) -> None:
    asked = [BHP, "bhp.ASX@TM", "NOPE.ASX@TM", "BHP", "BHP.NSX@TM", "BHP.ASX@XX", "", "MSB.ASX@TM", BHP]
    body = api.post(QUOTES, json={"securities": asked}).json()
    assert set(body) == {"quotes", "invalidSecurities"}
    assert body["invalidSecurities"] == asked[1:7]
    bhp, msb = body["quotes"]
    assert set(bhp) == fields(
        """securityCode, exchange, dataSource, askCount, askPrice, askVolume, bidCount, bidPrice,
        bidVolume, totalVolume, totalValue, highPrice, lastPrice, lowPrice, matchPrice, matchVolume,
        marketValue, marketVolume, movement, openPrice, quotationBasisCode, companyReportCode,
        tradingStatus, tradeCount, tradeDateTime, updateDateTime, previousClosePrice, priceMultiplier,
        marketVwap, sandboxField"""
    )
    assert (bhp["securityCode"], bhp["exchange"], bhp["dataSource"]) == ("BHP", "ASX", "TM")
    assert (bhp["tradingStatus"], bhp["priceMultiplier"], msb["securityCode"]) == ("OPEN", 0.01, "MSB")
    assert isinstance(bhp["lastPrice"], int)
    assert bhp["lowPrice"] <= bhp["lastPrice"] <= bhp["highPrice"]
    assert bhp["bidPrice"] < bhp["askPrice"]


@pytest.mark.parametrize("path", [QUOTES, INFORMATION])
def test_a_thousand_securities_at_most(api: httpx.Client, path: str) -> None:
    assert api.post(path, json={"securities": [BHP] * 1000}).status_code == 200
    assert "1000" in refusal(api.post(path, json={"securities": [BHP] * 1001}))


@pytest.mark.parametrize("body", [{}, {"securities": []}, {"securities": BHP}, {"securities": [1]}])
@pytest.mark.parametrize("path", [QUOTES, INFORMATION])
def test_wrong_lists_of_securities(api: httpx.Client, path: str, body: dict[str, object]) -> None:
    assert "securities" in refusal(api.post(path, json=body))


def test_depth(api: httpx.Client) -> None:
    levels = rows(api.get(DEPTH, params={"askLevelMax": 5, "bidLevelMax": 3, "groupBy": "Price"}))
    assert set(levels[0]) == fields(
        """askPrice, askVolume, askOrderCount, askDataSources, bidPrice, bidVolume, bidOrderCount,
        bidDataSources"""
    )
    asks, bids = ([row[f"{side}Price"] for row in levels] for side in ("ask", "bid"))
    assert asks == sorted(asks)
    assert bids[3:] == [None, None]
    assert bids[:3] == sorted(bids[:3], reverse=True)
    assert bids[0] < asks[0]
    assert len(rows(api.get(DEPTH))) == 10
    assert len(rows(api.get(DEPTH, params={"askLevelMax": 1, "bidLevelMax": 100}))) == 20


def test_depth_agrees_with_the_quote(api: httpx.Client) -> None:
    while True:  # the session may move between two requests
        (quote,) = api.post(QUOTES, json={"securities": [BHP]}).json()["quotes"]
        best = rows(api.get(DEPTH))[0]
        if quote == api.post(QUOTES, json={"securities": [BHP]}).json()["quotes"][0]:
            break
    assert [best[name] for name in ("askPrice", "askVolume", "bidPrice", "bidVolume")] == [
        quote[name] for name in ("askPrice", "askVolume", "bidPrice", "bidVolume")
    ]
    assert (best["askOrderCount"], best["bidOrderCount"]) == (quote["askCount"], quote["bidCount"])


@pytest.mark.parametrize(
    "params",
    [
        {"askLevelMax": 0},
        {"askLevelMax": 101},
        {"bidLevelMax": "x"},
        {"bidLevelMax": -1},
        {"bidLevelMax": "1" * 5000},
        {"groupBy": "Order"},
    ],
)
def test_wrong_depth(api: httpx.Client, params: dict[str, str]) -> None:
    assert next(iter(params)) in refusal(api.get(DEPTH, params=params))


def test_daily_series(api: httpx.Client) -> None:
    params = {"frequency": "Daily", "dateFrom": "2026-01-01", "dateTo": "2026-01-14"}
    bars = rows(api.get(SERIES, params=params))
    assert set(bars[0]) == fields(
        """openPrice, highPrice, lowPrice, closePrice, totalVolume, totalValue, tradeCount,
        timeSeriesDate, marketVwap, adjustmentFactor"""
    )
    days = [date.fromisoformat(bar["timeSeriesDate"]) for bar in bars]
    expected = [date(2026, 1, 2) + timedelta(days=number) for number in range(13)]
    assert days == [day for day in expected if day.weekday() < 5]
    assert bars == rows(api.get(SERIES, params=params))
    for bar in bars:
        assert bar["lowPrice"] <= min(bar["openPrice"], bar["closePrice"])
        assert bar["highPrice"] >= max(bar["openPrice"], bar["closePrice"])
        assert bar["lowPrice"] <= bar["marketVwap"] <= bar["highPrice"]


def test_weekly_series(api: httpx.Client) -> None:
    span = {"dateFrom": "2026-01-01", "dateTo": "2026-01-14T23:00"}
    daily = rows(api.get(SERIES, params={"frequency": "Daily"} | span))
    weekly = rows(api.get(SERIES, params={"frequency": "Weekly"} | span))
    assert [bar["timeSeriesDate"] for bar in weekly] == ["2026-01-02", "2026-01-09", "2026-01-14"]
    assert weekly[1]["openPrice"] == daily[1]["openPrice"]
    assert weekly[1]["closePrice"] == daily[5]["closePrice"]
    assert sum(bar["totalVolume"] for bar in weekly) == sum(bar["totalVolume"] for bar in daily)


def test_no_bars_or_trades_on_a_public_holiday(api: httpx.Client) -> None:
    easter = {"frequency": "Daily", "dateFrom": "2026-04-02", "dateTo": "2026-04-07"}
    assert [bar["timeSeriesDate"] for bar in rows(api.get(SERIES, params=easter))] == ["2026-04-02", "2026-04-07"]
    friday = {"dateTimeFrom": "2026-04-03T00:00:00", "dateTimeTo": "2026-04-03T23:59:59"}
    assert rows(api.post(TRADES, json=friday)) == []
    params = {"frequency": "Minutes", "consolidationInterval": 60} | friday
    assert rows(api.get(INTRADAY, params=params)) == []


def test_series_never_reach_the_future_or_the_time_before_listing(api: httpx.Client) -> None:
    far = {"frequency": "Daily", "dateFrom": "2999-01-01", "dateTo": "9999-12-31"}
    assert rows(api.get(SERIES, params=far)) == []
    old = {"frequency": "Daily", "dateFrom": "0001-01-01", "dateTo": "2000-01-05"}
    assert [bar["timeSeriesDate"] for bar in rows(api.get(SERIES, params=old))] == [
        "2000-01-04",
        "2000-01-05",
    ]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"frequency": "Monthly"}, "frequency"),
        ({"frequency": None}, "frequency"),
        ({"dateFrom": None}, "dateFrom"),
        ({"dateTo": "14/01/2026"}, "dateTo"),
        ({"dateTo": "2025-12-31"}, "after"),
        ({"dateFrom": "0001-01-01T00:00:00-10:00", "dateTo": "9999-12-31T23:59:59-10:00"}, "dateTo"),
    ],
)
def test_wrong_series(api: httpx.Client, change: dict[str, str | None], word: str) -> None:
    params = {"frequency": "Daily", "dateFrom": "2026-01-01", "dateTo": "2026-01-14"} | change
    given = {name: value for name, value in params.items() if value is not None}
    assert word in refusal(api.get(SERIES, params=given))


def test_intraday_series_agree_with_the_day(api: httpx.Client) -> None:
    day = {"frequency": "Daily", "dateFrom": "2026-01-05", "dateTo": "2026-01-05"}
    (whole,) = rows(api.get(SERIES, params=day))
    for interval in (1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30, 60):
        params = {
            "frequency": "Minutes",
            "consolidationInterval": interval,
            "dateTimeFrom": "2026-01-05T00:00:00",
            "dateTimeTo": "2026-01-05T23:59:59",
        }
        bars = rows(api.get(INTRADAY, params=params))
        assert set(bars[0]) == fields(
            """openPrice, highPrice, lowPrice, closePrice, totalVolume, totalValue, tradeCount,
            timeSeriesDateTime"""
        )
        starts = [datetime.fromisoformat(bar["timeSeriesDateTime"]) for bar in bars]
        assert starts[0] == datetime.fromisoformat("2026-01-05T10:00")
        assert all(start.minute % interval == 0 and start.tzinfo is None for start in starts)
        assert len(set(starts)) == len(starts)
        for name in ("totalVolume", "tradeCount"):
            assert sum(bar[name] for bar in bars) == whole[name]
        assert max(bar["highPrice"] for bar in bars) == whole["highPrice"]


def test_intraday_bars_are_whole_at_the_ends_of_the_range(api: httpx.Client) -> None:
    params = {"frequency": "Minutes", "consolidationInterval": 60}
    day = {"dateTimeFrom": "2026-01-05T00:00", "dateTimeTo": "2026-01-06T00:00"}
    some = {"dateTimeFrom": "2026-01-05T11:00", "dateTimeTo": "2026-01-05T13:00"}
    assert rows(api.get(INTRADAY, params=params | some)) == rows(api.get(INTRADAY, params=params | day))[1:4]
    late = {"dateTimeFrom": "2026-01-05T10:30", "dateTimeTo": "2026-01-05T11:00"}
    assert rows(api.get(INTRADAY, params=params | late)) == rows(api.get(INTRADAY, params=params | some))[:1]


@pytest.mark.parametrize(("interval", "days"), [(1, 7), (6, 7), (10, 30), (30, 30), (60, 60)])
def test_longest_intraday_ranges(api: httpx.Client, interval: int, days: int) -> None:
    start = datetime.fromisoformat("2026-01-05T10:00")
    params = {
        "frequency": "Minutes",
        "consolidationInterval": str(interval),
        "dateTimeFrom": start.isoformat(),
        "dateTimeTo": (start + timedelta(days=days)).isoformat(),
    }
    assert rows(api.get(INTRADAY, params=params))
    params["dateTimeTo"] = (start + timedelta(days=days, seconds=1)).isoformat()
    assert f"{days} days" in refusal(api.get(INTRADAY, params=params))


@pytest.mark.parametrize(
    "change",
    [{"frequency": "Hours"}, {"consolidationInterval": "7"}, {"dateTimeFrom": "x"}, {"dateTimeTo": "2026"}],
)
def test_wrong_intraday_series(api: httpx.Client, change: dict[str, str]) -> None:
    params = {
        "frequency": "Minutes",
        "consolidationInterval": "5",
        "dateTimeFrom": "2026-01-05T10:00:00",
        "dateTimeTo": "2026-01-05T16:00:00",
    }
    assert next(iter(change)) in refusal(api.get(INTRADAY, params=params | change))


def test_trades(api: httpx.Client) -> None:
    day = {"dateTimeFrom": "2026-01-05T00:00:00", "dateTimeTo": "2026-01-06T00:00:00"}
    trades = rows(api.post(TRADES, json=day))
    assert set(trades[0]) == fields(
        """securityCode, exchange, dataSource, tradeNumber, tradeGmtDateTime, tradePrice, tradeVolume,
        tradeValue, tradeDateTime, conditionCodes, reason"""
    )
    assert trades == rows(api.post(TRADES, json=day))
    assert trades[0]["tradeDateTime"] == "2026-01-05T10:00:00.000"
    assert trades[0]["tradeGmtDateTime"] == "2026-01-04T23:00:00.000"
    series = {"frequency": "Daily", "dateFrom": "2026-01-05", "dateTo": "2026-01-05"}
    (bar,) = rows(api.get(SERIES, params=series))
    assert (len(trades), trades[-1]["tradePrice"]) == (bar["tradeCount"], bar["closePrice"])
    assert sum(trade["tradeValue"] for trade in trades) == pytest.approx(bar["totalValue"])


def test_a_range_may_have_an_offset_and_includes_both_ends(api: httpx.Client) -> None:
    day = {"dateTimeFrom": "2026-07-06T00:00:00", "dateTimeTo": "2026-07-07T00:00:00"}
    trades = rows(api.post(TRADES, json=day))
    first, last = trades[2]["tradeGmtDateTime"], trades[5]["tradeGmtDateTime"]
    some = {"dateTimeFrom": f"{first}Z", "dateTimeTo": f"{last}+00:00"}
    assert rows(api.post(TRADES, json=some)) == trades[2:6]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"dateTimeFrom": 5, "dateTimeTo": "2026-01-05"},
        {"dateTimeFrom": "2026-01-05", "dateTimeTo": "2026-01-06T00:00:01"},
        {"dateTimeFrom": "2026-01-06", "dateTimeTo": "2026-01-05"},
    ],
)
def test_wrong_trades(api: httpx.Client, body: dict[str, object]) -> None:
    assert refusal(api.post(TRADES, json=body))


@pytest.mark.parametrize("path", [DEPTH, SERIES, INTRADAY, TRADES])
def test_wrong_securities_in_a_path(api: httpx.Client, path: str) -> None:
    method = "POST" if path == TRADES else "GET"
    body = {} if path == TRADES else None
    assert api.request(method, path.replace(BHP, "BHP"), json=body).status_code == 400
    assert api.request(method, path.replace("BHP", "NOPE"), json=body).status_code == 404
    assert api.request(method, path.replace("@", "%40"), json=body).status_code in (200, 400)
