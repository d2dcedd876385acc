"""Writes docs/queries.md, the reference of all queries, from the code: ``make docs``.

The facts come from the endpoint table, signatures, docstrings and the calls of a run without I/O. Only the
introduction is written by hand.
"""

from __future__ import annotations

import inspect
import re
import textwrap
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import groupby
from pathlib import Path
from typing import Any

from openmarkets_provider import queries
from openmarkets_provider.client.environments import SCOPES
from openmarkets_provider.client.exchange import Received
from openmarkets_provider.client.http.replies import decode
from openmarkets_provider.client.io import iterate_blocking
from openmarkets_provider.client.run import Run
from openmarkets_provider.landing.arrow import type_of as arrow_type_of
from openmarkets_provider.landing.layout import column_of
from openmarkets_provider.query import exchange_time as ranges
from openmarkets_provider.query.endpoints import ENDPOINTS, RANGE, Endpoint, find_endpoint
from openmarkets_provider.query.plan import ApiCall, plan
from openmarkets_provider.query.query import Query, endpoint_of, schema_of
from openmarkets_provider.query.rows import FALLBACK_MULTIPLIER, read_records, to_batch
from openmarkets_provider.query.schema import Kind, Schema

PAGE = Path(__file__).parent / "queries.md"

TITLES = {
    "Securities": "Naming securities",
    "Accounts and portfolios": "Naming accounts and portfolios",
    "Ranges": "Ranges of time",
    "Rows": "Rows and records",
    "Price multipliers": "Missing price multipliers",
    "Missing fields": "Fields that are missing",
    "Currencies": "Currencies of prices",
}
"""First words of a paragraph of the module ``queries``, to its heading here, which no query may have as a name."""
EXPLAINED = {
    "securities": "Securities",
    "accounts": "Accounts and portfolios",
    "on_missing_multiplier": "Price multipliers",
    "on_missing_field": "Missing fields",
}
"""Arguments that the module explains, to the paragraph."""

SAMPLES: Mapping[str, Any] = {
    "start": "2024-01-01",
    "end": "2025-01-01",
    "interval": 5,
}
"""Values for required arguments."""
RECORD: Mapping[str, Any] = {
    "securityCode": "BHP",
    "exchange": "ASX",
    "accountCode": "A",
    "portfolioCode": "P",
    "linkRemoved": False,
    "timeSeriesDate": "2026-01-05",
    "timeSeriesDateTime": "2026-01-05T10:00:00",
    "tradeDateTime": "2026-01-05T10:00:00",
}
"""The fields that a run needs from a record of any endpoint."""

BREAK = "<br>"
"""Between the lines of a table's cell."""

EXAMPLE_QUERY = queries.time_series("BHP", start="2026-01-05", end="2026-01-06")
EXAMPLE_MULTIPLIER = "0.01"
EXAMPLE_CURRENCY = "AUD"
EXAMPLE_REPLY = """\
[
  {
    "openPrice": 4501,
    "highPrice": 4533.5,
    "lowPrice": 4487,
    "closePrice": 4520,
    "totalVolume": 7103456,
    "totalValue": 320645118.42,
    "tradeCount": 21874,
    "timeSeriesDate": "2026-01-05",
    "marketVwap": 4513.93,
    "adjustmentFactor": 1
  }
]
"""

MOMENTS = {
    "2026-01-05": "a date is its midnight",
    "2026-01-05T10:00:00": "daylight-saving time",
    "2026-07-06T10:00:00": "standard time",
    "2026-04-05T02:30:00": "happens twice; the first of the two",
    "2026-10-04T02:30:00": "is missing; one hour later",
    "2026-01-05T10:00:00+00:00": "an offset counts",
}


def main(target: Path = PAGE) -> None:
    """Write the page."""
    target.write_text(page(), encoding="utf-8")


