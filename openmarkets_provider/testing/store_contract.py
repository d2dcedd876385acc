"""What every store must do, as tests that a site can run against its own.

Derive a class from :class:`StoreContract` in a test module, and give it a fixture ``store``::

    import pytest
    from openmarkets_provider.testing.store_contract import StoreContract
    from my_company.caches import VaultStore

    class TestVaultStore(StoreContract):
        lease_seconds = 10

        @pytest.fixture
        def store(self):
            return VaultStore()

Each test uses keys of its own, so that the store need not be empty. Processes are forked, as Airflow forks those of
tasks.
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
"""Seconds within which whatever is waited for must happen; only a store that fails takes as long."""
_PROCESSES = 4
_ROUNDS = 10
_FORK = multiprocessing.get_context("fork")

Work = Callable[[Connection], Any]


class StoreContract:
    """Tests of a :class:`openmarkets_provider.client.cache.store.Store`.

    :cvar lease_seconds: for how long a lock stays taken whose holder can't do anything, at most; None when it never
        expires, as that of a file, which the kernel drops when the holder is dead.
    """

    lease_seconds: ClassVar[float | None] = None

    @pytest.fixture
    def store(self) -> Store:
        """Return the store to test; override it."""
        raise NotImplementedError("Override the fixture store, so that it returns the store to test.")

    @pytest.fixture
    def key(self) -> str:
        """Return a key that nobody has used."""
        return _new_key()

    def test_its_name_is_one_word(self, store: Store) -> None:
        """Logs and metrics show it."""
        assert store.name.isidentifier()

    def test_nothing_is_found_under_a_new_key(self, store: Store, key: str) -> None:
        """None, and no error."""
        assert store.load(key) is None

    @pytest.mark.parametrize("data", [b"x", bytes(range(256)), b"\xff" * MAX_BYTES], ids=["one", "any", "long"])
    def test_what_was_saved_is_found(self, store: Store, key: str, data: bytes) -> None:
        """Any bytes, up to the longest."""
        store.save(key, data, 60)
        assert store.load(key) == data

    def test_what_was_saved_last_counts_and_for_its_key_alone(self, store: Store, key: str) -> None:
        """A key holds one record."""
        other = _new_key()
        store.save(other, b"other", 60)
        store.save(key, b"a long first one", 60)
        store.save(key, b"second", 60)
        assert store.load(key) == b"second"
        assert store.load(other) == b"other"

    def test_another_process_finds_it(self, store: Store, key: str) -> None:
        """Also one that was forked when the store was in use."""
        store.save(key, b"of the parent", 60)

        def work(told: Connection) -> None:
            told.send(store.load(key))
            store.save(key, b"of the child", 60)

        with _process(work) as (process, told):
            assert told.recv() == b"of the parent"
            process.join(PATIENCE)
            assert store.load(key) == b"of the child"

    def test_a_lock_is_one_holders_and_free_again_afterwards(self, store: Store, key: str) -> None:
        """For threads."""
        for _ in range(3):
            with store.lock(key, PATIENCE) as lease, ThreadPoolExecutor(1) as thread:
                assert isinstance(lease, str)
                assert thread.submit(_try_lock, store, key, 0.0).result(PATIENCE) is False
                assert thread.submit(_try_lock, store, key, 0.2).result(PATIENCE) is False
                assert thread.submit(_try_lock, store, _new_key(), PATIENCE).result(PATIENCE) is True

    def test_a_lock_is_free_again_after_an_error(self, store: Store, key: str) -> None:
        """An error goes through."""
        with pytest.raises(ZeroDivisionError), store.lock(key, PATIENCE):
            raise ZeroDivisionError
        assert _try_lock(store, key, PATIENCE)

    def test_a_lock_keeps_other_processes_out_for_as_long_as_it_is_held(self, store: Store, key: str) -> None:
        """For a second at the least, whatever the lease."""
        with _holder(store, key) as (_, told):
            assert not _try_lock(store, key, 1)
            told.send("leave")
            assert _try_lock(store, key, PATIENCE)

    def test_whoever_waits_gets_the_lock_when_it_is_free(self, store: Store, key: str) -> None:
        """Within the time-out."""
        with ThreadPoolExecutor(1) as thread:
            with store.lock(key, PATIENCE):
                got = thread.submit(_try_lock, store, key, PATIENCE)
                # In vain for a while, or the test would tell nothing.
                assert not wait([got], 0.3).done
            assert got.result(PATIENCE) is True

    def test_what_holders_add_is_never_lost(self, store: Store, key: str) -> None:
        """Threads of several processes read, add and save under the lock."""

        def add(_: int) -> None:
            with store.lock(key, PATIENCE) as lease:
                assert lease is not None
                count = int(store.load(key) or b"0")
                store.save(key, str(count + 1).encode(), 60, lease)

        def work(told: Connection) -> None:
            with ThreadPoolExecutor(2) as threads:
                told.send(len(list(threads.map(add, range(_ROUNDS)))))

        add(0)
        _in_processes(_PROCESSES, work)
        assert store.load(key) == str(_PROCESSES * _ROUNDS + 1).encode()

    @pytest.mark.parametrize("has_child", [False, True], ids=["alone", "with a living child"])
    def test_the_lock_of_a_killed_process_becomes_free(self, store: Store, key: str, has_child: bool) -> None:
        """Within seconds, and even when a process that it has forked lives on."""
        with _holder(store, key, has_child=has_child) as (process, told):
            child = told.recv() if has_child else None
            try:
                _kill(process)
                assert _try_lock(store, key, (self.lease_seconds or 0) + 5)
            finally:
                if child is not None:
                    os.kill(child, signal.SIGKILL)

    def test_a_holder_that_was_stopped_for_too_long_overwrites_nothing(self, store: Store, key: str) -> None:
        """Only for locks that expire: what came after it stays."""
        with _holder(store, key, saves=b"old") as (process, told):
            assert process.pid is not None
            os.kill(process.pid, signal.SIGSTOP)
            try:
                # A lock that never expires is waited for in vain.
                timeout = 0.5 if self.lease_seconds is None else self.lease_seconds + 5
                with store.lock(key, timeout) as lease:
                    assert (lease is None) == (self.lease_seconds is None)
                    if lease is not None:
                        store.save(key, b"new", 60, lease)
            finally:
                os.kill(process.pid, signal.SIGCONT)
            told.send("leave")
            process.join(PATIENCE)
            assert process.exitcode == 0
        assert store.load(key) == (b"old" if self.lease_seconds is None else b"new")

    def test_a_writer_that_is_killed_leaves_what_was_or_what_is_new(self, store: Store, key: str) -> None:
        """A record is replaced as a whole."""
        store.save(key, b"x" * MAX_BYTES, 60)

        def work(told: Connection) -> None:
            told.send("writing")
            for letter in itertools.cycle((b"y", b"z")):
                store.save(key, letter * MAX_BYTES, 60)

        for number in range(6):
            with _process(work) as (process, told):
                told.recv()
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
    """Run work in a forked process that is ended when the block is left."""
    ours, theirs = _FORK.Pipe()

    def run() -> None:
        try:
            work(theirs)
        except BaseException:  # noqa: BLE001 (an error ends this process, and its exit status tells)
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
    """Run work in several processes at once, and wait for its end."""
    if count:
        with _process(work) as (process, _):
            _in_processes(count - 1, work)
            process.join(PATIENCE)
            assert process.exitcode == 0


@contextmanager
def _holder(
    store: Store, key: str, *, has_child: bool = False, saves: bytes | None = None
) -> Iterator[tuple[BaseProcess, Connection]]:
    """Let a process hold a lock until it is told to leave; before, it may fork a child, and may save something."""

    def work(told: Connection) -> None:
        with store.lock(key, PATIENCE) as lease:
            told.send("held" if lease is not None else "not held")
            if has_child:
                child = os.fork()
                if child == 0:
                    signal.pause()
                told.send(child)
            told.recv()
            if saves is not None:
                store.save(key, saves, 60, lease)

    with _process(work) as (process, told):
        assert told.recv() == "held"
        yield process, told


def _kill(process: BaseProcess) -> None:
    process.kill()
    # With a time-out, this would wait for its children, too.
    process.join()
