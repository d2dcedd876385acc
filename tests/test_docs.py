"""docs/queries.md says what the code does."""

from __future__ import annotations

import inspect
import re
import runpy
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from openmarkets_provider import queries
from openmarkets_provider.client.environments import SCOPES
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
from openmarkets_provider.landing.arrow import schema_of
from openmarkets_provider.landing.layout import layout_of
from openmarkets_provider.query.endpoints import ENDPOINTS, MAX_DAYS
from openmarkets_provider.query.plan import ApiCall, plan
from openmarkets_provider.query.request import METHODS
from openmarkets_provider.query.schema import Kind
from openmarkets_provider.sandbox.server import SandboxServer
from tests.support.queries import SCHEMAS, of_every_kind

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "queries.md").read_text(encoding="utf-8")
GENERATOR: dict[str, Any] = runpy.run_path(str(DOCS / "generate.py"))
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
NAMES = [name for name in queries.__all__ if name != "Query"]
TYPED = [name for name in NAMES if name != "request"]
DAY = {"start": "2024-03-04", "end": "2024-03-05"}
PLANNED = of_every_kind(**DAY, account="SBX0001", portfolio="SBX0001P")
"""A query of each kind that is one call, by what the sandbox knows."""


def tables(text: str) -> list[list[list[str]]]:
    """Return the Markdown tables of a text: the cells of each line, the heads first, without the line under them."""
    found = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    parsed = [[re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()] for block in found]
    return [[[cell.strip() for cell in line] for line in lines[:1] + lines[2:]] for lines in parsed]


