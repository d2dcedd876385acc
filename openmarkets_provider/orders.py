"""What to do at the Openmarkets OMS: functions that return an instruction.

An instruction is plain data, for the order operators and for ``hook.orders``. It can hold Jinja templates and results
of upstream tasks, be mapped with ``.expand(order=[...])``, and be kept in XCom. Literal arguments are checked while the
DAG is parsed, and everything again before anything is sent.

**Prices** are a Decimal or a string such as ``"45.50"``, in the currency's main unit (dollars). A float is refused. The
API takes native units, commonly cents: a price is converted exactly, by the security's own multiplier, and never
rounded.

**Volumes** are whole numbers of shares or contracts.

**Fields** are those that the API documents, and are sent as they are. ``notes`` is sent with a tag of 18 characters in
front, by which the order is found again. ``order_giver`` and ``order_taker`` have a regulatory meaning in Australia.

A malformed literal argument raises OpenmarketsOrderError; the text names it.
"""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any

from openmarkets_provider.exceptions import OpenmarketsOrderError
from openmarkets_provider.order_entry.instruction import Instruction, check, to_plain

__all__ = ["Instruction", "amend", "cancel", "limit", "market"]

Price = Decimal | str
Volume = int | str
"""A whole number; text only where a template renders it."""


def limit(
    security: str,
    *,
    account: str,
    price: Price,
    buy: Volume | None = None,
    sell: Volume | None = None,
    short: Volume | None = None,
    lifetime: str = "EndOfDay",
    expiry_date_time: date | str | None = None,
    destination: str | None = None,
    notes: str | None = None,
    order_giver: str | None = None,
    order_taker: str | None = None,
) -> Instruction:
    """Place a limit order: ``POST orders/v4`` of the OMS API (scope ``oms-api``).

    Set one of ``buy``, ``sell`` and ``short``.

    :param security: such as ``BHP`` or ``BHP.ASX``.
    :param account: code of the order account.
    :param price: limit in the currency's main unit: a Decimal or a string such as ``"45.50"``.
    :param buy: volume to buy.
    :param sell: volume to sell.
    :param short: volume to sell short.
    :param lifetime: ``EndOfDay``, ``Date``, ``FillAndKill`` or ``FillOrKill``.
    :param expiry_date_time: end of an order with the lifetime ``Date``; without an offset it is exchange time.
    :param destination: where the order goes. None is the security's exchange (inferred).
    :param notes: free text.
    :param order_giver: as the API plan documents it.
    :param order_taker: as the API plan documents it.
    :raises OpenmarketsOrderError: an argument is malformed.
    """
    return _place(locals() | {"pricing": "Limit"})


def market(
    security: str,
    *,
    account: str,
    buy: Volume | None = None,
    sell: Volume | None = None,
    short: Volume | None = None,
    lifetime: str = "EndOfDay",
    expiry_date_time: date | str | None = None,
    destination: str | None = None,
    notes: str | None = None,
    order_giver: str | None = None,
    order_taker: str | None = None,
) -> Instruction:
    """Place an order at the market's price: ``POST orders/v4``, as :func:`limit` without a price."""
    return _place(locals() | {"pricing": "Market", "price": None})


def amend(
    order_number: int | str,
    *,
    account: str,
    volume: Volume | None = None,
    price: Price | None = None,
    order_giver: str | None = None,
    order_taker: str | None = None,
) -> Instruction:
    """Change the terms of a working order: ``PUT orders/{orderNumber}/v4``.

    Volume and price are absolute: the order has them afterwards. What is None stays, and so do all other terms that the
    list of orders has.

    :param order_number: as the API numbers it.
    :param account: the order's account.
    :param volume: the whole volume of the order, of which a part may be done.
    :param price: limit in the currency's main unit.
    :param order_giver: the list of orders does not have it: set it again where the order has one.
    :param order_taker: the same.
    :raises OpenmarketsOrderError: an argument is malformed.
    """
    return check({"action": "amend"} | {name: to_plain(value) for name, value in locals().items()})


def cancel(order_number: int | str, *, account: str) -> Instruction:
    """Cancel a working order: ``DELETE orders/{orderNumber}/v1``.

    :param order_number: as the API numbers it.
    :param account: the order's account.
    :raises OpenmarketsOrderError: an argument is malformed.
    """
    return check({"action": "cancel", "order_number": order_number, "account": account})


def _place(arguments: dict[str, Any]) -> Instruction:
    sides = {"Buy": arguments.pop("buy"), "Sell": arguments.pop("sell"), "Short": arguments.pop("short")}
    chosen = [(side, volume) for side, volume in sides.items() if volume is not None]
    if len(chosen) != 1:
        raise OpenmarketsOrderError("order: set one of buy, sell and short to the volume.")
    ((side, volume),) = chosen
    plain = {name: to_plain(value) for name, value in arguments.items()}
    return check({"action": "place", **plain, "side": side, "volume": volume})
