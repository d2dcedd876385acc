from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from openmarkets_provider.client.cache import lock as module
from openmarkets_provider.client.cache.lock import file_lock
from tests.support.processes import in_processes

FORK = multiprocessing.get_context("fork")
PATIENCE = 30


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.lock"


def is_free(path: Path) -> bool:
    with file_lock(path, 0) as acquired:
        return acquired


def open_files(pid: int) -> list[str]:
    files = []
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            files.append(os.readlink(each))
    return files


def test_it_has_one_owner_until_its_release(path: Path):
    with file_lock(path, 0) as acquired:
        assert acquired
        assert not is_free(path)
    assert is_free(path)
    assert module._descriptors == set()


def test_an_error_reaches_the_caller_and_releases_it(path: Path):
    with pytest.raises(ZeroDivisionError), file_lock(path, 0):
        raise ZeroDivisionError
    assert is_free(path)


def test_a_wait_ends_in_time(path: Path):
    with file_lock(path, 0):
        start = time.monotonic()
        with file_lock(path, 0.2) as acquired:
            assert not acquired
        assert 0.2 <= time.monotonic() - start < 5


def test_a_file_that_its_owner_deletes_is_no_lock_for_who_waits(path: Path):
    """Two waiters could own two files of the same name."""

    def wait() -> tuple[bool, bool]:
        with file_lock(path, PATIENCE) as acquired:
            return acquired, path.exists()

    with ThreadPoolExecutor(2) as pool:
        with file_lock(path, 0):
            waiting = [pool.submit(wait) for _ in range(2)]
            time.sleep(0.1)
            path.unlink()
        assert [each.result(PATIENCE) for each in waiting] == [(True, True)] * 2


def test_a_file_without_a_name_is_never_acquired(path: Path, monkeypatch: pytest.MonkeyPatch):
    """The owner deletes the file after it was opened, and before it was locked."""
    flock = module.fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(module.fcntl, "flock", flock)
        path.unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(module.fcntl, "flock", late)
    with file_lock(path, PATIENCE) as acquired:
        assert acquired
        assert path.exists()


def test_a_child_neither_keeps_nor_releases_the_lock_of_its_parent(path: Path):
    with file_lock(path, 0):

        def child() -> tuple[bool, bool]:
            return str(path) in open_files(os.getpid()), is_free(path)

        assert str(path) in open_files(os.getpid())
        assert in_processes(1, child) == [(False, False)]
        assert not is_free(path)


def test_a_child_that_leaves_the_block_of_its_parent_closes_no_file_of_its_own(path: Path):
    with file_lock(path, 0):
        if (child := os.fork()) == 0:
            # It gets the number of the descriptor of the lock.
            file = os.open(path, os.O_RDONLY)
    if child == 0:
        try:
            os.fstat(file)
        except OSError:
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_lock_of_a_killed_owner_is_free_though_threads_forked_meanwhile(path: Path):
    """Children that were forked at any moment stay alive: none has a descriptor of a lock."""
    ours, theirs = FORK.Pipe()

    def own() -> None:
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                with file_lock(path, 0):
                    pass

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        children = []
        for _ in range(40):
            if (child := os.fork()) == 0:
                signal.pause()
            children.append(child)
        stop.set()
        for thread in threads:
            thread.join()
        theirs.send(children)
        signal.pause()

    process = FORK.Process(target=own)
    process.start()
    children = ours.recv()
    try:
        process.kill()
        process.join()
        assert is_free(path)
        files = [file for child in children for file in open_files(child)]
        assert files
        assert str(path) not in files
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)


def test_a_handler_that_forks_while_a_lock_is_acquired_does_not_hang(path: Path):
    def handler(*_: object) -> None:
        if os.fork() == 0:
            os._exit(0)
        os.wait()

    previous = signal.signal(signal.SIGUSR1, handler)
    try:
        with module._fork_lock:
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert is_free(path)


def test_a_file_that_cannot_be_opened_is_an_error(path: Path):
    path.mkdir()
    with pytest.raises(IsADirectoryError, match="lock"), file_lock(path, 1):
        pass
