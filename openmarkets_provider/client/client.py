"""The client: runs queries, blocking or on an event loop. The two differ only in their Io."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from openmarkets_provider.client.auth.bearer import send_authorized
from openmarkets_provider.client.auth.provider import SecretMasker, TokenProvider
from openmarkets_provider.client.auth.token import Token
from openmarkets_provider.client.auth.token_request import fetch_token, secret_forms
from openmarkets_provider.client.cache.crypto import EntryCipher, entry_key
from openmarkets_provider.client.cache.store import Store
from openmarkets_provider.client.environments import SCOPES
from openmarkets_provider.client.exchange import Exchange, Received
from openmarkets_provider.client.http.clients import (
    AsyncHttpClient,
    HttpClient,
    HttpRequest,
    Options,
    Reply,
)
from openmarkets_provider.client.http.httpx_client import open_httpx_client
from openmarkets_provider.client.io import TaskGroup, ThreadGroup, iterate_blocking, run_blocking
from openmarkets_provider.client.metrics import NO_METRICS, Metrics
from openmarkets_provider.client.pulled import Pulled
from openmarkets_provider.client.ratelimit.hold import Holds
from openmarkets_provider.client.run import Run
from openmarkets_provider.client.settings import DEFAULT_CONCURRENCY, MAX_ASYNC_CONCURRENCY, Settings
from openmarkets_provider.exceptions import (
    OpenmarketsConfigurationError,
    OpenmarketsError,
    OpenmarketsOrderError,
    OpenmarketsQueryError,
    OpenmarketsRateLimited,
)
from openmarkets_provider.query.batch import RECORD, Batch
from openmarkets_provider.query.endpoints import is_order_call
from openmarkets_provider.query.plan import ApiCall, plan
from openmarkets_provider.query.query import Query, endpoint_of
from openmarkets_provider.query.rows import Listing

if TYPE_CHECKING:
    import httpx

log = logging.getLogger(__name__)

T = TypeVar("T")

LOCK_GRACE = 5.0
"""How many seconds longer than the request time-out a caller waits for another caller's token request."""
_IDENTITY = "identity"


