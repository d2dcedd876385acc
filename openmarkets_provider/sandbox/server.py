"""The sandbox as a server in a thread, for tests and for the command line."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from openmarkets_provider.sandbox.app import APIS, IDENTITY, create_app
from openmarkets_provider.sandbox.state import CLIENTS, Client, State

__all__ = ["Client", "SandboxServer"]


class _Protocol(H11Protocol):
    """Hands the transport to the app, so that a fault can cut the connection, and logs no access."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # asyncio doesn't for this listener, and then each answer on a kept connection takes 40 ms
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.app_state = {**self.app_state, "transport": transport}
        # here, not by uvicorn's option: that changes a logger of the whole process, which others change too
        self.access_log = False


class _Server(uvicorn.Server):
    """Says when it accepts connections and when it stops."""

    def __init__(self, config: uvicorn.Config, closing: asyncio.Event) -> None:
        super().__init__(config)
        self.ready = threading.Event()
        self._closing = closing

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._closing.set()
        await super().shutdown(sockets)


class SandboxServer:
    """A local stand-in for Openmarkets' identity server and APIs.

    Use it as a context manager. It listens on loopback unless `host` says otherwise; `port` 0 picks a free
    port. The first of `clients` is the one that `connection` uses. `now` is the attribute's first value.

    Whatever a method sets, :meth:`reset` undoes. Records have the API's own fields, in its own units: prices are native
    ones, for most securities cents, and times without an offset are exchange time. Fields that are left out are null,
    unless the method says what they are. All methods raise ValueError for what can't be; it names the field, and for an
    unknown field the closest one.
    """

    def __init__(
        self,
        clients: Sequence[Client] = CLIENTS,
        token_lifetime: int = 3600,
        latency: float = 0.0,
        port: int = 0,
        host: str = "127.0.0.1",
        now: datetime | None = None,
    ) -> None:
        """Prepare a server; nothing starts yet."""
        self.client_id = clients[0].client_id
        self.client_secret = clients[0].client_secret
        self._state = State(clients, token_lifetime, now)
        self._latency = latency
        self._address = (host, port)

    def __enter__(self) -> Self:
        """Start, and wait until connections are accepted."""
        listener = socket.create_server(self._address)
        self._address = listener.getsockname()
        closing = asyncio.Event()
        self._server = _Server(
            uvicorn.Config(
                create_app(self._state, self._latency, closing),
                http=_Protocol,
                loop="asyncio",
                ws="none",
                lifespan="off",
                log_config=None,
                server_header=False,
                timeout_keep_alive=60,
                timeout_graceful_shutdown=1,
            ),
            closing,
        )
        self._thread = threading.Thread(
            target=self._server.run, args=([listener],), name="openmarkets-sandbox", daemon=True
        )
        self._thread.start()
        if not self._server.ready.wait(timeout=60):
            raise RuntimeError("The sandbox didn't start.")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop; what waits is answered at once, and other requests have a second to end."""
        self._server.should_exit = True
        self._thread.join()

    @property
    def url(self) -> str:
        """The URL that everything is below."""
        host, port = self._address
        return f"http://{host}:{port}"

    @property
    def identity_url(self) -> str:
        """The URL of the identity server."""
        return self.url + IDENTITY

    @property
    def market_data_url(self) -> str:
        """The URL of the market-data API."""
        return self.url + APIS["market_data"].path

    @property
    def news_url(self) -> str:
        """The URL of the news API."""
        return self.url + APIS["news"].path

    @property
    def oms_url(self) -> str:
        """The URL of the order-management API."""
        return self.url + APIS["oms"].path

    @property
    def connection(self) -> dict[str, Any]:
        """The Airflow connection to the sandbox, as JSON."""
        return {
            "conn_type": "openmarkets",
            "login": self.client_id,
            "password": self.client_secret,
            "host": self.identity_url,
            "extra": {
                "environment": "test",
                "market_data_url": self.market_data_url,
                "news_url": self.news_url,
                "oms_url": self.oms_url,
                "orders": "test",
            },
        }

    @property
    def now(self) -> datetime:
        """The time that the sandbox dates everything by, in the exchange's zone.

        Set it to a datetime with a time zone and it stands still there; None is the real time again. Sessions, quotes,
        bars, trades, orders and announcements follow it. The lifetime of tokens, waits of faults and the steps of
        :meth:`set_security` do not: clients measure those by the real time.
        """
        return self._state.clock.now()

    @now.setter
    def now(self, now: datetime | None) -> None:
        self._state.clock.set(now)

    def stats(self) -> dict[str, Any]:
        """Return the counts since the start or the last reset."""
        return self._state.stats.report()

    def reset(self) -> None:
        """Zero the counts, drop all that was set or published, restore time and first orders; tokens stay valid."""
        self._state.reset()

    def fault(self, **fields: Any) -> dict[str, Any]:
        """Make a fault active, and return it.

        :param fields: ``target``, an API or the start of a path; ``kind``, what happens: ``status``, ``body``,
            ``delay`` or ``reset``; how often: ``times``, ``after``, ``probability`` and ``seed``; and what the kind
            takes. The module ``openmarkets_provider.sandbox.faults`` describes them.
        """
        return self._state.fault(fields)

    def reply(self, method: str, path: str, body: Any = "", **fields: Any) -> None:
        """Answer a method and path, below an API or the identity server, by a canned reply instead of the endpoint.

        The token is checked before, and faults act as on any request. Replies to the same method and path queue up; one
        without ``times`` stays, until the next one replaces it.

        :param path: from the first slash on, such as ``/news/headlines/v1``; any query string is answered.
        :param body: a text is sent as it is, anything else as JSON.
        :param fields: ``status`` (200), ``headers`` by name, and ``times``, how many requests it answers (all).
        """
        self._state.replies.add({"method": method, "path": path, "body": body, **fields})

    def revoke_tokens(self) -> int:
        """Make every token that was issued invalid, and return how many those were."""
        return self._state.tokens.revoke_all()

    def add_security(self, security: str, **fields: Any) -> None:
        """Add a security, with made-up quotes, bars and trades around 10 dollars.

        :param security: written like ``NEW.ASX@TM``.
        :param fields: of its security information, such as ``priceMultiplier`` (0.01) or ``currencyCode`` (AUD).
        """
        self._state.records.add_security(security, fields)

    def set_security(self, security: str, **fields: Any) -> None:
        """Override fields of a security's quote, each with a value or a list of `[value, seconds]` steps."""
        self._state.overrides.set(security, fields)

    def set_bars(self, security: str, bars: list[dict[str, Any]], frequency: str = "Daily") -> None:
        """Replace a security's bars, whatever the sandbox's time is.

        :param bars: all of them, in the order of the reply. Each needs ``timeSeriesDate``, or of minutes
            ``timeSeriesDateTime``; ``adjustmentFactor`` is 1 where it is left out.
        :param frequency: ``Daily``, ``Weekly`` or ``Minutes``, which are returned for any interval. Bars of the other
            frequencies stay made up.
        """
        self._state.records.set_bars(security, bars, frequency)

    def set_accounts(self, accounts: list[dict[str, Any]]) -> None:
        """Replace all accounts, and with them portfolios, positions, cash, orders and trades.

        Each account is linked to one portfolio of the same code. It has no positions, cash, orders and trades; orders
        can be created.

        :param accounts: each needs ``accountCode``.
        """
        self._state.set_accounts(accounts)

    def set_positions(self, portfolio: str, positions: list[dict[str, Any]]) -> None:
        """Replace a portfolio's positions.

        :param positions: each needs ``securityCode``; ``exchange`` is ASX where it is left out, and account and
            portfolio are those of the portfolio.
        """
        self._state.records.set_positions(portfolio, positions)

    def set_cash(self, portfolio: str, cash: list[dict[str, Any]]) -> None:
        """Replace a portfolio's cash.

        :param cash: a record for each currency; ``currencyCode`` is AUD where it is left out, and codes and name are
            those of the portfolio.
        """
        self._state.records.set_cash(portfolio, cash)

    def orders(self) -> list[dict[str, Any]]:
        """Return every order that a client created since the last reset, the oldest first, listed or not.

        Each has the fields of the list of orders, all of its ``notes``, and as ``body`` the body that created it.
        """
        return self._state.orders.created()

    def set_order_behaviour(self, security: str | None = None, **fields: Any) -> None:
        """Set how orders behave that are created from now on: when they are accepted, listed, filled or rejected.

        :param security: of which security, such as ``BHP.ASX@TM``; None is all that have no behaviour of their own.
        :param fields: ``accept_after``, ``list_after``, ``reject_after`` and ``change_after``, in seconds of the real
            time; ``fills``, a list of ``[seconds, volume]`` steps, where a volume of None is all that remains; and
            ``notes_length``. What is left out has its default. The module
            ``openmarkets_provider.sandbox.behaviour`` describes them.
        """
        self._state.set_order_behaviour({"security": security, **fields})

    def fill_order(self, number: int, volume: int | None = None, price: float | None = None) -> None:
        """Fill an active order now, outside of sessions, too.

        :param volume: no more than remains is filled; None is all that remains.
        :param price: native; None is the order's own, or for a market order the last price of the quote.
        """
        self._state.orders.fill(number, volume, price)

    def publish(self, security: str, **fields: Any) -> dict[str, object]:
        """Publish an announcement of a company now, with `headline` and `priceSensitive`, and return it."""
        return self._state.announcements.publish({"security": security, **fields})
