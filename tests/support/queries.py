"""Queries of every kind, and what Airflow puts into queries that are not final yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openmarkets_provider import queries
from openmarkets_provider.query.endpoints import ENDPOINTS

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
