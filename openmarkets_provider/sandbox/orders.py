"""The orders of the sandbox: those of clients, those at the start, and those behind made-up fills.

The first two are kept in memory. A client's order follows its behaviour: by default it is accepted immediately, active
until the close, and not filled.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from starlette.exceptions import HTTPException

from openmarkets_provider.sandbox import wire
from openmarkets_provider.sandbox.accounts import ACCOUNTS, Account, fills
from openmarkets_provider.sandbox.answers import is_number, is_whole
from openmarkets_provider.sandbox.behaviour import Behaviour
from openmarkets_provider.sandbox.clock import Clock
from openmarkets_provider.sandbox.order import FIXED, Execution, Now, Order
from openmarkets_provider.sandbox.securities import DATA_SOURCE, EXCHANGE, SECURITIES, Record, Security
from openmarkets_provider.sandbox.sessions import snap
from openmarkets_provider.sessions.calendar import OPEN_TIME

SIDES = ("Buy", "Sell", "Short")
LIFETIMES = ("EndOfDay", "Date", "FillAndKill", "FillOrKill")
PRICING = ("Limit", "Market")
DAYS = 3

_FIRST_NUMBER = 100001


class OrderBook:
    """The orders of each account at the start, and those created since then or since the last reset.

    Every method first applies all steps and changes that are due.
    """

    def __init__(
        self,
        clock: Clock,
        find: Callable[[str], Security | None],
        market_price: Callable[[Security], float],
    ) -> None:
        """Start with the first orders.

        :param find: returns the security with a name, or None.
        :param market_price: returns the native price at which market orders are filled.
        """
        self._clock, self._find, self._market_price = clock, find, market_price
        self._lock = threading.Lock()
        self.reset()

    def reset(self, accounts: Iterable[Account] = ACCOUNTS.values()) -> None:
        """Restore the first orders of some accounts. Forget all other orders and all behaviours."""
        with self._lock:
            known = tuple(accounts)
            self._accounts = tuple(account.code for account in known)
            first = (order for account in known for order in _first_orders(account))
            self._orders = {order.number: order for order in first}
            self._numbers = itertools.count(_FIRST_NUMBER)
            self._behaviours: dict[Security | None, Behaviour] = {}

    def set_behaviour(self, fields: Mapping[str, Any], security: Security | None = None) -> None:
        """Set the behaviour of new orders, for one security or as the default.

        :raises ValueError: a field is unknown or invalid.
        """
        behaviour = Behaviour.parse(fields)
        with self._lock:
            self._behaviours[security] = behaviour

    def create(self, terms: dict[str, Any]) -> int:
        """Create an order and return its number."""
        with self._present() as now:
            wire.choice(terms, "accountCode", self._accounts)
            security = self._target(terms)
            _check_terms(terms)
            number = next(self._numbers)
            behaviour = self._behaviours.get(security) or self._behaviours.get(None) or Behaviour()
            self._orders[number] = Order.new(number, security, terms, now, behaviour)
            self._orders[number].advance(now, self._market_price)
            return number

    def amend(self, number: int, changes: dict[str, Any]) -> None:
        """Amend an active order. Terms that are not in the changes stay."""
        with self._present() as now:
            order = self._active(number)
            fixed = {name: order.terms[name] for name in FIXED}
            terms = {**order.terms, **changes, **fixed}
            if changes.get("pricingInstruction") == "Market" and "orderPrice" not in changes:
                terms["orderPrice"] = None
            _check_terms(terms)
            if terms["orderVolume"] < order.done:
                raise wire.bad_request(f"orderVolume must be at least {order.done}, the volume already done.")
            order.change("AMEND", terms, now)
            order.advance(now, self._market_price)

    def cancel(self, number: int) -> None:
        """Cancel an active order."""
        with self._present() as now:
            order = self._active(number)
            order.change("CANCEL", order.terms, now)
            order.advance(now, self._market_price)

    def fill(self, number: int, volume: Any, price: Any) -> None:
        """Fill a client's order now.

        :param volume: None for the remaining volume.
        :param price: native; None for the order's own price, or the market price.
        :raises ValueError: an argument is invalid; the message names it.
        """
        if volume is not None and not is_whole(volume, 1):
            raise ValueError("volume must be an integer above 0, or null")
        if price is not None and not (is_number(price) and price):
            raise ValueError("price must be a number above 0, in native units, or null")
        with self._present() as now:
            order = self._orders.get(number)
            if order is None or number < _FIRST_NUMBER:
                raise ValueError(f"no client has created an order {number}")
            if order.state != "ACTIVE" or not order.live:
                raise ValueError(f"order {number} can't be filled: it is {order.state}")
            order.fill(volume, order.price(self._market_price) if price is None else price, now)

    def records(self, account: Account, *, children: bool) -> list[Record]:
        """Return the account's orders of the last days, newest first, with or without child orders."""
        with self._present() as now:
            orders = [order for order in self._of([account.code]) if order.is_listed(now, DAYS)]
            start = datetime.combine(now.at.date() - timedelta(days=DAYS), OPEN_TIME)
            orders = [*reversed(orders), *reversed(list(filled(account, start, now.at)))]
            return [order.record(now.at) for order in orders if children or order.parent is None]

    def trades(self, account: Account, first: datetime, last: datetime) -> list[Record]:
        """Return the account's own trades from first to last, inclusive, oldest first."""
        with self._present() as now:
            orders = [*filled(account, first, min(last, now.at)), *self._of([account.code])]
            trades = [trade for order in orders for trade in order.trades(first, last)]
            return sorted(trades, key=lambda trade: str(trade["tradeDateTime"]))

    def created(self) -> list[Record]:
        """Return all orders of clients, oldest first, listed or not.

        They have the fields of the list of orders, with complete notes, and the request that created them as ``body``.
        """
        with self._present() as now:
            orders = [order for number, order in self._orders.items() if number >= _FIRST_NUMBER]
            return [order.record(now.at) | {"notes": order.terms.get("notes"), "body": order.body} for order in orders]

    def executions(self, accounts: Iterable[str], since: float) -> list[tuple[Order, Execution]]:
        """Return the fills of the accounts' orders since a moment of ``time.monotonic()``, in order of time."""
        with self._present():
            found = [
                (order, execution)
                for order in self._of(accounts)
                for execution in order.executions
                if execution.at is not None and execution.moment >= since
            ]
            return sorted(found, key=lambda each: each[1].moment)

    @contextmanager
    def _present(self) -> Iterator[Now]:
        """Acquire the lock, and apply all steps and changes that are due."""
        with self._lock:
            now = Now(time.monotonic(), self._clock.exchange_time())
            for order in self._orders.values():
                order.advance(now, self._market_price)
            yield now

    def _of(self, accounts: Iterable[str]) -> list[Order]:
        codes = set(accounts)
        return [order for order in self._orders.values() if order.terms["accountCode"] in codes]

    def _target(self, terms: dict[str, Any]) -> Security:
        """Check the fixed terms of a new order, and return its security."""
        code, exchange = terms.get("securityCode"), terms.get("exchange")
        security = self._find(f"{code}.{exchange}@{DATA_SOURCE}")
        if security is None:
            raise wire.bad_request(f"The sandbox doesn't know the security {code} of exchange {exchange}.")
        if not isinstance(terms.get("destination"), str) or not terms["destination"]:
            raise wire.bad_request("destination must be a non-empty string.")
        return security

    def _active(self, number: int) -> Order:
        order = self._orders.get(number)
        if order is None:
            raise HTTPException(404, f"There is no order {number} that can be changed.")
        if not order.changeable:
            raise HTTPException(409, f"Order {number} is no longer active.")
        return order


