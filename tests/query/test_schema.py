from __future__ import annotations

import re

import pytest

from openmarkets_provider import queries
from openmarkets_provider.query.adjust import PRICES, VOLUMES
from openmarkets_provider.query.endpoints import BAR_LENGTH, ENDPOINTS
from openmarkets_provider.query.query import schema_of
from openmarkets_provider.query.schema import Kind, snake_case
from tests.support.queries import SCHEMAS

PAGE = {
    "securities": """
        securityCode, exchange, securityDescription, securityType, firstListedDate, lastListedDate, issuerCode,
        issuerExchange, issuerName, gicsCode, isin, sedol, cusip
    """,
    "security_information": """
        securityCode, exchange, securityType, securityDescription, currencyCode, isin, lotSize, maturityDate,
        exerciseDate, exercisePrice, callOrPut, sharesPerContract, priceMultiplier, minimumPriceStep,
        underlyingInstrumentCode, underlyingInstrumentExchange
    """,
    "quotes": """
        securityCode, exchange, dataSource, askCount, askPrice, askVolume, bidCount, bidPrice, bidVolume, totalVolume,
        totalValue, highPrice, lastPrice, lowPrice, matchPrice, matchVolume, marketValue, marketVolume, movement,
        openPrice, quotationBasisCode, companyReportCode, tradingStatus, tradeCount, tradeDateTime, updateDateTime,
        previousClosePrice, priceMultiplier, marketVwap
    """,
    "depth": """
        askPrice, askVolume, askOrderCount, askDataSources, bidPrice, bidVolume, bidOrderCount, bidDataSources
    """,
    "time_series": """
        openPrice, highPrice, lowPrice, closePrice, totalVolume, totalValue, tradeCount, timeSeriesDate, marketVwap,
        adjustmentFactor
    """,
    "intraday_time_series": """
        openPrice, highPrice, lowPrice, closePrice, totalVolume, totalValue, tradeCount, timeSeriesDateTime
    """,
    "trades": """
        securityCode, exchange, dataSource, tradeNumber, tradeGmtDateTime, tradePrice, tradeVolume, tradeValue,
        tradeDateTime, conditionCodes, reason
    """,
    "accounts": "accountCode, accountName, accountDesignation",
    "portfolio_links": "accountCode, portfolioCode, accessType, linkRemoved, linkSequenceNumber",
    "portfolio_details": "portfolioCode, portfolioName, portfolioCashCode",
    "cash": """
        portfolioCode, accountCode, portfolioCashCode, portfolioCashName, currencyCode, createDateTime, updateDateTime,
        cashBalance, netCash, inMarketBuyValue, inMarketSellValue, netUnsettledValueToday, glv, freeEquity,
        totalInitialMargin, totalCfdRealisedProfit, totalCfdUnrealisedProfit, totalNonCfdMarketValue, trustBalance
    """,
    "positions": """
        accountCode, portfolioCode, securityCode, exchange, underlyingSecurityCode, underlyingExchange, createDateTime,
        updateDateTime, volumeStartOfDay, averagePriceStartOfDay, averagePrice, buyVolume, sellVolume, availableVolume,
        costValue, marketValue, totalProfit, todayProfit, closedProfit, actualVolume, shortSellVolume, securityType
    """,
    "orders": """
        rootParentOrderNumber, orderNumber, parentOrderNumber, accountCode, securityCode, exchange, destination,
        subDestination, pricingInstructions, orderState, lastAction, actionStatus, orderVolume, orderPrice,
        remainingVolume, doneVolumeTotal, doneValueTotal, averagePrice, lifetime, currency, expiryDateTime,
        stateDescription, createDateTime, updateDateTime, destinationOrderNumber, side, priceMultiplier,
        postTradeStatus, notes
    """,
    "order_trades": """
        tradeNumber, orderNumber, accountCode, securityCode, exchange, destination, tradeVolume, tradePrice, tradeValue,
        tradeDateTime, destinationTradeNumber, side, priceMultiplier, tradeDateTimeGmt
    """,
}
"""The fields that the API page lists for each reply."""
SECURITY = {"security_code", "exchange", "data_source"}
MULTIPLIER = {"price_multiplier", "price_multiplier_assumed"}
OF_PRICES = MULTIPLIER | {"currency"}
ADDED = {
    "security_information": {"price_multiplier_assumed"},
    "quotes": {"price_multiplier_assumed", "currency"},
    "depth": SECURITY | OF_PRICES | {"level"},
    "time_series": SECURITY | OF_PRICES | {"frequency"},
    "intraday_time_series": SECURITY | OF_PRICES | {"interval"},
    "trades": OF_PRICES,
    "positions": OF_PRICES,
    "orders": {"price_multiplier_assumed", "state"},
    "order_trades": {"price_multiplier_assumed", "currency"},
}
"""The columns that the page does not list."""
ADJUSTED = {f"adjusted_{name}" for name in ("open_price", "high_price", "low_price", "close_price", "total_volume")}
RANGED = {"time_series", "intraday_time_series", "trades", "order_trades"}
EVERY = [(name, field) for name, schema in SCHEMAS.items() for field in schema.fields]
EVERY_IDS = [f"{name}-{field.name}" for name, field in EVERY]


