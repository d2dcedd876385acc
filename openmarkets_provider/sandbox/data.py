"""Made-up market data: pure functions of a security, a day and the present exchange time.

Everything is derived from one day's trades, so quotes, bars and trades agree with each other. Prices are
held as whole tenths of a cent and sent in cents; values are in dollars. Times are exchange time without an
offset. Shares trade from 10:00 to 16:00 on every weekday: public holidays are not known here.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from itertools import groupby, zip_longest
from typing import NamedTuple
from zoneinfo import ZoneInfo

from openmarkets_provider.sandbox.securities import DATA_SOURCE, EXCHANGE, LISTED, Security, isin

EXCHANGE_ZONE = ZoneInfo("Australia/Sydney")
PRICE_MULTIPLIER = 0.01
FIRST_DAY = date.fromisoformat(LISTED)
SESSION_START = time(10)
DEPTH_LEVELS = 20

_SESSION_MILLISECONDS = 6 * 3600 * 1000
_FEWEST_TRADES, _MOST_TRADES = 40, 80

Record = dict[str, object]


class Trade(NamedTuple):
    """One trade; the price is in tenths of a cent."""

    number: int
    at: datetime
    price: int
    volume: int


def exchange_now() -> datetime:
    """Return the present exchange time, without an offset."""
    return datetime.now(EXCHANGE_ZONE).replace(tzinfo=None)


def to_gmt(moment: datetime) -> str:
    """Return an exchange time as UTC, written without an offset."""
    return stamp(moment.replace(tzinfo=EXCHANGE_ZONE).astimezone(UTC).replace(tzinfo=None))


def stamp(moment: datetime) -> str:
    """Write a time as the APIs do."""
    return moment.isoformat(timespec="milliseconds")


def native(tenths: int) -> int | float:
    """Return a price in cents; a whole one is an integer."""
    return tenths // 10 if tenths % 10 == 0 else tenths / 10


def share_of(*parts: object) -> float:
    """Return a number in [0, 1) that depends on the parts alone."""
    digest = hashlib.blake2b(" ".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def tick(tenths: float) -> int:
    """Return the exchange's price step: 0.1 cent below 10 cents, half a cent below 2 dollars, else a cent."""
    if tenths < 100:
        return 1
    return 5 if tenths < 2000 else 10


