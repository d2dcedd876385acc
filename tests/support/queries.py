"""Queries of every kind, and what Airflow puts into queries that are not final yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import httpcore

from openmarkets_provider import queries
from openmarkets_provider.client.http.clients import HttpClient, Options
from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.query.endpoints import ENDPOINTS
from openmarkets_provider.query.plan import ApiCall, plan

SCHEMAS = {name: endpoint.schema for name, endpoint in ENDPOINTS.items() if endpoint.columns}
"""The rows of every typed query, by its name."""


def of_every_kind(start: str, end: str, account: str = "A1", portfolio: str = "P1") -> dict[str, queries.Query]:
    """Return a typed query of each kind, by name, that takes one call when the range is one exchange day."""
    days: dict[str, Any] = {"start": start, "end": end}
    return {
        "securities": queries.securities(),
        "security_information": queries.security_information("BHP"),
        "quotes": queries.quotes("BHP"),
        "depth": queries.depth("BHP"),
        "time_series": queries.time_series("BHP", **days),
        "intraday_time_series": queries.intraday_time_series("BHP", interval=5, **days),
        "trades": queries.trades("BHP", **days),
        "accounts": queries.accounts(),
        "portfolio_links": queries.portfolio_links(),
        "portfolio_details": queries.portfolio_details(portfolios=portfolio),
        "cash": queries.cash(portfolios=portfolio),
        "positions": queries.positions(portfolios=portfolio),
        "orders": queries.orders(account),
        "order_trades": queries.order_trades(account, **days),
    }


def request_query(**changes: Any) -> dict[str, Any]:
    """Return a query for any path, with some of its arguments changed; it is not checked."""
    query = {
        "endpoint": "request",
        "api": "news",
        "method": "GET",
        "path": "announcements/v1",
        "params": None,
        "json": None,
        "safe_to_repeat": None,
    }
    return query | changes


def quotes_query(securities: Any, **changes: Any) -> dict[str, Any]:
    """Return a query for quotes that is not checked."""
    return {
        "endpoint": "quotes",
        "securities": securities,
        "exchange": None,
        "on_invalid": "error",
        "on_missing_multiplier": "error",
        "on_missing_field": "warn",
        "raw": False,
    } | changes


def securities_query(exchange: Any) -> dict[str, Any]:
    """Return a query for the securities of an exchange that is not checked."""
    return {"endpoint": "securities", "exchange": exchange, "on_missing_field": "warn", "raw": False}


RANGE = {"start": "2026-01-05", "end": "2026-01-06"}
VALID = {"request": request_query(), **of_every_kind(**RANGE)}
RANGED = [name for name, query in VALID.items() if "start" in query]


def only_call(query: queries.Query) -> ApiCall:
    """Return the call of a query that takes one."""
    (call,) = plan(query)
    return call


def nested(depth: int) -> list[Any]:
    """Return a list in a list, and so on."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def refusal(look: Callable[[dict[str, Any]], object], query: dict[str, Any]) -> str | None:
    """Return the text of the error with which a function refuses a query; None when it takes it."""
    try:
        look(query)
    except OpenmarketsQueryError as error:
        return str(error)
    return None


class Later:
    """Known later only, as the result of an upstream task is."""

    def resolve(self, context: object) -> object:
        raise AssertionError("nobody but Airflow resolves it")


class LazySequence(Sequence):
    """What Airflow makes of the results of a mapped task: a sequence that is no list."""

    def __init__(self, *items: str) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index):
        return self._items[index]


def url_of(call: ApiCall) -> httpcore.URL:
    """Return the URL that a client requests."""
    http = HttpClient("https://api.example/base", Options(1.0, None, "t/1"))
    return http.build(call.method, call.path, params=call.params, headers={}).url
