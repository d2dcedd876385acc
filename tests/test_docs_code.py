"""Every block of code on every page is run, or checked by what would run it; a block of an unknown kind fails."""

from __future__ import annotations

import ast
import configparser
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from importlib.metadata import metadata
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml
from airflow.configuration import conf
from airflow.models.connection import Connection
from airflow.sdk import Asset
from packaging.requirements import Requirement

from openmarkets_provider import queries
from openmarkets_provider.cli import print_sessions
from openmarkets_provider.client.auth import provider as token_source
from openmarkets_provider.conditions import Evaluator
from openmarkets_provider.hooks._connection_settings import make_settings
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
from openmarkets_provider.sandbox.server import SandboxServer
from openmarkets_provider.triggers import events
from openmarkets_provider.triggers._new_items import find_new_items
from openmarkets_provider.triggers._seen_keys import SeenKeys
from tests.support.pages import BLOCKS, ROOT, Block
from tests.support.postgres import Postgres
from tests.support.process import ServerProcess


def has_dag(block: Block) -> bool:
    return not block.is_test and re.search(r"^(@dag|with DAG)\(", block.text, re.MULTILINE) is not None


BIN = Path(sys.executable).parent
FOLLOWED = ("CONTRIBUTING.md", "docs/howto/notebook.md", "docs/howto/plain-python.md")
"""Pages that tests of their own follow."""
PYTHON = [block for block in BLOCKS if block.kind == "python" and block.page not in FOLLOWED]
DAG_PAGES = list(dict.fromkeys(block.page for block in PYTHON if has_dag(block)))
TESTS = [block for block in PYTHON if block.is_test]
RUN_ELSEWHERE = ("docs/comparison.md",)
"""In ``test_guides.py``."""
START = "docs/start.md"
SANDBOX = "http://127.0.0.1:8765"
DEFAULT_PORT = 8765
DATABASE = "warehouse"


def blocks(page: str, kind: str) -> list[str]:
    return [block.text for block in BLOCKS if (block.page, block.kind) == (page, kind)]


def module(page: str) -> str:
    """Return what a page's blocks are together, one after the other, as a reader takes them."""
    return "\n\n".join(block.text for block in PYTHON if block.page == page and not block.is_test)


def dag_file(page: str) -> str:
    """Return the DAGs of a page with all that the page imports; what else it shows is no part of a file of DAGs."""
    own = [block for block in PYTHON if block.page == page and not block.is_test]
    nodes = [node for block in own for node in ast.parse(block.text).body]
    imports = [ast.unparse(node) for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))]
    return "\n\n".join([*imports, *(block.text for block in own if has_dag(block))])


def clean_environment(**own: str) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    return env | {"PATH": f"{BIN}{os.pathsep}{env['PATH']}", "NO_PROXY": "127.0.0.1"} | own


# What is run.


class Started:
    """What came of following the page of the first five minutes.

    :ivar home: Airflow's.
    """

    def __init__(self, folder: Path) -> None:
        self.home = folder / "airflow"
        _, sandbox, prepare, connect, run = blocks(START, "console")
        (dag,) = blocks(START, "python")
        (name,) = re.findall(r"^Save this as `([\w./]+)`", (ROOT / START).read_text(), re.MULTILINE)
        with _Sandbox(*shlex.split(sandbox)[2:]) as server:
            self.greeting = server.greeting.replace(*(url.rpartition(":")[2] for url in (server.url, SANDBOX)))
            lines = [
                prepare,
                connect.replace(SANDBOX, server.url),
                f"cp {shlex.quote(str(folder / 'dag'))} {name}",
                run,
            ]
            (folder / "dag").write_text(dag)
            done = subprocess.run(
                ["bash", "-euc", "\n".join(lines)], cwd=folder, env=clean_environment(), capture_output=True, text=True
            )
        assert done.returncode == 0, done.stdout + done.stderr
        self.output = done.stdout


