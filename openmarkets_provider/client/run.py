"""One run of a query: which calls it takes, and rows from their replies. As flows, without I/O."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import blake2b
from typing import Any, NamedTuple

from openmarkets_provider.client.drivers import Flow
from openmarkets_provider.exceptions import (
    OpenmarketsAccessRefused,
    OpenmarketsConfigurationError,
    OpenmarketsError,
    OpenmarketsNotFound,
    OpenmarketsQueryError,
    OpenmarketsScopeNotInPlan,
)
from openmarkets_provider.query.arguments import is_security
from openmarkets_provider.query.endpoints import ENDPOINTS
from openmarkets_provider.query.exchange_time import EXCHANGE_ZONE
from openmarkets_provider.query.expand import expand, lookup_query
from openmarkets_provider.query.plan import ApiCall, Plan, plan
from openmarkets_provider.query.query import Query, resolve, subject_of, window
from openmarkets_provider.query.rows import (
    Listing,
    find_missing_multipliers,
    full_name,
    listing_of,
    read_invalid_securities,
    read_multipliers,
    read_records,
    row_keys,
    select_range,
    to_listing,
    to_rows,
)
from openmarkets_provider.query.schema import Row

log = logging.getLogger(__name__)

PROGRESS_EVERY = 5.0
"""Seconds between two lines about the progress of a run."""
_INFORMATION = "security_information"
_OF_SECURITIES = ("securities", listing_of, to_listing)
_OF_PORTFOLIOS = ("portfolioCodes", lambda record: _code(record.get("portfolioCode")), lambda code: code)
_ONE_FOR_EACH: Mapping[str, tuple[str, Callable[[Row], Any], Callable[[str], Any]]] = {
    _INFORMATION: _OF_SECURITIES,
    "quotes": _OF_SECURITIES,
    "cash": _OF_PORTFOLIOS,
    "portfolio_details": _OF_PORTFOLIOS,
}
"""Queries whose replies have something of everything that was asked for: where, and how to find it. A portfolio without
holdings has no positions."""


class Answer(NamedTuple):
    """A reply to one call of a run; ``known`` is False when the API does not know what the call is about."""

    number: int
    call: ApiCall
    reply: Any
    known: bool = True


class Run:
    """One run of a typed query. Its methods are flows; all but :meth:`ask` belong to one thread.

    :param query: rendered.
    :param exchange: makes the flow that sends a call, with its retries.
    :raises OpenmarketsQueryError: an argument of the query is malformed.
    """

    def __init__(self, query: Query, exchange: Callable[[ApiCall], Flow[Any]]) -> None:
        self._query: Query = resolve(query)
        self._exchange = exchange
        self.endpoint: str = query["endpoint"]
        self._schema = ENDPOINTS[self.endpoint].schema
        self._total = 0
        self._window: tuple[Any, Any] | None = None
        self._securities = self._left_out = 0
        self._seen: set[Any] = set()
        self._series: str | None = None
        self._multipliers: dict[Listing, Decimal] = {}
        self._asked: set[Listing] = set()
        self._guessed: set[Listing] = set()

    def prepare(self) -> Flow[Plan]:
        """Find out what the query leaves to the API, and plan its calls.

        :raises OpenmarketsError: the query is malformed, or a call that comes first failed.
        """
        now = datetime.now(UTC).astimezone(EXCHANGE_ZONE).replace(tzinfo=None)
        before = lookup_query(self._query)
        if before is not None:
            self._query = expand(self._query, (yield from self._look_up(before)), now.date())
        calls = plan(self._query, now)
        self._total, self._securities = len(calls), len(calls.subjects)
        self._window = window(self._query)
        replies_lack_it = "priceMultiplier" in self._schema.supplied
        if replies_lack_it and subject_of(self._query) == "securities" and calls and not self._query["raw"]:
            yield from self._learn([to_listing(security) for security in calls.subjects])
        return calls

    def ask(self, number: int, call: ApiCall) -> Flow[Answer]:
        """Send one call of the plan.

        :param number: 1 for the first.
        """
        try:
            return Answer(number, call, (yield from self._exchange(call)))
        except OpenmarketsError as error:
            unknown = isinstance(error, OpenmarketsNotFound) and error.status == 404 and call.security is not None
            if not unknown or self._query["on_invalid"] != "warn":
                raise self._named(error, number, call) from error.__cause__
            log.warning("%s It is left out.", error)
            return Answer(number, call, None, known=False)

    def batch(self, answer: Answer) -> Flow[list[Row]]:
        """Turn one answer into rows, or into the API's records when the query wants those. In the order of the plan."""
        number, call, reply, known = answer
        if not known:
            self._left_out += 1
            if self._left_out == self._total > 1:
                raise OpenmarketsQueryError(
                    f"{self.endpoint}: the API knows none of the {self._securities} securities."
                )
            return []
        try:
            return (yield from self._rows(call, reply))
        except OpenmarketsError as error:
            raise self._named(error, number, call) from error.__cause__

    def _rows(self, call: ApiCall, reply: Any) -> Flow[list[Row]]:
        given = read_records(call, reply)
        self._check_known(call, reply, given)
        if not call.exact:
            return given
        missing = find_missing_multipliers(self._schema, call, given)
        if self.endpoint != _INFORMATION:
            yield from self._learn(missing)
        made = to_rows(self._schema, call, given, self._multipliers)
        self._warn_of_guesses(missing)
        return self._unseen(call, select_range(self._schema, call, made, self._window))

    def _look_up(self, query: Query) -> Flow[list[Row]]:
        run = Run(query, self._exchange)
        found: list[Row] = []
        for number, call in enumerate((yield from run.prepare()), 1):
            found += yield from run.batch((yield from run.ask(number, call)))
        return found

    def _learn(self, securities: Iterable[Listing]) -> Flow[None]:
        """Ask for the price multipliers of securities that this run has not asked for yet."""
        wanted = [each for each in securities if each not in self._asked and is_security(full_name(each))]
        if not wanted:
            return
        self._asked.update(wanted)
        query = {
            "endpoint": _INFORMATION,
            "securities": list(map(full_name, wanted)),
            "exchange": None,
            "on_invalid": "warn",
            "raw": False,
        }
        try:
            for call in plan(query):
                given = read_records(call, (yield from self._exchange(call)))
                self._multipliers |= read_multipliers(call, given)
        except OpenmarketsError as error:
            # The client may not ask. Anything else that went wrong must not end in a guess.
            refused = isinstance(error, OpenmarketsScopeNotInPlan | OpenmarketsAccessRefused)
            if not refused and not (isinstance(error, OpenmarketsConfigurationError) and error.scope):
                raise
            log.warning("Price multipliers can't be had from security information: %s", error)

    def _check_known(self, call: ApiCall, reply: Any, given: Sequence[Row]) -> None:
        """Refuse, or tell of, what was asked for and is not in the reply."""
        invalid = read_invalid_securities(call, reply)
        if self.endpoint in _ONE_FOR_EACH:
            field, of_record, of_code = _ONE_FOR_EACH[self.endpoint]
            found = set(map(of_record, given))
            absent = [code for code in call.json[field] if of_code(code) not in found and code not in invalid]
            if self.endpoint == _INFORMATION:
                invalid += absent
            elif absent:
                log.warning("%s: the reply holds nothing of %.1000r.", call.label, absent)
        if invalid:
            if self._query["on_invalid"] != "warn":
                raise unknown_securities(call, invalid)
            log.warning("%s They are left out.", _unknown(call, invalid))

    def _warn_of_guesses(self, missing: Iterable[Listing]) -> None:
        guessed = [each for each in missing if each not in self._multipliers and each not in self._guessed]
        if guessed:
            self._guessed.update(guessed)
            log.warning(
                "%s: nothing supplies the price multiplier of %.1000r; 0.01 is taken for it (native prices in cents).",
                self.endpoint,
                list(map(full_name, guessed)),
            )

    def _unseen(self, call: ApiCall, made: list[Row]) -> list[Row]:
        """Leave out what was there already.

        Pieces of a range that touch may both have what is at the seam: that has the same key. Any two accounts may
        share an order: that is left out when all of it is the same.
        """
        if self._total == 1 or (call.security is None and call.api != "oms"):
            return made
        identified: list[Any] = row_keys(self._schema, made) if call.security else list(map(_digest, made))
        if call.security is not None and call.security != self._series:
            self._seen = set()
        seen, self._series = self._seen, call.security
        self._seen = set(identified) if call.security else seen | set(identified)
        return [row for row, identity in zip(made, identified, strict=True) if identity not in seen]

    def _named(self, error: OpenmarketsError, number: int, call: ApiCall) -> OpenmarketsError:
        """Return the error, saying which piece of a split query failed.

        A new one: the coroutines that wait for one token request are all given the same error.
        """
        piece = f"Call {number} of {self._total} ({call.piece}) failed. " if self._total > 1 else ""
        return replace(error, message=f"{piece}{error}")


