"""The orders of the sandbox: those that clients created and some that are there at the start, and those behind fills.

The first two stay in memory. An active order stays so until it is cancelled: nothing fills it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

from starlette.exceptions import HTTPException

from openmarkets_provider.sandbox import data, wire
from openmarkets_provider.sandbox.accounts import ACCOUNTS, Account, fills
from openmarkets_provider.sandbox.clock import Clock
from openmarkets_provider.sandbox.securities import DATA_SOURCE, EXCHANGE, SECURITIES, Record, Security
from openmarkets_provider.sandbox.sessions import current_session, snap, stamp
from openmarkets_provider.sessions.calendar import OPEN_TIME

SIDES = ("Buy", "Sell", "Short")
LIFETIMES = ("EndOfDay", "Date", "FillAndKill", "FillOrKill")
PRICING = ("Limit", "Market")
DAYS = 3

_FIRST_NUMBER = 100001
_FIXED = ("accountCode", "securityCode", "exchange", "destination")


@dataclass
class Order:
    """An order: the terms that the client gave, and what became of it.

    One without a time was created when the session began, and not changed since.
    """

    number: int
    security: Security
    terms: dict[str, Any]
    created: datetime | None
    updated: datetime | None = field(init=False)
    parent: int | None = None
    state: str = "ACTIVE"
    last_action: str = "CREATE"
    status: str = "OK"
    done: int = 0
    done_price: int | float | None = None

    def __post_init__(self) -> None:
        """Take the creation for the last change so far."""
        self.updated = self.created

    @property
    def changeable(self) -> bool:
        """Whether the order can be amended and cancelled."""
        ended = self.last_action in ("CANCEL", "PURGE") or self.done >= self.terms["orderVolume"]
        return self.state == "ACTIVE" and not ended

    def change(self, action: str, now: datetime) -> None:
        """Note what was done to the order."""
        self.last_action, self.updated = action, now

    def record(self, now: datetime) -> Record:
        """Return the order as the list of orders has it."""
        terms = self.terms
        volume: int = terms["orderVolume"]
        multiplier, start = self.security.multiplier, current_session(self.security, now).start
        done_value = Decimal(str(self.done_price or 0)) * multiplier * self.done
        return {
            "rootParentOrderNumber": self.parent or self.number,
            "orderNumber": self.number,
            "parentOrderNumber": self.parent,
            **{name: terms[name] for name in _FIXED},
            "subDestination": None,
            "pricingInstructions": terms["pricingInstruction"],
            "orderState": self.state,
            "lastAction": self.last_action,
            "actionStatus": self.status,
            "orderVolume": volume,
            "orderPrice": terms.get("orderPrice"),
            "remainingVolume": volume - self.done,
            "doneVolumeTotal": self.done,
            "doneValueTotal": data.number(done_value),
            "averagePrice": self.done_price,
            "lifetime": terms["lifetime"],
            "currency": "AUD",
            "expiryDateTime": terms.get("expiryDateTime"),
            "stateDescription": self.state.capitalize(),
            "createDateTime": stamp(self.created or start),
            "updateDateTime": stamp(self.updated or start),
            "destinationOrderNumber": str(self.number),
            "side": terms["side"],
            "priceMultiplier": data.number(multiplier),
            "postTradeStatus": None,
            "notes": terms.get("notes"),
        }


class OrderBook:
    """The orders that each account has at the start, and those created since then or since the last reset."""

    def __init__(self, clock: Clock, find: Callable[[str], Security | None]) -> None:
        """Begin with the first orders; `find` returns the security written as a text, or None."""
        self._clock, self._find = clock, find
        self.reset()

    def reset(self, accounts: Iterable[Account] = ACCOUNTS.values()) -> None:
        """Restore the first orders of some accounts and forget all others."""
        self._accounts = tuple(account.code for account in accounts)
        first = (order for account in accounts for order in _first_orders(account))
        self._orders = {order.number: order for order in first}
        self._numbers = itertools.count(_FIRST_NUMBER)

    def create(self, terms: dict[str, Any]) -> int:
        """Keep a new order and return its number."""
        wire.choice(terms, "accountCode", self._accounts)
        security = self._target(terms)
        _check_terms(terms)
        number = next(self._numbers)
        self._orders[number] = Order(number, security, terms, self._clock.exchange_time())
        return number

    def amend(self, number: int, changes: dict[str, Any]) -> None:
        """Change the terms of an active order; what the changes leave out stays."""
        order = self._active(number)
        fixed = {name: order.terms[name] for name in _FIXED}
        terms = {**order.terms, **changes, **fixed}
        if changes.get("pricingInstruction") == "Market" and "orderPrice" not in changes:
            terms["orderPrice"] = None
        _check_terms(terms)
        if terms["orderVolume"] < order.done:
            raise wire.bad_request(f"orderVolume must be {order.done} at least, which is done.")
        order.terms = terms
        order.change("AMEND", self._clock.exchange_time())

    def cancel(self, number: int) -> None:
        """Cancel an active order."""
        order = self._active(number)
        order.state = "INACTIVE"
        order.change("CANCEL", self._clock.exchange_time())

    def records(self, account: Account, *, children: bool) -> list[Record]:
        """Return the account's orders of the last days, newest first, with or without child orders."""
        orders = [order for order in self._orders.values() if order.terms["accountCode"] == account.code]
        now = self._clock.exchange_time()
        orders = [*reversed(orders), *filled(account, now)]
        return [order.record(now) for order in orders if children or order.parent is None]

    def _target(self, terms: dict[str, Any]) -> Security:
        """Check where a new order goes, which no amendment changes, and return its security."""
        code, exchange = terms.get("securityCode"), terms.get("exchange")
        security = self._find(f"{code}.{exchange}@{DATA_SOURCE}")
        if security is None:
            raise wire.bad_request(f"The sandbox doesn't know the security {code} of exchange {exchange}.")
        if not isinstance(terms.get("destination"), str) or not terms["destination"]:
            raise wire.bad_request("destination must be a text that isn't empty.")
        return security

    def _active(self, number: int) -> Order:
        order = self._orders.get(number)
        if order is None:
            raise HTTPException(404, f"There is no order {number} that can be changed.")
        if not order.changeable:
            raise HTTPException(409, f"Order {number} is no longer active.")
        return order


class _First(NamedTuple):
    """An order that an account has at the start; each differs from a working one in one thing alone."""

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
    """Yield the orders that an account has at the start; a child belongs to the first of them."""
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
            done=first.done,
            done_price=price if first.done else None,
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


def filled(account: Account, now: datetime) -> Iterator[Order]:
    """Yield the finished orders behind the account's last fills, newest first."""
    start = datetime.combine(now.date() - timedelta(days=DAYS), OPEN_TIME)
    for fill in reversed(list(fills(account, start, now))):
        price, volume = fill.security.native(fill.trade.price), fill.trade.volume
        yield Order(
            fill.order_number,
            fill.security,
            _terms(account, fill.security, fill.side, price, volume),
            fill.trade.at,
            state="INACTIVE",
            done=volume,
            done_price=price,
        )


def _check_terms(terms: dict[str, Any]) -> None:
    """Check the terms that an amendment may change too."""
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