def listed(name: str) -> list[str]:
    return re.findall(r"\w+", PAGE[name])


def test_every_query_but_the_generic_one_has_one_schema():
    made_by_functions = {name for name in queries.__all__ if name.islower()} - {"request"}
    assert set(SCHEMAS) == set(PAGE) == made_by_functions
    assert set(ENDPOINTS) == set(SCHEMAS) | {"create_order", "amend_order", "cancel_order"}


@pytest.mark.parametrize("name", PAGE)
def test_a_schema_has_the_fields_that_the_page_lists_and_the_added_columns_and_nothing_else(name: str):
    fields = SCHEMAS[name].fields
    assert sorted(field.api for field in fields if field.api is not None) == sorted(listed(name))
    assert {field.name for field in fields if field.api is None} == ADDED.get(name, set())


@pytest.mark.parametrize(
    ("adjusted", "more"),
    [
        (False, set()),
        ("False", set()),
        (True, ADJUSTED),
        ("True", ADJUSTED),
        ("event_divide", ADJUSTED),
        ("{{ params.adjusted }}", ADJUSTED),
    ],
)
def test_adjusted_bars_have_more_columns(adjusted: bool | str, more: set[str]):
    query = queries.time_series("BHP", start="2026-01-05", end="2026-01-06", adjusted=adjusted)
    schema = schema_of(query)
    assert schema.names - SCHEMAS["time_series"].names == more
    assert schema.key == SCHEMAS["time_series"].key
    assert [field.name for field in schema.fields if field.kind is Kind.ADJUSTED] == [
        name for name in (*PRICES, *VOLUMES) if more
    ]


@pytest.mark.parametrize(
    ("name", "length"), [("time_series", "frequency"), ("intraday_time_series", "interval"), ("trades", None)]
)
def test_the_length_of_a_bar_is_part_of_its_key(name: str, length: str | None):
    assert [part for part in SCHEMAS[name].key if part in BAR_LENGTH] == [length] * (length is not None)
    assert "exchange" in SCHEMAS[name].key


@pytest.mark.parametrize("name", PAGE)
def test_a_row_with_prices_has_their_currency(name: str):
    schema = SCHEMAS[name]
    assert bool(schema.names & {"currency", "currency_code"}) == (bool(schema.price_api_names) or name == "cash")


@pytest.mark.parametrize("name", PAGE)
def test_no_two_columns_have_one_name(name: str):
    names = [field.name for field in SCHEMAS[name].fields]
    assert len(names) == len(set(names)) == len(SCHEMAS[name].names)


