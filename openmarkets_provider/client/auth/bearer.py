"""Logging in: OAuth 2.0 client credentials (RFC 6749, section 4.4) as an httpx authentication flow."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, Generator
from urllib.parse import quote, quote_plus

import httpx

from openmarkets_provider.client.auth.provider import TokenProvider
from openmarkets_provider.client.auth.token import Token
from openmarkets_provider.client.http.clients import limits
from openmarkets_provider.client.http.replies import read_token_reply
from openmarkets_provider.client.settings import Settings
from openmarkets_provider.exceptions import (
    OpenmarketsAuthError,
    OpenmarketsConfigurationError,
    OpenmarketsInvalidResponse,
)

MAX_TOKEN_REPLY = 64 << 10
"""Bytes of a token reply that are read."""


def basic_credentials(settings: Settings) -> str:
    """Return the value of the ``Authorization`` header that authenticates the client (RFC 6749, section 2.3.1)."""
    pair = (settings.client_id, settings.client_secret)
    if settings.client_auth_encoding == "rfc6749":
        pair = (quote(pair[0], safe=""), quote(pair[1], safe=""))
    return "Basic " + base64.b64encode(":".join(pair).encode()).decode()


def secret_forms(settings: Settings) -> list[str]:
    """Return the texts, other than the client secret itself, that would give it away in a log."""
    encoded = {quote(settings.client_secret, safe=""), quote_plus(settings.client_secret)}
    return [basic_credentials(settings).removeprefix("Basic "), *sorted(encoded - {settings.client_secret})]


def fetch_token(http: httpx.Client, settings: Settings, scope: str) -> tuple[str, float]:
    """Ask the identity server for a token: ``POST {identity}/connect/token``.

    :return: the access token and its lifetime in seconds.
    :raises OpenmarketsError: see :func:`~openmarkets_provider.client.http.replies.read_token_reply`; httpx's own
        errors pass.
    """
    try:
        response = http.post(
            settings.token_url,
            data={"grant_type": "client_credentials", "scope": scope},
            headers={"Authorization": basic_credentials(settings), "Accept": "application/json"},
            extensions=limits(MAX_TOKEN_REPLY),
        )
    except OpenmarketsInvalidResponse as error:
        if error.status is not None and error.status != 200:
            # An error page that can't be read: its status says enough.
            return read_token_reply(scope, error.status, {}, str(error).encode())
        raise OpenmarketsAuthError(
            f"The identity server's reply for {scope} is not a token: {error}",
            status=error.status,
            scope=scope,
        ) from None
    # A server may repeat the request in an error, as debug pages do, and errors quote what it says.
    hidden = (*secret_forms(settings), settings.client_secret)
    return read_token_reply(scope, response.status_code, response.headers, response.content, hidden)


class ClientCredentialsAuth(httpx.Auth):
    """Puts the access token of one scope on every request, and answers one 401 with a fresh token.

    The request is repeated even when it is not safe to repeat: the server refused it. A 403 costs no token.

    :param tokens: where tokens come from.
    :param scope: OAuth scope of the API.
    :param base_url: the API's base URL. A request to another origin is refused: the token goes nowhere else.
    """

    def __init__(self, tokens: TokenProvider, scope: str, base_url: str) -> None:
        self._tokens = tokens
        self._scope = scope
        self._origin = _origin(httpx.URL(base_url))

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Authenticate a request of an ``httpx.Client``."""
        self._check_origin(request)
        token = self._tokens.get(self._scope)
        response = yield _authorized(request, token)
        if response.status_code == 401:
            fresh = self._tokens.get(self._scope, rejected=token)
            if fresh.value != token.value:
                yield _authorized(request, fresh)

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Authenticate a request of an ``httpx.AsyncClient``."""
        self._check_origin(request)
        token = await self._tokens.aget(self._scope)
        response = yield _authorized(request, token)
        if response.status_code == 401:
            fresh = await self._tokens.aget(self._scope, rejected=token)
            if fresh.value != token.value:
                yield _authorized(request, fresh)

    def _check_origin(self, request: httpx.Request) -> None:
        if _origin(request.url) != self._origin:
            raise OpenmarketsConfigurationError(
                f"A request to {request.url.scheme}://{request.url.host} was refused: the access token goes to "
                f"{self._origin[0]}://{self._origin[1]} only. Use a path relative to the API's base URL."
            )


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _authorized(request: httpx.Request, token: Token) -> httpx.Request:
    request.headers["Authorization"] = f"Bearer {token.value}"
    return request
