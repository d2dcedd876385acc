"""The made-up data: pure, and in agreement with itself."""

from __future__ import annotations

import subprocess
import sys
from datetime import date, datetime, timedelta

import pytest

from openmarkets_provider.sandbox import data
from openmarkets_provider.sandbox.securities import SECURITIES, Security, find, isin

BHP, LKE, MSB = (SECURITIES[code] for code in ("BHP", "LKE", "MSB"))
MONDAY = datetime.fromisoformat("2026-01-05")


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
    ],
)
def test_quotes_are_of_the_open_or_of_the_last_session(moment: datetime, session: date) -> None:
    quote = data.quote(BHP, moment)
    assert str(quote["tradeDateTime"]).startswith(session.isoformat())
    before = data.weekday_before(session)
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


def test_announcements_exist_at_every_time_of_the_week() -> None:
    for hour in range(7 * 24):
        assert data.announcements([BHP], MONDAY + timedelta(hours=hour))


@pytest.mark.parametrize("security", SECURITIES.values(), ids=SECURITIES)
def test_prices_keep_to_the_exchanges_steps(security: Security) -> None:
    for trade in data.day_trades(security, MONDAY.date()):
        assert trade.price > 0
        assert trade.price % data.tick(trade.price) == 0
    quote = data.quote(security, MONDAY.replace(hour=15))
    assert 0 < float(str(quote["bidPrice"])) < float(str(quote["askPrice"]))


def test_cheap_shares_have_parts_of_a_cent() -> None:
    def kinds(security: Security) -> set[type]:
        return {type(data.native(trade.price)) for trade in data.day_trades(security, MONDAY.date())}

    assert [data.tick(price) for price in (99, 100, 1999, 2000)] == [1, 5, 5, 10]
    assert kinds(BHP) == {int}
    assert float in kinds(MSB)
    assert float in kinds(LKE)
    assert (data.native(45125), data.native(45120), data.native(-25)) == (4512.5, 4512, -2.5)


def test_the_book_never_reaches_a_price_of_zero() -> None:
    penny = LKE._replace(base=1)
    levels = data.depth(penny, 20, 20, MONDAY.replace(hour=15))
    bids = [float(str(level["bidPrice"])) for level in levels if level["bidPrice"] is not None]
    assert len(levels) == 20
    assert min(bids) > 0
    assert len(bids) < 20
