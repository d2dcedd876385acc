"""The token endpoint: OAuth 2.0 client credentials, with the errors of RFC 6749 section 5.2."""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Mapping
from urllib.parse import parse_qsl, unquote_plus

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from openmarkets_provider.sandbox.state import Client, State, state_of

FORM = "application/x-www-form-urlencoded"

_NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}


class _Refused(Exception):
    """A request that the endpoint refuses."""

    def __init__(self, error: str, description: str, status: int = 400) -> None:
        self.content = {"error": error, "error_description": description}
        self.status = status


async def token(request: Request) -> JSONResponse:
    """Issue a token."""
    state = state_of(request)
    try:
        client = _client(state, request.headers.get("authorization", ""))
        form = _form(request.headers.get("content-type", ""), await request.body())
        scopes = _scopes(client, form)
    except _Refused as refused:
        headers = _NO_STORE | ({"WWW-Authenticate": "Basic"} if refused.status == 401 else {})
        return JSONResponse(refused.content, refused.status, headers)
    content = {
        "access_token": state.tokens.issue(scopes),
        "expires_in": state.tokens.lifetime,
        "token_type": "Bearer",
    }
    return JSONResponse(content, headers=_NO_STORE)


def read_scopes(body: bytes) -> list[str]:
    """Return the scopes in the body of a request, even if the request is invalid."""
    return " ".join(value for name, value in parse_qsl(body.decode("latin-1")) if name == "scope").split()


def _client(state: State, authorization: str) -> Client:
    """Return the client of a Basic header. Id and secret are form-encoded (RFC 6749, section 2.3.1)."""
    scheme, _, encoded = authorization.partition(" ")
    try:
        pair = base64.b64decode(encoded, validate=True).decode("ascii")
    except (binascii.Error, UnicodeDecodeError):
        pair = ""
    client_id, _, client_secret = pair.partition(":")
    client = state.clients.get(unquote_plus(client_id))
    if scheme.lower() != "basic" or client is None:
        raise _Refused("invalid_client", "No such client.", 401)
    if not secrets.compare_digest(unquote_plus(client_secret).encode(), client.client_secret.encode()):
        raise _Refused("invalid_client", "The client's secret is wrong.", 401)
    return client


def _form(content_type: str, body: bytes) -> Mapping[str, str]:
    if content_type.partition(";")[0].strip().lower() != FORM:
        raise _Refused("invalid_request", f"The content type must be {FORM}.")
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, strict_parsing=True)
    except ValueError:
        raise _Refused("invalid_request", "The body isn't a form.") from None
    form = dict(pairs)
    if len(form) < len(pairs):
        raise _Refused("invalid_request", "A parameter is set twice.")
    return form


def _scopes(client: Client, form: Mapping[str, str]) -> list[str]:
    grant = form.get("grant_type")
    if not grant:
        raise _Refused("invalid_request", "grant_type is missing.")
    if grant != "client_credentials":
        raise _Refused("unsupported_grant_type", "Only client_credentials is supported.")
    scopes = form.get("scope", "").split()
    if not scopes or not set(scopes) <= set(client.scopes):
        raise _Refused("invalid_scope", "The scope is missing or isn't in the client's plan.")
    return scopes


ROUTES = [Route("/connect/token", token, methods=["POST"])]
