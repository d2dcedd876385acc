"""Many processes of one host whose files are in trouble: how they get their tokens."""

from __future__ import annotations

import logging
import os
import resource
import signal
import threading
import time
from pathlib import Path

import httpx
import pytest

from openmarkets_provider.client.auth.provider import TokenProvider
from openmarkets_provider.client.cache.crypto import EntryCipher
from openmarkets_provider.client.cache.file import FileStore
from openmarkets_provider.client.client import OpenmarketsClient
from openmarkets_provider.client.settings import Settings
from tests.client.conftest import token_reply
from tests.support.hostile import HostileServer
from tests.support.processes import FORK, NoMasker, in_processes
from tests.support.sandbox_process import SandboxProcess

KEY = "0123456789abcdef0123456789abcdef"
TASKS = 32
PATIENCE = 30


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "cache")


def fill_disk() -> None:
    """Let this process create files, and write nothing to them."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def test_with_a_full_disk_no_process_waits_for_another_and_each_warns_once(
    store: FileStore, caplog: pytest.LogCaptureFixture
):
    # The server answers nobody until all have sent their requests.
    all_requests = threading.Barrier(TASKS)

    def answer(sock, request: bytes) -> None:
        all_requests.wait(PATIENCE)
        sock.sendall(token_reply())

    def work() -> list[str]:
        fill_disk()
        client = OpenmarketsClient(settings, store=store, masker=NoMasker(), user_agent="tests")
        client.get_access_token("oms-api")
        return [record.getMessage() for record in caplog.records]

    caplog.set_level(logging.WARNING, logger="openmarkets_provider")
    with HostileServer(answer) as server:
        settings = Settings(client_id="id", client_secret="secret", identity_url=server.url)
        warnings = in_processes(TASKS, work)
        assert len(server.requests) == TASKS
    assert [len(each) for each in warnings] == [1] * TASKS
    assert all(f"'{store.directory}'" in text for [text] in warnings)
    assert not [path for path in store.directory.iterdir() if path.suffix != ".lock"]


def test_the_waits_for_a_stopped_lock_owner_end_one_after_another_and_find_tokens(store: FileStore):
    ours, theirs = FORK.Pipe()

    def own() -> None:
        with store.lock(KEY, 0) as lease:
            theirs.send(lease)
            signal.pause()

    def work() -> str:
        provider = TokenProvider(
            key=lambda scope: KEY,
            fetch=fetch,
            store=store,
            cipher=EntryCipher("secret"),
            masker=NoMasker(),
            wait=max(0.0, end - time.monotonic()),
        )
        return provider.get("oms-api").value

    def fetch(scope: str) -> tuple[str, float]:
        credentials = (sandbox.connection["login"], sandbox.connection["password"])
        form = {"grant_type": "client_credentials", "scope": scope}
        url = f"{sandbox.connection['host']}/connect/token"
        reply = httpx.post(url, data=form, auth=credentials, timeout=PATIENCE, trust_env=False, verify=False).json()
        return reply["access_token"], reply["expires_in"]

    owner = FORK.Process(target=own)
    owner.start()
    try:
        assert ours.recv()
        os.kill(owner.pid, signal.SIGSTOP)
        with SandboxProcess("--latency", "0.1") as sandbox:
            # However long the processes take to start, their waits would end in the same instant.
            end = time.monotonic() + 3
            tokens = in_processes(TASKS, work)
            requests = sandbox.stats()["token_requests_total"]
    finally:
        owner.kill()
        owner.join()
    print(f"token requests of {TASKS} processes that waited for a stopped owner: {requests}")
    assert len(set(tokens)) == requests
    assert requests < TASKS * 3 / 4
