"""Every interleaving of kills, freezes, replies and lags that the model below knows: never two orders for one intent.

The code that places orders is the real one. The world around it is a model: an OMS, a journal that outlives processes,
and a clock. At each step of a process the model may go on, kill it, or freeze it until another try has run to its end.
At any time a person may look at the OMS itself, and say whether the order was placed.
What tries leave behind is one state; each state is explored once, and so is what a frozen process finds.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import copy
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest

from openmarkets_provider import orders
from openmarkets_provider.client.exchange import Received
from openmarkets_provider.client.order_sending import SEND_WINDOW, SETTLE
from openmarkets_provider.client.orders import Orders
from openmarkets_provider.exceptions import (
    OpenmarketsApiError,
    OpenmarketsError,
    OpenmarketsRateLimited,
    OpenmarketsServerError,
    OpenmarketsTransportError,
)
from openmarkets_provider.order_entry.guards import Policy
from openmarkets_provider.order_entry.intent import make_tag

ORDER = orders.limit("BHP", account="A", buy=100, price="45.50")
TAG = make_tag("intent")
SECURITY = {
    "price_multiplier": Decimal("0.01"),
    "lot_size": 1,
    "minimum_price_step": Decimal("0.01"),
    "shares_per_contract": None,
    "currency_code": "AUD",
}
TIMEOUT = 10.0
TAKE_OVER = SEND_WINDOW + 1.0
"""Seconds after which, at the earliest, another process takes over from one that has frozen."""
REPLIES = ("number", "lost", "late", "never", "refused", "unsent", "throttled", "no number")
"""Outcomes of a send. After "late" the order is accepted when the time-out is over, after "never" it never is."""
REPLIES_OF_OTHERS = ("number", "late", "never", "unsent")
"""The same of a try that takes over from one that has frozen: the others leave the same behind."""
LAGS = (0.0, SETTLE - 1)
"""Seconds from the acceptance of an order to its place in the list."""


class Killed(BaseException):
    """The process is gone."""


class Pruned(BaseException):
    """What follows has been explored."""


class Choices:
    """Makes choices: those of a path first, then the first one each time."""

    def __init__(self, path: list[tuple[int, int]]) -> None:
        self.path = path
        self._at = 0

    @property
    def is_new(self) -> bool:
        """Whether no earlier run has come this far."""
        return self._at == len(self.path)

    def __call__(self, options: int) -> int:
        if self._at == len(self.path):
            self.path.append((0, options))
        choice, known = self.path[self._at]
        assert known == options, "the code is not deterministic"
        self._at += 1
        return choice


def all_runs(run: Callable[[Choices], None]) -> Iterator[None]:
    """Run with every sequence of choices."""
    path: list[tuple[int, int]] = []
    while True:
        choices = Choices(path)
        run(choices)
        yield
        path = choices.path
        while path and path[-1][0] + 1 == path[-1][1]:
            path.pop()
        if not path:
            return
        path[-1] = (path[-1][0] + 1, path[-1][1])


class World:
    """The OMS, the journal and the clock."""

    def __init__(self, echoes: bool) -> None:
        self.now = 1_000_000.0
        self.echoes = echoes
        self.sends = 0
        # An earlier order of the account shows whether the list returns tags.
        self.book = [{"number": 1, "at": 0.0, "lag": 0.0, "notes": make_tag("earlier")}]
        self.journal: dict[str, Any] = {}

    def copy(self) -> World:
        """Return a world that goes on from here. Nobody changes an order or an entry of the journal."""
        world = copy(self)
        world.book, world.journal = list(self.book), dict(self.journal)
        return world

    @property
    def placed(self) -> list[dict[str, Any]]:
        return [order for order in self.book if order["notes"] == TAG]

    @property
    def last(self) -> dict[str, Any]:
        """What the journal has of the last attempt."""
        return next((self.journal[key] for key in sorted(self.journal, reverse=True) if key.startswith(TAG)), {})

    def key(self) -> tuple[Any, ...]:
        """Return what later tries depend on."""
        intent = self.last
        ages = [
            min(max(self.now - moment, -1.0), 0.0)
            for order in self.placed
            for moment in (order["at"], order["at"] + order["lag"])
        ]
        until = intent.get("send_before", 0.0)
        due = self.now >= until, self.now >= until + TIMEOUT + SETTLE
        facts = [value["echoed"] for name, value in self.journal.items() if "echoed" in value]
        attempt = min(intent.get("attempt", 0), 2)
        return self.echoes, attempt, intent.get("state"), intent.get("number"), tuple(ages), due, tuple(facts)


class Process:
    """One try: a client and a journal whose every step may be the last one."""

    def __init__(
        self,
        world: World,
        choose: Choices,
        explored: set[Any],
        *,
        undisturbed: bool = False,
        may_freeze: bool = True,
        is_first: bool = True,
    ) -> None:
        self.settings = SimpleNamespace(policy=Policy("on"), timeout=TIMEOUT, oms_url="https://oms")
        self._world, self._choose, self._explored = world, choose, explored
        self._undisturbed, self._may_freeze = undisturbed, may_freeze
        self._is_first = is_first
        self._trace: list[tuple[Any, ...]] = []

    def place(self, on_unknown: str) -> str | None:
        """Return the number, or None when the process was killed or could not know."""
        world, self._on_unknown = self._world, on_unknown
        sender = Orders(self, self, clock=lambda: world.now, sleep=self._sleep)
        try:
            return str(sender.place(ORDER, intent="intent", on_unknown=on_unknown)["order_number"])
        except (Killed, OpenmarketsError):
            return None

    def answer(self) -> None:
        """Say what a person sees in the book, unless the process is killed."""
        placed = [order for order in self._world.placed if order["at"] <= self._world.now]
        number = str(placed[0]["number"]) if placed else None
        with suppress(Killed, OpenmarketsError):
            Orders(self, self, clock=lambda: self._world.now, sleep=self._sleep).resolve(ORDER, "intent", number=number)

    def _step(self, name: str, can_fail: bool = False) -> bool:
        """Go on (False) or fail (True), unless the process is killed here."""
        assert len(self._trace) < 200, "a try that does not end"
        here = (name, self._world.key())
        is_known = here in self._trace
        self._trace.append(here)
        if self._undisturbed or is_known:
            return False
        options = ["go on"]
        if self._is_first or name in ("send", "reply"):
            # What another kill of a try that has taken over leaves behind is left behind by a kill of the first, too.
            options.append("kill")
        options += ["fail"] * (can_fail and self._is_first) + ["freeze"] * self._may_freeze
        match options[self._choose(len(options))]:
            case "kill":
                raise Killed
            case "fail":
                self._trace.append(("failed",))
                return True
            case "freeze":
                self._freeze()
        return False

    def _freeze(self) -> None:
        """Let another try run to its end."""
        self._may_freeze = False
        self._world.now += TAKE_OVER
        Process(self._world, self._choose, self._explored, may_freeze=False, is_first=False).place(self._on_unknown)
        self._trace.append(("resumed", self._world.key()))
        if self._choose.is_new:
            if (what := tuple(self._trace)) in self._explored:
                raise Pruned
            self._explored.add(what)

    def _sleep(self, seconds: float) -> None:
        self._world.now += seconds

    # --- the client

    def run(self, query: dict[str, Any]) -> list[dict[str, Any]]:
        if query["endpoint"] == "security_information":
            return [SECURITY]
        if self._step("list", can_fail=True):
            raise OpenmarketsServerError("no list", status=503)
        return [
            {
                "order_number": str(order["number"]),
                "notes": order["notes"] if self._world.echoes else None,
                "security_code": "BHP",
                "exchange": "ASX",
                "side": "Buy",
                "order_volume": 100,
                "order_price": Decimal("45.50"),
                "state": "working",
            }
            for order in self._world.book
            if order["at"] + order["lag"] <= self._world.now
        ]

    def get_access_token(self, scope: str) -> str:
        return "token"

    def send_order(self, call: Any, before_send: Callable[[], None]) -> Received:
        self._step("send")
        before_send()
        world = self._world
        replies = REPLIES[:1] if self._undisturbed else REPLIES if self._is_first else REPLIES_OF_OTHERS
        reply = replies[self._choose(len(replies))]
        world.sends += reply not in ("unsent", "throttled", "refused")
        if reply in ("number", "lost", "late", "no number"):
            delay = TIMEOUT if reply == "late" else 0.0
            lag = LAGS[0 if self._undisturbed else self._choose(len(LAGS))]
            number = 1 + len(world.book)
            world.book.append({"number": number, "at": world.now + delay, "lag": lag, "notes": call.json["notes"]})
        self._trace.append((reply,))
        self._step("reply")
        match reply:
            case "number":
                return Received({"orderNumber": number}, 200, "id", ())
            case "no number":
                return Received(None, 200, "id", ())
            case "refused":
                raise OpenmarketsApiError("no", status=400, sent=True)
            case "throttled":
                raise OpenmarketsRateLimited("later", status=429, sent=True)
            case "unsent":
                raise OpenmarketsTransportError("no connection")
        world.now += TIMEOUT
        raise OpenmarketsTransportError("no reply", sent=True)

    # --- the journal

    def load(self, key: str) -> dict[str, Any] | None:
        self._step(f"load {key}")
        return self._world.journal.get(key)

    def save(self, key: str, data: dict[str, Any]) -> None:
        if self._step(f"save {key}", can_fail=True):
            raise OpenmarketsError("no journal", transient=True)
        self._world.journal[key] = data
        self._step(f"saved {key}")

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        yield


def explore(first: World, on_unknown: str, *, may_freeze: bool) -> tuple[int, int]:
    """Explore all states that tries lead to from a first one; return the numbers of states and of tries."""
    known, left, tries, explored = {first.key()}, [first], 0, set[Any]()
    ends: list[World] = []
    start = first

    def try_once(choices: Choices) -> None:
        world = start.copy()
        world.sends = 0
        try:
            number = Process(world, choices, explored, may_freeze=may_freeze).place(on_unknown)
        except Pruned:
            return
        check(world, number)
        ends.append(world)

    def answer(choices: Choices) -> None:
        world = start.copy()
        Process(world, choices, explored, may_freeze=False).answer()
        ends.append(world)

    while left:
        start = left.pop()
        for _ in itertools.chain(all_runs(try_once), all_runs(answer)):
            tries += 1
            for pause, end in itertools.product((1.0, 1000.0), ends):
                later = end.copy()
                later.now += pause
                if later.key() not in known:
                    known.add(later.key())
                    check_that_it_ends(later, on_unknown)
                    left.append(later)
            ends.clear()
    return len(known), tries


def check(world: World, number: str | None) -> None:
    assert len(world.placed) <= 1, "two orders"
    assert number is None or [str(order["number"]) for order in world.placed] == [number]


def check_that_it_ends(start: World, on_unknown: str) -> None:
    """Check what an undisturbed try makes of a state."""
    world = start.copy()
    before = len(world.placed)
    number = Process(world, Choices([]), set(), undisturbed=True).place(on_unknown)
    check(world, number)
    if before and world.echoes:
        assert number is not None, "an order that was placed is not found"
    if on_unknown == "ask" and start.last.get("state") in ("sending", "unknown", "absent"):
        assert len(world.placed) == before, "sent again without being asked to"


@pytest.fixture(autouse=True)
def no_logs() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize(
    ("on_unknown", "echoes"),
    [
        ("ask", True),
        ("ask", False),
        ("resend", False),
        pytest.param("resend", True, marks=[pytest.mark.slow, pytest.mark.nightly]),
    ],
)
def test_there_are_never_two_orders_whenever_a_try_is_killed(on_unknown, echoes):
    states, tries = explore(World(echoes), on_unknown, may_freeze=False)
    print(f"kills; {on_unknown}, echoes={echoes}: {states} states, {tries} tries")
    assert (states > 50, tries > 3000) == (True, True)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("echoes", [True, False])
def test_nor_when_one_is_frozen_while_another_takes_over(echoes):
    states, tries = explore(World(echoes), "ask", may_freeze=True)
    print(f"kills and freezes; ask, echoes={echoes}: {states} states, {tries} tries")
    assert (states > 50, tries > 10000) == (True, True)
