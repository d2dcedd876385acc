from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pytest

from openmarkets_provider.client.auth.provider import TokenProvider
from openmarkets_provider.client.auth.token import Token, TokenEntry
from openmarkets_provider.client.cache import entry as shared_entry
from openmarkets_provider.client.cache.clock import Instant, now
from openmarkets_provider.client.cache.crypto import EntryCipher
from openmarkets_provider.client.cache.file import FileStore
from openmarkets_provider.client.cache.store import Store
from openmarkets_provider.exceptions import (
    OpenmarketsConfigurationError,
    OpenmarketsError,
    OpenmarketsInvalidClient,
    OpenmarketsRateLimited,
    OpenmarketsServerError,
)
from tests.support.processes import FORK

SCOPE = "market-data-api"


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.moved = 0.0

    def __call__(self) -> Instant:
        return Instant(1e9 + self.moved, 100 + self.moved, "boot")


class Identity:
    """Issues t1, t2, ...; can fail, wait for the gate, or call a function first."""

    def __init__(self) -> None:
        self.asked = 0
        self.lifetime = 3600.0
        self.failure: OpenmarketsError | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.meanwhile: Callable[[], object] = lambda: None
        self._lock = threading.Lock()

    def __call__(self, scope: str) -> tuple[str, float]:
        with self._lock:
            self.asked += 1
            number = self.asked
        self.entered.set()
        assert self.gate.wait(20)
        self.meanwhile()
        if self.failure is not None:
            raise self.failure
        return f"t{number}", self.lifetime


class Masker:
    def __init__(self) -> None:
        self.masked: list[tuple[str, str]] = []

    def mask(self, value: str) -> None:
        self.masked.append(("sync", value))

    async def amask(self, value: str) -> None:
        self.masked.append(("async", value))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def identity() -> Identity:
    return Identity()


@pytest.fixture
def masker() -> Masker:
    return Masker()


class Counted(Counter[str]):
    """A metrics that remembers."""

    def count(self, name: str, by: int = 1) -> None:
        self[name] += by

    def time(self, name: str, seconds: float) -> None:
        self[name] += 1


@pytest.fixture
def metrics() -> Counted:
    return Counted()


@pytest.fixture
def make(tmp_path: Path, clock: Clock, identity: Identity, masker: Masker, metrics: Counted):
    """Make sources that share a directory, like the processes of a host: each has its own memory."""
    made = iter(range(1000))

    def source(store: Store | None = None, *, shared: bool = True, wait: float = 10) -> TokenProvider:
        process = next(made)
        if shared and store is None:
            store = _OneKey(FileStore(tmp_path / "cache"))
        return TokenProvider(
            key=lambda scope: f"{scope}-{process}",
            fetch=identity,
            store=store,
            cipher=_OneKeyCipher("secret"),
            masker=masker,
            wait=wait,
            metrics=metrics,
            clock=clock,
        )

    return source


class _OneKey:
    """Makes sources with different keys, and so different memories, use the same file."""

    name = "file"

    def __init__(self, store: FileStore) -> None:
        self.store = store

    def load(self, key: str) -> bytes | None:
        return self.store.load("shared")

    def save(self, key: str, data: bytes, seconds: float, lease: str | None = None) -> None:
        self.store.save("shared", data, seconds, lease)

    def lock(self, key: str, timeout: float):
        return self.store.lock("shared", timeout)


class _OneKeyCipher(EntryCipher):
    def encrypt(self, key: str, value: TokenEntry) -> bytes:
        return super().encrypt("shared", value)

    def decrypt(self, key: str, data: bytes, kind: type) -> TokenEntry | None:
        return super().decrypt("shared", data, kind)


class BrokenStore:
    """A store whose disk is full, read-only, or gone, at every call or at some."""

    name = "broken"

    def __init__(self, *broken: str) -> None:
        self.broken = broken
        self.data: bytes | None = None

    def _fail(self, what: str) -> None:
        if what in self.broken:
            raise OSError(errno.ENOSPC, "No space left on device")

    def load(self, key: str) -> bytes | None:
        self._fail("load")
        return self.data

    def save(self, key: str, data: bytes, seconds: float, lease: str | None = None) -> None:
        self._fail("save")
        self.data = data

    @contextmanager
    def lock(self, key: str, timeout: float):
        self._fail("lock")
        yield "held"