class _First(NamedTuple):
    """An order of an account at the start. Each differs from an active order in one field."""

    code: str
    market: bool = False
    state: str = "ACTIVE"
    last_action: str = "CREATE"
    status: str = "OK"
    done: int = 0
    child: bool = False


_FIRST_VOLUME = 500
_FIRST_ORDERS = (
    _First("BHP", done=200),
    _First("BHP", child=True),
    _First("CBA", market=True),
    _First("Z0003"),
    _First("WES", state="INACTIVE"),
    _First("RIO", last_action="CANCEL"),
    _First("TLS", last_action="PURGE"),
    _First("NAB", done=_FIRST_VOLUME),
    _First("ANZ", state="PENDING", status="FAILED"),
    _First("WBC", state="PENDING", status="DENIED"),
    _First("QAN", state="PENDING", status="PENDING"),
)


def _first_orders(account: Account) -> Iterator[Order]:
    """Yield the orders of an account at the start. A child order belongs to the first one."""
    if account.traded is None:
        return
    parent = int(account.code[-1]) * 1000 + 1
    for number, first in enumerate(_FIRST_ORDERS, start=parent):
        security = SECURITIES[first.code]
        price = security.native(snap(security.base_price * 0.9))
        yield Order(
            number,
            security,
            _terms(account, security, "Buy", None if first.market else price, _FIRST_VOLUME),
            None,
            parent=parent if first.child else None,
            state=first.state,
            last_action=first.last_action,
            status=first.status,
            executions=[Execution(number, first.done, price, None)] if first.done else [],
        )


def _terms(account: Account, security: Security, side: str, price: float | None, volume: int) -> dict[str, Any]:
    return {
        "accountCode": account.code,
        "securityCode": security.code,
        "exchange": EXCHANGE,
        "destination": EXCHANGE,
        "side": side,
        "orderPrice": price,
        "orderVolume": volume,
        "lifetime": "EndOfDay",
        "pricingInstruction": "Market" if price is None else "Limit",
    }


def filled(account: Account, first: datetime, last: datetime) -> Iterator[Order]:
    """Yield the finished orders behind the account's fills from first to last, inclusive, oldest first."""
    for fill in fills(account, first, last):
        price, volume = fill.security.native(fill.trade.price), fill.trade.volume
        yield Order(
            fill.order_number,
            fill.security,
            _terms(account, fill.security, fill.side, price, volume),
            fill.trade.at,
            state="INACTIVE",
            executions=[Execution(fill.order_number, volume, price, fill.trade.at)],
        )


def _check_terms(terms: dict[str, Any]) -> None:
    """Check the terms that an amendment may change."""
    wire.choice(terms, "side", SIDES)
    lifetime = wire.choice(terms, "lifetime", LIFETIMES)
    pricing = wire.choice(terms, "pricingInstruction", PRICING)
    volume, price = terms.get("orderVolume"), terms.get("orderPrice")
    if type(volume) is not int or volume < 1:
        raise wire.bad_request("orderVolume must be an integer above 0.")
    if pricing == "Market" and price is not None:
        raise wire.bad_request("A Market order has no orderPrice.")
    if pricing == "Limit" and not _is_price(price):
        raise wire.bad_request("orderPrice must be a number above 0, in native units.")
    if lifetime == "Date" or terms.get("expiryDateTime") is not None:
        wire.moment(terms, "expiryDateTime")


def _is_price(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