class _Sandbox(ServerProcess):
    """Runs the sandbox as a page says, but on a free port."""

    def __init__(self, *arguments: str) -> None:
        super().__init__(*arguments, "--port", "0")
        self.greeting = ""

    def has_started(self) -> bool:
        for line in self._process.stdout:
            self.greeting += line
            if line.startswith("export "):
                self.url = re.search(r"^URL: (\S+)$", self.greeting, re.MULTILINE)[1]
                return True
        return False


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Started:
    return Started(tmp_path_factory.mktemp("start"))


@pytest.mark.slow
def test_who_follows_the_first_page_sees_what_it_shows(started: Started):
    greeting, output = blocks(START, "text")
    assert re.fullmatch(re.escape(greeting).replace(r"\.\.\.", ".*"), started.greeting)
    assert blocks(START, "console")[3] == started.greeting.splitlines(keepends=True)[-1]
    shown = output.splitlines()
    assert [line for line in started.output.splitlines() if line in shown] == shown


@pytest.fixture(scope="module")
def warehouse(postgres: Postgres) -> Postgres:
    postgres.empty_database(DATABASE)
    with postgres.connect(DATABASE) as connection:
        connection.execute("CREATE SCHEMA market")
    return postgres


@pytest.mark.slow
def test_dags_and_tests_of_the_pages_and_the_first_example_succeed(
    started: Started, warehouse: Postgres, s3, openmarkets_sandbox, tmp_path: Path
):
    """As in ``airflow dags test``, without a triggerer; one process for all, since Airflow takes seconds to begin.

    That takes no partition key, so a session stands in its place.
    """
    shutil.copytree(started.home, tmp_path / "home", ignore=shutil.ignore_patterns("airflow.cfg", "dags", "logs"))
    for folder in ("dags", "tests"):
        (tmp_path / folder).mkdir()
    for page in DAG_PAGES:
        # Watchers get their events below.
        if page not in RUN_ELSEWHERE and "AssetWatcher" not in module(page):
            text = dag_file(page).replace("{{ partition_key }}", "2026-03-05").replace('"/data/', f'"{tmp_path}/data/')
            (tmp_path / "dags" / f"{_word(page)}.py").write_text(text)
    for number, block in enumerate(TESTS):
        (tmp_path / "tests" / f"test_{number}_{_word(block.page)}.py").write_text(block.text)
    shutil.copy(ROOT / "example_dags" / "example_quotes.py", tmp_path / "dags")
    shutil.copyfile(ROOT / "tests" / "support" / "page_tests" / "dags.py", tmp_path / "tests" / "test_dags.py")
    # At any time: a sensor waits for it.
    openmarkets_sandbox.set_security("BHP.ASX@TM", tradingStatus="OPEN", totalVolume=1000)
    s3.client.create_bucket(Bucket="lake")
    env = clean_environment(
        AIRFLOW_HOME=str(tmp_path / "home"),
        AIRFLOW__CORE__DAGS_FOLDER=str(tmp_path / "dags"),
        AIRFLOW__CORE__LOAD_EXAMPLES="False",
        AIRFLOW_CONN_AWS_DEFAULT=s3.connection_json,
        AIRFLOW_CONN_POSTGRES_DEFAULT=warehouse.airflow_connection(DATABASE),
    )
    named = re.findall(r'openmarkets_conn_id="(\w+)"', "".join(map(module, DAG_PAGES)))
    env |= {
        f"AIRFLOW_CONN_{conn_id.upper()}": json.dumps(openmarkets_sandbox.connection)
        for conn_id in ("openmarkets_default", *named)
    }
    command = [sys.executable, *["-m", "pytest", "-qs", "-p", "no:cacheprovider", "-p", "no:asyncio", "tests"]]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    report = done.stdout + done.stderr
    assert done.returncode == 0, report[-20_000:]
    assert "example_quotes" in report
    assert openmarkets_sandbox.client_secret not in report

    listed = s3.client.list_objects_v2(Bucket="lake")["Contents"]
    folders = {each["Key"].rpartition("/")[0] for each in listed}
    assert {"bars/exchange_date=2026-03-05", "new_bars/exchange_month=2026-01"} <= folders
    with warehouse.connect(DATABASE) as connection:
        (count,) = connection.execute("SELECT count(*) FROM daily_bars").fetchone()
        (codes,) = connection.execute("SELECT count(DISTINCT security_code) FROM new_bars").fetchone()
        (of_all,) = connection.execute("SELECT count(*) FROM market.daily_bars").fetchone()
    assert (count, codes) == (3, 2)
    assert of_all > 1000


