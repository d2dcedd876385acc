"""The only I/O: sends calls, waits between attempts, asks for tokens. Sync and async differ in that alone.

What to do is written once, as generators that yield steps (send this, pause so long, get a token for this scope)
and are told what came of each. Two small loops carry the steps out, one blocking and one on an event loop.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import ssl
import time
import uuid
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import httpx

from openmarkets_provider.client.auth import ClientCredentialsAuth, fetch_token, secret_forms
from openmarkets_provider.client.environments import SCOPES
from openmarkets_provider.client.planning import ApiCall, Query, plan
from openmarkets_provider.client.records import result
from openmarkets_provider.client.replies import doubt, read_reply, unreadable_reply
from openmarkets_provider.client.retry import pause
from openmarkets_provider.client.settings import Settings
from openmarkets_provider.client.token_source import SecretMasker, TokenSource
from openmarkets_provider.client.token_stores import FileStore, RecordCipher, record_key
from openmarkets_provider.client.transport import async_client, sync_client
from openmarkets_provider.exceptions import (
    OpenmarketsConfigurationError,
    OpenmarketsError,
    OpenmarketsInvalidResponse,
    OpenmarketsQueryError,
    OpenmarketsTransportError,
)

log = logging.getLogger(__name__)

LOCK_GRACE = 5.0
"""Seconds longer than one token request may take that somebody else's is waited for."""
_NEVER_SENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
)

T = TypeVar("T")


class _Send(NamedTuple):
    call: ApiCall
    request_id: str


class _Pause(NamedTuple):
    seconds: float


class _GetToken(NamedTuple):
    scope: str


_Step = _Send | _Pause | _GetToken
_Flow = Generator[_Step, Any, T]


class OpenmarketsClient:
    """A client of the Openmarkets APIs.

    Nothing is opened before it is needed, and nothing that was opened is used in another process (after a fork)
    or on another event loop. Threads may share a client.

    :param settings: credentials, servers and limits.
    :param cache_dir: directory of the token store for ``cache_backend`` file.
    :param masker: told the secret's encoded forms and every token before use.
    :param user_agent: what the client calls itself.
    """

    def __init__(self, settings: Settings, *, cache_dir: Path, masker: SecretMasker, user_agent: str) -> None:
        self.settings = settings
        self._user_agent = user_agent
        self._masker = masker
        # Keyed by process: what the parent opened stays referenced in a forked child and is never used there.
        self._clients: dict[tuple[int, str], httpx.Client] = {}
        store = None
        if settings.cache_backend == "file":
            store = FileStore(cache_dir, RecordCipher(settings.client_secret))
        self.tokens = TokenSource(
            key=functools.cache(functools.partial(record_key, settings)),
            fetch=self._fetch_token,
            store=store,
            masker=masker,
            wait=settings.timeout + LOCK_GRACE,
        )
        self._async_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, httpx.AsyncClient]]
        self._async_clients = WeakKeyDictionary()

    def http(self, api: str) -> httpx.Client:
        """Return this process's authenticated client of an API; relative URLs start at the API's base URL.

        :raises OpenmarketsConfigurationError: the API is unknown or its scope is not in the connection.
        """
        return self._clients.get((os.getpid(), api)) or self._open(api, self._base_url(api), self._auth(api))

    def ahttp(self, api: str) -> httpx.AsyncClient:
        """Return the running event loop's authenticated client of an API, as :meth:`http`."""
        clients = self._async_clients.setdefault(asyncio.get_running_loop(), {})
        if api not in clients:
            clients[api] = async_client(self._base_url(api), auth=self._auth(api), **self._options())
        return clients[api]

    def run(self, query: Query) -> Any:
        """Answer a query.

        :raises OpenmarketsError: what went wrong, see :mod:`openmarkets_provider.exceptions`.
        """
        return _drive(self._answer(query), self._perform)

    async def arun(self, query: Query) -> Any:
        """Answer a query on an event loop, as :meth:`run`."""
        return await _adrive(self._answer(query), self._aperform)

    def get_access_token(self, scope: str) -> str:
        """Return an access token for a scope, from the cache where one is alive.

        :raises OpenmarketsError: no token is to be had.
        """
        self._check_scope(scope)
        return _drive(_persist(functools.partial(_token, scope), safe_to_repeat=True), self._perform)

    def check_scope(self, scope: str) -> OpenmarketsError | None:
        """Ask the identity server for a token of a scope now, and return what is wrong, if anything is."""
        try:
            self.tokens.renew(scope)
        except OpenmarketsError as error:
            return error
        return None

    def close(self) -> None:
        """Close the connections of this process; the next call opens new ones."""
        for key in [key for key in self._clients if key[0] == os.getpid()]:
            self._clients.pop(key).close()

    async def aclose(self) -> None:
        """Close the connections of the running event loop, and those that token requests opened."""
        for client in self._async_clients.pop(asyncio.get_running_loop(), {}).values():
            await client.aclose()
        self.close()

    def _answer(self, query: Query) -> _Flow[Any]:
        answered = []
        for call in plan(query):
            attempt = functools.partial(_exchange, call, self._base_url(call.api))
            reply = yield from _persist(attempt, safe_to_repeat=call.safe_to_repeat)
            answered.append((call, reply))
        return result(query, answered)

    def _perform(self, step: _Step) -> Any:
        match step:
            case _Send(call, request_id):
                http = self.http(call.api)
                return http.send(_request(http, call, request_id))
            case _GetToken(scope):
                return self.tokens.get(scope).value
            case _Pause(seconds):
                time.sleep(seconds)

    async def _aperform(self, step: _Step) -> Any:
        match step:
            case _Send(call, request_id):
                http = self.ahttp(call.api)
                return await http.send(_request(http, call, request_id))
            case _Pause(seconds):
                await asyncio.sleep(seconds)

    def _fetch_token(self, scope: str) -> tuple[str, float]:
        for form in secret_forms(self.settings):
            self._masker.mask(form)
        base_url = self.settings.identity_url
        http = self._clients.get((os.getpid(), "identity")) or self._open("identity", base_url, None)
        try:
            return fetch_token(http, self.settings, scope)
        except httpx.HTTPError as error:
            raise _no_answer("POST connect/token", base_url, error, sent=False) from error

    def _open(self, name: str, base_url: str, auth: httpx.Auth | None) -> httpx.Client:
        made = sync_client(base_url, auth=auth, **self._options())
        client = self._clients.setdefault((os.getpid(), name), made)
        if client is not made:
            # Another thread was faster.
            made.close()
        return client

    def _options(self) -> dict[str, Any]:
        return {
            "timeout": self.settings.timeout,
            "ca_bundle": self.settings.ca_bundle,
            "user_agent": self._user_agent,
        }

    def _base_url(self, api: str) -> str:
        """Return the base URL of an API that the connection may use."""
        if api not in SCOPES:
            raise OpenmarketsConfigurationError(f"api: {api!r} is unknown; allowed are {', '.join(SCOPES)}.")
        self._check_scope(SCOPES[api])
        return self.settings.api_url(api)

    def _auth(self, api: str) -> ClientCredentialsAuth:
        return ClientCredentialsAuth(self.tokens, SCOPES[api], self.settings.api_url(api))

    def _check_scope(self, scope: str) -> None:
        if scope not in self.settings.scopes:
            raise OpenmarketsConfigurationError(
                f"scopes: {scope!r} is not among the connection's scopes ({', '.join(self.settings.scopes)}); "
                "add it there if it is in your plan."
            )


