"""What to ask of the Openmarkets APIs: functions that return a query.

A query is plain data, for the hook, the operator and the sensor. It can hold Jinja templates and results of upstream
tasks, be mapped with ``.expand(query=[...])``, and be kept in XCom. Literal arguments are checked while the DAG is
parsed, and everything again when the query runs.

**Securities** are written ``CODE.EXCHANGE@DATASOURCE``, such as ``BHP.ASX@TM``. ``BHP`` and ``BHP.ASX`` are completed
with the exchange ``ASX`` and the data source ``TM``. Name them in a list or in a text with commas or blanks, or set
``exchange`` instead for all securities that it lists at the time of the range (today, where a query has no range).
That the API lists delisted securities is inferred; if it does not, a past range lacks them (survivorship bias).

**Accounts and portfolios**: name account codes or portfolio codes, or leave both out (``"*"``) for all that the client
sees. None is an error: an empty template does not mean all. Active links lead from one kind to the other: orders of a
portfolio are all orders of its accounts, and cash of an account is all cash of its portfolios.

**Ranges** are half-open, [start, end). A bound is a date, a datetime (pendulum's too), an ISO 8601 text, or a template
such as ``"{{ data_interval_start }}"``. Without an offset it is exchange time (Australia/Sydney); a date is midnight
there. Use the data interval as it is: ``{{ ds }}`` is the date in UTC, often the day before in Sydney.
A literal range of market data without a trading day raises a Python warning.

**Sessions**: ``session="2026-04-02"`` is the whole of one trading day, instead of ``start`` and ``end``. In a DAG with
partitions it is ``session="{{ partition_key }}"``. A day on which the exchange does not trade is an error.

**Rows**: every query but ``request`` returns a list of dicts with the same columns: names in snake_case, prices as
Decimal in the currency's main unit (native price x ``price_multiplier``, exact), times as aware datetimes in UTC, dates
as dates. What the API leaves out is None; unknown fields are kept. ``raw=True`` returns the API's own records: native
prices (commonly cents), times as the API writes them, and possibly a few records outside the range.

**Price multipliers** come with the records or from security information. Where nothing supplies one, the unit of the
prices is unknown: cents, or points of an index, 100 times more. Then ``on_missing_multiplier="error"``, the default,
raises OpenmarketsQueryError, or leaves the securities out with ``on_invalid="warn"``; ``cents`` takes 0.01, logs a
warning, and marks the rows in ``price_multiplier_assumed``.

**Missing fields**: a field that no record of a run has, not even as null, may have been renamed or removed. Its column
is None in all rows, and a load overwrites older values with that. So a run ends with a warning that names such fields.
With ``on_missing_field="error"`` it ends with OpenmarketsInvalidResponse, and a load writes nothing. ``raw=True`` has
no columns and no such check. About a missing ``priceMultiplier`` ``on_missing_multiplier`` decides.

**Currencies**: rows with prices have ``currency`` from security information, or None. Security information and cash
have the API's ``currency_code``. Quotes look up currencies once per process, so that polls stay one call. Orders have
what the API sends; own trades None, unless their multiplier had to be looked up.

A malformed literal argument raises OpenmarketsQueryError; the text names it.
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

    The result is the decoded JSON of the reply, untouched: prices in native units (commonly cents), times as
    the API writes them. An empty reply is None.

    :param api: ``market_data``, ``news`` or ``oms``: decides the host and the OAuth scope.
    :param method: ``GET``, ``POST``, ``PUT``, ``PATCH`` or ``DELETE``.
    :param path: relative to the API's base URL, such as ``securities/v1``.
    :param params: query string: text, number or boolean by name, or a list of them.
    :param json: JSON body; not with GET. A number that a template renders is sent as text, such as ``"100"``. With
        ``render_template_as_native_obj=True`` in the DAG it stays a number.
    :param safe_to_repeat: whether the call may be sent again after a failure. None: every GET, and the public POSTs
        that only read. A call that creates, amends or cancels must never be repeated.
    :raises OpenmarketsQueryError: an argument is malformed.
    """
    return _query("request", locals())


