from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from openmarkets_provider.client.cache.fallback import RETRY_SECONDS, FallbackStore
from openmarkets_provider.client.cache.file import FileStore
from tests.client.conftest import redis_store
from tests.support.redis_server import RedisServer

KEY = "0123456789abcdef0123456789abcdef"
LABEL = "Redis (connection 'redis_default')"


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class SiteStore:
    """What a site may have written: fails in some methods, with what it likes; counts its calls."""

    name = "site"

    def __init__(self) -> None:
        self.broken: dict[str, Exception] = {}
        self.data: Any = None
        self.saved: list[tuple[bytes, str | None]] = []
        self.calls = 0

    def _call(self, what: str) -> None:
        self.calls += 1
        if what in self.broken:
            raise self.broken[what]

    def load(self, key: str) -> Any:
        self._call("load")
        return self.data

    def save(self, key: str, data: bytes, seconds: float, lease: str | None = None) -> None:
        self._call("save")
        self.data = data
        self.saved.append((data, lease))

    @contextmanager
    def lock(self, key: str, timeout: float):
        self._call("lock")
        yield "lease"
        self._call("release")

    def break_down(self, error: Exception | None = None) -> None:
        self.broken = dict.fromkeys(("load", "save", "lock", "release"), error or OSError("gone"))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def site() -> SiteStore:
    return SiteStore()


@pytest.fixture
def file(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "cache")


@pytest.fixture
def store(site: SiteStore, file: FileStore, clock: Clock) -> FallbackStore:
    return FallbackStore(site, file, LABEL, clock)


@pytest.fixture
def report(caplog: pytest.LogCaptureFixture) -> Callable[[], list[tuple[str, str]]]:
    caplog.set_level(logging.INFO, logger="openmarkets_provider")
    return lambda: [(record.levelname, record.getMessage()) for record in caplog.records]


def test_while_the_primary_works_it_is_used(store, site, report):
    with store.lock(KEY, 5) as lease:
        store.save(KEY, b"sealed", 60, lease)
    assert store.load(KEY) == b"sealed"
    assert site.saved == [(b"sealed", "lease")]
    assert report() == []


@pytest.mark.parametrize("error", [OSError("gone"), KeyError("x"), RuntimeError("a bug")])
def test_whatever_it_raises_the_file_stands_in_with_one_warning(store, site, file, report, error):
    site.break_down(error)
    assert store.load(KEY) is None
    with store.lock(KEY, 5) as lease:
        store.save(KEY, b"sealed", 60, lease)
    assert store.load(KEY) == file.load(KEY) == b"sealed"
    [(level, text)] = report()
    assert level == "WARNING"
    assert LABEL in text
    assert str(error) in text


def test_it_is_left_alone_for_a_while_and_then_tried_by_one_caller(store, site, clock, report):
    site.break_down()
    for _ in range(20):
        store.load(KEY)
    assert site.calls == 1
    clock.seconds = RETRY_SECONDS + 1
    for _ in range(20):
        store.load(KEY)
    assert site.calls == 2
    site.broken = {}
    site.data = b"sealed"
    assert store.load(KEY) is None
    clock.seconds = 2 * RETRY_SECONDS + 2
    assert store.load(KEY) == b"sealed"
    assert [level for level, _ in report()] == ["WARNING", "INFO"]
    assert "works again" in report()[1][1]


def test_a_process_warns_once_however_often_it_breaks_down(store, site, clock, report):
    for _ in range(4):
        site.break_down()
        store.load(KEY)
        site.broken = {}
        clock.seconds += RETRY_SECONDS + 1
        store.load(KEY)
    assert [level for level, _ in report()] == ["WARNING", "INFO"] + ["INFO", "INFO"] * 3


def test_all_stores_of_a_process_share_what_is_known_of_the_primary(site, file, clock, report):
    site.break_down()
    for _ in range(10):
        FallbackStore(site, file, LABEL, clock).load(KEY)
    assert site.calls == 1
    FallbackStore(site, file, "another", clock).load(KEY)
    assert site.calls == 2
    assert len(report()) == 2


def test_a_forked_child_tries_and_warns_for_itself(store, site, report):
    site.break_down()
    store.load(KEY)
    if (child := os.fork()) == 0:
        store.load(KEY)
        os._exit(site.calls * 10 + len(report()))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 22


