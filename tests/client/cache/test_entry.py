from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from openmarkets_provider.client.cache.crypto import EntryCipher
from openmarkets_provider.client.cache.entry import SharedEntry
from openmarkets_provider.client.cache.file import FileStore

KEY, OTHER = "0123456789abcdef" * 2, "f" * 32
CIPHER = EntryCipher("secret")


class Value(msgspec.Struct, frozen=True):
    number: int


class Another(msgspec.Struct, frozen=True):
    text: str


class SiteStore:
    """A store that fails in some methods, and remembers leases."""

    def __init__(self, name: str = "site", *broken: str) -> None:
        self.name = name
        self.broken = broken
        self.data: bytes | None = None
        self.leases: list[str | None] = []
        self.waits: list[float] = []
        self.releases = 0

    def _call(self, method: str) -> None:
        if method in self.broken:
            raise OSError(f"{method} is broken")

    def load(self, key: str) -> bytes | None:
        self._call("load")
        return self.data

    def save(self, key: str, data: bytes, seconds: float, lease: str | None = None) -> None:
        self._call("save")
        self.data = data
        self.leases.append(lease)

    @contextmanager
    def lock(self, key: str, timeout: float) -> Iterator[str | None]:
        self._call("lock")
        self.waits.append(timeout)
        try:
            yield "the lease" if timeout else None
        finally:
            self.releases += 1


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.WARNING, logger="openmarkets_provider")
    return lambda: [record.getMessage() for record in caplog.records]


def test_what_is_saved_is_loaded_by_another_process_that_has_the_secret(tmp_path: Path):
    store = FileStore(tmp_path / "cache")
    entry = SharedEntry(store, KEY, CIPHER, Value)
    assert entry.load() is None
    entry.save(Value(1), 60)
    entry.save(Value(2), 60)
    assert SharedEntry(store, KEY, EntryCipher("secret"), Value).load() == Value(2)
    assert SharedEntry(store, KEY, EntryCipher("another"), Value).load() is None
    assert SharedEntry(store, OTHER, CIPHER, Value).load() is None
    assert SharedEntry(store, KEY, CIPHER, Another).load() is None


def test_without_a_store_nothing_is_shared_and_the_lock_is_free(warnings):
    entry = SharedEntry(None, KEY, CIPHER, Value)
    with entry.lock(0) as lease, entry.lock(0) as second:
        assert isinstance(lease, str)
        assert isinstance(second, str)
        entry.save(Value(1), 60, lease)
    assert entry.load() is None
    assert entry.name == "memory"
    assert warnings() == []


def test_a_save_has_the_lease_of_the_lock():
    store = SiteStore()
    entry = SharedEntry(store, KEY, CIPHER, Value)
    with entry.lock(1) as lease:
        entry.save(Value(1), 60, lease)
    assert store.leases == ["the lease"]
    assert store.releases == 1
    with entry.lock(0) as lease:
        assert lease is None


def test_those_who_wait_for_a_lock_do_not_give_up_in_the_same_instant():
    store = SiteStore()
    for _ in range(32):
        with SharedEntry(store, KEY, CIPHER, Value).lock(10):
            pass
    assert len(set(store.waits)) > 16
    assert all(10 <= wait <= 15 for wait in store.waits)
    with SharedEntry(store, KEY, CIPHER, Value).lock(0):
        assert store.waits[-1] == 0


def test_an_error_under_the_lock_reaches_the_caller_and_releases_it():
    store = SiteStore()
    with pytest.raises(OSError, match="mine"), SharedEntry(store, KEY, CIPHER, Value).lock(1):
        raise OSError("mine")
    assert store.releases == 1


@pytest.mark.parametrize("broken", [["load"], ["save"], ["lock"], ["load", "save", "lock"]])
def test_a_store_that_fails_costs_one_warning_and_no_error(warnings, broken: list[str]):
    entry = SharedEntry(SiteStore("site", *broken), KEY, CIPHER, Value)
    for _ in range(3):
        with entry.lock(1) as lease:
            assert lease is not None
            entry.save(Value(1), 60, lease)
        assert entry.load() == (None if {"load", "save"} & set(broken) else Value(1))
    (text,) = warnings()
    assert text.startswith("The site store can't be used: ")
    assert " is broken. " in text


def test_each_store_has_a_warning_of_its_own(warnings):
    for name in ("one", "other", "one"):
        SharedEntry(SiteStore(name, "load"), KEY, CIPHER, Value).load()
    assert len(warnings()) == 2
