"""Connections that may change while triggers wait: they are looked up again, and have a client of their fields."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from openmarkets_provider.exceptions import (
    OpenmarketsAccessRefused,
    OpenmarketsAuthError,
    OpenmarketsConfigurationError,
    OpenmarketsError,
)
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook

if TYPE_CHECKING:
    from openmarkets_provider.client.client import OpenmarketsClient
    from openmarkets_provider.queries import Query

log = logging.getLogger(__name__)

LOOK_UP_INTERVAL = 60.0
"""Seconds between look-ups of a connection."""
RETRY_INTERVAL = 1.0
"""The same after a failed look-up."""
LOOK_UP_TIMEOUT = 30.0
"""Longest time in seconds for a look-up: all polls of the connection wait for it."""
MAX_FAILURES = 3
"""Failed look-ups in a row that are an error. Airflow reports even transient failures as "isn't defined"."""
_CREDENTIAL_ERRORS = (OpenmarketsAuthError, OpenmarketsConfigurationError, OpenmarketsAccessRefused)


class LiveConnection:
    """A connection, and the client of its current fields.

    :ivar users: number of groups that use it.
    """

    def __init__(self, conn_id: str) -> None:
        self.users = 0
        self._conn_id = conn_id
        self._lock = asyncio.Lock()
        self._look_up_time = -math.inf
        self._failures = 0
        self._error: Exception | None = None
        self._client: OpenmarketsClient | None = None
        self._queries: Counter[OpenmarketsClient] = Counter()

    async def run_query(self, query: Query) -> Any:
        """Run a query with the connection's current credentials.

        :raises OpenmarketsError: as the client's ``arun``. After an error of the credentials, the connection has been
            looked up again and was unchanged.
        :raises Exception: the connection can't be looked up.
        """
        start = asyncio.get_running_loop().time()
        client = await self._get_client(start - (LOOK_UP_INTERVAL if self._error is None else RETRY_INTERVAL))
        try:
            return await self._run_with(client, query)
        except _CREDENTIAL_ERRORS:
            newer = await self._get_client(start)
            if newer is client:
                raise
        return await self._run_with(newer, query)

    async def aclose(self) -> None:
        """Close the client."""
        if self._client is not None:
            await self._client.aclose()

    async def _run_with(self, client: OpenmarketsClient, query: Query) -> Any:
        self._queries[client] += 1
        try:
            return await client.arun(query)
        finally:
            self._queries[client] -= 1
            await self._close_if_unused(client)

    async def _get_client(self, since: float) -> OpenmarketsClient:
        """Return the client of the connection, looked up at or after a time of the event loop's clock."""
        async with self._lock:
            # Callers that waited for the lock use the look-up of its previous owner.
            if self._look_up_time < since:
                start = asyncio.get_running_loop().time()
                await self._look_up()
                # At the first look-up there is no client to continue with.
                while self._client is None and self._error is None:
                    await asyncio.sleep(RETRY_INTERVAL)
                    await self._look_up()
                self._look_up_time = start
        if self._client is None or self._error is not None:
            raise (self._error or RuntimeError("no look-up")).with_traceback(None)
        return self._client

    async def _look_up(self) -> None:
        try:
            async with asyncio.timeout(LOOK_UP_TIMEOUT):
                client = await OpenmarketsHook(self._conn_id).aclient()
        except Exception as error:  # noqa: BLE001 - a secrets backend may raise anything
            self._failures += 1
            if isinstance(error, OpenmarketsError) or self._failures >= MAX_FAILURES:
                self._error = error
            elif self._client is None:
                log.warning("Could not look up connection %r; trying again: %s", self._conn_id, error)
            else:
                log.warning(
                    "Could not look up connection %r; polls continue with the fields that it had: %s",
                    self._conn_id,
                    error,
                )
            return
        self._failures, self._error = 0, None
        if self._client is None or (client.settings, client.store) != (self._client.settings, self._client.store):
            old, self._client = self._client, client
            if old is not None:
                log.info("Connection %r has changed; polls continue with its new fields.", self._conn_id)
                await self._close_if_unused(old)

    async def _close_if_unused(self, client: OpenmarketsClient) -> None:
        if client is not self._client and not self._queries[client]:
            del self._queries[client]
            await client.aclose()
