"""What to ask of the APIs, as data: the form of a query and its checks. Pure.

A query is a dict with ``endpoint`` and that endpoint's arguments. The same code checks it twice: when a DAG author
makes it (Jinja templates and results of upstream tasks are left alone then) and when it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, time
from typing import Any, NamedTuple

from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.query.arguments import (
    CHECKS,
    Final,
    aligned,
    brief,
    check_json,
    check_range,
    is_literal,
    kind,
    listed,
    shown,
)
from openmarkets_provider.query.endpoints import ENDPOINTS
from openmarkets_provider.query.exchange_time import (
    MAX_DAYS,
    Span,
    exchange_span,
    split,
    to_text,
    to_utc,
)
from openmarkets_provider.query.request import check_request

Query = dict[str, Any]
"""What to ask of the APIs, as JSON-able data. Made by the functions of ``openmarkets_provider.queries``."""

_DECIDES_REPEATING = ("api", "method", "path", "safe_to_repeat")


def check(query: Query) -> Query:
    """Check what is literal in a query and return it.

    :raises OpenmarketsQueryError: an argument is malformed; the text names it.
    """
    name, arguments = _arguments(query, is_literal)
    if name == "request":
        check_request(arguments, is_literal)
    else:
        _normalised(name, arguments, is_literal)
    return query


def endpoint_of(query: Query) -> str:
    """Return what kind of query this is, such as ``quotes``.

    :raises OpenmarketsQueryError: it is not a query.
    """
    if not isinstance(query, Mapping):
        raise OpenmarketsQueryError(
            f"query: expected what a function of openmarkets_provider.queries returns, got {kind(query)}."
        )
    name = query.get("endpoint")
    if not isinstance(name, str) or name not in _ARGUMENTS:
        raise OpenmarketsQueryError(
            f"query: endpoint {shown(name)} is unknown; allowed are {', '.join(sorted(_ARGUMENTS))}."
        )
    return name


def name_of(query: Query) -> str:
    """Return what a query is called in a log: its endpoint, or the call that ``request`` makes."""
    endpoint = endpoint_of(query)
    if endpoint != "request":
        return endpoint
    request = rendered_request(query)
    return f"{request['method']} {request['api']} {request['path']}"


def rendered_request(query: Query) -> dict[str, Any]:
    """Check a rendered ``request`` and return what it sends, with ``safe_to_repeat`` decided."""
    return check_request(_arguments(query, _always)[1], _always)


class ResolvedQuery(Query):
    """A typed query that was checked, with its arguments in the form that planning needs."""


def resolve(query: Query) -> ResolvedQuery:
    """Check a rendered typed query, and bring its arguments into their final form.

    Securities in full, codes as lists, times as aware datetimes; None for what is not given.

    :raises OpenmarketsQueryError: an argument is malformed; the text names it.
    """
    if isinstance(query, ResolvedQuery):
        return query
    name, arguments = _arguments(query, _always)
    return ResolvedQuery(_normalised(name, arguments, _always), endpoint=name)


def subject_of(query: Query) -> str | None:
    """Return the argument that says what a query asks about: ``securities``, ``accounts``, ``portfolios`` or None."""
    shape = SHAPES.get(query["endpoint"])
    return shape.subject if shape else None


def window(query: Query) -> tuple[Any, Any] | None:
    """Return the half-open range that a rendered query's rows lie in.

    Two exchange dates for daily and weekly bars, two aware datetimes for the others; None when it has no range.
    """
    given = resolve(query)
    return (given["start"], given["end"]) if "start" in given else None


def _always(value: Any) -> bool:
    return True


def is_repeatable(query: Query) -> bool:
    """Tell whether every call of a rendered query is safe to repeat."""
    name = endpoint_of(query)
    if name != "request":
        return ENDPOINTS[name].safe_to_repeat
    return bool(rendered_request(query)["safe_to_repeat"])


def check_reads_only(query: Query, who: str, final: Final = _always) -> None:
    """Check that a query may be carried out again and again.

    :param who: what repeats it, such as ``a sensor``, for the text of the error.
    :param final: tells what of the query is known; without it all is, the query being rendered. What is not decides
        nothing yet.
    :raises OpenmarketsQueryError: it is not known to be safe to repeat, or is no query.
    """
    if endpoint_of(query) != "request" or not all(final(query.get(name)) for name in _DECIDES_REPEATING):
        return
    # The others have no say in it, and may still be templates.
    if not is_repeatable({**query, "params": None, "json": None}):
        raise OpenmarketsQueryError(
            f"query: {query['method']} {query['api']} {query['path']} is not known to be safe to repeat, and {who} "
            "repeats it. Send it with OpenmarketsOperator; if it only reads, say so with safe_to_repeat=True."
        )


def _arguments(query: Query, final: Final) -> tuple[str, dict[str, Any]]:
    name = endpoint_of(query)
    arguments = {key: listed(value) for key, value in query.items() if key != "endpoint"}
    # Templates that are rendered as native objects, and upstream results, may be datetimes.
    arguments |= {key: to_text(arguments[key]) for key in _RANGE if key in arguments}
    check_json(arguments, final)
    allowed = _ARGUMENTS[name]
    if unknown := arguments.keys() - set(allowed):
        raise OpenmarketsQueryError(
            f"{name}: unknown argument {', '.join(sorted(map(brief, unknown)))}; "
            f"allowed are {', '.join(allowed) or 'none'}."
        )
    if missing := [key for key in allowed if key not in arguments]:
        raise OpenmarketsQueryError(f"{name}: argument {', '.join(missing)} is missing.")
    return name, arguments


def _normalised(name: str, arguments: Mapping[str, Any], final: Final) -> dict[str, Any]:
    """Check the final ones of a typed query's arguments, each by itself and then together."""
    given: dict[str, Any] = {
        key: CHECKS[key](name, key, value, final) if final(value) else None for key, value in arguments.items()
    }
    for one, other in (("securities", "exchange"), ("accounts", "portfolios")):
        if arguments.get(one) is not None and arguments.get(other) is not None:
            raise OpenmarketsQueryError(f"{name}: {one} and {other} don't go together; give one of them.")
    if "securities" in arguments and arguments["securities"] is None and arguments["exchange"] is None:
        raise OpenmarketsQueryError(f"{name}: name the securities, or an exchange for all that are listed there.")
    if "accounts" in arguments and arguments["accounts"] is None and arguments["portfolios"] is None:
        raise OpenmarketsQueryError(
            f"{name}: accounts and portfolios are None; name codes, or leave both out for all that the client sees."
        )
    if "start" in given and all(given.get(key) is not None for key in _RANGED_BY & given.keys()):
        start, end = (aligned(name, given, given[key]) for key in _RANGE)
        check_range(name, arguments, start, end)
        given |= {"start": start, "end": end}
    return given


