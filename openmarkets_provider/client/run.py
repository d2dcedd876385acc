"""One run of a query: which calls it takes, and rows from their replies."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from hashlib import blake2b
from typing import Any, NamedTuple

from openmarkets_provider.client.exchange import Exchange, Received
from openmarkets_provider.client.io import Group, ThreadGroup, Work, in_order
from openmarkets_provider.client.progress import Progress
from openmarkets_provider.exceptions import (
    OpenmarketsAccessRefused,
    OpenmarketsConfigurationError,
    OpenmarketsError,
    OpenmarketsInvalidResponse,
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
    """The reply to one call of a run.

    :ivar number: of the call, 1 for the first.
    :ivar received: None when the API does not know what the call is about.
    """

    number: int
    call: ApiCall
    received: Received | None


class Run:
    """One run of a typed query.

    :param query: rendered.
    :param exchange: sends its calls.
    :raises OpenmarketsQueryError: an argument of the query is malformed.
    """

    def __init__(self, query: Query, exchange: Exchange) -> None:
        self._query: Query = resolve(query)
        self._exchange = exchange
        self._endpoint: str = query["endpoint"]
        self._schema = ENDPOINTS[self._endpoint].schema
        self._total = 0
        self._window: tuple[Any, Any] | None = None
        self._securities = self._left_out = 0
        self._seen: set[Any] = set()
        self._series: str | None = None
        self._multipliers: dict[Listing, Decimal] = {}
        self._looked_up: set[Listing] = set()
        self._guessed: set[Listing] = set()

    async def batches(
        self, concurrency: int = 1, open_group: Callable[[int], Group[Answer]] = ThreadGroup
    ) -> AsyncGenerator[list[Row], None]:
        """Yield the rows of each call, or the API's records when the query wants those, in the order of the plan.

        :param concurrency: most calls at the same time.
        :param open_group: makes a group for so many.
        :raises OpenmarketsError: what went wrong; the text says with which call.
        """
        calls = await self._plan()
        progress = Progress(self._endpoint, len(calls))
        asks = (partial(self._ask, number, call) for number, call in enumerate(calls, 1))
        concurrency = min(concurrency, len(calls))
        async with open_group(concurrency) if concurrency > 1 else nullcontext() as group:
            if group is not None:
                self._exchange = self._exchange.paced(group)
            answers = _one_by_one(asks) if group is None else in_order(group, asks, concurrency, progress.tick)
            async with aclosing(answers):
                async for answer in answers:
                    batch = await self._batch(answer)
                    progress.add(len(batch))
                    if batch:
                        yield batch

    async def _plan(self) -> Plan:
        """Find out what the query leaves to the API, and plan its calls."""
        now = datetime.now(UTC).astimezone(EXCHANGE_ZONE).replace(tzinfo=None)
        first = lookup_query(self._query)
        if first is not None:
            self._query = expand(self._query, await self._look_up(first), now.date())
        calls = plan(self._query, now)
        self._total, self._securities = len(calls), len(calls.subjects)
        self._window = window(self._query)
        replies_lack_it = "priceMultiplier" in self._schema.supplied
        if replies_lack_it and subject_of(self._query) == "securities" and calls and not self._query["raw"]:
            await self._learn_multipliers([to_listing(security) for security in calls.subjects])
        return calls

    async def _ask(self, number: int, call: ApiCall) -> Answer:
        try:
            return Answer(number, call, await self._exchange.receive(call))
        except OpenmarketsError as error:
            is_unknown = isinstance(error, OpenmarketsNotFound) and error.status == 404 and call.security is not None
            if not is_unknown or self._query["on_invalid"] != "warn":
                raise self._name_call(error, number, call) from error.__cause__
            log.warning("%s It is left out.", error)
            return Answer(number, call, None)

    async def _batch(self, answer: Answer) -> list[Row]:
        """Turn one answer into rows. In the order of the plan, since rows at a seam may come twice."""
        number, call, received = answer
        if received is None:
            self._left_out += 1
            if self._left_out == self._total > 1:
                raise OpenmarketsQueryError(
                    f"{self._endpoint}: the API knows none of the {self._securities} securities."
                )
            return []
        try:
            return await self._rows(call, received.json)
        except OpenmarketsError as error:
            raise self._name_call(received.explain(error), number, call) from error.__cause__

    async def _rows(self, call: ApiCall, reply: Any) -> list[Row]:
        records = read_records(call, reply)
        self._check_complete(call, reply, records)
        if not call.exact:
            return records
        missing = find_missing_multipliers(self._schema, call, records)
        if self._endpoint != _INFORMATION:
            await self._learn_multipliers(missing)

        def build() -> list[Row]:
            rows = to_rows(self._schema, call, records, self._multipliers)
            return select_range(self._schema, call, rows, self._window)

        rows = await self._exchange.compute(len(records), build)
        self._warn_of_guesses(missing)
        return self._drop_seen(call, rows)

    async def _look_up(self, query: Query) -> list[Row]:
        run = Run(query, self._exchange)
        return [row async for batch in run.batches() for row in batch]

    async def _learn_multipliers(self, securities: Iterable[Listing]) -> None:
        """Look up the price multipliers of securities that this run has not looked up yet."""
        listings = [each for each in securities if each not in self._looked_up and is_security(full_name(each))]
        if not listings:
            return
        self._looked_up.update(listings)
        query = {
            "endpoint": _INFORMATION,
            "securities": list(map(full_name, listings)),
            "exchange": None,
            "on_invalid": "warn",
            "raw": False,
        }
        try:
            for call in plan(query):
                received = await self._exchange.receive(call)
                try:
                    self._multipliers |= read_multipliers(call, read_records(call, received.json))
                except OpenmarketsInvalidResponse as error:
                    raise received.explain(error) from None
        except OpenmarketsError as error:
            # The client may not ask. Anything else that went wrong must not end in a guess.
            refused = isinstance(error, OpenmarketsScopeNotInPlan | OpenmarketsAccessRefused)
            if not refused and not (isinstance(error, OpenmarketsConfigurationError) and error.scope):
                raise
            log.warning("Price multipliers can't be had from security information: %s", error)

    def _check_complete(self, call: ApiCall, reply: Any, records: Sequence[Row]) -> None:
        """Refuse, or tell of, what was asked for and is not in the reply."""
        invalid = read_invalid_securities(call, reply)
        if self._endpoint in _ONE_FOR_EACH:
            field, of_record, of_code = _ONE_FOR_EACH[self._endpoint]
            present = set(map(of_record, records))
            absent = [code for code in call.json[field] if of_code(code) not in present and code not in invalid]
            if self._endpoint == _INFORMATION:
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
                self._endpoint,
                list(map(full_name, guessed)),
            )

    def _drop_seen(self, call: ApiCall, rows: list[Row]) -> list[Row]:
        """Leave out what was there already.

        Pieces of a range that touch may both have what is at the seam: that has the same key. Any two accounts may
        share an order: that is left out when all of it is the same.
        """
        if self._total == 1 or (call.security is None and call.api != "oms"):
            return rows
        keys: list[Any] = row_keys(self._schema, rows) if call.security else list(map(_digest, rows))
        if call.security is not None and call.security != self._series:
            self._seen = set()
        seen, self._series = self._seen, call.security
        self._seen = set(keys) if call.security else seen | set(keys)
        return [row for row, key in zip(rows, keys, strict=True) if key not in seen]

    def _name_call(self, error: OpenmarketsError, number: int, call: ApiCall) -> OpenmarketsError:
        """Return the error, saying which piece of a split query failed.

        A new one: the coroutines that wait for one token request are all given the same error.
        """
        piece = f"Call {number} of {self._total} ({call.piece}) failed. " if self._total > 1 else ""
        return replace(error, message=f"{piece}{error}")


async def _one_by_one(asks: Iterable[Work[Answer]]) -> AsyncGenerator[Answer, None]:
    for ask in asks:
        yield await ask()


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