def page() -> str:
    """Return the whole page."""
    names = [name for name in queries.__all__ if name != "Query"]
    # In the order of the endpoint table: market data, then OMS, then any other call.
    names.sort(key=lambda name: list(ENDPOINTS).index(name) if name in ENDPOINTS else len(ENDPOINTS))
    blocks = [
        "<!-- Written by `make docs` from the code. Change docs/generate.py or the code, not this file. -->",
        *introduction(),
        "## All queries",
        *overview(names),
    ]
    for name in names:
        blocks += [f"## {name}", *section(name)]
    return "\n\n".join(blocks) + "\n"


def introduction() -> Iterator[str]:
    """Yield what all queries have in common."""
    yield "# Queries"
    yield paragraph("""
        The reference of `openmarkets_provider.queries`: every query, the calls that it makes, its arguments, its
        limits, and the columns of its rows. The page starts with what all queries have in common and an
        [overview](#all-queries); one section for each query follows.
    """)
    yield code("""
        from openmarkets_provider import queries
        from openmarkets_provider.operators.openmarkets import OpenmarketsOperator

        OpenmarketsOperator(
            task_id="bars",
            query=queries.time_series(["BHP", "CBA"], start="{{ data_interval_start }}", end="{{ data_interval_end }}"),
        )
    """)
    yield "## What all queries have in common"
    yield paragraph_with(queries, "A query is plain data")
    for topic, title in TITLES.items():
        yield f"### {title}"
        yield paragraph(paragraph_with(queries, f"**{topic}**"))
    yield from prices()
    yield from times()
    yield "### XCom"
    yield paragraph("""
        Rows keep their types in XCom: the next task gets Decimal, datetime and date. Airflow 3.3.2 stores a Decimal
        with a fraction as a floating-point number, which keeps 15 significant digits; `OpenmarketsHook.run` and
        `stream` return all digits.
    """)
    yield "### What is inferred"
    yield paragraph("""
        The calls of the APIs, their parameters and the names of fields are public; the types and units of fields are
        not. In the tables below **every type, unit and time zone is inferred** from the field's name, and so is which
        columns identify a row. Inferred limits are marked. A value that does not have the inferred type raises
        OpenmarketsInvalidResponse, which names the field; with `raw=True` the query returns what the API sends.
    """)


def prices() -> Iterator[str]:
    """Yield how prices are computed, with an example that the code computes."""
    priced = [endpoint for endpoint in ENDPOINTS.values() if endpoint.schema.price_api_names]
    sent = [endpoint.name for endpoint in priced if "priceMultiplier" in endpoint.schema.by_api_name]
    added = [endpoint.name for endpoint in priced if endpoint.name not in sent]
    yield "### Prices"
    yield paragraph(f"""
        The API writes prices in native units, commonly cents, and has a price multiplier: native price x multiplier =
        price in the currency's main unit (dollars). Rows contain that product, a Decimal without any rounding, and the
        multiplier in `price_multiplier`. The records of {listing(sent)} contain the multiplier. For {listing(added)},
        and for records without one, a run gets it once with `{call_of(ENDPOINTS["security_information"])}`. Where
        nothing supplies a multiplier, the query fails, since a price in points of an index would be 100 times too low.
        With `on_missing_multiplier="cents"` prices count as cents ({FALLBACK_MULTIPLIER}), a warning in the log names
        the security, and `price_multiplier_assumed` is true.
    """)
    yield paragraph("""
        Only columns whose unit says so are multiplied. Values, totals and balances stay as the API sends them: it is
        inferred that they are in the main unit.
    """)
    yield paragraph(f"""
        An example, computed by the code: an invented daily bar of BHP, whose price multiplier in security information
        is {EXAMPLE_MULTIPLIER}, and its currency {EXAMPLE_CURRENCY}. With `raw=True` the result is the reply:
    """)
    yield code(EXAMPLE_REPLY, "json")
    yield "Without it, the result is one row:"
    raw, (row,) = example()
    yield table(
        ["API field", "in the reply", "column", "in the row"],
        [
            [
                *(["added", ""] if field.api is None else [quoted(field.api), quoted(raw[field.api])]),
                quoted(field.name),
                quoted(repr(row[field.name]).removeprefix("datetime.")),
            ]
            for field in schema_of(EXAMPLE_QUERY).fields
        ],
    )


