from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from openmarkets_provider import queries
from openmarkets_provider.client.cache.clock import Instant, now
from openmarkets_provider.client.cache.crypto import EntryCipher
from openmarkets_provider.client.cache.file import FileStore
from openmarkets_provider.client.client import OpenmarketsClient
from openmarkets_provider.client.ratelimit import hold as module
from openmarkets_provider.client.ratelimit.hold import (
    DEFAULT_HOLD,
    MAX_HOLD,
    READ_EVERY,
    Hold,
    Holds,
    OnHold,
)
from openmarkets_provider.exceptions import OpenmarketsRateLimited
from openmarkets_provider.sandbox.server import SandboxServer
from tests.client.conftest import AWKWARD, MakeClient, Runner
from tests.support.processes import FORK

CIPHER = EntryCipher("secret")
PATIENCE = 20
LIMITED = {"kind": "status", "status": 429}


def key(api: str) -> str:
    return f"{api.encode().hex():0<32}"


class Machine:
    """A host: its two clocks, and processes that share only the store."""

    def __init__(self, store: Any, wall: float = 1e9, boot_id: str = "boot") -> None:
        self._store = store
        self._boot_id = boot_id
        self.wall, self.boot = wall, 1000.0

    def clock(self) -> Instant:
        return Instant(self.wall, self.boot, self._boot_id)

    def sleep(self, seconds: float) -> None:
        self.wall += seconds
        self.boot += seconds

    def process(self, cipher: EntryCipher = CIPHER) -> Holds:
        """Start a process with an empty memory; those before it have ended."""
        module.reset()
        return Holds(key=key, store=self._store, cipher=cipher, clock=self.clock)


class CountingStore(FileStore):
    """Notes the threads that look.

    :ivar during: what happens while one does.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.lookers: list[int] = []
        self.during: Callable[[], None] = lambda: None

    def load(self, key: str) -> bytes | None:
        self.lookers.append(threading.get_ident())
        self.during()
        return super().load(key)


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "cache")


@pytest.fixture
def machine(store: FileStore) -> Machine:
    return Machine(store)


def left(holds: Holds, api: str = "oms") -> float:
    try:
        holds.check(api)
    except OnHold as held:
        return held.seconds
    return 0.0


@pytest.mark.parametrize(
    ("asked", "seconds"), [(30.0, 30.0), (0.5, 0.5), (None, DEFAULT_HOLD), (0.0, 0.0), (1e9, MAX_HOLD)]
)
def test_all_processes_leave_an_api_alone_for_as_long_as_it_asked(machine: Machine, asked: Any, seconds: float):
    first = machine.process()
    assert left(first) == 0
    first.record("oms", asked)
    assert left(first) == pytest.approx(seconds)
    other = machine.process()
    assert left(other) == pytest.approx(seconds)
    machine.sleep(seconds / 2)
    assert left(other) == pytest.approx(seconds / 2)
    machine.sleep(seconds / 2)
    assert left(other) == left(machine.process()) == 0


def test_a_longer_hold_is_not_shortened_and_a_shorter_one_is_prolonged(machine: Machine):
    machine.process().record("oms", 30.0)
    other = machine.process()
    other.record("oms", 5.0)
    assert left(other) == left(machine.process()) == pytest.approx(30)
    other.record("oms", 50.0)
    assert left(other) == left(machine.process()) == pytest.approx(50)


def test_what_others_met_meanwhile_is_seen_at_the_next_look(machine: Machine):
    waiting, other = machine.process(), machine.process()
    waiting.record("oms", 5.0)
    machine.sleep(5)
    assert left(waiting) == 0
    other.record("oms", 7.0)
    assert left(waiting) == pytest.approx(7)


def test_one_api_does_not_hold_another(machine: Machine):
    holds = machine.process()
    holds.record("oms", 30.0)
    assert left(holds, "news") == 0


def test_without_a_store_this_process_knows(machine: Machine):
    alone = Machine(None)
    holds = alone.process()
    holds.record("oms", 30.0)
    also = Holds(key=key, store=None, cipher=CIPHER, clock=alone.clock)
    assert left(also) == pytest.approx(30)
    assert left(alone.process()) == 0


@pytest.mark.parametrize("behind", [-3600.0, -50.0, -5.0, 5.0, 50.0, 3600.0])
def test_a_host_whose_clock_differs_is_held_for_as_long_as_asked_at_the_most(tmp_path: Path, behind: float):
    store = CountingStore(tmp_path / "cache")
    Machine(store).process().record("oms", 30.0)
    other = Machine(store, wall=1e9 - behind, boot_id="other")
    holds = other.process()
    assert left(holds) <= 30
    assert (left(holds) > 0) == (-30 < behind < 60)
    other.sleep(30)
    reads = len(store.lookers)
    assert left(holds) == 0
    assert len(store.lookers) == reads + 1


def test_a_wall_clock_that_is_put_back_prolongs_nothing(machine: Machine):
    holds = machine.process()
    holds.record("oms", 30.0)
    machine.wall -= 86400
    assert left(holds) == left(machine.process()) == pytest.approx(30)
    machine.sleep(30)
    assert left(machine.process()) == 0


def test_the_time_in_which_a_machine_sleeps_counts(machine: Machine):
    holds = machine.process()
    holds.record("oms", 3000.0)
    machine.sleep(7200)
    assert left(holds) == left(machine.process()) == 0


FOREIGN = EntryCipher("another secret").encrypt(key("oms"), Hold(Instant(1e9, 1e3, "boot"), 30.0))


@pytest.mark.parametrize("data", [b"", b"x", b"\0" * 200, FOREIGN], ids=["empty", "short", "zeros", "foreign"])
def test_a_record_that_is_damaged_or_foreign_holds_nobody_and_is_replaced(
    machine: Machine, store: FileStore, data: bytes
):
    store.save(key("oms"), data, 60.0)
    holds = machine.process()
    assert left(holds) == 0
    holds.record("oms", 30.0)
    assert left(machine.process()) == pytest.approx(30)


class BrokenStore:
    """A store that can't be used."""

    name = "broken"

    def load(self, key: str) -> bytes | None:
        raise OSError("no")

    def save(self, key: str, data: bytes, seconds: float, lease: str | None = None) -> None:
        raise OSError("no")

    @contextmanager
    def lock(self, key: str, timeout: float) -> Iterator[str | None]:
        raise OSError("no")
        yield None


