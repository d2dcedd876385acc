"""The form of a query and its checks. Pure.

A query is a dict with ``endpoint`` and the arguments of that endpoint. The same code checks it twice: when the DAG
author makes it, without Jinja templates and results of upstream tasks, and when it runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from typing import Any

from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.query.arguments import (
    Predicate,
    abbreviate,
    align,
    check_argument,
    check_json,
    check_moment,
    check_range,
    check_session,
    describe,
    describe_type,
    is_literal,
    is_literal_at_run,
    to_list,
)
from openmarkets_provider.query.endpoints import BAR_LENGTH, ENDPOINTS, RANGE
from openmarkets_provider.query.exchange_time import exchange_date, read_moment, to_text
from openmarkets_provider.query.request import REQUEST_ARGUMENTS, check_request
from openmarkets_provider.query.schema import Schema
from openmarkets_provider.sessions.calendar import has_session

Query = dict[str, Any]
"""A query as JSON-able data. The functions of ``openmarkets_provider.queries`` return it."""

_ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "request": REQUEST_ARGUMENTS,
    **{endpoint.name: endpoint.arguments for endpoint in ENDPOINTS.values() if endpoint.columns},
}
"""All arguments of a query, by its name."""
_ALTERNATIVES = (("securities", "exchange"), ("accounts", "portfolios"))
SESSION = "session"
SESSION_RANGE = (*RANGE, SESSION)
_RANGE_MEANING = {*RANGE, *BAR_LENGTH}
"""Arguments that decide what a range means."""
_REPEAT_MEANING = ("api", "method", "path", "safe_to_repeat")
"""Arguments of ``request`` that decide whether it may be repeated."""


class ResolvedQuery(Query):
    """A checked query whose arguments have the form that planning needs."""


def check(query: Query) -> Query:
    """Check the literal arguments of a query and return it.

    :raises OpenmarketsQueryError: an argument is malformed; the text names it.
    """
    _check(query, is_literal)
    return query


def warn_without_session(query: Query) -> None:
    """Warn the caller of a function of ``queries`` if a literal range of market data has no trading day.

    :param query: checked.
    """
    if subject_of(query) != "securities" or not all(is_literal(query.get(key, "")) for key in SESSION_RANGE):
        return
    resolved = _check(query, is_literal)
    if "start" in resolved and not has_session(*days_of(resolved)):
        first, last = days_of(resolved)
        warnings.warn(
            f"{resolved['endpoint']}: the exchange does not trade from {first} to {last}, so expect no rows.",
            stacklevel=4,
        )


def resolve(query: Query) -> ResolvedQuery:
    """Check a rendered query and convert its arguments to the form that planning needs.

    Securities become full names, codes lists, flags booleans, times aware datetimes in UTC (exchange dates for daily
    and weekly bars); arguments without a value stay None.

    :raises OpenmarketsQueryError: an argument is malformed; the text names it.
    """
    return query if isinstance(query, ResolvedQuery) else ResolvedQuery(_check(query, is_literal_at_run))


def endpoint_of(query: Query) -> str:
    """Return the name of a query's endpoint, such as ``quotes``.

    :raises OpenmarketsQueryError: it is not a query.
    """
    if not isinstance(query, Mapping):
        raise OpenmarketsQueryError(
            f"query must be what a function of openmarkets_provider.queries returns, not {describe_type(query)}."
        )
    name = query.get("endpoint")
    if not isinstance(name, str) or name not in _ARGUMENTS:
        raise OpenmarketsQueryError(
            f"query: endpoint {describe(name)} is unknown; use one of {', '.join(sorted(_ARGUMENTS))}."
        )
    return name


def schema_of(query: Query) -> Schema:
    """Return the columns of a typed query's rows.

    :param query: rendered or not.
    """
    return ENDPOINTS[endpoint_of(query)].schema_for(query)


def name_of(query: Query) -> str:
    """Return the name of a query for logs: its endpoint, or the call that ``request`` makes.

    :param query: rendered.
    """
    name = endpoint_of(query)
    if name != "request":
        return name
    request = resolve(query)
    return f"{request['method']} {request['api']} {request['path']}"


def subject_of(query: Query) -> str | None:
    """Return the argument that names what a query asks about: ``securities``, ``accounts``, ``portfolios`` or None."""
    endpoint = ENDPOINTS.get(query["endpoint"])
    return endpoint.subject if endpoint else None


def window(query: Query) -> tuple[Any, Any] | None:
    """Return the half-open range of the rows of a rendered query.

    :return: two exchange dates for daily and weekly bars, two aware datetimes in UTC for others, None without a range.
    """
    resolved = resolve(query)
    return (resolved["start"], resolved["end"]) if "start" in resolved else None


def days_of(resolved: ResolvedQuery | Mapping[str, Any]) -> tuple[date, date]:
    """Return the first and the last exchange day of the range of a resolved query."""
    start, end = resolved["start"], resolved["end"]
    if isinstance(start, datetime):
        return exchange_date(start), exchange_date(end - timedelta(microseconds=1))
    return start, end - timedelta(days=1)


def end_of(query: Query) -> datetime | None:
    """Return the end of a rendered query's range, as it was written; aware, in UTC. None without a range."""
    name = endpoint_of(query)
    if SESSION in query:
        return read_moment(check_session(name, SESSION, to_text(query[SESSION]))[1].isoformat())
    return check_moment(name, "end", to_text(query["end"])) if "end" in query else None


