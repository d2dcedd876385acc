"""Amends and cancels orders. Both have absolute effects: what the order is says whether one was carried out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from openmarkets_provider.client.environments import SCOPES
from openmarkets_provider.client.order_checks import require_order
from openmarkets_provider.client.order_sending import LOOKS, SEND_WINDOW, OrderSending, TooLate, is_refusal, too_late
from openmarkets_provider.exceptions import OpenmarketsError, OpenmarketsOrderError, OpenmarketsOrderUnknown
from openmarkets_provider.order_entry.instruction import Instruction
from openmarkets_provider.order_entry.intent import Intent, make_tag
from openmarkets_provider.order_entry.machine import Event, State
from openmarkets_provider.order_entry.outcome import describe_order, outcome_of, summary_of
from openmarkets_provider.order_entry.terms import canonical, digest
from openmarkets_provider.query.plan import ApiCall

_OPEN = ("working", "pending")


class Changing(OrderSending):
    """Amends and cancels orders."""

    def amend(self, order: Instruction, *, intent: Sequence[object]) -> dict[str, Any]:
        """Amend an order, once.

        Makes ``GET orders/by-account/{account}/v4`` and ``PUT orders/{orderNumber}/v4``. The order keeps its other
        terms as the list has them; ``orderGiver`` and ``orderTaker`` are not in the list, and are sent only where the
        instruction has them.

        :param order: of ``orders.amend``.
        :param intent: what identifies the amendment.
        :return: the order: ``outcome``, volumes, prices in dollars; see the guide.
        :raises OpenmarketsOrderError: a limit forbids it, or the order is finished.
        :raises OpenmarketsOrderUnknown: an earlier attempt may still be under way, or someone else changed the order.
        """
        self._policy.check_mode()
        arguments = self._arguments(order, "amend")
        parts = [intent] if isinstance(intent, str) else list(intent)
        terms = canonical(arguments, server=self._client.settings.oms_url)
        wanted = Intent(tag=make_tag("amend", *parts), digest=digest(terms), terms=terms)
        with self._journal.lock(wanted.tag):
            stored = self.load(wanted.tag)
            if stored is not None:
                stored.require_same_terms(wanted)
                while stored.state is State.SENDING and self._clock() < self._settled_at(stored):
                    self._wait(stored, len(LOOKS))
            began = self._clock()
            rows = self._list(arguments["account"])
            row = require_order(rows, arguments["account"], arguments["order_number"])
            before, after = _changeable(row), {**_changeable(row), **_changes(arguments)}
            if before == after or (stored is not None and stored.state is State.PLACED):
                return self._end_amend(stored or wanted, row)
            if outcome_of(row) not in _OPEN:
                raise OpenmarketsOrderError(f"The order can't be amended: {describe_order(row)}.")
            earlier = stored.body if stored is not None and stored.state is State.SENDING else None
            if earlier is not None and earlier != _texts(before):
                raise OpenmarketsOrderUnknown(
                    f"It is not known whether the amendment of {describe_order(row)} was carried out: the order is "
                    "neither as it was before nor as it should be. Nothing is sent again. Check at Openmarkets.",
                    tag=wanted.tag,
                    account=arguments["account"],
                    sent=True,
                    candidates=[summary_of(row)],
                )
            sent = self._send_amendment(replace(wanted, began=began, body=_texts(before)), arguments, row, rows)
            return self._end_amend(sent, self._wait_for(arguments, lambda row: _changeable(row) == after))

    def _send_amendment(
        self, intent: Intent, arguments: Mapping[str, Any], row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
    ) -> Intent:
        terms = self._make_terms(_amended(arguments, row))
        self._check(terms, self._quote(terms), [each for each in rows if each is not row], is_new=False)
        self._client.get_access_token(SCOPES["oms"])
        intent = replace(intent, state=State.SENDING, attempt=1, send_before=intent.began + SEND_WINDOW)
        fence = self._fence(intent.send_before)
        self._store(intent)
        number = arguments["order_number"]
        call = ApiCall("oms", "PUT", f"orders/{number}/v4", json=terms.change(""))
        try:
            self._client.send_order(call, fence)
        except TooLate:
            raise too_late() from None
        except OpenmarketsError as error:
            if self._event_of(error, intent) is not Event.DOUBT:
                self._move(intent, State.READY)
            else:
                # It has absolute terms: a retry compares them with those of the order before it sends anything.
                error.transient = True
            raise
        return intent

    def _end_amend(self, intent: Intent, row: Mapping[str, Any]) -> dict[str, Any]:
        self._move(replace(intent, number=str(row["order_number"]), outcome=outcome_of(row)), State.PLACED)
        return summary_of(row)

    def cancel(self, order: Instruction) -> dict[str, Any]:
        """Cancel an order, unless it is finished. To do so again changes nothing.

        Makes ``GET orders/by-account/{account}/v4`` and ``DELETE orders/{orderNumber}/v1``.

        :param order: of ``orders.cancel``.
        :return: the order as the list has it then: ``outcome``, volumes, prices in dollars. An order that was filled
            first is an outcome, and no error.
        :raises OpenmarketsOrderError: the account has no such order, or the connection forbids it.
        :raises OpenmarketsError: what the API said; transient where another try may succeed.
        """
        self._policy.check_mode()
        arguments = self._arguments(order, "cancel")
        row = self._find(arguments)
        if outcome_of(row) not in _OPEN:
            return summary_of(row)
        call = ApiCall("oms", "DELETE", f"orders/{arguments['order_number']}/v1")
        failure = None
        try:
            self._client.send_order(call, self._fence(self._clock() + SEND_WINDOW))
        except TooLate:
            raise too_late() from None
        except OpenmarketsError as error:
            failure = error
        row = self._wait_for(arguments, lambda row: outcome_of(row) not in _OPEN)
        if failure is not None and outcome_of(row) in _OPEN:
            # Safe by effect, unlike the other calls that change something.
            failure.transient = failure.transient or not is_refusal(failure)
            raise failure
        return summary_of(row)

    def _find(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        account = arguments["account"]
        return require_order(self._list(account), account, arguments["order_number"])

    def _wait_for(self, arguments: Mapping[str, Any], is_met: Callable[[Mapping[str, Any]], bool]) -> dict[str, Any]:
        """Read an order until it is as it should be, for some seconds; return it as it is then."""
        for pause in (*LOOKS, 0.0):
            row = self._find(arguments)
            if is_met(row):
                break
            self._sleep(pause)
        return row


def _changeable(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"volume": row["order_volume"], "price": row["order_price"]}


def _changes(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: arguments[name] for name in ("volume", "price") if arguments[name] is not None}


def _texts(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: f"{value.normalize():f}" if isinstance(value, Decimal) else value for name, value in values.items()}


def _amended(arguments: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the terms of an order after an amendment, as the arguments of one that is placed."""
    return {
        "account": arguments["account"],
        "security": f"{row['security_code']}.{row['exchange']}",
        "side": row["side"],
        "lifetime": row["lifetime"],
        "expiry_date_time": row["expiry_date_time"],
        "destination": row["destination"],
        "notes": row["notes"],
        "order_giver": arguments["order_giver"],
        "order_taker": arguments["order_taker"],
        "volume": int(row["order_volume"]),
        "price": row["order_price"],
        **_changes(arguments),
    }
