"""Write docs/queries.md, the reference of all queries, from the code: ``make docs``.

The facts come from the endpoint table, signatures, docstrings and the calls of a run without I/O. Only parts of the
introduction are written by hand.
"""

from __future__ import annotations

import inspect
import re
import textwrap
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from openmarkets_provider.query.query import Query, schema_of
from openmarkets_provider.query.rows import FALLBACK_MULTIPLIER, read_records, to_batch
from openmarkets_provider.query.schema import Kind, Schema

PAGE = Path(__file__).parent / "queries.md"

TITLES = {
    "Securities": "Naming securities",
    "Unknown securities": "Unknown securities",
    "Accounts and portfolios": "Naming accounts and portfolios",
    "Ranges": "Ranges of time",
    "Sessions": "Trading days",
    "Rows": "Rows and records",
    "Price multipliers": "Prices",
    "Missing fields": "Missing fields",
    "Currencies": "Currencies",
}
"""First words of a paragraph of the module ``queries``, to its heading here. No query may have the same name."""
EXPLAINED = {
    "securities": "Securities",
    "on_invalid": "Unknown securities",
    "accounts": "Accounts and portfolios",
    "session": "Sessions",
    "on_missing_multiplier": "Price multipliers",
    "on_missing_field": "Missing fields",
    "raw": "Rows",
}
"""Arguments that a paragraph of the module explains."""
COMMON = 3
"""An argument that so many queries have, with the same meaning, is described once."""

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
"""The fields that a run needs in a record of any endpoint."""

BREAK = "<br>"
"""Separates the lines of a table's cell."""

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
        *introduction(names),
    ]
    common = common_arguments(names)
    for name in names:
        blocks += [f"## {name}", *section(name, common)]
    return "\n\n".join(blocks) + "\n"


def introduction(names: Sequence[str]) -> Iterator[str]:
    """Yield what all queries have in common."""
    yield "# Queries"
    yield "The functions of `openmarkets_provider.queries`, with their calls, limits, arguments and columns:"
    yield from overview(names)
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
        if topic == "Price multipliers":
            yield from prices()
        else:
            yield explanation(topic)
    yield from times()
    yield "### XCom"
    yield paragraph("""
        Rows keep their types in XCom: the next task gets Decimal, datetime and date. Airflow 3.3.2 stores a Decimal
        with a fraction as a floating-point number, which keeps 15 significant digits; `OpenmarketsHook.run` and
        `stream` return all digits.
    """)
    yield "### Common arguments"
    yield table(["argument", "type", "meaning"], common_arguments(names))
    yield "### Kinds of columns"
    yield paragraph("""
        The calls, parameters and field names of the APIs are public; types and units are not. **Every kind, unit, time
        zone and key below is inferred** from the names of fields. A value of another type raises
        OpenmarketsInvalidResponse, which names the field; `raw=True` returns what the API sends. The columns of a key
        together identify a row.
    """)
    yield table(["kind", "type", "in Arrow and Parquet", "unit or time zone"], kinds(names))


def explanation(topic: str) -> str:
    """Return a paragraph of the module ``queries`` without its first words, which are the heading here."""
    text = paragraph_with(queries, f"**{topic}**").replace(f"**{topic}**", topic).removeprefix(f"{topic}: ")
    return paragraph(text[0].upper() + text[1:])


