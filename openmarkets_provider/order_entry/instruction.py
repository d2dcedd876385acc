"""What to do at the OMS, as data: the form of an instruction and its checks.

An instruction is a dict with ``action`` and that action's arguments. The same code checks it twice: when a DAG author
makes it, where Jinja templates and results of upstream tasks are skipped, and when it is carried out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from openmarkets_provider.exceptions import OpenmarketsOrderError, OpenmarketsQueryError
from openmarkets_provider.query.arguments import (
    Predicate,
    check_code,
    check_moment,
    check_security,
    describe,
    describe_type,
    is_literal,
    is_literal_at_run,
)
from openmarkets_provider.query.exchange_time import to_text

Instruction = dict[str, Any]
"""What to do at the OMS, as JSON-able data. Made by the functions of ``openmarkets_provider.orders``."""

SIDES = ("Buy", "Sell", "Short")
PRICINGS = ("Limit", "Market")
LIFETIMES = ("EndOfDay", "Date", "FillAndKill", "FillOrKill")
_MAX_DIGITS = 18
_MAX_TEXT = 1000


def check(instruction: Instruction) -> Instruction:
    """Check the literal arguments of an instruction and return it.

    :raises OpenmarketsOrderError: an argument is malformed; the text names it.
    """
    _check(instruction, is_literal)
    return instruction


def resolve(instruction: Instruction) -> dict[str, Any]:
    """Check a rendered instruction, and return its arguments with prices as Decimal and volumes as int.

    :raises OpenmarketsOrderError: an argument is malformed; the text names it.
    """
    return _check(instruction, is_literal_at_run)


def action_of(instruction: Instruction) -> str:
    """Return what an instruction does: ``place``, ``amend`` or ``cancel``.

    :raises OpenmarketsOrderError: it is not an instruction.
    """
    if not isinstance(instruction, Mapping):
        raise OpenmarketsOrderError(
            f"order: must be the result of a function of openmarkets_provider.orders, not {describe_type(instruction)}."
        )
    action = instruction.get("action")
    if not isinstance(action, str) or action not in _ARGUMENTS:
        raise OpenmarketsOrderError(f"order: action {describe(action)} is unknown; use one of {', '.join(_ARGUMENTS)}.")
    return action


def to_plain(value: Any) -> Any:
    """Turn a Decimal, a date or a datetime into text, so that an instruction is JSON-able."""
    return str(value) if isinstance(value, Decimal) else to_text(value)


def read_price(name: str, value: Any) -> Decimal:
    """Read a price in the currency's main unit.

    :param name: the argument, for the text of the error.
    :raises OpenmarketsOrderError: it is not a Decimal or a string with a decimal number above 0.
    """
    try:
        price = Decimal(value) if isinstance(value, Decimal | str) else None
    except InvalidOperation:
        price = None
    if price is None or not price.is_finite() or price <= 0 or len(price.as_tuple().digits) > _MAX_DIGITS:
        raise OpenmarketsOrderError(
            f"order: {name} must be a Decimal or a string such as '45.50', in dollars and above 0, not "
            f"{describe(value)}."
        )
    return price


def _check(instruction: Instruction, is_literal: Predicate) -> dict[str, Any]:
    action = action_of(instruction)
    arguments = {name: to_plain(value) for name, value in instruction.items() if name != "action"}
    allowed = _ARGUMENTS[action]
    if unknown := arguments.keys() - allowed.keys():
        raise OpenmarketsOrderError(
            f"order: unknown argument {', '.join(sorted(map(str, unknown)))}; use {', '.join(allowed)}."
        )
    if missing := allowed.keys() - arguments.keys():
        raise OpenmarketsOrderError(f"order: argument {', '.join(sorted(missing))} is missing.")
    resolved = {
        name: allowed[name](name, value) if value is not None and is_literal(value) else None
        for name, value in arguments.items()
    }
    _check_together(action, arguments)
    return resolved


def _check_together(action: str, arguments: Mapping[str, Any]) -> None:
    optional = _OPTIONAL[action]
    if unset := [name for name, value in arguments.items() if value is None and name not in optional]:
        raise OpenmarketsOrderError(f"order: {', '.join(unset)} must be set.")
    if action == "amend" and arguments["volume"] is None and arguments["price"] is None:
        raise OpenmarketsOrderError("order: an amendment needs a volume, a price or both.")
    pricing, lifetime = arguments.get("pricing"), arguments.get("lifetime")
    # A template that renders None makes no market order.
    if action == "place" and is_literal(pricing) and (pricing == "Limit") != (arguments["price"] is not None):
        raise OpenmarketsOrderError("order: a limit order needs a price, and a market order takes none.")
    if action == "place" and is_literal(lifetime) and (lifetime == "Date") != bool(arguments["expiry_date_time"]):
        raise OpenmarketsOrderError(
            "order: the lifetime Date needs an expiry_date_time, and no other lifetime takes one."
        )


def _volume(name: str, value: Any) -> int:
    # A template renders text.
    is_text = isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= _MAX_DIGITS
    volume = int(value) if is_text else value
    if not isinstance(volume, int) or isinstance(volume, bool) or not 0 < volume < 10**_MAX_DIGITS:
        raise OpenmarketsOrderError(f"order: {name} must be a whole number above 0, not {describe(value)}.")
    return volume


def _order_number(name: str, value: Any) -> str:
    return str(_volume(name, value))


def _code(check_one: Callable[[str, str, Any], str]) -> Callable[[str, Any], str]:
    def check_order_code(name: str, value: Any) -> str:
        try:
            return check_one("order", name, value)
        except OpenmarketsQueryError as error:
            raise OpenmarketsOrderError(str(error)) from None

    return check_order_code


def _one_of(allowed: tuple[str, ...]) -> Callable[[str, Any], str]:
    def check_choice(name: str, value: Any) -> str:
        if value not in allowed:
            raise OpenmarketsOrderError(f"order: {name} must be one of {', '.join(allowed)}, not {describe(value)}.")
        return str(value)

    return check_choice


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > _MAX_TEXT:
        raise OpenmarketsOrderError(
            f"order: {name} must be a string of one line, at most {_MAX_TEXT} characters, not {describe(value)}."
        )
    return value.strip()


def _moment(name: str, value: Any) -> Any:
    try:
        return check_moment("order", name, value)
    except OpenmarketsQueryError as error:
        raise OpenmarketsOrderError(str(error)) from None


_ORDER = {"order_number": _order_number, "account": _code(check_code)}
_ARGUMENTS: Mapping[str, Mapping[str, Callable[[str, Any], Any]]] = {
    "place": {
        "account": _code(check_code),
        "security": _code(check_security),
        "side": _one_of(SIDES),
        "volume": _volume,
        "pricing": _one_of(PRICINGS),
        "price": read_price,
        "lifetime": _one_of(LIFETIMES),
        "expiry_date_time": _moment,
        "destination": _text,
        "notes": _text,
        "order_giver": _text,
        "order_taker": _text,
    },
    "amend": {**_ORDER, "volume": _volume, "price": read_price, "order_giver": _text, "order_taker": _text},
    "cancel": _ORDER,
}
"""Action to its arguments, each with its check."""
_OPTIONAL = {
    "place": ("price", "expiry_date_time", "destination", "notes", "order_giver", "order_taker"),
    "amend": ("volume", "price", "order_giver", "order_taker"),
    "cancel": (),
}
"""Arguments that may be None."""
