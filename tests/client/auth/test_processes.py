"""Many processes of one host, and an identity server on loopback: which ones request tokens, and how often."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from openmarkets_provider import queries
from openmarkets_provider.client.cache.store import Store
from openmarkets_provider.client.client import OpenmarketsClient
from openmarkets_provider.client.settings import Settings
from openmarkets_provider.exceptions import OpenmarketsError
from tests.support.processes import FORK, NoMasker, in_processes
from tests.support.sandbox_process import SandboxProcess

SCOPES = ("market-data-api", "news-api", "oms-api")
LATENCY = "0.2"


@pytest.fixture(scope="module")
def server() -> Iterator[SandboxProcess]:
    with SandboxProcess("--latency", LATENCY) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(server: SandboxProcess) -> SandboxProcess:
    server.reset()
    return server


@pytest.fixture
def make_client(sandbox: SandboxProcess, make_store: Callable[[], Store]) -> Callable[..., OpenmarketsClient]:
    def make(**changes: Any) -> OpenmarketsClient:
        connection = sandbox.connection
        settings = {
            "client_id": connection["login"],
            "client_secret": connection["password"],
            "identity_url": connection["host"],
            **connection["extra"],
            **changes,
        }
        return OpenmarketsClient(Settings(**settings), store=make_store(), masker=NoMasker(), user_agent="tests")

    return make


def test_64_processes_that_start_at_once_make_one_request_a_scope(make_client, sandbox):
    def work() -> list[set[str]]:
        client = make_client()
        return [{client.get_access_token(scope) for _ in range(50)} for scope in SCOPES]

    results = in_processes(64, work)
    for number in range(len(SCOPES)):
        assert len(set.union(*(result[number] for result in results))) == 1
    assert sandbox.stats()["token_requests"] == dict.fromkeys(SCOPES, 1)


def test_a_revoked_token_is_replaced_once_for_all_processes(make_client, sandbox):
    client = make_client()
    client.get_access_token("oms-api")
    client.close()
    sandbox.fault(kind="revoke_tokens")
    asked = sandbox.stats()["token_requests_total"]

    def work() -> int:
        return len(make_client().run(queries.accounts()))

    assert set(in_processes(64, work)) == {3}
    assert sandbox.stats()["token_requests_total"] == asked + 1


def test_a_failing_identity_server_is_asked_once_for_all_who_wait(make_client, sandbox):
    sandbox.fault(target="identity", kind="status", status=400, body={"error": "invalid_scope"}, times=None)

    def work() -> str:
        try:
            make_client().get_access_token("news-api")
        except OpenmarketsError as error:
            return type(error).__name__
        return "a token"

    assert set(in_processes(32, work)) == {"OpenmarketsScopeNotInPlan"}
    assert sandbox.stats()["by_path"]["POST /identity/connect/token"] == 1


def test_a_corrected_secret_works_at_once(make_client, sandbox):
    wrong = make_client(client_secret="not the secret")
    for _ in range(3):
        with pytest.raises(OpenmarketsError, match="invalid_client"):
            wrong.get_access_token("news-api")
    assert sandbox.stats()["token_errors"] == 1
    right = make_client()
    assert right.get_access_token("news-api")
    wrong.close()
    right.close()


def test_a_process_killed_while_it_asks_leaves_nothing_stuck(make_client, sandbox):
    sandbox.fault(target="identity", kind="delay", seconds=30)
    started, report = FORK.Pipe(duplex=False)

    def ask() -> None:
        report.send(True)
        make_client().get_access_token("oms-api")

    holder = FORK.Process(target=ask)
    holder.start()
    started.recv()
    while sandbox.stats()["by_path"].get("POST /identity/connect/token", 0) < 1:
        assert holder.is_alive()
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    client = make_client()
    assert client.get_access_token("oms-api")
    client.close()
