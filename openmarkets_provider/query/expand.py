"""Replace an exchange, or all accounts, in a query by codes. Pure.

A query may name an exchange instead of securities, or accounts although the API takes portfolios, or the other way
round. It may also name neither accounts nor portfolios, which means all that the client sees. The rows of another
query, the look-up, have the codes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import date
from itertools import chain

from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.query.arguments import ALL, DEFAULT_DATA_SOURCE, is_security
from openmarkets_provider.query.query import Query, ResolvedQuery, days_of, resolve, subject_of
from openmarkets_provider.query.schema import Row

log = logging.getLogger(__name__)

_AS_ROWS = {"on_missing_field": "warn", "raw": False}
_COLUMNS = {"accounts": "account_code", "portfolios": "portfolio_code"}


def lookup_query(query: Query) -> Query | None:
    """Return the query whose rows :func:`expand` needs, or None if a rendered query names its codes itself.

    :raises OpenmarketsQueryError: an argument is malformed.
    """
    resolved, subject = resolve(query), subject_of(query)
    if subject is None or resolved[subject] not in (None, ALL):
        return None
    if subject == "securities":
        return {"endpoint": "securities", "exchange": resolved["exchange"], **_AS_ROWS}
    by_links = subject == "portfolios" or resolved["portfolios"] is not None
    return {"endpoint": "portfolio_links" if by_links else "accounts", **_AS_ROWS}


def expand(query: Query, rows: Sequence[Row], today: date) -> ResolvedQuery:
    """Return the query with the codes of its securities, portfolios or accounts; there may be none.

    Securities are those listed at some time in the query's range (today, if it has none). Removed links between
    accounts and portfolios are ignored.

    :param rows: the rows of :func:`lookup_query`.
    :param today: the exchange's date.
    :raises OpenmarketsQueryError: the exchange lists nothing, or an account or portfolio has no link.
    """
    resolved, subject = resolve(query), subject_of(query)
    if subject == "securities":
        return ResolvedQuery(resolved | {"securities": _list_securities(resolved, rows, today), "exchange": None})
    source, target = ("portfolios", "accounts") if subject == "accounts" else ("accounts", "portfolios")
    return ResolvedQuery(resolved | {target: _follow_links(resolved, rows, source, target), source: None})


def _follow_links(query: ResolvedQuery, rows: Sequence[Row], source: str, target: str) -> list[str]:
    """Return the accounts of the query's portfolios, or the portfolios of its accounts, or all of them.

    If two codes have several links, the one with the highest sequence number counts (inferred); among equals, an
    active one.
    """
    from_column, to_column = _COLUMNS[source], _COLUMNS[target]
    # First all pairs in the order of the rows, then the row that counts for each pair.
    latest = {(row.get(from_column), row[to_column]): row for row in [*rows, *sorted(rows, key=_sequence)]}
    links = [row for row in latest.values() if _is_active(row) and row[to_column] is not None]
    codes = None if query["accounts"] == ALL else query[source]
    if codes is None:
        return list(dict.fromkeys(link[to_column] for link in links))
    by_code: dict[str, list[str]] = {code: [] for code in codes}
    for link in links:
        by_code.get(link[from_column], []).append(link[to_column])
    if unlinked := [code for code, linked in by_code.items() if not linked]:
        raise OpenmarketsQueryError(
            f"{query['endpoint']}: {source}: no {to_column.replace('_', ' ')} is linked to "
            f"{', '.join(unlinked):.500}. Check the codes with queries.portfolio_links()."
        )
    return list(dict.fromkeys(chain.from_iterable(by_code.values())))


def _is_active(link: Row) -> bool:
    return link.get("link_removed") is not True


def _sequence(link: Row) -> tuple[int, str, bool]:
    """Return the sort key of a link: its sequence number, which is a text."""
    number = (link.get("link_sequence_number") or "").lstrip("0")
    return len(number), number, _is_active(link)


def _list_securities(query: ResolvedQuery, rows: Sequence[Row], today: date) -> list[str]:
    first, last = days_of(query) if "start" in query else (today, today)
    securities = dict.fromkeys(
        f"{row['security_code'] or ''}.{row['exchange'] or query['exchange']}@{DEFAULT_DATA_SOURCE}"
        for row in rows
        if (row["first_listed_date"] or last) <= last and (row["last_listed_date"] or first) >= first
    )
    if malformed := [security for security in securities if not is_security(security)]:
        log.warning(
            "%s: the exchange lists %.1000r, which are not valid codes; they are left out.",
            query["endpoint"],
            malformed,
        )
    if len(malformed) == len(securities):
        raise OpenmarketsQueryError(
            f"{query['endpoint']}: exchange {query['exchange']!r}: the API lists no securities there. Check the code."
        )
    return [security for security in securities if is_security(security)]
