"""What to ask of the Openmarkets APIs: functions that return a query.

A query is plain data. The hook, the operator and the sensor take any; it can hold Jinja templates and results
of upstream tasks, be mapped with ``.expand(query=[...])``, and be kept in XCom. Literal arguments are checked at
once, while the DAG is parsed; everything is checked again when the query runs.

**Securities** are written ``CODE.EXCHANGE@DATASOURCE``, such as ``BHP.ASX@TM``. ``BHP`` and ``BHP.ASX`` are
completed with the exchange ``ASX`` and the data source ``TM``. Name them, as a list or as a text with commas or
blanks between them, or give ``exchange`` instead, for all that the exchange lists at the time of the range (or today).

**Accounts and portfolios**: give account codes or portfolio codes, or leave both out (``"*"``) for all that the client
sees. None is an error, so that a template that renders nothing does not ask about everybody. Where the API takes the
other ones, the links between them are looked up, and removed ones are left out. So orders that are asked for by
portfolio are all those of the accounts that are linked to it, and cash that is asked for by account is all that of its
portfolios, whichever account its rows name.

**Ranges** are half-open, [start, end). A bound is a date, a datetime, pendulum's too, an ISO 8601 text, or a template
such as ``"{{ data_interval_start }}"``. Without an offset it is exchange time (Australia/Sydney), and a date is its
midnight there. So use the data interval as it is: ``{{ ds }}`` is the date in UTC, often the day before in Sydney, and
``{{ ts_nodash }}`` is UTC without saying so.

**Rows**: every query but ``request`` gives a list of dicts with the columns that ``docs/queries.md`` lists: names in
snake_case, prices as Decimal in the currency's main unit (native price x ``price_multiplier``, exact), times
as aware datetimes in UTC, dates as dates; what the API leaves out is None, and fields that are not known are
kept. With ``raw=True`` they are the API's own records, untouched: native prices (commonly cents), times as they are
written, and around a range perhaps a little more than was asked for.

Every function raises OpenmarketsQueryError when a literal argument is malformed; the text names it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from openmarkets_provider.query.arguments import ALL, to_list
from openmarkets_provider.query.exchange_time import to_text
from openmarkets_provider.query.query import Query, check

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

    Its result is the decoded JSON of the reply, untouched: prices in native units (commonly cents), times as
    the API writes them. An empty reply is None.

    :param api: ``market_data``, ``news`` or ``oms``: decides the host and the OAuth scope.
    :param method: ``GET``, ``POST``, ``PUT``, ``PATCH`` or ``DELETE``.
    :param path: relative to the API's base URL, such as ``securities/v1``.
    :param params: query string: text, number or boolean by name, or a list of them.
    :param json: JSON body; not with GET.
    :param safe_to_repeat: may the call be sent again after a failure? None: every GET, and the POSTs that are
        known to only read. A call that creates, amends or cancels must never be repeated.
    :raises OpenmarketsQueryError: an argument is malformed.
    """
    return _query("request", api=api, method=method, path=path, params=params, json=json, safe_to_repeat=safe_to_repeat)


def securities(exchange: str = "ASX", *, raw: bool = False) -> Query:
    """List the securities of an exchange.

    Makes one call, ``GET securities/v1`` of the market data API (scope ``market-data-api``).

    :param exchange: exchange code.
    :param raw: the API's own records instead of rows.
    """
    return _query("securities", exchange=exchange, raw=raw)


def security_information(
    securities: Codes = None, *, exchange: str | None = None, on_invalid: str = "error", raw: bool = False
) -> Query:
    """Get what stays the same about securities from day to day: lot size, option terms, price multiplier.

    Makes calls of ``POST securities/information/v2`` of the market data API, 1000 securities each, every one asked
    for once. Rows are in the order of the replies.

    :param securities: see the module.
    :param exchange: instead of securities.
    :param on_invalid: for securities that the API does not know: ``error`` (OpenmarketsQueryError), or ``warn``. Then
        a line in the log says that they are left out.
    :param raw: the API's own records instead of rows.
    """
    return _query("security_information", securities=securities, exchange=exchange, on_invalid=on_invalid, raw=raw)


def quotes(
    securities: Codes = None, *, exchange: str | None = None, on_invalid: str = "error", raw: bool = False
) -> Query:
    """Get current quotes.

    Makes calls of ``POST pricing/quotes/v3`` of the market data API, 1000 securities each (a number inferred from that
    of security information), every one asked for once. Rows are in the order of the replies.

    :param securities: see the module.
    :param exchange: instead of securities.
    :param on_invalid: for securities that the API does not know: ``error`` (OpenmarketsQueryError), or ``warn``. Then
        a line in the log says that they are left out.
    :param raw: the API's own records instead of rows.
    """
    return _query("quotes", securities=securities, exchange=exchange, on_invalid=on_invalid, raw=raw)