class Shape(NamedTuple):
    """How a typed query becomes calls: one for each subject and each span.

    :ivar subject: the argument that says what is asked about: one code a call where the path holds it, else a batch.
    :ivar arguments: the others, besides ``raw``.
    :ivar fields: what one call sends: query string of a GET, JSON body of a POST.
    :ivar spans: the pieces of the range.
    """

    subject: str | None
    arguments: tuple[str, ...] = ()
    fields: Callable[[Mapping[str, Any], Any, Any], Mapping[str, Any] | None] = lambda given, subject, span: None
    spans: Callable[[Mapping[str, Any], datetime | None], Sequence[Span | None]] = lambda given, now: [None]


def _dates(given: Mapping[str, Any], now: datetime | None) -> Sequence[Span]:
    return [Span(*(datetime.combine(given[bound], time()) for bound in _RANGE))]


def _whole(given: Mapping[str, Any], now: datetime | None) -> Sequence[Span]:
    return [exchange_span(given["start"], given["end"])]


def _days(given: Mapping[str, Any], now: datetime | None) -> Sequence[Span]:
    return _begun(split(exchange_span(given["start"], given["end"]), 1), now)


def _intraday(given: Mapping[str, Any], now: datetime | None) -> Sequence[Span]:
    return _begun(split(exchange_span(given["start"], given["end"]), MAX_DAYS[given["interval"]]), now)


def _begun(spans: Iterator[Span], now: datetime | None) -> Sequence[Span]:
    # In UTC: an exchange time may come twice, and only the `fold` of `now` tells which it is.
    return [span for span in spans if now is None or to_utc(span.start) <= to_utc(now)]


def _times(span: Span) -> dict[str, str]:
    return {"dateTimeFrom": span.start.isoformat(), "dateTimeTo": span.end.isoformat()}


_SECURITIES = ("securities", "exchange", "on_invalid")
_ACCOUNTS = ("accounts", "portfolios")
_RANGE = ("start", "end")
_RANGED_BY = {"start", "end", "frequency", "interval"}
"""Arguments that decide what a range means."""
SHAPES: Mapping[str, Shape] = {
    "securities": Shape(None, ("exchange",), lambda given, _, span: {"exchanges": given["exchange"]}),
    "security_information": Shape("securities", _SECURITIES, lambda given, codes, span: {"securities": codes}),
    "quotes": Shape("securities", _SECURITIES, lambda given, codes, span: {"securities": codes}),
    "depth": Shape(
        "securities",
        (*_SECURITIES, "levels"),
        lambda given, _, span: {
            "askLevelMax": given["levels"],
            "bidLevelMax": given["levels"],
            "groupBy": "Price",
        },
    ),
    "time_series": Shape(
        "securities",
        (*_SECURITIES, *_RANGE, "frequency"),
        lambda given, _, span: {
            "frequency": given["frequency"],
            "dateFrom": span.start.date().isoformat(),
            "dateTo": span.end.date().isoformat(),
        },
        _dates,
    ),
    "intraday_time_series": Shape(
        "securities",
        (*_SECURITIES, *_RANGE, "interval"),
        lambda given, _, span: {
            "frequency": "Minutes",
            "consolidationInterval": given["interval"],
            **_times(span),
        },
        _intraday,
    ),
    "trades": Shape("securities", (*_SECURITIES, *_RANGE), lambda given, _, span: _times(span), _days),
    "accounts": Shape(None),
    "portfolio_links": Shape(None),
    "portfolio_details": Shape(
        "portfolios",
        (*_ACCOUNTS, "include_same_cash_account"),
        lambda given, codes, span: {
            "portfolioCodes": codes,
            "includePortfoliosWithSameCashAccount": given["include_same_cash_account"],
        },
    ),
    "cash": Shape("portfolios", _ACCOUNTS, lambda given, codes, span: {"portfolioCodes": codes}),
    "positions": Shape("portfolios", _ACCOUNTS, lambda given, codes, span: {"portfolioCodes": codes}),
    "orders": Shape(
        "accounts",
        (*_ACCOUNTS, "include_child_orders"),
        lambda given, _, span: {
            "orderFilter": "AllOrdersForTheLast3Days",
            "includeChildOrders": given["include_child_orders"],
        },
    ),
    "order_trades": Shape("accounts", (*_ACCOUNTS, *_RANGE), lambda given, _, span: _times(span), _whole),
}
"""Typed query to how it becomes calls."""
_ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "request": ("api", "method", "path", "params", "json", "safe_to_repeat"),
    **{name: (*shape.arguments, "raw") for name, shape in SHAPES.items()},
}
"""Endpoint name to the arguments that its queries hold, all of them."""
