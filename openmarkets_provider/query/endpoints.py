"""The endpoints: one record for each call of the public APIs, with the query that makes it.

Whether a call may be repeated depends on the endpoint, not on its HTTP method. Quotes are a POST that only reads;
orders are a POST that must never be sent twice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import unquote

from openmarkets_provider.query.schema import Schema, read_schema

APIS = ("market_data", "news", "oms")
"""The APIs by their names in queries."""
MAX_SECURITIES = 1000
"""Most securities in one call. Public for security information, inferred for quotes."""
MAX_PORTFOLIOS = 1000
"""Most portfolios in one call. Inferred from the limit for securities."""
MAX_DAYS = {1: 7, 2: 7, 3: 7, 4: 7, 5: 7, 6: 7, 10: 30, 12: 30, 15: 30, 20: 30, 30: 30, 60: 60}
"""Longest range of one call for intraday bars, in exchange days, by the interval of the bars in minutes."""
RANGE = ("start", "end")
"""The arguments of a query with a range."""
BAR_LENGTH = ("frequency", "interval")
"""The arguments for the length of a bar; the columns have the same names."""
_SUBJECT_ARGUMENTS = {
    None: (),
    "securities": ("securities", "exchange", "on_invalid"),
    "accounts": ("accounts", "portfolios"),
    "portfolios": ("accounts", "portfolios"),
}
"""The arguments that select what a query asks about, by subject."""


@dataclass(frozen=True)
class Endpoint:
    """One call of an API, and the query that makes it.

    :ivar name: the name of the query.
    :ivar api: ``market_data``, ``news`` or ``oms``; decides host and OAuth scope.
    :ivar method: HTTP method.
    :ivar path: path below the API's base URL; ``{name}`` stands for one path segment: the code that the call is about.
    :ivar subject: the argument that names what the query asks about: ``securities``, ``accounts`` or ``portfolios``;
        None if one call returns everything.
    :ivar max_codes: most codes of the subject in one call; None if the path takes a single one.
    :ivar limit_inferred: ``max_codes`` is inferred, not documented.
    :ivar sends: the query string of a GET or the JSON body of a POST. ``{argument}`` stands for the value of an
        argument, limited to the codes and the range of one call.
    :ivar max_days: longest range of one call in exchange days, one number or a number for each ``interval``; None if no
        limit is known.
    :ivar records: the field of the reply that has the records; None if the reply is the list itself.
    :ivar columns: the columns of the rows, as :func:`~openmarkets_provider.query.schema.read_schema` reads them;
        empty if no query makes this call.
    :ivar adds: columns that an argument adds, by argument, in the same notation. The argument is not sent.
    :ivar time: the column that the range selects rows by; None if the query has no range.
    :ivar safe_to_repeat: True if sending the call twice changes nothing.
    """

    name: str
    api: str
    method: str
    path: str
    subject: str | None = None
    max_codes: int | None = None
    limit_inferred: bool = False
    sends: Mapping[str, str] = field(default_factory=dict)
    max_days: int | Mapping[int, int] | None = None
    records: str | None = None
    columns: str = ""
    adds: Mapping[str, str] = field(default_factory=dict)
    time: str | None = None
    safe_to_repeat: bool = True

    @cached_property
    def arguments(self) -> tuple[str, ...]:
        """The arguments of the query, in order."""
        sent = (value[1:-1] for value in self.sends.values() if value.startswith("{"))
        range_arguments = RANGE if self.time else ()
        price_arguments = ("on_missing_multiplier",) if self.schema.price_api_names else ()
        subject_arguments = _SUBJECT_ARGUMENTS[self.subject]
        last = (*price_arguments, "on_missing_field", "raw")
        return tuple(dict.fromkeys((*subject_arguments, *range_arguments, *sent, *self.adds, *last)))

    @cached_property
    def schema(self) -> Schema:
        """The columns of the query's rows, without those that an argument adds."""
        return read_schema(self.columns, self.time)

    def schema_for(self, arguments: Mapping[str, Any]) -> Schema:
        """Return the columns of a query's rows.

        :param arguments: of the query; an unrendered template counts as set.
        """
        added = [
            columns for argument, columns in self.adds.items() if arguments.get(argument) not in (None, False, "False")
        ]
        return read_schema(" ".join((self.columns, *added)), self.time)

    @cached_property
    def path_parts(self) -> list[str]:
        """The path, split at the code: ``code.join(path_parts)`` is a concrete path."""
        return re.split(r"\{\w+\}", self.path)

    @cached_property
    def path_pattern(self) -> re.Pattern[str]:
        """The pattern that every concrete path of this endpoint matches."""
        return re.compile("[^/]+".join(map(re.escape, self.path_parts)))


