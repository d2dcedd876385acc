"""The outcome of an order, read from its row in ``queries.orders``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OUTCOMES = ("pending", "working", "filled", "partly_filled", "cancelled", "expired", "rejected")
"""The first two may still change. All but ``filled``, ``cancelled`` and ``working`` are partly inferred."""
FINAL = "(state == 'finished' || (state == 'failed' && order_state != 'ACTIVE'))"
"""JMESPath for an order that will not change any more."""
ACCEPTED = f"(state == 'working' || {FINAL})"
"""JMESPath for an order that the market has, or had, or refused."""
WAIT_FOR = {"accepted": ACCEPTED, "done": FINAL}
"""What a task may wait for."""


def condition_of(order_number: str, wait_for: str) -> str:
    """Return the JMESPath, over rows of ``queries.orders``, for an order that is as far as a task waits for."""
    return f"[?order_number == '{order_number}' && {WAIT_FOR[wait_for]}] | [0]"


def outcome_of(row: Mapping[str, Any]) -> str:
    """Return one of :data:`OUTCOMES`.

    ``partly_filled`` is an order that ended before all of it was done.

    :param row: of ``queries.orders``.
    """
    state, done = row["state"], row.get("done_volume_total") or 0
    if state == "failed" and row.get("order_state") == "ACTIVE":
        # It is the last amendment or cancellation that failed.
        return "working"
    if state in ("pending", "working"):
        return str(state)
    if done >= (row.get("order_volume") or 0) > 0:
        return "filled"
    if done:
        return "partly_filled"
    if state == "failed":
        return "rejected"
    return "cancelled" if row.get("last_action") == "CANCEL" else "expired"


def summary_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a task says of an order: the outcome, and its numbers. Prices are in dollars."""
    names: tuple[str, ...] = (
        "order_number",
        "account_code",
        "security_code",
        "exchange",
        "side",
        "order_volume",
        "order_price",
    )
    names += ("done_volume_total", "remaining_volume", "done_value_total", "average_price", "order_state")
    return {"outcome": outcome_of(row), **{name: row.get(name) for name in names}}


def describe_order(row: Mapping[str, Any]) -> str:
    """Describe an order in a few words."""
    return (
        f"order {row.get('order_number')} ({row.get('side')} {row.get('order_volume')} {row.get('security_code')}, "
        f"{outcome_of(row)}, {row.get('done_volume_total') or 0} done)"
    )