def lacks_range(query: Query) -> bool:
    """Tell whether a query has no range, as far as its literal arguments show."""
    name = query.get("endpoint") if isinstance(query, dict) else None
    return name is not None and is_literal(name) and (name not in ENDPOINTS or ENDPOINTS[name].time is None)


def is_repeatable(query: Query) -> bool:
    """Tell whether every call of a rendered query is safe to repeat."""
    name = endpoint_of(query)
    return bool(resolve(query)["safe_to_repeat"]) if name == "request" else ENDPOINTS[name].safe_to_repeat


def check_reads_only(query: Query, who: str, is_literal: Predicate = is_literal_at_run) -> None:
    """Check that a query may be repeated, as far as its literal arguments show.

    :param who: what repeats it, such as ``a sensor``, for the text of the error.
    :param is_literal: :func:`is_literal` when the DAG is parsed. By default, the query is rendered.
    :raises OpenmarketsQueryError: it is not known to be safe to repeat, or is not a query.
    """
    if endpoint_of(query) != "request" or not all(is_literal(query.get(name)) for name in _REPEAT_MEANING):
        return
    # The other arguments do not matter here, and may still be templates.
    if not is_repeatable({**query, "params": None, "json": None}):
        raise OpenmarketsQueryError(
            f"query: {query['method']} {query['api']} {query['path']} is not known to be safe to repeat, and "
            f"{who} repeats it. Send it with OpenmarketsOperator; if it only reads, set safe_to_repeat=True."
        )


def _check(query: Query, is_literal: Predicate) -> dict[str, Any]:
    """Check the literal arguments of a query, and return all arguments in the form that planning needs."""
    name = endpoint_of(query)
    arguments = {key: to_list(value) for key, value in query.items() if key != "endpoint"}
    # Templates rendered as native objects, and upstream results, may be datetimes.
    arguments |= {key: to_text(arguments[key]) for key in SESSION_RANGE if key in arguments}
    check_json(arguments, is_literal)
    allowed = _ARGUMENTS[name]
    if SESSION in arguments and RANGE[0] in allowed:
        arguments = _expand_session(name, arguments, is_literal)
    if unknown := arguments.keys() - set(allowed):
        raise OpenmarketsQueryError(
            f"{name}: unknown argument {', '.join(sorted(map(abbreviate, unknown)))}; use only "
            f"{', '.join(allowed) or 'none'}."
        )
    if missing := [key for key in allowed if key not in arguments]:
        if {*RANGE}.intersection(missing):
            raise OpenmarketsQueryError(f"{name}: the range is missing; set start and end, or session.")
        raise OpenmarketsQueryError(f"{name}: argument {', '.join(missing)} is missing.")
    resolved = check_request(arguments, is_literal) if name == "request" else _check_typed(name, arguments, is_literal)
    return {"endpoint": name, **resolved}


def _expand_session(name: str, arguments: Mapping[str, Any], is_literal: Predicate) -> dict[str, Any]:
    """Replace a session by its range; a template becomes both bounds."""
    others = {key: value for key, value in arguments.items() if key != SESSION}
    if any(others.get(key) is not None for key in RANGE):
        raise OpenmarketsQueryError(f"{name}: session can't be used with start or end; remove one of them.")
    session = arguments[SESSION]
    bounds = check_session(name, SESSION, session) if is_literal(session) else (session, session)
    if arguments.get("frequency") == "Weekly":
        raise OpenmarketsQueryError(
            f"{name}: session is one trading day, but frequency 'Weekly' needs whole weeks. Set start and end."
        )
    return others | dict(zip(RANGE, map(to_text, bounds), strict=True))


def _check_typed(name: str, arguments: Mapping[str, Any], is_literal: Predicate) -> dict[str, Any]:
    """Check the literal arguments of a typed query, one by one and then together."""
    resolved = {key: check_argument(name, key, value, is_literal) for key, value in arguments.items()}
    for one, other in _ALTERNATIVES:
        if arguments.get(one) is not None and arguments.get(other) is not None:
            raise OpenmarketsQueryError(f"{name}: {one} can't be used with {other}; remove one of them.")
    if "securities" in arguments and arguments["securities"] is None and arguments["exchange"] is None:
        raise OpenmarketsQueryError(f"{name}: set securities, or an exchange to query everything listed there.")
    if "accounts" in arguments and arguments["accounts"] is None and arguments["portfolios"] is None:
        raise OpenmarketsQueryError(
            f"{name}: accounts and portfolios are None; set codes, or remove both arguments to query everything "
            "that the client can see."
        )
    if "start" in resolved and all(resolved[key] is not None for key in _RANGE_MEANING & resolved.keys()):
        resolved |= {key: align(resolved, resolved[key]) for key in RANGE}
        check_range(name, arguments, resolved["start"], resolved["end"])
    return resolved