class OpenmarketsClient:
    """A client of the Openmarkets APIs.

    Connections are opened when they are needed, and belong to one process (also after a fork) and one event loop.
    Threads may share a client.

    :param settings: credentials, servers and limits.
    :param store: shares tokens and holds with other processes; None shares nothing.
    :param masker: hides the encoded forms of the secret and every token in logs, before they are used.
    :param user_agent: the ``User-Agent`` header.
    :param concurrency: most concurrent requests of one query.
    :param metrics: receives counters and timers.
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
        self._metrics = metrics
        self._masker = masker
        self._options = Options(settings.timeout, settings.ca_bundle, user_agent)
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
        self.holds = Holds(
            key=lambda api: entry_key(settings, f"hold {api} {settings.api_url(api)}"),
            store=store,
            cipher=cipher,
            metrics=metrics,
        )
        # By security. Currencies do not change, so polls for quotes look them up once.
        self._currencies: dict[Listing, str] = {}
        self._blocking = Exchange(_BlockingIo(self), self.holds, metrics)
        self._async = Exchange(_AsyncIo(self), self.holds, metrics)
        # By process: a forked child keeps references to the parent's clients, but never uses them.
        self._clients: dict[tuple[int, str], HttpClient] = {}
        self._async_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, AsyncHttpClient]]
        self._async_clients = WeakKeyDictionary()

    def run(self, query: Query) -> Any:
        """Run a query.

        :return: a list of rows; for ``request`` the JSON of the reply.
        :raises OpenmarketsError: see :mod:`openmarkets_provider.exceptions`.
        """
        if endpoint_of(query) == "request":
            return run_blocking(self._blocking.ask(self._request(query)))
        return [row for batch in self.stream(query) for row in batch]

    async def arun(self, query: Query) -> Any:
        """Run a query on an event loop, as :meth:`run`."""
        if endpoint_of(query) == "request":
            return await self._async.ask(self._request(query))
        run = Run(query, self._async, self._currencies)
        batches = run.rows(min(self._concurrency, MAX_ASYNC_CONCURRENCY), TaskGroup)
        async with aclosing(batches):
            return [row async for rows in batches for row in rows]

    def stream(self, query: Query, skipped: set[str] | None = None) -> Generator[list[Any], None, None]:
        """Run a query, and yield its rows in batches as they arrive, in the order of :meth:`run`.

        :param skipped: the securities that the run skips are added, in full form.
        :return: non-empty lists of rows; for ``request`` one list with the reply, or with the items of its list.
        :raises OpenmarketsQueryError: immediately, if an argument is malformed.
        :raises OpenmarketsError: during the iteration.
        """
        if endpoint_of(query) == "request":
            return iterate_blocking(_one_batch(self._blocking, self._request(query)))
        run = Run(query, self._blocking, self._currencies, skipped)
        return iterate_blocking(run.rows(self._concurrency, ThreadGroup))

    def stream_columns(
        self, query: Query, skipped: set[str] | None = None, pulled: Pulled | None = None
    ) -> Generator[Batch, None, None]:
        """Run a query as :meth:`stream`, but yield batches of columns.

        :param skipped: the securities that the run skips are added, in full form.
        :param pulled: has the replies of earlier attempts, and stores those of this one. Ignored for ``request``.
        :return: batches with the columns of the query. For ``request`` and ``raw=True`` the only column is ``record``.
        """
        if endpoint_of(query) == "request":
            return (Batch({RECORD: records}) for records in self.stream(query))
        run = Run(query, self._blocking.with_pulled(pulled), self._currencies, skipped)
        return iterate_blocking(run.batches(self._concurrency, ThreadGroup))

    def send_order(self, call: ApiCall, before_send: Callable[[], None]) -> Received:
        """Send a call for an order once. For :class:`openmarkets_provider.client.orders.Orders`.

        :param before_send: called right before the first byte is sent. If it raises, nothing is sent.
        :raises OpenmarketsError: the call failed.
        """
        self.settings.policy.check_mode()
        return run_blocking(Exchange(_OrderIo(self, before_send), self.holds, self._metrics).attempt(call))

    def http(self, api: str) -> HttpClient:
        """Return the client of an API for this process."""
        return self._http(api, self.base_url(api))

    def ahttp(self, api: str) -> AsyncHttpClient:
        """Return the client of an API for the running event loop."""
        clients = self._async_clients.setdefault(asyncio.get_running_loop(), {})
        if api not in clients:
            clients[api] = AsyncHttpClient(self.base_url(api), self._options)
        return clients[api]

    def httpx(self, api: str) -> httpx.Client:
        """Return an authenticated ``httpx.Client`` of an API. Relative URLs start at the API's base URL.

        :raises OpenmarketsConfigurationError: the API is unknown or its scope is not in the connection.
        """
        io = _BlockingIo(self)

        def send(request: HttpRequest) -> Reply:
            # Looked up for each request: a forked process has its own connections.
            http = self.http(api)
            http.check_origin(request)
            path = request.url.target.decode().partition("?")[0]
            self._check_order_call(api, request.method, path.removeprefix(urlsplit(self.base_url(api)).path))
            return run_blocking(io.authorize(api, http, request))

        return open_httpx_client(self.base_url(api), self._options, send, self.close)

    def base_url(self, api: str) -> str:
        """Return the base URL of an API.

        :raises OpenmarketsConfigurationError: the API is unknown or its scope is not in the connection.
        """
        if api not in SCOPES:
            raise OpenmarketsConfigurationError(f"api must be one of {', '.join(SCOPES)}, not {api!r}.")
        self._require_scope(SCOPES[api])
        return self.settings.api_url(api)

    def get_access_token(self, scope: str) -> str:
        """Return an access token for a scope, from the cache if there is a valid one.

        :raises OpenmarketsError: no token is available.
        """
        self._require_scope(scope)

        async def attempt() -> str:
            return self.tokens.get(scope).value

        return run_blocking(self._blocking.persist(attempt, safe_to_repeat=True))

    def check_scope(self, scope: str) -> OpenmarketsError | None:
        """Request a token for a scope now. Return the error, or None if there is none."""
        try:
            self.tokens.refresh(scope)
        except OpenmarketsError as error:
            return error
        return None

    def close(self) -> None:
        """Close the connections of this process as soon as no thread uses them. The next call opens new ones."""
        for key in [key for key in self._clients if key[0] == os.getpid()]:
            self._clients.pop(key).close()

    async def aclose(self) -> None:
        """Close the connections of the running event loop."""
        for client in self._async_clients.pop(asyncio.get_running_loop(), {}).values():
            await client.aclose()

    def _fetch_token(self, scope: str) -> tuple[str, float | None]:
        for form in secret_forms(self.settings):
            self._masker.mask(form)
        return fetch_token(self._http(_IDENTITY, self.settings.identity_url), self.settings, scope)

    def _http(self, name: str, base_url: str) -> HttpClient:
        key = (os.getpid(), name)
        client = self._clients.get(key)
        if client is None:
            # Token requests are rare, so their connection is not kept open.
            client = HttpClient(base_url, self._options, keep_alive=name != _IDENTITY)
            # Another thread may have created it in the meantime.
            client = self._clients.setdefault(key, client)
        return client

    def _request(self, query: Query) -> ApiCall:
        """Return the only call of a ``request``.

        :raises OpenmarketsOrderError: the call is for an order, and the connection forbids it.
        """
        (call,) = plan(query)
        self._check_order_call(call.api, call.method, call.path)
        return call

    def _check_order_call(self, api: str, method: str, path: str) -> None:
        if not is_order_call(api, method, path):
            return
        policy, label = self.settings.policy, f"{method} {api} {path}"
        policy.check_mode()
        if policy.has_limits:
            raise OpenmarketsOrderError(
                f"{label}: the connection limits the accounts or the value of orders, and this call can't check "
                "these limits. Use an order operator (such as OpenmarketsOrderOperator) or hook.orders."
            )
        log.warning(
            "%s: this call does not check, tag or find orders. Use an order operator (such as "
            "OpenmarketsOrderOperator) or hook.orders.",
            label,
        )

    def _require_scope(self, scope: str) -> None:
        if scope not in self.settings.scopes:
            raise OpenmarketsConfigurationError(
                f"scopes: the connection does not have the scope {scope!r}, only "
                f"{', '.join(self.settings.scopes)}. Add it if your plan includes this API.",
                scope=scope,
            )


class _BlockingIo:
    """Waits by blocking the thread."""

    def __init__(self, client: OpenmarketsClient) -> None:
        self._client = client

    async def send(self, call: ApiCall, request_id: str) -> Reply:
        http = self._client.http(call.api)
        request = _request(http, call, request_id)
        self._client.holds.check(call.api)
        return await self.authorize(call.api, http, request)

    async def authorize(self, api: str, http: HttpClient, request: HttpRequest) -> Reply:
        async def get_token(rejected: Token | None) -> Token:
            return self._client.tokens.get(SCOPES[api], rejected=rejected)

        async def send(authorized: HttpRequest) -> Reply:
            return http.send(authorized)

        return await send_authorized(request, get_token, send)

    async def sleep(self, seconds: float, *, rate_limited: bool = False) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - it blocks by design

    async def compute(self, work: Callable[[], T]) -> T:
        return work()

    async def record_hold(self, api: str, seconds: float | None) -> None:
        self._client.holds.record(api, seconds)


class _OrderIo(_BlockingIo):
    """Sends an order. Refuses to sleep: an order is never sent after a wait."""

    def __init__(self, client: OpenmarketsClient, before_send: Callable[[], None]) -> None:
        super().__init__(client)
        self._before_send = before_send

    async def authorize(self, api: str, http: HttpClient, request: HttpRequest) -> Reply:
        return await super().authorize(api, http, request._replace(before_send=self._before_send))

    async def sleep(self, seconds: float, *, rate_limited: bool = False) -> None:
        raise OpenmarketsRateLimited(
            "The order was not sent: the oms API asked another call to wait (429).",
            status=429,
            retry_after=seconds,
            on_hold=True,
        )


class _AsyncIo:
    """Waits on the running event loop."""

    def __init__(self, client: OpenmarketsClient) -> None:
        self._client = client

    async def send(self, call: ApiCall, request_id: str) -> Reply:
        http = self._client.ahttp(call.api)
        request = _request(http, call, request_id)

        async def get_token(rejected: Token | None) -> Token:
            return await self._client.tokens.aget(SCOPES[call.api], rejected=rejected)

        async with http.room:
            await self._client.holds.acheck(call.api)
            return await send_authorized(request, get_token, http.send)

    async def sleep(self, seconds: float, *, rate_limited: bool = False) -> None:
        await asyncio.sleep(seconds)

    async def compute(self, work: Callable[[], T]) -> T:
        return await asyncio.to_thread(work)

    async def record_hold(self, api: str, seconds: float | None) -> None:
        await self._client.holds.arecord(api, seconds)


def _request(http: HttpClient | AsyncHttpClient, call: ApiCall, request_id: str) -> HttpRequest:
    try:
        return http.build(
            call.method, call.path, params=call.params, json=call.json, headers={"X-Request-ID": request_id}
        )
    except OpenmarketsQueryError as error:
        raise OpenmarketsQueryError(f"{call.label}: {error}") from None


async def _one_batch(exchange: Exchange, call: ApiCall) -> AsyncGenerator[list[Any], None]:
    reply = await exchange.ask(call)
    if reply not in (None, []):
        yield reply if isinstance(reply, list) else [reply]
