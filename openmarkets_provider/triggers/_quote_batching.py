"""One call for the quotes that many wait for: whose can be put together, and who gets what of the reply."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
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

FAILED_PARTS = 32
"""Parts of a refused call that fail, and none succeeds, after which it is nobody's security that is wrong."""
_OF_THE_REQUEST = (400, 404, 410, 413, 422)
"""HTTP statuses that one security among many may be the reason for."""

Ask = Callable[["Query"], Awaitable[Any]]


class Wanted(NamedTuple):
    """The securities that a member of a group of ``quotes`` waits for; equal ones are one."""

    securities: tuple[str, ...]
    listings: tuple[Listing, ...]


class Outcome(NamedTuple):
    """What a poll came to for one member: a result or an error.

    :ivar missing: securities of which the reply held nothing.
    """

    result: Any = None
    error: Exception | None = None
    missing: Sequence[str] = ()


def wanted_of(query: Query) -> Wanted | None:
    """Return the securities of a query for quotes that can be asked for with those of others; None for another one."""
    if not isinstance(query, dict) or query.get("endpoint") != "quotes":
        return None
    try:
        securities = resolve(query)["securities"]
    except OpenmarketsQueryError:
        return None
    # Whether the API minds the case is not known: `bhp` next to `BHP` could change what it says.
    if not securities or any(security != security.upper() for security in securities):
        return None
    if len({security.partition("@")[2] for security in securities}) > 1:
        return None
    return Wanted(tuple(securities), tuple(map(to_listing, securities)))


async def poll(ask: Ask, query: Query, wanted: Sequence[Wanted | None]) -> dict[Wanted | None, Outcome]:
    """Poll once for all of a group."""
    together = [each for each in wanted if each is not None]
    if together:
        return await _poll_together(ask, query, together)
    if not wanted:
        return {}
    try:
        return {None: Outcome(await ask(query))}
    except Exception as error:  # noqa: BLE001 - the trigger decides what it means
        return {None: Outcome(error=error)}


async def _poll_together(ask: Ask, query: Query, wanted: Sequence[Wanted]) -> dict[Wanted | None, Outcome]:
    """Ask for everybody's securities at once, and give each what it would have got alone, unless too much fails.

    A call that is refused, or whose reply can't be read, is sent again for one half and for the other, until those are
    found whose fault it is. When ``FAILED_PARTS`` calls have failed before one succeeded, the last one's error goes to
    all who have no outcome yet, even to those who would have got something alone; so does any other failure at once.
    """
    outcomes: dict[Wanted | None, Outcome] = {}
    failed, succeeded = 0, False
    parts = [list(wanted)]
    while parts:
        part = parts.pop()
        asked = {**query, "securities": list(dict.fromkeys(chain.from_iterable(each.securities for each in part)))}
        try:
            result = await ask(asked)
        except Exception as error:  # noqa: BLE001 - the trigger decides what it means
            failed += 1
            if not _lies_in_the_request(error) or (failed >= FAILED_PARTS and not succeeded):
                return outcomes | {each: Outcome(error=error) for each in chain(part, *parts)}
            if len(part) == 1:
                outcomes[part[0]] = Outcome(error=error)
            elif named := _unknown_to_the_api(error, asked, part):
                outcomes |= named
                parts.append([each for each in part if each not in named])
            else:
                parts += [part[1::2], part[::2]]
        else:
            succeeded = True
            found, alone = _shares(result, part)
            outcomes |= found
            parts += [[each] for each in alone]
        parts = [part for part in parts if part]
    return outcomes


def _lies_in_the_request(error: Exception) -> bool:
    """Tell whether one security among many may be the reason for an error."""
    if isinstance(error, OpenmarketsQueryError | OpenmarketsInvalidResponse):
        return True
    return isinstance(error, OpenmarketsApiError) and error.status in _OF_THE_REQUEST


def _unknown_to_the_api(error: Exception, asked: Query, part: Iterable[Wanted]) -> dict[Wanted | None, Outcome]:
    """Return the errors of those whose securities the API says it does not know."""
    told = error.securities if isinstance(error, OpenmarketsQueryError) else None
    unknown = {(code, exchange or DEFAULT_EXCHANGE) for code, exchange in map(to_listing, map(str, told or ()))}
    named: dict[Wanted | None, Outcome] = {}
    for each in part:
        own = [security for security, of in zip(each.securities, each.listings, strict=True) if of in unknown]
        if own:
            named[each] = Outcome(error=unknown_securities(next(iter(plan(asked))), own))
    return named


def _shares(
    rows: Sequence[dict[str, Any]], part: Sequence[Wanted]
) -> tuple[dict[Wanted | None, Outcome], list[Wanted]]:
    """Return everybody's rows in the order of its securities, and those who have to ask alone.

    They have to when a row is nobody's, and may be of a security that the reply does not seem to hold.
    """
    found: dict[Wanted | None, Outcome] = {}
    by_listing: dict[Listing, list[dict[str, Any]]] = {}
    for row in rows:
        # Rows and, with `raw`, records.
        code = row.get("security_code", row.get("securityCode"))
        of = listing_of({"securityCode": code, "exchange": row.get("exchange")})
        by_listing.setdefault(of, []).append(row)
    strays = by_listing.keys() - set(chain.from_iterable(each.listings for each in part))
    alone = []
    for each in part:
        missing = [
            security for security, of in zip(each.securities, each.listings, strict=True) if of not in by_listing
        ]
        if not (missing and strays):
            found[each] = Outcome([row for of in each.listings for row in by_listing.get(of, ())], missing=missing)
        elif len(part) == 1:
            found[each] = Outcome(rows)
        else:
            alone.append(each)
    return found, alone