def _word(page: str) -> str:
    return re.sub(r"\W", "_", page.removesuffix(".md"))


# Airflow 3.3.2's own ``@task`` imports what it has moved.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("page", dict.fromkeys(block.page for block in PYTHON if not block.is_test))
def test_the_python_of_a_page_runs(openmarkets_sandbox, page: str):
    names: dict[str, Any] = {}
    exec(compile(module(page), page, "exec"), names)
    for asset in [value for value in names.values() if isinstance(value, Asset) and value.watchers]:
        check_watched(
            asset, next(names[name]() for name in re.findall(r"^@dag.*\ndef (\w+)", module(page), re.MULTILINE))
        )


def check_watched(asset: Asset, dag: Any) -> None:
    """Run the tasks of a DAG with the event that a watcher fires at the sandbox."""
    (watcher,) = asset.watchers
    trigger = watcher.trigger
    assert isinstance(trigger, events.OpenmarketsEventTrigger)
    new = find_new_items(
        Evaluator(OpenmarketsHook().run(trigger.query)).evaluate, trigger.items, trigger.key, SeenKeys()
    )
    assert new.problem == ""
    assert len(new.payload) > 1
    event = SimpleNamespace(extra={"payload": {"items": new.payload}})
    for task in dag.tasks:
        assert len(task.python_callable({asset: [event]})) == len(new.payload)


def test_workers_share_a_token_by_the_connections_shown(openmarkets_sandbox, empty_redis, monkeypatch, tmp_path):
    page = "docs/howto/celery-kubernetes.md"
    secret, values = map(yaml.safe_load, blocks(page, "yaml"))
    assert {each["secretKey"] for each in values["secret"]} == secret["stringData"].keys()
    assert {each["secretName"] for each in values["secret"]} == {secret["metadata"]["name"]}
    shown = {each["envName"]: json.loads(secret["stringData"][each["secretKey"]]) for each in values["secret"]}
    by_hand = exported(*blocks(page, "console")).items()
    assert shown == {name: json.loads(value) for name, value in by_hand if name.startswith("AIRFLOW_CONN_")}
    own = openmarkets_sandbox.connection
    extra = shown["AIRFLOW_CONN_OPENMARKETS_DEFAULT"]["extra"] | own["extra"]
    monkeypatch.setenv("AIRFLOW_CONN_OPENMARKETS_DEFAULT", json.dumps(own | {"extra": extra}))
    for host in ("one", "another"):
        token_source.reset()
        monkeypatch.setenv("AIRFLOW__OPENMARKETS__TOKEN_CACHE_DIR", str(tmp_path / host))
        assert OpenmarketsHook().run(queries.quotes(["BHP"]))
    assert openmarkets_sandbox.stats()["token_requests_total"] == 1
    with empty_redis.client() as client:
        assert client.keys("openmarkets:*")


