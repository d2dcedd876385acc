"""docs/errors.md has every message of the code, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import openmarkets_provider
from openmarkets_provider import exceptions

PACKAGE = Path(openmarkets_provider.__file__).parent
PAGE = (Path(__file__).parent.parent / "docs" / "errors.md").read_text()

GAP = "\0"
"""Stands for what is only known when the message is made."""
QUIET = ("debug", "info", "INFO")
"""The page leaves these out: nothing went wrong."""
NO_MESSAGES = (
    "query/endpoints.py",
    "query/schema.py",
    "testing/store_contract.py",
    "get_provider_info.py",
    "cli.py",
    "sandbox/accounts.py",
    "sandbox/data.py",
    "sandbox/securities.py",
)
"""Columns and their units; the store contract; texts of the form and of the command line; invented data."""
NOTHING_WRONG = (
    # What Airflow shows of a value, a Variable or a good connection.
    "Token(scope=",
    "TokenEntry(token=",
    "Shared by the tasks of the Openmarkets provider",
    "Access token obtained from",
    "remove them under",
    "airflow-provider-openmarkets/",
    # How a schedule describes itself.
    "Trading days, ",
    # Units of columns that hold what has no schema.
    "as the API sends it",
    "fields that the schema does not know",
    "exchange date",
    "exchange month",
    "exchange year",
    "the task instance that loaded the row",
    # A warning of a library that is not shown.
    "Delete operation did not match",
    # SQL and Lua.
    "local owner",
    "SELECT ",
    "PRAGMA ",
    "SET LOCAL",
    "SET SESSION",
    # What the sandbox says of itself, and an announcement.
    "python -m openmarkets_provider.sandbox",
    "A local stand-in",
    "address to listen on",
    "0 picks",
    "how long a token",
    "delay of answers",
    "serve HTTPS",
    "host in the URLs",
    "time at which the sandbox",
    "Openmarkets sandbox: a stand-in",
    "Connection Type",
    "Identity port",
    "Test (stage, UAT)",
    "Test environment only",
    "Market data URL",
    "In Airflow's form",
    "Or in the shell",
    "Published announcement",
    "Bearer error",
    # Caught by its own module.
    "a number that needs a closer look",
    "not a number",
    "no look-up",
    "The upload was stopped.",
    "on hold for ",
    "The coroutine waits for an event loop.",
    # Values within a message, in words.
    "a value of type",
    "Redis (connection",
    "and \0 more",
    ", and \0 more",
    "\0 (set by TMPDIR)",
    "the temporary folder (set by TMPDIR)",
    "POST connect/token",
    "no content type",
    "\0, items \0, key ",
    "Watching \0 (",
    "\0 is \0; the result ",
    "\0 \0 from \0 on",
    "(state == ",
    "[?order_number == ",
    "limit or orders.market",
    # What a page says of an order.
    "\0 \0 \0 for account \0?",
    "Trading status",
    "The order was sent, or may have been",
    "The list of orders has the tags of",
    "Was order \0 of account",
    "\0Look for it at Openmarkets",
    "It may be order \0",
    "It is order",
    "Not placed: send it",
    "Send nothing",
    "Price (dollars)",
    "Price (native units)",
    "Value (dollars)",
    "Last price (dollars)",
    "Collar (dollars)",
    "Orders: ",
    "all accounts",
    "; at most \0 dollars",
    # What Airflow says, which is looked for.
    "Trigger timeout",
    "Trigger/execution timeout",
)
"""How literals begin that read like messages and are none."""


class Template(NamedTuple):
    """A literal of the source that a user may read when something went wrong.

    :ivar text: with :data:`GAP` for each value.
    """

    where: str
    text: str


def text_of(node: ast.expr) -> str | None:
    """Return a literal with gaps; None for what is no text."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else GAP for part in node.values)
    return None


def words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z][a-z]+", text)


def quiet(call: ast.Call) -> bool:
    names = [call.func, *call.args[:1]]
    return any(isinstance(name, ast.Attribute) and name.attr in QUIET for name in names)


def literals(node: ast.AST) -> Iterator[ast.expr]:
    """Find the texts below a node, but docstrings and what goes to a log as no trouble."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
            continue
        if isinstance(child, ast.Call) and quiet(child):
            continue
        if isinstance(child, ast.expr) and text_of(child) is not None:
            yield child
        else:
            yield from literals(child)


def texts() -> Iterator[Template]:
    for path in sorted(PACKAGE.rglob("*.py")):
        where = path.relative_to(PACKAGE).as_posix()
        if where in NO_MESSAGES:
            continue
        for node in literals(ast.parse(path.read_text())):
            text = re.sub(r"%[.\d]*[srdfg]", GAP, str(text_of(node)))
            if words(text) and " " in text:
                yield Template(f"{where}:{node.lineno}", text)


def entries() -> list[tuple[str, str]]:
    """Return the messages of each entry, and what the page explains below a hard break."""
    items = re.findall(r"^- (`.*\n(?:  .*\n)*)", PAGE, re.MULTILINE)
    return [(head, explanation) for head, _, explanation in (item.partition("\\\n") for item in items)]


def messages() -> list[str]:
    """Return the code at the start of each entry, with gaps."""
    found = []
    for head, _ in entries():
        for _, code in re.findall(r"(`+) ?(.+?) ?\1(?!`)", head, re.DOTALL):
            found.append(re.sub(r"<[\w ,.]+>", GAP, re.sub(r"\s+", " ", code)))
    return found


@cache
def pattern_of(template: str) -> re.Pattern[str]:
    return re.compile(".*?".join(map(re.escape, re.sub(r"\s+", " ", template).strip().split(GAP))))


def occurs_in(template: str, message: str) -> bool:
    """Return whether a message contains a literal, with any values in its gaps."""
    return pattern_of(template).search(message) is not None


TEXTS = list(texts())
TEMPLATES = [each for each in TEXTS if len(words(each.text)) > 1 and not each.text.strip().startswith(NOTHING_WRONG)]
MESSAGES = messages()


def test_every_message_of_the_code_has_an_entry():
    missing = [each for each in TEMPLATES if not any(occurs_in(each.text, message) for message in MESSAGES)]
    assert not missing, "docs/errors.md lacks " + "\n".join(
        f"{where}: {text.replace(GAP, '<...>')}" for where, text in missing
    )


@pytest.mark.parametrize("message", MESSAGES)
def test_every_entry_says_what_the_code_says(message: str):
    said = {word for each in TEXTS if occurs_in(each.text, message) for word in words(each.text)}
    assert set(words(message)) - said == set()


def test_no_message_stands_twice():
    assert sorted(MESSAGES) == sorted(set(MESSAGES))


@pytest.mark.parametrize("part", NOTHING_WRONG)
def test_what_is_left_out_is_still_there(part: str):
    assert any(each.text.strip().startswith(part) for each in TEXTS)


def test_an_entry_is_a_message_alone_or_has_an_explanation_in_sentences():
    assert entries()
    for head, explanation in entries():
        assert re.fullmatch(r"\s*|  \S.*[.:?)]\n", explanation, re.DOTALL), head


def test_every_class_is_in_the_table_with_whether_it_is_transient():
    rows = dict(re.findall(r"^\| `(Openmarkets\w+)` \| ([^|]+) \|", PAGE, re.MULTILINE))
    classes = [
        each
        for each in vars(exceptions).values()
        if isinstance(each, type) and issubclass(each, exceptions.OpenmarketsError)
    ]
    assert rows.keys() == {each.__name__ for each in classes}
    for each in classes:
        assert rows[each.__name__] in (("yes",) if each.transient else ("no", "as the instance says"))
