"""The orders of the sandbox: those that a client created, kept in memory, and finished ones behind the fills.

A created order stays active until it is cancelled: nothing fills it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from starlette.exceptions import HTTPException

from openmarkets_provider.sandbox import data, wire
from openmarkets_provider.sandbox.accounts import ACCOUNTS, Account, fills
from openmarkets_provider.sandbox.data import Record
from openmarkets_provider.sandbox.securities import DATA_SOURCE, EXCHANGE, find

SIDES = ("Buy", "Sell", "Short")
LIFETIMES = ("EndOfDay", "Date", "FillAndKill", "FillOrKill")
PRICING = ("Limit", "Market")
DAYS = 3

_FIRST_NUMBER = 100001
_FIXED = ("accountCode", "securityCode", "exchange", "destination")


@dataclass
class Order:
    """An order: the terms that the client gave, and what became of it."""

    number: int
    terms: dict[str, Any]
    created: datetime
    updated: datetime = field(init=False)
    active: bool = True
    last_action: str = "CREATE"
    done: int = 0

    def __post_init__(self) -> None:
        """Take the creation for the last change so far."""
        self.updated = self.created

    def change(self, action: str, now: datetime) -> None:
        """Note what was done to the order."""
        self.last_action, self.updated = action, now

    def record(self) -> Record:
        """Return the order as the list of orders has it."""
        terms = self.terms
        volume: int = terms["orderVolume"]
        price: Any = terms.get("orderPrice")
        done_value = round(price * self.done * data.PRICE_MULTIPLIER, 3) if self.done else 0
        return {
            "rootParentOrderNumber": self.number,
            "orderNumber": self.number,
            "parentOrderNumber": None,
            **{name: terms[name] for name in _FIXED},
            "subDestination": None,
            "pricingInstructions": terms["pricingInstruction"],
            "orderState": "ACTIVE" if self.active else "INACTIVE",
            "lastAction": self.last_action,
            "actionStatus": "OK",
            "orderVolume": volume,
            "orderPrice": price,
            "remainingVolume": volume - self.done,
            "doneVolumeTotal": self.done,
            "doneValueTotal": done_value,
            "averagePrice": price if self.done else None,
            "lifetime": terms["lifetime"],
            "currency": "AUD",
            "expiryDateTime": terms.get("expiryDateTime"),
            "stateDescription": "Active" if self.active else "Inactive",
            "createDateTime": data.stamp(self.created),
            "updateDateTime": data.stamp(self.updated),
            "destinationOrderNumber": str(self.number),
            "side": terms["side"],
            "priceMultiplier": data.PRICE_MULTIPLIER,
            "postTradeStatus": None,
            "notes": terms.get("notes"),
        }


class OrderBook:
    """The orders that clients created since the start or the last reset."""

    def __init__(self) -> None:
        """Begin without any."""
        self._orders: dict[int, Order] = {}

    def reset(self) -> None:
        """Forget every order."""
        self._orders = {}

    def create(self, terms: dict[str, Any]) -> int:
        """Keep a new order and return its number."""
        _check_target(terms)
        _check_terms(terms)
        number = _FIRST_NUMBER + len(self._orders)
        self._orders[number] = Order(number, terms, data.exchange_now())
        return number

    def amend(self, number: int, changes: dict[str, Any]) -> None:
        """Change the terms of an active order; what the changes leave out stays."""
        order = self._active(number)
        kept = {name: order.terms[name] for name in _FIXED}
        terms = {**order.terms, **changes, **kept}
        if changes.get("pricingInstruction") == "Market" and "orderPrice" not in changes:
            terms["orderPrice"] = None
        _check_terms(terms)
        order.terms = terms
        order.change("AMEND", data.exchange_now())

    def cancel(self, number: int) -> None:
        """Cancel an active order."""
        order = self._active(number)
        order.active = False
        order.change("CANCEL", data.exchange_now())

    def records(self, account: Account) -> list[Record]:
        """Return the account's orders of the last days, newest first."""
        created = [order for order in self._orders.values() if order.terms["accountCode"] == account.code]
        return [order.record() for order in [*reversed(created), *_filled(account, data.exchange_now())]]

    def _active(self, number: int) -> Order:
        order = self._orders.get(number)
        if order is None:
            raise HTTPException(404, f"There is no order {number} that can be changed.")
        if not order.active:
            raise HTTPException(409, f"Order {number} is no longer active.")
        return order


def _filled(account: Account, now: datetime) -> list[Order]:
    """Return the finished orders behind the account's last fills, newest first."""
    start = datetime.combine(now.date() - timedelta(days=DAYS), data.SESSION_START)
    return [
        Order(
            number=fill.order_number,
            terms={
                "accountCode": account.code,
                "securityCode": fill.security.code,
                "exchange": EXCHANGE,
                "destination": EXCHANGE,
                "side": fill.side,
                "orderPrice": data.native(fill.trade.price),
                "orderVolume": fill.trade.volume,
                "lifetime": "EndOfDay",
                "pricingInstruction": "Limit",
            },
            created=fill.trade.at,
            active=False,
            done=fill.trade.volume,
        )
        for fill in reversed(list(fills(account, start, now)))
    ]


def _check_target(terms: dict[str, Any]) -> None:
    """Check where a new order goes, which no amendment changes."""
    wire.choice(terms, "accountCode", tuple(ACCOUNTS))
    code, exchange = terms.get("securityCode"), terms.get("exchange")
    if find(f"{code}.{exchange}@{DATA_SOURCE}") is None:
        raise wire.bad_request(f"The sandbox doesn't know the security {code} of exchange {exchange}.")
    if not isinstance(terms.get("destination"), str) or not terms["destination"]:
        raise wire.bad_request("destination must be a text that isn't empty.")


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
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
