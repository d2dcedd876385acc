"""The sandbox as a server in a thread, for tests and the command line."""

from __future__ import annotations

import asyncio
import socket
import tempfile
import threading
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from openmarkets_provider.sandbox.app import APIS, IDENTITY, create_app
from openmarkets_provider.sandbox.certificate import write_certificate
from openmarkets_provider.sandbox.state import CLIENTS, Client, State

__all__ = ["Client", "SandboxServer"]


class _Protocol(H11Protocol):
    """Passes the transport to the app, so that faults can cut the connection. Writes no access log."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # asyncio does not set this for our listener. Without it, each answer on a kept connection takes 40 ms.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.app_state = {**self.app_state, "transport": transport}
        # Not by uvicorn's option, which changes a logger of the whole process.
        self.access_log = False


class _Server(uvicorn.Server):
    """Signals when it accepts connections and when it stops."""

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
        # With TLS, a close waits for the client's close, which may not come before the loop ends.
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)


class SandboxServer:
    """A local stand-in for Openmarkets' identity server and APIs.

    Use it as a context manager. It listens on `host` (default: loopback) and `port`; 0 picks a free port. `connection`
    uses the first of `clients`. `now` is the initial value of the attribute.

    With `tls`, a folder, it serves HTTPS. At each start it writes a new authority, which clients must trust, to
    `ca.pem` there. `name` is the host in the URLs and the certificate, if clients do not use `host`.

    :meth:`reset` undoes the effects of all other methods. Records have the API's fields and units: prices are native,
        in cents for most securities, and times without an offset are exchange time. Missing fields are null, unless the
        method says otherwise. Methods raise ValueError for invalid arguments. The message names the field, and for an
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
        tls: Path | None = None,
        name: str | None = None,
    ) -> None:
        """Prepare a server without starting it."""
        self.client_id = clients[0].client_id
        self.client_secret = clients[0].client_secret
        self._state = State(clients, token_lifetime, now)
        self._latency = latency
        self._address = (host, port)
        self._authority = None if tls is None else tls / "ca.pem"
        self._name = name

    def __enter__(self) -> Self:
        """Start, and wait until connections are accepted."""
        listener = socket.create_server(self._address)
        self._address = listener.getsockname()
        closing = asyncio.Event()
        config = uvicorn.Config(
            create_app(self._state, self._latency, closing),
            http=_Protocol,
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            server_header=False,
            timeout_keep_alive=60,
            timeout_graceful_shutdown=1,
        )
        with tempfile.TemporaryDirectory() as folder:
            if self._authority is not None:
                chain = Path(folder) / "server.pem"
                try:
                    write_certificate(self._host, self._authority, chain)
                except OSError:
                    listener.close()
                    raise
                config.ssl_certfile = chain
            config.load()
        self._server = _Server(config, closing)
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
        """Stop. Waiting requests are answered immediately; other requests have a second to end."""
        self._server.should_exit = True
        self._thread.join()

    @property
    def url(self) -> str:
        """The base URL of the sandbox."""
        return f"{'https' if self._authority else 'http'}://{self._host}:{self._address[1]}"

    @property
    def address(self) -> str:
        """The IP address that it listens on."""
        return self._address[0]

    @property
    def _host(self) -> str:
        return self._name or self.address

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
            }
            | ({"ca_bundle": str(self._authority)} if self._authority else {}),
        }

    @property
    def now(self) -> datetime:
        """The time of the sandbox, in the exchange's zone.

        Set it to a datetime with a time zone for a fixed time, or to None for the real time. Sessions, quotes, bars,
        trades, orders and announcements follow it. Token lifetimes, waits of faults and the steps of
        :meth:`set_security` use the real time, because clients do.
        """
        return self._state.clock.now()

    @now.setter
    def now(self, now: datetime | None) -> None:
        self._state.clock.set(now)

    def stats(self) -> dict[str, Any]:
        """Return the counts since the start or the last reset."""
        return self._state.stats.report()

    def reset(self) -> None:
        """Reset the counts, the time, orders, and everything that was set or published. Tokens stay valid."""
        self._state.reset()

    def fault(self, **fields: Any) -> dict[str, Any]:
        """Activate a fault, and return it.

        :param fields: ``target``, an API or the start of a path; ``kind``: ``status``, ``body``, ``delay`` or
            ``reset``; ``times``, ``after``, ``probability`` and ``seed`` for how often; and the fields of the kind. See
            the module ``openmarkets_provider.sandbox.faults``.
        """
        return self._state.fault(fields)

    def reply(self, method: str, path: str, body: Any = "", **fields: Any) -> None:
        """Answer a method and path, below an API or the identity server, with a canned reply instead of the endpoint.

        The token is checked before, and faults act as on any request. Replies to the same method and path form a queue;
        one without ``times`` stays until the next one replaces it.

        :param path: with the leading slash, such as ``/news/headlines/v1``; matches with any query string.
        :param body: text is sent unchanged, anything else as JSON.
        :param fields: ``status`` (default: 200), ``headers`` by name, and ``times``, how many requests it answers
            (default: all).
        """
        self._state.replies.add({"method": method, "path": path, "body": body, **fields})

    def revoke_tokens(self) -> int:
        """Make all issued tokens invalid, and return their number."""
        return self._state.tokens.revoke_all()

    def add_security(self, security: str, **fields: Any) -> None:
        """Add a security, with made-up quotes, bars and trades around 10 dollars.

        :param security: its name, such as ``NEW.ASX@TM``.
        :param fields: fields of its information, such as ``priceMultiplier`` (default: 0.01) or ``currencyCode``
            (default: AUD).
        """
        self._state.records.add_security(security, fields)

    def set_security(self, security: str, **fields: Any) -> None:
        """Override fields of a security's quote, each by a value or a list of `[value, seconds]` steps."""
        self._state.overrides.set(security, fields)

    def set_bars(self, security: str, bars: list[dict[str, Any]], frequency: str = "Daily") -> None:
        """Replace a security's bars. The sandbox's time does not limit them.

        :param bars: all bars, in the order of the reply. They need ``timeSeriesDate``, or ``timeSeriesDateTime`` for
            minutes. ``adjustmentFactor`` defaults to 1.
        :param frequency: ``Daily``, ``Weekly``, or ``Minutes`` for all intervals. Bars of other frequencies stay made
            up.
        """
        self._state.records.set_bars(security, bars, frequency)

    def set_accounts(self, accounts: list[dict[str, Any]]) -> None:
        """Replace all accounts, portfolios, positions, cash, orders and trades.

        Each account is linked to one portfolio of the same code. It has no positions, cash, orders and trades, but
        clients can create orders.

        :param accounts: records, which need ``accountCode``.
        """
        self._state.set_accounts(accounts)

    def set_positions(self, portfolio: str, positions: list[dict[str, Any]]) -> None:
        """Replace a portfolio's positions.

        :param positions: records, which need ``securityCode``. ``exchange`` defaults to ASX; account and portfolio
            default to those of the portfolio.
        """
        self._state.records.set_positions(portfolio, positions)

    def set_cash(self, portfolio: str, cash: list[dict[str, Any]]) -> None:
        """Replace a portfolio's cash.

        :param cash: a record for each currency. ``currencyCode`` defaults to AUD; codes and name default to those of
            the portfolio.
        """
        self._state.records.set_cash(portfolio, cash)

    def orders(self) -> list[dict[str, Any]]:
        """Return all orders that clients created since the last reset, oldest first, listed or not.

        They have the fields of the list of orders, with complete ``notes``, and the request that created them as
        ``body``.
        """
        return self._state.orders.created()

    def set_order_behaviour(self, security: str | None = None, **fields: Any) -> None:
        """Set the behaviour of new orders: when they are accepted, listed, filled or rejected.

        :param security: such as ``BHP.ASX@TM``; None for the default behaviour.
        :param fields: ``accept_after``, ``list_after``, ``reject_after`` and ``change_after``, in seconds of real time;
            ``fills``, a list of ``[seconds, volume]`` steps, with None for the remaining volume; and ``notes_length``.
            All are optional. See the module ``openmarkets_provider.sandbox.behaviour``.
        """
        self._state.set_order_behaviour({"security": security, **fields})

    def fill_order(self, number: int, volume: int | None = None, price: float | None = None) -> None:
        """Fill an active order now, even outside of sessions.

        :param volume: at most the remaining volume is filled; None for the remaining volume.
        :param price: native; None for the order's own price, or the last price of the quote for a market order.
        """
        self._state.orders.fill(number, volume, price)

    def publish(self, security: str, **fields: Any) -> dict[str, object]:
        """Publish an announcement of a company now, with optional `headline` and `priceSensitive`, and return it."""
        return self._state.announcements.publish({"security": security, **fields})