def example() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the example's record, and its rows."""
    (call,) = plan(EXAMPLE_QUERY)
    records = read_records(call, decode(EXAMPLE_REPLY.encode(), exact=True))
    bhp = ("BHP", "ASX")
    multipliers, currencies = {bhp: Decimal(EXAMPLE_MULTIPLIER)}, {bhp: EXAMPLE_CURRENCY}
    batch = to_batch(schema_of(EXAMPLE_QUERY), call, records, multipliers, currencies, EXAMPLE_QUERY)
    return records[0], batch.rows()


def times() -> Iterator[str]:
    """Yield how times are read."""
    yield "### Times"
    yield paragraph("""
        A time that the API writes without an offset is exchange time (Australia/Sydney), or UTC in fields with `Gmt` in
        their name. An offset, where there is one, counts. Rows contain aware datetimes in UTC.
    """)
    yield paragraph_with(ranges, "in April")
    yield table(
        ["written", "in UTC", ""],
        [
            [quoted(text), quoted(ranges.read_moment(text).isoformat()), explanation]
            for text, explanation in MOMENTS.items()
        ],
    )


def overview(names: Sequence[str]) -> Iterator[str]:
    """Yield the table of all queries."""
    yield "The columns of a key together identify a row (inferred)."
    cells = []
    for name in names:
        link = f"[`{name}`](#{name})"
        if name in ENDPOINTS:
            endpoint = ENDPOINTS[name]
            keys = ", ".join(map(quoted, endpoint.schema.key))
            cells.append([link, quoted(call_of(endpoint)), asks_for(endpoint), range_of(endpoint), keys])
        else:
            cells.append([link, "any", "", "", ""])
    yield table(["query", "call", "one call asks for", "range of one call", "key"], cells)


def section(name: str) -> Iterator[str]:
    """Yield the facts of one query."""
    function = getattr(queries, name)
    summary, *more = paragraphs_of(function)
    yield summary
    signature = inspect.signature(function)
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    bare_signature = signature.replace(parameters=bare, return_annotation=inspect.Signature.empty)
    # Marked as text: a bare star is no Python, and formatters would fail.
    yield code(f"{name}{bare_signature}", "text")
    yield from more
    if name in ENDPOINTS:
        yield from facts(name)
    yield "**Arguments**"
    yield table(["argument", "type", "default", "meaning"], arguments(function))
    if name in ENDPOINTS:
        yield "**Rows**"
        endpoint = ENDPOINTS[name]
        yield columns(endpoint.schema_for(dict.fromkeys(endpoint.adds, True)))
    else:
        yield from any_call()


def facts(name: str) -> Iterator[str]:
    """Yield calls and limits of a query."""
    endpoint = ENDPOINTS[name]
    lines = [
        f"call: `{call_of(endpoint)}`",
        f"API: `{endpoint.api}`, OAuth scope `{SCOPES[endpoint.api]}`",
        f"one call asks for: {asks_for(endpoint)}",
    ]
    if endpoint.time is not None:
        lines.append(f"range of one call: {range_of(endpoint).replace(BREAK, ', ')}")
        lines.append(f"a range selects rows by: `{endpoint.time}`")
    yield "\n".join(f"- {line}" for line in lines)
    by_case = {case: calls_of(query) for case, query in cases(name).items()}
    if any(calls != [endpoint] for calls in by_case.values()):
        yield "**Calls**"
        yield table(
            ["when", "calls, in their order", "OAuth scopes"],
            [
                [
                    case,
                    BREAK.join(quoted(call_of(call)) for call in calls),
                    BREAK.join(dict.fromkeys(quoted(SCOPES[call.api]) for call in calls)),
                ]
                for case, calls in by_case.items()
            ],
        )
    first = next(iter(cases(name).values()))
    information = f"`{call_of(ENDPOINTS['security_information'])}`"
    if calls_of(first | {"raw": True}) != calls_of(first):
        gets = "price multipliers and currencies"
        if "priceMultiplier" in endpoint.schema.by_api_name:
            gets = "currencies, and the price multipliers that records lack"
        yield paragraph(f"With `raw=True` the call {information}, which gets the {gets}, is not made.")
    elif name != "security_information" and calls_of(first, multiplier=False) != calls_of(first):
        yield paragraph(f"""
            For records without a price multiplier, {information} (OAuth scope `{SCOPES["market_data"]}`) is called
            too, but not with `raw=True`.
        """)


