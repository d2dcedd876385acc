"""From a query to the calls that answer it: checks, defaults, splitting. Pure.

A query is plain data: a dict with ``endpoint`` and that endpoint's arguments. It is looked at twice by the same
code: when a DAG author makes it (what is still a template, or an upstream task's result, is left alone then)
and when it runs (everything must be final).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, time
from typing import Any, NamedTuple
from urllib.parse import quote

from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.query.arguments import (
    ALL,
    CHECKS,
    Final,
    aligned,
    brief,
    check_json,
    check_params,
    check_range,
    is_literal,
    kind,
    listed,
    relative_path,
    shown,
)
from openmarkets_provider.query.endpoints import APIS, ENDPOINTS, Endpoint, find_endpoint
from openmarkets_provider.query.exchange_time import (
    MAX_DAYS,
    Span,
    exchange_span,
    split,
    to_text,
    to_utc,
)

Query = dict[str, Any]
"""What to ask of the APIs, as JSON-able data. Made by the functions of ``openmarkets_provider.queries``."""

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_DECIDES_REPEATING = ("api", "method", "path", "safe_to_repeat")


class ApiCall(NamedTuple):
    """One HTTP request to come, as data.

    :ivar path: relative to the API's base URL, without a leading slash.
    :ivar rows: the field of the reply that holds the rows; None when the reply is the answer itself.
    :ivar exact: numbers with a fraction are decoded as Decimal.
    :ivar security: the one security that the call is about, in full form.
    :ivar piece: which part of a split query this is, in words.
    """

    api: str
    method: str
    path: str
    params: Mapping[str, Any] | None = None
    json: Any = None
    safe_to_repeat: bool = False
    rows: str | None = None
    exact: bool = False
    security: str | None = None
    piece: str = ""

    @property
    def label(self) -> str:
        """How logs and errors name the call."""
        return f"{self.method} {self.api} {self.path}"


@dataclass(frozen=True)
class Plan:
    """The calls that answer a query, in the order of their rows: every span of one subject, then of the next.

    They are made as they are needed, since there can be very many.
    """

    subjects: Sequence[Any]
    spans: Sequence[Span | None]
    make: Callable[[Any, Span | None], ApiCall]

    def __len__(self) -> int:
        return len(self.subjects) * len(self.spans)

    def __iter__(self) -> Iterator[ApiCall]:
        return (self.make(subject, span) for subject in self.subjects for span in self.spans)


def check(query: Query) -> Query:
    """Check what is literal in a query and return it.

    :raises OpenmarketsQueryError: an argument is malformed; the text names it.
    """
    name, arguments = _arguments(query, is_literal)
    if name == "request":
        _request_call(arguments, is_literal)
    else:
        _normalised(name, arguments, is_literal)
    return query


def plan(query: Query, now: datetime | None = None) -> Plan:
    """Turn a rendered query that names its securities or accounts itself into the calls that answer it.

    :param now: the present exchange time, without an offset but with its ``fold``: pieces that lie wholly after it are
        not asked for.
    :raises OpenmarketsQueryError: an argument is malformed; the text names it.
    """
    name = endpoint_of(query)
    if name == "request":
        call = _request_call(_arguments(query, _always)[1], _always)
        return Plan([None], [None], lambda subject, span: call)
    given = resolve(query)
    endpoint, shape = ENDPOINTS[name], _SHAPES[name]

    def make(subject: Any, span: Span | None) -> ApiCall:
        fields = shape.fields(given, subject, span)
        one = isinstance(subject, str)
        piece = subject or ""
        if subject and not one:
            piece = f"{len(subject)} {shape.subject} from {subject[0]} on"
        return ApiCall(
            api=endpoint.api,
            method=endpoint.method,
            path=re.sub(r"\{\w+\}", quote(subject, safe="@"), endpoint.path) if one else endpoint.path,
            params=fields if endpoint.method == "GET" else None,
            json=fields if endpoint.method == "POST" else None,
            safe_to_repeat=endpoint.safe_to_repeat,
            rows=endpoint.rows,
            exact=not given["raw"],
            security=subject if "{security}" in endpoint.path else None,
            piece=f"{piece}, {span}" if span else piece,
        )

    codes = given[shape.subject] if shape.subject else None
    if codes in (None, ALL) and shape.subject:
        codes = []
    return Plan(_subjects(endpoint, codes), shape.spans(given, now), make)


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
    (call,) = plan(query)
    return call.label


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
    shape = _SHAPES.get(query["endpoint"])
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
    return _request_call(_arguments(query, _always)[1], _always).safe_to_repeat


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


def _request_call(arguments: Mapping[str, Any], final: Final) -> ApiCall:
    api, method = arguments["api"], arguments["method"]
    if final(api) and not (isinstance(api, str) and api in APIS):
        raise OpenmarketsQueryError(f"request: api {shown(api)} is unknown; allowed are {', '.join(APIS)}.")
    if final(method):
        method = method.upper() if isinstance(method, str) else method
        if method not in METHODS:
            raise OpenmarketsQueryError(
                f"request: method {shown(method)} is unknown; allowed are {', '.join(METHODS)}."
            )
    path = relative_path(arguments["path"]) if final(arguments["path"]) else ""
    params, body, safe = arguments["params"], arguments["json"], arguments["safe_to_repeat"]
    if params is not None and final(params):
        check_params(params, final)
    if body is not None and method == "GET":
        raise OpenmarketsQueryError("request: json does not go with GET; use params.")
    if safe is not None and not isinstance(safe, bool) and final(safe):
        raise OpenmarketsQueryError(f"request: safe_to_repeat must be True, False or None, not {kind(safe)}.")
    known = find_endpoint(api, method, path)
    if safe is True and known is not None and not known.safe_to_repeat:
        raise OpenmarketsQueryError(f"request: {method} {path} is never safe to repeat; leave safe_to_repeat out.")
    if safe is None:
        safe = known.safe_to_repeat if known else method == "GET"
    return ApiCall(api, method, path, params or None, body, safe)


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


class _Shape(NamedTuple):
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


def _subjects(endpoint: Endpoint, codes: Sequence[str] | None) -> Sequence[Any]:
    if codes is None:
        return [None]
    size = endpoint.max_codes
    return codes if size is None else [codes[start : start + size] for start in range(0, len(codes), size)]


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
_SHAPES: Mapping[str, _Shape] = {
    "securities": _Shape(None, ("exchange",), lambda given, _, span: {"exchanges": given["exchange"]}),
    "security_information": _Shape("securities", _SECURITIES, lambda given, codes, span: {"securities": codes}),
    "quotes": _Shape("securities", _SECURITIES, lambda given, codes, span: {"securities": codes}),
    "depth": _Shape(
        "securities",
        (*_SECURITIES, "levels"),
        lambda given, _, span: {
            "askLevelMax": given["levels"],
            "bidLevelMax": given["levels"],
            "groupBy": "Price",
        },
    ),
    "time_series": _Shape(
        "securities",
        (*_SECURITIES, *_RANGE, "frequency"),
        lambda given, _, span: {
            "frequency": given["frequency"],
            "dateFrom": span.start.date().isoformat(),
            "dateTo": span.end.date().isoformat(),
        },
        _dates,
    ),
    "intraday_time_series": _Shape(
        "securities",
        (*_SECURITIES, *_RANGE, "interval"),
        lambda given, _, span: {
            "frequency": "Minutes",
            "consolidationInterval": given["interval"],
            **_times(span),
        },
        _intraday,
    ),
    "trades": _Shape("securities", (*_SECURITIES, *_RANGE), lambda given, _, span: _times(span), _days),
    "accounts": _Shape(None),
    "portfolio_links": _Shape(None),
    "portfolio_details": _Shape(
        "portfolios",
        (*_ACCOUNTS, "include_same_cash_account"),
        lambda given, codes, span: {
            "portfolioCodes": codes,
            "includePortfoliosWithSameCashAccount": given["include_same_cash_account"],
        },
    ),
    "cash": _Shape("portfolios", _ACCOUNTS, lambda given, codes, span: {"portfolioCodes": codes}),
    "positions": _Shape("portfolios", _ACCOUNTS, lambda given, codes, span: {"portfolioCodes": codes}),
    "orders": _Shape(
        "accounts",
        (*_ACCOUNTS, "include_child_orders"),
        lambda given, _, span: {
            "orderFilter": "AllOrdersForTheLast3Days",
            "includeChildOrders": given["include_child_orders"],
        },
    ),
    "order_trades": _Shape("accounts", (*_ACCOUNTS, *_RANGE), lambda given, _, span: _times(span), _whole),
}
"""Typed query to how it becomes calls."""
_ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "request": ("api", "method", "path", "params", "json", "safe_to_repeat"),
    **{name: (*shape.arguments, "raw") for name, shape in _SHAPES.items()},
}
"""Endpoint name to the arguments that its queries hold, all of them."""