async def test_a_store_that_fails_is_no_error_and_no_hold():
    machine = Machine(BrokenStore())
    holds = machine.process()
    assert left(holds) == 0
    await holds.acheck("oms")
    holds.record("oms", 30.0)
    await holds.arecord("oms", 20.0)
    assert left(holds) == pytest.approx(30)
    assert left(machine.process()) == 0


def test_a_lock_that_somebody_keeps_does_not_keep_a_hold_from_others(
    machine: Machine, store: FileStore, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "_LOCK_WAIT", 0.0)
    with store.lock(key("oms"), 0):
        machine.process().record("oms", 30.0)
    assert left(machine.process()) == pytest.approx(30)


def test_a_slow_store_is_read_for_a_small_part_of_the_time(tmp_path: Path):
    store = CountingStore(tmp_path / "cache")
    machine = Machine(store)
    store.during = lambda: machine.sleep(0.1)
    holds, start = machine.process(), machine.boot
    for _ in range(1000):
        holds.check("oms")
        machine.sleep(0.02)
    assert len(store.lookers) > 1
    assert 0.1 * len(store.lookers) < 0.03 * (machine.boot - start)


async def test_an_event_loop_looks_seldom_and_never_itself(tmp_path: Path):
    store = CountingStore(tmp_path / "cache")
    machine = Machine(store)
    holds = machine.process()
    await asyncio.gather(*(holds.acheck("oms") for _ in range(100)))
    assert len(store.lookers) == 1
    assert threading.get_ident() not in store.lookers
    await holds.arecord("oms", 30.0)
    assert threading.get_ident() not in store.lookers
    with pytest.raises(OnHold):
        await holds.acheck("oms")
    machine.sleep(READ_EVERY)
    count = len(store.lookers)
    with pytest.raises(OnHold):
        await holds.acheck("oms")
    assert len(store.lookers) == count + 1


