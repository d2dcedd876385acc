"""One run of a query: its calls, and the rows of their replies."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from itertools import chain, count
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
from openmarkets_provider.query.batch import RECORD, Batch, concat
from openmarkets_provider.query.endpoints import ENDPOINTS
from openmarkets_provider.query.expand import expand, lookup_query
from openmarkets_provider.query.plan import ApiCall, Plan, plan
from openmarkets_provider.query.query import Query, resolve, schema_of, subject_of, window
from openmarkets_provider.query.records import find_missing
from openmarkets_provider.query.rows import (
    Listing,
    adjust_batch,
    check_identified,
    check_weeks,
    find_missing_multipliers,
    find_priced,
    listing_of,
    rank_levels,
    read_currencies,
    read_invalid_securities,
    read_multipliers,
    read_records,
    select_range,
    to_batch,
    to_listing,
)
from openmarkets_provider.query.schema import Row
from openmarkets_provider.sessions.calendar import EXCHANGE_ZONE

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
"""Queries whose replies have a record for each requested code: field, code of a record, code of a request. Positions
are not among them: a portfolio without holdings has none."""


class Answer(NamedTuple):
    """The reply to one call of a run.

    :ivar number: of the call, 1 for the first.
    :ivar received: None if the API does not know the security of the call.
    """

    number: int
    call: ApiCall
    received: Received | None


class Run:
    """One run of a typed query.

    :param query: the query, rendered.
    :param exchange: sends the calls.
    :param currencies: currencies of securities that earlier runs have looked up. New ones are added.
    :param skipped: the securities that the run skips are added, in full form.
    :raises OpenmarketsQueryError: an argument of the query is malformed.
    """

    def __init__(
        self,
        query: Query,
        exchange: Exchange,
        currencies: dict[Listing, str] | None = None,
        skipped: set[str] | None = None,
    ) -> None:
        self._query: Query = resolve(query)
        self._exchange = exchange
        self._skipped: set[str] = set() if skipped is None else skipped
        self._endpoint: str = query["endpoint"]
        self._schema = schema_of(query)
        self._total = 0
        self._window: tuple[Any, Any] | None = None
        self._securities = self._spans = self._left_out = 0
        self._empty: Counter[str] = Counter()
        self._seam: set[Any] = set()
        self._series: str | None = None
        self._is_shared = False
        self._shared: list[Batch] = []
        self._shared_numbers = count()
        self._shared_rows: dict[Any, list[int]] = {}
        self._multipliers: dict[Listing, Decimal] = {}
        # Quotes share the client's currencies. Rows of the OMS API must not depend on earlier runs.
        self._is_oms = ENDPOINTS[self._endpoint].api == "oms"
        self._currencies: dict[Listing, str] = {} if self._is_oms or currencies is None else currencies
        self._looked_up: set[Listing] = set()
        self._uninformed: set[Listing] = set()
        self._refusal = ""
        self._assumed: set[str] = set()
        self._records = 0
        self._missing = set(self._schema.only_sent)

    async def rows(
        self, concurrency: int = 1, open_group: Callable[[int], Group[Answer]] = ThreadGroup
    ) -> AsyncGenerator[list[Row], None]:
        """Yield the batches as lists of dicts: rows, or the API's records with ``raw=True``."""
        async with aclosing(self.batches(concurrency, open_group)) as batches:
            async for batch in batches:
                if self._query["raw"]:
                    yield list(batch.columns[RECORD])
                else:
                    yield await self._exchange.compute(len(batch), batch.rows)

    async def batches(
        self, concurrency: int = 1, open_group: Callable[[int], Group[Answer]] = ThreadGroup
    ) -> AsyncGenerator[Batch, None]:
        """Yield the rows of each call by column, in the order of the plan.

        With ``raw=True`` the only column is ``record``. If a query of the OMS API takes several calls, its rows are one
        batch, because two calls may return the same row.

        :param concurrency: most concurrent calls.
        :param open_group: creates a group of that size.
        :raises OpenmarketsError: a call failed; the message names it.
        """
        calls = await self._plan()
        progress = Progress(self._endpoint, len(calls), lambda: self._exchange.earlier)
        asks = (partial(self._ask, number, call) for number, call in enumerate(calls, 1))
        concurrency = min(concurrency, len(calls))
        async with open_group(concurrency) if concurrency > 1 else nullcontext() as group:
            if group is not None:
                self._exchange = self._exchange.for_group(group)
            answers = _one_by_one(asks) if group is None else in_order(group, asks, concurrency, progress.tick)
            async with aclosing(answers):
                async for answer in answers:
                    batch = await self._batch(answer)
                    progress.add(len(batch))
                    if batch and not self._is_shared:
                        yield batch
        if self._shared_rows:
            yield concat(self._shared).take(list(chain.from_iterable(self._shared_rows.values())))
        self._check_fields()

    async def _plan(self) -> Plan:
        """Look up the codes that the query leaves open, and plan its calls."""
        now = datetime.now(UTC).astimezone(EXCHANGE_ZONE).replace(tzinfo=None)
        first = lookup_query(self._query)
        if first is not None:
            self._query = expand(self._query, await self._look_up(first), now.date())
        calls = plan(self._query, now)
        self._total, self._securities, self._spans = len(calls), len(calls.subjects), len(calls.spans)
        self._is_shared = self._total > 1 and not self._query["raw"] and self._is_oms
        self._window = window(self._query)
        replies_lack_it = "priceMultiplier" in self._schema.supplied
        if replies_lack_it and subject_of(self._query) == "securities" and calls and not self._query["raw"]:
            await self._learn_securities(calls.subjects)
        return calls

    async def _ask(self, number: int, call: ApiCall) -> Answer:
        try:
            return Answer(number, call, await self._exchange.receive(call))
        except OpenmarketsError as error:
            is_unknown = isinstance(error, OpenmarketsNotFound) and error.status == 404 and call.security is not None
            if not is_unknown or not self._leaves_out:
                raise self._name_call(error, number, call) from error.__cause__
            log.warning("%s It is left out.", error)
            return Answer(number, call, None)

    async def _batch(self, answer: Answer) -> Batch:
        """Turn one answer into rows. Called in the order of the plan, since two pieces of a range may share rows."""
        number, call, received = answer
        if received is None:
            self._leave_out([str(call.security)], 1)
            return Batch({RECORD: []})
        try:
            return await self._rows(call, received.json)
        except OpenmarketsError as error:
            raise self._name_call(received.explain(error), number, call) from error.__cause__

    async def _rows(self, call: ApiCall, reply: Any) -> Batch:
        records = read_records(call, reply)
        self._check_complete(call, reply, records)
        if call.security is not None and not records:
            self._check_known(call, call.security)
        if not call.exact:
            return Batch({RECORD: records})
        self._records += len(records)
        # The fields that no record has had so far.
        self._missing = find_missing(records, self._missing)
        missing = find_missing_multipliers(self._schema, call, records)
        if self._endpoint != _INFORMATION:
            await self._learn_securities([*missing, *self._without_currency(call, records)])
        if unpriced := set(map(to_listing, self._check_multipliers(call, missing))):
            records = [each for each in records if call.security is None and not _is_unpriced(each, unpriced)]

        def build() -> Batch:
            batch = to_batch(self._schema, call, records, self._multipliers, self._currencies, self._query)
            if self._query.get("frequency") == "Weekly":
                check_weeks(call, batch)
            batch = select_range(self._schema, call, batch, self._window)
            if self._query.get("adjusted"):
                batch = adjust_batch(call, batch, self._query["adjusted"])
            return rank_levels(batch, self._query["levels"]) if "levels" in self._query else batch

        batch = await self._exchange.compute(len(records), build)
        if self._is_shared:
            self._share(call, batch)
        return batch if call.security is None else self._drop_seam(call.security, batch)

    def _without_currency(self, call: ApiCall, records: Sequence[Row]) -> list[str]:
        """Return the securities of priced records whose currency has to be looked up.

        None for the OMS API: its clients may have no access to the market data API, and prices need multipliers only.
        """
        if self._is_oms or "currency" not in self._schema.supplied:
            return []
        priced = find_priced(self._schema, call, records)
        return [each for each in priced if to_listing(each) not in self._currencies]

    async def _look_up(self, query: Query) -> list[Row]:
        run = Run(query, self._exchange)
        return [row async for rows in run.rows() for row in rows]

    async def _learn_securities(self, securities: Iterable[str]) -> None:
        """Look up the price multipliers and currencies of securities that this run has not looked up yet.

        :param securities: in full form. The data sources of one security have the same multiplier and currency.
        """
        names = {to_listing(each): each for each in securities if is_security(each)}
        wanted = [name for listing, name in names.items() if listing not in self._looked_up]
        if not wanted:
            return
        self._looked_up.update(names)
        query = {
            "endpoint": _INFORMATION,
            "securities": wanted,
            "exchange": None,
            "on_invalid": "warn",
            "on_missing_multiplier": "cents",
            "on_missing_field": "warn",
            "raw": False,
        }
        try:
            for call in plan(query):
                received = await self._exchange.receive(call)
                try:
                    records = read_records(call, received.json)
                    self._multipliers |= read_multipliers(call, records)
                    self._currencies.update(read_currencies(call, records))
                except OpenmarketsInvalidResponse as error:
                    self._exchange.forget(call)
                    raise received.explain(error) from None
                self._uninformed |= set(map(to_listing, call.json["securities"])) - set(map(listing_of, records))
        except OpenmarketsError as error:
            # Continue only if the client has no access. After any other error a multiplier would be a guess.
            refused = isinstance(error, OpenmarketsScopeNotInPlan | OpenmarketsAccessRefused)
            if not refused and not (isinstance(error, OpenmarketsConfigurationError) and error.scope):
                raise
            self._refusal = f" Security information: {error}"
            log.warning("Could not get price multipliers and currencies from security information: %s", error)

    def _check_complete(self, call: ApiCall, reply: Any, records: Sequence[Row]) -> None:
        """Raise an error, or log a warning, if the reply lacks requested codes."""
        invalid = read_invalid_securities(call, reply)
        if self._endpoint in _ONE_FOR_EACH:
            field, of_record, of_code = _ONE_FOR_EACH[self._endpoint]
            present = set(map(of_record, records))
            absent = [code for code in call.json[field] if of_code(code) not in present and code not in invalid]
            if self._endpoint == _INFORMATION:
                invalid += absent
            elif absent:
                log.warning("%s: the reply has nothing for %.1000r.", call.label, absent)
                if field == "securities":
                    self._skipped.update(absent)
        if invalid:
            if not self._leaves_out:
                raise unknown_securities(call, invalid)
            log.warning("%s They are left out.", _unknown(call, invalid))
            self._skipped.update(invalid)

    def _check_known(self, call: ApiCall, security: str) -> None:
        """Raise an error, or log a warning, if a security has no security information and only empty replies."""
        self._empty[security] += 1
        if self._empty[security] < self._spans or to_listing(security) not in self._uninformed:
            return
        if not self._leaves_out:
            raise unknown_securities(call, [security])
        log.warning("%s They are left out.", _unknown(call, [security]))
        self._leave_out([security], self._spans)

    @property
    def _leaves_out(self) -> bool:
        return self._query.get("on_invalid") == "warn"

    def _leave_out(self, securities: Iterable[str], calls: int) -> None:
        """Skip securities, and count the calls that are only about them.

        :raises OpenmarketsQueryError: no security is left.
        """
        self._skipped.update(securities)
        self._left_out += calls
        if self._left_out == self._total > 1:
            raise OpenmarketsQueryError(
                f"{self._endpoint}: the API knows none of the {self._securities} securities, or has no price "
                "multiplier for those that it knows.",
                securities=sorted(self._skipped),
            )

    def _check_multipliers(self, call: ApiCall, missing: Iterable[str]) -> list[str]:
        """Raise an error, skip, or log a warning, if prices have no multiplier.

        :param missing: the securities of records without one, in full form.
        :return: the securities to skip.
        """
        missing = [each for each in missing if to_listing(each) not in self._multipliers]
        if missing and self._query["on_missing_multiplier"] == "error":
            # Without access to security information, all of them lack it.
            if not self._leaves_out or self._refusal:
                raise OpenmarketsQueryError(
                    f"{call.label}: no price multiplier is known for {missing!r:.1000}, so the unit of the "
                    f"prices is unknown. If they are in cents, set on_missing_multiplier='cents'.{self._refusal}",
                    securities=missing,
                )
            log.warning("%s: no price multiplier is known for %.1000r. They are left out.", call.label, missing)
            self._leave_out(missing, 0 if call.security is None else 1)
            return missing
        assumed = [each for each in missing if each not in self._assumed]
        if assumed:
            self._assumed.update(assumed)
            log.warning(
                "%s: no price multiplier is known for %.1000r; 0.01 is assumed (native prices in cents).",
                self._endpoint,
                assumed,
            )
        return []

    def _check_fields(self) -> None:
        """Raise an error, or log a warning, if there are records and none of them has certain fields.

        :raises OpenmarketsInvalidResponse: fields are missing, and the query has ``on_missing_field="error"``.
        """
        if not self._records or not self._missing:
            return
        problem = (
            f"{self._endpoint}: none of the {self._records} records that the API sent has the fields "
            f"{', '.join(sorted(self._missing))}"
        )
        if self._query["on_missing_field"] == "error":
            raise OpenmarketsInvalidResponse(
                f"{problem}. To load their columns as None, set on_missing_field='warn'.", sent=True
            )
        log.warning("%s. Their columns are None.", problem)

    def _drop_seam(self, security: str, batch: Batch) -> Batch:
        """Drop the rows that the previous call returned, too: adjacent pieces of a range may share rows at the seam."""
        if self._spans < 2:
            return batch
        keys = batch.keys(self._schema.key)
        seam = self._seam if security == self._series else set()
        self._seam, self._series = set(keys), security
        return batch.take([row for row, key in enumerate(keys) if key not in seam])

    def _share(self, call: ApiCall, batch: Batch) -> None:
        """Keep the rows of one reply. They replace rows with the same keys of earlier replies."""
        keys, by_key = batch.keys(self._schema.key), dict[Any, list[int]]()
        if subject_of(self._query) == "accounts":
            check_identified(self._schema, call, keys)
        for key in keys:
            by_key.setdefault(key, []).append(next(self._shared_numbers))
        self._shared.append(batch)
        self._shared_rows |= by_key

    def _name_call(self, error: OpenmarketsError, number: int, call: ApiCall) -> OpenmarketsError:
        """Forget the reply of a failed call, and return the error with the name of the call.

        The error is a copy, because all coroutines that wait for a token request get the same one.
        """
        self._exchange.forget(call)
        piece = f"Call {number} of {self._total} ({call.piece}) failed. " if self._total > 1 else ""
        return replace(error, message=f"{piece}{error}")


async def _one_by_one(asks: Iterable[Work[Answer]]) -> AsyncGenerator[Answer, None]:
    for ask in asks:
        yield await ask()


def _code(value: Any) -> str | None:
    # Records are not checked yet, and other values may not be hashable.
    return str(value) if isinstance(value, int | str) else None


def _is_unpriced(record: Row, listings: set[Listing]) -> bool:
    return record.get("priceMultiplier") is None and listing_of(record) in listings


def unknown_securities(call: ApiCall, invalid: Sequence[str]) -> OpenmarketsQueryError:
    """Return the error for securities of a call that the API does not know."""
    return OpenmarketsQueryError(
        f"{_unknown(call, invalid)} To leave them out, set on_invalid='warn'.", securities=list(invalid)
    )


def _unknown(call: ApiCall, invalid: Sequence[str]) -> str:
    return f"{call.label}: the API does not know the securities {invalid!r:.1000}."
