"""From a query to the calls that answer it, one for each piece of it. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from urllib.parse import quote

from openmarkets_provider.query.arguments import ALL
from openmarkets_provider.query.endpoints import ENDPOINTS, Endpoint
from openmarkets_provider.query.exchange_time import Span
from openmarkets_provider.query.query import SHAPES, Query, endpoint_of, rendered_request, resolve


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


def plan(query: Query, now: datetime | None = None) -> Plan:
    """Turn a rendered query that names its securities or accounts itself into the calls that answer it.

    :param now: the present exchange time, without an offset but with its ``fold``: pieces that lie wholly after it are
        not asked for.
    :raises OpenmarketsQueryError: an argument is malformed; the text names it.
    """
    name = endpoint_of(query)
    if name == "request":
        call = ApiCall(**rendered_request(query))
        return Plan([None], [None], lambda subject, span: call)
    given = resolve(query)
    endpoint, shape = ENDPOINTS[name], SHAPES[name]

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


def _subjects(endpoint: Endpoint, codes: Sequence[str] | None) -> Sequence[Any]:
    if codes is None:
        return [None]
    size = endpoint.max_codes
    return codes if size is None else [codes[start : start + size] for start in range(0, len(codes), size)]