def securities(exchange: str = "ASX", *, on_missing_field: str = "warn", raw: bool = False) -> Query:
    """List the securities of an exchange.

    Makes one call, ``GET securities/v1`` of the market data API (scope ``market-data-api``).

    :param exchange: exchange code.
    :param on_missing_field: see the module.
    :param raw: the API's own records instead of rows.
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
    """Get the properties of securities that rarely change: lot size, option terms, price multiplier.

    Makes one call of ``POST securities/information/v2`` of the market data API for each 1000 securities. A security
    that is named twice counts once. Rows are in the order of the replies.

    :param securities: see the module.
    :param exchange: all securities of an exchange, instead of ``securities``.
    :param on_invalid: for securities that the API does not know: ``error`` (OpenmarketsQueryError), or ``warn``.
        With ``warn`` they are left out, and a warning is logged.
    :param on_missing_multiplier: see the module.
    :param on_missing_field: see the module.
    :param raw: the API's own records instead of rows.
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

    Makes one call of ``POST pricing/quotes/v3`` of the market data API for each 1000 securities (inferred from the
    limit of security information), and after it ``POST securities/information/v2`` for currencies that the client has
    not looked up yet. A security that is named twice counts once. Rows are in the order of the replies.

    :param securities: see the module.
    :param exchange: all securities of an exchange, instead of ``securities``.
    :param on_invalid: for securities that the API does not know: ``error`` (OpenmarketsQueryError), or ``warn``.
        With ``warn`` they are left out, and a warning is logged.
    :param on_missing_multiplier: see the module.
    :param on_missing_field: see the module.
    :param raw: the API's own records instead of rows.
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

    Makes one call of ``GET pricing/depth/{security}/v1`` of the market data API for each security, and before them
    ``POST securities/information/v2`` for the price multipliers. A row is one level; that level 1 is the best
    price is inferred.

    :param securities: see the module.
    :param exchange: all securities of an exchange, instead of ``securities``.
    :param levels: maximum number of price levels on each side, 1 to 100.
    :param on_invalid: for an unknown security: ``error``, or ``warn``, which leaves it out and logs a warning. A 404
        means unknown (OpenmarketsNotFound; inferred). So does a security without rows that security information lacks
        (OpenmarketsQueryError).
    :param on_missing_multiplier: see the module.
    :param on_missing_field: see the module.
    :param raw: the API's own records instead of rows; they do not name their security.
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
    """Get daily or weekly bars, with prices adjusted for splits and dividends where wanted.

    Makes one call of ``GET pricing/timeseries/{security}/v2`` of the market data API for each security, and before
    them ``POST securities/information/v2`` for the price multipliers. Rows are in the order of the securities, then of
    time.

    ``adjusted`` adds ``adjusted_open_price``, ``adjusted_high_price``, ``adjusted_low_price``, ``adjusted_close_price``
    and ``adjusted_total_volume``, all Decimal, computed from ``adjustment_factor``. What that factor means is not
    public. ``True`` takes ``cumulative_multiply``, which is inferred: check it on a split that you know.

    With ``cumulative_multiply`` the adjusted price is price x factor, with ``cumulative_divide`` price / factor. With
    ``event_multiply`` and ``event_divide`` a factor belongs to the event before its bar, the first one on the new basis
    (inferred): the price is multiplied with, or divided by, the factors of all later bars in the range. So cumulative
    factors make prices relative to the API's own reference, and those of events to the last bar in the range, also
    where ``end`` is in the past.

    Volumes are adjusted the other way round, by the same factor, since it does not tell a split from a dividend: price
    x volume stays as it is. Values are rounded half even to 12 digits after the point. A bar without a factor has None
    in these columns; with a method of events it is a bar without an event. A factor that is not above 0 raises
    OpenmarketsInvalidResponse.

    Adjusted values are as of the run: the next event changes those of the past. What is compared has to come from one
    run.

    :param securities: see the module.
    :param start: the first exchange day or week; a time means the day or week that it is in at the exchange.
    :param end: the exchange day or week after the last one; a time means the day or week that it is in.
    :param session: one trading day, instead of ``start`` and ``end``.
    :param exchange: all securities of an exchange, instead of ``securities``.
    :param frequency: ``Daily`` or ``Weekly``. Weeks go from Saturday to Friday, and a range contains whole weeks. A
        weekly bar may be dated on any day from Monday to Friday; which one the API uses is not known. One that is dated
        on a weekend is an error.
    :param adjusted: add adjusted prices and volumes. True means ``cumulative_multiply``, which is inferred. The other
        methods are ``cumulative_divide``, ``event_multiply`` and ``event_divide``.
    :param on_invalid: for an unknown security: ``error``, or ``warn``, which leaves it out and logs a warning. A 404
        means unknown (OpenmarketsNotFound; inferred). So does a security without rows that security information lacks
        (OpenmarketsQueryError).
    :param on_missing_multiplier: see the module.
    :param on_missing_field: see the module.
    :param raw: the API's own records instead of rows; they do not name their security.
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

    Makes calls of ``GET pricing/timeseriesintraday/{security}/v1`` of the market data API, and before them
    ``POST securities/information/v2`` for the price multipliers. One call covers up to 7 days for intervals below 10
    minutes, 30 days for 10 to 30 minutes, 60 days for 60 minutes; periods in the future take no call. Rows are in the
    order of the securities, then of time. A bar that two calls return appears once. That the time of a bar is its start
    is inferred.

    :param securities: see the module.
    :param start: bars from the bar on that this time is in.
    :param end: bars before the bar that this time is in, which may not be complete yet.
    :param session: one trading day, instead of ``start`` and ``end``.
    :param interval: length of a bar in minutes: 1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30 or 60.
    :param exchange: all securities of an exchange, instead of ``securities``.
    :param on_invalid: for an unknown security: ``error``, or ``warn``, which leaves it out and logs a warning. A 404
        means unknown (OpenmarketsNotFound; inferred). So does a security without rows that security information lacks
        (OpenmarketsQueryError).
    :param on_missing_multiplier: see the module.
    :param on_missing_field: see the module.
    :param raw: the API's own records instead of rows; they do not name their security.
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

    Makes one call of ``POST pricing/trades/{security}/v2`` of the market data API for each security and exchange day
    (none for days in the future), and before them ``POST securities/information/v2`` for the price multipliers. Rows
    are in the order of the securities, then of time. A trade that two calls return appears once.

    :param securities: see the module.
    :param start: trades from this time on.
    :param end: trades before this time.
    :param session: one trading day, instead of ``start`` and ``end``.
    :param exchange: all securities of an exchange, instead of ``securities``.
    :param on_invalid: for an unknown security: ``error``, or ``warn``, which leaves it out and logs a warning. A 404
        means unknown (OpenmarketsNotFound; inferred). So does a security without rows that security information lacks
        (OpenmarketsQueryError).
    :param on_missing_multiplier: see the module.
    :param on_missing_field: see the module.
    :param raw: the API's own records instead of rows.
    """
    return _query("trades", locals())