def encrypted(entry: TokenEntry) -> bytes:
    return _OneKeyCipher("secret").encrypt("", entry)


def test_a_token_is_asked_for_once_and_then_comes_from_memory_and_from_the_store(make, identity):
    first, second = make(), make()
    assert [first.get(SCOPE).value, first.get(SCOPE).value, second.get(SCOPE).value] == ["t1", "t1", "t1"]
    assert identity.asked == 1


def test_every_token_is_masked_before_it_is_handed_out(make, masker):
    make().get(SCOPE)
    make().refresh(SCOPE)
    asyncio.run(make().aget(SCOPE))
    assert masker.masked == [("sync", "t1"), ("sync", "t2"), ("async", "t2")]


def test_without_a_store_a_token_stays_in_the_memory_of_the_process(make, identity):
    first, second = make(shared=False), make(shared=False)
    assert [first.get(SCOPE).value, first.get(SCOPE).value, second.get(SCOPE).value] == ["t1", "t1", "t2"]


def test_threads_that_start_at_once_make_one_request(make, identity):
    source = make()
    with ThreadPoolExecutor(32) as pool:
        assert {token.value for token in pool.map(lambda _: source.get(SCOPE), range(200))} == {"t1"}
    assert identity.asked == 1


def test_a_token_near_its_end_is_refreshed_by_one_while_the_others_go_on_with_the_old(make, identity, clock):
    sources = [make() for _ in range(6)]
    for source in sources:
        assert source.get(SCOPE).value == "t1"
    clock.moved = 3400
    identity.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        identity.entered.clear()
        refreshing = pool.submit(sources[0].get, SCOPE)
        assert identity.entered.wait(10)
        assert {source.get(SCOPE).value for source in sources[1:]} == {"t1"}
        assert sources[0].get(SCOPE).value == "t1"
        identity.gate.set()
        assert refreshing.result(10).value == "t2"
    assert {source.get(SCOPE).value for source in sources} == {"t2"}
    assert identity.asked == 2


class MeetingStore(BrokenStore):
    """A store whose first reads wait for each other, for as many as there are threads."""

    def __init__(self, threads: int) -> None:
        super().__init__()
        self._meeting = threading.Barrier(threads)
        self._waiting = iter(range(threads))

    def load(self, key: str) -> bytes | None:
        if next(self._waiting, None) is not None:
            self._meeting.wait(10)
        return super().load(key)


@pytest.mark.parametrize(("age", "asked"), [(1000, 1), (3400, 2)], ids=["valid", "near its end"])
def test_threads_of_a_new_process_read_the_store_before_they_wait_for_each_other(make, identity, clock, age, asked):
    store = MeetingStore(16)
    written = clock()
    store.data = encrypted(TokenEntry(written, Token("t0", SCOPE, written, 3600)))
    clock.moved = age
    source = make(store)
    identity.gate.clear()
    with ThreadPoolExecutor(16) as pool:
        try:
            begun = [pool.submit(source.get, SCOPE) for _ in range(16)]
            # The identity server withholds its reply: only the caller that made the request waits.
            assert {future.result().value for future in islice(as_completed(begun, 10), 17 - asked)} == {"t0"}
        finally:
            identity.gate.set()
        values = Counter(future.result(10).value for future in begun)
    assert values == ({"t0": 16} if asked == 1 else {"t0": 15, "t1": 1})


def test_a_new_process_reads_the_store_before_it_waits_for_the_lock(make, identity):
    first = make()
    first.get(SCOPE)
    identity.gate.clear()
    identity.entered.clear()
    with ThreadPoolExecutor(2) as pool:
        try:
            holder = pool.submit(first.refresh, SCOPE)
            assert identity.entered.wait(10)
            assert pool.submit(make().get, SCOPE).result(10).value == "t1"
        finally:
            identity.gate.set()
        assert holder.result(10).value == "t2"


def test_a_refresh_that_outlives_the_token_does_not_return_it(make, identity, clock):
    source = make()
    source.get(SCOPE)
    clock.moved = 3560
    identity.failure = OpenmarketsServerError("down", status=503)
    identity.meanwhile = lambda: setattr(clock, "moved", 3590)
    with pytest.raises(OpenmarketsServerError):
        source.get(SCOPE)


