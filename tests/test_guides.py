"""What the reference pages say is so: connection, tokens, security, questions, and the comparison with plain HTTP."""

from __future__ import annotations

import ast
import csv
import inspect
import io
import json
import re
import shlex
import ssl
import xml.etree.ElementTree as ET
from collections.abc import Callable
from configparser import ConfigParser
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import trustme
from airflow.providers.common.compat.sdk import Connection

from openmarkets_provider import queries
from openmarkets_provider.client import exchange, settings
from openmarkets_provider.client.auth import token as tokens
from openmarkets_provider.client.auth.token_request import MAX_LIFETIME, MAX_TOKEN_REPLY, read_token_reply
from openmarkets_provider.client.cache import clock
from openmarkets_provider.client.cache import fallback as fallback_store
from openmarkets_provider.client.cache import file as file_store
from openmarkets_provider.client.cache import redis as redis_store
from openmarkets_provider.client.client import LOCK_GRACE
from openmarkets_provider.client.environments import ENVIRONMENTS, SCOPES
from openmarkets_provider.client.http.body import MAX_REPLY
from openmarkets_provider.client.http.deadline import CONNECT_TIMEOUT
from openmarkets_provider.client.http.replies import MAX_TEXT
from openmarkets_provider.exceptions import (
    OpenmarketsError,
    OpenmarketsTransportError,
)
from openmarkets_provider.get_provider_info import CONNECTION_FIELDS, RELABELING
from openmarkets_provider.hooks import _variable_store
from openmarkets_provider.hooks._connection_settings import make_settings
from openmarkets_provider.hooks._token_cache import cache_dir, store_of
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
from openmarkets_provider.policies import _waits
from openmarkets_provider.sandbox.server import SandboxServer
from openmarkets_provider.sensors.openmarkets import MAX_FAILURES
from openmarkets_provider.transfers.openmarkets_to_object_storage import OpenmarketsToObjectStorageOperator
from openmarkets_provider.triggers import _connections
from openmarkets_provider.xcom import DEFAULT_MAX_XCOM_BYTES
from tests.support import hostile
from tests.support.context import context
from tests.support.hostile import HostileServer
from tests.support.processes import in_processes
from tests.support.versions import secrets_masker
from tests.test_docs import code, table

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {name: (DOCS / f"{name}.md").read_text() for name in ("connection", "tokens", "security", "faq", "comparison")}
PROSE = {name: " ".join(page.split()) for name, page in PAGES.items()}
DIAGRAM = DOCS / "images" / "token-lifecycle.svg"
EXTRA = "`extra`: "
SECRETS = ("my-id", "my-secret")


# All pages


def block_of(page: str, text: str) -> dict[str, Any]:
    """Run the one block of a page that has a text in it."""
    (block,) = (block for block in re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL) if text in block)
    names: dict[str, Any] = {}
    exec(compile(block, f"{page}.md", "exec"), names)
    return names


def anchors(page: Path) -> set[str]:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_one_title_and_every_link_leads_somewhere(name: str):
    text = re.sub(r"```.*?```", "", PAGES[name], flags=re.DOTALL)
    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        page = (DOCS / path).resolve() if path else DOCS / f"{name}.md"
        assert page.is_file(), target
        assert not anchor or anchor in anchors(page), target