def prices() -> Iterator[str]:
    """Yield how prices are computed, with an example that the code computes."""
    yield paragraph("""
        The API sends prices in native units, commonly cents, with a price multiplier: native price x multiplier =
        price in the currency's main unit (dollars). Rows have that product as an exact Decimal, and the multiplier in
        `price_multiplier`. Only columns of the kind `price` are multiplied; it is inferred that those of the kind
        `value` are in the main unit already.
    """)
    yield explanation("Price multipliers")
    yield paragraph(f"""
        An example with an invented daily bar of BHP. Its price multiplier in security information is
        {EXAMPLE_MULTIPLIER}, its currency {EXAMPLE_CURRENCY}:
    """)
    record, (row,) = example()
    yield table(
        ["API field", "in the reply", "column", "in the row"],
        [
            [
                *(["added", ""] if field.api is None else [quoted(field.api), quoted(record[field.api])]),
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
        A time from the API without an offset is exchange time (Australia/Sydney), or UTC in fields with `Gmt` in their
        name. Rows have aware datetimes in UTC.
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
    """Yield the queries of each API."""
    lines = []
    for api, titles in groupby(names, key=lambda name: ENDPOINTS[name].api if name in ENDPOINTS else ""):
        lines.append(f"- {f'`{api}`' if api else 'any API'}: {', '.join(f'[`{name}`](#{name})' for name in titles)}")
    yield "\n".join(lines)


def section(name: str, common: Sequence[list[str]]) -> Iterator[str]:
    """Yield the facts of one query."""
    function = getattr(queries, name)
    summary, *more = paragraphs_of(function)
    yield summary
    signature = inspect.signature(function)
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    bare_signature = signature.replace(parameters=bare, return_annotation=inspect.Signature.empty)
    # Marked as text: a bare star is not valid Python, and formatters would fail.
    yield code(f"{name}{bare_signature}", "text")
    if name in ENDPOINTS:
        yield facts(name)
    yield from (each for each in more if not each.startswith("Makes one call"))
    described = {each: cells for each, cells in arguments(function).items() if cells not in common}
    if described:
        yield table(["argument", "type", "meaning"], described.values())
    if len(described) < len(signature.parameters):
        yield f"{'Other arguments' if described else 'Arguments'}: [common](#common-arguments)."
    if name in ENDPOINTS:
        yield columns(schema_with_all(name))
    else:
        yield from any_call()


def facts(name: str) -> str:
    """Return calls, limits and key of a query."""
    endpoint = ENDPOINTS[name]
    lines = [f"scope: `{SCOPES[endpoint.api]}`", f"calls: {', then '.join(calls(name))}"]
    if endpoint.time is not None:
        lines += [
            f"range of one call: {range_of(endpoint)}",
            f"a [range](#ranges-of-time) selects rows by: `{endpoint.time}`",
        ]
    lines.append(f"key: {', '.join(map(quoted, endpoint.schema.key))}")
    return "\n".join(f"- {line}" for line in lines)


def calls(name: str) -> Iterator[str]:
    """Yield the calls of a query in their order, and when each is made."""
    by_case = {case: calls_of(query) for case, query in cases(name).items()}
    first = next(iter(cases(name).values()))
    for_rows, for_raw = calls_of(first, multiplier=False), calls_of(first | {"raw": True})
    # The last case has the most look-ups.
    before = [each for found in reversed(by_case.values()) for each in found[: found.index(name)]]
    after = [each for found in (*by_case.values(), for_rows) for each in found if each not in before]
    for each in dict.fromkeys([*before, name, *after]):
        endpoint, notes = ENDPOINTS[each], []
        if endpoint.api != ENDPOINTS[name].api:
            notes.append(f"scope `{SCOPES[endpoint.api]}`")
        found = [case for case in by_case if each in by_case[case]]
        if not found:
            notes.append("for records without a price multiplier")
        elif len(found) == 1 < len(by_case):
            notes.append(f"with {found[0]}")
        elif others := [case for case in by_case if case not in found]:
            notes.append(f"not with {others[0]}")
        if each in for_rows and each not in for_raw:
            notes.append("not with `raw=True`")
        purpose = asks_for(endpoint) if each == name else ""
        yield f"{quoted(call_of(endpoint))}{purpose}" + (f" ({'; '.join(notes)})" if notes else "")


def asks_for(endpoint: Endpoint) -> str:
    """Return what each call of an endpoint is for; empty if one call returns everything."""
    if endpoint.subject is None:
        return ""
    if endpoint.max_codes is None:
        return {"securities": " for each security", "accounts": " for each account"}[endpoint.subject]
    return f" for each {endpoint.max_codes} {endpoint.subject}{' (inferred)' if endpoint.limit_inferred else ''}"


def range_of(endpoint: Endpoint) -> str:
    """Return the longest range of one call."""
    if not isinstance(endpoint.max_days, Mapping):
        return days(endpoint.max_days)
    # Intervals with the same limit are next to each other.
    by_limit = groupby(endpoint.max_days.items(), key=lambda item: item[1])
    return ", ".join(f"{days(limit)} for {minutes([interval for interval, _ in items])}" for limit, items in by_limit)


def minutes(intervals: Sequence[int]) -> str:
    """Return a range of intervals in words."""
    return f"{intervals[0]} min" if len(intervals) == 1 else f"{intervals[0]} to {intervals[-1]} min"


def days(number: int | None) -> str:
    """Return a number of days in words."""
    return "no limit known" if number is None else "1 exchange day" if number == 1 else f"{number} exchange days"


def cases(name: str) -> dict[str, Query]:
    """Return a query for each way to choose its securities or accounts."""
    function = getattr(queries, name)
    parameters = inspect.signature(function).parameters
    required = {
        each.name: SAMPLES[each.name]
        for each in parameters.values()
        if each.default is each.empty or each.name in RANGE
    }
    ways: dict[str, dict[str, Any]] = {"always": {}}
    if "securities" in parameters:
        ways = {"`securities`": {"securities": "BHP"}, "`exchange`": {"exchange": "ASX"}}
    if "accounts" in parameters:
        ways = {
            "`accounts`": {"accounts": "A"},
            "`portfolios`": {"portfolios": "P"},
            '`accounts="*"`': {},
        }
    return {case: function(**required, **way) for case, way in ways.items()}


def calls_of(query: Query, *, multiplier: bool = True) -> list[str]:
    """Return the names of the endpoints that a run calls, each once, in order. The run does no I/O.

    :param multiplier: whether records have a price multiplier. Security information always has one.
    """
    calls: dict[str, None] = {}

    class Exchange:
        async def compute(self, records: int, work: Callable[[], Any]) -> Any:
            return work()

        async def receive(self, call: ApiCall) -> Received:
            endpoint = find_endpoint(call.api, call.method, call.path)
            if endpoint is None:
                raise LookupError(f"{call.label} is not in the endpoint table")
            calls[endpoint.name] = None
            schema = endpoint.schema
            record = dict.fromkeys(schema.by_api_name) | RECORD | dict.fromkeys(schema.price_api_names, 100)
            if "priceMultiplier" in schema.by_api_name and (multiplier or endpoint.name == "security_information"):
                record["priceMultiplier"] = FALLBACK_MULTIPLIER
            return Received({endpoint.records: [record]} if endpoint.records else [record], 200, "", ())

    exchange: Any = Exchange()
    for _ in iterate_blocking(Run(query, exchange).batches()):
        pass
    return list(calls)


def arguments(function: Any) -> dict[str, list[str]]:
    """Return the cells of each argument."""
    described = dict(
        re.findall(r"^:param (\w+): (.*?)(?=^:|\Z)", inspect.getdoc(function) or "", re.DOTALL | re.MULTILINE)
    )
    hints = typing.get_type_hints(function)
    cells = {}
    for name in inspect.signature(function).parameters:
        meaning = oneline(described[name])
        if name in EXPLAINED:
            title = TITLES[EXPLAINED[name]]
            link = f"[{title}](#{title.lower().replace(' ', '-')})."
            meaning = f"see {link}" if meaning == "see the module." else f"{meaning} See {link}"
        # One sentence a line keeps the table narrow.
        cells[name] = [quoted(name), type_of(hints[name]), re.sub(r"(?<=[.?]) (?=[A-Z])", BREAK, meaning)]
    return cells


def common_arguments(names: Sequence[str]) -> list[list[str]]:
    """Return the cells of the arguments that many queries have, with the same meaning."""
    functions = sorted((getattr(queries, name) for name in names), key=lambda each: -len(arguments(each)))
    found = [tuple(cells) for function in functions for cells in arguments(function).values()]
    return [list(cells) for cells in dict.fromkeys(found) if found.count(cells) >= COMMON]


def type_of(hint: Any) -> str:
    """Return a type in words, without ``|``, which would end a table's cell."""
    kinds = typing.get_args(hint) if isinstance(hint, typing.get_origin(int | str) or ()) else [hint]
    # The default says that None is possible.
    return " or ".join(
        quoted(re.sub(r"\w+\.", "", inspect.formatannotation(kind))) for kind in kinds if kind is not type(None)
    )


def columns(schema: Schema) -> str:
    """Return the table of a row's columns."""
    return table(
        ["column", "[kind](#kinds-of-columns)", "API field"],
        [
            [
                quoted(field.name),
                kind_name(field.kind),
                quoted(field.api) or f"added{f': {field.note}' if field.note else ''}",
            ]
            for field in schema.fields
        ],
    )


def kinds(names: Sequence[str]) -> Iterator[list[str]]:
    """Yield the cells of each kind of column."""
    fields = [field for name in names if name in ENDPOINTS for field in schema_with_all(name).fields]
    for kind in Kind:
        stored: dict[str, dict[str, None]] = {}
        for field in fields:
            if field.kind is kind:
                stored.setdefault(str(arrow_type_of(column_of(field))), {})[field.name] = None
        usual, *others = sorted(stored, key=lambda each: -len(stored[each]))
        exceptions = [f"{quoted(each)} in {', '.join(map(quoted, stored[each]))}" for each in others]
        yield [kind_name(kind), quoted(kind.type), BREAK.join([quoted(usual), *exceptions]), kind.unit]


def kind_name(kind: Kind) -> str:
    """Return the name of a kind on this page."""
    return kind.name.lower().replace("_", " ")


def schema_with_all(name: str) -> Schema:
    """Return the columns of a query, with those that an argument adds."""
    endpoint = ENDPOINTS[name]
    return endpoint.schema_for(dict.fromkeys(endpoint.adds, True))


def any_call() -> Iterator[str]:
    """Yield the scopes of the APIs and the calls that are never repeated."""
    yield table(["`api`", "OAuth scope"], [[quoted(api), quoted(scope)] for api, scope in SCOPES.items()])
    yield "The calls that create, amend or cancel orders are never repeated; `safe_to_repeat=True` raises an error:"
    unsafe = [endpoint for endpoint in ENDPOINTS.values() if not endpoint.safe_to_repeat]
    yield table(["call", "`api`"], [[quoted(call_of(each)), quoted(each.api)] for each in unsafe])


def call_of(endpoint: Endpoint) -> str:
    """Return a call as text."""
    return f"{endpoint.method} {endpoint.path}"


def paragraphs_of(documented: Any) -> list[str]:
    """Return the paragraphs of a docstring as Markdown, without those about parameters."""
    text = inspect.getdoc(documented) or ""
    return [paragraph(each) for each in re.split(r"\n\n(?=:)", text)[0].split("\n\n")]


def paragraph_with(documented: Any, words: str) -> str:
    """Return the only paragraph of a docstring that contains these words."""
    (found,) = (each for each in paragraphs_of(documented) if words in each)
    return found


def paragraph(text: str) -> str:
    """Return a text as Markdown, in lines of the usual length; code is not split."""
    kept = re.sub(r"`[^`]*`", lambda match: match[0].replace(" ", "\0"), oneline(text))
    return textwrap.fill(kept, 118, break_long_words=False, break_on_hyphens=False).replace("\0", " ")


def oneline(text: str) -> str:
    """Return a text as Markdown, in one line."""
    return " ".join(text.replace("``", "`").split())


def code(text: str, language: str = "python") -> str:
    """Return a block of code."""
    return f"```{language}\n{textwrap.dedent(text).strip()}\n```"


def quoted(value: Any) -> str:
    """Return a value as code; empty for None."""
    return "" if value is None else f"`{value}`"


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    cells = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


if __name__ == "__main__":
    main()
