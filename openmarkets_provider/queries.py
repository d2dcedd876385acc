"""Functions that return a query: what to ask of the Openmarkets APIs.

A query is plain data. It can contain Jinja templates and results of upstream tasks, be mapped with
``.expand(query=[...])`` and be stored in XCom. Literal arguments are checked when the DAG is parsed, and all arguments
when the query runs.

**Securities** are written ``CODE.EXCHANGE@DATASOURCE``, such as ``BHP.ASX@TM``. ``BHP`` and ``BHP.ASX`` get the
exchange ``ASX`` and the data source ``TM``. Pass a list, or a text with commas or blanks; duplicates count once.
Or set ``exchange`` for all securities that it lists during the range (today, if the query has no range). It is inferred
that the API lists delisted securities; otherwise past ranges lack them (survivorship bias).

**Unknown securities**: a security is unknown if the API says so, if its call returns 404 (inferred), or if it has
neither rows nor security information. By default (``on_invalid="error"``) it raises OpenmarketsQueryError, or
OpenmarketsNotFound for a 404. With ``"warn"`` it is left out, and a warning is logged.

**Accounts and portfolios**: pass account codes or portfolio codes, or neither (``"*"``) for all that the client sees.
None is an error, so that an empty template does not query every account. Active links connect the two: orders of a
portfolio are all orders of its accounts, and cash of an account is all cash of its portfolios.

**Ranges** are half-open, [start, end). A bound is a date, a datetime, an ISO 8601 text, or a template such as
``"{{ data_interval_start }}"``. Without an offset it is exchange time (Australia/Sydney); a date is midnight there.
Use the data interval as it is: ``{{ ds }}`` is the UTC date, often the day before in Sydney. A literal range of market
data without a trading day causes a Python warning.

**Sessions**: ``session="2026-04-02"`` is one whole trading day, instead of ``start`` and ``end``. In a DAG with
partitions, use ``session="{{ partition_key }}"``. A day without trading is an error.

**Rows**: every query except ``request`` returns a list of dicts with the same columns. Names are in snake_case, prices
are Decimal in the currency's main unit, times are aware datetimes in UTC, dates are dates. What the API leaves out is
None; unknown fields are kept. ``raw=True`` returns the API's own records: native prices (commonly cents), times as the
API writes them, and possibly a few records outside the range. Raw depth and bars do not name their security.

**Price multipliers** come with the records or from security information. If neither has one, the unit of the prices is
unknown: cents, or index points, which are worth 100 times more. By default (``on_missing_multiplier="error"``) this
raises OpenmarketsQueryError, or leaves the security out with ``on_invalid="warn"``. ``"cents"`` uses 0.01, logs a
warning and sets ``price_multiplier_assumed``.

**Missing fields**: a field that no record of a run has, not even as null, may have been renamed or removed. Its column
is None in all rows, and a load overwrites older values with None. By default (``on_missing_field="warn"``) the run ends
with a warning that names such fields. With ``"error"`` it raises OpenmarketsInvalidResponse, and a load writes nothing.
``raw=True`` skips this check, and ``on_missing_multiplier`` covers ``priceMultiplier``.

**Currencies**: rows with prices have ``currency`` from security information, or None. Security information and cash
have the API's ``currency_code``, and orders the currency that the API sends. Quotes look up currencies once per
process, so that a poll is one call. Own trades have None, unless their multiplier had to be looked up.

A malformed literal argument raises OpenmarketsQueryError, which names it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from openmarkets_provider.query.arguments import ALL, to_list
from openmarkets_provider.query.exchange_time import to_text
from openmarkets_provider.query.query import SESSION_RANGE, Query, check, warn_without_session

__all__ = [
    "Query",
    "accounts",
    "cash",
    "depth",
    "intraday_time_series",
    "order_trades",
    "orders",
    "portfolio_details",
    "portfolio_links",
    "positions",
    "quotes",
    "request",
    "securities",
    "security_information",
    "time_series",
    "trades",
]

Codes = Sequence[str] | str | None
Moment = date | str
"""A date, a datetime, or an ISO 8601 text."""


def request(
    api: str,
    method: str,
    path: str,
    params: Mapping[str, Any] | None = None,
    json: Any = None,
    safe_to_repeat: bool | None = None,
) -> Query:
    """Make any call of an API, by the path that your API plan documents.

    Returns the decoded JSON of the reply, unchanged: prices in native units (commonly cents), times as the API writes
    them. An empty reply is None.

    :param api: ``market_data``, ``news`` or ``oms``: decides the host and the OAuth scope.
    :param method: ``GET``, ``POST``, ``PUT``, ``PATCH`` or ``DELETE``.
    :param path: relative to the API's base URL, such as ``securities/v1``.
    :param params: query string: text, number or boolean by name, or a list of them.
    :param json: JSON body; not with GET. A number that a template renders is sent as text, such as ``"100"``. With
        ``render_template_as_native_obj=True`` in the DAG it stays a number.
    :param safe_to_repeat: whether the call may be sent again after a failure. None means True for every GET and for the
        public POSTs that only read. A call that creates, amends or cancels must never be repeated.
    :raises OpenmarketsQueryError: an argument is malformed.
    """
    return _query("request", locals())


def securities(exchange: str = "ASX", *, on_missing_field: str = "warn", raw: bool = False) -> Query:
    """List the securities of an exchange.

    Makes one call, ``GET securities/v1`` of the market data API (scope ``market-data-api``).

    :param exchange: exchange code.
    :param on_missing_field: see the module.
    :param raw: return the API's own records instead of rows.
    """
    return _query("securities", locals())


def security_information(
    securities: Codes = None,
    *,
    exchange: str | None = None,
    on_invalid: str = "error",
    on_missing_multiplier: str = "error",
    on_missing_field: str = "warn",
    raw: bool = False,
) -> Query:
    """Get properties of securities that rarely change: lot size, option terms, price multiplier.

    Makes one call, ``POST securities/information/v2`` of the market data API, for each 1000 securities.

    Rows are in the order of the replies.

    :param securities: see the module.
    :param exchange: all securities of this exchange, instead of ``securities``.
    :param on_invalid: see the module.
    :param on_missing_multiplier: see the module.
    :param on_missing_field: see the module.
    :param raw: return the API's own records instead of rows.
    """
    return _query("security_information", locals())


def quotes(
    securities: Codes = None,
    *,
    exchange: str | None = None,
    on_invalid: str = "error",
    on_missing_multiplier: str = "error",
    on_missing_field: str = "warn",
    raw: bool = False,
) -> Query:
    """Get current quotes.

    Makes one call, ``POST pricing/quotes/v3`` of the market data API, for each 1000 securities (inferred from the limit
    of security information). ``POST securities/information/v2`` follows for currencies that are not known yet.

    Rows are in the order of the replies.

    :param securities: see the module.
    :param exchange: all securities of this exchange, instead of ``securities``.
    :param on_invalid: see the module.
    :param on_missing_multiplier: see the module.
    :param on_missing_field: see the module.
    :param raw: return the API's own records instead of rows.
    """
    return _query("quotes", locals())


def depth(
    securities: Codes = None,
    *,
    exchange: str | None = None,
    levels: int = 10,
    on_invalid: str = "error",
    on_missing_multiplier: str = "error",
    on_missing_field: str = "warn",
    raw: bool = False,
) -> Query:
    """Get the order book by price.

    Makes one call, ``GET pricing/depth/{security}/v1`` of the market data API, for each security. Before them,
    ``POST securities/information/v2`` gets the price multipliers.

    A row is one level. It is inferred that level 1 is the best price.

    :param securities: see the module.
    :param exchange: all securities of this exchange, instead of ``securities``.
    :param levels: maximum number of price levels on each side, 1 to 100.
    :param on_invalid: see the module.
    :param on_missing_multiplier: see the module.
    :param on_missing_field: see the module.
    :param raw: return the API's own records instead of rows.
    """
    return _query("depth", locals())


def time_series(
    securities: Codes = None,
    *,
    start: Moment | None = None,
    end: Moment | None = None,
    session: Moment | None = None,
    exchange: str | None = None,
    frequency: str = "Daily",
    adjusted: bool | str = False,
    on_invalid: str = "error",
    on_missing_multiplier: str = "error",
    on_missing_field: str = "warn",
    raw: bool = False,
) -> Query:
    """Get daily or weekly bars, optionally with prices adjusted for splits and dividends.

    Makes one call, ``GET pricing/timeseries/{security}/v2`` of the market data API, for each security. Before them,
    ``POST securities/information/v2`` gets the price multipliers.

    Rows are in the order of the securities, then of time.

    ``adjusted`` adds ``adjusted_open_price``, ``adjusted_high_price``, ``adjusted_low_price``, ``adjusted_close_price``
    and ``adjusted_total_volume``, all Decimal, computed from ``adjustment_factor``. The meaning of that factor is not
    public. ``True`` means ``cumulative_multiply``, which is inferred: check it on a split that you know.

    A cumulative factor applies to its own bar: ``cumulative_multiply`` gives price x factor, ``cumulative_divide``
    price / factor. These prices are relative to the API's own reference. With ``event_multiply`` and ``event_divide``,
    a factor belongs to the event before its bar, which is the first bar on the new basis (inferred). A price is
    multiplied or divided by the factors of all later bars in the range. These prices are relative to the last bar of
    the range, even if ``end`` is in the past.

    Volumes are adjusted the other way round by the same factor, which does not distinguish a split from a dividend:
    price x volume stays the same. Values are rounded half even to 12 decimals. A bar without a factor has None in these
    columns; with an event method it has no event. A factor of 0 or less raises OpenmarketsInvalidResponse.

    The next event changes the adjusted values of the past: compare only values from one run.

    :param securities: see the module.
    :param start: first exchange day or week, as a date or a time in it.
    :param end: first exchange day or week after the range, as a date or a time in it.
    :param session: one trading day, instead of ``start`` and ``end``.
    :param exchange: all securities of this exchange, instead of ``securities``.
    :param frequency: ``Daily`` or ``Weekly``. Weeks run from Saturday to Friday, and a range contains whole weeks. A
        weekly bar may be dated from Monday to Friday; which day the API uses is not known. A weekend is an error.
    :param adjusted: add adjusted prices and volumes. True means ``cumulative_multiply``, which is inferred. The other
        methods are ``cumulative_divide``, ``event_multiply`` and ``event_divide``.
    :param on_invalid: see the module.
    :param on_missing_multiplier: see the module.
    :param on_missing_field: see the module.
    :param raw: return the API's own records instead of rows.
    """
    return _query("time_series", locals())


def intraday_time_series(
    securities: Codes = None,
    *,
    start: Moment | None = None,
    end: Moment | None = None,
    session: Moment | None = None,
    interval: int,
    exchange: str | None = None,
    on_invalid: str = "error",
    on_missing_multiplier: str = "error",
    on_missing_field: str = "warn",
    raw: bool = False,
) -> Query:
    """Get intraday bars of 1 to 60 minutes.

    Makes one call, ``GET pricing/timeseriesintraday/{security}/v1`` of the market data API, for each security and part
    of the range. A part has up to 7 days for intervals below 10 minutes, 30 days up to 30 minutes, 60 days for 60
    minutes. Before them, ``POST securities/information/v2`` gets the price multipliers.

    Rows are in the order of the securities, then of time. A bar that two calls return appears once. It is inferred that
    the time of a bar is its start. Periods in the future need no call.

    :param securities: see the module.
    :param start: a time in the first bar.
    :param end: a time in the first bar after the range; this bar may be incomplete.
    :param session: one trading day, instead of ``start`` and ``end``.
    :param interval: length of a bar in minutes: 1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30 or 60.
    :param exchange: all securities of this exchange, instead of ``securities``.
    :param on_invalid: see the module.
    :param on_missing_multiplier: see the module.
    :param on_missing_field: see the module.
    :param raw: return the API's own records instead of rows.
    """
    return _query("intraday_time_series", locals())


def trades(
    securities: Codes = None,
    *,
    start: Moment | None = None,
    end: Moment | None = None,
    session: Moment | None = None,
    exchange: str | None = None,
    on_invalid: str = "error",
    on_missing_multiplier: str = "error",
    on_missing_field: str = "warn",
    raw: bool = False,
) -> Query:
    """Get the market's trades.

    Makes one call, ``POST pricing/trades/{security}/v2`` of the market data API, for each security and trading day.
    Before them, ``POST securities/information/v2`` gets the price multipliers.

    Rows are in the order of the securities, then of time. A trade that two calls return appears once. Days without
    trading and days in the future need no call.

    :param securities: see the module.
    :param start: trades from this time on.
    :param end: trades before this time.
    :param session: one trading day, instead of ``start`` and ``end``.
    :param exchange: all securities of this exchange, instead of ``securities``.
    :param on_invalid: see the module.
    :param on_missing_multiplier: see the module.
    :param on_missing_field: see the module.
    :param raw: return the API's own records instead of rows.
    """
    return _query("trades", locals())


def accounts(*, on_missing_field: str = "warn", raw: bool = False) -> Query:
    """List the order accounts that the client sees.

    Makes one call, ``GET accounts/v1`` of the OMS API (scope ``oms-api``).

    :param on_missing_field: see the module.
    :param raw: return the API's own records instead of rows.
    """
    return _query("accounts", locals())


def portfolio_links(*, on_missing_field: str = "warn", raw: bool = False) -> Query:
    """List the links between accounts and portfolios, including removed ones.

    Makes one call, ``GET accounts/portfoliolinks/v1`` of the OMS API.

    :param on_missing_field: see the module.
    :param raw: return the API's own records instead of rows.
    """
    return _query("portfolio_links", locals())


def portfolio_details(
    accounts: Codes = ALL,
    *,
    portfolios: Codes = None,
    include_same_cash_account: bool = False,
    on_missing_field: str = "warn",
    raw: bool = False,
) -> Query:
    """Get names and cash accounts of portfolios.

    Makes one call, ``POST portfolios/details/by-portfolio/v2`` of the OMS API, for each 1000 portfolios (an inferred
    limit). Before them comes ``GET accounts/portfoliolinks/v1``, unless ``portfolios`` is set.

    :param accounts: see the module.
    :param portfolios: instead of ``accounts``.
    :param include_same_cash_account: include portfolios with the same cash account.
    :param on_missing_field: see the module.
    :param raw: return the API's own records instead of rows.
    """
    return _query("portfolio_details", locals())


def cash(
    accounts: Codes = ALL, *, portfolios: Codes = None, on_missing_field: str = "warn", raw: bool = False
) -> Query:
    """Get the cash of portfolios.

    Makes one call, ``POST portfolios/cash/by-portfolio/v2`` of the OMS API, for each 1000 portfolios (an inferred
    limit). Before them comes ``GET accounts/portfoliolinks/v1``, unless ``portfolios`` is set.

    :param accounts: see the module.
    :param portfolios: instead of ``accounts``.
    :param on_missing_field: see the module.
    :param raw: return the API's own records instead of rows.
    """
    return _query("cash", locals())


def positions(
    accounts: Codes = ALL,
    *,
    portfolios: Codes = None,
    on_missing_multiplier: str = "error",
    on_missing_field: str = "warn",
    raw: bool = False,
) -> Query:
    """Get the holdings of portfolios.

    Makes one call, ``POST portfolios/positions/v2`` of the OMS API, for each 1000 portfolios (an inferred limit).
    Before them comes ``GET accounts/portfoliolinks/v1``, unless ``portfolios`` is set. After them,
    ``POST securities/information/v2`` of the market data API gets the price multipliers.

    A client without the scope ``market-data-api`` can't get multipliers: set ``on_missing_multiplier="cents"`` or
    ``raw=True``. It is inferred that average prices are in native units, like other prices.

    :param accounts: see the module.
    :param portfolios: instead of ``accounts``.
    :param on_missing_multiplier: see the module.
    :param on_missing_field: see the module.
    :param raw: return the API's own records instead of rows.
    """
    return _query("positions", locals())


def orders(
    accounts: Codes = ALL,
    *,
    portfolios: Codes = None,
    include_child_orders: bool = True,
    on_missing_multiplier: str = "error",
    on_missing_field: str = "warn",
    raw: bool = False,
) -> Query:
    """List the orders of the last three days.

    Makes one call, ``GET orders/by-account/{account}/v4`` of the OMS API, for each account. Before them comes
    ``GET accounts/portfoliolinks/v1`` if ``portfolios`` is set, or ``GET accounts/v1`` if neither argument is.

    The column ``state`` follows the first of these rules that applies; their order is inferred. ``finished``: all of
    the volume is done. ``failed``: actionStatus is FAILED or DENIED. ``finished``: orderState is INACTIVE, or
    lastAction is CANCEL or PURGE. ``working``: orderState is ACTIVE. ``pending``: anything else. So a cancellation in
    progress counts as finished.

    :param accounts: see the module.
    :param portfolios: instead of ``accounts``.
    :param include_child_orders: include the orders that other orders were split into; exclude them to add up volumes.
    :param on_missing_multiplier: see the module.
    :param on_missing_field: see the module.
    :param raw: return the API's own records instead of rows.
    """
    return _query("orders", locals())


def order_trades(
    accounts: Codes = ALL,
    *,
    start: Moment | None = None,
    end: Moment | None = None,
    session: Moment | None = None,
    portfolios: Codes = None,
    on_missing_multiplier: str = "error",
    on_missing_field: str = "warn",
    raw: bool = False,
) -> Query:
    """List the trades of accounts.

    Makes one call, ``GET trades/by-account/{account}/v1`` of the OMS API, for each account. Before them comes
    ``GET accounts/portfoliolinks/v1`` if ``portfolios`` is set, or ``GET accounts/v1`` if neither argument is.

    :param accounts: see the module.
    :param start: trades from this time on.
    :param end: trades before this time.
    :param session: one trading day, instead of ``start`` and ``end``.
    :param portfolios: instead of ``accounts``.
    :param on_missing_multiplier: see the module.
    :param on_missing_field: see the module.
    :param raw: return the API's own records instead of rows.
    """
    return _query("order_trades", locals())


def _query(endpoint: str, arguments: Mapping[str, Any]) -> Query:
    """Return a query with the arguments of its function: all local variables of that function."""
    if arguments.get("accounts") == ALL and arguments["portfolios"] is not None:
        arguments = {**arguments, "accounts": None}
    # Only a bound of a range may be a date.
    bounds = {name: to_text(arguments[name]) for name in SESSION_RANGE if arguments.get(name) is not None}
    others = {name: to_list(value) for name, value in arguments.items() if name not in SESSION_RANGE}
    query = check({"endpoint": endpoint} | others | bounds)
    warn_without_session(query)
    return query
