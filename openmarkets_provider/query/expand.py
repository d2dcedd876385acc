"""From a query that leaves its securities or accounts to the API, to one that names them. Pure.

A query may name an exchange instead of securities, accounts where the API takes portfolios (or the other way
round), or neither of the two for all that the client sees. What it means is another query's rows.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from itertools import chain

from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.query.arguments import ALL, DEFAULT_DATA_SOURCE, is_security
from openmarkets_provider.query.exchange_time import exchange_date
from openmarkets_provider.query.query import Query, ResolvedQuery, resolve, subject_of, window
from openmarkets_provider.query.schema import Row

log = logging.getLogger(__name__)

_COLUMNS = ("account_code", "portfolio_code")


def needed(query: Query) -> Query | None:
    """Return the query whose rows a rendered query can't be planned without, or None when it can.

    :raises OpenmarketsQueryError: an argument is malformed.
    """
    given, subject = resolve(query), subject_of(query)
    if subject is None or given[subject] not in (None, ALL):
        return None
    if subject == "securities":
        return {"endpoint": "securities", "exchange": given["exchange"], "raw": False}
    by_links = subject == "portfolios" or given["portfolios"] is not None
    return {"endpoint": "portfolio_links" if by_links else "accounts", "raw": False}


def expand(query: Query, rows: Sequence[Row], today: date) -> ResolvedQuery:
    """Return the query in its final form with its securities, portfolios or accounts named; there may be none.

    Securities are those listed at some time of the query's range, today where it has none; of the links between
    accounts and portfolios those that are not removed count.

    :param rows: what the query of :func:`needed` gave.
    :param today: the exchange's date.
    :raises OpenmarketsQueryError: the exchange lists nothing, or an account or portfolio has no link.
    """
    given, subject = resolve(query), subject_of(query)
    if subject == "securities":
        return ResolvedQuery(given | {"securities": _listed(given, rows, today), "exchange": None})
    if subject == "accounts":
        return ResolvedQuery(given | {"accounts": _linked(given, rows, "portfolios"), "portfolios": None})
    return ResolvedQuery(given | {"portfolios": _linked(given, rows, "accounts"), "accounts": None})


def _linked(given: ResolvedQuery, rows: Sequence[Row], other: str) -> list[str]:
    from_name, to_name = _COLUMNS if other == "accounts" else _COLUMNS[::-1]
    wanted = None if given["accounts"] == ALL else given[other]
    usable = [row for row in rows if row.get("link_removed") is not True and row[to_name] is not None]
    if wanted is None:
        return list(dict.fromkeys(row[to_name] for row in usable))
    by_code: dict[str, list[str]] = {code: [] for code in wanted}
    for row in usable:
        by_code.get(row[from_name], []).append(row[to_name])
    if lonely := [code for code, codes in by_code.items() if not codes]:
        raise OpenmarketsQueryError(
            f"{given['endpoint']}: {other}: no {to_name.replace('_', ' ')} is linked to {', '.join(lonely):.500}."
        )
    return list(dict.fromkeys(chain.from_iterable(by_code.values())))


def _listed(given: ResolvedQuery, rows: Sequence[Row], today: date) -> list[str]:
    first, last = _days(given) or (today, today)
    securities = dict.fromkeys(
        f"{row['security_code'] or ''}.{row['exchange'] or given['exchange']}@{DEFAULT_DATA_SOURCE}"
        for row in rows
        if (row["first_listed_date"] or last) <= last and (row["last_listed_date"] or first) >= first
    )
    if odd := [security for security in securities if not is_security(security)]:
        log.warning("%s: %.1000r are listed and can't be asked for; they are left out.", given["endpoint"], odd)
    if len(odd) == len(securities):
        raise OpenmarketsQueryError(
            f"{given['endpoint']}: exchange {given['exchange']!r}: the API lists no securities there."
        )
    return [security for security in securities if is_security(security)]


def _days(given: ResolvedQuery) -> tuple[date, date] | None:
    """Return the first and the last exchange day of a query's range."""
    match window(given):
        case (datetime() as start, datetime() as end):
            return exchange_date(start), exchange_date(end - timedelta(microseconds=1))
        case (start, end):
            return start, end - timedelta(days=1)
    return None
