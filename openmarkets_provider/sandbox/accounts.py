"""Made-up accounts, holdings and fills: pure functions of an account and the present exchange time.

On every weekday each account buys and later sells the same shares, so its holdings stay as they are.
Prices are in cents like all prices of the sandbox, balances and values in dollars.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime
from typing import NamedTuple

from openmarkets_provider.sandbox import data
from openmarkets_provider.sandbox.data import Record
from openmarkets_provider.sandbox.securities import EXCHANGE, SECURITIES, Security

_OPENED = date(2024, 7, 1)
_HOLDINGS = 5


class Account(NamedTuple):
    """An order account and the one portfolio that is linked to it."""

    number: int

    @property
    def code(self) -> str:
        """The code that orders and trades are asked for by."""
        return f"SBX{self.number:04}"

    @property
    def portfolio(self) -> str:
        """The code that cash and positions are asked for by."""
        return f"{self.code}P"

    @property
    def cash(self) -> str:
        """The code of the cash account."""
        return f"{self.code}C"

    @property
    def name(self) -> str:
        """What the account is called."""
        return f"Sandbox account {self.number}"


class Fill(NamedTuple):
    """One of an account's own trades."""

    account: Account
    security: Security
    side: str
    trade: data.Trade

    @property
    def order_number(self) -> int:
        """The number of the order that was filled."""
        return int(f"{self.account.number}{self.trade.number}")


_ACCOUNTS = [Account(number) for number in (1, 2, 3)]
ACCOUNTS = {account.code: account for account in _ACCOUNTS}
PORTFOLIOS = {account.portfolio: account for account in _ACCOUNTS}


def account_record(account: Account) -> Record:
    """Return the account as the list of accounts has it."""
    return {"accountCode": account.code, "accountName": account.name, "accountDesignation": None}


def link_record(account: Account) -> Record:
    """Return the link between the account and its portfolio."""
    return {
        "accountCode": account.code,
        "portfolioCode": account.portfolio,
        "accessType": "Full",
        "linkRemoved": False,
        "linkSequenceNumber": 1,
    }


def details_record(account: Account) -> Record:
    """Return the details of the account's portfolio."""
    return {
        "portfolioCode": account.portfolio,
        "portfolioName": account.name,
        "portfolioCashCode": account.cash,
    }


def holdings(account: Account) -> list[Security]:
    """Return the securities that the account holds."""
    by_chance = sorted(SECURITIES.values(), key=lambda security: data.share_of(account.code, security.code))
    return by_chance[:_HOLDINGS]


def _volume(account: Account, security: Security) -> int:
    lots = 1 + int(data.share_of(account.code, security.code, "volume") * 20)
    return lots * data.lot(security)


def position_record(account: Account, security: Security, now: datetime) -> Record:
    """Return one holding, valued at the last price."""
    last = data.session_trades(security, now)[-1]
    volume = _volume(account, security)
    bought = data.close_price(security, _OPENED)
    previous = data.close_price(security, data.weekday_before(last.at.date()))
    return {
        "accountCode": account.code,
        "portfolioCode": account.portfolio,
        "securityCode": security.code,
        "exchange": EXCHANGE,
        "underlyingSecurityCode": None,
        "underlyingExchange": None,
        "createDateTime": data.stamp(datetime.combine(_OPENED, data.SESSION_START)),
        "updateDateTime": data.stamp(last.at),
        "volumeStartOfDay": volume,
        "averagePriceStartOfDay": data.native(bought),
        "averagePrice": data.native(bought),
        "buyVolume": 0,
        "sellVolume": 0,
        "availableVolume": volume,
        "costValue": bought * volume / 1000,
        "marketValue": last.price * volume / 1000,
        "totalProfit": (last.price - bought) * volume / 1000,
        "todayProfit": (last.price - previous) * volume / 1000,
        "closedProfit": 0,
        "actualVolume": volume,
        "shortSellVolume": 0,
        "securityType": "Equity",
    }


def cash_record(account: Account, now: datetime) -> Record:
    """Return the cash of the account's portfolio."""
    balance = 10_000 + int(data.share_of(account.code, "cash") * 9_000_000) / 100
    held = holdings(account)
    worth = sum(data.session_trades(share, now)[-1].price * _volume(account, share) for share in held)
    opened = data.stamp(datetime.combine(_OPENED, data.SESSION_START))
    return {
        "portfolioCode": account.portfolio,
        "accountCode": account.code,
        "portfolioCashCode": account.cash,
        "portfolioCashName": account.name,
        "currencyCode": "AUD",
        "createDateTime": opened,
        "updateDateTime": opened,
        "cashBalance": balance,
        "netCash": balance,
        "inMarketBuyValue": 0,
        "inMarketSellValue": 0,
        "netUnsettledValueToday": 0,
        "glv": worth / 1000,
        "freeEquity": balance,
        "totalInitialMargin": 0,
        "totalCfdRealisedProfit": 0,
        "totalCfdUnrealisedProfit": 0,
        "totalNonCfdMarketValue": worth / 1000,
        "trustBalance": 0,
    }


def fills(account: Account, first: datetime, last: datetime) -> Iterator[Fill]:
    """Yield the account's own trades from first to last, both included."""
    security = holdings(account)[0]
    for day in data.weekdays(max(first.date(), _OPENED), last.date()):
        trades = data.day_trades(security, day)
        bought = int(data.share_of(account.code, day) * (len(trades) // 2))
        sold = trades[bought + len(trades) // 2]._replace(volume=trades[bought].volume)
        for side, trade in (("Buy", trades[bought]), ("Sell", sold)):
            if first <= trade.at <= last:
                yield Fill(account, security, side, trade)


def trade_record(fill: Fill) -> Record:
    """Return a fill as the list of trades has it."""
    trade = fill.trade
    return {
        "tradeNumber": fill.order_number,
        "orderNumber": fill.order_number,
        "accountCode": fill.account.code,
        "securityCode": fill.security.code,
        "exchange": EXCHANGE,
        "destination": EXCHANGE,
        "tradeVolume": trade.volume,
        "tradePrice": data.native(trade.price),
        "tradeValue": data.value([trade]),
        "tradeDateTime": data.stamp(trade.at),
        "destinationTradeNumber": str(trade.number),
        "side": fill.side,
        "priceMultiplier": data.PRICE_MULTIPLIER,
        "tradeDateTimeGmt": data.to_gmt(trade.at),
    }
