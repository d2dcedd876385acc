"""docs/queries.md says what the code does."""

from __future__ import annotations

import inspect
import re
import runpy
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

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


class Call(NamedTuple):
    """One of the calls that a section lists.

    :ivar call: method and path.
    :ivar purpose: what each such call is for; empty where the section has no number.
    :ivar notes: when it is made.
    """

    call: str
    purpose: str
    notes: list[str]

    def is_made(self, when: str, *, raw: bool = False) -> bool:
        """Tell whether a run makes it whose records have a price multiplier."""
        made = not raw or "not with `raw=True`" not in self.notes
        for note in self.notes:
            if note == "for records without a price multiplier" or (
                note.startswith("with ") and note != f"with {when}"
            ):
                made = False
        return made and f"not with {when}" not in self.notes


def calls_of(name: str) -> list[Call]:
    found = [
        re.fullmatch(r"`(.*?)`((?: for each [\w ]+(?: \(inferred\))?)?)(?: \((.*)\))?", part)
        for part in fact(name, "calls").split(", then ")
    ]
    return [Call(match[1], match[2], (match[3] or "").split("; ")) for match in found if match]


def own_call(name: str) -> Call:
    (own,) = (each for each in calls_of(name) if each.call == f"{ENDPOINTS[name].method} {ENDPOINTS[name].path}")
    return own


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
    signature = re.search(rf"^```text\n{name}\((.*)\)\n```$", section, re.MULTILINE)
    assert signature is not None
    common = {code(line[0])[0]: line for line in table(PAGE.partition("## securities")[0], "argument")}
    own = {code(line[0])[0]: line for lines in tables(section) if lines[0][0] == "argument" for line in lines[1:]}
    parameters = inspect.signature(function).parameters
    assert own.keys() <= parameters.keys() <= own.keys() | common.keys()
    assert ("[common](#common-arguments)" in section) == (own.keys() != parameters.keys())
    for parameter in parameters.values():
        _, kind, meaning = (common | own)[parameter.name]
        assert kind
        assert meaning
        has_default = parameter.default is not parameter.empty
        shown = f"{parameter.name}={parameter.default!r}" if has_default else parameter.name
        assert shown in signature[1].split(", ")


def test_common_arguments_are_those_of_several_queries_with_the_same_meaning():
    common = table(PAGE.partition("## securities")[0], "argument")
    assert {code(line[0])[0] for line in common} == {
        "securities",
        "exchange",
        "on_invalid",
        "session",
        "accounts",
        "portfolios",
        "on_missing_multiplier",
        "on_missing_field",
        "raw",
    }


def test_the_page_has_sections_of_queries_alone_and_the_overview_has_them_all():
    assert set(SECTIONS) == set(NAMES)
    overview = dict(re.findall(r"^- (.*?): (\[.*)$", PAGE.partition("## ")[0], re.MULTILINE))
    assert [name for names in overview.values() for name in code(names)] == list(SECTIONS)
    for api, names in overview.items():
        for name in code(names):
            assert api == (f"`{ENDPOINTS[name].api}`" if name in ENDPOINTS else "any API")


@pytest.mark.parametrize("name", [name for name, endpoint in ENDPOINTS.items() if endpoint.safe_to_repeat])
def test_every_endpoint_that_only_reads_has_a_section_with_its_call_and_scope(name: str):
    assert own_call(name)
    assert fact(name, "scope") == f"`{SCOPES[ENDPOINTS[name].api]}`"


def test_every_endpoint_that_changes_something_is_listed_as_never_repeated():
    listed = [(*code(line[0]), *code(line[1])) for line in table(SECTIONS["request"], "call")]
    assert listed == [(f"{e.method} {e.path}", e.api) for e in ENDPOINTS.values() if not e.safe_to_repeat]


@pytest.mark.parametrize("name", TYPED)
def test_the_call_of_a_section_is_the_one_that_planning_makes(name: str):
    call = only_call(name)
    method, path = own_call(name).call.split(" ")
    assert method == call.method
    # Sections of the path that stand for a code, here of one that the sandbox knows.
    assert re.sub(r"\{\w+\}", "BHP.ASX@TM" if "{security}" in path else "SBX0001", path) == call.path


@pytest.mark.parametrize("name", TYPED)
def test_every_field_of_a_schema_is_a_line_with_its_type_and_unit(name: str):
    kinds = {line[0]: line[1:] for line in table(PAGE, "kind")}
    lines = table(SECTIONS[name], "column")
    fields = ENDPOINTS[name].schema_for({"adjusted": True}).fields
    adjusted = {"adjusted": True} if name == "time_series" else {}
    in_arrow = schema_of(layout_of({**PLANNED[name], **adjusted}))
    assert len(lines) == len(fields)
    for line, field in zip(lines, fields, strict=True):
        column, kind, api_field = line
        assert code(column) == [field.name]
        assert kind == field.kind.name.lower().replace("_", " ")
        added = f"added: {field.note}" if field.note else "added"
        assert api_field == (added if field.api is None else f"`{field.api}`")
        type_name, stored, unit = kinds[kind]
        assert (type_name, unit) == (f"`{field.kind.type}`", field.kind.unit)
        usual, *others = stored.split("<br>")
        stored = next((other for other in others if field.name in code(other)), usual)
        assert code(stored)[0] == str(in_arrow.field(field.name).type)
    assert code(fact(name, "key")) == [field.name for field in SCHEMAS[name].fields if field.key]