def test_a_refresh_that_fails_keeps_the_old_token_and_is_tried_again_later(make, identity, clock, caplog):
    source = make()
    source.get(SCOPE)
    clock.moved = 3400
    identity.failure = OpenmarketsServerError("down", status=503)
    assert [source.get(SCOPE).value for _ in range(5)] == ["t1"] * 5
    assert identity.asked == 2
    assert "Could not refresh" in caplog.text
    clock.moved = 3403
    identity.failure = None
    assert source.get(SCOPE).value == "t3"


def test_a_lifetime_counts_from_before_the_request(make, identity, clock):
    source = make()
    identity.meanwhile = lambda: setattr(clock, "moved", 60)
    source.get(SCOPE)
    # 20 seconds before its end, when it is not sent any more.
    clock.moved = 3580
    identity.failure = OpenmarketsServerError("down", status=503)
    with pytest.raises(OpenmarketsServerError):
        source.get(SCOPE)


def test_a_dead_token_is_replaced(make, identity, clock):
    source = make()
    source.get(SCOPE)
    clock.moved = 3600
    assert source.get(SCOPE).value == "t2"


def test_a_failure_is_asked_for_once_and_told_to_everyone(make, identity):
    identity.failure = OpenmarketsInvalidClient("no", status=401, error="invalid_client")
    for _ in range(10):
        with pytest.raises(OpenmarketsInvalidClient, match="no"):
            make().get(SCOPE)
    assert identity.asked == 1


def test_after_its_time_a_failure_is_asked_for_again(make, identity, clock):
    identity.failure = OpenmarketsServerError("down", status=503)
    source = make()
    with pytest.raises(OpenmarketsServerError):
        source.get(SCOPE)
    identity.failure = None
    clock.moved = 2.1
    assert source.get(SCOPE).value == "t2"


def test_what_is_no_error_of_ours_is_not_remembered_and_frees_the_locks(make, identity):
    source = make()
    identity.failure = KeyboardInterrupt()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        source.get(SCOPE)
    identity.failure = None
    assert source.get(SCOPE).value == "t2"


def test_a_refused_token_is_replaced_once_for_all_who_were_refused(make, identity):
    sources = [make() for _ in range(8)]
    refused = [source.get(SCOPE) for source in sources]
    with ThreadPoolExecutor(8) as pool:
        fresh = list(pool.map(lambda pair: pair[0].get(SCOPE, rejected=pair[1]), zip(sources, refused, strict=True)))
    assert {token.value for token in fresh} == {"t2"}
    assert identity.asked == 2


def test_a_replacement_that_is_refused_too_costs_no_further_request_for_a_while(make, identity, clock):
    one, other = make(), make()
    first = one.get(SCOPE)
    second = one.get(SCOPE, rejected=first)
    assert one.get(SCOPE, rejected=second) == second
    assert other.get(SCOPE, rejected=second) == second
    assert identity.asked == 2
    clock.moved = 31
    assert other.get(SCOPE, rejected=second).value == "t3"


def test_refresh_requests_a_token_even_if_there_is_one_and_shares_the_outcome(make, identity):
    source, other = make(), make()
    identity.failure = OpenmarketsInvalidClient("no", status=401)
    with pytest.raises(OpenmarketsInvalidClient):
        source.refresh(SCOPE)
    identity.failure = None
    assert source.refresh(SCOPE).value == "t2"
    assert other.get(SCOPE).value == "t2"


def test_a_forced_refresh_that_fails_takes_nobodys_token_away(make, identity):
    token = make().get(SCOPE)
    identity.failure = OpenmarketsServerError("down", status=503)
    with pytest.raises(OpenmarketsServerError):
        make().refresh(SCOPE)
    assert make().get(SCOPE) == token
    assert identity.asked == 2


def test_a_rate_limit_of_the_identity_server_is_shared_with_the_time_that_is_left(make, identity, clock):
    identity.failure = OpenmarketsRateLimited("slow", status=429, retry_after=100.0)
    with pytest.raises(OpenmarketsRateLimited):
        make().get(SCOPE)
    clock.moved = 40
    with pytest.raises(OpenmarketsRateLimited) as raised:
        make().get(SCOPE)
    assert raised.value.retry_after == pytest.approx(60)


