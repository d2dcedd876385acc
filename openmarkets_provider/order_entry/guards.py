"""Limits: what the connection allows, and what an operator adds. All of them only forbid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from openmarkets_provider.exceptions import OpenmarketsOrderError
from openmarkets_provider.order_entry.terms import Terms
from openmarkets_provider.query.exchange_time import exchange_date

MODES = ("off", "test", "on")
CASH_COLUMNS = ("cash_balance", "net_cash", "free_equity")
"""Columns of ``queries.cash`` that may be the cash to buy with. Which of them the OMS goes by is not public."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What the connection allows.

    :ivar mode: ``off``: no orders; ``test``: in the test environment only; ``on``.
    :ivar is_test: the connection leads to the test environment.
    :ivar accounts: the accounts that orders may be for; empty for any.
    :ivar max_order_value: in dollars; None for any.
    :ivar max_day_value: the same for all orders of an account that were created on one exchange day.
    """

    mode: str = "off"
    is_test: bool = False
    accounts: tuple[str, ...] = ()
    max_order_value: Decimal | None = None
    max_day_value: Decimal | None = None

    @property
    def has_limits(self) -> bool:
        """Whether it looks at an order's terms."""
        return bool(self.accounts) or self.max_order_value is not None or self.max_day_value is not None

    def describe(self) -> str:
        """Say in a sentence what is allowed, for the button Test."""
        if self.mode == "off" or (self.mode == "test" and not self.is_test):
            return f"Orders: not allowed (orders is {self.mode})."
        accounts = f"accounts {', '.join(self.accounts)}" if self.accounts else "all accounts"
        most = "".join(
            f"; at most {limit:,f} dollars {each}"
            for limit, each in ((self.max_order_value, "an order"), (self.max_day_value, "a day"))
            if limit is not None
        )
        return f"Orders: allowed in the {'test' if self.is_test else 'production'} environment for {accounts}{most}."

    def check_mode(self) -> None:
        """Check that orders may be sent at all.

        :raises OpenmarketsOrderError: they may not.
        """
        if self.mode == "off":
            raise OpenmarketsOrderError(
                "The connection does not allow orders: its field Orders (orders) is off, the default. Set it to "
                "test or on."
            )
        if self.mode == "test" and not self.is_test:
            raise OpenmarketsOrderError(
                "The connection allows orders in the test environment only (orders is test), and it leads to another "
                "one: environment must be test, and the OMS URL not that of production."
            )

    def check_account(self, account: str) -> None:
        """Check that orders may be for an account.

        :raises OpenmarketsOrderError: they may not.
        """
        if self.accounts and account not in self.accounts:
            raise OpenmarketsOrderError(
                f"account: the connection does not allow orders for {account!r}; its order_accounts are "
                f"{', '.join(self.accounts)}."
            )


@dataclass(frozen=True, slots=True)
class Limits:
    """What the author of a task adds.

    :ivar max_value: most that the order may be worth, in dollars.
    :ivar price_collar: how far its price may be from the last one, as a fraction of that.
    :ivar max_quote_age: seconds that the quote for the collar may be old.
    :ivar reduce_only: sell no more than the account holds, and buy no more than it is short.
    :ivar check_cash: column of ``queries.cash`` that a purchase must not exceed: ``cash_balance``, ``net_cash`` or
        ``free_equity``.
    :ivar trading_statuses: what the quote's trading status may be; empty for any.
    """

    max_value: Decimal | None = None
    price_collar: Decimal | None = None
    max_quote_age: float = 300.0
    reduce_only: bool = False
    check_cash: str | None = None
    trading_statuses: tuple[str, ...] = ()


def reference_price(terms: Terms, quote: Mapping[str, Any] | None) -> Decimal | None:
    """Return the price that an order is valued by, in dollars: its limit, else what the other side asks or bids.

    :param quote: a row of ``queries.quotes``; None when there is none.
    """
    if terms.price is not None or quote is None:
        return terms.price
    touch = quote.get("ask_price") if terms.side == "Buy" else quote.get("bid_price")
    return touch or quote.get("last_price") or None


def check_value(terms: Terms, price: Decimal | None, limit: Decimal | None, name: str) -> None:
    """Check volume x price against a limit.

    :param name: of the limit, for the text of the error.
    :raises OpenmarketsOrderError: it is worth more, or there is no price to value it by.
    """
    if limit is None:
        return
    if price is None:
        raise OpenmarketsOrderError(f"{name}: the market order can't be valued, since no quote has a price for it.")
    if (value := terms.value(price)) > limit:
        raise OpenmarketsOrderError(f"{name}: the order is worth {value:,f} and the limit is {limit:,f}.")


