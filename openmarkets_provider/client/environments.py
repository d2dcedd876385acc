"""The servers of Openmarkets: identity servers, API hosts and OAuth scopes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SCOPES: Mapping[str, str] = {
    "market_data": "market-data-api",
    "news": "news-api",
    "oms": "oms-api",
}
"""API name in queries to OAuth scope."""


@dataclass(frozen=True, slots=True)
class Environment:
    """One set of servers.

    :ivar identity_url: base URL of the OAuth 2.0 server; tokens come from ``{identity_url}/connect/token``.
    :ivar api_urls: API name to base URL. The two news hosts are inferred from the names of the others. A connection
        can override every URL.
    """

    identity_url: str
    api_urls: Mapping[str, str]


ENVIRONMENTS: Mapping[str, Environment] = {
    "production": Environment(
        identity_url="https://identity.openmarkets.com.au",
        api_urls={
            "market_data": "https://market-data-api.openmarkets.com.au",
            "news": "https://news-api.openmarkets.com.au",
            "oms": "https://oms-api.openmarkets.com.au",
        },
    ),
    "test": Environment(
        identity_url="https://stage-identity.openmarkets.com.au",
        api_urls={
            "market_data": "https://test-market-data-api.openmarkets.com.au",
            "news": "https://test-news-api.openmarkets.com.au",
            "oms": "https://test-oms-api.openmarkets.com.au",
        },
    ),
}
"""Value of the connection's ``environment`` field to its servers."""
