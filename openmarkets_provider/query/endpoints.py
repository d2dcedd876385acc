"""The endpoint table: what is known of each call of the public APIs.

Whether a call may be repeated is a fact of the endpoint and not of its HTTP method: quotes are a POST that
only reads, orders are a POST that must never go out twice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import unquote

APIS = ("market_data", "news", "oms")
"""The APIs, as queries spell them."""
MAX_SECURITIES = 1000
"""Securities in one call. Known for security information; for quotes inferred to be the same."""
MAX_PORTFOLIOS = 1000
"""Portfolios in one call. Not known: inferred to be as for securities."""


@dataclass(frozen=True)
class Endpoint:
    """One call of an API.

    :ivar name: what queries call it.
    :ivar api: ``market_data``, ``news`` or ``oms``; decides host and OAuth scope.
    :ivar method: HTTP method.
    :ivar path: path below the API's base URL; ``{name}`` stands for one path segment.
    :ivar safe_to_repeat: True when sending the call twice changes nothing.
    :ivar max_codes: most securities or portfolios in one call; None when the call takes no list of them.
    :ivar limit_inferred: max_codes is not known, but inferred.
    :ivar rows: the field of the reply that holds the rows; None when the reply is the list itself.
    """

    name: str
    api: str
    method: str
    path: str
    safe_to_repeat: bool = True
    max_codes: int | None = None
    limit_inferred: bool = False
    rows: str | None = None

    @cached_property
    def path_pattern(self) -> re.Pattern[str]:
        """The pattern that every concrete path of this endpoint matches."""
        parts = re.split(r"\{\w+\}", self.path)
        return re.compile("[^/]+".join(re.escape(part) for part in parts))


ENDPOINTS: Mapping[str, Endpoint] = {
    endpoint.name: endpoint
    for endpoint in (
        Endpoint("securities", "market_data", "GET", "securities/v1"),
        Endpoint(
            "security_information",
            "market_data",
            "POST",
            "securities/information/v2",
            max_codes=MAX_SECURITIES,
        ),
        Endpoint(
            "quotes",
            "market_data",
            "POST",
            "pricing/quotes/v3",
            max_codes=MAX_SECURITIES,
            limit_inferred=True,
            rows="quotes",
        ),
        Endpoint("depth", "market_data", "GET", "pricing/depth/{security}/v1"),
        Endpoint("time_series", "market_data", "GET", "pricing/timeseries/{security}/v2"),
        Endpoint("intraday_time_series", "market_data", "GET", "pricing/timeseriesintraday/{security}/v1"),
        Endpoint("trades", "market_data", "POST", "pricing/trades/{security}/v2"),
        Endpoint("accounts", "oms", "GET", "accounts/v1"),
        Endpoint("portfolio_links", "oms", "GET", "accounts/portfoliolinks/v1"),
        Endpoint(
            "portfolio_details",
            "oms",
            "POST",
            "portfolios/details/by-portfolio/v2",
            max_codes=MAX_PORTFOLIOS,
            limit_inferred=True,
        ),
        Endpoint(
            "cash", "oms", "POST", "portfolios/cash/by-portfolio/v2", max_codes=MAX_PORTFOLIOS, limit_inferred=True
        ),
        Endpoint("positions", "oms", "POST", "portfolios/positions/v2", max_codes=MAX_PORTFOLIOS, limit_inferred=True),
        Endpoint("orders", "oms", "GET", "orders/by-account/{account}/v4"),
        Endpoint("order_trades", "oms", "GET", "trades/by-account/{account}/v1"),
        Endpoint("create_order", "oms", "POST", "orders/v4", safe_to_repeat=False),
        Endpoint("amend_order", "oms", "PUT", "orders/{order}/v4", safe_to_repeat=False),
        Endpoint("cancel_order", "oms", "DELETE", "orders/{order}/v1", safe_to_repeat=False),
    )
}
"""Every endpoint that is public, by name."""


def find_endpoint(api: str, method: str, path: str) -> Endpoint | None:
    """Return the endpoint that a concrete path belongs to, or None when it is not a public one.

    Letter case, percent-encoding and spare slashes make no difference, since a server may not mind them either.
    """
    path = "/".join(part for part in unquote(path).split("/") if part).lower()
    for endpoint in ENDPOINTS.values():
        if (endpoint.api, endpoint.method) == (api, method) and endpoint.path_pattern.fullmatch(path):
            return endpoint
    return None