def check_day_value(
    terms: Terms, price: Decimal | None, limit: Decimal | None, rows: Iterable[Mapping[str, Any]], now: datetime
) -> None:
    """Check the value of all orders of the account's day, this one included. Best effort: the list may lag.

    :param rows: of ``queries.orders``.
    :param now: aware.
    :raises OpenmarketsOrderError: together they are worth more.
    """
    if limit is None:
        return
    check_value(terms, price, limit, "max_day_value")
    today = exchange_date(now)
    day = sum((value_of(row) for row in rows if _is_of(row, today)), Decimal(0))
    if day + terms.value(price or Decimal(0)) > limit:
        raise OpenmarketsOrderError(
            f"max_day_value: the orders of account {terms.account} are worth {day:,f} today; with this one it is more "
            f"than the limit of {limit:,f}."
        )


def value_of(row: Mapping[str, Any]) -> Decimal:
    """Return what an order in the list is worth, in dollars: what is done, and what is still open."""
    done: Decimal = row.get("done_value_total") or Decimal(0)
    if row.get("state") in ("finished", "failed"):
        return done
    price = row.get("order_price") or row.get("average_price") or 0
    return done + Decimal(row.get("remaining_volume") or 0) * price


def _is_of(row: Mapping[str, Any], today: Any) -> bool:
    created = row.get("create_date_time")
    return created is None or exchange_date(created) == today


def check_collar(terms: Terms, quote: Mapping[str, Any] | None, limits: Limits, now: datetime) -> None:
    """Check that the price is near the last one, and that one fresh.

    :param quote: a row of ``queries.quotes``; None when there is none.
    :param now: aware.
    :raises OpenmarketsOrderError: it is not, or there is no fresh price.
    """
    if limits.price_collar is None:
        return
    last, updated = (quote.get("last_price"), quote.get("update_date_time")) if quote else (None, None)
    price = reference_price(terms, quote)
    if not last or not updated or price is None:
        raise OpenmarketsOrderError(f"price_collar: there is no last price of {terms.code} to compare with.")
    if (age := (now - updated).total_seconds()) > limits.max_quote_age:
        raise OpenmarketsOrderError(
            f"price_collar: the quote of {terms.code} is {age:.0f} s old; the maximum is {limits.max_quote_age:.0f} s."
        )
    low, high = last * (1 - limits.price_collar), last * (1 + limits.price_collar)
    if not low <= price <= high:
        raise OpenmarketsOrderError(
            f"price_collar: {price} is too far from the last price {last}; use {low:f} to {high:f}."
        )


def check_trading_status(terms: Terms, quote: Mapping[str, Any] | None, statuses: tuple[str, ...]) -> None:
    """Check the trading status of a security.

    :param quote: a row of ``queries.quotes``; None when there is none.
    :param statuses: those that are allowed; empty for any.
    :raises OpenmarketsOrderError: it is another one, or not known.
    """
    status = quote.get("trading_status") if quote else None
    if statuses and status not in statuses:
        raise OpenmarketsOrderError(
            f"trading_statuses: the trading status of {terms.code} is {status}; allowed: {', '.join(statuses)}."
        )


def check_cash(terms: Terms, price: Decimal | None, rows: Iterable[Mapping[str, Any]], column: str) -> None:
    """Check that one of the account's cash balances pays for a purchase, without fees.

    :param rows: of ``queries.cash`` for the account: several, where it has several portfolios.
    :param column: one of :data:`CASH_COLUMNS`.
    :raises OpenmarketsOrderError: none does.
    """
    if terms.side != "Buy":
        return
    found = [row[column] for row in rows if row["currency_code"] == terms.currency and row[column] is not None]
    if not found:
        raise OpenmarketsOrderError(
            f"check_cash: account {terms.account} has no cash balance in {terms.currency} with {column}."
        )
    check_value(terms, price, max(found), f"check_cash: {column} of account {terms.account}")


def check_reduces(terms: Terms, positions: Iterable[Mapping[str, Any]]) -> None:
    """Check that an order makes no position larger and opens none.

    :param positions: rows of ``queries.positions`` for the account.
    :raises OpenmarketsOrderError: it would.
    """
    rows = [row for row in positions if (row.get("security_code"), row.get("exchange")) == (terms.code, terms.exchange)]
    held = sum(row.get("actual_volume") or 0 for row in rows)
    free = sum(row.get("available_volume") or 0 for row in rows)
    most = {"Sell": min(held, free), "Buy": -held}.get(terms.side, 0)
    if terms.volume > max(most, 0):
        raise OpenmarketsOrderError(
            f"reduce_only: the account holds {held} of {terms.code}, of which {free} are available; a {terms.side} "
            f"order may be for {max(most, 0)} at most."
        )
