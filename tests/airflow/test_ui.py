"""What a person sees of the provider in Airflow's web pages: ``make ui`` as a process, and a real browser."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus, urlsplit

import pytest

from dev.ui import EXAMPLES
from openmarkets_provider.get_provider_info import CONNECTION_FIELDS, PLACEHOLDERS, RELABELING
from tests.support.airflow import free_port
from tests.support.browser import Browser, Connections, rendered_template
from tests.support.ui_process import UiProcess, answers, with_environment

pytestmark = pytest.mark.airflow

DAGS = Path(__file__).parent / "ui_dags"
PLANTED = "ticket-7316"
"""No secret; it is put wherever one could come, to see that it would be found there."""
CLIENT, SECRET = "sandbox-client", "sandbox-secret"
SMALL_CLIENT, SMALL_SECRET = "sandbox-market-data-client", "sandbox-market-data-secret"
WRONG_SECRET, ROTATED_SECRET = "nobody-has-this-one", "rotated+2/two %new"
SECRETS = [(CLIENT, SECRET), (SMALL_CLIENT, SMALL_SECRET), (CLIENT, WRONG_SECRET), (SMALL_CLIENT, ROTATED_SECRET)]
GOOD, BAD = "Test Connection Successful", "Test Connection Failed"


@pytest.fixture(scope="module")
def ui() -> Iterator[UiProcess]:
    with UiProcess(DAGS) as ui:
        yield ui


@pytest.fixture(scope="module")
def browser(ui: UiProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(ui.base_url, tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture(scope="module")
def connections(browser: Browser) -> Connections:
    return Connections(browser)


def urls(ui: UiProcess) -> dict[str, str]:
    return {f"{api}_url": f"{ui.sandbox.url}/{api.replace('_', '-')}" for api in ("market_data", "news", "oms")}


def connect(ui: UiProcess, conn_id: str, login: str, password: str, **changes: Any) -> None:
    """Make a connection to the sandbox through the REST API."""
    extra = urls(ui) | changes.pop("extra", {})
    made = {
        "connection_id": conn_id,
        "conn_type": "openmarkets",
        "description": f"Set up for {PLANTED}",
        "login": login,
        "password": password,
        "host": f"{ui.sandbox.url}/identity",
        "port": urlsplit(ui.sandbox.url).port,
        "extra": json.dumps(extra),
    }
    ui.call("POST", "/api/v2/connections", made | changes)


def connection(ui: UiProcess, conn_id: str) -> dict[str, Any]:
    """Return a connection from the REST API, with Extra decoded."""
    report = ui.call("GET", f"/api/v2/connections/{conn_id}")
    return report | {"extra": json.loads(report["extra"])}


@pytest.fixture(scope="module")
def outcomes(ui: UiProcess) -> dict[str, str]:
    """A run whose tasks have all ended. It is started first, since it mostly waits."""
    ui.sandbox.set_security("RIO.ASX@TM", tradingStatus="PRE_OPEN")
    ui.sandbox.fault(target="news", kind="status", status=429, retry_after=600)
    connect(ui, "market_data_only", SMALL_CLIENT, SMALL_SECRET)
    return {"dag_id": "outcomes", "dag_run_id": ui.start_dag("outcomes")}


def states(ui: UiProcess, run: Mapping[str, str]) -> dict[str, list[str | None]]:
    found: dict[str, list[str | None]] = {}
    for task in ui.call("GET", f"{ui.run_path(run['dag_id'], run['dag_run_id'])}/taskInstances")["task_instances"]:
        found.setdefault(task["task_id"], []).append(task["state"])
    return found


@pytest.fixture(scope="module")
def added(ui: UiProcess, outcomes: dict[str, str], connections: Connections) -> dict[str, str]:
    """A connection that was added by hand; the texts of the form's sections on the way."""
    connections.open()
    form = connections.add("by_hand", "Openmarkets")
    sections = {"Standard Fields": connections.browser.look("form")}
    shown = {label: form.input(label).get_attribute("placeholder") for label in RELABELING.values()}
    sections["placeholders"] = json.dumps(shown)
    form.fill(
        {
            "Description": f"Set up for {PLANTED}",
            "Identity URL": f"{ui.sandbox.url}/identity",
            "Identity port": str(urlsplit(ui.sandbox.url).port),
            "Client ID": CLIENT,
            "Client secret": SECRET,
        }
    )
    connections.browser.picture("connection_form")
    form.open("Extra Fields")
    form.choose("APIs in your plan", "market-data-api", "oms-api")
    sections["Extra Fields"] = connections.browser.page.locator("body").inner_text()
    connections.browser.picture("connection_extra_fields")
    form.open("Advanced")
    form.fill({CONNECTION_FIELDS[name]["label"]: url for name, url in urls(ui).items()})
    sections["Advanced"] = connections.browser.page.locator("body").inner_text()
    form.save()
    return sections