def accounts(*, on_missing_field: str = "warn", raw: bool = False) -> Query:
    """List the order accounts that the client sees.

    Makes one call, ``GET accounts/v1`` of the OMS API (scope ``oms-api``).

    :param on_missing_field: see the module.
    :param raw: the API's own records instead of rows.
    """
    return _query("accounts", locals())


def portfolio_links(*, on_missing_field: str = "warn", raw: bool = False) -> Query:
    """List the links between accounts and portfolios, removed ones too.

    Makes one call, ``GET accounts/portfoliolinks/v1`` of the OMS API.

    :param on_missing_field: see the module.
    :param raw: the API's own records instead of rows.
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

    Makes one call of ``POST portfolios/details/by-portfolio/v2`` of the OMS API for each 1000 portfolios (an inferred
    limit), and before them ``GET accounts/portfoliolinks/v1`` unless ``portfolios`` is set.

    :param accounts: see the module.
    :param portfolios: instead of ``accounts``.
    :param include_same_cash_account: include portfolios with the same cash account.
    :param on_missing_field: see the module.
    :param raw: the API's own records instead of rows.
    """
    return _query("portfolio_details", locals())


def cash(
    accounts: Codes = ALL, *, portfolios: Codes = None, on_missing_field: str = "warn", raw: bool = False
) -> Query:
    """Get the cash of portfolios.

    Makes one call of ``POST portfolios/cash/by-portfolio/v2`` of the OMS API for each 1000 portfolios (an inferred
    limit), and before them ``GET accounts/portfoliolinks/v1`` unless ``portfolios`` is set.

    :param accounts: see the module.
    :param portfolios: instead of ``accounts``.
    :param on_missing_field: see the module.
    :param raw: the API's own records instead of rows.
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

    Makes one call of ``POST portfolios/positions/v2`` of the OMS API for each 1000 portfolios (an inferred limit),
    before them ``GET accounts/portfoliolinks/v1`` unless ``portfolios`` is set, and after them
    ``POST securities/information/v2`` of the market data API for the price multipliers, which positions lack. A client
    without the scope ``market-data-api`` has none: it needs ``on_missing_multiplier="cents"`` or ``raw=True``. That
    average prices are in native units, like other prices, is inferred.

    :param accounts: see the module.
    :param portfolios: instead of ``accounts``.
    :param on_missing_multiplier: see the module.
    :param on_missing_field: see the module.
    :param raw: the API's own records instead of rows.
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

    Makes one call of ``GET orders/by-account/{account}/v4`` of the OMS API for each account; before them
    ``GET accounts/portfoliolinks/v1`` when ``portfolios`` is set, ``GET accounts/v1`` when neither argument is. The
    column ``state`` is the state of the order by the first rule that applies: all of its volume is done: ``finished``;
    actionStatus is FAILED or DENIED: ``failed``; orderState is INACTIVE, or lastAction is CANCEL or PURGE:
    ``finished``; orderState is ACTIVE: ``working``; else ``pending``. The order of the rules is inferred. A
    cancellation in progress counts as finished.

    :param accounts: see the module.
    :param portfolios: instead of ``accounts``.
    :param include_child_orders: include the orders that other orders were split into; exclude them to add up volumes.
    :param on_missing_multiplier: see the module.
    :param on_missing_field: see the module.
    :param raw: the API's own records instead of rows.
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

    Makes one call of ``GET trades/by-account/{account}/v1`` of the OMS API for each account; before them
    ``GET accounts/portfoliolinks/v1`` when ``portfolios`` is set, ``GET accounts/v1`` when neither argument is.

    :param accounts: see the module.
    :param start: trades from this time on.
    :param end: trades before this time.
    :param session: one trading day, instead of ``start`` and ``end``.
    :param portfolios: instead of ``accounts``.
    :param on_missing_multiplier: see the module.
    :param on_missing_field: see the module.
    :param raw: the API's own records instead of rows.
    """
    return _query("order_trades", locals())


def _query(endpoint: str, arguments: Mapping[str, Any]) -> Query:
    """Return a query of the arguments of its function, which are all of the function's local variables."""
    if arguments.get("accounts") == ALL and arguments["portfolios"] is not None:
        arguments = {**arguments, "accounts": None}
    # Only a bound of a range may be a date.
    bounds = {name: to_text(arguments[name]) for name in SESSION_RANGE if arguments.get(name) is not None}
    others = {name: to_list(value) for name, value in arguments.items() if name not in SESSION_RANGE}
    query = check({"endpoint": endpoint} | others | bounds)
    warn_without_session(query)
    return query