@pytest.mark.parametrize("broken", [["load", "save", "lock"], ["save"], ["lock"], ["load"]])
def test_a_store_that_cannot_be_used_costs_one_warning_and_no_token(make, identity, caplog, broken):
    source = make(BrokenStore(*broken))
    assert [source.get(SCOPE).value for _ in range(3)] == ["t1"] * 3
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "No space left on device" in warnings[0].getMessage()


def test_a_stale_record_that_cannot_be_overwritten_does_not_win_over_memory(make, identity, clock):
    store = BrokenStore("save")
    stale = Token("t0", SCOPE, clock(), 7200)
    store.data = encrypted(TokenEntry(clock(), stale))
    source = make(store)
    assert source.get(SCOPE) == stale
    clock.moved = 10
    assert source.get(SCOPE, rejected=stale).value == "t1"
    # It expires soon, so the store is read again: its token is valid for longer, but older.
    clock.moved = 3500
    identity.failure = OpenmarketsServerError("down", status=503)
    assert source.get(SCOPE).value == "t1"
    assert identity.asked == 2


class HeldStore(BrokenStore):
    @contextmanager
    def lock(self, key: str, timeout: float):
        yield None


def test_a_failure_without_the_lock_leaves_what_another_caller_has_stored(make, identity, clock):
    store = HeldStore()
    stored = encrypted(TokenEntry(clock(), Token("t0", SCOPE, clock(), 3600)))
    identity.meanwhile = lambda: store.save("", stored, 3600)
    identity.failure = OpenmarketsServerError("down", status=503)
    with pytest.raises(OpenmarketsServerError):
        make(store).get(SCOPE)
    assert make(store).get(SCOPE).value == "t0"
    assert identity.asked == 1


def test_a_lock_that_somebody_keeps_for_too_long_is_done_without(make, identity, caplog):
    assert make(HeldStore()).get(SCOPE).value == "t1"
    assert "continuing without" in caplog.text


def test_waiting_for_another_thread_has_an_end(make, identity):
    source = make(wait=0.05)
    identity.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(source.get, SCOPE)
        assert identity.entered.wait(10)
        identity.entered.clear()
        second = pool.submit(source.get, SCOPE)
        assert identity.entered.wait(10)
        identity.gate.set()
        assert {first.result(10).value, second.result(10).value} == {"t1", "t2"}


async def test_coroutines_share_one_request_and_the_loop_goes_on(make, identity):
    source = make()
    identity.gate.clear()
    waiting = [asyncio.create_task(source.aget(SCOPE)) for _ in range(500)]
    # The loop is free while all of them wait: this very line of the test is the proof.
    assert await asyncio.to_thread(identity.entered.wait, 10)
    assert not any(task.done() for task in waiting)
    identity.gate.set()
    assert {token.value for token in await asyncio.gather(*waiting)} == {"t1"}
    assert identity.asked == 1


async def test_cancelling_one_waiter_leaves_the_others_waiting(make, identity):
    source = make()
    identity.gate.clear()
    first, second = (asyncio.create_task(source.aget(SCOPE)) for _ in range(2))
    assert await asyncio.to_thread(identity.entered.wait, 10)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    identity.gate.set()
    assert (await second).value == "t1"


def wait_for_threads() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("openmarkets_token"):
            thread.join(10)
            assert not thread.is_alive()