class TestMakeUi:
    def test_it_says_where_everything_is_and_that_no_login_is_needed(self, ui: UiProcess):
        assert f"Airflow:     {ui.base_url}  (no login" in ui.output
        assert f"{ui.base_url}/connections has openmarkets_default" in ui.output

    def test_its_connection_is_in_the_list_and_its_test_is_green(
        self, outcomes: dict[str, str], ui: UiProcess, connections: Connections
    ):
        title, text, colour = connections.test("openmarkets_default")
        connections.browser.picture("test_green")
        assert (title, colour) == (GOOD, "green")
        scopes = "market-data-api, news-api, oms-api"
        assert text.startswith(f"Access token obtained from {ui.sandbox.url}/identity for: {scopes}. Orders: ")

    def test_its_connection_shows_all_fields_when_it_is_edited(self, connections: Connections):
        connections.go()
        form = connections.edit("openmarkets_default")
        form.wait_for_sections("Standard Fields", "Extra Fields", "Advanced", "Extra Fields JSON")
        form.open("Extra Fields")
        extra_fields = form.dialogue.inner_text()
        form.open("Advanced")
        shown = {*extra_fields.splitlines(), *form.dialogue.inner_text().splitlines()}
        assert {field["label"] for field in CONNECTION_FIELDS.values()} <= shown

    def test_a_watcher_begins_soon_after_its_dag_is_switched_on(self, ui: UiProcess):
        dag = "/api/v2/dags/watching"
        ui.wait_until("the DAG", lambda: ui.api("GET", dag)[0] == 200, 120)
        ui.call("PATCH", dag, {"is_paused": False})
        path = "GET /market-data/pricing/depth/ANZ.ASX@TM/v1"
        ui.wait_until("the first poll", lambda: ui.sandbox.stats()["by_path"].get(path), 120)


