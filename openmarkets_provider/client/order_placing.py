"""Places orders: never twice on its own, and finds again what it has sent.

The table in ``order_entry/machine.py`` says what follows what. Here is what the actions do: read the list of orders,
write the intent, send, wait. The list is read before every send, and the intent is stored before the first byte
leaves. Right before that byte the clock decides: after ``send_before`` nothing is sent, so whoever takes over need only
wait until then.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from openmarkets_provider.client.environments import SCOPES
from openmarkets_provider.client.exchange import Received
from openmarkets_provider.client.order_checks import find_order, require_order
from openmarkets_provider.client.order_sending import LOOKS, SEND_WINDOW, OrderSending, TooLate, list_key, too_late
from openmarkets_provider.exceptions import (
    OpenmarketsError,
    OpenmarketsInvalidResponse,
    OpenmarketsOrderError,
    OpenmarketsOrderUnknown,
)
from openmarkets_provider.order_entry.guards import reference_price
from openmarkets_provider.order_entry.instruction import Instruction, resolve
from openmarkets_provider.order_entry.intent import Intent, find_tag, has_tag, make_tag
from openmarkets_provider.order_entry.machine import TRANSITIONS, Action, Event, State
from openmarkets_provider.order_entry.outcome import describe_order, summary_of
from openmarkets_provider.order_entry.terms import canonical, digest
from openmarkets_provider.query.plan import ApiCall

log = logging.getLogger(__name__)

MAX_LIST_AGE = 2 * 86400.0
"""Seconds for which the list, which goes back 3 days, surely has an order."""
ON_UNKNOWN = ("ask", "resend")
_IN_DOUBT = (State.SENDING, State.UNKNOWN, State.ABSENT)


class Placing(OrderSending):
    """Places orders."""

    def intend(self, order: Instruction, intent: Sequence[object]) -> Intent:
        """Return the intent to place an order, without what an earlier try has stored.

        :param order: of ``orders.limit`` or ``orders.market``.
        :param intent: what identifies it: a string, or several parts.
        :raises OpenmarketsOrderError: it is malformed, or the connection forbids it.
        """
        arguments = self._arguments(order, "place")
        terms = canonical(arguments, server=self._client.settings.oms_url)
        parts = [intent] if isinstance(intent, str) else list(intent)
        return Intent(tag=make_tag(*parts), digest=digest(terms), terms=terms)

    def preview(self, order: Instruction, intent: Sequence[object]) -> dict[str, Any]:
        """Do all but the send, and return what would be sent.

        :return: the terms, ``tag``, ``body`` in native units, ``value`` in dollars, and of a quote ``last_price``,
            ``trading_status`` and ``collar``.
        :raises OpenmarketsOrderError: a limit forbids it.
        """
        wanted = self.intend(order, intent)
        arguments = resolve(order)
        terms = self._make_terms(arguments)
        quote = self._quote(terms, always=True)
        self._check(terms, quote, self._list(terms.account))
        price, last, collar = reference_price(terms, quote), (quote or {}).get("last_price"), self._limits.price_collar
        return {
            "tag": wanted.tag,
            "digest": wanted.digest,
            "account": terms.account,
            "security": f"{terms.code}.{terms.exchange}",
            "side": terms.side,
            "volume": terms.volume,
            "price": terms.price,
            "native_price": terms.native_price,
            "value": None if price is None else terms.value(price),
            "last_price": last,
            "trading_status": (quote or {}).get("trading_status"),
            "collar": None if collar is None or not last else (last * (1 - collar), last * (1 + collar)),
            "body": terms.body(wanted.tag),
        }

    def approve(self, order: Instruction, intent: Sequence[object], **facts: Any) -> None:
        """Store who has approved an order, and when, unless it may have been sent already.

        :param facts: ``approved_by``, ``approved_at`` and ``epoch``.
        :raises OpenmarketsError: it can't be stored.
        """
        wanted = self.intend(order, intent)
        stored = self.load(wanted.tag) or wanted
        if stored.is_unsent:
            self._store(replace(stored, state=State.READY, **facts))

    def resolve(
        self,
        order: Instruction,
        intent: Sequence[object],
        *,
        number: str | None,
        by: str | None = None,
        at: str | None = None,
    ) -> None:
        """Store whether an order was placed, after :meth:`place` raised OpenmarketsOrderUnknown.

        The next :meth:`place` returns the number, or, where the order was not placed, looks at the list once more and
        sends it.

        :param order: of ``orders.limit`` or ``orders.market``.
        :param intent: what identifies it.
        :param number: of the order; None: it was not placed.
        :param by: who looked it up.
        :param at: when, as ISO 8601 text.
        :raises OpenmarketsOrderError: the outcome is known, or the list has no such order.
        :raises OpenmarketsError: transient: the order may still be on its way, or the answer can't be stored.
        """
        wanted = self.intend(order, intent)
        with self._journal.lock(wanted.tag):
            stored = self.load(wanted.tag) or replace(wanted, state=State.UNKNOWN)
            stored.require_same_terms(wanted)
            event = Event.DENIED if number is None else Event.IDENTIFIED
            if (stored.state, event) not in TRANSITIONS:
                raise OpenmarketsOrderError(
                    f"The order {wanted.tag} has no unknown outcome (its state is {stored.state}). Nothing was changed."
                )
            if self._clock() < self._settled_at(stored):
                raise OpenmarketsError(
                    f"The order {wanted.tag} may still be on its way. Resolve it in a minute.",
                    transient=True,
                )
            if number is not None:
                arguments = resolve(order)
                row = require_order(self._list(arguments["account"]), arguments["account"], number)
                if not _is_like(row, arguments):
                    raise OpenmarketsOrderError(f"number: {describe_order(row)} has other terms. Nothing was changed.")
            state, _ = TRANSITIONS[stored.state, event]
            self._store(replace(stored, state=state, number=number, resolved_by=by, resolved_at=at))

    def place(
        self,
        order: Instruction,
        *,
        intent: Sequence[object],
        on_unknown: str = ON_UNKNOWN[0],
        may_have_sent: bool = False,
        **facts: Any,
    ) -> dict[str, Any]:
        """Place an order once, however often this is called with the same intent.

        Makes ``GET orders/by-account/{account}/v4``, ``POST securities/information/v2`` and, where a limit needs it,
        ``POST pricing/quotes/v3`` and ``POST portfolios/positions/v2``; then ``POST orders/v4``.

        :param order: of ``orders.limit`` or ``orders.market``.
        :param intent: what identifies it: a string, or several parts. The same order wanted once more has another one.
        :param on_unknown: what to do when it is not known whether an earlier attempt placed the order. ``ask`` raises
            OpenmarketsOrderUnknown. ``resend`` sends it again, once, when the list of orders would have had it.
        :param may_have_sent: an earlier try of which the journal knows nothing may have sent the order.
        :param facts: stored with the intent: ``epoch``.
        :return: ``order_number``, ``tag``, ``account``, and ``found``: whether an earlier attempt had placed it.
        :raises OpenmarketsOrderError: it is malformed, or a limit forbids it. Nothing was sent.
        :raises OpenmarketsOrderUnknown: see ``on_unknown``.
        :raises OpenmarketsError: what the API or the journal said; transient ones may be tried again.
        """
        if on_unknown not in ON_UNKNOWN:
            raise OpenmarketsOrderError(f"on_unknown must be one of {', '.join(ON_UNKNOWN)}, not {on_unknown!r:.50}.")
        self._policy.check_mode()
        wanted = self.intend(order, intent)
        with self._journal.lock(wanted.tag):
            stored = self.load(wanted.tag)
            if stored is not None:
                stored.require_same_terms(wanted)
            elif may_have_sent:
                stored = replace(wanted, state=State.UNKNOWN, began=self._clock())
            return self._carry_out(replace(stored or wanted, **facts), resolve(order), on_unknown)

    def _carry_out(self, intent: Intent, arguments: Mapping[str, Any], on_unknown: str) -> dict[str, Any]:
        if intent.state in _IN_DOUBT:
            # What is stored may be that of a process which was suspended: another one may have sent later.
            intent = replace(intent, send_before=max(intent.send_before, self._clock()))
        event, failure, rows, began, looks = Event.START, None, list[Any](), 0.0, 0
        while True:
            state, action = TRANSITIONS[intent.state, event]
            if action is not Action.SEND:
                intent = self._move(intent, state)
            match action:
                case Action.LOOK | Action.WAIT:
                    if action is Action.WAIT:
                        self._wait(intent, looks)
                    began, looks = self._clock(), looks + 1
                    self._require_no_other(intent)
                    rows = self._list(arguments["account"])
                    intent, event = self._look(intent, rows)
                case Action.SEND:
                    intent, event, failure = self._send(intent, arguments, rows, began)
                case Action.DONE:
                    if event is Event.NUMBERED:
                        self._learn(intent, arguments["account"])
                    return {
                        "order_number": intent.number,
                        "tag": intent.tag,
                        "account": arguments["account"],
                        "found": event is not Event.NUMBERED,
                    }
                case Action.ASK:
                    if intent.state is not State.ABSENT or on_unknown != "resend":
                        raise self._unknown(intent, arguments, rows)
                    # Once: what is lost twice needs a person.
                    event, on_unknown = Event.RESEND, ON_UNKNOWN[0]
                case Action.FAIL:
                    raise failure or AssertionError

    def _look(self, intent: Intent, rows: Sequence[Mapping[str, Any]]) -> tuple[Intent, Event]:
        """Look for the tag in the list."""
        if (row := find_tag(rows, intent.tag)) is not None:
            return replace(intent, number=str(row["order_number"])), Event.LISTED
        if intent.state in (State.NEW, State.READY) or self._clock() < self._settled_at(intent):
            return intent, Event.NOT_LISTED
        known = self._known(intent.terms["account"])
        is_proven = known.get("echoed") is True or any(map(has_tag, rows))
        is_recent = self._clock() - intent.began < MAX_LIST_AGE
        return intent, Event.SETTLED if is_proven and is_recent else Event.UNPROVEN

    def _send(
        self, intent: Intent, arguments: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], began: float
    ) -> tuple[Intent, Event, OpenmarketsError | None]:
        """Check the limits, store that the order is being sent, and send it."""
        terms = self._make_terms(arguments)
        self._check(terms, self._quote(terms), rows)
        # Before the intent is stored: without a token nothing is sent.
        self._client.get_access_token(SCOPES["oms"])
        intent = replace(
            intent,
            state=State.SENDING,
            attempt=intent.attempt + 1,
            began=began,
            send_before=began + SEND_WINDOW,
            alike=[row["order_number"] for row in rows if _is_like(row, arguments)],
            body=terms.body(intent.tag),
        )
        fence = self._fence(intent.send_before)
        try:
            fence()
        except TooLate:
            raise too_late() from None
        self._store(intent)
        call = ApiCall("oms", "POST", "orders/v4", json=intent.body)
        try:
            number = _number_in(self._client.send_order(call, fence), call)
        except TooLate:
            return intent, Event.LATE, too_late()
        except OpenmarketsError as error:
            return intent, self._event_of(error, intent), error
        return replace(intent, number=number), Event.NUMBERED, None

    def _unknown(
        self, intent: Intent, arguments: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]
    ) -> OpenmarketsOrderUnknown:
        account = arguments["account"]
        alike = [row for row in rows if _is_like(row, arguments) and not has_tag(row)]
        alike = [row for row in alike if row["order_number"] not in intent.alike]
        if intent.state is State.ABSENT:
            said = (
                "The account's list does not have it, although it has the tags of other orders: most likely the order "
                "was not placed."
            )
        else:
            said = "The account's list does not have its tag, and it is not known whether the list has tags."
        if alike:
            said += f" It may be {' or '.join(map(describe_order, alike))}."
        return OpenmarketsOrderUnknown(
            f"It is not known whether the order {intent.tag} of account {account} was placed. {said} Nothing is sent "
            "again. Look for it at Openmarkets. If it was not placed, raise generation by one, or use another intent.",
            tag=intent.tag,
            account=account,
            sent=True,
            absent=intent.state is State.ABSENT,
            candidates=[summary_of(row) for row in alike],
        )

    def _learn(self, intent: Intent, account: str) -> None:
        """Look whether and when a new order is listed with its tag, and remember that for the account."""
        known = self._known(account)
        try:
            for pause in (0.0, *LOOKS):
                if pause:
                    self._sleep(pause)
                row = find_order(self._list(account), intent.number)
                lag = self._clock() - intent.began
                if row is not None or (known and pause):
                    break
        except OpenmarketsError as error:
            log.warning("%s: placed, but the list of orders can't be read: %s", intent.tag, error)
            return
        echoed = known.get("echoed") if row is None else find_tag([row], intent.tag) is not None
        if echoed is False:
            log.warning(
                "%s: the list of orders does not return notes as they were sent. An order whose reply is lost can't be "
                "found again by its tag.",
                intent.tag,
            )
        learnt = {"echoed": echoed, "lag": max(lag, known.get("lag") or 0.0)}
        if learnt != known:
            try:
                self._journal.save(list_key(account), learnt)
            except OpenmarketsError as error:
                log.warning("%s: placed, but the list's lag could not be stored: %s", intent.tag, error)


def _number_in(received: Received, call: ApiCall) -> str:
    number = received.json.get("orderNumber") if isinstance(received.json, dict) else None
    if isinstance(number, str | int) and not isinstance(number, bool) and _is_number(str(number)):
        return str(number)
    raise received.explain(
        OpenmarketsInvalidResponse(f"{call.label}: the reply has no orderNumber.", endpoint=call.label, sent=True)
    )


def _is_number(text: Any) -> bool:
    return isinstance(text, str) and text.isascii() and text.isdecimal()


def _is_like(row: Mapping[str, Any], arguments: Mapping[str, Any]) -> bool:
    code = arguments["security"].partition("@")[0]
    return (f"{row['security_code']}.{row['exchange']}", row["side"], row["order_volume"], row["order_price"]) == (
        code,
        arguments["side"],
        arguments["volume"],
        arguments["price"],
    )