@pytest.mark.parametrize("name", PAGES)
def test_tables_have_as_many_cells_in_each_line_as_heads(name: str):
    for block in re.findall(r"(?:^\|.*\|\n)+", PAGES[name], re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1, block


# The connection

FIELDS = {line[0]: line[1:] for line in table(PAGES["connection"], "field")}
SECTIONS = dict(re.findall(r"^### (.*?)\n(.*?)(?=^##|\Z)", PAGES["connection"], re.DOTALL | re.MULTILINE))
KINDS = {"string": {"text", "URL", "path"}, "number": {"number"}, "array": {"list of texts"}}


def test_the_table_has_every_field_with_its_place_and_type_and_no_other():
    standard = {label: f"`{name}`" for name, label in RELABELING.items()}
    extra = {field["label"]: f"{EXTRA}`{name}`" for name, field in CONNECTION_FIELDS.items()}
    assert {label: place for label, (place, _, _) in FIELDS.items()} == standard | extra
    assert list(FIELDS)[len(standard) :] == list(extra)
    for name, field in CONNECTION_FIELDS.items():
        kind = FIELDS[field["label"]][1]
        assert kind in KINDS[field["schema"]["type"][0]]
        assert (kind == "URL") == name.endswith("_url")


def test_the_defaults_are_those_of_the_settings():
    made = make_settings(Connection(conn_id="om", conn_type="openmarkets", login="my-id", password="my-secret"))
    environment = ENVIRONMENTS[made.environment]
    for name, field in CONNECTION_FIELDS.items():
        default, said = getattr(made, name), FIELDS[field["label"]][2]
        if name.endswith("_url"):
            assert said == "the environment's"
            assert default == environment.api_urls[name.removesuffix("_url")]
        elif name == "cache_backend":
            assert code(said) == [store_of(made).name]
        elif not default:
            assert code(said) in ([], ["redis_default", "redis"])
        else:
            shown = list(default) if isinstance(default, tuple) else [f"{default:g}" if name == "timeout" else default]
            assert code(said) == shown
    assert made.identity_url == environment.identity_url
    assert {FIELDS[RELABELING[name]][2] for name in ("login", "password")} == {"required"}
    with_redis = settings.Settings(client_id="i", client_secret="s", cache_backend="redis")
    assert [with_redis.redis_conn_id, "redis"] == code(FIELDS["Redis connection"][2])


def test_every_field_has_a_section_with_what_is_allowed_and_when_to_use_it():
    assert list(SECTIONS) == list(FIELDS)
    for name, field in CONNECTION_FIELDS.items():
        section = SECTIONS[field["label"]]
        allowed = re.search(r"^- \*\*Allowed:\*\* (.*)$", section, re.MULTILINE)
        assert allowed is not None
        assert re.search(r"^- \*\*Use:\*\* \S", section, re.MULTILINE)
        if known := field["schema"].get("enum") or field["schema"].get("examples"):
            assert code(allowed[1]) == known, name


def test_the_bounds_of_the_timeout_are_those_of_the_code():
    section = " ".join(SECTIONS["Timeout (seconds)"].split())
    assert f"more than 0, at most {settings.MAX_TIMEOUT:g}; the form takes 1 or more." in section
    assert CONNECTION_FIELDS["timeout"]["schema"]["minimum"] == 1
    assert f"connecting may take {CONNECT_TIMEOUT:g} seconds" in section


@pytest.mark.parametrize("name", CONNECTION_FIELDS)
def test_the_example_of_a_field_of_extra_is_taken_and_is_not_the_default(name: str, tmp_path: Path):
    (shown,) = re.findall(r"^- \*\*Example:\*\* `(.*)`$", SECTIONS[CONNECTION_FIELDS[name]["label"]], re.MULTILINE)
    extra = json.loads(shown)
    if name == "ca_bundle":
        extra[name] = str(tmp_path / "company.pem")
        Path(extra[name]).touch()
    given = {"conn_id": "om", "conn_type": "openmarkets", "login": "my-id", "password": "my-secret"}
    made, default = make_settings(Connection(extra=json.dumps(extra), **given)), make_settings(Connection(**given))
    assert name in extra
    assert getattr(made, name) != getattr(default, name)


def test_the_urls_of_the_environments_are_those_of_the_code():
    lines = {code(line[0])[0]: [code(cell)[0] for cell in line[1:]] for line in table(PAGES["connection"], "URL")}
    assert lines["identity_url"] == [ENVIRONMENTS[name].identity_url for name in ("production", "test")]
    for api in SCOPES:
        assert lines[f"{api}_url"] == [ENVIRONMENTS[name].api_urls[api] for name in ("production", "test")]
    assert len(lines) == 1 + len(SCOPES)


SHELL = re.findall(r"```console\n(.*?)```", PAGES["connection"], re.DOTALL)
WAYS = {
    "json": SHELL[0],
    "uri": SHELL[1],
    "command line": SHELL[2],
    "secrets backend": re.findall(r"```json\n(.*?)```", PAGES["connection"], re.DOTALL)[0],
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_make_a_connection_gives_the_same(way: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    if way in ("json", "uri"):
        name, _, value = shlex.split(WAYS[way])[1].partition("=")
        monkeypatch.setenv(name, value)
        made = OpenmarketsHook().client.settings
    elif way == "command line":
        made = make_settings(added_by(shlex.split(WAYS[way])))
    else:
        made = make_settings(found_in_secrets_backend(WAYS[way], tmp_path))
    assert (made.client_id, made.client_secret) == SECRETS
    assert (made.environment, made.scopes, made.timeout) == ("test", ("market-data-api", "oms-api"), 60)


def added_by(command: list[str]) -> Connection:
    from airflow.cli import cli_parser

    assert command[0] == "airflow"
    given = vars(cli_parser.get_parser().parse_args(command[1:]))
    fields = ("conn_id", "conn_type", "conn_login", "conn_password", "conn_extra")
    conn_id, conn_type, login, password, extra = (given[name] for name in fields)
    return Connection(conn_id=conn_id, conn_type=conn_type, login=login, password=password, extra=extra)


def found_in_secrets_backend(file: str, folder: Path) -> Any:
    from importlib import import_module

    config = ConfigParser()
    config.read_string(re.findall(r"```ini\n(.*?)```", PAGES["connection"], re.DOTALL)[0])
    module, _, name = config["secrets"]["backend"].rpartition(".")
    arguments = json.loads(config["secrets"]["backend_kwargs"])
    path = folder / Path(arguments["connections_file_path"]).name
    path.write_text(file)
    backend = getattr(import_module(module), name)(**arguments | {"connections_file_path": str(path)})
    return backend.get_connection("openmarkets_default")


def test_a_uri_may_name_the_identity_server(monkeypatch: pytest.MonkeyPatch):
    (uri,) = re.findall(r"`(openmarkets://[^`]*)`", PAGES["connection"])
    monkeypatch.setenv("AIRFLOW_CONN_OPENMARKETS_DEFAULT", uri)
    assert OpenmarketsHook().client.settings.identity_url == "https://identity.example.com:8443"


# Words are added from version to version.
@pytest.mark.since("3.3")
def test_airflow_masks_by_the_words_that_are_named_and_no_field_has_one():
    section = PROSE["connection"].partition("## What Airflow masks")[2].partition("## Test")[0]
    words = [word for word in code(section.partition(" is `***`")[0]) if word != "***"]
    assert words == ["secret", "token", "password", "proxy"]
    assert all(secrets_masker.should_hide_value_for_key(f"a_{word}_b") for word in words)
    assert not any(map(secrets_masker.should_hide_value_for_key, CONNECTION_FIELDS))


@pytest.mark.since("3.3")
def test_airflow_masks_a_secret_of_five_characters_and_no_shorter_one():
    assert "unless it is shorter than five characters" in PROSE["connection"]
    masker = secrets_masker.SecretsMasker()
    masker.add_mask("q9%x!")
    masker.add_mask("z8#w")
    assert masker.redact("q9%x! z8#w") == "*** z8#w"


# The button Test

SAID = [code(line[0])[0] for line in table(PAGES["connection"], "it says")]


def as_pattern(message: str) -> str:
    return "".join(".+" if part.startswith("<") else re.escape(part) for part in re.split(r"(<\w+>)", message))


def ask(monkeypatch: pytest.MonkeyPatch, made: dict[str, Any]) -> tuple[bool, str]:
    monkeypatch.setenv("AIRFLOW_CONN_OPENMARKETS_DEFAULT", json.dumps(made))
    return OpenmarketsHook().test_connection()


def other_client(made: dict[str, Any]) -> None:
    made |= {"login": "sandbox-market-data-client", "password": "sandbox-market-data-secret"}


def wrong_secret(made: dict[str, Any]) -> None:
    made["password"] = "wrong-secret"


def nobody_there(made: dict[str, Any]) -> None:
    made["host"] = "http://127.0.0.1:9"


def unknown_field(made: dict[str, Any]) -> None:
    made["extra"]["enviroment"] = "test"


def as_it_is(made: dict[str, Any]) -> None:
    pass


NO_TOKEN = {"kind": "body", "body": {}}
IN_TROUBLE = {"kind": "status", "status": 503}
BLOCKED = {"kind": "status", "status": 403, "body": "<html>"}
ELSEWHERE = {"kind": "status", "status": 302, "headers": {"Location": "/login"}}


@pytest.mark.parametrize(
    ("number", "change", "fault"),
    [
        (0, as_it_is, None),
        (1, other_client, None),
        (2, wrong_secret, None),
        (3, nobody_there, None),
        (5, as_it_is, IN_TROUBLE),
        (6, as_it_is, NO_TOKEN),
        (7, as_it_is, BLOCKED),
        (8, as_it_is, ELSEWHERE),
        (9, unknown_field, None),
    ],
)
def test_what_the_button_says(
    number: int, change: Callable[..., None], fault: Any, monkeypatch: pytest.MonkeyPatch, openmarkets_sandbox
):
    made = openmarkets_sandbox.connection
    change(made)
    if fault is not None:
        openmarkets_sandbox.fault(target="identity", **fault)
    good, message = ask(monkeypatch, made)
    assert good == (number == 0)
    assert [which for which, said in enumerate(SAID) if re.match(as_pattern(said), message)][-1] == number


def test_what_the_button_says_of_a_certificate_that_it_does_not_know(monkeypatch, openmarkets_sandbox):
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(tls)
    with HostileServer(hostile.answering(hostile.reply()), tls=tls) as server:
        made = openmarkets_sandbox.connection | {"host": f"https://127.0.0.1:{server.port}"}
        good, message = ask(monkeypatch, made)
    assert not good
    assert re.fullmatch(as_pattern(SAID[4]), message)
    assert len(SAID) == 10


def test_the_button_sends_nothing_to_the_urls_of_extra(monkeypatch: pytest.MonkeyPatch, openmarkets_sandbox):
    with HostileServer(hostile.answering(hostile.reply())) as elsewhere:
        made = openmarkets_sandbox.connection
        urls = {name: elsewhere.url for name in CONNECTION_FIELDS if name.endswith("_url")}
        assert len(urls) == len(SCOPES)
        made["extra"] |= urls
        assert ask(monkeypatch, made)[0]
        assert elsewhere.connections == 0


# Tokens


def failed(status: int, body: bytes = b"{}") -> OpenmarketsError:
    with pytest.raises(OpenmarketsError) as raised:
        read_token_reply("oms-api", status, {}, body)
    return raised.value


HOUR, MINUTE = 3600.0, 60.0
FIGURES: list[tuple[str, Any, Any]] = [
    ("the connection's `timeout` plus 5 seconds", LOCK_GRACE, 5),
    ("at most 64 KiB of the reply are read", MAX_TOKEN_REPLY, 64 << 10),
    ("until 300 seconds are left", tokens.REFRESH_AHEAD, 300),
    ("until 30 seconds are left", tokens.MARGIN, 30),
    ("the last fifth replaces 300 seconds and the last tenth replaces 30", tokens.REFRESH_AHEAD, 300),
    ("or more than 31 days", MAX_LIFETIME, 31 * 24 * HOUR),
    ("the lifetime is 60 seconds", tokens.UNKNOWN_LIFETIME, MINUTE),
    ("rejects a replacement, too, within 30 seconds", tokens.REPLACEMENT_TRIAL, 30),
    ("up to an hour (3600 seconds)", tokens.MAX_FAILURE, HOUR),
    ("4 attempts,", exchange.MAX_ATTEMPTS, 4),
    ("would have to wait for more than 60 seconds", exchange.MAX_SERVER_WAIT, 60),
    ("is deleted an hour (3600 seconds) after its last use", file_store.SWEEP_AFTER, HOUR),
    ("Redis deletes an entry 60 seconds after its end", redis_store.CLOCK_TOLERANCE, 60),
    ("A time up to 60 seconds in the future", clock.CLOCK_SKEW, 60),
    ("tries the store again every 5 seconds", fallback_store.RETRY_SECONDS, 5),
    ("has 1 second to connect or answer;", redis_store.TIMEOUT, 1),
    ("a lock in it expires 5 seconds after its owner is gone", redis_store.LEASE, 5),
    ("Airflow has 30 seconds to answer", _variable_store.TIMEOUT, 30),
    ("A single task thus sends 4 token requests", exchange.MAX_ATTEMPTS, 4),
]
SHORT_LIFE = "A token of 60 seconds is refreshed from 12 seconds before its end, and not sent in the last 6"


@pytest.mark.parametrize(("sentence", "figure", "value"), FIGURES)
def test_the_figures_of_the_page_on_tokens_are_those_of_the_code(sentence: str, figure: float, value: float):
    assert sentence in PROSE["tokens"]
    assert figure == value


def decision_after(lifetime: float, seconds: float) -> tokens.Decision:
    start, at = clock.Instant(0, 0, "boot"), clock.Instant(seconds, seconds, "boot")
    return tokens.decide(tokens.TokenEntry(start, tokens.Token("t", "oms-api", start, lifetime)), at, None)[0]


@pytest.mark.parametrize(
    ("lifetime", "refresh", "end"), [(HOUR, HOUR - 300, HOUR - 30), (MINUTE, MINUTE - 12, MINUTE - 6)]
)
def test_a_token_is_used_then_refreshed_then_dropped_as_the_page_says(lifetime: float, refresh: float, end: float):
    assert SHORT_LIFE in PROSE["tokens"]
    moments = (refresh - 0.1, refresh + 0.1, end - 0.1, end + 0.1)
    decisions = [decision_after(lifetime, moment) for moment in moments]
    assert decisions == [tokens.Decision.USE, tokens.Decision.REFRESH, tokens.Decision.REFRESH, tokens.Decision.REQUEST]


def held(error: OpenmarketsError) -> float:
    return tokens.failure_seconds(error)


def test_failures_are_held_for_as_long_as_the_page_and_the_diagram_say():
    lines = {line[0]: float(line[1]) for line in table(PAGES["tokens"], "the identity server")}
    assert lines == {
        "400, such as `invalid_scope`": held(failed(400, b'{"error": "invalid_scope"}')),
        "401 or another refusal; a redirect; JSON without a token": held(failed(401)),
        "a page (no JSON object), or a 403 without an error code of OAuth": held(failed(403)),
        "429 that does not say for how long": held(failed(429)),
        "408, 425, 5xx, or no answer": held(failed(503)),
    }
    assert {held(failed(status, b'{"title": "no"}')) for status in (401, 404, 302, 200)} == {60}
    assert {held(failed(status, b"<html>")) for status in (400, 403, 404, 200)} == {5}
    assert {held(failed(status)) for status in (408, 425, 500, 503)} == {2}
    assert held(OpenmarketsTransportError("no answer")) == 2
    said = drawn()
    for seconds, what in ((300, "400"), (60, "401"), (5, "429"), (2, "5xx")):
        assert said[said.index(f"{seconds} s") + 1].startswith(what)


def test_there_is_no_other_figure_on_the_page_on_tokens():
    prose = re.sub(r"```.*?```", "", PAGES["tokens"], flags=re.DOTALL)
    prose = re.sub(r"^\d\. |^\|.*\|$|\]\([^)]*\)", "", prose, flags=re.MULTILINE)
    prose = " ".join(prose.split())
    for sentence in (SHORT_LIFE, *(sentence for sentence, _, _ in FIGURES)):
        prose = prose.replace(sentence, "")
    for version in ("OAuth 2.0", "Airflow 3.4"):
        assert version in prose
        prose = prose.replace(version, "")
    assert set(re.findall(r"\d+", prose)) == {"401", "403"}


def drawn() -> list[str]:
    return ["".join(text.itertext()) for text in ET.parse(DIAGRAM).iter("{http://www.w3.org/2000/svg}text")]


def test_the_diagram_has_title_and_description_and_the_figures_of_the_code():
    picture = ET.parse(DIAGRAM).getroot()
    for name in ("title", "desc"):
        (said,) = picture.findall(f"{{http://www.w3.org/2000/svg}}{name}")
        assert said.text
        assert said.get("id") in picture.get("aria-labelledby", "").split()
    assert not picture.findall(".//{http://www.w3.org/2000/svg}image")
    text = " ".join(drawn())
    for sentence, figure, value in [
        ("timeout + 5 s, and jitter", LOCK_GRACE, 5),
        ("From 300 s before its end", tokens.REFRESH_AHEAD, 300),
        ("is used until 30 s are left", tokens.MARGIN, 30),
        ("3300 s: 300 s are left", HOUR - tokens.REFRESH_AHEAD, 3300),
        ("3570 s: 30 s are left", HOUR - tokens.MARGIN, 3570),
        ("an hour at most", tokens.MAX_FAILURE, HOUR),
        ("within 30 s is an error", tokens.REPLACEMENT_TRIAL, 30),
    ]:
        assert sentence in text
        assert figure == value


# Security


def test_every_test_that_the_page_on_security_names_is_there():
    named = re.findall(r"`(tests/[\w/]+\.py)((?:::\w+)*)`", PAGES["security"])
    assert len(named) > 50
    for path, names in named:
        held: Any = ast.parse((ROOT / path).read_text())
        for name in names.split("::")[1:]:
            held = next((each for each in held.body if getattr(each, "name", "") == name), None)
            assert held is not None, f"{path}{names}"


def test_every_threat_says_what_is_done_what_shows_it_and_what_is_left():
    sections = re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGES["security"], re.DOTALL | re.MULTILINE)
    threats = dict(sections[2:])
    assert len(threats) >= 15
    for name, section in threats.items():
        for word in ("Done", "Shown by", "Left to you"):
            assert re.search(rf"^- \*\*{word}:\*\*\s", section, re.MULTILINE), name


def test_the_bounds_of_replies_are_those_of_the_code():
    assert "64 MiB of decoded reply at most (a token reply 64 KiB)" in PROSE["security"]
    assert (MAX_REPLY, MAX_TOKEN_REPLY) == (64 << 20, 64 << 10)
    assert f"words are cut at {MAX_TEXT} characters" in PROSE["security"]


def test_a_text_that_looks_like_a_formula_is_landed_as_it_is(openmarkets_sandbox: SandboxServer, tmp_path: Path):
    formula = '=HYPERLINK("https://example.com")'
    reply = [{"accountCode": "SBX0001", "accountName": formula, "accountDesignation": None}]
    openmarkets_sandbox.fault(target="/oms/accounts", kind="body", body=reply)
    destination = tmp_path / "accounts.csv"
    OpenmarketsToObjectStorageOperator(
        task_id="land", query=queries.accounts(), destination=str(destination), format="csv"
    ).execute(context())
    (row,) = csv.DictReader(io.StringIO(destination.read_text()))
    assert row["account_name"] == formula


# Questions


@pytest.mark.parametrize(
    ("page", "sentence", "figure", "value"),
    [
        ("faq", "makes up to 8 calls at a time", settings.DEFAULT_CONCURRENCY, 8),
        ("faq", "three in a row that are transient are tolerated", MAX_FAILURES, 3),
        ("howto/rotate-secret", "looks up each connection every 60 seconds", _connections.LOOK_UP_INTERVAL, 60),
        ("howto/quotes", "a result of more than 1 MiB as JSON", DEFAULT_MAX_XCOM_BYTES, 1 << 20),
        ("howto/retries", "Waits of up to 60 seconds happen within the task", exchange.MAX_SERVER_WAIT, 60),
        ("howto/retries", "up to 75 seconds", exchange.MAX_WAIT, 75),
        ("howto/retries", "**Jitter** of up to 15 seconds", exchange.MAX_WAIT - exchange.MAX_SERVER_WAIT, 15),
        ("howto/retries", "runs again up to 10 times,", _waits.WAITS_AFTER_429, 10),
        ("howto/retries", "or 100 times if", _waits.WAITS_FOR_HOLDS, 100),
        ("howto/retries", "`Retry-After` of more than 24 hours", _waits.LONGEST_WAIT, timedelta(hours=24)),
    ],
)
def test_the_figures_of_the_answers_and_guides_are_those_of_the_code(page: str, sentence: str, figure: Any, value: Any):
    assert sentence in " ".join((DOCS / f"{page}.md").read_text().split())
    assert figure == value


@pytest.mark.since("3.2")
def test_the_task_of_the_answers_gets_accounts(openmarkets_sandbox: SandboxServer):
    accounts = block_of("faq", "def accounts_with_httpx(")["accounts_with_httpx"].function()
    assert accounts == ["SBX0001", "SBX0002", "SBX0003"]


# The HTTP provider

# It takes from where it was before what Airflow 3.3 has elsewhere.
OF_ITS_OWN = pytest.mark.filterwarnings("ignore:The `airflow.utils.operator_helpers")


@pytest.fixture
def by_http(openmarkets_sandbox: SandboxServer, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the page's block for the HTTP provider, with its connections."""
    identity = {"conn_type": "http", "host": openmarkets_sandbox.identity_url}
    api = {
        "conn_type": "http",
        "host": openmarkets_sandbox.market_data_url,
        "login": openmarkets_sandbox.client_id,
        "password": openmarkets_sandbox.client_secret,
    }
    monkeypatch.setenv("AIRFLOW_CONN_OPENMARKETS_IDENTITY", json.dumps(identity))
    monkeypatch.setenv("AIRFLOW_CONN_OPENMARKETS_MARKET_DATA", json.dumps(api))
    return block_of("comparison", "class ClientCredentials")


@pytest.fixture
def by_openmarkets(openmarkets_sandbox: SandboxServer) -> dict[str, Any]:
    return block_of("comparison", "OpenmarketsSensor(")


@OF_ITS_OWN
@pytest.mark.since("3.3")
def test_both_ways_give_the_same_prices(by_http, by_openmarkets, openmarkets_sandbox: SandboxServer):
    openmarkets_sandbox.set_security("BHP.ASX@TM", lastPrice=4501.5)
    openmarkets_sandbox.set_security("CBA.ASX@TM", lastPrice=17011)
    rows = by_openmarkets["quotes"].execute({})
    prices = by_http["quotes"].execute({})
    assert prices == {row["security_code"]: row["last_price"] for row in rows}
    assert prices == {"BHP": Decimal("45.015"), "CBA": Decimal("170.11")}


@pytest.mark.since("3.3")
@pytest.mark.parametrize("volume", [0, 1])
def test_both_ways_wait_for_the_same(by_http, by_openmarkets, openmarkets_sandbox: SandboxServer, volume: int):
    openmarkets_sandbox.set_security("BHP.ASX@TM", totalVolume=volume)
    plain = by_http["trades"].poke({})
    ours = by_openmarkets["trades"].poke({}).is_done
    assert plain == ours == bool(volume)


@OF_ITS_OWN
@pytest.mark.since("3.3")
def test_token_requests_of_eight_tasks_are_those_of_the_page(by_http, by_openmarkets, openmarkets_sandbox):
    ways = {
        "`HttpOperator` with the class above": by_http["quotes"],
        "`OpenmarketsOperator`": by_openmarkets["quotes"],
    }
    counted = {}
    for name, task in ways.items():
        # Once before, so that Airflow's imports are not repeated eight times.
        task.execute({})
        by_http["ClientCredentials"].tokens.clear()
        for record in cache_dir().glob("*.entry"):
            record.unlink()
        openmarkets_sandbox.reset()
        # A token is new to a process whose memory is empty.
        assert all(isinstance(prices, dict | list) for prices in in_processes(8, lambda task=task: task.execute({})))
        counted[name] = openmarkets_sandbox.stats()["token_requests_total"]
        assert openmarkets_sandbox.stats()["by_path"]["POST /market-data/pricing/quotes/v3"] == 8
    print("\ntoken requests of 8 tasks:", counted)
    assert counted == {line[0]: int(line[1]) for line in table(PAGES["comparison"], "eight tasks")}


@pytest.mark.since("3.3")
def test_what_is_said_of_the_http_provider_is_so_in_its_version(by_http):
    from airflow.providers.http import __version__
    from airflow.providers.http.hooks.http import HttpHook
    from airflow.providers.http.sensors.http import HttpSensor

    assert f"version {__version__} on Airflow" in PROSE["comparison"]
    assert f"`HttpSensor` {__version__} has no `auth_type`" in PROSE["comparison"]
    assert "auth_type" not in inspect.signature(HttpSensor).parameters
    assert "auth_type" in inspect.signature(HttpHook).parameters


@pytest.mark.since("3.3")
async def test_its_trigger_takes_no_class_of_requests(by_http, openmarkets_sandbox):
    from airflow.providers.http.triggers.http import HttpTrigger

    trigger = HttpTrigger("openmarkets_market_data", "requests.auth.HTTPBasicAuth", "GET", "securities/v1")
    events = [event.payload async for event in trigger.run()]
    assert [event["status"] for event in events] == ["error"]
    assert openmarkets_sandbox.stats()["requests"]["market_data"] == 0