class TestForm:
    def test_the_standard_fields_have_our_names_and_placeholders(self, added: dict[str, str]):
        shown = added["Standard Fields"]
        assert set(RELABELING.values()) <= set(shown.splitlines())
        # What they are called otherwise, and the one that means nothing here.
        assert not {"Login", "Password", "Host", "Port", "Schema"} & set(shown.splitlines())
        placeholders = json.loads(added["placeholders"])
        for name, text in PLACEHOLDERS.items():
            assert placeholders[RELABELING[name]] == text

    @pytest.mark.parametrize("name", CONNECTION_FIELDS)
    def test_each_field_is_there_with_its_label_and_its_help(self, added: dict[str, str], name: str):
        field = CONNECTION_FIELDS[name]
        section = field["schema"].get("section", "Extra Fields")
        lines = added[section].splitlines()
        assert field["label"] in lines
        assert field["description"] in lines

    def test_scopes_are_chosen_and_what_is_left_empty_is_unset(self, added: dict[str, str], ui: UiProcess):
        extra = connection(ui, "by_hand")["extra"]
        given = {"environment": "production", "client_auth_encoding": "rfc6749", **urls(ui)}
        assert extra == dict.fromkeys(CONNECTION_FIELDS) | given | {"scopes": ["market-data-api", "oms-api"]}

    def test_the_secret_is_masked_in_the_rest_api_and_in_the_form(
        self, added: dict[str, str], ui: UiProcess, connections: Connections
    ):
        report = ui.call("GET", "/api/v2/connections/by_hand")
        assert (report["login"], report["password"]) == (CLIENT, "***")
        assert SECRET not in json.dumps(ui.call("GET", "/api/v2/connections"))
        connections.go()
        form = connections.edit("by_hand")
        form.dialogue.get_by_role("button", name="Show value").click()
        assert form.input("Client secret").input_value() == "***"
        connections.browser.look("form, reopened")
        assert SECRET not in connections.browser.texts["form, reopened"]

    def test_editing_one_field_loses_nothing_and_keeps_the_secret(
        self, added: dict[str, str], ui: UiProcess, connections: Connections
    ):
        before = connection(ui, "by_hand")
        connections.go()
        form = connections.edit("by_hand")
        form.open("Extra Fields")
        form.fill({"Timeout (seconds)": "20"})
        form.save()
        assert connection(ui, "by_hand") == before | {"extra": before["extra"] | {"timeout": 20}}
        title, text, colour = connections.test("by_hand")
        assert (title, colour) == (GOOD, "green")
        assert text.startswith(
            f"Access token obtained from {ui.sandbox.url}/identity for: market-data-api, oms-api. Orders: "
        )

    def test_editing_shows_what_extra_holds_and_what_is_added_to_it_as_json(
        self, ui: UiProcess, connections: Connections
    ):
        connect(ui, "by_rest", CLIENT, SECRET)
        connections.go()
        form = connections.edit("by_rest")
        form.wait_for_sections("Standard Fields", "Advanced", "Extra Fields JSON")
        form.begin_json('"timeout": 60,')
        form.open("Extra Fields")
        assert form.input("Timeout (seconds)").input_value() == "60"
        form.save()
        assert connection(ui, "by_rest")["extra"] == urls(ui) | {"timeout": 60}

    def test_editing_shows_all_fields_where_extra_holds_none(self, ui: UiProcess, connections: Connections):
        ui.call("POST", "/api/v2/connections", {"connection_id": "bare", "conn_type": "openmarkets", "extra": "{}"})
        connections.go()
        connections.edit("bare").wait_for_sections("Standard Fields", "Extra Fields", "Advanced", "Extra Fields JSON")


class TestRed:
    """Each says what is wrong and what to do about it."""

    def check(self, connections: Connections, conn_id: str, *texts: str) -> None:
        title, text, colour = connections.test(conn_id)
        connections.browser.look(f"test of {conn_id}")
        connections.browser.picture(f"test_red_{conn_id}")
        assert (title, colour) == (BAD, "red")
        assert [part for part in texts if part not in text] == []
        assert found({conn_id: text.encode()}, (form for pair in SECRETS for form in forms(*pair))) == []

    def test_a_wrong_secret(self, ui: UiProcess, connections: Connections):
        connect(ui, "wrong_secret", CLIENT, WRONG_SECRET)
        self.check(
            connections,
            "wrong_secret",
            "The client id and secret are not accepted.",
            "401 invalid_client: The client's secret is wrong. Check Client ID (login), Client secret (password)",
        )

    def test_an_api_that_is_not_in_the_plan(self, outcomes: dict[str, str], connections: Connections):
        self.check(
            connections,
            "market_data_only",
            "Not in the plan: news-api, oms-api; remove them under 'APIs in your plan' (scopes)",
            "or ask Openmarkets to add them.",
            "for: market-data-api.",
        )

    def test_a_host_that_can_not_be_reached(self, ui: UiProcess, connections: Connections):
        url = f"http://127.0.0.1:{free_port()}/identity"
        connect(ui, "unreachable", CLIENT, SECRET, host=url, port=urlsplit(url).port)
        self.check(
            connections,
            "unreachable",
            "Can't reach the identity server.",
            f"no answer from {url}: ConnectError: [Errno 111] Connection refused.",
            "Check Identity URL (host) and port, and that this machine's network and proxy allow the connection.",
        )