def asks_for(endpoint: Endpoint) -> str:
    """Return how much one call asks for."""
    if endpoint.subject is None:
        return "everything"
    if endpoint.max_codes is None:
        return {"securities": "1 security", "accounts": "1 account"}[endpoint.subject]
    return f"{endpoint.max_codes} {endpoint.subject}{' (inferred)' if endpoint.limit_inferred else ''}"


def range_of(endpoint: Endpoint) -> str:
    """Return the longest range of one call."""
    if endpoint.time is None:
        return ""
    if not isinstance(endpoint.max_days, Mapping):
        return days(endpoint.max_days)
    # Intervals with the same limit are next to each other.
    by_limit = groupby(endpoint.max_days.items(), key=lambda item: item[1])
    return BREAK.join(f"{days(limit)} for {minutes([interval for interval, _ in items])}" for limit, items in by_limit)


def minutes(intervals: Sequence[int]) -> str:
    """Return the first and the last of some intervals."""
    return f"{intervals[0]} min" if len(intervals) == 1 else f"{intervals[0]} to {intervals[-1]} min"


def days(number: int | None) -> str:
    """Return a number of days in words."""
    return "no limit known" if number is None else "1 exchange day" if number == 1 else f"{number} exchange days"


def cases(name: str) -> dict[str, Query]:
    """Return a query for each way to choose what it asks about."""
    function = getattr(queries, name)
    parameters = inspect.signature(function).parameters
    required = {
        each.name: SAMPLES[each.name]
        for each in parameters.values()
        if each.default is each.empty or each.name in RANGE
    }
    ways: dict[str, dict[str, Any]] = {"always": {}}
    if "securities" in parameters:
        ways = {"`securities` are given": {"securities": "BHP"}, "`exchange` is given": {"exchange": "ASX"}}
    if "accounts" in parameters:
        ways = {
            "`accounts` are given": {"accounts": "A"},
            "`portfolios` are given": {"portfolios": "P"},
            "neither is given": {},
        }
    return {case: function(**required, **way) for case, way in ways.items()}


def calls_of(query: Query, *, multiplier: bool = True) -> list[Endpoint]:
    """Return the endpoints that a run calls, each once, in order; the run does no I/O.

    :param multiplier: the query's records have a price multiplier, where the API sends one.
    """
    calls: dict[str, Endpoint] = {}

    class Exchange:
        async def compute(self, records: int, work: Callable[[], Any]) -> Any:
            return work()

        async def receive(self, call: ApiCall) -> Received:
            endpoint = find_endpoint(call.api, call.method, call.path)
            if endpoint is None:
                raise LookupError(f"{call.label} is not in the endpoint table")
            calls[endpoint.name] = endpoint
            schema = endpoint.schema
            record = dict.fromkeys(schema.by_api_name) | RECORD | dict.fromkeys(schema.price_api_names, 100)
            if "priceMultiplier" in schema.by_api_name and (multiplier or endpoint.name != endpoint_of(query)):
                record["priceMultiplier"] = FALLBACK_MULTIPLIER
            return Received({endpoint.records: [record]} if endpoint.records else [record], 200, "", ())

    exchange: Any = Exchange()
    for _ in iterate_blocking(Run(query, exchange).batches()):
        pass
    return list(calls.values())