def test_kinds_are_listed_in_their_order():
    assert [line[0] for line in table(PAGE, "kind")] == [kind.name.lower().replace("_", " ") for kind in Kind]


SUBJECTS = {
    name: subject
    for name in TYPED
    for subject in ("securities", "portfolios", "accounts")
    if PLANNED[name].get(subject)
}


@pytest.mark.parametrize("name", SUBJECTS)
def test_one_call_asks_for_as_many_codes_as_the_section_says_and_for_no_more(name: str):
    words = own_call(name).purpose.removeprefix(" for each ").split(" ")
    number = int(words[0]) if words[0].isdecimal() else 1
    codes = [f"C{each}" for each in range(number + 1)]
    assert len(plan(PLANNED[name] | {SUBJECTS[name]: codes[:-1]})) == 1
    assert len(plan(PLANNED[name] | {SUBJECTS[name]: codes})) == 2


@pytest.mark.parametrize("name", [name for name in TYPED if name not in SUBJECTS])
def test_what_takes_no_codes_is_one_call(name: str):
    assert own_call(name).purpose == ""
    assert len(plan(PLANNED[name])) == 1


def test_a_limit_that_is_not_known_is_marked_as_inferred():
    marked = {name for name in TYPED if "(inferred)" in own_call(name).purpose}
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


WAYS: dict[str, dict[str, Any]] = {
    "`securities`": {"securities": "BHP", "exchange": None},
    "`exchange`": {"securities": None, "exchange": "ASX"},
    "`accounts`": {"accounts": "SBX0001", "portfolios": None},
    "`portfolios`": {"accounts": None, "portfolios": "SBX0001P"},
    '`accounts="*"`': {"accounts": "*", "portfolios": None},
}


def cases() -> list[Any]:
    """Return the ways to ask each query, but for whole exchanges where they are a call for each security."""
    found = []
    for name in TYPED:
        ways = [
            way for way, arguments in WAYS.items() if ENDPOINTS[name].subject and arguments.keys() <= {*PLANNED[name]}
        ]
        if ENDPOINTS[name].subject == "securities" and ENDPOINTS[name].max_codes is None:
            ways.remove("`exchange`")
        found += [pytest.param(name, way, id=f"{name}: {way}") for way in ways or [""]]
    return found


@pytest.mark.parametrize(("name", "when"), cases())
def test_the_calls_of_a_section_are_those_that_a_server_gets(name: str, when: str, openmarkets_sandbox: SandboxServer):
    calls = [each for each in calls_of(name) if each.is_made(when)]
    assert requests_of(PLANNED[name] | WAYS.get(when, {}), openmarkets_sandbox) == {each.call for each in calls}
    asked = {scope for scope, count in openmarkets_sandbox.stats()["token_requests"].items() if count}
    scopes = [code(note)[0] for each in calls for note in each.notes if note.startswith("scope ")]
    assert asked == {*code(fact(name, "scope")), *scopes}


@pytest.mark.parametrize("name", TYPED)
def test_raw_records_take_no_call_for_price_multipliers_where_the_section_says_so(
    name: str, openmarkets_sandbox: SandboxServer
):
    when = next((way for way, chosen in WAYS.items() if chosen.items() <= PLANNED[name].items()), "")
    raw = requests_of(PLANNED[name] | {"raw": True}, openmarkets_sandbox)
    assert raw == {each.call for each in calls_of(name) if each.is_made(when, raw=True)}


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
    sent = [field.api for field in SCHEMAS["time_series"].fields if field.api is not None]
    record, _ = GENERATOR["example"]()
    assert sorted(record) == sorted(sent)


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
    assert code(line[2]) == list(METHODS)


def test_every_link_leads_to_a_heading_of_the_page():
    headings = re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)
    anchors = [heading.lower().replace(" ", "-") for heading in headings]
    assert len(set(anchors)) == len(anchors)
    links = re.findall(r"\]\(([^)]*)\)", PAGE)
    assert len(links) > len(NAMES)
    assert {link.removeprefix("#") for link in links} <= set(anchors)


def test_tables_are_whole_and_no_cell_is_wide():
    found = tables(PAGE)
    assert len(found) > len(TYPED)
    for lines in found:
        for line in lines:
            assert len(line) == len(lines[0]), line
            for cell in line:
                shown = re.sub(r"\]\([^)]*\)", "]", cell)
                assert max(map(len, shown.split("<br>"))) <= 110, cell


def test_nothing_of_the_docstrings_own_mark_up_is_left():
    text = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
    assert not re.findall(r"``|:func:|:class:|:mod:|:meth:|:param|see the module|docs/queries\.md lists", text)