@pytest.fixture(scope="module")
def came_to_something(ui: UiProcess, outcomes: dict[str, str], added: dict[str, str]) -> dict[str, str]:
    """The same run, with all of its tasks."""
    wanted = {"succeeds": ["success"], "fails": ["failed"], "prints": ["success"]}
    waiting = wanted | {"rate_limited": ["deferred"], "waits": ["deferred"]}
    ui.wait_until("the tasks", lambda: states(ui, outcomes) == waiting, 180)
    log = f"{ui.run_path('outcomes', outcomes['dag_run_id'])}/taskInstances/waits/logs/1"
    ui.wait_until("a poll", lambda: "not met yet" in json.dumps(ui.call("GET", log, full_content=True)), 120)
    ui.sandbox.set_security("RIO.ASX@TM", tradingStatus="OPEN")
    ui.wait_until("the sensor", lambda: states(ui, outcomes)["waits"] == ["success"], 120)
    return outcomes


@pytest.mark.ui
class TestTaskPages:
    def log(self, browser: Browser, run: dict[str, str], task_id: str, awaited: str) -> str:
        browser.task(run, task_id)
        browser.page.get_by_text(awaited).first.wait_for()
        text = browser.look(f"log of {task_id}")
        # Airflow's words on a short text in Extra.
        assert "too short" not in text
        return text

    def test_a_task_that_succeeded_says_what_it_got(self, came_to_something: dict[str, str], browser: Browser):
        text = self.log(browser, came_to_something, "succeeds", "Post Execute")
        browser.picture("log_success")
        assert "INFO - quotes: 2 rows in " in text
        assert not {"WARNING", "ERROR", "Traceback"} & set(text.split())

    def test_a_task_that_failed_says_why_and_what_to_do_without_the_clients_frames(
        self, came_to_something: dict[str, str], ui: UiProcess, browser: Browser
    ):
        text = self.log(browser, came_to_something, "fails", "Post Execute")
        assert (
            "AirflowFailException: The identity server refused a token for oms-api: 400 invalid_scope: The "
            "scope is missing or isn't in the client's plan. This API is not in the client's plan. Remove the "
            "scope from the connection, or ask Openmarkets to add the API."
        ) in text
        frames = [line for line in text.splitlines() if line.startswith("File ")]
        ours = [line for line in frames if "openmarkets_provider" in line]
        assert 0 < len(ours) <= 3
        assert not [line for line in frames if "openmarkets_provider/client" in line or "httpx" in line]
        (failed,) = (task for task in ui._tasks(ui.run_path(*came_to_something.values())) if task.task_id == "fails")
        assert failed.try_number == 1
        # Without the paths of this machine.
        browser.page.get_by_text("AirflowFailException").first.click()
        browser.picture("log_failed")

    def test_a_task_that_is_rate_limited_says_until_when_it_waits(
        self, came_to_something: dict[str, str], browser: Browser
    ):
        text = self.log(browser, came_to_something, "rate_limited", "Post Execute")
        browser.picture("log_rate_limited")
        assert "GET news announcements/v1: 429" in text
        assert "The server asks to wait 600 s. The task is deferred until 20" in text
        assert not {"WARNING", "ERROR"} & set(text.split())

    def test_a_sensor_says_how_it_polls_and_when_its_condition_is_met(
        self, came_to_something: dict[str, str], browser: Browser
    ):
        text = self.log(browser, came_to_something, "waits", "The condition is met.")
        browser.picture("log_sensor")
        assert "The condition is not met yet; polling again in 3 s." in text
        assert not {"WARNING", "ERROR"} & set(text.split())

    def test_a_rendered_query_is_shown_as_json(self, came_to_something: dict[str, str], browser: Browser):
        browser.task(came_to_something, "succeeds", "rendered_templates")
        shown = rendered_template(browser.page, "query")
        browser.look("rendered templates")
        browser.picture("rendered_templates")
        assert shown["endpoint"] == "quotes"
        assert shown["securities"] == ["BHP", "CBA"]