def test_what_was_locked_in_the_file_is_saved_in_the_file(store, site, file, clock):
    """The primary works again, and has a newer entry from another host."""
    site.break_down()
    with store.lock(KEY, 5) as lease:
        site.broken = {}
        site.data = b"of another host"
        clock.seconds = RETRY_SECONDS + 1
        store.save(KEY, b"of this host", 60, lease)
    assert file.load(KEY) == b"of this host"
    assert store.load(KEY) == b"of another host"


def test_what_was_locked_in_the_primary_is_saved_in_the_file_when_that_is_gone(store, site, file, report):
    with store.lock(KEY, 5) as lease:
        site.break_down()
        store.save(KEY, b"sealed", 60, lease)
    assert file.load(KEY) == b"sealed"
    assert len(report()) == 1


def test_a_lock_that_cannot_be_released_is_no_error(store, site, report):
    with store.lock(KEY, 5):
        site.break_down()
    assert report() == []


def test_an_error_under_the_lock_goes_through_and_frees_it(store, file, site):
    site.break_down()
    with pytest.raises(ZeroDivisionError), store.lock(KEY, 5):
        raise ZeroDivisionError
    with store.lock(KEY, 0) as lease:
        assert lease


def test_a_save_without_a_lock_goes_to_the_primary(store, site):
    store.save(KEY, b"sealed", 60, None)
    assert site.saved == [(b"sealed", None)]


@pytest.mark.parametrize("data", ["a text", 5])
def test_what_is_no_record_is_an_error_of_the_primary(store, site, report, data):
    site.data = data
    assert store.load(KEY) is None
    assert "bytes" in report()[0][1]


def test_what_breaks_both_is_told_to_the_caller(store, site, file):
    site.break_down()
    file.directory.write_text("")
    with pytest.raises(OSError, match="cache"):
        store.load(KEY)


def test_while_redis_is_down_a_host_takes_turns(empty_redis: RedisServer, file: FileStore, report):
    store = FallbackStore(redis_store(empty_redis), file, LABEL)
    empty_redis.kill()
    with store.lock(KEY, 5) as lease:
        with store.lock(KEY, 0.1) as second:
            assert second is None
        store.save(KEY, b"sealed", 60, lease)
    assert store.load(KEY) == b"sealed"
    [(_, text)] = report()
    assert f"127.0.0.1:{empty_redis.port}" in text
    assert empty_redis.password not in text


def test_redis_that_dies_while_its_lock_is_waited_for_hands_over_to_the_file(empty_redis: RedisServer, file, report):
    store = FallbackStore(redis_store(empty_redis), file, LABEL)
    client = empty_redis.client()
    client.set(f"openmarkets:{{{KEY}}}:lock", "of another host")
    client.config_resetstat()

    def take() -> str | None:
        with store.lock(KEY, 60) as lease:
            return lease

    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(take)
        while client.info("commandstats").get("cmdstat_set", {"calls": 0})["calls"] < 3:
            assert not waiting.done()
        empty_redis.kill()
        assert waiting.result(30) is not None
    assert len(report()) == 1


def test_what_was_read_is_there_when_the_primary_is_gone(store, site, file):
    site.data = b"sealed"
    assert store.load(KEY) == b"sealed"
    site.break_down()
    assert store.load(KEY) == b"sealed"


def test_what_was_saved_is_there_when_the_primary_is_gone(store, site, file):
    with store.lock(KEY, 5) as lease:
        store.save(KEY, b"sealed", 60, lease)
    site.break_down()
    assert store.load(KEY) == b"sealed"


def test_a_copy_is_written_once_and_when_it_differs(store, site, file):
    def load() -> int:
        store.load(KEY)
        return (file.directory / f"{KEY}.entry").stat().st_ino

    site.data = b"first"
    first = load()
    assert load() == first
    assert FallbackStore(site, file, LABEL).load(KEY) == b"first"
    assert load() == first
    site.data = b"second"
    assert load() != first
    assert file.load(KEY) == b"second"


def test_a_copy_that_cannot_be_made_is_no_error(store, site, file, report):
    file.directory.write_text("")
    site.data = b"sealed"
    assert store.load(KEY) == b"sealed"
    assert report() == []