@pytest.mark.parametrize(("name", "field"), EVERY, ids=EVERY_IDS)
def test_a_column_is_named_as_the_field_in_snake_case(name: str, field):
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", field.name)
    if field.api is not None:
        assert field.name.replace("_", "") == field.api.lower()
        assert field.name.count("_") == sum(letter.isupper() for letter in field.api)


@pytest.mark.parametrize(
    ("api_name", "name"),
    [
        ("lastPrice", "last_price"),
        ("tradeDateTimeGmt", "trade_date_time_gmt"),
        ("isin", "isin"),
        ("totalCfdRealisedProfit", "total_cfd_realised_profit"),
        ("ISINCode", "isin_code"),
        ("priceAUD", "price_aud"),
        ("level2Price", "level2_price"),
        ("last_price", "last_price"),
        ("", ""),
    ],
)
def test_snake_case(api_name: str, name: str):
    assert snake_case(api_name) == name


@pytest.mark.parametrize("name", PAGE)
def test_what_identifies_a_row_is_known(name: str):
    schema = SCHEMAS[name]
    assert schema.key
    assert set(schema.key) <= schema.names


@pytest.mark.parametrize("name", PAGE)
def test_a_query_with_a_range_says_which_column_it_goes_by(name: str):
    schema = SCHEMAS[name]
    assert (schema.time is not None) == (name in RANGED)
    if schema.time is not None:
        (kind,) = [field.kind for field in schema.fields if field.name == schema.time]
        assert kind is (Kind.DATE if name == "time_series" else Kind.EXCHANGE_TIME)


@pytest.mark.parametrize("name", PAGE)
def test_a_row_with_prices_has_their_multiplier(name: str):
    schema = SCHEMAS[name]
    assert ("price_multiplier" in schema.names) == bool(schema.price_api_names)
    assert ("price_multiplier_assumed" in schema.names) == bool(schema.price_api_names)
    assert ("priceMultiplier" in schema.by_api_name) == ("priceMultiplier" in listed(name))


@pytest.mark.parametrize(("name", "field"), EVERY, ids=EVERY_IDS)
def test_the_kind_of_a_field_is_what_its_name_says(name: str, field):
    api = field.api or ""
    volume = Kind.QUANTITY if ENDPOINTS[name].api == "oms" else Kind.VOLUME
    expected = {
        r"\w*(?:Price|PriceStartOfDay|Vwap)|movement|minimumPriceStep": {Kind.PRICE},
        r"\w*(?:Value|Profit|Cash|Balance|Margin|ValueTotal|ValueToday|Equity)|glv": {Kind.VALUE},
        r"\w*Volume(?:Total|StartOfDay)?|volumeStartOfDay|lotSize|sharesPerContract": {volume},
        r"\w*Count": {Kind.COUNT},
        r"\w*Gmt\w*": {Kind.UTC_TIME},
        r"(?!.*Gmt)\w*DateTime": {Kind.EXCHANGE_TIME},
        r"\w*Date": {Kind.DATE},
        r"\w*Number|accountCode|portfolioCode|portfolioCashCode": {Kind.ID},
        r"priceMultiplier": {Kind.MULTIPLIER},
        r"linkRemoved": {Kind.BOOLEAN},
        r"adjustmentFactor": {Kind.NUMBER},
        r"\w*DataSources|conditionCodes|pricingInstructions": {Kind.JSON},
    }
    kinds = [kind for pattern, kind in expected.items() if re.fullmatch(pattern, api)]
    assert len(kinds) <= 1
    if api:
        assert field.kind in (kinds[0] if kinds else {Kind.TEXT, Kind.ID})


def test_every_kind_names_a_type():
    assert {kind.type for kind in Kind} == {"str", "int", "Decimal", "bool", "date", "datetime", "any"}
    assert {kind.name for kind in Kind if not kind.unit} == {"TEXT", "INTEGER", "BOOLEAN"}