@pytest.fixture(scope="module")
def examples(ui: UiProcess) -> list[str]:
    """The ids of the example DAGs, once all are there."""
    wanted = {path.stem for path in EXAMPLES.glob("*.py")}

    def listed() -> list[str]:
        found = [dag["dag_id"] for dag in ui.call("GET", "/api/v2/dags")["dags"] if "examples" in dag["bundle_name"]]
        return found if wanted <= set(found) else []

    return ui.wait_until("the example DAGs", listed, 120)


class TestTriggerForms:
    def test_the_form_of_every_example_can_be_submitted_as_it_is(
        self, examples: list[str], ui: UiProcess, browser: Browser
    ):
        assert len(examples) >= 6
        for dag_id in examples:
            run = browser.trigger(dag_id)
            assert (run["dag_id"], run["state"]) == (dag_id, "queued"), run
            params = ui.call("GET", f"/api/v2/dags/{dag_id}/details")["params"] or {}
            assert run["conf"] == {name: param["value"] for name, param in params.items()}
            ui.call("DELETE", ui.run_path(dag_id, run["dag_run_id"]))


@pytest.fixture(scope="module")
def rotated(ui: UiProcess, came_to_something: dict[str, str], connections: Connections) -> dict[str, Any]:
    """A run of tasks while whose client secret is rotated: at the server, in the form, and then old tokens end."""
    sandbox = ui.sandbox
    connect(ui, "rotating", SMALL_CLIENT, SMALL_SECRET, extra={"scopes": ["market-data-api"]})
    sandbox.set_security("WOW.ASX@TM", tradingStatus="PRE_OPEN")
    # The long task, of 200 calls, would be at it for most of a minute.
    sandbox.fault(target="/market-data/pricing/timeseries", kind="delay", seconds=2, times=None)
    run = {"dag_id": "rotation", "dag_run_id": ui.start_dag("rotation")}
    connections.go()
    form = connections.edit("rotating")
    form.fill({"Client secret": ROTATED_SECRET})

    def all_are_at_it() -> bool:
        now = states(ui, run)
        asked = any("/pricing/timeseries/" in path for path in sandbox.stats()["by_path"])
        return asked and now["long"] == ["running"] and now["waits"] == ["deferred"]

    def quotes() -> int:
        return int(sandbox.stats()["by_path"]["POST /market-data/pricing/quotes/v3"])

    ui.wait_until("a task that runs and one that waits", all_are_at_it, 180)
    before = sandbox.stats()
    # The connection must not have a secret that the server does not know yet: its refusal would be shared for a while.
    sandbox.change_secret(SMALL_CLIENT, ROTATED_SECRET)
    form.save()
    sandbox.fault(kind="revoke_tokens")
    sandbox.clear_faults()
    # Only the sensor requests quotes, until the other tasks start.
    more = quotes() + 1
    ui.wait_until("one more poll", lambda: quotes() >= more or states(ui, run)["waits"] != ["deferred"], 60)
    sandbox.set_security("WOW.ASX@TM", tradingStatus="OPEN")
    ended = ui.wait_for_run("rotation", run["dag_run_id"], 180)
    return {"run": ended, "before": before, "after": sandbox.stats()}


