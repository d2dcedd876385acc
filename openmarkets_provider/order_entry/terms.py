"""From an instruction to what is sent: terms in native units, exactly, and their digest.

A price in dollars is the native price x the security's multiplier. What does not convert exactly, or is off the price
step or the lot, is refused with the nearest values that are allowed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Any

from openmarkets_provider.exceptions import OpenmarketsOrderError
from openmarkets_provider.sessions.calendar import EXCHANGE_ZONE

_DIGITS = 60


@dataclass(frozen=True, slots=True)
class Facts:
    """What security information says of a security.

    :ivar multiplier: price in dollars = native price x multiplier; None when it is not known.
    :ivar lot: number of shares that volumes are multiples of; None when it is not known.
    :ivar step: price step in dollars; None when it is not known.
    :ivar contract: number of shares that one contract stands for; None for shares.
    :ivar currency: of its prices, such as ``AUD``.
    """

    multiplier: Decimal | None
    lot: int | None = None
    step: Decimal | None = None
    contract: int | None = None
    currency: str | None = None


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms of an order, as they are sent.

    :ivar price: in dollars; None for a market order.
    :ivar native_price: in the API's units; None for a market order.
    :ivar expiry: exchange time without an offset, as ISO 8601 text.
    :ivar contract: number of shares that a volume of 1 stands for.
    :ivar currency: of the price.
    """

    account: str
    code: str
    exchange: str
    destination: str
    side: str
    volume: int
    price: Decimal | None
    native_price: Decimal | None
    lifetime: str
    expiry: str | None = None
    notes: str | None = None
    order_giver: str | None = None
    order_taker: str | None = None
    contract: int = 1
    currency: str | None = None

    def value(self, price: Decimal) -> Decimal:
        """Return what the order is worth at a price in dollars, in dollars."""
        return self.volume * self.contract * price

    @property
    def pricing(self) -> str:
        """``Limit`` or ``Market``, the API's ``pricingInstruction``."""
        return "Market" if self.native_price is None else "Limit"

    def body(self, tag: str) -> dict[str, Any]:
        """Return the JSON body of ``POST orders/v4``."""
        return _without_none(
            {
                "accountCode": self.account,
                "securityCode": self.code,
                "exchange": self.exchange,
                "destination": self.destination,
                **self.change(tag),
            }
        )

    def change(self, tag: str) -> dict[str, Any]:
        """Return the JSON body of ``PUT orders/{orderNumber}/v4``."""
        return _without_none(
            {
                "side": self.side,
                "orderPrice": self.native_price and to_json_number(self.native_price),
                "orderVolume": self.volume,
                "lifetime": self.lifetime,
                "pricingInstruction": self.pricing,
                "expiryDateTime": self.expiry,
                "notes": " ".join(filter(None, (tag, self.notes))) or None,
                "orderGiver": self.order_giver,
                "orderTaker": self.order_taker,
            }
        )


def make_terms(arguments: Mapping[str, Any], facts: Facts) -> Terms:
    """Convert the arguments of an instruction to place an order.

    :param arguments: as :func:`~openmarkets_provider.order_entry.instruction.resolve` returns them.
    :raises OpenmarketsOrderError: price or volume are not allowed; the text names the field.
    """
    code, _, exchange = arguments["security"].partition("@")[0].partition(".")
    price, expiry = arguments["price"], arguments["expiry_date_time"]
    check_volume(arguments["volume"], facts.lot)
    return Terms(
        account=arguments["account"],
        code=code,
        exchange=exchange,
        destination=arguments["destination"] or exchange,
        side=arguments["side"],
        volume=arguments["volume"],
        price=price,
        native_price=None if price is None else to_native(price, facts),
        lifetime=arguments["lifetime"],
        expiry=expiry and expiry.astimezone(EXCHANGE_ZONE).replace(tzinfo=None).isoformat(timespec="seconds"),
        notes=arguments["notes"],
        order_giver=arguments["order_giver"],
        order_taker=arguments["order_taker"],
        contract=max(facts.contract or 1, 1),
        currency=facts.currency,
    )


def to_native(price: Decimal, facts: Facts) -> Decimal:
    """Convert a price in dollars to the API's units, exactly.

    :raises OpenmarketsOrderError: the multiplier is not known, the price is off the step, or there is no exact value.
    """
    if facts.multiplier is None:
        raise OpenmarketsOrderError(
            "price: the API gives no price multiplier for this security, so the unit of its prices is not known. "
            "Ask Openmarkets."
        )
    with localcontext(prec=_DIGITS):
        if facts.step and price % facts.step:
            below = price // facts.step * facts.step
            nearest = " and ".join(_plain(each) for each in (below, below + facts.step) if each > 0)
            raise OpenmarketsOrderError(
                f"price: {_plain(price)} is not a multiple of the price step {_plain(facts.step)}; the nearest "
                f"allowed: {nearest}."
            )
        native = price / facts.multiplier
        if native * facts.multiplier != price or Decimal(repr(float(native))) != native:
            raise OpenmarketsOrderError(
                f"price: {_plain(price)} is no exact number of native units of {_plain(facts.multiplier)}."
            )
    return Decimal(_plain(native))


def check_volume(volume: int, lot: int | None) -> None:
    """Check a volume against the lot.

    :raises OpenmarketsOrderError: it is not a multiple.
    """
    if lot and volume % lot:
        below = volume // lot * lot
        nearest = " and ".join(str(each) for each in (below, below + lot) if each > 0)
        raise OpenmarketsOrderError(
            f"volume: {volume} is not a multiple of the lot size {lot}; the nearest allowed: {nearest}."
        )


def to_json_number(number: Decimal) -> int | float:
    """Return a Decimal as a number that JSON writes without loss; see :func:`to_native`."""
    return int(number) if number == number.to_integral_value() else float(number)


def canonical(arguments: Mapping[str, Any], **more: str) -> dict[str, str | None]:
    """Return the arguments of an instruction as texts, which are equal for equal terms.

    :param arguments: resolved.
    :param more: what else makes an order another one, such as the server.
    """
    return more | {name: None if value is None else _plain(value) for name, value in arguments.items()}


def digest(canonical: Mapping[str, Any]) -> str:
    """Return the digest of terms: 64 hexadecimal characters, equal for equal terms alone."""
    return hashlib.sha256(json.dumps(canonical, sort_keys=True).encode()).hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Describe what differs between two sets of terms."""
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ", ".join(f"{name} was {old.get(name)}, and is {new.get(name)}" for name in names)


def _plain(value: Any) -> str:
    return f"{value.normalize():f}" if isinstance(value, Decimal) else str(value)


def _without_none(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