def test_containers_reach_the_sandbox_by_the_connection_shown():
    (compose,) = map(yaml.safe_load, blocks("docs/howto/containers.md", "yaml"))
    server, airflow = compose["services"]["sandbox"], compose["services"]["airflow"]
    for line in server["build"]["dockerfile_inline"].splitlines():
        if line.startswith("RUN pip"):
            check_pip([word for word in shlex.split(line)[2:] if not word.startswith("-")])
    program, *words = shlex.split(server["command"])
    assert program == "python"
    check_module(words)
    options = dict(zip(words[2::2], words[3::2], strict=True))
    sandbox = SandboxServer(
        host=options["--host"], name=options["--name"], tls=Path(options["--tls"]), port=DEFAULT_PORT
    )
    shown = json.loads(airflow["environment"]["AIRFLOW_CONN_OPENMARKETS_DEFAULT"])
    assert shown == sandbox.connection
    # Where the folder of the authority is mounted.
    assert f"tls:{options['--tls']}" in server["volumes"]
    assert f"tls:{options['--tls']}:ro" in airflow["volumes"]
    for name in airflow["environment"].keys() - {"AIRFLOW_CONN_OPENMARKETS_DEFAULT"}:
        check_export(f"{name}={airflow['environment'][name]}")


# What is checked by what would run it.


def exported(*texts: str) -> dict[str, str]:
    """Return the variables that blocks set."""
    words = [shlex.split(line) for text in texts for line in text.splitlines() if line.startswith("export ")]
    return dict(word.split("=", 1) for _, *line in words for word in line)


def check_export(assignment: str) -> None:
    name, _, value = assignment.partition("=")
    if name.startswith("AIRFLOW_CONN_"):
        conn_id = name.removeprefix("AIRFLOW_CONN_").lower()
        check_connection(conn_id, json.loads(value) if value.startswith("{") else value)
    else:
        assert name == "AIRFLOW_HOME" or re.fullmatch(r"AIRFLOW__[A-Z_]+__[A-Z_]+", name)


def check_connection(conn_id: str, value: Mapping[str, Any] | str) -> None:
    """Check that Airflow accepts a connection, and that the hook accepts one of its type."""
    if isinstance(value, str):
        connection = Connection(conn_id=conn_id, uri=value)
    else:
        connection = Connection.from_json(json.dumps(value), conn_id=conn_id)
    assert connection.conn_type in ("openmarkets", "aws", "iceberg", "postgres", "redis", "sqlite")
    if connection.conn_type == "openmarkets":
        make_settings(connection)


def check_pip(words: list[str]) -> None:
    assert words.pop(0) == "install"
    for word in words:
        wanted = Requirement(word)
        extras = {extra.lower().replace("_", "-") for extra in metadata(wanted.name).get_all("Provides-Extra") or ()}
        assert {extra.lower().replace("_", "-") for extra in wanted.extras} <= extras, word


def check_airflow(words: list[str]) -> None:
    from airflow.cli.cli_parser import get_parser

    get_parser().parse_args(words)


def check_module(words: list[str]) -> None:
    from openmarkets_provider.sandbox.__main__ import _parser

    assert words[:2] == ["-m", "openmarkets_provider.sandbox"]
    _parser().parse_args(words[2:])


def check_docker(words: list[str]) -> None:
    """Only what runs inside; Docker itself need not be here."""
    assert words[0] in ("compose", "run")
    if "python" in words:
        check_module(words[words.index("python") + 1 :])


def check_make(words: list[str]) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {word for word in words if "=" not in word} <= set(targets)


def check_mkdir(words: list[str]) -> None:
    assert words[0] == "-p"


def check_pytest(words: list[str]) -> None:
    assert all(word.startswith("-") or (ROOT / word).exists() for word in words)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "airflow": check_airflow,
    "docker": check_docker,
    "export": lambda words: [check_export(word) for word in words] and None,
    "make": check_make,
    "mkdir": check_mkdir,
    "pip": check_pip,
    "pytest": check_pytest,
    "python": check_module,
}


def check_console(block: Block, sandbox: Any) -> None:
    for line in block.text.replace("\\\n", " ").splitlines():
        program, *words = shlex.split(line, comments=True) or [""]
        if program == "curl":
            check_curl(words, sandbox)
        elif program:
            assert program in COMMANDS, f"no check knows {program}"
            COMMANDS[program](words)


