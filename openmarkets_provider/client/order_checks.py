"""What is looked up before an order is sent: the list of orders, the security, and what limits need."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

from openmarkets_provider.client.exchange import Received
from openmarkets_provider.client.settings import Settings
from openmarkets_provider.exceptions import OpenmarketsOrderError
from openmarkets_provider.order_entry.guards import (
    Limits,
    check_cash,
    check_collar,
    check_day_value,
    check_reduces,
    check_trading_status,
    check_value,
    reference_price,
)
from openmarkets_provider.order_entry.instruction import Instruction, action_of, resolve
from openmarkets_provider.order_entry.terms import Facts, Terms, make_terms
from openmarkets_provider.query.plan import ApiCall


class OmsClient(Protocol):
    """What of a client the sender uses."""

    settings: Settings

    def run(self, query: dict[str, Any]) -> Any:
        """Answer a query."""

    def get_access_token(self, scope: str) -> str:
        """Return a token, so that the send need not wait for one."""

    def send_order(self, call: ApiCall, before_send: Callable[[], None]) -> Received:
        """Send a call once.

        :param before_send: called right before the first byte leaves.
        """


class OrderChecks:
    """Looks up and checks, with the rights and limits of one client, and sends nothing."""

    def __init__(self, client: OmsClient, limits: Limits, clock: Callable[[], float]) -> None:
        self._client = client
        self._policy = client.settings.policy
        self._limits = limits
        self._clock = clock

    def _arguments(self, order: Instruction, action: str) -> dict[str, Any]:
        if action_of(order) != action:
            raise OpenmarketsOrderError(f"order: expected an instruction to {action}, got one to {action_of(order)}.")
        arguments = resolve(order)
        self._policy.check_account(arguments["account"])
        return arguments

    def _list(self, account: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self._client.run(
            {
                "endpoint": "orders",
                "accounts": [account],
                "portfolios": None,
                # A child may have the notes of its parent.
                "include_child_orders": False,
                "on_missing_multiplier": "cents",
                "on_missing_field": "warn",
                "raw": False,
            }
        )
        return rows

    def _make_terms(self, arguments: Mapping[str, Any]) -> Terms:
        rows = self._client.run(
            {
                "endpoint": "security_information",
                "securities": [arguments["security"]],
                "exchange": None,
                "on_invalid": "error",
                "on_missing_multiplier": "cents",
                "on_missing_field": "warn",
                "raw": False,
            }
        )
        if not rows:
            raise OpenmarketsOrderError(f"security: the API has no security information for {arguments['security']}.")
        row = rows[0]
        is_assumed = bool(row.get("price_multiplier_assumed"))
        facts = Facts(
            None if is_assumed else row["price_multiplier"],
            row["lot_size"],
            row["minimum_price_step"],
            row["shares_per_contract"],
            row["currency_code"],
        )
        return make_terms(arguments, facts)

    def _quote(self, terms: Terms, *, always: bool = False) -> dict[str, Any] | None:
        """Return a quote where a limit needs one, or always."""
        limits = self._limits
        needs_price = terms.price is None and (
            self._policy.max_order_value or self._policy.max_day_value or limits.max_value or limits.check_cash
        )
        if not (always or needs_price or limits.trading_statuses or limits.price_collar is not None):
            return None
        rows = self._client.run(
            {
                "endpoint": "quotes",
                "securities": [f"{terms.code}.{terms.exchange}"],
                "exchange": None,
                "on_invalid": "error",
                "on_missing_multiplier": "error",
                "on_missing_field": "warn",
                "raw": False,
            }
        )
        return rows[0] if rows else None

    def _check(
        self, terms: Terms, quote: Mapping[str, Any] | None, rows: Iterable[Mapping[str, Any]], *, is_new: bool = True
    ) -> None:
        """Check all limits.

        :param is_new: the order is not in the market yet.
        """
        now, price = datetime.fromtimestamp(self._clock(), UTC), reference_price(terms, quote)
        check_value(terms, price, self._limits.max_value, "max_value")
        check_value(terms, price, self._policy.max_order_value, "max_order_value")
        check_day_value(terms, price, self._policy.max_day_value, rows, now)
        check_collar(terms, quote, self._limits, now)
        check_trading_status(terms, quote, self._limits.trading_statuses)
        if self._limits.reduce_only and is_new:
            check_reduces(terms, self._of_account("positions", terms, on_missing_multiplier="cents"))
        if self._limits.check_cash and is_new:
            check_cash(terms, price, self._of_account("cash", terms), self._limits.check_cash)

    def _of_account(self, endpoint: str, terms: Terms, **more: Any) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self._client.run(
            {
                "endpoint": endpoint,
                "accounts": [terms.account],
                "portfolios": None,
                "on_missing_field": "warn",
                "raw": False,
                **more,
            }
        )
        return rows


def require_order(rows: Iterable[dict[str, Any]], account: str, number: str) -> dict[str, Any]:
    """Return the order with a number.

    :raises OpenmarketsOrderError: the list does not have it.
    """
    row = find_order(rows, number)
    if row is None:
        raise OpenmarketsOrderError(
            f"order_number: account {account} has no order {number} in the list of the last 3 days."
        )
    return row


def find_order(rows: Iterable[dict[str, Any]], number: str | None) -> dict[str, Any] | None:
    """Return the order with a number, if the list has it."""
    return next((row for row in rows if row["order_number"] == number), None)