@pytest.mark.ui
class TestRotation:
    def test_tasks_that_run_and_wait_and_those_that_begin_after_it_all_succeed(self, rotated: dict[str, Any]):
        run = rotated["run"]
        failed = {str(task): run.log(task.task_id, task.map_index) for task in run.tasks if task.state != "success"}
        assert failed == {}
        assert {task.try_number for task in run.tasks} == {1}
        assert len(run.xcom("long")) == 200

    def test_the_task_that_was_at_it_begins_anew_and_says_so(self, rotated: dict[str, Any]):
        assert "Connection 'rotating' has changed; starting again" in rotated["run"].log("long")

    def test_it_costs_a_few_requests_for_tokens(self, rotated: dict[str, Any]):
        before, after = rotated["before"], rotated["after"]
        print({name: after[name] - before[name] for name in ("token_requests_total", "token_errors")})
        refused = after["token_errors"] - before["token_errors"]
        # At most by the task and the triggerer, which share the answer.
        assert 1 <= refused <= 2
        # With the new secret, by all tasks together; once more if one began before the tokens ended.
        assert 1 <= after["token_requests_total"] - before["token_requests_total"] - refused <= 2


# --- nothing secret anywhere


def forms(client_id: str, secret: str) -> set[bytes]:
    """Return the forms in which a secret could appear: plain, URL-encoded, in HTTP Basic."""
    encoded = {(client_id, secret), (quote(client_id, safe=""), quote(secret, safe=""))}
    basic = {base64.b64encode(f"{first}:{second}".encode()) for first, second in encoded}
    plain = {secret, quote(secret), quote(secret, safe=""), quote_plus(secret)}
    return {form.encode() for form in plain} | basic | {base64.b64encode(secret.encode())}


def found(texts: Mapping[str, bytes], wanted: Iterable[bytes]) -> list[tuple[str, bytes]]:
    """Return which of the wanted texts appear where."""
    return [(name, each) for each in wanted for name, text in texts.items() if each in text]


def rest_answers(ui: UiProcess) -> dict[str, dict[str, bytes]]:
    """Return everything from the REST API, by kind."""
    kinds: dict[str, dict[str, bytes]] = {}

    def ask(kind: str, path: str, **query: Any) -> Any:
        answer = ui.api("GET", f"/api/v2/{path}", **query)
        kinds.setdefault(f"REST: {kind}", {})[path] = json.dumps(answer).encode()
        return answer[1]

    for listed in ("variables", "importErrors", "providers", "config", "assets", "assets/events", "jobs", "pools"):
        ask("the rest", listed, limit=500)
    for report in ask("connections", "connections", limit=500)["connections"]:
        ask("connections", f"connections/{report['connection_id']}")
    ask("event log", "eventLogs", limit=1000)
    for dag in ("outcomes", "rotation"):
        ask("DAG source", f"dagSources/{dag}")
        ask("the rest", f"dags/{dag}/details")
        for run in ask("the rest", f"dags/{dag}/dagRuns")["dag_runs"]:
            path = f"dags/{dag}/dagRuns/{quote(run['dag_run_id'], safe='')}/taskInstances"
            for task in ask("task instances and rendered fields", path, limit=500)["task_instances"]:
                of_task, index = f"{path}/{task['task_id']}", {"map_index": task["map_index"]}
                ask("logs", f"{of_task}/logs/{task['try_number']}", full_content=True, **index)
                for entry in ask("XComs", f"{of_task}/xcomEntries", **index)["xcom_entries"]:
                    ask("XComs", f"{of_task}/xcomEntries/{entry['key']}", **index)
    return kinds