def depth(
    securities: Codes = None,
    *,
    exchange: str | None = None,
    levels: int = 10,
    on_invalid: str = "error",
    raw: bool = False,
) -> Query:
    """Get the order book by price.

    Makes one call of ``GET pricing/depth/{security}/v1`` of the market data API for each security, and before them
    ``POST securities/information/v2`` for the price multipliers. A row is one level; level 1 is the best price.

    :param securities: see the module.
    :param exchange: instead of securities.
    :param levels: most price levels of each side, 1 to 100.
    :param on_invalid: for a security that the API does not know (404): ``error`` (OpenmarketsNotFound), or ``warn``.
        Then a line in the log says that it is left out.
    :param raw: the API's own records instead of rows; they do not name their security.
    """
    return _query("depth", securities=securities, exchange=exchange, levels=levels, on_invalid=on_invalid, raw=raw)


def time_series(
    securities: Codes = None,
    *,
    start: Moment,
    end: Moment,
    exchange: str | None = None,
    frequency: str = "Daily",
    on_invalid: str = "error",
    raw: bool = False,
) -> Query:
    """Get daily or weekly bars.

    Makes one call of ``GET pricing/timeseries/{security}/v2`` of the market data API for each security, and before
    them ``POST securities/information/v2`` for the price multipliers. Rows are in the order of the securities, and of
    the replies.

    :param securities: see the module.
    :param start: the first exchange day, or week; of a moment, the one that it is in at the exchange.
    :param end: the exchange day, or week, after the last one; of a moment, the one that it is in, whatever the time.
    :param exchange: instead of securities.
    :param frequency: ``Daily`` or ``Weekly``. Weeks go from Saturday to Friday, so that a range holds whole ones. By
        which of its days the API dates a weekly bar is not known.
    :param on_invalid: for a security that the API does not know (404): ``error`` (OpenmarketsNotFound), or ``warn``.
        Then a line in the log says that it is left out.
    :param raw: the API's own records instead of rows; they do not name their security.
    """
    return _query(
        "time_series",
        securities=securities,
        exchange=exchange,
        start=start,
        end=end,
        frequency=frequency,
        on_invalid=on_invalid,
        raw=raw,
    )


def intraday_time_series(
    securities: Codes = None,
    *,
    start: Moment,
    end: Moment,
    interval: int,
    exchange: str | None = None,
    on_invalid: str = "error",
    raw: bool = False,
) -> Query:
    """Get bars of some minutes each.

    Makes calls of ``GET pricing/timeseriesintraday/{security}/v1`` of the market data API, and before them
    ``POST securities/information/v2`` for the price multipliers. One call asks for 7 days at most where the interval is
    below 10 minutes, for 30 up to 30 minutes, else for 60; none for what lies in the future. Rows are in the order of
    the securities, then of time; a bar that two calls give is there once.

    :param securities: see the module.
    :param start: bars from the one on that this time is in, by the time that the API gives them.
    :param end: bars before the one that this time is in, which may not be complete yet.
    :param interval: minutes: 1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30 or 60.
    :param exchange: instead of securities.
    :param on_invalid: for a security that the API does not know (404): ``error`` (OpenmarketsNotFound), or ``warn``.
        Then a line in the log says that it is left out.
    :param raw: the API's own records instead of rows; they do not name their security.
    """
    return _query(
        "intraday_time_series",
        securities=securities,
        exchange=exchange,
        start=start,
        end=end,
        interval=interval,
        on_invalid=on_invalid,
        raw=raw,
    )


def trades(
    securities: Codes = None,
    *,
    start: Moment,
    end: Moment,
    exchange: str | None = None,
    on_invalid: str = "error",
    raw: bool = False,
) -> Query:
    """Get the market's trades.

    Makes one call of ``POST pricing/trades/{security}/v2`` of the market data API for each security and exchange day
    (none for days that lie in the future), and before them ``POST securities/information/v2`` for the price
    multipliers. Rows are in the order of the securities, then of time; a trade that two calls give is there once.

    :param securities: see the module.
    :param start: trades from this time on.
    :param end: trades before this time.
    :param exchange: instead of securities.
    :param on_invalid: for a security that the API does not know (404): ``error`` (OpenmarketsNotFound), or ``warn``.
        Then a line in the log says that it is left out.
    :param raw: the API's own records instead of rows.
    """
    return _query(
        "trades",
        securities=securities,
        exchange=exchange,
        start=start,
        end=end,
        on_invalid=on_invalid,
        raw=raw,
    )


def accounts(*, raw: bool = False) -> Query:
    """List the order accounts that the client sees.

    Makes one call, ``GET accounts/v1`` of the OMS API (scope ``oms-api``).

    :param raw: the API's own records instead of rows.
    """
    return _query("accounts", raw=raw)


