"""The token request: OAuth 2.0 client credentials (RFC 6749, section 4.4)."""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping
from urllib.parse import quote, quote_plus, urlencode

from openmarkets_provider.client.http.clients import HttpClient, NoAnswer
from openmarkets_provider.client.http.deadline import uncancelled
from openmarkets_provider.client.http.replies import (
    TRANSIENT_STATUSES,
    decode,
    decode_object,
    printable,
    read_words,
    retry_after,
)
from openmarkets_provider.client.settings import Settings
from openmarkets_provider.exceptions import (
    OpenmarketsAuthError,
    OpenmarketsError,
    OpenmarketsInvalidClient,
    OpenmarketsInvalidResponse,
    OpenmarketsRateLimited,
    OpenmarketsScopeNotInPlan,
    OpenmarketsServerError,
)

MAX_TOKEN_REPLY = 64 << 10
"""Bytes of a token reply that are read."""
MAX_LIFETIME = 31 * 86400
"""Longest token lifetime in seconds that is believed."""
_LABEL = "POST connect/token"


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


def fetch_token(http: HttpClient, settings: Settings, scope: str) -> tuple[str, float]:
    """Ask the identity server for a token: ``POST {identity}/connect/token``.

    :return: the access token and its lifetime in seconds.
    :raises OpenmarketsTransportError: there was no answer.
    :raises OpenmarketsError: see :func:`read_token_reply`.
    """
    form = urlencode({"grant_type": "client_credentials", "scope": scope})
    headers = {
        "Authorization": basic_credentials(settings),
        "Content-Type": "application/x-www-form-urlencoded",
    }
    request = http.build("POST", "connect/token", content=form.encode(), headers=headers)
    try:
        # Others wait for this token, too: the end of one run must be no failure that they share.
        with uncancelled():
            reply = http.send(request._replace(max_bytes=MAX_TOKEN_REPLY))
    except NoAnswer as error:
        failure = error.explain(_LABEL)
        # Of the call that needs the token nothing was sent.
        failure.sent = False
        raise failure from error.__cause__
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
    return read_token_reply(scope, reply.status, reply.headers, reply.body, hidden)


def read_token_reply(
    scope: str, status: int, headers: Mapping[str, str], body: bytes, hidden: Collection[str] = ()
) -> tuple[str, float]:
    """Return access token and lifetime in seconds from a token reply (RFC 6749, sections 5.1 and 5.2).

    :param hidden: texts that are taken out of what an error quotes.
    :raises OpenmarketsAuthError: the client or the scope is refused, or the reply is not a token.
    :raises OpenmarketsRateLimited: too many token requests.
    :raises OpenmarketsServerError: the identity server failed.
    """
    request_id = headers.get("x-request-id")
    request_id = None if request_id is None else printable(request_id, hidden)
    if status != 200:
        raise _token_error(scope, status, headers, body, request_id, hidden)

    def invalid(problem: str) -> OpenmarketsAuthError:
        return OpenmarketsAuthError(
            f"The identity server's reply for {scope} is not a token: {problem}. "
            "Check the Identity URL (host) of the connection.",
            status=status,
            scope=scope,
            request_id=request_id,
        )

    try:
        reply = decode(body)
    except ValueError as error:
        raise invalid(f"it is {error}") from None
    if not isinstance(reply, dict):
        raise invalid("it is not a JSON object")
    value, kind, lifetime = (reply.get(name) for name in ("access_token", "token_type", "expires_in"))
    if not isinstance(value, str) or not value:
        raise invalid("access_token is missing")
    if not value.isascii() or not value.isprintable() or " " in value:
        raise invalid("access_token holds characters that no bearer token can have")
    if not isinstance(kind, str) or kind.lower() != "bearer":
        raise invalid(f"token_type is {printable(repr(kind), hidden)} and not 'Bearer'")
    if isinstance(lifetime, bool) or not isinstance(lifetime, int | float):
        raise invalid("expires_in is missing or not a number of seconds")
    if not 0 < lifetime <= MAX_LIFETIME:
        raise invalid(f"expires_in is {lifetime!r:.30}, which can't be a lifetime in seconds")
    return value, float(lifetime)


def _token_error(
    scope: str,
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    request_id: str | None,
    hidden: Collection[str],
) -> OpenmarketsError:
    title, detail = read_words(body, hidden)
    if title is None and b"access_token" in body:
        # A token in a reply that should hold none (a 201, say): it must not be repeated in a log.
        detail = None
    error = decode_object(body).get("error")
    code = title if isinstance(error, str) else None
    wait = retry_after(headers.get("retry-after"))
    said = ": ".join(part for part in (title, detail) if part) or "no reason given"
    what = f"The identity server refused a token for {scope}: {status} {said.rstrip('.')}."
    if status == 429 or status in TRANSIENT_STATUSES or status >= 500:
        return (OpenmarketsRateLimited if status == 429 else OpenmarketsServerError)(
            what + (f" It asks to wait {wait:.0f} s." if wait is not None else ""),
            status=status,
            title=title,
            detail=detail,
            request_id=request_id,
            endpoint=_LABEL,
            retry_after=wait,
        )
    kind: type[OpenmarketsAuthError] = OpenmarketsAuthError
    advice = ""
    if code in ("invalid_scope", "unauthorized_client"):
        kind = OpenmarketsScopeNotInPlan
        advice = " This API is not in the client's plan; ask Openmarkets, or take the scope out of the connection."
    elif code == "invalid_client" or status in (401, 403):
        kind = OpenmarketsInvalidClient
        advice = (
            " Check Client ID (login), Client secret (password) and the environment; for a secret with special "
            "characters also client_auth_encoding."
        )
    elif code is None:
        advice = " Check the Identity URL (host) of the connection."
    return kind(
        what + advice,
        status=status,
        error=code,
        error_description=detail,
        scope=scope,
        request_id=request_id,
    )
