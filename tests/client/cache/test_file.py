from __future__ import annotations

import multiprocessing
import os
import signal
import stat
import threading
import time
from pathlib import Path

import pytest

from openmarkets_provider.client.cache.file import FileStore

KEY = "0123456789abcdef0123456789abcdef"
DATA = b"sealed"
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "cache")


def test_what_is_saved_is_read_back_by_another_store(store: FileStore):
    assert store.load(KEY) is None
    store.save(KEY, DATA, 60)
    assert FileStore(store.directory).load(KEY) == DATA


def test_the_file_is_private(store: FileStore):
    store.save(KEY, DATA, 60)
    path = store.directory / f"{KEY}.entry"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(store.directory.stat().st_mode) == 0o700


def make_symlink(directory: Path) -> None:
    real = directory.with_name("real")
    real.mkdir(mode=0o700)
    directory.symlink_to(real)


def make_open(directory: Path) -> None:
    directory.mkdir()
    directory.chmod(0o777)


def make_foreign(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    os.chown(directory, 12345, 12345)


def make_file(directory: Path) -> None:
    directory.write_text("")


@pytest.mark.parametrize("make", [make_symlink, make_open, make_foreign, make_file])
def test_a_directory_that_others_may_have_made_is_refused(store: FileStore, make):
    if make is make_foreign and os.geteuid() != 0:
        pytest.fail("This test gives a directory away and must run as root.")
    make(store.directory)
    with pytest.raises(OSError, match="cache"):
        store.load(KEY)
    with pytest.raises(OSError, match="cache"):
        store.save(KEY, DATA, 60)
    with pytest.raises(OSError, match="cache"), store.lock(KEY, 0):
        pass


def put_symlink(path: Path) -> None:
    target = path.with_name("target")
    target.write_bytes(b"")
    path.symlink_to(target)


def put_directory(path: Path) -> None:
    path.mkdir()


def put_fifo(path: Path) -> None:
    os.mkfifo(path, 0o600)


def put_hard_link(path: Path) -> None:
    target = path.with_name("target")
    target.write_bytes(b"")
    target.chmod(0o600)
    path.hardlink_to(target)


def put_open(path: Path) -> None:
    path.write_bytes(b"")
    path.chmod(0o644)


@pytest.mark.parametrize("put", [put_symlink, put_directory, put_fifo, put_hard_link, put_open])
def test_a_file_that_is_not_a_private_plain_file_is_refused(store: FileStore, put):
    store.save(KEY, DATA, 60)
    path = store.directory / f"{KEY}.entry"
    path.unlink()
    put(path)
    with pytest.raises(OSError, match="entry"):
        store.load(KEY)


def test_saving_over_a_symlink_replaces_the_link_and_not_its_target(store: FileStore, tmp_path: Path):
    store.save(KEY, DATA, 60)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path = store.directory / f"{KEY}.entry"
    path.unlink()
    path.symlink_to(victim)
    store.save(KEY, b"new", 60)
    assert victim.read_text() == "precious"
    assert store.load(KEY) == b"new"


def test_a_symlink_in_place_of_the_lock_is_not_followed(store: FileStore, tmp_path: Path):
    store.load(KEY)
    victim = tmp_path / "victim"
    (store.directory / f"{KEY}.lock").symlink_to(victim)
    with pytest.raises(OSError, match="lock"), store.lock(KEY, 1):
        pass
    assert not victim.exists()


def test_a_failed_write_leaves_the_old_record_and_no_temporary_file(store: FileStore):
    store.save(KEY, b"old", 60)
    path = store.directory / f"{KEY}.entry"
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError, match="entry"):
        store.save(KEY, b"new", 60)
    assert sorted(entry.suffix for entry in store.directory.iterdir()) == [".entry"]


def hold_lock(directory: Path, connection, *, fork: bool = False) -> None:
    store = FileStore(directory)
    with store.lock(KEY, 5) as held:
        if fork and os.fork() == 0:
            connection.send(os.getpid())
            signal.pause()
        if not fork:
            connection.send(held is not None)
        signal.pause()


@pytest.mark.parametrize("fork", [False, True])
def test_the_lock_of_a_killed_process_is_free_at_once_even_when_a_child_of_it_lives(store: FileStore, fork: bool):
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=hold_lock, args=(store.directory, theirs), kwargs={"fork": fork})
    process.start()
    report = ours.recv()
    try:
        with store.lock(KEY, 0) as held:
            assert not held
        process.kill()
        process.join()
        with store.lock(KEY, 5) as held:
            assert held
    finally:
        if fork:
            os.kill(report, signal.SIGKILL)


def write_for_ever(directory: Path, connection) -> None:
    store = FileStore(directory)
    connection.send(True)
    while True:
        store.save(KEY, b"x" * 5000, 60)


def test_a_writer_killed_at_any_point_leaves_a_readable_record(store: FileStore):
    store.save(KEY, DATA, 60)
    for wait in range(12):
        ours, theirs = FORK.Pipe()
        process = FORK.Process(target=write_for_ever, args=(store.directory, theirs))
        process.start()
        ours.recv()
        deadline = time.monotonic() + wait / 1000
        while time.monotonic() < deadline:
            assert store.load(KEY) is not None
        process.kill()
        process.join()
        assert store.load(KEY) is not None
        with store.lock(KEY, 0) as held:
            assert held


def test_the_lock_serves_threads_one_at_a_time_and_ends_waiting(store: FileStore):
    inside = threading.Event()
    leave = threading.Event()

    def hold() -> None:
        with store.lock(KEY, 5):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(10)
    with store.lock(KEY, 0.05) as held:
        assert not held
    leave.set()
    with store.lock(KEY, 10) as held:
        assert held
    thread.join()


def test_files_past_their_use_are_swept_and_living_or_locked_ones_stay(store: FileStore):
    dead, locked, alive = "d" * 32, "e" * 32, "a" * 32
    for key in (dead, locked, alive):
        store.save(key, DATA, 60)
        (store.directory / f"{key}.lock").touch(0o600)
    for name in (f"{dead}.entry", f"{dead}.lock", f"{locked}.entry", f"{locked}.lock", f"{alive}.lock"):
        os.utime(store.directory / name, (1, 1))
    stray = store.directory / f"{dead}.0011223344556677.tmp"
    stray.write_bytes(b"")
    os.utime(stray, (1, 1))
    with store.lock(locked, 1) as held:
        assert held
        store.save(KEY, DATA, 60)
    names = {path.name for path in store.directory.iterdir()}
    # A living key may have a lock file.
    assert names - {f"{alive}.lock"} == {f"{KEY}.entry", f"{locked}.entry", f"{locked}.lock", f"{alive}.entry"}


def test_a_sweep_that_fails_does_not_fail_the_save(store: FileStore):
    store.save(KEY, DATA, 60)
    obstacle = store.directory / ("b" * 32 + ".entry")
    obstacle.mkdir()
    os.utime(obstacle, (1, 1))
    store.save(KEY, b"new", 60)
    assert store.load(KEY) == b"new"
