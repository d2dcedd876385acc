from __future__ import annotations

import multiprocessing
import os
import signal
import stat
import threading
import time
from pathlib import Path

import pytest

from openmarkets_provider.client.settings import Settings
from openmarkets_provider.client.token_stores import FileStore, RecordCipher, record_key
from openmarkets_provider.client.tokens import Failure, Instant, Record, Token, now
from openmarkets_provider.exceptions import OpenmarketsScopeNotInPlan

KEY = "0123456789abcdef0123456789abcdef"
SECRET = "a client secret"
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "cache", RecordCipher(SECRET))


def a_record(value: str = "the-access-token", age: float = 0, lifetime: float = 3600) -> Record:
    moment = now()
    moment = Instant(moment.wall - age, moment.boot - age, moment.boot_id)
    return Record(moment, Token(value, "market-data-api", moment, lifetime))


def test_what_is_saved_is_read_back_by_another_store_of_the_same_secret(store: FileStore):
    record = Record(now(), a_record().token, Failure.of(OpenmarketsScopeNotInPlan("no", status=400), now()))
    assert store.load(KEY) is None
    store.save(KEY, record)
    assert FileStore(store.directory, RecordCipher(SECRET)).load(KEY) == record


def test_the_file_is_private_and_shows_neither_token_nor_client(store: FileStore):
    store.save(KEY, a_record())
    path = store.directory / f"{KEY}.token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(store.directory.stat().st_mode) == 0o700
    assert b"the-access-token" not in path.read_bytes()
    assert b"market-data" not in path.read_bytes()


@pytest.mark.parametrize("damage", [b"", b"x", b"x" * 11, b"x" * 500, b"\0" * (2 << 20)])
def test_a_damaged_file_counts_as_none_and_is_replaced(store: FileStore, damage: bytes):
    store.save(KEY, a_record())
    (store.directory / f"{KEY}.token").write_bytes(damage)
    assert store.load(KEY) is None
    store.save(KEY, a_record("new"))
    assert store.load(KEY).token.value == "new"


def test_another_secret_or_another_key_opens_nothing(store: FileStore):
    store.save(KEY, a_record())
    assert FileStore(store.directory, RecordCipher("another")).load(KEY) is None
    other = "f" * 32
    (store.directory / f"{KEY}.token").rename(store.directory / f"{other}.token")
    assert store.load(other) is None


def test_a_record_of_another_version_counts_as_none(store: FileStore):
    cipher = RecordCipher(SECRET)
    nonce = b"n" * 12
    sealed = nonce + cipher._aead.encrypt(nonce, b"\x81\xa7unknown\x01", KEY.encode())
    assert cipher.open(KEY, sealed) is None


def test_each_thing_that_makes_a_token_differ_makes_another_key():
    base = {"client_id": "id", "client_secret": "secret"}
    variants = [
        base,
        base | {"client_id": "id2"},
        base | {"client_secret": "secret2"},
        base | {"environment": "test"},
        base | {"client_auth_encoding": "raw"},
    ]
    keys = {record_key(Settings(**variant), scope) for variant in variants for scope in ("oms-api", "news-api")}
    assert len(keys) == 2 * len(variants)
    assert all(len(key) == 32 and "id" not in key for key in keys)
    assert record_key(Settings(**base), "oms-api") == record_key(Settings(**base, timeout=1), "oms-api")


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
        store.save(KEY, a_record())
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
def test_a_token_file_that_is_not_a_private_plain_file_is_refused(store: FileStore, put):
    store.save(KEY, a_record())
    path = store.directory / f"{KEY}.token"
    path.unlink()
    put(path)
    with pytest.raises(OSError, match="token"):
        store.load(KEY)


def test_saving_over_a_symlink_replaces_the_link_and_not_its_target(store: FileStore, tmp_path: Path):
    store.save(KEY, a_record())
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path = store.directory / f"{KEY}.token"
    path.unlink()
    path.symlink_to(victim)
    store.save(KEY, a_record("new"))
    assert victim.read_text() == "precious"
    assert store.load(KEY).token.value == "new"


def test_a_symlink_in_place_of_the_lock_is_not_followed(store: FileStore, tmp_path: Path):
    store.load(KEY)
    victim = tmp_path / "victim"
    (store.directory / f"{KEY}.lock").symlink_to(victim)
    with pytest.raises(OSError, match="lock"), store.lock(KEY, 1):
        pass
    assert not victim.exists()


def test_a_failed_write_leaves_the_old_record_and_no_temporary_file(store: FileStore):
    store.save(KEY, a_record("old"))
    path = store.directory / f"{KEY}.token"
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError, match="token"):
        store.save(KEY, a_record("new"))
    assert sorted(entry.suffix for entry in store.directory.iterdir()) == [".token"]


def hold_lock(directory: Path, connection, *, fork: bool = False) -> None:
    store = FileStore(directory, RecordCipher(SECRET))
    with store.lock(KEY, 5) as held:
        if fork and os.fork() == 0:
            connection.send(os.getpid())
            signal.pause()
        if not fork:
            connection.send(held)
        signal.pause()


@pytest.mark.parametrize("fork", [False, True])
def test_the_lock_of_a_killed_process_is_free_at_once_even_when_a_child_of_it_lives(store: FileStore, fork: bool):
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=hold_lock, args=(store.directory, theirs), kwargs={"fork": fork})
    process.start()
    told = ours.recv()
    try:
        with store.lock(KEY, 0) as held:
            assert not held
        process.kill()
        process.join()
        with store.lock(KEY, 5) as held:
            assert held
    finally:
        if fork:
            os.kill(told, signal.SIGKILL)


def write_for_ever(directory: Path, connection) -> None:
    store = FileStore(directory, RecordCipher(SECRET))
    connection.send(True)
    while True:
        store.save(KEY, a_record("x" * 5000))


def test_a_writer_killed_at_any_point_leaves_a_readable_record(store: FileStore):
    store.save(KEY, a_record())
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
        store.save(key, a_record())
        (store.directory / f"{key}.lock").touch(0o600)
    for name in (f"{dead}.token", f"{dead}.lock", f"{locked}.token", f"{locked}.lock", f"{alive}.lock"):
        os.utime(store.directory / name, (1, 1))
    stray = store.directory / f"{dead}.0011223344556677.tmp"
    stray.write_bytes(b"")
    os.utime(stray, (1, 1))
    with store.lock(locked, 1) as held:
        assert held
        store.save(KEY, a_record())
    names = {path.name for path in store.directory.iterdir()}
    # Whether the lock file of a living key stays is filelock's affair.
    assert names - {f"{alive}.lock"} == {f"{KEY}.token", f"{locked}.token", f"{locked}.lock", f"{alive}.token"}


def test_a_sweep_that_fails_does_not_fail_the_save(store: FileStore):
    store.save(KEY, a_record())
    obstacle = store.directory / ("b" * 32 + ".token")
    obstacle.mkdir()
    os.utime(obstacle, (1, 1))
    store.save(KEY, a_record("new"))
    assert store.load(KEY).token.value == "new"