def portfolio_links(*, raw: bool = False) -> Query:
    """List the links between accounts and portfolios, removed ones too.

    Makes one call, ``GET accounts/portfoliolinks/v1`` of the OMS API.

    :param raw: the API's own records instead of rows.
    """
    return _query("portfolio_links", raw=raw)


def portfolio_details(
    accounts: Codes = ALL,
    *,
    portfolios: Codes = None,
    include_same_cash_account: bool = False,
    raw: bool = False,
) -> Query:
    """Get names and cash accounts of portfolios.

    Makes calls of ``POST portfolios/details/by-portfolio/v2`` of the OMS API, 1000 portfolios each (an inferred
    number), and before them ``GET accounts/portfoliolinks/v1`` unless portfolios are given.

    :param accounts: see the module.
    :param portfolios: instead of accounts.
    :param include_same_cash_account: portfolios with the same cash account, too.
    :param raw: the API's own records instead of rows.
    """
    return _query(
        "portfolio_details",
        accounts=accounts,
        portfolios=portfolios,
        include_same_cash_account=include_same_cash_account,
        raw=raw,
    )


def cash(accounts: Codes = ALL, *, portfolios: Codes = None, raw: bool = False) -> Query:
    """Get the cash of portfolios.

    Makes calls of ``POST portfolios/cash/by-portfolio/v2`` of the OMS API, 1000 portfolios each (an inferred
    number), and before them ``GET accounts/portfoliolinks/v1`` unless portfolios are given.

    :param accounts: see the module.
    :param portfolios: instead of accounts.
    :param raw: the API's own records instead of rows.
    """
    return _query("cash", accounts=accounts, portfolios=portfolios, raw=raw)


def positions(accounts: Codes = ALL, *, portfolios: Codes = None, raw: bool = False) -> Query:
    """Get the holdings of portfolios.

    Makes calls of ``POST portfolios/positions/v2`` of the OMS API, 1000 portfolios each (an inferred number), before
    them ``GET accounts/portfoliolinks/v1`` unless portfolios are given, and after them
    ``POST securities/information/v2`` of the market data API for the price multipliers, which positions lack. Without
    the scope ``market-data-api`` 0.01 is taken for them, with a warning. That average prices are in native units, as
    other prices are, is inferred.

    :param accounts: see the module.
    :param portfolios: instead of accounts.
    :param raw: the API's own records instead of rows.
    """
    return _query("positions", accounts=accounts, portfolios=portfolios, raw=raw)


def orders(
    accounts: Codes = ALL, *, portfolios: Codes = None, include_child_orders: bool = True, raw: bool = False
) -> Query:
    """List the orders of the last three days.

    Makes one call of ``GET orders/by-account/{account}/v4`` of the OMS API for each account; before them
    ``GET accounts/v1`` when neither accounts nor portfolios are given, ``GET accounts/portfoliolinks/v1`` when
    portfolios are. The column ``state`` says what has become of the order, by the first rule that applies: all of its
    volume is done: ``finished``; actionStatus is FAILED or DENIED: ``failed``; orderState is INACTIVE, or lastAction is
    CANCEL or PURGE: ``finished``; orderState is ACTIVE: ``working``; else ``pending``. Which rule comes first is
    inferred, and a cancellation that is still under way counts as finished.

    :param accounts: see the module.
    :param portfolios: instead of accounts.
    :param include_child_orders: orders that others were split into, too; leave them out before you add volumes up.
    :param raw: the API's own records instead of rows.
    """
    return _query(
        "orders", accounts=accounts, portfolios=portfolios, include_child_orders=include_child_orders, raw=raw
    )


def order_trades(
    accounts: Codes = ALL, *, start: Moment, end: Moment, portfolios: Codes = None, raw: bool = False
) -> Query:
    """List the trades of accounts.

    Makes one call of ``GET trades/by-account/{account}/v1`` of the OMS API for each account; before them
    ``GET accounts/v1`` when neither accounts nor portfolios are given, ``GET accounts/portfoliolinks/v1`` when
    portfolios are.

    :param accounts: see the module.
    :param start: trades from this time on.
    :param end: trades before this time.
    :param portfolios: instead of accounts.
    :param raw: the API's own records instead of rows.
    """
    return _query("order_trades", accounts=accounts, portfolios=portfolios, start=start, end=end, raw=raw)


def _query(endpoint: str, **arguments: Any) -> Query:
    if arguments.get("accounts") == ALL and arguments["portfolios"] is not None:
        arguments["accounts"] = None
    # Only a bound of a range may be a date.
    bounds = {name: to_text(arguments[name]) for name in ("start", "end") if name in arguments}
    return check({"endpoint": endpoint} | {name: to_list(value) for name, value in (arguments | bounds).items()})