def lot(security: Security) -> int:
    """Return a number of shares that is worth about a thousand dollars."""
    return max(1, 100_000 // security.base)


def _snap(tenths: float) -> int:
    step = tick(tenths)
    return max(step, round(tenths / step) * step)


def close_price(security: Security, day: date) -> int:
    """Return the day's last price: two slow waves and some noise around the base price."""
    slow, fast = share_of(security.code, "slow"), share_of(security.code, "fast")
    wave = (
        0.10 * math.sin(math.tau * (day.toordinal() / 251 + slow))
        + 0.04 * math.sin(math.tau * (day.toordinal() / 23 + fast))
        + 0.012 * (share_of(security.code, day) - 0.5)
    )
    return _snap(security.base * 10 * (1 + wave))


def weekdays(first: date, last: date) -> Iterator[date]:
    """Yield the trading days from first to last, both included."""
    for ordinal in range(first.toordinal(), last.toordinal() + 1):
        day = date.fromordinal(ordinal)
        if day.weekday() < 5:
            yield day


def weekday_before(day: date) -> date:
    """Return the last trading day before a day."""
    return day - timedelta(days={0: 3, 6: 2}.get(day.weekday(), 1))


@lru_cache(maxsize=1024)
def day_trades(security: Security, day: date) -> tuple[Trade, ...]:
    """Return all trades of a trading day, in order of time."""
    noise = hashlib.shake_128(f"{security.code} {day}".encode()).digest(2 * _MOST_TRADES + 2)
    count = _FEWEST_TRADES + noise[0] * (_MOST_TRADES - _FEWEST_TRADES) // 256
    opening = close_price(security, weekday_before(day)) * (1 + (noise[1] - 128) / 32000)
    closing = close_price(security, day)
    unit = lot(security)
    start = datetime.combine(day, SESSION_START)
    numbers_from = int(f"{day:%Y%m%d}0001")
    trades = []
    for index in range(count):
        drift = opening + (closing - opening) * index / (count - 1)
        wobble = (noise[2 + 2 * index] - 128) / 128 * 0.006 if 0 < index < count - 1 else 0
        trades.append(
            Trade(
                number=numbers_from + index,
                at=start + timedelta(milliseconds=_SESSION_MILLISECONDS * index // count),
                price=_snap(drift * (1 + wobble)),
                volume=unit * (1 + noise[3 + 2 * index] % 40),
            )
        )
    return tuple(trades)


def trades_between(security: Security, first: datetime, last: datetime) -> Iterator[Trade]:
    """Yield the trades from first to last, both included."""
    for day in weekdays(max(first.date(), FIRST_DAY), last.date()):
        yield from (trade for trade in day_trades(security, day) if first <= trade.at <= last)


def session_trades(security: Security, now: datetime) -> list[Trade]:
    """Return the trades so far of the session that is open, or of the last one."""
    day = now.date()
    if day.weekday() > 4 or now.time() < SESSION_START:
        day = weekday_before(day)
    return [trade for trade in day_trades(security, day) if trade.at <= now]


def value(trades: Iterable[Trade]) -> float:
    """Return what the trades are worth, in dollars."""
    return sum(trade.price * trade.volume for trade in trades) / 1000


def _average_price(trades: Sequence[Trade]) -> float:
    return round(value(trades) * 100 / sum(trade.volume for trade in trades), 4)


def _bar(trades: Sequence[Trade]) -> Record:
    prices = [trade.price for trade in trades]
    return {
        "openPrice": native(prices[0]),
        "highPrice": native(max(prices)),
        "lowPrice": native(min(prices)),
        "closePrice": native(prices[-1]),
        "totalVolume": sum(trade.volume for trade in trades),
        "totalValue": value(trades),
        "tradeCount": len(trades),
    }


def time_series(security: Security, first: date, last: date, *, weekly: bool, now: datetime) -> list[Record]:
    """Return a bar a day or a week; a week's is dated by its last trading day in the range."""
    end = min(datetime.combine(last, time.max), now)
    trades = trades_between(security, datetime.combine(first, time.min), end)

    def period(trade: Trade) -> object:
        return trade.at.isocalendar()[:2] if weekly else trade.at.date()

    return [
        {
            **_bar(group),
            "timeSeriesDate": group[-1].at.date().isoformat(),
            "marketVwap": _average_price(group),
            "adjustmentFactor": 1,
        }
        for group in (list(members) for _, members in groupby(trades, period))
    ]


def intraday_series(
    security: Security, first: datetime, last: datetime, *, minutes: int, now: datetime
) -> list[Record]:
    """Return a bar for each interval that starts within the range and has a trade."""

    def start(trade: Trade) -> datetime:
        whole = trade.at.replace(second=0, microsecond=0)
        return whole - timedelta(minutes=whole.minute % minutes)

    trades = trades_between(security, first, min(min(last, now) + timedelta(minutes=minutes), now))
    bars = ((begin, _bar(list(members))) for begin, members in groupby(trades, start))
    return [bar | {"timeSeriesDateTime": begin.isoformat()} for begin, bar in bars if first <= begin <= last]


def market_trades(security: Security, first: datetime, last: datetime, now: datetime) -> list[Record]:
    """Return the trades of a range, as the market-data API sends them."""
    return [
        {
            "securityCode": security.code,
            "exchange": EXCHANGE,
            "dataSource": DATA_SOURCE,
            "tradeNumber": trade.number,
            "tradeGmtDateTime": to_gmt(trade.at),
            "tradePrice": native(trade.price),
            "tradeVolume": trade.volume,
            "tradeValue": value([trade]),
            "tradeDateTime": stamp(trade.at),
            "conditionCodes": "",
            "reason": "",
        }
        for trade in trades_between(security, first, min(last, now))
    ]


def information(security: Security) -> Record:
    """Return what stays the same about a security from day to day."""
    return {
        "securityCode": security.code,
        "exchange": EXCHANGE,
        "securityType": "Equity",
        "securityDescription": security.name,
        "currencyCode": "AUD",
        "isin": isin(security.code),
        "lotSize": 1,
        "maturityDate": None,
        "exerciseDate": None,
        "exercisePrice": None,
        "callOrPut": None,
        "sharesPerContract": None,
        "priceMultiplier": PRICE_MULTIPLIER,
        "minimumPriceStep": native(tick(security.base * 10)),
        "underlyingInstrumentCode": None,
        "underlyingInstrumentExchange": None,
    }


def _best_prices(last: Trade) -> tuple[int, int]:
    """Return the best bid and ask around the last trade."""
    step = tick(last.price)
    bid = last.price - step * (last.volume % 2)
    return (bid, bid + step) if bid > 0 else (step, 2 * step)


def _level(security: Security, side: str, price: int, number: int) -> tuple[int, int]:
    """Return the volume and the number of orders at a price."""
    orders = 1 + int(share_of(security.code, side, price, number) * 12)
    return orders * lot(security), orders


def quote(security: Security, now: datetime) -> Record:
    """Return the security's quote."""
    trades = session_trades(security, now)
    last = trades[-1]
    bar = _bar(trades)
    previous = close_price(security, weekday_before(last.at.date()))
    bid, ask = _best_prices(last)
    bid_volume, bid_count = _level(security, "bid", bid, last.number)
    ask_volume, ask_count = _level(security, "ask", ask, last.number)
    return {
        "securityCode": security.code,
        "exchange": EXCHANGE,
        "dataSource": DATA_SOURCE,
        "askCount": ask_count,
        "askPrice": native(ask),
        "askVolume": ask_volume,
        "bidCount": bid_count,
        "bidPrice": native(bid),
        "bidVolume": bid_volume,
        "totalVolume": bar["totalVolume"],
        "totalValue": bar["totalValue"],
        "highPrice": bar["highPrice"],
        "lastPrice": bar["closePrice"],
        "lowPrice": bar["lowPrice"],
        "matchPrice": None,
        "matchVolume": None,
        "marketValue": bar["totalValue"],
        "marketVolume": bar["totalVolume"],
        "movement": native(last.price - previous),
        "openPrice": bar["openPrice"],
        "quotationBasisCode": "",
        "companyReportCode": "",
        "tradingStatus": "OPEN",
        "tradeCount": bar["tradeCount"],
        "tradeDateTime": stamp(last.at),
        "updateDateTime": stamp(last.at),
        "previousClosePrice": native(previous),
        "priceMultiplier": PRICE_MULTIPLIER,
        "marketVwap": _average_price(trades),
    }


def depth(security: Security, ask_levels: int, bid_levels: int, now: datetime) -> list[Record]:
    """Return the order book by price; the shorter side's missing levels are null."""
    last = session_trades(security, now)[-1]
    bid, ask = _best_prices(last)
    step = tick(last.price)
    asks = [ask + step * level for level in range(min(ask_levels, DEPTH_LEVELS))]
    bids = [bid - step * level for level in range(min(bid_levels, DEPTH_LEVELS)) if bid > step * level]

    def half(side: str, price: int | None) -> Record:
        volume, orders = (None, None) if price is None else _level(security, side, price, last.number)
        return {
            f"{side}Price": None if price is None else native(price),
            f"{side}Volume": volume,
            f"{side}OrderCount": orders,
            f"{side}DataSources": [] if price is None else [DATA_SOURCE],
        }

    return [half("ask", ask) | half("bid", bid) for ask, bid in zip_longest(asks, bids)]


def announcements(securities: Iterable[Security], now: datetime) -> list[Record]:
    """Return one headline a security and weekday of the last week, newest first."""
    return [
        {
            "announcementId": f"{day:%Y%m%d}-{security.code}",
            "securityCode": security.code,
            "exchange": EXCHANGE,
            "headline": f"Sandbox announcement for {security.code}",
            "announcementDateTime": stamp(at),
            "priceSensitive": share_of(security.code, day, "sensitive") < 0.25,
        }
        for day in reversed(list(weekdays(now.date() - timedelta(days=6), now.date())))
        for security in securities
        if (at := datetime.combine(day, time(8, int(share_of(security.code, day, "minute") * 60)))) <= now
    ]