def test_threads_that_note_at_once_leave_the_longest(machine: Machine):
    holds = machine.process()
    threads = [threading.Thread(target=holds.record, args=("oms", float(seconds))) for seconds in range(1, 33)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert left(holds) == left(machine.process()) == pytest.approx(32)


def test_a_child_forked_while_a_thread_changes_a_hold_does_not_hang(machine: Machine):
    started, end = threading.Event(), threading.Event()

    class SlowInstant(Instant, frozen=True):
        def elapsed(self, now: Instant) -> float:
            started.set()
            assert end.wait(2 * PATIENCE)
            return super().elapsed(now)

    slow = Holds(key=key, store=None, cipher=CIPHER, clock=lambda: SlowInstant(1e9, 1000.0, "boot"))
    ours, theirs = FORK.Pipe(duplex=False)

    def work() -> None:
        holds = Holds(key=key, store=None, cipher=CIPHER, clock=machine.clock)
        holds.record("oms", 30.0)
        theirs.send(left(holds))

    thread = threading.Thread(target=slow.record, args=("oms", 50.0))
    thread.start()
    assert started.wait(PATIENCE)
    child = FORK.Process(target=work)
    child.start()
    try:
        assert ours.poll(PATIENCE)
        assert ours.recv() == pytest.approx(30)
    finally:
        child.kill()
        child.join()
        end.set()
        thread.join()


# --- logs and metrics of waits


class Metrics:
    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.seconds: list[tuple[str, float]] = []

    def count(self, name: str) -> None:
        self.counts[name] += 1

    def time(self, name: str, seconds: float) -> None:
        self.seconds.append((name, seconds))

    def sent(self, endpoint: str, request_id: str, status: int | None) -> None:
        pass


def test_every_wait_is_counted_and_each_hold_told_once(machine: Machine, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    metrics = Metrics()
    holds = Holds(key=key, store=None, cipher=CIPHER, metrics=metrics, clock=machine.clock)
    for _ in range(2):
        holds.record("oms", 30.0)
        for _ in range(16):
            holds.report_wait("oms", left(holds), 31.0)
        machine.sleep(31)
    assert metrics.counts == {"ratelimit.replies.oms": 2, "ratelimit.waits.oms": 32}
    assert metrics.seconds == [("ratelimit.wait_time", 31.0)] * 32
    report = "The oms API asked another call to wait (429), and 30.0 s of that are left: waiting 31.0 s."
    assert [record.getMessage() for record in caplog.records] == [report] * 2


# --- clients


@pytest.fixture
def make(make_client: MakeClient, store: FileStore) -> Iterator[Callable[..., OpenmarketsClient]]:
    """Makes clients of one host, each as if in a separate process."""
    clients = []

    def make(concurrency: int = 8, **settings: Any) -> OpenmarketsClient:
        module.reset()
        made = make_client(**settings)
        client = OpenmarketsClient(
            made.settings, store=store, masker=made._masker, user_agent="tests", concurrency=concurrency
        )
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()


ORDER = queries.request("oms", "POST", "orders/v4", json={})
ACCOUNTS = queries.accounts()


def meet_a_429(run: Runner, client: OpenmarketsClient) -> float:
    """Send what is never sent again; return when."""
    began = time.monotonic()
    with pytest.raises(OpenmarketsRateLimited) as raised:
        run(client, ORDER)
    assert raised.value.sent
    return began


def test_a_429_of_one_client_holds_another_back_for_as_long(
    run: Runner, make: Callable[..., OpenmarketsClient], sandbox: SandboxServer, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    sandbox.fault(target="oms", retry_after=1, **LIMITED)
    began = meet_a_429(run, make())
    assert len(run(make(), ACCOUNTS)) == 3
    assert time.monotonic() - began >= 1
    assert sandbox.stats()["requests"]["oms"] == 2


def test_a_long_hold_sends_away_even_an_order_and_nothing_is_sent(
    run: Runner, make: Callable[..., OpenmarketsClient], sandbox: SandboxServer
):
    sandbox.fault(target="oms", retry_after=300, **LIMITED)
    meet_a_429(run, make())
    for query in (ORDER, ACCOUNTS):
        with pytest.raises(OpenmarketsRateLimited, match="not sent: the oms API") as raised:
            run(make(), query)
        assert not raised.value.sent
    assert sandbox.stats()["requests"]["oms"] == 1
    # another API, another server of the same API, and another client of the fleet
    assert run(make(), queries.quotes("BHP"))
    other_url = sandbox.oms_url.replace("127.0.0.1", "localhost")
    assert run(make(oms_url=other_url), ACCOUNTS)
    assert run(make(client_id=AWKWARD.client_id, client_secret=AWKWARD.client_secret), ACCOUNTS)


def test_a_429_of_the_identity_server_holds_no_api(
    run: Runner, make: Callable[..., OpenmarketsClient], sandbox: SandboxServer
):
    sandbox.fault(target="identity", retry_after=300, **LIMITED)
    client = make()
    with pytest.raises(OpenmarketsRateLimited):
        run(client, ACCOUNTS)
    assert left(client.holds) == 0


def test_a_stream_of_many_threads_waits_as_a_whole_and_says_so_once(
    run: Runner, make: Callable[..., OpenmarketsClient], sandbox: SandboxServer, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    sandbox.fault(target="market_data", retry_after=300, **LIMITED)
    first = make()
    with pytest.raises(OpenmarketsRateLimited):
        run(first, queries.quotes("BHP"))
    # Some seconds of it are left.
    first.holds._shared("market_data").save(Hold(now(), 5.0), 5.0)
    client = make(concurrency=16)
    caplog.clear()
    # raw: no call comes before the many
    assert run(client, queries.intraday_time_series("BHP", start="2026-01-05", end="2026-06-01", interval=1, raw=True))
    assert sandbox.stats()["requests"]["market_data"] > 1 + 16
    report = [record.getMessage() for record in caplog.records if "asked another call to wait" in record.getMessage()]
    assert len(report) == 1