def _persist(attempt: Callable[[], _Flow[T]], *, safe_to_repeat: bool) -> _Flow[T]:
    """Carry out attempts until one succeeds or the retry policy gives up."""
    number = 0
    while True:
        number += 1
        try:
            return (yield from attempt())
        except OpenmarketsError as error:
            wait = pause(error, number, safe_to_repeat=safe_to_repeat)
            if wait is None:
                raise
            log.info("%s Trying again in %.1f s (attempt %d failed).", error, wait, number)
        yield _Pause(wait)


def _exchange(call: ApiCall, base_url: str) -> _Flow[Any]:
    """Send one call once."""
    request_id = str(uuid.uuid4())
    try:
        response: httpx.Response = yield _Send(call, request_id)
    except httpx.HTTPError as error:
        sent = not isinstance(error, _NEVER_SENT)
        advice = f" [request id {request_id}]{doubt(call) if sent else ''}"
        raise _no_answer(call.label, base_url, error, sent=sent, advice=advice, request_id=request_id) from error
    except OpenmarketsInvalidResponse as error:
        failure = unreadable_reply(call, error, request_id)
        failure.sent = True
        raise failure from None
    try:
        return read_reply(
            call, response.status_code, response.headers, response.content, request_id, response.request.headers
        )
    except OpenmarketsError as error:
        error.sent = True
        raise


def _token(scope: str) -> _Flow[str]:
    value: str = yield _GetToken(scope)
    return value


def _request(http: httpx.Client | httpx.AsyncClient, call: ApiCall, request_id: str) -> httpx.Request:
    try:
        request = http.build_request(call.method, call.path, params=call.params, json=call.json)
    except httpx.InvalidURL as error:
        raise OpenmarketsQueryError(f"{call.label}: path and params make no URL: {error}") from None
    request.headers["X-Request-ID"] = request_id
    return request


def _no_answer(
    label: str, base_url: str, error: httpx.HTTPError, *, sent: bool, advice: str = "", request_id: str | None = None
) -> OpenmarketsError:
    """Say why there was no answer."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return OpenmarketsConfigurationError(
                f"{label}: the TLS certificate of {base_url} can't be verified: {cause.verify_message}. If your "
                "network has a certificate authority of its own, set ca_bundle in the connection."
            )
        cause = cause.__cause__ or cause.__context__
    what = ": ".join(part for part in (type(error).__name__, str(error)) if part)
    return OpenmarketsTransportError(
        f"{label}: no answer from {base_url}: {what}.{advice}", endpoint=label, sent=sent, request_id=request_id
    )


class _Done(NamedTuple):
    value: Any


def _advance(flow: _Flow[Any], outcome: Any, failure: Exception | None) -> _Step | _Done:
    """Tell a flow what came of its last step, and return its next one or its result."""
    try:
        return flow.send(outcome) if failure is None else flow.throw(failure)
    except StopIteration as stop:
        return _Done(stop.value)


def _drive(flow: _Flow[T], perform: Callable[[_Step], Any]) -> T:
    step = _advance(flow, None, None)
    while not isinstance(step, _Done):
        try:
            outcome = perform(step)
        except Exception as error:  # noqa: BLE001 - the flow decides what it means
            step = _advance(flow, None, error)
        else:
            step = _advance(flow, outcome, None)
    value: T = step.value
    return value


async def _adrive(flow: _Flow[T], perform: Callable[[_Step], Awaitable[Any]]) -> T:
    step = _advance(flow, None, None)
    while not isinstance(step, _Done):
        try:
            outcome = await perform(step)
        except Exception as error:  # noqa: BLE001 - the flow decides what it means
            step = _advance(flow, None, error)
        else:
            step = _advance(flow, outcome, None)
    value: T = step.value
    return value