async def test_a_failure_that_nobody_waits_for_any_more_makes_no_noise(make, identity, caplog):
    source = make()
    identity.gate.clear()
    identity.failure = OpenmarketsServerError("down")
    task = asyncio.create_task(source.aget(SCOPE))
    assert await asyncio.to_thread(identity.entered.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    identity.gate.set()
    await asyncio.to_thread(wait_for_threads)
    await asyncio.sleep(0)
    gc.collect()
    assert not caplog.records


async def test_a_refresh_in_the_background_that_breaks_says_so(make, identity, clock, caplog):
    source = make()
    await source.aget(SCOPE)
    clock.moved = 3400
    identity.failure = ZeroDivisionError("a bug")  # type: ignore[assignment]
    assert (await source.aget(SCOPE)).value == "t1"
    await asyncio.to_thread(wait_for_threads)
    [record] = caplog.records
    assert "a bug" in record.getMessage()
    assert record.exc_info is not None


async def test_coroutines_that_need_another_token_do_not_get_that_of_those_who_wait(make, identity, clock):
    store = MeetingStore(3)
    written = clock()
    refused = Token("t0", SCOPE, written, 3600)
    store.data = encrypted(TokenEntry(written, refused))
    source = make(store)
    some, others = (asyncio.create_task(source.aget(SCOPE, rejected=rejected)) for rejected in (None, refused))
    identity.gate.clear()
    # Both wait for the store until the test does.
    await asyncio.to_thread(store.load, "")
    assert await some == refused
    identity.gate.set()
    assert (await others).value == "t1"


def test_what_a_coroutine_waits_for_is_not_waited_for_in_a_forked_child(make, identity):
    source = make(shared=False)
    identity.gate.clear()

    is_waiting = threading.Event()

    async def get() -> str:
        task = asyncio.create_task(source.aget(SCOPE))
        await asyncio.sleep(0)
        is_waiting.set()
        return (await task).value

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(asyncio.run, get())
        assert is_waiting.wait(10)
        assert identity.entered.wait(10)
        try:
            assert in_child(lambda: identity.gate.set() or asyncio.run(get())) == "t2"
        finally:
            identity.gate.set()
        assert waiting.result(10) == "t1"


async def test_async_errors_and_replacements_are_those_of_sync(make, identity):
    source = make()
    first = await source.aget(SCOPE)
    assert await source.aget(SCOPE) == first
    second = await source.aget(SCOPE, rejected=first)
    assert second.value == "t2"
    assert await source.aget(SCOPE, rejected=second) == second
    identity.failure = OpenmarketsInvalidClient("no", status=401)
    with pytest.raises(OpenmarketsInvalidClient):
        await make(shared=False).aget(SCOPE)


def test_a_source_serves_several_event_loops_one_after_another(make, identity):
    source = make(shared=False)
    for _ in range(3):
        assert asyncio.run(source.aget(SCOPE)).value == "t1"
    assert identity.asked == 1


def in_child(work: Callable[[], str]) -> str:
    """Do work in a forked child, which is killed if it hangs."""
    ours, theirs = FORK.Pipe(duplex=False)
    child = FORK.Process(target=lambda: theirs.send(work()))
    child.start()
    theirs.close()
    try:
        assert ours.poll(20)
        return ours.recv()
    finally:
        child.kill()
        child.join()


def test_a_child_forked_while_a_thread_holds_the_lock_does_not_hang(make, identity):
    source = make(shared=False, wait=1000)
    identity.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(source.get, SCOPE)
        assert identity.entered.wait(10)
        try:
            assert in_child(lambda: identity.gate.set() or source.get(SCOPE).value) == "t2"
        finally:
            identity.gate.set()
        assert held.result(10).value == "t1"


def test_a_forked_child_warns_for_itself(make, caplog):
    make(BrokenStore("save")).get(SCOPE)
    assert shared_entry._warnings
    child = os.fork()
    if child == 0:
        os._exit(len(shared_entry._warnings))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_real_clock_is_the_default(identity, masker):
    source = TokenProvider(
        key=lambda scope: "real", fetch=identity, store=None, cipher=EntryCipher("s"), masker=masker, wait=1
    )
    assert source.get(SCOPE).obtained.elapsed(now()) < 60


def test_what_is_wrong_on_this_side_is_not_held_against_a_corrected_connection(make, identity):
    identity.failure = OpenmarketsConfigurationError("ca_bundle")
    source = make()
    with pytest.raises(OpenmarketsConfigurationError):
        source.get(SCOPE)
    identity.failure = None
    assert make().get(SCOPE).value == "t2"


def test_what_happens_is_counted(make, identity, clock, metrics):
    first, second = make(), make()
    first.get(SCOPE)
    first.get(SCOPE)
    second.get(SCOPE)
    assert metrics == {
        "token.requests": 1,
        "token.request_time": 1,
        "token.lock_wait": 1,
        "token.hits.memory": 1,
        "token.hits.file": 1,
    }
    clock.moved = 3600 - 200
    first.get(SCOPE)
    assert (metrics["token.refreshes"], metrics["token.requests"]) == (1, 2)
