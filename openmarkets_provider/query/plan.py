"""Turn a query into the calls that answer it, one for each piece. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import quote

from openmarkets_provider.query.arguments import ALL
from openmarkets_provider.query.endpoints import ENDPOINTS, Endpoint
from openmarkets_provider.query.exchange_time import Span, exchange_span, split, to_utc
from openmarkets_provider.query.query import Query, resolve
from openmarkets_provider.sessions.calendar import has_session


class ApiCall(NamedTuple):
    """One HTTP request, as data.

    :ivar path: relative to the API's base URL, without a leading slash.
    :ivar records: the field of the reply that has the records; None if the reply is the answer itself.
    :ivar exact: True if numbers with a fraction are decoded as Decimal.
    :ivar fields: the expected fields of the records, if the reply is their list.
    :ivar security: the security that the call is about, in full form, if it is a single one.
    :ivar piece: which part of a split query this is, in words.
    """

    api: str
    method: str
    path: str
    params: Mapping[str, Any] | None = None
    json: Any = None
    safe_to_repeat: bool = False
    records: str | None = None
    exact: bool = False
    fields: tuple[str, ...] = ()
    security: str | None = None
    piece: str = ""

    @property
    def label(self) -> str:
        """How logs and errors name the call."""
        return f"{self.method} {self.api} {self.path}"


@dataclass(frozen=True)
class Plan:
    """The calls that answer a query, in the order of their rows: every span of one subject, then of the next.

    There can be very many calls, so each is made when it is needed.
    """

    subjects: Sequence[Any]
    spans: Sequence[Span[Any] | None]
    make: Callable[[Any, Span[Any] | None], ApiCall]

    def __len__(self) -> int:
        return len(self.subjects) * len(self.spans)

    def __iter__(self) -> Iterator[ApiCall]:
        return (self.make(subject, span) for subject in self.subjects for span in self.spans)


def plan(query: Query, now: datetime | None = None) -> Plan:
    """Turn a rendered query into the calls that answer it.

    :param query: it names its securities or accounts itself; see :func:`~openmarkets_provider.query.expand.expand`.
    :param now: the current exchange time, without an offset but with its ``fold``. Pieces that start later get no call.
    :raises OpenmarketsQueryError: an argument is malformed; the text names it.
    """
    resolved = resolve(query)
    if resolved["endpoint"] == "request":
        call = ApiCall(**{name: value for name, value in resolved.items() if name != "endpoint"})
        return Plan([None], [None], lambda subject, span: call)
    endpoint = ENDPOINTS[resolved["endpoint"]]
    return Plan(
        _split_subjects(endpoint, resolved), _split_range(endpoint, resolved, now), partial(_call, endpoint, resolved)
    )


def _split_subjects(endpoint: Endpoint, arguments: Mapping[str, Any]) -> Sequence[Any]:
    """Return what each call asks about: one code, a batch of codes, or None for everything."""
    if endpoint.subject is None:
        return [None]
    codes = arguments[endpoint.subject]
    if codes in (None, ALL):
        return []
    size = endpoint.max_codes
    return codes if size is None else [codes[start : start + size] for start in range(0, len(codes), size)]


def _split_range(endpoint: Endpoint, arguments: Mapping[str, Any], now: datetime | None) -> Sequence[Span[Any] | None]:
    if endpoint.time is None:
        return [None]
    start, end = arguments["start"], arguments["end"]
    if not isinstance(start, datetime):
        return [Span(start, end)]
    span, days = exchange_span(start, end), endpoint.max_days
    if days is None:
        return [span]
    pieces = split(span, days if isinstance(days, int) else days[arguments["interval"]])
    # In UTC: an exchange time may occur twice, and only the `fold` of `now` tells which one it is.
    pieces = (piece for piece in pieces if now is None or to_utc(piece.start) <= to_utc(now))
    return [piece for piece in pieces if days != 1 or has_session(piece.start.date(), piece.start.date())]


def _call(endpoint: Endpoint, arguments: Mapping[str, Any], subject: Any, span: Span[Any] | None) -> ApiCall:
    """Return the call for one code or batch of codes, and one span of the range."""
    values, piece, path = dict(arguments), "", endpoint.path
    if endpoint.subject is not None:
        values[endpoint.subject] = subject
    if isinstance(subject, str):
        piece, path = subject, quote(subject, safe="@").join(endpoint.path_parts)
    elif subject is not None:
        piece = f"{len(subject)} {endpoint.subject} from {subject[0]} on"
    if span is not None:
        piece = f"{piece}, {span}"
        values |= {"start": span.start.isoformat(), "end": span.end.isoformat()}
    sends = {
        name: values[text[1:-1]] if text.startswith("{") else text for name, text in endpoint.sends.items()
    } or None
    return ApiCall(
        api=endpoint.api,
        method=endpoint.method,
        path=path,
        params=sends if endpoint.method == "GET" else None,
        json=sends if endpoint.method == "POST" else None,
        safe_to_repeat=endpoint.safe_to_repeat,
        records=endpoint.records,
        exact=not arguments["raw"],
        fields=() if arguments["raw"] or endpoint.records else tuple(endpoint.schema.sendable),
        security=subject if "{security}" in endpoint.path else None,
        piece=piece,
    )
