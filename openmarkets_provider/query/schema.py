"""The row schema of every query: one table that rows, documentation and storage types are made from.

The API page gives names alone. Types and units are inferred from them, and ``raw=True`` gives what the API sent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, unique
from functools import cached_property
from typing import Any

Row = dict[str, Any]


@unique
class Kind(Enum):
    """What a field holds. The value is how the documentation names its Python type and its unit."""

    TEXT = ("str", "")
    ID = ("str", "identifier; a number is written as text")
    INTEGER = ("int", "")
    COUNT = ("int", "count")
    VOLUME = ("int", "securities or contracts")
    NUMBER = ("Decimal", "ratio")
    PRICE = ("Decimal", "currency's main unit: native price x price_multiplier")
    VALUE = ("Decimal", "currency's main unit, as the API sends it")
    MULTIPLIER = ("Decimal", "main units in one native unit")
    BOOLEAN = ("bool", "")
    DATE = ("date", "exchange date")
    EXCHANGE_TIME = ("datetime", "UTC; the API sends exchange time")
    UTC_TIME = ("datetime", "UTC")
    JSON = ("any", "as the API sends it")

    @property
    def type(self) -> str:
        """The Python type of a value that is not None."""
        return self.value[0]

    @property
    def unit(self) -> str:
        """The unit or the time zone, in words."""
        return self.value[1]


@dataclass(frozen=True)
class Field:
    """One column of a row.

    :ivar api: the API's name; None for what the API does not send, and the provider adds.
    :ivar name: the row's name, snake_case.
    :ivar key: part of what identifies the row.
    :ivar note: what its kind does not say.
    """

    api: str | None
    name: str
    kind: Kind
    key: bool = False
    note: str = ""

    @property
    def unit(self) -> str:
        """The unit, the time zone, or what else there is to know."""
        return self.note or self.kind.unit


@dataclass(frozen=True)
class Schema:
    """The rows of one query.

    :ivar fields: the columns in order.
    :ivar time: the column that a range selects rows by; None where a query has no range.
    """

    fields: tuple[Field, ...]
    time: str | None = None

    @cached_property
    def key(self) -> tuple[str, ...]:
        """The columns that identify a row."""
        return tuple(field.name for field in self.fields if field.key)

    @cached_property
    def by_api_name(self) -> dict[str, Field]:
        """The columns that the API sends, by its name for them."""
        return {field.api: field for field in self.fields if field.api is not None}

    @cached_property
    def supplied(self) -> dict[str, Field]:
        """The columns that the provider supplies where a reply leaves them out, by the API's name."""
        return {api_name: field for api_name, field in _SUPPLIED.items() if field in self.fields}

    @cached_property
    def sendable(self) -> dict[str, Field]:
        """All columns that a reply may hold, by the API's name."""
        return self.by_api_name | self.supplied

    @cached_property
    def names(self) -> frozenset[str]:
        """The names of all columns."""
        return frozenset(field.name for field in self.fields)

    @cached_property
    def price_api_names(self) -> tuple[str, ...]:
        """The API's names of the columns that hold prices."""
        return tuple(name for name, field in self.by_api_name.items() if field.kind is Kind.PRICE)


