"""One call for the quotes of many triggers: which queries share a call, and which trigger gets which rows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from openmarkets_provider.client.run import unknown_securities
from openmarkets_provider.exceptions import OpenmarketsApiError, OpenmarketsInvalidResponse, OpenmarketsQueryError
from openmarkets_provider.query.arguments import DEFAULT_EXCHANGE
from openmarkets_provider.query.plan import plan
from openmarkets_provider.query.query import resolve
from openmarkets_provider.query.rows import Listing, listing_of, to_listing

if TYPE_CHECKING:
    from openmarkets_provider.queries import Query

MAX_FAILURES = 32
"""Failed calls without a success, after which a single security can't be the cause."""
_REQUEST_STATUSES = (400, 404, 410, 413, 422)
"""HTTP statuses that one security among many may cause."""

RunQuery = Callable[["Query"], Awaitable[Any]]


class Basket(NamedTuple):
    """The securities of a quotes query that may share a call with others. Equal baskets are polled once."""

    securities: tuple[str, ...]
    listings: tuple[Listing, ...]


class Outcome(NamedTuple):
    """The result or error of a poll for one basket.

    :ivar missing: securities without a row in the reply.
    """

    result: Any = None
    error: Exception | None = None
    missing: Sequence[str] = ()


def find_basket(query: Query) -> Basket | None:
    """Return the basket of a query; None if the query can't share a call."""
    if not isinstance(query, dict) or query.get("endpoint") != "quotes":
        return None
    try:
        securities = resolve(query)["securities"]
    except OpenmarketsQueryError:
        return None
    # It is not documented whether the API ignores case, so `bhp` and `BHP` in one call might change the reply.
    if not securities or any(security != security.upper() for security in securities):
        return None
    # Rows are matched by code and exchange, so all securities must have the same data source.
    if len({security.partition("@")[2] for security in securities}) > 1:
        return None
    return Basket(tuple(securities), tuple(map(to_listing, securities)))


async def poll(run_query: RunQuery, query: Query, baskets: Sequence[Basket | None]) -> dict[Basket | None, Outcome]:
    """Poll once for the members of a group.

    :param baskets: the baskets of the members; all None for a query that can't share a call.
    :return: the outcome of each basket.
    """
    batch = [basket for basket in baskets if basket is not None]
    if batch:
        return await _poll_baskets(run_query, query, batch)
    if not baskets:
        return {}
    try:
        return {None: Outcome(await run_query(query))}
    except Exception as error:  # noqa: BLE001 - the trigger decides what it means
        return {None: Outcome(error=error)}


async def _poll_baskets(run_query: RunQuery, query: Query, baskets: Sequence[Basket]) -> dict[Basket | None, Outcome]:
    """Query all securities in one call, and give each basket the outcome that its own call would have.

    If the API does not know a security, its baskets get that error, and the others are queried again. If one security
    may have caused another error, or if the reply can't be read, each basket is queried alone, once. All baskets get
    any other error, and the last error if the first ``MAX_FAILURES`` calls have failed.
    """
    outcomes: dict[Basket | None, Outcome] = {}
    failures, has_succeeded = 0, False
    batches = [list(baskets)]
    while batches:
        batch = batches.pop()
        call = {**query, "securities": list(dict.fromkeys(chain.from_iterable(each.securities for each in batch)))}
        try:
            rows = await run_query(call)
        except Exception as error:  # noqa: BLE001 - the trigger decides what it means
            failures += 1
            if not _may_be_one_security(error) or (failures >= MAX_FAILURES and not has_succeeded):
                return outcomes | dict.fromkeys(chain(batch, *batches), Outcome(error=error))
            if len(batch) == 1:
                outcomes[batch[0]] = Outcome(error=error)
                continue
            unknown = _find_unknown(error, call, batch)
            outcomes |= unknown
            others = [basket for basket in batch if basket not in unknown]
            batches += ([others] if others else []) if unknown else [[basket] for basket in reversed(batch)]
        else:
            has_succeeded = True
            shares, alone = _distribute(rows, batch)
            outcomes |= shares
            batches += [[basket] for basket in alone]
    return outcomes


def _may_be_one_security(error: Exception) -> bool:
    """Return whether a single security may have caused an error."""
    if isinstance(error, OpenmarketsQueryError | OpenmarketsInvalidResponse):
        return True
    return isinstance(error, OpenmarketsApiError) and error.status in _REQUEST_STATUSES


def _find_unknown(error: Exception, call: Query, batch: Sequence[Basket]) -> dict[Basket | None, Outcome]:
    """Return an error for each basket with a security that the API does not know."""
    securities = (error.securities if isinstance(error, OpenmarketsQueryError) else None) or ()
    unknown = {(code, exchange or DEFAULT_EXCHANGE) for code, exchange in map(to_listing, map(str, securities))}
    outcomes: dict[Basket | None, Outcome] = {}
    for basket in batch:
        own = [security for security, key in zip(*basket, strict=True) if key in unknown]
        if own:
            outcomes[basket] = Outcome(error=unknown_securities(next(iter(plan(call))), own))
    return outcomes


def _distribute(
    rows: Sequence[dict[str, Any]], batch: Sequence[Basket]
) -> tuple[dict[Basket | None, Outcome], list[Basket]]:
    """Return the rows of each basket, in the order of its securities, and the baskets to query alone.

    If the API names a security differently, its row matches no basket. It may belong to any basket that lacks a row.
    """
    by_listing: dict[Listing, list[dict[str, Any]]] = {}
    for row in rows:
        # Rows, or records with `raw`.
        code = row.get("security_code", row.get("securityCode"))
        by_listing.setdefault(listing_of({"securityCode": code, "exchange": row.get("exchange")}), []).append(row)
    has_strays = bool(by_listing.keys() - set(chain.from_iterable(basket.listings for basket in batch)))
    shares: dict[Basket | None, Outcome] = {}
    alone = []
    for basket in batch:
        missing = [security for security, key in zip(*basket, strict=True) if key not in by_listing]
        if not (missing and has_strays):
            own_rows = [row for key in basket.listings for row in by_listing.get(key, ())]
            shares[basket] = Outcome(own_rows, missing=missing)
        elif len(batch) == 1:
            shares[basket] = Outcome(rows)
        else:
            alone.append(basket)
    return shares, alone
