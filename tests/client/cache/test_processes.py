"""Many processes of one host whose files are in trouble: how they get their tokens."""

from __future__ import annotations

import logging
import resource
import signal
import threading
from pathlib import Path

import pytest

from openmarkets_provider.client.cache.file import FileStore
from openmarkets_provider.client.client import OpenmarketsClient
from openmarkets_provider.client.settings import Settings
from tests.client.conftest import token_reply
from tests.support.hostile import HostileServer
from tests.support.processes import NoMasker, in_processes

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
