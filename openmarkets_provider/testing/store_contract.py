"""Tests that every store must pass, including custom ones.

Derive a class from :class:`StoreContract` in a test module, and define its fixture ``store``::

    import pytest
    from openmarkets_provider.testing.store_contract import StoreContract
    from my_company.stores import VaultStore

    class TestVaultStore(StoreContract):
        lease_seconds = 10

        @pytest.fixture
        def store(self):
            return VaultStore()

Each test uses its own keys, so the store need not be empty. Processes are forked, as Airflow forks its tasks.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import secrets
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, ClassVar

import pytest

from openmarkets_provider.client.cache.store import MAX_BYTES, Store

PATIENCE = 60.0
"""Longest wait in seconds. Only a failing store takes that long."""
_PROCESSES = 4
_ROUNDS = 10
_FORK = multiprocessing.get_context("fork")

Work = Callable[[Connection], Any]


class StoreContract:
    """Tests of a :class:`openmarkets_provider.client.cache.store.Store`.

    :cvar lease_seconds: most seconds after which the lock of a paused owner expires; None if it never expires, as with
        a file lock, which the kernel releases when its owner dies.
    """

    lease_seconds: ClassVar[float | None] = None

    @pytest.fixture
    def store(self) -> Store:
        """Return the store under test. Override it."""
        raise NotImplementedError("Override the fixture store; it must return the store under test.")

    @pytest.fixture
    def key(self) -> str:
        """Return a new key."""
        return _new_key()

    def test_its_name_is_one_word(self, store: Store) -> None:
        """It appears in logs and metrics."""
        assert store.name.isidentifier()

    def test_a_new_key_has_no_entry(self, store: Store, key: str) -> None:
        """It returns None, not an error."""
        assert store.load(key) is None

    @pytest.mark.parametrize("data", [b"x", bytes(range(256)), b"\xff" * MAX_BYTES], ids=["one", "any", "long"])
    def test_what_was_saved_is_found(self, store: Store, key: str, data: bytes) -> None:
        """Any bytes, up to the longest entry."""
        store.save(key, data, 60)
        assert store.load(key) == data

    def test_what_was_saved_last_counts_and_for_its_key_alone(self, store: Store, key: str) -> None:
        """A key has one entry."""
        other = _new_key()
        store.save(other, b"other", 60)
        store.save(key, b"a long first one", 60)
        store.save(key, b"second", 60)
        assert store.load(key) == b"second"
        assert store.load(other) == b"other"

    def test_another_process_finds_it(self, store: Store, key: str) -> None:
        """This includes a child that was forked while the store was in use."""
        store.save(key, b"of the parent", 60)

        def work(pipe: Connection) -> None:
            pipe.send(store.load(key))
            store.save(key, b"of the child", 60)

        with _process(work) as (process, pipe):
            assert pipe.recv() == b"of the parent"
            process.join(PATIENCE)
            assert store.load(key) == b"of the child"

    def test_a_lock_has_one_owner_and_is_free_again_afterwards(self, store: Store, key: str) -> None:
        """This test uses threads."""
        for _ in range(3):
            with store.lock(key, PATIENCE) as lease, ThreadPoolExecutor(1) as thread:
                assert isinstance(lease, str)
                assert thread.submit(_try_lock, store, key, 0.0).result(PATIENCE) is False
                assert thread.submit(_try_lock, store, key, 0.2).result(PATIENCE) is False
                assert thread.submit(_try_lock, store, _new_key(), PATIENCE).result(PATIENCE) is True

    def test_a_lock_is_free_again_after_an_error(self, store: Store, key: str) -> None:
        """The error reaches the caller."""
        with pytest.raises(ZeroDivisionError), store.lock(key, PATIENCE):
            raise ZeroDivisionError
        assert _try_lock(store, key, PATIENCE)

    def test_a_lock_keeps_other_processes_out_until_its_release(self, store: Store, key: str) -> None:
        """They wait at least a second, even with a short lease."""
        with _owner(store, key) as (_, pipe):
            assert not _try_lock(store, key, 1)
            pipe.send("leave")
            assert _try_lock(store, key, PATIENCE)

    def test_whoever_waits_gets_the_lock_when_it_is_free(self, store: Store, key: str) -> None:
        """The wait is shorter than the time-out."""
        with ThreadPoolExecutor(1) as thread:
            with store.lock(key, PATIENCE):
                attempt = thread.submit(_try_lock, store, key, PATIENCE)
                # Otherwise the thread would not have waited.
                assert not wait([attempt], 0.3).done
            assert attempt.result(PATIENCE) is True

    def test_no_update_under_the_lock_is_lost(self, store: Store, key: str) -> None:
        """Threads of several processes load, increment and save."""

        def add(_: int) -> None:
            with store.lock(key, PATIENCE) as lease:
                assert lease is not None
                count = int(store.load(key) or b"0")
                store.save(key, str(count + 1).encode(), 60, lease)

        def work(pipe: Connection) -> None:
            with ThreadPoolExecutor(2) as threads:
                pipe.send(len(list(threads.map(add, range(_ROUNDS)))))

        add(0)
        _in_processes(_PROCESSES, work)
        assert store.load(key) == str(_PROCESSES * _ROUNDS + 1).encode()

    @pytest.mark.parametrize("has_child", [False, True], ids=["alone", "with a living child"])
    def test_the_lock_of_a_killed_process_becomes_free(self, store: Store, key: str, has_child: bool) -> None:
        """It takes seconds at most, even if a child of the process stays alive."""
        with _owner(store, key, has_child=has_child) as (process, pipe):
            child = pipe.recv() if has_child else None
            try:
                _kill(process)
                assert _try_lock(store, key, (self.lease_seconds or 0) + 5)
            finally:
                if child is not None:
                    os.kill(child, signal.SIGKILL)

    def test_an_owner_that_was_paused_for_too_long_overwrites_nothing(self, store: Store, key: str) -> None:
        """If locks expire, the entry of the next owner stays."""
        with _owner(store, key, saves=b"old") as (process, pipe):
            assert process.pid is not None
            os.kill(process.pid, signal.SIGSTOP)
            try:
                # A lock that never expires does not become free.
                timeout = 0.5 if self.lease_seconds is None else self.lease_seconds + 5
                with store.lock(key, timeout) as lease:
                    assert (lease is None) == (self.lease_seconds is None)
                    if lease is not None:
                        store.save(key, b"new", 60, lease)
            finally:
                os.kill(process.pid, signal.SIGCONT)
            pipe.send("leave")
            process.join(PATIENCE)
            assert process.exitcode == 0
        assert store.load(key) == (b"old" if self.lease_seconds is None else b"new")

    def test_a_writer_that_is_killed_leaves_the_old_or_the_new_entry(self, store: Store, key: str) -> None:
        """An entry is replaced atomically."""
        store.save(key, b"x" * MAX_BYTES, 60)

        def work(pipe: Connection) -> None:
            pipe.send("writing")
            for letter in itertools.cycle((b"y", b"z")):
                store.save(key, letter * MAX_BYTES, 60)

        for number in range(6):
            with _process(work) as (process, pipe):
                pipe.recv()
                end = time.monotonic() + number / 500
                while time.monotonic() < end:
                    _require_whole(store.load(key))
                _kill(process)
                _require_whole(store.load(key))


def _new_key() -> str:
    return secrets.token_hex(16)


def _try_lock(store: Store, key: str, timeout: float) -> bool:
    with store.lock(key, timeout) as lease:
        return lease is not None


def _require_whole(data: bytes | None) -> None:
    assert data is not None
    assert len(data) == MAX_BYTES
    assert len(set(data)) == 1


@contextmanager
def _process(work: Work) -> Iterator[tuple[BaseProcess, Connection]]:
    """Run work in a forked process, which is killed at the end of the block."""
    ours, theirs = _FORK.Pipe()

    def run() -> None:
        try:
            work(theirs)
        except BaseException:  # noqa: BLE001 (the exit status reports it)
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    process = _FORK.Process(target=run)
    process.start()
    theirs.close()
    try:
        yield process, ours
    finally:
        _kill(process)
        ours.close()


def _in_processes(count: int, work: Work) -> None:
    """Run work concurrently in several processes, and wait until it is done."""
    if count:
        with _process(work) as (process, _):
            _in_processes(count - 1, work)
            process.join(PATIENCE)
            assert process.exitcode == 0


@contextmanager
def _owner(
    store: Store, key: str, *, has_child: bool = False, saves: bytes | None = None
) -> Iterator[tuple[BaseProcess, Connection]]:
    """Run a process that owns a lock until it receives a message. It may fork a child, and save an entry at the end."""

    def work(pipe: Connection) -> None:
        with store.lock(key, PATIENCE) as lease:
            pipe.send("acquired" if lease is not None else "not acquired")
            if has_child:
                child = os.fork()
                if child == 0:
                    signal.pause()
                pipe.send(child)
            pipe.recv()
            if saves is not None:
                store.save(key, saves, 60, lease)

    with _process(work) as (process, pipe):
        assert pipe.recv() == "acquired"
        yield process, pipe


def _kill(process: BaseProcess) -> None:
    process.kill()
    # With a time-out, join would wait for the children, too.
    process.join()
