"""The only I/O: sends calls, waits between attempts, asks for tokens. Sync and async differ in that alone."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import ssl
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import httpx

from openmarkets_provider.client.auth.bearer import ClientCredentialsAuth, fetch_token, secret_forms
from openmarkets_provider.client.auth.provider import SecretMasker, TokenProvider
from openmarkets_provider.client.cache.crypto import EntryCipher, entry_key
from openmarkets_provider.client.cache.store import Store
from openmarkets_provider.client.drivers import (
    Flow,
    GetToken,
    Limited,
    Pause,
    Send,
    Step,
    adrive,
    adrive_many,
    drive,
    drive_many,
)
from openmarkets_provider.client.environments import SCOPES
from openmarkets_provider.client.exchange import pause
from openmarkets_provider.client.http.clients import async_client, sync_client
from openmarkets_provider.client.http.replies import doubt, read_reply, unreadable_reply
from openmarkets_provider.client.metrics import NO_METRICS, Metrics
from openmarkets_provider.client.ratelimit.hold import Holds, send_when_free
from openmarkets_provider.client.run import Progress, Run
from openmarkets_provider.client.settings import DEFAULT_CONCURRENCY, MAX_ASYNC_CONCURRENCY, Settings
from openmarkets_provider.exceptions import (
    OpenmarketsConfigurationError,
    OpenmarketsError,
    OpenmarketsInvalidResponse,
    OpenmarketsQueryError,
    OpenmarketsRateLimited,
    OpenmarketsTransportError,
)
from openmarkets_provider.query.plan import ApiCall, Query, endpoint_of, plan

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


class OpenmarketsClient:
    """A client of the Openmarkets APIs.

    Nothing is opened before it is needed, and nothing that was opened is used in another process (after a fork)
    or on another event loop. Threads may share a client.

    :param settings: credentials, servers and limits.
    :param store: what is shared with other processes; None shares nothing.
    :param masker: told the secret's encoded forms and every token before use.
    :param user_agent: what the client calls itself.
    :param concurrency: most requests of one query at the same time.
    :param metrics: told what is counted and timed.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        store: Store | None,
        masker: SecretMasker,
        user_agent: str,
        concurrency: int = DEFAULT_CONCURRENCY,
        metrics: Metrics = NO_METRICS,
    ) -> None:
        self.settings = settings
        self.store = store
        self._concurrency = concurrency
        self._user_agent = user_agent
        self._masker = masker
        # Keyed by process: what the parent opened stays referenced in a forked child and is never used there.
        self._clients: dict[tuple[int, str], httpx.Client] = {}
        self._metrics = metrics
        cipher = EntryCipher(settings.client_secret)
        self.tokens = TokenProvider(
            key=functools.partial(entry_key, settings),
            fetch=self._fetch_token,
            store=store,
            cipher=cipher,
            masker=masker,
            wait=settings.timeout + LOCK_GRACE,
            metrics=metrics,
        )
        self._holds = Holds(
            key=lambda api: entry_key(settings, f"hold {api} {settings.api_url(api)}"),
            store=store,
            cipher=cipher,
            metrics=metrics,
        )
        self._async_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, httpx.AsyncClient]]
        self._async_clients = WeakKeyDictionary()
        self._rooms: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, asyncio.Semaphore]]
        self._rooms = WeakKeyDictionary()

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

        :return: a list of rows; for ``request`` the JSON of the reply.
        :raises OpenmarketsError: what went wrong, see :mod:`openmarkets_provider.exceptions`.
        """
        if endpoint_of(query) == "request":
            (call,) = plan(query)
            return drive(self._exchange(call), self._perform)
        return [row for batch in self._batches(Run(query, self._exchange)) for row in batch]

    async def arun(self, query: Query) -> Any:
        """Answer a query on an event loop, as :meth:`run`."""
        if endpoint_of(query) == "request":
            (call,) = plan(query)
            return await adrive(self._exchange(call), self._aperform)
        return [row async for batch in self._abatches(Run(query, self._exchange)) for row in batch]

    def stream(self, query: Query) -> Iterator[list[Any]]:
        """Answer a query in batches, as they come; in the same order as :meth:`run`.

        :return: lists of rows, none of them empty; for ``request`` one with the reply, or the items of its list.
        :raises OpenmarketsQueryError: at once, an argument is malformed.
        :raises OpenmarketsError: while it is iterated, what went wrong.
        """
        if endpoint_of(query) == "request":
            (call,) = plan(query)
            return self._one_batch(call)
        return self._batches(Run(query, self._exchange))

    def _one_batch(self, call: ApiCall) -> Iterator[list[Any]]:
        reply = drive(self._exchange(call), self._perform)
        if reply not in (None, []):
            yield reply if isinstance(reply, list) else [reply]

    def _batches(self, run: Run) -> Iterator[list[Any]]:
        calls = drive(run.prepare(), self._perform)
        progress = Progress(run.endpoint, len(calls))
        flows = (run.ask(number, call) for number, call in enumerate(calls, 1))
        batches: Generator[list[Any], None, None]
        if min(len(calls), self._concurrency) > 1:
            batches = drive_many(flows, self._perform, self._concurrency, progress.tick, run.batch)
        else:
            batches = (drive(run.batch(drive(flow, self._perform)), self._perform) for flow in flows)
        with contextlib.closing(batches):
            for batch in batches:
                progress.add(len(batch))
                if batch:
                    yield batch

    async def _abatches(self, run: Run) -> AsyncIterator[list[Any]]:
        calls = await adrive(run.prepare(), self._aperform)
        progress = Progress(run.endpoint, len(calls))
        flows = (run.ask(number, call) for number, call in enumerate(calls, 1))
        concurrency = min(self._concurrency, MAX_ASYNC_CONCURRENCY)
        batches: AsyncGenerator[list[Any], None]
        if min(len(calls), concurrency) > 1:
            batches = adrive_many(flows, self._aperform, concurrency, progress.tick, run.batch)
        else:
            batches = (await adrive(run.batch(await adrive(flow, self._aperform)), self._aperform) for flow in flows)
        async with contextlib.aclosing(batches):
            async for batch in batches:
                progress.add(len(batch))
                if batch:
                    yield batch

    def get_access_token(self, scope: str) -> str:
        """Return an access token for a scope, from the cache where one is alive.

        :raises OpenmarketsError: no token is to be had.
        """
        self._check_scope(scope)
        return drive(_persist(functools.partial(_token, scope), self._metrics, safe_to_repeat=True), self._perform)

    def check_scope(self, scope: str) -> OpenmarketsError | None:
        """Ask the identity server for a token of a scope now, and return what is wrong, if anything is."""
        try:
            self.tokens.refresh(scope)
        except OpenmarketsError as error:
            return error
        return None

    def close(self) -> None:
        """Close the connections of this process, as soon as no thread uses them; the next call opens new ones."""
        for key in [key for key in self._clients if key[0] == os.getpid()]:
            self._clients.pop(key).close()

    async def aclose(self) -> None:
        """Close the connections of the running event loop."""
        for client in self._async_clients.pop(asyncio.get_running_loop(), {}).values():
            await client.aclose()

    def _exchange(self, call: ApiCall) -> Flow[Any]:
        """Send a call, with the retries that it may have."""
        attempt = functools.partial(_attempt, call, self._base_url(call.api), self._holds, self._metrics)
        return (yield from _persist(attempt, self._metrics, safe_to_repeat=call.safe_to_repeat))

    def _perform(self, step: Step) -> Any:
        match step:
            case Send(call, request_id):
                self._holds.check(call.api)
                http = self.http(call.api)
                return http.send(_request(http, call, request_id))
            case GetToken(scope):
                return self.tokens.get(scope).value
            case Pause(seconds, _):
                time.sleep(seconds)
            case Limited(api, asked):
                self._holds.record(api, asked)

    async def _aperform(self, step: Step) -> Any:
        match step:
            case Send(call, request_id):
                http = self.ahttp(call.api)
                rooms = self._rooms.setdefault(asyncio.get_running_loop(), {})
                # Here and not in httpx's pool, where waiting for a connection ends in a time-out.
                async with rooms.setdefault(call.api, asyncio.Semaphore(MAX_ASYNC_CONCURRENCY)):
                    await self._holds.acheck(call.api)
                    return await http.send(_request(http, call, request_id))
            case Pause(seconds, _):
                await asyncio.sleep(seconds)
            case Limited(api, asked):
                await self._holds.arecord(api, asked)

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
        # The identity server is asked once in a token's lifetime: no connection waits for the next time.
        made = sync_client(base_url, auth=auth, keep_alive=auth is not None, **self._options())
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
                "add it there if it is in your plan.",
                scope=scope,
            )


def _persist(attempt: Callable[[], Flow[T]], metrics: Metrics, *, safe_to_repeat: bool) -> Flow[T]:
    """Carry out attempts until one succeeds or the retry policy gives up."""
    number = 0
    while True:
        number += 1
        try:
            return (yield from attempt())
        except OpenmarketsError as error:
            wait = pause(error, number, safe_to_repeat=safe_to_repeat)
            if wait is None:
                if error.sent and not safe_to_repeat:
                    # Whoever repeats what is transient must not repeat this.
                    error.transient = False
                raise
            log.info("%s Trying again in %.1f s (attempt %d failed).", error, wait, number)
            metrics.count(f"retries.{getattr(error, 'status', None) or 'transport'}")
            limited = isinstance(error, OpenmarketsRateLimited)
        yield Pause(wait, limited)


def _attempt(call: ApiCall, base_url: str, holds: Holds, metrics: Metrics) -> Flow[Any]:
    """Send one call once, and tell everyone when the API says 429."""
    try:
        return (yield from _send_once(call, base_url, holds, metrics))
    except OpenmarketsRateLimited as error:
        # Else it is the identity server's, or the call was held back.
        if error.sent:
            yield Limited(call.api, error.retry_after)
        raise


def _send_once(call: ApiCall, base_url: str, holds: Holds, metrics: Metrics) -> Flow[Any]:
    request_id = str(uuid.uuid4())
    try:
        response: httpx.Response = yield from send_when_free(Send(call, request_id), holds)
    except httpx.HTTPError as error:
        sent = not isinstance(error, _NEVER_SENT)
        metrics.sent(call.label, request_id, None)
        advice = f" [request id {request_id}]{doubt(call) if sent else ''}"
        raise _no_answer(call.label, base_url, error, sent=sent, advice=advice, request_id=request_id) from error
    except OpenmarketsInvalidResponse as error:
        metrics.sent(call.label, request_id, error.status)
        failure = unreadable_reply(call, error, request_id)
        failure.sent = True
        raise failure from None
    metrics.sent(call.label, request_id, response.status_code)
    try:
        return read_reply(
            call, response.status_code, response.headers, response.content, request_id, response.request.headers
        )
    except OpenmarketsError as error:
        error.sent = True
        raise


def _token(scope: str) -> Flow[str]:
    value: str = yield GetToken(scope)
    return value


def _request(http: httpx.Client | httpx.AsyncClient, call: ApiCall, request_id: str) -> httpx.Request:
    try:
        # Whole and with its query string, since httpx parses a URL again for the base and again for the parameters.
        query = f"?{httpx.QueryParams(call.params)}" if call.params else ""
        request = http.build_request(
            call.method, f"{str(http.base_url).rstrip('/')}/{call.path}{query}", json=call.json
        )
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
