"""One order of the sandbox: its terms, its life, and its records in the lists of orders and trades.

Prices are in native units, values in dollars. Times are exchange time without an offset.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

from openmarkets_provider.sandbox import data, wire
from openmarkets_provider.sandbox.behaviour import Behaviour, Step
from openmarkets_provider.sandbox.securities import Record, Security
from openmarkets_provider.sandbox.sessions import current_session, next_close, stamp, to_gmt

FIXED = ("accountCode", "securityCode", "exchange", "destination")
"""The terms that an amendment does not change."""


class Execution(NamedTuple):
    """A fill of part of an order.

    :ivar at: exchange time; None if no list of trades has it.
    :ivar moment: by ``time.monotonic()``.
    """

    number: int
    volume: int
    price: float
    at: datetime | None
    moment: float = 0.0


class Now(NamedTuple):
    """The current time: by ``time.monotonic()``, which triggers steps, and by the sandbox's clock, which dates them."""

    moment: float
    at: datetime


class _Change(NamedTuple):
    """An amendment or cancellation that takes effect later."""

    due: float
    action: str
    terms: dict[str, Any]


@dataclass
class Order:
    """An order: the client's terms, and its outcome.

    An order without a time was created at the start of the session and has not changed since. It never expires.
    """

    number: int
    security: Security
    terms: dict[str, Any]
    created: datetime | None
    moment: float = 0.0
    behaviour: Behaviour = field(default_factory=Behaviour)
    steps: list[Step] = field(default_factory=list)
    parent: int | None = None
    state: str = "ACTIVE"
    last_action: str = "CREATE"
    status: str = "OK"
    executions: list[Execution] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Set the state of a new order."""
        self.updated = self.created
        self.body = dict(self.terms)
        self._changes: list[_Change] = []
        self._expiry: datetime | None = None

    def _set_expiry(self) -> None:
        """Set when the order expires: at the close of its day, or at the time in its terms."""
        if self.terms["lifetime"] == "Date":
            self._expiry = wire.moment(self.terms, "expiryDateTime")
        elif self.created is not None:
            self._expiry = next_close(self.created)

    @classmethod
    def new(cls, number: int, security: Security, terms: dict[str, Any], now: Now, behaviour: Behaviour) -> Order:
        """Return an order that a client creates now."""
        steps = behaviour.steps(terms["lifetime"], terms["orderVolume"])
        order = cls(number, security, terms, now.at, now.moment, behaviour, steps, state="PENDING", status="PENDING")
        order._set_expiry()
        return order

    @property
    def volume(self) -> int:
        """The volume of the terms."""
        return int(self.terms["orderVolume"])

    @property
    def done(self) -> int:
        """The filled volume."""
        return sum(execution.volume for execution in self.executions)

    @property
    def live(self) -> bool:
        """Whether the order can still change."""
        ended = self.last_action == "PURGE" or (self.last_action == "CANCEL" and self.status != "PENDING")
        return self.state != "INACTIVE" and not ended and self.done < self.volume

    @property
    def changeable(self) -> bool:
        """Whether the order can be amended and cancelled."""
        return self.state == "ACTIVE" and self.live and self.last_action != "CANCEL"

    def value(self, execution: Execution) -> Decimal:
        """Return the value of an execution in dollars."""
        return Decimal(str(execution.price)) * execution.volume * self.security.multiplier

    def change(self, action: str, terms: dict[str, Any], now: Now) -> None:
        """Amend or cancel the order, now or later, by its behaviour.

        :param action: ``AMEND`` or ``CANCEL``.
        """
        self.last_action, self.status, self.updated = action, "PENDING", now.at
        self._changes.append(_Change(now.moment + self.behaviour.change_after, action, terms))

    def is_listed(self, now: Now, days: int) -> bool:
        """Return whether the list of orders has the order: live orders, and those that ended within some days."""
        if now.moment < self.moment + self.behaviour.list_after:
            return False
        return self.updated is None or self.live or self.updated.date() >= now.at.date() - timedelta(days=days)

    def advance(self, now: Now, market_price: Callable[[Security], float]) -> None:
        """Apply all steps and changes that are due.

        :param market_price: returns the price at which market orders are filled.
        """
        if not self.live:
            return
        due: list[tuple[float, Step | _Change]] = [
            *((self.moment + step.seconds, step) for step in self.steps),
            *((change.due, change) for change in self._changes),
        ]
        for moment, event in sorted(due, key=lambda each: each[0]):
            if moment > now.moment or not self.live:
                break
            # If the clock has a fixed time, the last change has that time.
            at = now.at - timedelta(seconds=now.moment - moment)
            then = Now(moment, at if self.updated is None else max(self.updated, at))
            if self._expiry is not None and then.at >= self._expiry:
                break
            if isinstance(event, _Change):
                self._changes.remove(event)
                self._take_effect(event, then)
            else:
                self.steps.remove(event)
                self._step(event, then, market_price)
        if self.live and self._expiry is not None and now.at >= self._expiry:
            self._end("PURGE", "OK", self._expiry)

    def fill(self, volume: int | None, price: float, now: Now) -> None:
        """Fill a volume, at most the remaining one; None for the remaining volume."""
        remaining = self.volume - self.done
        filled = remaining if volume is None else min(volume, remaining)
        number = self.number * 1000 + len(self.executions) + 1
        self.executions.append(Execution(number, filled, price, now.at, now.moment))
        self.updated = now.at
        if self.done >= self.volume:
            self._end(self.last_action, self.status, now.at)

    def _step(self, step: Step, now: Now, market_price: Callable[[Security], float]) -> None:
        if step.action == "accept":
            self.state, self.status, self.updated = "ACTIVE", "OK", now.at
        elif step.action == "reject":
            self._end("CREATE", "DENIED", now.at)
        elif step.action == "purge":
            self._end("PURGE", "OK", now.at)
        else:
            self.fill(step.volume, self.price(market_price), now)

    def price(self, market_price: Callable[[Security], float]) -> float:
        """Return the price at which the order is filled: its own, or the market price."""
        price: float | None = self.terms.get("orderPrice")
        return market_price(self.security) if price is None else price

    def _take_effect(self, change: _Change, now: Now) -> None:
        if change.action == "CANCEL":
            self._end("CANCEL", "OK", now.at)
            return
        self.terms = change.terms | {"orderVolume": max(change.terms["orderVolume"], self.done)}
        self.updated = now.at
        self._set_expiry()
        if not self._changes:
            self.status = "OK"
        if self.done >= self.volume:
            self._end(self.last_action, self.status, now.at)

    def _end(self, action: str, status: str, at: datetime) -> None:
        """End the order. A change without effect so far has failed."""
        self.state, self.last_action, self.updated = "INACTIVE", action, at
        self.status = "FAILED" if status == "PENDING" else status
        self.steps, self._changes = [], []

    def record(self, now: datetime) -> Record:
        """Return the record of the order in the list of orders."""
        terms, done, start = self.terms, self.done, current_session(self.security, now).start
        value = sum(map(self.value, self.executions), Decimal(0))
        average = round(value / done / self.security.multiplier, 6) if done else None
        notes = terms.get("notes")
        return {
            "rootParentOrderNumber": self.parent or self.number,
            "orderNumber": self.number,
            "parentOrderNumber": self.parent,
            **{name: terms[name] for name in FIXED},
            "subDestination": None,
            "pricingInstructions": terms["pricingInstruction"],
            "orderState": self.state,
            "lastAction": self.last_action,
            "actionStatus": self.status,
            "orderVolume": self.volume,
            "orderPrice": terms.get("orderPrice"),
            "remainingVolume": self.volume - done,
            "doneVolumeTotal": done,
            "doneValueTotal": data.number(value),
            "averagePrice": None if average is None else data.number(average),
            "lifetime": terms["lifetime"],
            "currency": "AUD",
            "expiryDateTime": terms.get("expiryDateTime"),
            "stateDescription": self.state.capitalize(),
            "createDateTime": stamp(self.created or start),
            "updateDateTime": stamp(self.updated or start),
            "destinationOrderNumber": str(self.number),
            "side": terms["side"],
            "priceMultiplier": data.number(self.security.multiplier),
            "postTradeStatus": None,
            "notes": notes[: self.behaviour.notes_length] or None if isinstance(notes, str) else notes,
        }

    def trades(self, first: datetime, last: datetime) -> Iterator[Record]:
        """Yield the records in the list of trades of the order's fills from first to last, inclusive."""
        for execution in self.executions:
            if execution.at is not None and first <= execution.at <= last:
                yield {
                    "tradeNumber": execution.number,
                    "orderNumber": self.number,
                    **{name: self.terms[name] for name in FIXED},
                    "tradeVolume": execution.volume,
                    "tradePrice": execution.price,
                    "tradeValue": data.number(self.value(execution)),
                    "tradeDateTime": stamp(execution.at),
                    "destinationTradeNumber": str(execution.number),
                    "side": self.terms["side"],
                    "priceMultiplier": data.number(self.security.multiplier),
                    "tradeDateTimeGmt": to_gmt(execution.at),
                }
