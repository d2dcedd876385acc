"""Connections that change while triggers wait: looked up again, and the client that each leads to at present."""

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

LOOK_UP_EVERY = 60.0
"""Seconds after which a connection is looked up again."""
LOOK_UP_TIMEOUT = 30.0
"""Seconds that a look-up may take: all polls of the connection wait for it."""
_LOOK_UP_AGAIN = 1.0
"""The same after it could not be."""
FAILED_LOOK_UPS = 3
"""Look-ups in a row after which a connection counts as gone: Airflow says "not defined" for any failure."""
_OF_THE_CREDENTIALS = (OpenmarketsAuthError, OpenmarketsConfigurationError, OpenmarketsAccessRefused)


class Account:
    """A connection, and the client that it leads to at present.

    :ivar users: how many groups use it.
    """

    def __init__(self, conn_id: str) -> None:
        self.users = 0
        self._conn_id = conn_id
        self._lock = asyncio.Lock()
        self._looked_up = -math.inf
        self._failed = 0
        self._error: Exception | None = None
        self._client: OpenmarketsClient | None = None
        self._polls: Counter[OpenmarketsClient] = Counter()

    async def ask(self, query: Query) -> Any:
        """Answer a query with the credentials that the connection holds now.

        :raises OpenmarketsError: as the client's ``arun``; the connection was looked up after an error of credentials.
        :raises Exception: the connection can't be looked up.
        """
        begun = asyncio.get_running_loop().time()
        client = await self._current(begun - (LOOK_UP_EVERY if self._error is None else _LOOK_UP_AGAIN))
        try:
            return await self._ask(client, query)
        except _OF_THE_CREDENTIALS:
            newer = await self._current(begun)
            if newer is client:
                raise
        return await self._ask(newer, query)

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def _ask(self, client: OpenmarketsClient, query: Query) -> Any:
        self._polls[client] += 1
        try:
            return await client.arun(query)
        finally:
            self._polls[client] -= 1
            await self._close_unless_used(client)

    async def _current(self, since: float) -> OpenmarketsClient:
        """Return the client, as the connection was at that time (of the event loop) or later."""
        async with self._lock:
            # Who waited for somebody else's look-up shares what it came to.
            if self._looked_up < since:
                begun = asyncio.get_running_loop().time()
                await self._look_up()
                # At the start there is nothing that polls could go on with.
                while self._client is None and self._error is None:
                    await asyncio.sleep(_LOOK_UP_AGAIN)
                    await self._look_up()
                self._looked_up = begun
        if self._client is None or self._error is not None:
            raise (self._error or RuntimeError("no look-up")).with_traceback(None)
        return self._client

    async def _look_up(self) -> None:
        try:
            async with asyncio.timeout(LOOK_UP_TIMEOUT):
                found = await OpenmarketsHook(self._conn_id).aclient()
        except Exception as error:  # noqa: BLE001 - a secrets backend may raise anything
            self._failed += 1
            if isinstance(error, OpenmarketsError) or self._failed >= FAILED_LOOK_UPS:
                self._error = error
            elif self._client is None:
                log.warning("Connection %r can't be looked up; looking again: %s", self._conn_id, error)
            else:
                log.warning("Connection %r can't be looked up; polls go on as before: %s", self._conn_id, error)
            return
        self._failed, self._error = 0, None
        if self._client is None or (found.settings, found.store) != (self._client.settings, self._client.store):
            old, self._client = self._client, found
            if old is not None:
                log.info("Connection %r has changed; polls go on with what it holds now.", self._conn_id)
                await self._close_unless_used(old)

    async def _close_unless_used(self, client: OpenmarketsClient) -> None:
        if client is not self._client and not self._polls[client]:
            del self._polls[client]
            await client.aclose()
