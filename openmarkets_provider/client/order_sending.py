"""One order call: stored before it is sent, not sent when it is late, and what its errors mean."""

from __future__ import annotations

import hashlib
import itertools
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from openmarkets_provider.client.journals import Journal
from openmarkets_provider.client.order_checks import OmsClient, OrderChecks
from openmarkets_provider.exceptions import OpenmarketsApiError, OpenmarketsError, OpenmarketsRateLimited
from openmarkets_provider.order_entry.guards import Limits
from openmarkets_provider.order_entry.intent import Intent
from openmarkets_provider.order_entry.machine import Event, State

log = logging.getLogger(__name__)

SEND_WINDOW = 30.0
"""Seconds from the look at the list to the moment after which nothing is sent."""
SETTLE = 30.0
"""Seconds after the last moment of a send at which an order is listed, unless a longer lag was seen. Inferred."""
LOOKS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds between looks for an order that must be there."""
_REFUSALS = frozenset(range(400, 500)) - {408, 425, 429}


class TooLate(Exception):
    """The time to send in is over, and nothing was sent."""


class OrderSending(OrderChecks):
    """What placing and amending have in common."""

    def __init__(
        self,
        client: OmsClient,
        journal: Journal,
        limits: Limits,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        super().__init__(client, limits, clock)
        self._journal = journal
        self._sleep = sleep

    def load(self, tag: str) -> Intent | None:
        """Return what the journal has of the last attempt of an intent.

        Each attempt has an entry of its own, so that a process that was suspended overwrites nothing newer.

        :raises OpenmarketsError: it can't be read.
        """
        last = self._journal.load(_key(tag, 0))
        for attempt in itertools.count(1):
            data = self._journal.load(_key(tag, attempt))
            if data is None:
                return None if last is None else Intent.from_data(last)
            last = data
        raise AssertionError

    def _require_no_other(self, intent: Intent) -> None:
        """Check that no other process has begun a later attempt. The time to send in counts from before this check.

        :raises OpenmarketsError: transient: another one has.
        """
        if self._journal.load(_key(intent.tag, intent.attempt + 1)) is not None:
            raise OpenmarketsError(
                f"{intent.tag}: nothing was sent by this process, since another one carries out the same intent.",
                transient=True,
            )

    def _move(self, intent: Intent, state: State) -> Intent:
        """Store a new state. Only that of a send must be stored; the others say more, and are found out again."""
        if state is intent.state:
            return intent
        moved = replace(intent, state=state)
        try:
            self._journal.save(_key(intent.tag, intent.attempt), moved.to_data())
        except OpenmarketsError as error:
            log.warning("%s: the state %s could not be stored: %s", intent.tag, state, error)
        return moved

    def _settled_at(self, intent: Intent) -> float:
        lag = self._known(intent.terms["account"]).get("lag") or 0.0
        return intent.send_before + self._client.settings.timeout + max(SETTLE, 2 * lag)

    def _wait(self, intent: Intent, looks: int) -> None:
        left = self._settled_at(intent) - self._clock()
        wait = min(LOOKS[min(looks, len(LOOKS)) - 1], max(left, 0.0) + 0.1)
        log.info("%s: not in the list of orders yet; looking again in %.1f s, for %.0f s.", intent.tag, wait, left)
        self._sleep(wait)

    def _store(self, intent: Intent) -> None:
        """Store that an order is being sent, and read it back."""
        key, data = _key(intent.tag, intent.attempt), intent.to_data()
        self._journal.save(key, data)
        if self._journal.load(key) != data:
            raise OpenmarketsError(
                f"{intent.tag}: not sent, since the journal does not return what was stored. Another process may carry "
                "out the same intent.",
                transient=True,
            )

    def _event_of(self, error: OpenmarketsError, intent: Intent) -> Event:
        """Return what an error means for the order."""
        if isinstance(error, OpenmarketsRateLimited) or not error.sent:
            # After that, another process may have taken over: the state must not say that nothing was sent.
            return Event.NOT_SENT if self._clock() < intent.send_before else Event.LATE
        if is_refusal(error):
            return Event.REFUSAL
        log.warning("%s: %s Looking for the order.", intent.tag, error)
        return Event.DOUBT

    def _fence(self, send_before: float) -> Callable[[], None]:
        # The wall clock counts while the machine sleeps, and the other one can't be set back.
        end = time.monotonic() + send_before - self._clock()

        def fence() -> None:
            if self._clock() >= send_before or time.monotonic() >= end:
                raise TooLate

        return fence

    def _known(self, account: str) -> dict[str, Any]:
        try:
            return self._journal.load(list_key(account)) or {}
        except OpenmarketsError:
            return {}


def too_late() -> OpenmarketsError:
    """Return the error of a send for which it is too late."""
    return OpenmarketsError(
        f"Not sent: the list of orders was read more than {SEND_WINDOW:.0f} s ago.",
        transient=True,
    )


def is_refusal(error: OpenmarketsError) -> bool:
    """Tell whether an error is the API's definitive no."""
    return isinstance(error, OpenmarketsApiError) and error.status in _REFUSALS


def _key(tag: str, attempt: int) -> str:
    return f"{tag}-{attempt}"


def list_key(account: str) -> str:
    """Return the key under which a journal has what is known of an account's list of orders."""
    return f"list-{hashlib.sha256(account.encode()).hexdigest()[:16]}"
