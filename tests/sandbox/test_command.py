"""The command line: as a separate process, and in this one."""

from __future__ import annotations

import io
import json
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import httpx
import pytest
from airflow.providers.common.compat.sdk import Connection

from openmarkets_provider.get_provider_info import CONNECTION_FIELDS, INTEGRATION, RELABELING
from openmarkets_provider.hooks._connection_settings import make_settings
from openmarkets_provider.sandbox.__main__ import _greeting, main
from openmarkets_provider.sandbox.server import SandboxServer

COMMAND = [sys.executable, "-m", "openmarkets_provider.sandbox"]
BLOCKED = "import sys, runpy; sys.modules['{}'] = None; runpy.run_module('{}', run_name='__main__')"


@contextmanager
def running(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line.rstrip())
            if line.startswith("export "):
                break
        yield process, lines
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_a_signal(number: signal.Signals) -> None:
    with running("--port", "0", "--token-lifetime", "7") as (process, lines):
        assert "stand-in" in lines[0]
        assert "not the real service" in lines[0]
        assert not any("Warning" in line for line in lines)
        (url,) = (line.removeprefix("URL: ") for line in lines if line.startswith("URL: "))
        assert re.fullmatch(r"http://127\.0\.0\.1:[1-9][0-9]+", url)
        _, setting = shlex.split(lines[-1])
        name, _, value = setting.partition("=")
        assert name == "AIRFLOW_CONN_OPENMARKETS_DEFAULT"
        connection = json.loads(value)
        reply = httpx.post(
            f"{connection['host']}/connect/token",
            data={"grant_type": "client_credentials", "scope": "oms-api"},
            auth=(connection["login"], connection["password"]),
            trust_env=False,
        )
        assert reply.json()["expires_in"] == 7
        headers = {"Authorization": f"Bearer {reply.json()['access_token']}"}
        accounts = f"{connection['extra']['oms_url']}/accounts/v1"
        assert httpx.get(accounts, headers=headers, trust_env=False).status_code == 200
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (0, "", "")


def test_the_fields_of_the_form_give_the_same_connection_as_the_environment() -> None:
    with SandboxServer() as sandbox:
        lines = _greeting(sandbox).splitlines()
    fields = dict(line.strip().split(": ", 1) for line in lines if line.startswith("  "))
    assert fields.pop("Connection ID") == "openmarkets_default"
    assert fields.pop("Connection Type") == INTEGRATION
    standard = {name: fields.pop(label) for name, label in RELABELING.items()}
    extra = {name: fields.pop(field["label"]) for name, field in CONNECTION_FIELDS.items() if field["label"] in fields}
    assert not fields
    for name in ("environment", "orders"):
        shown = CONNECTION_FIELDS[name]["schema"]["values_display"]
        extra[name] = next(value for value, text in shown.items() if text == extra[name])
    typed = Connection(conn_id="typed", conn_type="openmarkets", extra=json.dumps(extra), **standard)
    pasted = Connection.from_json(json.dumps(sandbox.connection), conn_id="pasted")
    assert make_settings(typed) == make_settings(pasted)


def test_it_stands_still_at_a_time() -> None:
    with running("--port", "0", "--now", "2026-03-05T10:30:00+11:00") as (_, lines):
        clock = httpx.get(f"{lines[1].removeprefix('URL: ')}/_sandbox/clock", trust_env=False).json()
    assert clock == {"now": "2026-03-05T10:30:00+11:00"}


def test_it_serves_https_with_a_name_of_its_own(tmp_path: Path) -> None:
    with running("--port", "0", "--host", "127.0.0.1", "--tls", str(tmp_path), "--name", "sandbox.test") as (_, lines):
        (url,) = (line.removeprefix("URL: ") for line in lines if line.startswith("URL: "))
        assert re.fullmatch(r"https://sandbox\.test:[1-9][0-9]+", url)
        made = json.loads(shlex.split(lines[-1])[1].partition("=")[2])
        assert made["extra"]["ca_bundle"] == str(tmp_path / "ca.pem")
        assert make_settings(Connection.from_json(json.dumps(made), conn_id="om")).identity_url == f"{url}/identity"


def test_a_folder_that_can_not_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["--port", "0", "--tls", str(tmp_path / "file")]) == 1
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_only_loopback_is_listened_on() -> None:
    with running("--port", "0") as (process, lines):
        port = int(lines[1].rpartition(":")[2])
        with open(f"/proc/{process.pid}/net/tcp") as table:
            local = [line.split()[1] for line in table if line.split()[3] == "0A"]
    assert [address for address in local if address.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]


@pytest.mark.parametrize(("package", "blocked"), [("uvicorn", "uvicorn"), ("starlette", "starlette.requests")])
def test_a_missing_extra_is_one_clear_line(package: str, blocked: str) -> None:
    code = BLOCKED.format(blocked, "openmarkets_provider.sandbox")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2, package
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "pip install 'airflow-provider-openmarkets[sandbox]'" in line


def test_another_missing_module_is_not_taken_for_the_extra() -> None:
    code = BLOCKED.format("openmarkets_provider.sandbox.app", "openmarkets_provider.sandbox")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr


def in_a_thread(arguments: list[str]) -> tuple[int, str]:
    """Run the command in a thread, end it by a signal to that thread, and return its status and output."""
    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(main(arguments)), daemon=True)
    deadline = time.monotonic() + 60
    with redirect_stdout(io.StringIO()) as out:
        thread.start()
        while "export " not in out.getvalue():
            assert time.monotonic() < deadline
            thread.join(0.01)
        assert thread.ident is not None
        signal.pthread_kill(thread.ident, signal.SIGTERM)
        thread.join(timeout=30)
    return statuses[0], out.getvalue()


def test_it_ends_with_status_0() -> None:
    status, out = in_a_thread(["--port", "0", "--latency", "0.5"])
    assert status == 0
    assert "Warning" not in out


def test_an_address_that_others_reach_is_warned_of() -> None:
    everywhere, loopback = (SandboxServer(host=host) for host in ("0.0.0.0", "127.0.0.1"))
    assert "Warning: other machines can reach this server" in _greeting(everywhere).splitlines()[1]
    assert "Warning" not in _greeting(loopback)


def test_a_port_in_use_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--port", str(port)]) == 1
    assert f"Cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--port", "65536"],
        ["--port", "x"],
        ["--token-lifetime", "-1"],
        ["--token-lifetime", "1.5"],
        ["--latency", "nan"],
        ["--latency=-1"],
        ["--now", "2026-03-05T10:30:00"],
        ["--now", "noon"],
        ["--now", "1999-12-31T12:00:00Z"],
    ],
)
def test_wrong_options_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert arguments[0].partition("=")[0] in capsys.readouterr().err