def _code(value: Any) -> str | None:
    # Records are not checked yet: what is neither a text nor a whole number may not even be hashable.
    return str(value) if isinstance(value, int | str) else None


def unknown_securities(call: ApiCall, invalid: Sequence[str]) -> OpenmarketsQueryError:
    """Say which securities of a call the API does not know."""
    return OpenmarketsQueryError(
        f"{_unknown(call, invalid)} With on_invalid='warn' the query goes on without them.", securities=list(invalid)
    )


def _unknown(call: ApiCall, invalid: Sequence[str]) -> str:
    return f"{call.label}: the API does not know the securities {invalid!r:.1000}."


def _digest(row: Row) -> bytes:
    return blake2b(repr(row).encode(), digest_size=16).digest()


class Progress:
    """Logs how far a long run is, every few seconds.

    :param name: what the lines call the run.
    :param total: calls of the run.
    """

    def __init__(self, name: str, total: int) -> None:
        self._name = name
        self._total = total
        self._calls = self._rows = 0
        self._started = self._said = time.monotonic()

    def add(self, count: int) -> None:
        """Count one more call, with so many rows."""
        self._calls += 1
        self._rows += count
        self.tick()

    def tick(self) -> None:
        """Say something when it is time to."""
        now = time.monotonic()
        if now - self._said < PROGRESS_EVERY or self._calls == self._total:
            return
        self._said = now
        log.info(
            "%s: %d of %d calls done, %d rows, %.0f rows/s.",
            self._name,
            self._calls,
            self._total,
            self._rows,
            self._rows / (now - self._started),
        )
