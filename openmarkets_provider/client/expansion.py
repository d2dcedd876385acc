"""From a query that leaves its securities or accounts to the API, to one that names them. Pure.

A query may name an exchange instead of securities, accounts where the API takes portfolios (or the other way
round), or neither of the two for all that the client sees. What it means is another query's rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime, timedelta
from itertools import chain
from typing import Any

from openmarkets_provider.client.arguments import DEFAULT_DATA_SOURCE, is_security
from openmarkets_provider.client.planning import FinalQuery, Query, finalise, subject_of, window
from openmarkets_provider.client.ranges import exchange_date
from openmarkets_provider.exceptions import OpenmarketsQueryError

Row = dict[str, Any]


def needed(query: Query) -> Query | None:
    """Return the query whose rows a rendered query can't be planned without, or None when it can.

    :raises OpenmarketsQueryError: an argument is malformed.
    """
    given, subject = finalise(query), subject_of(query)
    if subject is None or given[subject] is not None:
        return None
    if subject == "securities":
        return {"endpoint": "securities", "exchange": given["exchange"], "raw": False}
    by_links = subject == "portfolios" or given["portfolios"] is not None
    return {"endpoint": "portfolio_links" if by_links else "accounts", "raw": False}


def expand(query: Query, rows: Sequence[Row], today: date) -> FinalQuery:
    """Return the query in its final form with its securities, portfolios or accounts named; there may be none.

    Securities are those listed at some time of the query's range, today where it has none; of the links between
    accounts and portfolios those that are not removed count.

    :param rows: what the query of :func:`needed` gave.
    :param today: the exchange's date.
    :raises OpenmarketsQueryError: the exchange lists nothing, or an account or portfolio has no link.
    """
    given, subject = finalise(query), str(subject_of(query))
    if subject == "securities":
        return FinalQuery({**given, "securities": _listed(given, rows, today), "exchange": None})
    other = "accounts" if subject == "portfolios" else "portfolios"
    return FinalQuery({**given, subject: _linked(given, rows, other, subject), other: None})


def _linked(given: FinalQuery, rows: Sequence[Row], other: str, subject: str) -> list[str]:
    wanted, from_name, to_name = given[other], f"{other[:-1]}_code", f"{subject[:-1]}_code"
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


def _listed(query: FinalQuery, rows: Sequence[Row], today: date) -> list[str]:
    first, last = _days(query) or (today, today)
    securities = [
        f"{row['security_code']}.{row['exchange'] or query['exchange']}@{DEFAULT_DATA_SOURCE}"
        for row in rows
        if is_security(str(row["security_code"]))
        and (row["first_listed_date"] or last) <= last
        and (row["last_listed_date"] or first) >= first
    ]
    if not securities:
        raise OpenmarketsQueryError(
            f"{query['endpoint']}: exchange {query['exchange']!r}: the API lists no securities there."
        )
    return securities


def _days(query: FinalQuery) -> tuple[date, date] | None:
    """Return the first and the last exchange day of a query's range."""
    match window(query):
        case (datetime() as start, datetime() as end):
            return exchange_date(start), exchange_date(end - timedelta(microseconds=1))
        case (start, end):
            return start, end - timedelta(days=1)
    return None
