"""Made-up market data in the API's format: pure functions of a security, a day and the current exchange time.

Everything is derived from the sessions, so quotes, bars and trades agree. Prices are in native units, which are
dollars divided by the security's multiplier; values are in dollars. Times are exchange time without an offset.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from itertools import chain, groupby, zip_longest

from openmarkets_provider.sandbox.chance import share_of
from openmarkets_provider.sandbox.securities import (
    DATA_SOURCE,
    EXCHANGE,
    POINTS_PER_DOLLAR,
    Record,
    Security,
)
from openmarkets_provider.sandbox.sessions import (
    Session,
    Trade,
    close_price,
    current_session,
    day_before,
    lot,
    sessions,
    stamp,
    tick,
    to_gmt,
    trades_between,
    worth,
)
from openmarkets_provider.sessions.calendar import ASX

DEPTH_LEVELS = 20
UNKNOWN_FIELD = {"sandboxField": "a field that no documentation lists"}


def number(exact: Decimal) -> int | float:
    """Convert a Decimal to a JSON number: an int if it is whole."""
    return int(exact) if exact == int(exact) else float(exact)


def _bar(security: Security, prices: Sequence[int], volumes: Sequence[int]) -> Record:
    """Return the fields about trades that bars and quotes share."""
    native = security.native
    return {
        "openPrice": native(prices[0]),
        "highPrice": native(max(prices)),
        "lowPrice": native(min(prices)),
        "closePrice": native(prices[-1]),
        "totalVolume": sum(volumes),
        "totalValue": worth(prices, volumes) / POINTS_PER_DOLLAR,
        "tradeCount": len(prices),
    }


def _average_price(security: Security, prices: Sequence[int], volumes: Sequence[int]) -> float:
    return security.average(worth(prices, volumes), sum(volumes))


def time_series(security: Security, first: date, last: date, *, weekly: bool, now: datetime) -> list[Record]:
    """Return a bar for each day or week. A weekly bar has the date of its last trading day in the range."""

    def period(session: Session) -> object:
        return session.day.isocalendar()[:2] if weekly else session.day

    bars = []
    traded = (session for session in sessions(security, first, last, now) if session.prices)
    for _, members in groupby(traded, period):
        group = list(members)
        prices = list(chain.from_iterable(session.prices for session in group))
        volumes = list(chain.from_iterable(session.volumes for session in group))
        bars.append(
            {
                **_bar(security, prices, volumes),
                "timeSeriesDate": group[-1].day.isoformat(),
                "marketVwap": _average_price(security, prices, volumes),
                "adjustmentFactor": number(security.factor(group[-1].day, now.date())),
            }
        )
    return bars


def intraday_series(
    security: Security, first: datetime, last: datetime, *, minutes: int, now: datetime
) -> list[Record]:
    """Return a bar for each interval with a trade that starts within the range."""

    def start(trade: Trade) -> datetime:
        whole = trade.at.replace(second=0, microsecond=0)
        return whole - timedelta(minutes=whole.minute % minutes)

    bars = []
    trades = trades_between(security, first, min(min(last, now) + timedelta(minutes=minutes), now))
    for begin, members in groupby(trades, start):
        if first <= begin <= last:
            prices, volumes = zip(*((trade.price, trade.volume) for trade in members), strict=True)
            bars.append(_bar(security, prices, volumes) | {"timeSeriesDateTime": begin.isoformat()})
    return bars


def market_trades(security: Security, first: datetime, last: datetime, now: datetime) -> list[Record]:
    """Return the trades of a range, in the format of the market-data API."""
    return [
        {
            "securityCode": security.code,
            "exchange": EXCHANGE,
            "dataSource": DATA_SOURCE,
            "tradeNumber": trade.number,
            "tradeGmtDateTime": to_gmt(trade.at),
            "tradePrice": security.native(trade.price),
            "tradeVolume": trade.volume,
            "tradeValue": trade.price * trade.volume / POINTS_PER_DOLLAR,
            "tradeDateTime": stamp(trade.at),
            "conditionCodes": "",
            "reason": "",
        }
        for trade in trades_between(security, first, min(last, now))
    ]


def information(security: Security) -> Record:
    """Return the security information."""
    option = security.option
    return {
        "securityCode": security.code,
        "exchange": EXCHANGE,
        "securityType": security.type,
        "securityDescription": security.name,
        "currencyCode": "AUD",
        "isin": security.isin,
        "lotSize": 1,
        "maturityDate": option and option.maturity,
        "exerciseDate": option and option.maturity,
        "exercisePrice": option and security.native(option.exercise_price),
        "callOrPut": option and option.kind,
        "sharesPerContract": option and 100,
        "priceMultiplier": number(security.multiplier),
        "minimumPriceStep": security.native(tick(security.base_price)),
        "underlyingInstrumentCode": option and option.underlying,
        "underlyingInstrumentExchange": option and EXCHANGE,
    }


def _best_prices(session: Session, security: Security) -> tuple[int, int]:
    """Return the best bid and ask around the last trade, or around the closing price if there are no trades."""
    if session.prices:
        middle, below = session.prices[-1], session.volumes[-1] % 2
    else:
        middle, below = close_price(security, day_before(session.day)), 1
    step = tick(middle)
    bid = middle - step * below
    return (bid, bid + step) if bid > 0 else (step, 2 * step)


def _level(security: Security, side: str, price: int, session: Session) -> tuple[int, int]:
    """Return the volume and number of orders at a price."""
    orders = 1 + int(share_of(security.code, side, price, session.day, len(session.prices)) * 12)
    return orders * lot(security, session.day), orders


_NO_TRADES: Record = {
    "totalVolume": 0,
    "totalValue": 0,
    "highPrice": None,
    "lastPrice": None,
    "lowPrice": None,
    "marketValue": 0,
    "marketVolume": 0,
    "movement": None,
    "openPrice": None,
    "tradeCount": 0,
    "tradeDateTime": None,
    "previousClosePrice": None,
    "marketVwap": None,
}


def _trade_fields(security: Security, session: Session) -> Record:
    """Return the fields of a quote about the session's trades."""
    bar = _bar(security, session.prices, session.volumes)
    previous = close_price(security, day_before(session.day))
    last = session.trade(len(session.prices) - 1)
    return {
        "totalVolume": bar["totalVolume"],
        "totalValue": bar["totalValue"],
        "highPrice": bar["highPrice"],
        "lastPrice": bar["closePrice"],
        "lowPrice": bar["lowPrice"],
        "marketValue": bar["totalValue"],
        "marketVolume": bar["totalVolume"],
        "movement": security.native(last.price - previous),
        "openPrice": bar["openPrice"],
        "tradeCount": bar["tradeCount"],
        "tradeDateTime": stamp(last.at),
        "previousClosePrice": security.native(previous),
        "marketVwap": _average_price(security, session.prices, session.volumes),
    }