def table(text: str, first_head: str) -> list[list[str]]:
    """Return the one table whose first column has this head, without the heads."""
    ((_, *lines),) = (lines for lines in tables(text) if lines[0][0] == first_head)
    return lines


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]*)`", cell)


def fact(name: str, words: str) -> str:
    (found,) = re.findall(rf"^- {words}: (.*)$", SECTIONS[name], re.MULTILINE)
    return str(found)


def only_call(name: str) -> ApiCall:
    (call,) = plan(PLANNED[name])
    return call


def test_the_page_is_what_the_generator_makes_of_the_code():
    assert GENERATOR["page"]() == PAGE, "docs/queries.md is not up to date: run `make docs`"


def test_the_generator_writes_the_page(tmp_path: Path):
    GENERATOR["main"](tmp_path / "queries.md")
    assert (tmp_path / "queries.md").read_text(encoding="utf-8") == PAGE


@pytest.mark.parametrize("name", NAMES)
def test_every_query_has_a_section_with_its_summary_and_every_argument(name: str):
    function = getattr(queries, name)
    section = SECTIONS[name]
    assert (inspect.getdoc(function) or "").splitlines()[0] in section
    signature = re.search(rf"^```text\n({name}\(.*\))\n```$", section, re.MULTILINE)
    assert signature is not None
    described = {code(line[0])[0]: line for line in table(section, "argument")}
    parameters = inspect.signature(function).parameters
    assert list(described) == list(parameters)
    for parameter in parameters.values():
        _, kind, default, meaning = described[parameter.name]
        assert parameter.name in signature[1]
        assert kind
        assert meaning
        assert default == ("required" if parameter.default is parameter.empty else f"`{parameter.default!r}`")


def test_the_page_has_sections_of_queries_alone_and_the_overview_has_them_all():
    assert set(SECTIONS) == set(NAMES)
    overview = table(PAGE, "query")
    assert [code(line[0])[0] for line in overview] == list(SECTIONS)


@pytest.mark.parametrize("name", [name for name, endpoint in ENDPOINTS.items() if endpoint.safe_to_repeat])
def test_every_endpoint_that_only_reads_has_a_section_with_its_call_and_scope(name: str):
    endpoint = ENDPOINTS[name]
    assert fact(name, "call") == f"`{endpoint.method} {endpoint.path}`"
    assert fact(name, "API") == f"`{endpoint.api}`, OAuth scope `{SCOPES[endpoint.api]}`"


def test_every_endpoint_that_changes_something_is_listed_as_never_repeated():
    listed = [(*code(line[0]), *code(line[1])) for line in table(SECTIONS["request"], "call")]
    assert listed == [(f"{e.method} {e.path}", e.api) for e in ENDPOINTS.values() if not e.safe_to_repeat]


@pytest.mark.parametrize("name", TYPED)
def test_the_call_of_a_section_is_the_one_that_planning_makes(name: str):
    call = only_call(name)
    method, path = code(fact(name, "call"))[0].split(" ")
    assert code(fact(name, "API"))[0] == call.api
    assert method == call.method
    # Sections of the path that stand for a code, here of one that the sandbox knows.
    assert re.sub(r"\{\w+\}", "BHP.ASX@TM" if "{security}" in path else "SBX0001", path) == call.path
    (overview,) = (line for line in table(PAGE, "query") if code(line[0]) == [name])
    assert code(overview[1]) == [f"{method} {path}"]


@pytest.mark.parametrize("name", TYPED)
def test_every_field_of_a_schema_is_a_line_with_its_type_and_unit(name: str):
    lines = table(SECTIONS[name], "column")
    fields = ENDPOINTS[name].schema_for({"adjusted": True}).fields
    adjusted = {"adjusted": True} if name == "time_series" else {}
    in_arrow = schema_of(layout_of({**PLANNED[name], **adjusted}))
    assert len(lines) == len(fields)
    for line, field in zip(lines, fields, strict=True):
        column, api_field, kind, stored, unit, key = line
        assert code(column) == [field.name]
        assert code(stored) == [str(in_arrow.field(field.name).type)]
        assert api_field == ("added" if field.api is None else f"`{field.api}`")
        if field.kind is Kind.JSON:
            assert (kind, unit) == ("as sent", "")
        else:
            assert (kind, unit) == (f"`{field.kind.type}`", field.unit)
        assert key == ("key" if field.key else "")
    (overview,) = (line for line in table(PAGE, "query") if code(line[0]) == [name])
    assert code(overview[4]) == [field.name for field in SCHEMAS[name].fields if field.key]


SUBJECTS = {
    name: subject
    for name in TYPED
    for subject in ("securities", "portfolios", "accounts")
    if PLANNED[name].get(subject)
}


@pytest.mark.parametrize("name", SUBJECTS)
def test_one_call_asks_for_as_many_codes_as_the_section_says_and_for_no_more(name: str):
    number = int(fact(name, "one call asks for").split(" ")[0])
    codes = [f"C{each}" for each in range(number + 1)]
    assert len(plan(PLANNED[name] | {SUBJECTS[name]: codes[:-1]})) == 1
    assert len(plan(PLANNED[name] | {SUBJECTS[name]: codes})) == 2


@pytest.mark.parametrize("name", [name for name in TYPED if name not in SUBJECTS])
def test_what_takes_no_codes_is_said_to_ask_for_everything_in_one_call(name: str):
    assert fact(name, "one call asks for") == "everything"
    assert len(plan(PLANNED[name])) == 1


def test_a_limit_that_is_not_known_is_marked_as_inferred():
    marked = {name for name in TYPED if "(inferred)" in fact(name, "one call asks for")}
    assert marked == {"quotes", "portfolio_details", "cash", "positions"}


def test_the_longest_ranges_of_one_call_are_those_that_planning_keeps_to():
    ranges = {name: fact(name, "range of one call") for name, schema in SCHEMAS.items() if schema.time}
    assert ranges == {
        "time_series": "no limit known",
        "intraday_time_series": (
            "7 exchange days for 1 to 6 min, 30 exchange days for 10 to 30 min, 60 exchange days for 60 min"
        ),
        "trades": "1 exchange day",
        "order_trades": "no limit known",
    }
    for interval, most in MAX_DAYS.items():
        assert most == (7 if interval <= 6 else 30 if interval <= 30 else 60)


def cases() -> list[Any]:
    """Return every line of the tables of calls, but for whole exchanges where they are a call a security."""
    found = []
    for name in TYPED:
        lines = table(SECTIONS[name], "when") if "**Calls**" in SECTIONS[name] else [["always", fact(name, "call"), ""]]
        for when, calls, scopes in lines:
            many = when == "`exchange` is given" and ENDPOINTS[name].max_codes is None
            found += [] if many else [pytest.param(name, when, code(calls), code(scopes), id=f"{name}: {when}")]
    return found


WAYS: dict[str, dict[str, Any]] = {
    "always": {},
    "`securities` are given": {"securities": "BHP", "exchange": None},
    "`exchange` is given": {"securities": None, "exchange": "ASX"},
    "`accounts` are given": {"accounts": "SBX0001", "portfolios": None},
    "`portfolios` are given": {"accounts": None, "portfolios": "SBX0001P"},
    "neither is given": {"accounts": "*", "portfolios": None},
}


@pytest.mark.parametrize(("name", "when", "calls", "scopes"), cases())
def test_the_calls_of_a_section_are_those_that_a_server_gets(
    name: str, when: str, calls: list[str], scopes: list[str], openmarkets_sandbox: SandboxServer
):
    sent = requests_of(PLANNED[name] | WAYS[when], openmarkets_sandbox)
    assert sent == set(calls)
    if scopes:
        asked = {scope for scope, count in openmarkets_sandbox.stats()["token_requests"].items() if count}
        assert asked == set(scopes)


@pytest.mark.parametrize("name", TYPED)
def test_raw_records_take_no_call_for_price_multipliers_where_the_section_says_so(
    name: str, openmarkets_sandbox: SandboxServer
):
    information = "POST securities/information/v2"
    rows = requests_of(PLANNED[name], openmarkets_sandbox)
    openmarkets_sandbox.reset()
    raw = requests_of(PLANNED[name] | {"raw": True}, openmarkets_sandbox)
    said = f"With `raw=True` the call `{information}`" in SECTIONS[name]
    assert rows - raw == ({information} if said else set())


def requests_of(query: queries.Query, sandbox: SandboxServer) -> set[str]:
    """Run a query, and return what the sandbox's APIs were asked for, with placeholders for codes."""
    OpenmarketsHook().run(query)
    sent = set()
    for request in sandbox.stats()["by_path"]:
        method, path = request.split(" /")
        api, _, path = path.partition("/")
        if api != "identity":
            path = re.sub(r"/[^/]*@TM/", "/{security}/", re.sub(r"by-account/[^/]*/", "by-account/{account}/", path))
            sent.add(f"{method} {path}")
    return sent


def test_the_example_shows_the_row_that_was_worked_out_by_hand():
    lines = table(PAGE, "API field")
    assert {code(line[0])[0]: code(line[1])[0] for line in lines if line[0] != "added"} == {
        "timeSeriesDate": "2026-01-05",
        "openPrice": "4501",
        "highPrice": "4533.5",
        "lowPrice": "4487",
        "closePrice": "4520",
        "totalVolume": "7103456",
        "totalValue": "320645118.42",
        "tradeCount": "21874",
        "marketVwap": "4513.93",
        "adjustmentFactor": "1",
    }
    assert {code(line[2])[0]: code(line[3])[0] for line in lines} == {
        "security_code": "'BHP'",
        "exchange": "'ASX'",
        "data_source": "'TM'",
        "frequency": "'Daily'",
        "time_series_date": "date(2026, 1, 5)",
        "open_price": "Decimal('45.01')",
        "high_price": "Decimal('45.335')",
        "low_price": "Decimal('44.87')",
        "close_price": "Decimal('45.20')",
        "total_volume": "7103456",
        "total_value": "Decimal('320645118.42')",
        "trade_count": "21874",
        "market_vwap": "Decimal('45.1393')",
        "adjustment_factor": "Decimal('1')",
        "currency": "'AUD'",
        "price_multiplier": "Decimal('0.01')",
        "price_multiplier_assumed": "False",
    }


def test_the_reply_of_the_example_has_the_fields_of_the_api_and_no_others():
    (reply,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    sent = [field.api for field in SCHEMAS["time_series"].fields if field.api is not None]
    assert sorted(re.findall(r'"(\w+)":', reply)) == sorted(sent)


def test_rows_keep_their_types_in_airflows_xcom():
    from tests.support.versions import serde

    _, rows = GENERATOR["example"]()
    rows[0]["at"] = datetime(2026, 1, 4, 23, tzinfo=UTC)
    again = serde.deserialize(serde.serialize(rows))
    assert again == rows
    assert [type(value) for value in again[0].values()] == [type(value) for value in rows[0].values()]
    assert {type(value) for value in again[0].values()} == {str, int, bool, Decimal, date, datetime}


def test_the_hours_at_which_the_clock_changes_are_shown_as_they_were_worked_out_by_hand():
    shown = {code(line[0])[0]: code(line[1])[0] for line in table(PAGE, "written")}
    # Sydney is at UTC+11 until 5 April 2026, 3:00, and again from 4 October, 2:00; at UTC+10 between them.
    assert shown["2026-04-05T02:30:00"] == "2026-04-04T15:30:00+00:00"
    assert shown["2026-10-04T02:30:00"] == "2026-10-03T16:30:00+00:00"
    assert shown["2026-07-06T10:00:00"] == "2026-07-06T00:00:00+00:00"
    assert shown["2026-01-05"] == "2026-01-04T13:00:00+00:00"


def test_the_section_of_request_names_every_api_with_its_scope_and_every_method():
    section = SECTIONS["request"]
    assert {code(line[0])[0]: code(line[1])[0] for line in table(section, "`api`")} == SCOPES
    (line,) = (line for line in table(section, "argument") if code(line[0]) == ["method"])
    assert code(line[3]) == list(METHODS)


def test_every_link_leads_to_a_heading_of_the_page():
    headings = re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)
    anchors = [heading.lower().replace(" ", "-") for heading in headings]
    assert len(set(anchors)) == len(anchors)
    links = re.findall(r"\]\(([^)]*)\)", PAGE)
    assert len(links) > len(NAMES)
    assert {link.removeprefix("#") for link in links} <= set(anchors)


def test_tables_are_whole_and_no_cell_is_wide():
    found = tables(PAGE)
    assert len(found) > 2 * len(TYPED)
    for lines in found:
        for line in lines:
            assert len(line) == len(lines[0]), line
            for cell in line:
                shown = re.sub(r"\]\([^)]*\)", "]", cell)
                assert max(map(len, shown.split("<br>"))) <= 110, cell


def test_nothing_of_the_docstrings_own_mark_up_is_left():
    text = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
    assert not re.findall(r"``|:func:|:class:|:mod:|:meth:|:param|see the module|docs/queries\.md lists", text)
