"""What to ask of the APIs, as data: the form of a query and its checks. Pure.

A query is a dict with ``endpoint`` and that endpoint's arguments. The same code checks it twice: when a DAG author
makes it, where Jinja templates and results of upstream tasks are skipped, and when it runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.query.arguments import (
    Predicate,
    abbreviate,
    align,
    check_argument,
    check_json,
    check_range,
    describe,
    describe_type,
    is_literal,
    is_literal_at_run,
    to_list,
)
from openmarkets_provider.query.endpoints import BAR_LENGTH, ENDPOINTS, RANGE
from openmarkets_provider.query.exchange_time import to_text
from openmarkets_provider.query.request import REQUEST_ARGUMENTS, check_request
from openmarkets_provider.query.schema import Schema

Query = dict[str, Any]
"""What to ask of the APIs, as JSON-able data. Made by the functions of ``openmarkets_provider.queries``."""

_ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "request": REQUEST_ARGUMENTS,
    **{endpoint.name: endpoint.arguments for endpoint in ENDPOINTS.values() if endpoint.columns},
}
"""Name of a query to the arguments that it holds, all of them."""
_ALTERNATIVES = (("securities", "exchange"), ("accounts", "portfolios"))
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


def resolve(query: Query) -> ResolvedQuery:
    """Check a rendered query and bring its arguments into the form that planning needs.

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
            f"query: expected what a function of openmarkets_provider.queries returns, got {describe_type(query)}."
        )
    name = query.get("endpoint")
    if not isinstance(name, str) or name not in _ARGUMENTS:
        raise OpenmarketsQueryError(
            f"query: endpoint {describe(name)} is unknown; allowed are {', '.join(sorted(_ARGUMENTS))}."
        )
    return name


def schema_of(query: Query) -> Schema:
    """Return the columns of a typed query's rows.

    :param query: need not be rendered.
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
    """Return the half-open range that the rows of a rendered query lie in.

    :return: two exchange dates for daily and weekly bars, two aware datetimes in UTC for others, None without a range.
    """
    resolved = resolve(query)
    return (resolved["start"], resolved["end"]) if "start" in resolved else None


def is_repeatable(query: Query) -> bool:
    """Tell whether every call of a rendered query is safe to repeat."""
    name = endpoint_of(query)
    return bool(resolve(query)["safe_to_repeat"]) if name == "request" else ENDPOINTS[name].safe_to_repeat


def check_reads_only(query: Query, who: str, is_literal: Predicate = is_literal_at_run) -> None:
    """Check that a query may be repeated, as far as its literal arguments decide it.

    :param who: what repeats it, such as ``a sensor``, for the text of the error.
    :param is_literal: the predicate of that name while the DAG is parsed; without it, the query is rendered.
    :raises OpenmarketsQueryError: it is not known to be safe to repeat, or is no query.
    """
    if endpoint_of(query) != "request" or not all(is_literal(query.get(name)) for name in _REPEAT_MEANING):
        return
    # The other arguments do not matter here, and may still be templates.
    if not is_repeatable({**query, "params": None, "json": None}):
        raise OpenmarketsQueryError(
            f"query: {query['method']} {query['api']} {query['path']} is not known to be safe to repeat, and {who} "
            "repeats it. Send it with OpenmarketsOperator; if it only reads, say so with safe_to_repeat=True."
        )


def _check(query: Query, is_literal: Predicate) -> dict[str, Any]:
    """Check the literal arguments of a query, and return all in the form that planning needs."""
    name = endpoint_of(query)
    arguments = {key: to_list(value) for key, value in query.items() if key != "endpoint"}
    # Templates rendered as native objects, and upstream results, may be datetimes.
    arguments |= {key: to_text(arguments[key]) for key in RANGE if key in arguments}
    check_json(arguments, is_literal)
    allowed = _ARGUMENTS[name]
    if unknown := arguments.keys() - set(allowed):
        raise OpenmarketsQueryError(
            f"{name}: unknown argument {', '.join(sorted(map(abbreviate, unknown)))}; "
            f"allowed are {', '.join(allowed) or 'none'}."
        )
    if missing := [key for key in allowed if key not in arguments]:
        raise OpenmarketsQueryError(f"{name}: argument {', '.join(missing)} is missing.")
    resolved = check_request(arguments, is_literal) if name == "request" else _check_typed(name, arguments, is_literal)
    return {"endpoint": name, **resolved}


def _check_typed(name: str, arguments: Mapping[str, Any], is_literal: Predicate) -> dict[str, Any]:
    """Check the literal arguments of a typed query, each by itself and then together."""
    resolved = {key: check_argument(name, key, value, is_literal) for key, value in arguments.items()}
    for one, other in _ALTERNATIVES:
        if arguments.get(one) is not None and arguments.get(other) is not None:
            raise OpenmarketsQueryError(f"{name}: {one} and {other} exclude each other; set one of them.")
    if "securities" in arguments and arguments["securities"] is None and arguments["exchange"] is None:
        raise OpenmarketsQueryError(f"{name}: name the securities, or an exchange for all that are listed there.")
    if "accounts" in arguments and arguments["accounts"] is None and arguments["portfolios"] is None:
        raise OpenmarketsQueryError(
            f"{name}: accounts and portfolios are None; name codes, or leave both out for all that the client sees."
        )
    if "start" in resolved and all(resolved[key] is not None for key in _RANGE_MEANING & resolved.keys()):
        resolved |= {key: align(resolved, resolved[key]) for key in RANGE}
        check_range(name, arguments, resolved["start"], resolved["end"])
    return resolved