def check_curl(words: list[str], sandbox: Any) -> None:
    """Send what it would send."""
    options = dict(zip(words[:-1:2], words[1::2], strict=False)) if words[0].startswith("-") else {}
    (url,) = [word for word in words if word.startswith("http")]
    body = words[words.index("-d") + 1] if "-d" in words else None
    assert url.startswith(SANDBOX)
    answer = httpx.request(options.get("-X", "GET"), url.replace(SANDBOX, sandbox.url), content=body, trust_env=False)
    assert answer.is_success, answer.text


def check_json(block: Block, sandbox: Any) -> None:
    """Connections, where there are some."""
    held = json.loads(block.text)
    if isinstance(held, dict):
        for name, value in held.items():
            if isinstance(value, dict) and "conn_type" in value:
                check_connection(name, value)


def check_yaml(block: Block, sandbox: Any) -> None:
    assert list(yaml.safe_load_all(block.text))


def check_ini(block: Block, sandbox: Any) -> None:
    """Settings that Airflow has."""
    parser = configparser.RawConfigParser()
    parser.read_string(block.text)
    for section in parser.sections():
        for option, value in parser[section].items():
            assert conf.has_option(section, option), f"{section} {option}"
            if value.startswith("{"):
                json.loads(value)


def check_text(block: Block, sandbox: Any) -> None:
    """What is shown as it comes out: only where something compares it with that."""
    assert block.page in SHOWN, "no check knows what this shows"
    SHOWN[block.page](block.text)


def check_signature(text: str) -> None:
    name, _, _ = text.partition("(")
    assert name in queries.__all__
    assert set(inspect.signature(getattr(queries, name)).parameters) <= set(re.findall(r"\w+", text))


def check_log(text: str) -> None:
    """Its lines come from those in the code, with values between quotes, colons and spaces."""
    source = re.sub(r'"\s*f?"', "", inspect.getsource(events))
    for line in text.splitlines():
        parts = re.findall(r"[A-Za-z][a-z ;.,']{11,}", re.sub(r"GET \S+ \S+|'[^']*'|\"[^\"]*\"|\([^)]*\)", "|", line))
        assert parts
        for part in parts:
            assert part.strip() in source, part


def check_sessions(text: str) -> None:
    """The table is that of the command."""
    with redirect_stdout(StringIO()) as output:
        print_sessions(Namespace(first="2026-12-23", last="2026-12-29", output="table"))
    assert [line.rstrip() for line in output.getvalue().splitlines() if line.strip()] == text.splitlines()


SHOWN: dict[str, Callable[[str], None]] = {
    "CONTRIBUTING.md": lambda text: None,
    "docs/events.md": check_log,
    "docs/howto/trading-days.md": check_sessions,
    # tests/checks/test_completeness.py compares it.
    "docs/howto/completeness.md": lambda text: None,
    "docs/queries.md": check_signature,
    START: lambda text: None,
}
"""The guide and the first page have tests of their own, here and in ``test_contributing.py``."""

CHECKS: dict[str, Callable[[Block, Any], None]] = {
    "console": check_console,
    "ini": check_ini,
    "json": check_json,
    "text": check_text,
    "yaml": check_yaml,
}


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.kind != "python"], ids=lambda block: block.where)
def test_what_else_is_shown_holds(openmarkets_sandbox, block: Block):
    assert block.kind in CHECKS, f"no check knows blocks of the kind {block.kind!r}"
    CHECKS[block.kind](block, openmarkets_sandbox)


def test_no_block_is_left_out():
    """Fences with a different start and end would hide the text between them."""
    for path, count in _fences():
        assert count == 2 * sum(ROOT / block.page == path for block in BLOCKS), path


def _fences() -> Iterator[tuple[Path, int]]:
    for path in dict.fromkeys(ROOT / block.page for block in BLOCKS):
        yield path, len(re.findall(r"^\s*(?:```|~~~)", path.read_text(), re.MULTILINE))
