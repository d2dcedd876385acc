"""Made-up accounts, portfolios, holdings and fills: pure functions of an account and the current exchange time.

On every trading day each account buys and later sells the same shares, so its holdings do not change. Prices are in
native units like all prices of the sandbox; balances and values are in dollars.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import NamedTuple, Self

from openmarkets_provider.sandbox import data
from openmarkets_provider.sandbox.chance import share_of
from openmarkets_provider.sandbox.securities import COMPANIES, EXCHANGE, POINTS_PER_DOLLAR, SECURITIES, Record, Security
from openmarkets_provider.sandbox.sessions import (
    Trade,
    close_price,
    current_session,
    day_before,
    last_price,
    lot,
    session_of,
    stamp,
    worth,
)
from openmarkets_provider.sessions.calendar import ASX, OPEN_TIME

_OPENED = date(2024, 7, 1)
_HOLDINGS = 4


class Account(NamedTuple):
    """An order account, and the security that it trades; None for a user's account."""

    code: str
    name: object
    traded: Security | None
    designation: object = None


class Portfolio(NamedTuple):
    """A portfolio of an account. One of its holdings is fixed, the others are random companies.

    The portfolio of a user's account has no holding and no cash.
    """

    code: str
    name: object
    cash: str
    account: str
    holding: Security | None


class Link(NamedTuple):
    """A link, current or removed, by which the orders of an account change a portfolio."""

    account: str
    portfolio: str
    sequence: int
    removed: bool = False


class Fill(NamedTuple):
    """One of an account's own trades."""

    account: Account
    security: Security
    side: str
    trade: Trade

    @property
    def order_number(self) -> int:
        """The number of the order that was filled."""
        return int(f"{self.account.code[-1]}{self.trade.number}")


_ACCOUNTS = (
    Account("SBX0001", "Sandbox account 1", SECURITIES["BHP"]),
    Account("SBX0002", "Sandbox account 2", SECURITIES["BHPXB7"]),
    Account("SBX0003", "Sandbox account 3", SECURITIES["Z0002"]),
)
_PORTFOLIOS = (
    Portfolio("SBX0001P", "Sandbox account 1", "SBX0001C", "SBX0001", SECURITIES["Z0001"]),
    Portfolio("SBX0001Q", "Sandbox account 1, second portfolio", "SBX0001D", "SBX0001", SECURITIES["BHPXA7"]),
    Portfolio("SBX0002P", "Sandbox account 2", "SBX0002C", "SBX0002", SECURITIES["Z0002"]),
    Portfolio("SBX0003P", "Sandbox account 3", "SBX0003C", "SBX0003", SECURITIES["Z0003"]),
    Portfolio("SBX0009P", "Sandbox portfolio that was unlinked", "SBX0009C", "SBX0002", SECURITIES["Z0004"]),
)
LINKS = (
    Link("SBX0001", "SBX0001P", 1),
    Link("SBX0001", "SBX0001Q", 2),
    Link("SBX0002", "SBX0002P", 1),
    Link("SBX0002", "SBX0009P", 2, removed=True),
    Link("SBX0003", "SBX0003P", 1),
    Link("SBX0003", "SBX0002P", 2),
)
ACCOUNTS = {account.code: account for account in _ACCOUNTS}
PORTFOLIOS = {portfolio.code: portfolio for portfolio in _PORTFOLIOS}


class Directory(NamedTuple):
    """Accounts and portfolios by code, and the links between them."""

    accounts: Mapping[str, Account]
    portfolios: Mapping[str, Portfolio]
    links: Sequence[Link]

    def accounts_of(self, portfolio: Portfolio) -> list[str]:
        """Return the accounts whose fills change a portfolio: those whose first portfolio it is."""
        firsts: dict[str, str] = {}
        for link in sorted(self.links, key=lambda link: link.sequence):
            if not link.removed:
                firsts.setdefault(link.account, link.portfolio)
        return [account for account, code in firsts.items() if code == portfolio.code]

    @classmethod
    def of(cls, records: Iterable[Record]) -> Self:
        """Return a directory of the accounts in some records, each with one portfolio of the same code."""
        codes = {str(record["accountCode"]): record for record in records}
        return cls(
            {
                code: Account(code, each["accountName"], None, each["accountDesignation"])
                for code, each in codes.items()
            },
            {code: Portfolio(code, each["accountName"], code, code, None) for code, each in codes.items()},
            [Link(code, code, 1) for code in codes],
        )


DIRECTORY = Directory(ACCOUNTS, PORTFOLIOS, LINKS)
"""The default accounts."""


def account_record(account: Account) -> Record:
    """Return the record of an account in the list of accounts."""
    return {"accountCode": account.code, "accountName": account.name, "accountDesignation": account.designation}