def quote(security: Security, now: datetime) -> Record:
    """Return the security's quote. Fields about trades are null if there has never been one."""
    session = current_session(security, now)
    traded = _trade_fields(security, session) if session.prices else _NO_TRADES
    bid, ask = _best_prices(session, security)
    bid_volume, bid_count = _level(security, "bid", bid, session)
    ask_volume, ask_count = _level(security, "ask", ask, session)
    return {
        "securityCode": security.code,
        "exchange": EXCHANGE,
        "dataSource": DATA_SOURCE,
        "askCount": ask_count,
        "askPrice": security.native(ask),
        "askVolume": ask_volume,
        "bidCount": bid_count,
        "bidPrice": security.native(bid),
        "bidVolume": bid_volume,
        "matchPrice": None,
        "matchVolume": None,
        "quotationBasisCode": "",
        "companyReportCode": "",
        "tradingStatus": "OPEN",
        "updateDateTime": traded["tradeDateTime"] or stamp(session.start),
        "priceMultiplier": number(security.multiplier),
        **traded,
        **UNKNOWN_FIELD,
    }


def depth(security: Security, ask_levels: int, bid_levels: int, now: datetime) -> list[Record]:
    """Return the order book by price. Missing levels of the shorter side are null."""
    session = current_session(security, now)
    bid, ask = _best_prices(session, security)
    step = ask - bid
    asks = [ask + step * level for level in range(min(ask_levels, DEPTH_LEVELS))]
    bids = [bid - step * level for level in range(min(bid_levels, DEPTH_LEVELS)) if bid > step * level]

    def half(side: str, price: int | None) -> Record:
        volume, orders = (None, None) if price is None else _level(security, side, price, session)
        return {
            f"{side}Price": None if price is None else security.native(price),
            f"{side}Volume": volume,
            f"{side}OrderCount": orders,
            f"{side}DataSources": [] if price is None else [DATA_SOURCE],
        }

    return [half("ask", ask) | half("bid", bid) for ask, bid in zip_longest(asks, bids)]


def announcements(securities: Iterable[Security], now: datetime) -> list[Record]:
    """Return one headline for each security and trading day of the last week, newest first."""
    return [
        announcement(
            f"{day:%Y%m%d}-{security.code}",
            security,
            at,
            f"Sandbox announcement for {security.code}",
            share_of(security.code, day, "sensitive") < 0.25,
        )
        for day in reversed(ASX.sessions_in_range(now.date() - timedelta(days=6), now.date()))
        for security in securities
        if (at := datetime.combine(day, time(8, int(share_of(security.code, day, "minute") * 60)))) <= now
    ]


def announcement(number: str, security: Security, at: datetime, headline: str, price_sensitive: bool) -> Record:
    """Return one announcement."""
    return {
        "announcementId": number,
        "securityCode": security.code,
        "exchange": EXCHANGE,
        "headline": headline,
        "announcementDateTime": stamp(at),
        "priceSensitive": price_sensitive,
    }
