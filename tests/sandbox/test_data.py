"""The made-up data: pure, and in agreement with itself."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from datetime import date, datetime, timedelta
from decimal import Decimal

import pytest

from openmarkets_provider.sandbox import data, sessions
from openmarkets_provider.sandbox.securities import COMPANIES, SECURITIES, Security, find, isin
from openmarkets_provider.sessions.calendar import ASX

BHP, LKE, MSB = (SECURITIES[code] for code in ("BHP", "LKE", "MSB"))
SOME = [*COMPANIES, "BHPXA7", "BHPXB7", *(f"Z{number:04}" for number in range(1, 41))]
MONDAY = datetime.fromisoformat("2026-01-05")
PRICES = {"openPrice", "highPrice", "lowPrice", "closePrice", "lastPrice", "bidPrice", "askPrice", "previousClosePrice"}


def test_the_same_in_another_process() -> None:
    code = (
        "from datetime import datetime; from openmarkets_provider.sandbox import data, securities\n"
        "print(data.quote(securities.SECURITIES['BHP'], datetime(2026, 1, 5, 12)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(data.quote(BHP, MONDAY.replace(hour=12)))


@pytest.mark.parametrize(("code", "check"), [("BHP", 4), ("CBA", 7), ("WBC", 1), ("CSL", 8), ("TLS", 2)])
def test_isins_have_the_right_check_digit(code: str, check: int) -> None:
    assert isin(code) == f"AU000000{code}{check}"


def test_securities_are_found_by_their_full_name_only() -> None:
    assert find("BHP.ASX@TM") is BHP
    assert [find(text) for text in ("BHP", "BHP.ASX", "BHP.ASX@XX", "BHP.NSX@TM", "bhp.ASX@TM")] == [None] * 5


@pytest.mark.parametrize(
    ("moment", "session"),
    [
        (MONDAY.replace(hour=9, minute=59), date(2026, 1, 2)),
        (MONDAY.replace(hour=10), date(2026, 1, 5)),
        (MONDAY.replace(hour=23), date(2026, 1, 5)),
        (MONDAY + timedelta(days=1, hours=3), date(2026, 1, 5)),
        (MONDAY - timedelta(days=1, hours=-12), date(2026, 1, 2)),
        (MONDAY - timedelta(days=2, hours=-12), date(2026, 1, 2)),
        (datetime.fromisoformat("2026-01-01T12:00"), date(2025, 12, 31)),
        (datetime.fromisoformat("2026-01-02T09:59"), date(2025, 12, 31)),
        (datetime.fromisoformat("2026-04-06T12:00"), date(2026, 4, 2)),
        (datetime.fromisoformat("2026-04-27T12:00"), date(2026, 4, 27)),
    ],
)
def test_quotes_are_of_the_open_or_of_the_last_session(moment: datetime, session: date) -> None:
    quote = data.quote(BHP, moment)
    assert str(quote["tradeDateTime"]).startswith(session.isoformat())
    before = ASX.previous_session(session)
    (bar,) = data.time_series(BHP, before, before, weekly=False, now=moment)
    assert quote["previousClosePrice"] == bar["closePrice"]


def test_a_quote_moves_within_the_session_and_ends_at_the_days_bar() -> None:
    noon, evening = (data.quote(BHP, MONDAY.replace(hour=hour)) for hour in (12, 20))
    assert 0 < int(str(noon["tradeCount"])) < int(str(evening["tradeCount"]))
    (bar,) = data.time_series(BHP, MONDAY.date(), MONDAY.date(), weekly=False, now=MONDAY.replace(hour=20))
    for name in (
        "openPrice",
        "highPrice",
        "lowPrice",
        "totalVolume",
        "totalValue",
        "tradeCount",
        "marketVwap",
    ):
        assert evening[name] == bar[name]
    assert evening["lastPrice"] == bar["closePrice"]


def test_nothing_is_from_the_future() -> None:
    noon = MONDAY.replace(hour=12)
    last = MONDAY + timedelta(days=1)
    assert str(data.market_trades(BHP, MONDAY, last, noon)[-1]["tradeDateTime"]) <= "2026-01-05T12:00:00.000"
    assert data.intraday_series(BHP, MONDAY, last, minutes=60, now=noon)[-1]["timeSeriesDateTime"] in (
        "2026-01-05T11:00:00",
        "2026-01-05T12:00:00",
    )
    assert str(data.announcements([BHP], MONDAY.replace(hour=7))[0]["announcementDateTime"]) < "2026-01-03"
    days = [str(record["announcementDateTime"])[:10] for record in data.announcements([BHP], MONDAY)]
    assert days == ["2026-01-02", "2025-12-31", "2025-12-30"]


def test_announcements_exist_at_every_time_of_the_week() -> None:
    for hour in range(7 * 24):
        assert data.announcements([BHP], MONDAY + timedelta(hours=hour))


@pytest.mark.parametrize("code", SOME)
def test_prices_keep_to_the_exchanges_steps(code: str) -> None:
    security = SECURITIES[code]
    days = [date(2026, 1, 5) + timedelta(days=7 * week) for week in range(20)]
    prices = [price for day in days for price in sessions.session_of(security, day).prices]
    assert min(prices) > 0
    assert all(price % sessions.tick(price) == 0 for price in prices)
    quote = data.quote(security, MONDAY.replace(hour=15))
    assert 0 < float(str(quote["bidPrice"])) < float(str(quote["askPrice"]))


def test_cheap_shares_have_parts_of_a_cent() -> None:
    def kinds(security: Security) -> set[type]:
        return {type(security.native(price)) for price in sessions.session_of(security, MONDAY.date()).prices}

    assert [sessions.tick(price) for price in (999, 1000, 19_999, 20_000)] == [10, 50, 50, 100]
    assert kinds(BHP) == {int}
    assert float in kinds(MSB)
    assert float in kinds(LKE)


@pytest.mark.parametrize(
    ("multiplier", "sent"),
    [
        ("1", ["45.125", "45.12", "-0.025", "45"]),
        ("0.01", ["4512.5", "4512", "-2.5", "4500"]),
        ("0.001", ["45125", "45120", "-25", "45000"]),
        ("0.0001", ["451250", "451200", "-250", "450000"]),
    ],
)
def test_a_native_price_is_the_shortest_exact_number(multiplier: str, sent: list[str]) -> None:
    security = replace(BHP, multiplier=Decimal(multiplier))
    assert [json.dumps(security.native(points)) for points in (451_250, 451_200, -250, 450_000)] == sent


@pytest.mark.parametrize("code", ["BHP", "LKE", "BHPXA7", "Z0001", "Z0101", "Z0002", "Z0003"])
def test_native_prices_times_the_multiplier_are_dollars_without_noise(code: str) -> None:
    security = SECURITIES[code]
    now = MONDAY.replace(hour=15)
    bars = data.time_series(security, date(2025, 10, 1), date(2026, 1, 5), weekly=False, now=now)
    records = json.loads(json.dumps([data.quote(security, now), *bars]), parse_float=Decimal)
    dollars = [record[name] * security.multiplier for record in records for name in PRICES & set(record)]
    assert len(dollars) > 250
    assert all(price % Decimal("0.001") == 0 for price in dollars)
    assert all(security.base / 125 < price < security.base / 75 for price in dollars)


@pytest.mark.parametrize("code", ["BHP", "Z0001", "Z0003"])
def test_values_are_dollars_whatever_the_multiplier(code: str) -> None:
    security = SECURITIES[code]
    (bar,) = data.time_series(security, MONDAY.date(), MONDAY.date(), weekly=False, now=MONDAY.replace(hour=20))
    average = Decimal(str(bar["totalValue"])) / int(str(bar["totalVolume"])) / security.multiplier
    assert float(str(bar["marketVwap"])) == pytest.approx(float(average), abs=0.000001)


@pytest.mark.parametrize("code", ["BHP", "MGR", "LKE", "Z0001", "BHPXA7"])
def test_bars_are_those_of_the_trades(code: str) -> None:
    security = SECURITIES[code]
    now = datetime.fromisoformat("2026-04-08T13:30")
    first, last = date(2026, 3, 30), date(2026, 4, 8)
    bars = data.time_series(security, first, last, weekly=False, now=now)
    assert [str(bar["timeSeriesDate"])[5:] for bar in bars] == ["03-30", "03-31", "04-01", "04-02", "04-07", "04-08"]
    for bar in bars:
        start = datetime.fromisoformat(str(bar["timeSeriesDate"]))
        trades = data.market_trades(security, start, start + timedelta(days=1), now)
        prices = [float(str(trade["tradePrice"])) for trade in trades]
        assert [bar[name] for name in ("openPrice", "highPrice", "lowPrice", "closePrice")] == [
            prices[0],
            max(prices),
            min(prices),
            prices[-1],
        ]
        assert bar["tradeCount"] == len(trades)
        assert bar["totalVolume"] == sum(int(str(trade["tradeVolume"])) for trade in trades)
        assert bar["totalValue"] == pytest.approx(sum(float(str(trade["tradeValue"])) for trade in trades))


@pytest.mark.parametrize("code", ["BHPXY7", "CBAXY7"])
def test_what_has_never_traded_has_an_order_book_alone(code: str) -> None:
    security = SECURITIES[code]
    noon = MONDAY.replace(hour=12)
    assert data.market_trades(security, MONDAY, noon, noon) == []
    assert data.intraday_series(security, MONDAY, noon, minutes=60, now=noon) == []
    for weekly in (False, True):
        assert data.time_series(security, date(2025, 1, 1), noon.date(), weekly=weekly, now=noon) == []
    assert len(data.depth(security, 5, 3, noon)) == 5


def test_the_book_never_reaches_a_price_of_zero() -> None:
    penny = replace(LKE, base=1)
    levels = data.depth(penny, 20, 20, MONDAY.replace(hour=15))
    bids = [float(str(level["bidPrice"])) for level in levels if level["bidPrice"] is not None]
    assert len(levels) == 20
    assert min(bids) > 0
    assert len(bids) < 20


@pytest.mark.parametrize(
    ("code", "first_day", "factor"),
    [("ZSPLIT", "2026-03-02", 0.25), ("ZDIV", "2026-03-09", 0.96), ("ZCONS", "2026-03-16", 10)],
)
def test_shares_with_a_split_a_dividend_and_a_consolidation(code: str, first_day: str, factor: float) -> None:
    security, day = SECURITIES[code], date.fromisoformat(first_day)
    before = ASX.previous_session(day)
    assert day.isoweekday() == 1

    def bars(now: datetime) -> list[data.Record]:
        return data.time_series(security, before, day, weekly=False, now=now)

    old, new = bars(datetime.fromisoformat("2026-06-01"))
    assert (old["adjustmentFactor"], new["adjustmentFactor"]) == (factor, 1)
    assert float(str(old["closePrice"])) * factor == pytest.approx(float(str(new["openPrice"])), rel=0.01)
    # What has not happened yet is in no factor.
    assert [bar["adjustmentFactor"] for bar in bars(datetime.combine(before, datetime.max.time()))] == [1]
    quote = data.quote(security, datetime.combine(day, datetime.min.time().replace(hour=12)))
    assert quote["openPrice"] == new["openPrice"]


def test_securities_of_every_kind_of_multiplier() -> None:
    common = sum(security.multiplier == Decimal("0.01") for security in SECURITIES.values())
    assert common > 1900
    assert {security.multiplier for security in SECURITIES.values()} == set(
        map(Decimal, ("1", "0.01", "0.001", "0.0001"))
    )