def arguments(function: Any) -> Iterator[list[str]]:
    """Yield a line of cells for each argument."""
    described = dict(
        re.findall(r"^:param (\w+): (.*?)(?=^:|\Z)", inspect.getdoc(function) or "", re.DOTALL | re.MULTILINE)
    )
    hints = typing.get_type_hints(function)
    for parameter in inspect.signature(function).parameters.values():
        default = "required" if parameter.default is parameter.empty else quoted(repr(parameter.default))
        meaning = oneline(described[parameter.name])
        if meaning == "see the module.":
            title = TITLES[EXPLAINED[parameter.name]]
            meaning = f"see [{title}](#{title.lower().replace(' ', '-')})."
        # One sentence a line keeps the table narrow.
        meaning = re.sub(r"(?<=[.?]) (?=[A-Z])", BREAK, meaning)
        yield [quoted(parameter.name), type_of(hints[parameter.name]), default, meaning]


def type_of(hint: Any) -> str:
    """Return a type in words that hold no ``|``, which would end a table's cell."""
    kinds = typing.get_args(hint) if isinstance(hint, typing.get_origin(int | str) or ()) else [hint]
    # The default says that None is possible.
    return " or ".join(
        quoted(re.sub(r"\w+\.", "", inspect.formatannotation(kind))) for kind in kinds if kind is not type(None)
    )


def columns(schema: Schema) -> str:
    """Return the table of a row's columns."""
    return table(
        ["column", "API field", "type", "in Arrow and Parquet", "unit or time zone", "key"],
        [
            [
                quoted(field.name),
                "added" if field.api is None else quoted(field.api),
                "as sent" if field.kind is Kind.JSON else quoted(field.kind.type),
                quoted(str(arrow_type_of(column_of(field)))),
                "" if field.kind is Kind.JSON else field.unit,
                "key" if field.key else "",
            ]
            for field in schema.fields
        ],
    )


def any_call() -> Iterator[str]:
    """Yield the scopes of the APIs and the calls that are never repeated."""
    yield "**APIs**"
    yield table(["`api`", "OAuth scope"], [[quoted(api), quoted(scope)] for api, scope in SCOPES.items()])
    yield "**Calls that are never repeated**"
    yield paragraph("""
        These calls create, amend or cancel orders. They are not sent again after a failure, and `safe_to_repeat=True`
        raises an error:
    """)
    unsafe = [endpoint for endpoint in ENDPOINTS.values() if not endpoint.safe_to_repeat]
    yield table(["call", "`api`"], [[quoted(call_of(each)), quoted(each.api)] for each in unsafe])


def call_of(endpoint: Endpoint) -> str:
    """Return how a call is written."""
    return f"{endpoint.method} {endpoint.path}"


def paragraphs_of(documented: Any) -> list[str]:
    """Return the paragraphs of a docstring as Markdown, without those about parameters."""
    text = inspect.getdoc(documented) or ""
    return [paragraph(each) for each in re.split(r"\n\n(?=:)", text)[0].split("\n\n")]


def paragraph_with(documented: Any, words: str) -> str:
    """Return the one paragraph of a docstring that holds some words."""
    (found,) = (each for each in paragraphs_of(documented) if words in each)
    return found


def paragraph(text: str) -> str:
    """Return a text in lines of the usual length, as Markdown; code is not broken up."""
    kept = re.sub(r"`[^`]*`", lambda match: match[0].replace(" ", "\0"), oneline(text))
    return textwrap.fill(kept, 118, break_long_words=False, break_on_hyphens=False).replace("\0", " ")


def oneline(text: str) -> str:
    """Return a text as Markdown, in one line."""
    return " ".join(text.replace("``", "`").split())


def code(text: str, language: str = "python") -> str:
    """Return a block of code."""
    return f"```{language}\n{textwrap.dedent(text).strip()}\n```"


def quoted(value: Any) -> str:
    """Return a value as code; nothing for None."""
    return "" if value is None else f"`{value}`"


def listing(names: Sequence[str]) -> str:
    """Return names in a sentence."""
    linked = [f"[`{name}`](#{name})" for name in names]
    return f"{', '.join(linked[:-1])} and {linked[-1]}"


def table(head: Sequence[str], lines: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    cells = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


if __name__ == "__main__":
    main()