def link_record(link: Link) -> Record:
    """Return the record of a link in the list of links."""
    return {
        "accountCode": link.account,
        "portfolioCode": link.portfolio,
        "accessType": "Full",
        "linkRemoved": link.removed,
        "linkSequenceNumber": link.sequence,
    }


def details_record(portfolio: Portfolio) -> Record:
    """Return the details of a portfolio."""
    return {
        "portfolioCode": portfolio.code,
        "portfolioName": portfolio.name,
        "portfolioCashCode": portfolio.cash,
    }


def holdings(portfolio: Portfolio) -> list[Security]:
    """Return the securities that the portfolio holds."""
    if portfolio.holding is None:
        return []
    by_chance = sorted(COMPANIES.values(), key=lambda security: share_of(portfolio.code, security.code))
    return [*by_chance[:_HOLDINGS], portfolio.holding]


def _volume(portfolio: Portfolio, security: Security) -> int:
    lots = 1 + int(share_of(portfolio.code, security.code, "volume") * 20)
    return lots * lot(security)


def position_record(portfolio: Portfolio, security: Security, now: datetime, volume: int | None = None) -> Record:
    """Return one holding, valued at the last price.

    :param volume: the volume of the holding; None for the made-up one.
    """
    session, last = current_session(security, now), last_price(security, now)
    updated = session.trade(len(session.prices) - 1).at if session.prices else session.start
    volume = _volume(portfolio, security) if volume is None else volume
    bought = close_price(security, _OPENED)
    previous = close_price(security, day_before(session.day))
    option = security.option
    return {
        "accountCode": portfolio.account,
        "portfolioCode": portfolio.code,
        "securityCode": security.code,
        "exchange": EXCHANGE,
        "underlyingSecurityCode": option and option.underlying,
        "underlyingExchange": option and EXCHANGE,
        "createDateTime": _opening_text(),
        "updateDateTime": stamp(updated),
        "volumeStartOfDay": volume,
        "averagePriceStartOfDay": security.native(bought),
        "averagePrice": security.native(bought),
        "buyVolume": 0,
        "sellVolume": 0,
        "availableVolume": volume,
        "costValue": bought * volume / POINTS_PER_DOLLAR,
        "marketValue": last * volume / POINTS_PER_DOLLAR,
        "totalProfit": (last - bought) * volume / POINTS_PER_DOLLAR,
        "todayProfit": (last - previous) * volume / POINTS_PER_DOLLAR,
        "closedProfit": 0,
        "actualVolume": volume,
        "shortSellVolume": 0,
        "securityType": security.type,
        **data.UNKNOWN_FIELD,
    }


def cash_record(portfolio: Portfolio, now: datetime) -> Record:
    """Return the cash of a portfolio."""
    balance = data.number(Decimal(1_000_000 + int(share_of(portfolio.code, "cash") * 9_000_000)) / 100)
    securities = holdings(portfolio)
    prices = [current_session(security, now).prices[-1] for security in securities]
    market_value = worth(prices, (_volume(portfolio, security) for security in securities)) / POINTS_PER_DOLLAR
    return {
        "portfolioCode": portfolio.code,
        "accountCode": portfolio.account,
        "portfolioCashCode": portfolio.cash,
        "portfolioCashName": portfolio.name,
        "currencyCode": "AUD",
        "createDateTime": _opening_text(),
        "updateDateTime": _opening_text(),
        "cashBalance": balance,
        "netCash": balance,
        "inMarketBuyValue": 0,
        "inMarketSellValue": 0,
        "netUnsettledValueToday": 0,
        "glv": market_value,
        "freeEquity": balance,
        "totalInitialMargin": 0,
        "totalCfdRealisedProfit": 0,
        "totalCfdUnrealisedProfit": 0,
        "totalNonCfdMarketValue": market_value,
        "trustBalance": 0,
    }


def _opening_text() -> str:
    return stamp(datetime.combine(_OPENED, OPEN_TIME))


def fills(account: Account, first: datetime, last: datetime) -> Iterator[Fill]:
    """Yield the account's own trades from first to last, inclusive."""
    if account.traded is None or last.date() < _OPENED:
        return
    for day in ASX.sessions_in_range(max(first.date(), _OPENED), last.date()):
        # The whole session, so that the same trades are picked while it is open.
        session = session_of(account.traded, day)
        half = session.planned // 2
        bought = int(share_of(account.code, day) * half)
        purchase = session.trade(bought)
        sale = session.trade(bought + half)._replace(volume=purchase.volume)
        for side, trade in (("Buy", purchase), ("Sell", sale)):
            if first <= trade.at <= last:
                yield Fill(account, account.traded, side, trade)