@pytest.fixture(scope="module")
def everything(
    ui: UiProcess, came_to_something: dict[str, str], rotated: dict[str, Any], browser: Browser
) -> dict[str, dict[str, bytes]]:
    """All that a whole run has left where somebody could read it, by kind and by name."""
    Connections(browser).go()
    browser.page.get_by_text(PLANTED).first.wait_for()
    browser.look("connections")
    for tab in ("", "xcom", "code"):
        browser.task(came_to_something, "prints", tab)
        browser.page.get_by_text(PLANTED).first.wait_for()
        browser.look(f"{tab or 'log'} of prints")
    kinds = {"pages": {name: html.encode() for name, html in browser.texts.items()}, **rest_answers(ui)}
    kinds["answers to the browser"] = browser.answers()
    files = {str(path.relative_to(ui.home)): path.read_bytes() for path in ui.home.rglob("*") if path.is_file()}
    kinds["database"] = {name: content for name, content in files.items() if name.startswith("airflow.db")}
    kinds["component logs"] = {name: files[name] for name in files if name.endswith(".log") and "/" not in name}
    kinds["log files"] = {name: content for name, content in files.items() if name.startswith("logs/")}
    kinds["other files"] = {name: files[name] for name in set(files).difference(*kinds.values())}
    kinds["output"] = {"make ui": ui.output.encode()}
    return kinds


@pytest.mark.ui
class TestNothingSecret:
    KINDS = (
        "pages",
        "answers to the browser",
        "REST: connections",
        "REST: event log",
        "REST: DAG source",
        "REST: task instances and rendered fields",
        "REST: logs",
        "REST: XComs",
        "database",
        "component logs",
        "log files",
    )

    def test_no_secret_and_no_token_is_anywhere(self, everything: dict[str, dict[str, bytes]], ui: UiProcess):
        tokens = ui.sandbox.issued_tokens()
        assert len(tokens) > 5
        wanted = [form for pair in SECRETS for form in forms(*pair)] + [token.encode() for token in tokens]
        assert {kind: there for kind, texts in everything.items() if (there := found(texts, wanted))} == {}
        print({kind: (len(texts), sum(map(len, texts.values()))) for kind, texts in everything.items()})

    @pytest.mark.parametrize("kind", KINDS)
    def test_what_is_planted_would_be_found(self, everything: dict[str, dict[str, bytes]], kind: str):
        assert found(everything[kind], [PLANTED.encode()])

    def test_every_form_of_a_secret_would_be_found(self):
        for form in forms(SMALL_CLIENT, ROTATED_SECRET):
            assert found({"somewhere": b"before " + form + b" after"}, [form])
        pair = f"{quote(SMALL_CLIENT)}:rotated%2B2%2Ftwo%20%25new".encode()
        assert base64.b64encode(pair) in forms(SMALL_CLIENT, ROTATED_SECRET)


def test_the_examples_are_there(ui: UiProcess, examples: list[str]):
    assert ui.call("GET", "/api/v2/importErrors")["import_errors"] == []


@pytest.mark.ui
def test_ctrl_c_ends_and_removes_all_of_it(ui: UiProcess, everything: dict[str, dict[str, bytes]]):
    assert len(ui.processes()) > 4
    assert ui.home.exists()
    assert ui.interrupt() == 0
    assert ui.output.endswith("Everything is stopped and removed.\n")
    assert ui.processes() == []
    assert not ui.home.exists()
    assert not answers(ui.base_url)
    assert not answers(ui.sandbox.url)


@pytest.mark.ui
def test_a_term_while_it_starts_ends_and_removes_all_of_it(tmp_path: Path):
    env = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-m", "dev.ui"], env=env, stdout=subprocess.PIPE, text=True) as process:
        while not list(tmp_path.glob("airflow-*/db-migrate.log")):
            assert process.poll() is None
            time.sleep(0.05)
        started = with_environment(f"TMPDIR={tmp_path}")
        process.terminate()
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert output.endswith("Everything is stopped and removed.\n")
    # It itself, and the sandbox.
    assert len(started) >= 2
    assert with_environment(f"TMPDIR={tmp_path}") == []
    assert list(tmp_path.iterdir()) == []
