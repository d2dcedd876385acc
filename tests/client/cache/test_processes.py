"""Many processes of one host whose files are in trouble: how they get their tokens."""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from openmarkets_provider.client.auth.provider import TokenProvider
from openmarkets_provider.client.cache.crypto import EntryCipher
from openmarkets_provider.client.cache.file import FileStore
from openmarkets_provider.client.client import OpenmarketsClient
from openmarkets_provider.client.settings import Settings
from tests.client.conftest import token_reply
from tests.support.hostile import HostileServer
from tests.support.processes import FORK, NoMasker, in_processes

KEY = "0123456789abcdef0123456789abcdef"
TASKS = 32
PATIENCE = 30
LATENCY = 0.1
"""Seconds that a token request takes."""


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "cache")


def fill_disk() -> None:
    """Allow this process to create files, but not to write to them."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def test_with_a_full_disk_no_process_waits_for_another_and_each_warns_once(
    store: FileStore, caplog: pytest.LogCaptureFixture
):
    # The server answers nobody until all have sent their requests.
    all_requests = threading.Barrier(TASKS)

    def answer(sock: socket.socket, request: bytes) -> None:
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
    def answer(sock: socket.socket, request: bytes) -> None:
        time.sleep(LATENCY)
        sock.sendall(f"token {threading.get_ident()}".encode())

    ours, theirs = FORK.Pipe()
    end = FORK.Value("d", 0.0)

    def own() -> None:
        with store.lock(KEY, 0) as lease:
            theirs.send(lease)
            signal.pause()

    def work() -> str:
        # Without jitter, all waits would end in the same instant.
        with end.get_lock():
            end.value = end.value or time.monotonic() + 2
        provider = TokenProvider(
            key=lambda scope: KEY,
            fetch=fetch,
            store=store,
            cipher=EntryCipher("secret"),
            masker=NoMasker(),
            wait=max(0.0, end.value - time.monotonic()),
        )
        return provider.get("oms-api").value

    def fetch(scope: str) -> tuple[str, float]:
        # Less work than a client of ours, whose start takes longer than the server on a busy machine.
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            sock.sendall(b"POST /connect/token HTTP/1.1\r\n\r\n")
            return sock.recv(1000).decode(), 3600.0

    owner = FORK.Process(target=own)
    owner.start()
    try:
        assert ours.recv()
        os.kill(owner.pid, signal.SIGSTOP)
        with HostileServer(answer) as server:
            tokens = in_processes(TASKS, work)
            requests = len(server.requests)
    finally:
        owner.kill()
        owner.join()
    print(f"token requests of {TASKS} processes that waited for a stopped owner: {requests}")
    assert all(token.startswith("token") for token in tokens)
    assert requests < TASKS * 3 / 4
