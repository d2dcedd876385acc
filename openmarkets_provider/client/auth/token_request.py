"""The token request: OAuth 2.0 client credentials (RFC 6749, section 4.4)."""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import quote, quote_plus, urlencode, urlsplit

from openmarkets_provider.client.http.clients import HttpClient, NoAnswer
from openmarkets_provider.client.http.deadline import ignore_cancel
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
"""Most bytes of a token reply."""
MAX_LIFETIME = 31 * 86400
"""Longest plausible token lifetime in seconds."""
_LABEL = "POST connect/token"
_NOT_IN_PLAN = ("invalid_scope", "unauthorized_client")
_OAUTH_CODES = (
    *_NOT_IN_PLAN,
    "access_denied",
    "invalid_client",
    "invalid_grant",
    "invalid_request",
    "unsupported_grant_type",
)
"""Error codes of OAuth servers that refuse a token (RFC 6749, section 5.2, and access_denied)."""
_CHECK_URL = " Check the Identity URL (host) of the connection."
_CHECK_PROXY = (
    " A firewall or a proxy may have sent it. If the error persists, check the Identity URL (host) of the connection."
)
_CHECK_CREDENTIALS = (
    " Check Client ID (login), Client secret (password) and Environment (environment). If the secret has "
    "special characters, also check client_auth_encoding."
)
_CHECK_SPACES = " The secret begins or ends with a space, which copying may have added."
_ASK_FOR_SCOPE = (
    " This API is not in the client's plan. Remove the scope from the connection, or ask Openmarkets to add the API."
)


def basic_credentials(settings: Settings) -> str:
    """Return the value of the ``Authorization`` header that authenticates the client (RFC 6749, section 2.3.1)."""
    pair = (settings.client_id, settings.client_secret)
    if settings.client_auth_encoding == "rfc6749":
        pair = (quote(pair[0], safe=""), quote(pair[1], safe=""))
    return "Basic " + base64.b64encode(":".join(pair).encode()).decode()


def secret_forms(settings: Settings) -> list[str]:
    """Return the encoded forms of the client secret, which must not appear in logs either."""
    encoded = {quote(settings.client_secret, safe=""), quote_plus(settings.client_secret)}
    return [basic_credentials(settings).removeprefix("Basic "), *sorted(encoded - {settings.client_secret})]


def fetch_token(http: HttpClient, settings: Settings, scope: str) -> tuple[str, float | None]:
    """Ask the identity server for a token: ``POST {identity}/connect/token``.

    :return: see :func:`read_token_reply`.
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
        # Other callers wait for this token, too: the end of one run must not become a failure that they share.
        with ignore_cancel():
            reply = http.send(request._replace(max_bytes=MAX_TOKEN_REPLY))
    except NoAnswer as error:
        failure = error.explain(_LABEL)
        # Nothing was sent of the call that needs the token.
        failure.sent = False
        raise failure from error.__cause__
    except OpenmarketsInvalidResponse as error:
        # The body can't be read, but the status is enough for an error.
        raise _token_error(scope, error.status or 0, {}, str(error).encode(), None, ()) from None
    # Errors quote the server's words, and a debug page may repeat the request.
    hidden = (*secret_forms(settings), settings.client_secret)
    try:
        return read_token_reply(scope, reply.status, reply.headers, reply.body, hidden)
    except OpenmarketsInvalidClient as error:
        if settings.client_secret == settings.client_secret.strip():
            raise
        raise replace(error, message=error.message + _CHECK_SPACES) from None


def read_token_reply(
    scope: str, status: int, headers: Mapping[str, str], body: bytes, hidden: Collection[str] = ()
) -> tuple[str, float | None]:
    """Read a token reply (RFC 6749, sections 5.1 and 5.2).

    :param hidden: texts that errors must not quote.
    :return: the access token and its lifetime in seconds, None if the reply has no plausible one.
    :raises OpenmarketsAuthError: the client or the scope is refused, or the reply has no token. It is transient if the
        reply does not look like that of a token endpoint.
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
        # The body is not quoted: it may contain a token.
        raise _token_error(scope, status, headers, str(error).encode(), request_id, ()) from None
    if not isinstance(reply, dict):
        raise invalid("it is not a JSON object")
    value, kind, lifetime = (reply.get(name) for name in ("access_token", "token_type", "expires_in"))
    if not isinstance(value, str) or not value:
        raise invalid("access_token is missing")
    if not value.isascii() or not value.isprintable() or " " in value:
        raise invalid("access_token has characters that are not allowed in a bearer token")
    if not isinstance(kind, str) or kind.lower() != "bearer":
        raise invalid(f"token_type is {printable(repr(kind), hidden)}, not 'Bearer'")
    return value, _read_lifetime(lifetime)


def _read_lifetime(value: Any) -> float | None:
    """Return ``expires_in``, a number or numeric text, in seconds; None if it can't be a lifetime."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 < value <= MAX_LIFETIME else None


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
        # The reply should have no token but does, as with status 201. Do not log it.
        detail = None
    reply = decode_object(body)
    code = title if isinstance(reply.get("error"), str) else None
    wait = retry_after(headers.get("retry-after"))
    said = ": ".join(part for part in (title, detail) if part).rstrip(".")
    reason = said or "no reason given"
    what = f"The identity server refused a token for {scope}: {status} {reason}."
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
    kind, problem, advice = OpenmarketsAuthError, what, _CHECK_URL
    transient = False
    if code in _NOT_IN_PLAN:
        kind, advice = OpenmarketsScopeNotInPlan, _ASK_FOR_SCOPE
    elif code == "invalid_client" or status == 401:
        kind, advice = OpenmarketsInvalidClient, _CHECK_CREDENTIALS
    elif 300 <= status < 400:
        problem = _describe_redirect(scope, status, headers, hidden)
    elif not reply or (status == 403 and code not in _OAUTH_CODES):
        problem, advice, transient = _describe_stranger(scope, status, headers, said, hidden), _CHECK_PROXY, True
    elif code is not None:
        advice = ""
    return kind(
        f"{problem}{advice}",
        status=status,
        error=code,
        error_description=detail,
        scope=scope,
        request_id=request_id,
        transient=transient,
        retry_after=wait if transient else None,
    )


def _describe_redirect(scope: str, status: int, headers: Mapping[str, str], hidden: Collection[str]) -> str:
    target = printable(_origin(headers.get("location", "")), hidden)
    return f"The token request for {scope} was redirected to {target} ({status}). Redirects are not followed."


def _describe_stranger(scope: str, status: int, headers: Mapping[str, str], said: str, hidden: Collection[str]) -> str:
    """Describe a reply that does not come from a token endpoint."""
    media = printable(headers.get("content-type", ""), hidden)
    answer = f"{status} ({media})" if media else f"{status}"
    answer = f"{answer}: {said}" if said else answer
    return f"The reply to the token request for {scope} is not from a token endpoint: {answer}."


def _origin(location: str) -> str:
    """Return scheme, host and port of a redirect's target: the rest of the URL may contain a secret."""
    try:
        parts = urlsplit(location)
        _ = parts.port
    except ValueError:
        return "a malformed URL"
    host = parts.netloc.rpartition("@")[2]
    if not host:
        return "another path" if location else "an unnamed address"
    return f"{parts.scheme or 'https'}://{host}"