def snake_case(api_name: str) -> str:
    """Turn an API's camelCase name into a row's."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", api_name).lower()


_SUPPLIED = {
    "securityCode": Field(None, "security_code", Kind.TEXT, key=True),
    "exchange": Field(None, "exchange", Kind.TEXT, key=True),
    "dataSource": Field(None, "data_source", Kind.TEXT, key=True),
    "priceMultiplier": Field(None, "price_multiplier", Kind.MULTIPLIER),
}
"""Columns that the API leaves out of some replies, by its name for them in others."""
_COMPUTED = {
    "level": Field(None, "level", Kind.INTEGER, key=True, note="1 is the best price"),
    "state": Field(None, "state", Kind.TEXT, note="working, finished, failed or pending"),
}


def _schema(table: str, time: str | None = None) -> Schema:
    """Read a table of ``apiName:kind``; ``!`` marks a part of the key, ``+name`` what is supplied or computed."""

    def field(entry: str) -> Field:
        if entry.startswith("+"):
            return (_SUPPLIED | _COMPUTED)[entry[1:]]
        api_name, _, kind = entry.rstrip("!").partition(":")
        return Field(api_name, snake_case(api_name), Kind[kind.upper()], entry.endswith("!"))

    return Schema(tuple(map(field, table.split())), time)


SCHEMAS: Mapping[str, Schema] = {
    "securities": _schema("""
        securityCode:text! exchange:text! securityDescription:text securityType:text firstListedDate:date
        lastListedDate:date issuerCode:text issuerExchange:text issuerName:text gicsCode:id isin:text sedol:text
        cusip:text
    """),
    "security_information": _schema("""
        securityCode:text! exchange:text! securityType:text securityDescription:text currencyCode:text isin:text
        lotSize:volume maturityDate:date exerciseDate:date exercisePrice:price callOrPut:text
        sharesPerContract:volume priceMultiplier:multiplier minimumPriceStep:price underlyingInstrumentCode:text
        underlyingInstrumentExchange:text
    """),
    "quotes": _schema("""
        securityCode:text! exchange:text! dataSource:text! askCount:count askPrice:price askVolume:volume
        bidCount:count bidPrice:price bidVolume:volume totalVolume:volume totalValue:value highPrice:price
        lastPrice:price lowPrice:price matchPrice:price matchVolume:volume marketValue:value marketVolume:volume
        movement:price openPrice:price quotationBasisCode:text companyReportCode:text tradingStatus:text
        tradeCount:count tradeDateTime:exchange_time updateDateTime:exchange_time previousClosePrice:price
        priceMultiplier:multiplier marketVwap:price
    """),
    "depth": _schema("""
        +securityCode +exchange +dataSource +level askPrice:price askVolume:volume askOrderCount:count
        askDataSources:json bidPrice:price bidVolume:volume bidOrderCount:count bidDataSources:json +priceMultiplier
    """),
    "time_series": _schema(
        """
        +securityCode +exchange +dataSource timeSeriesDate:date! openPrice:price highPrice:price lowPrice:price
        closePrice:price totalVolume:volume totalValue:value tradeCount:count marketVwap:price
        adjustmentFactor:number +priceMultiplier
        """,
        time="time_series_date",
    ),
    "intraday_time_series": _schema(
        """
        +securityCode +exchange +dataSource timeSeriesDateTime:exchange_time! openPrice:price highPrice:price
        lowPrice:price closePrice:price totalVolume:volume totalValue:value tradeCount:count +priceMultiplier
        """,
        time="time_series_date_time",
    ),
    "trades": _schema(
        """
        securityCode:text! exchange:text! dataSource:text! tradeNumber:id! tradeGmtDateTime:utc_time
        tradeDateTime:exchange_time! tradePrice:price tradeVolume:volume tradeValue:value conditionCodes:json
        reason:text +priceMultiplier
        """,
        time="trade_date_time",
    ),
    "accounts": _schema("accountCode:id! accountName:text accountDesignation:text"),
    "portfolio_links": _schema("""
        accountCode:id! portfolioCode:id! accessType:text linkRemoved:boolean linkSequenceNumber:id!
    """),
    "portfolio_details": _schema("portfolioCode:id! portfolioName:text portfolioCashCode:id"),
    "cash": _schema("""
        portfolioCode:id! accountCode:id! portfolioCashCode:id! portfolioCashName:text currencyCode:text!
        createDateTime:exchange_time updateDateTime:exchange_time cashBalance:value netCash:value
        inMarketBuyValue:value inMarketSellValue:value netUnsettledValueToday:value glv:value freeEquity:value
        totalInitialMargin:value totalCfdRealisedProfit:value totalCfdUnrealisedProfit:value
        totalNonCfdMarketValue:value trustBalance:value
    """),
    "positions": _schema("""
        accountCode:id! portfolioCode:id! securityCode:text! exchange:text! underlyingSecurityCode:text
        underlyingExchange:text createDateTime:exchange_time updateDateTime:exchange_time volumeStartOfDay:volume
        averagePriceStartOfDay:price averagePrice:price buyVolume:volume sellVolume:volume availableVolume:volume
        costValue:value marketValue:value totalProfit:value todayProfit:value closedProfit:value
        actualVolume:volume shortSellVolume:volume securityType:text +priceMultiplier
    """),
    "orders": _schema("""
        rootParentOrderNumber:id orderNumber:id! parentOrderNumber:id accountCode:id! securityCode:text exchange:text
        destination:text subDestination:text pricingInstructions:json +state orderState:text lastAction:text
        actionStatus:text orderVolume:volume orderPrice:price remainingVolume:volume doneVolumeTotal:volume
        doneValueTotal:value averagePrice:price lifetime:text currency:text expiryDateTime:exchange_time
        stateDescription:text createDateTime:exchange_time updateDateTime:exchange_time destinationOrderNumber:id
        side:text priceMultiplier:multiplier postTradeStatus:text notes:text
    """),
    "order_trades": _schema(
        """
        tradeNumber:id! orderNumber:id! accountCode:id! securityCode:text exchange:text destination:text
        tradeVolume:volume tradePrice:price tradeValue:value tradeDateTime:exchange_time destinationTradeNumber:id
        side:text priceMultiplier:multiplier tradeDateTimeGmt:utc_time
        """,
        time="trade_date_time",
    ),
}
"""Every query's rows, by its name."""