ENDPOINTS: Mapping[str, Endpoint] = {
    endpoint.name: endpoint
    for endpoint in (
        Endpoint(
            "securities",
            "market_data",
            "GET",
            "securities/v1",
            sends={"exchanges": "{exchange}"},
            columns="""
                securityCode:text! exchange:text! securityDescription:text securityType:text firstListedDate:date
                lastListedDate:date issuerCode:text issuerExchange:text issuerName:text gicsCode:id isin:text
                sedol:text cusip:text
            """,
        ),
        Endpoint(
            "security_information",
            "market_data",
            "POST",
            "securities/information/v2",
            subject="securities",
            max_codes=MAX_SECURITIES,
            sends={"securities": "{securities}"},
            columns="""
                securityCode:text! exchange:text! securityType:text securityDescription:text currencyCode:text
                isin:text lotSize:volume maturityDate:date exerciseDate:date exercisePrice:price callOrPut:text
                sharesPerContract:volume priceMultiplier:multiplier minimumPriceStep:price
                underlyingInstrumentCode:text underlyingInstrumentExchange:text
            """,
        ),
        Endpoint(
            "quotes",
            "market_data",
            "POST",
            "pricing/quotes/v3",
            subject="securities",
            max_codes=MAX_SECURITIES,
            limit_inferred=True,
            sends={"securities": "{securities}"},
            records="quotes",
            columns="""
                securityCode:text! exchange:text! dataSource:text! askCount:count askPrice:price askVolume:volume
                bidCount:count bidPrice:price bidVolume:volume totalVolume:volume totalValue:value highPrice:price
                lastPrice:price lowPrice:price matchPrice:price matchVolume:volume marketValue:value
                marketVolume:volume movement:price openPrice:price quotationBasisCode:text companyReportCode:text
                tradingStatus:text tradeCount:count tradeDateTime:exchange_time updateDateTime:exchange_time
                previousClosePrice:price priceMultiplier:multiplier marketVwap:price +currency
            """,
        ),
        Endpoint(
            "depth",
            "market_data",
            "GET",
            "pricing/depth/{security}/v1",
            subject="securities",
            sends={"askLevelMax": "{levels}", "bidLevelMax": "{levels}", "groupBy": "Price"},
            columns="""
                +securityCode +exchange +dataSource +level askPrice:price askVolume:volume askOrderCount:count
                askDataSources:json bidPrice:price bidVolume:volume bidOrderCount:count bidDataSources:json
                +currency +priceMultiplier
            """,
        ),
        Endpoint(
            "time_series",
            "market_data",
            "GET",
            "pricing/timeseries/{security}/v2",
            subject="securities",
            sends={"frequency": "{frequency}", "dateFrom": "{start}", "dateTo": "{end}"},
            columns="""
                +securityCode +exchange +dataSource +frequency timeSeriesDate:date! openPrice:price highPrice:price
                lowPrice:price closePrice:price totalVolume:volume totalValue:value tradeCount:count
                marketVwap:price adjustmentFactor:number +currency +priceMultiplier
            """,
            adds={
                "adjusted": """
                    +adjustedOpenPrice +adjustedHighPrice +adjustedLowPrice +adjustedClosePrice +adjustedTotalVolume
                """
            },
            time="time_series_date",
        ),
        Endpoint(
            "intraday_time_series",
            "market_data",
            "GET",
            "pricing/timeseriesintraday/{security}/v1",
            subject="securities",
            sends={
                "frequency": "Minutes",
                "consolidationInterval": "{interval}",
                "dateTimeFrom": "{start}",
                "dateTimeTo": "{end}",
            },
            max_days=MAX_DAYS,
            columns="""
                +securityCode +exchange +dataSource +interval timeSeriesDateTime:exchange_time! openPrice:price
                highPrice:price lowPrice:price closePrice:price totalVolume:volume totalValue:value
                tradeCount:count +currency +priceMultiplier
            """,
            time="time_series_date_time",
        ),
        Endpoint(
            "trades",
            "market_data",
            "POST",
            "pricing/trades/{security}/v2",
            subject="securities",
            sends={"dateTimeFrom": "{start}", "dateTimeTo": "{end}"},
            max_days=1,
            columns="""
                securityCode:text! exchange:text! dataSource:text! tradeNumber:id! tradeGmtDateTime:utc_time
                tradeDateTime:exchange_time! tradePrice:price tradeVolume:volume tradeValue:value
                conditionCodes:json reason:text +currency +priceMultiplier
            """,
            time="trade_date_time",
        ),
        Endpoint(
            "accounts",
            "oms",
            "GET",
            "accounts/v1",
            columns="accountCode:id! accountName:text accountDesignation:text",
        ),
        Endpoint(
            "portfolio_links",
            "oms",
            "GET",
            "accounts/portfoliolinks/v1",
            columns="""
                accountCode:id! portfolioCode:id! accessType:text linkRemoved:boolean linkSequenceNumber:id!
            """,
        ),
        Endpoint(
            "portfolio_details",
            "oms",
            "POST",
            "portfolios/details/by-portfolio/v2",
            subject="portfolios",
            max_codes=MAX_PORTFOLIOS,
            limit_inferred=True,
            sends={
                "portfolioCodes": "{portfolios}",
                "includePortfoliosWithSameCashAccount": "{include_same_cash_account}",
            },
            columns="portfolioCode:id! portfolioName:text portfolioCashCode:id",
        ),
        Endpoint(
            "cash",
            "oms",
            "POST",
            "portfolios/cash/by-portfolio/v2",
            subject="portfolios",
            max_codes=MAX_PORTFOLIOS,
            limit_inferred=True,
            sends={"portfolioCodes": "{portfolios}"},
            columns="""
                portfolioCode:id! accountCode:id! portfolioCashCode:id! portfolioCashName:text currencyCode:text!
                createDateTime:exchange_time updateDateTime:exchange_time cashBalance:value netCash:value
                inMarketBuyValue:value inMarketSellValue:value netUnsettledValueToday:value glv:value
                freeEquity:value totalInitialMargin:value totalCfdRealisedProfit:value
                totalCfdUnrealisedProfit:value totalNonCfdMarketValue:value trustBalance:value
            """,
        ),
        Endpoint(
            "positions",
            "oms",
            "POST",
            "portfolios/positions/v2",
            subject="portfolios",
            max_codes=MAX_PORTFOLIOS,
            limit_inferred=True,
            sends={"portfolioCodes": "{portfolios}"},
            columns="""
                accountCode:id! portfolioCode:id! securityCode:text! exchange:text! underlyingSecurityCode:text
                underlyingExchange:text createDateTime:exchange_time updateDateTime:exchange_time
                volumeStartOfDay:quantity averagePriceStartOfDay:price averagePrice:price buyVolume:quantity
                sellVolume:quantity availableVolume:quantity costValue:value marketValue:value totalProfit:value
                todayProfit:value closedProfit:value actualVolume:quantity shortSellVolume:quantity securityType:text
                +currency +priceMultiplier
            """,
        ),
        Endpoint(
            "orders",
            "oms",
            "GET",
            "orders/by-account/{account}/v4",
            subject="accounts",
            sends={"orderFilter": "AllOrdersForTheLast3Days", "includeChildOrders": "{include_child_orders}"},
            columns="""
                rootParentOrderNumber:id orderNumber:id! parentOrderNumber:id accountCode:id! securityCode:text
                exchange:text destination:text subDestination:text pricingInstructions:json +state orderState:text
                lastAction:text actionStatus:text orderVolume:quantity orderPrice:price remainingVolume:quantity
                doneVolumeTotal:quantity doneValueTotal:value averagePrice:price lifetime:text currency:text
                expiryDateTime:exchange_time stateDescription:text createDateTime:exchange_time
                updateDateTime:exchange_time destinationOrderNumber:id side:text priceMultiplier:multiplier
                postTradeStatus:text notes:text
            """,
        ),
        Endpoint(
            "order_trades",
            "oms",
            "GET",
            "trades/by-account/{account}/v1",
            subject="accounts",
            sends={"dateTimeFrom": "{start}", "dateTimeTo": "{end}"},
            columns="""
                tradeNumber:id! orderNumber:id! accountCode:id! securityCode:text exchange:text destination:text
                tradeVolume:quantity tradePrice:price tradeValue:value tradeDateTime:exchange_time
                destinationTradeNumber:id side:text priceMultiplier:multiplier tradeDateTimeGmt:utc_time
                +currency
            """,
            time="trade_date_time",
        ),
        Endpoint("create_order", "oms", "POST", "orders/v4", safe_to_repeat=False),
        Endpoint("amend_order", "oms", "PUT", "orders/{order}/v4", safe_to_repeat=False),
        Endpoint("cancel_order", "oms", "DELETE", "orders/{order}/v1", safe_to_repeat=False),
    )
}
"""Every public endpoint, by name."""


def is_order_call(api: str, method: str, path: str) -> bool:
    """Tell whether a call creates, amends or cancels an order, in any version of the call."""
    parts = _parts(path)
    if api != "oms" or not parts or parts[0] != "orders":
        return False
    is_create = len(parts) == 2 and re.fullmatch(r"v\d+", parts[1]) is not None
    return is_create if method == "POST" else method != "GET"


def _parts(path: str) -> list[str]:
    """Return the segments of a path, decoded and in lower case."""
    return [part for part in unquote(path).lower().split("/") if part]


def find_endpoint(api: str, method: str, path: str) -> Endpoint | None:
    """Return the public endpoint that a concrete path belongs to, or None.

    Letter case, percent-encoding and extra slashes are ignored, because a server may ignore them too.
    """
    path = "/".join(_parts(path))
    for endpoint in ENDPOINTS.values():
        if (endpoint.api, endpoint.method) == (api, method) and endpoint.path_pattern.fullmatch(path):
            return endpoint
    return None
