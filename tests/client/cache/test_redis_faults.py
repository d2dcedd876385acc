"""What goes wrong with Redis, and what it costs a task. With ``-s`` the table is printed."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from openmarkets_provider.client.auth import provider as token_source
from openmarkets_provider.client.auth.provider import TokenProvider
from openmarkets_provider.client.cache import fallback as fallback_store
from openmarkets_provider.client.cache import redis as redis_store
from openmarkets_provider.client.cache.crypto import EntryCipher
from openmarkets_provider.client.cache.fallback import RETRY_SECONDS, FallbackStore
from openmarkets_provider.client.cache.file import FileStore
from openmarkets_provider.client.cache.redis import RedisStore, redis_options
from tests.client.conftest import RecordingMasker
from tests.support.redis_server import RedisServer

SCOPE = "market-data-api"
KEY = "0123456789abcdef0123456789abcdef"
RECORD, LOCK = redis_store._entry(KEY), redis_store._lock(KEY)
TASKS = 4


class Fleet:
    """Tasks of several hosts that share a Redis, and an identity server that counts.

    :ivar requests: token requests so far.
    :ivar during: what happens while the next request is under way.
    """

    def __init__(self, server: RedisServer, home: Path) -> None:
        self.server = server
        self.home = home
        self.fields: dict[str, Any] = {"login": None, **json.loads(server.connection_json())}
        self.fields.pop("conn_type")
        self.requests = 0
        self.during: Callable[[], None] | None = None
        self.moved = 0.0

    def task(self, host: str = "a", *, new: bool = True) -> str:
        """Run a task without a token in memory, and as a new process has it without anything; return its token."""
        token_source.reset()
        if new:
            fallback_store.reset()
        store = FallbackStore(
            RedisStore(redis_options(**self.fields)),
            FileStore(self.home / host),
            f"Redis of {host}",
            clock=lambda: self.moved,
        )
        source = TokenProvider(
            key=lambda scope: KEY,
            fetch=self._fetch,
            store=store,
            cipher=EntryCipher("secret"),
            masker=RecordingMasker(),
            wait=30,
        )
        return source.get(SCOPE).value

    def tasks(self) -> set[str]:
        return {self.task() for _ in range(TASKS)}

    def forget(self) -> None:
        """Forget the tokens of all hosts, and make the fleet's store due for a retry."""
        with self.server.client() as client:
            client.flushall()
        for path in self.home.glob("*/*.entry"):
            path.unlink()
        self.moved += RETRY_SECONDS + 1

    def _fetch(self, scope: str) -> tuple[str, float]:
        self.requests += 1
        number = self.requests
        during, self.during = self.during, None
        if during is not None:
            during()
        return f"token {number}", 3600.0


@pytest.fixture
def fleet(empty_redis: RedisServer, tmp_path: Path) -> Fleet:
    return Fleet(empty_redis, tmp_path)


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, logger="openmarkets_provider")
    return lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.fixture(scope="module")
def table() -> Iterator[list[tuple[str, ...]]]:
    rows: list[tuple[str, ...]] = []
    yield rows
    print("\n\n| fault | when | token requests | warnings | in use afterwards |\n|---|---|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")


JOB = """
import os, signal, socket, time
from tests.support.redis_server import RedisServer
with RedisServer() as server:
    server.pause()
    shell = os.getppid()
    os.kill(shell, signal.SIGKILL)
    while os.getppid() == shell:
        time.sleep(0.001)
    with socket.create_connection(("127.0.0.1", server.port), timeout=1) as connection:
        connection.sendall(b"PING\\r\\n")
        try:
            print("it answers", connection.recv(99))
        except TimeoutError:
            print("no answer")
"""


def test_a_paused_redis_answers_nothing_after_the_end_of_the_shell_that_began_the_tests():
    # Of the group of an ended shell's job the kernel wakes all that is paused.
    begun = ["bash", "-c", 'trap "" HUP; set -m; "$0" -c "$1" & wait', sys.executable, JOB]
    report = subprocess.run(begun, stdout=subprocess.PIPE, text=True, timeout=60, start_new_session=True, check=False)
    assert report.stdout == "no answer\n"


def killed(fleet: Fleet) -> Callable[[], None]:
    fleet.server.kill()
    return fleet.server.start


def slow(fleet: Fleet) -> Callable[[], None]:
    fleet.server.pause()
    return fleet.server.resume


def full(fleet: Fleet) -> Callable[[], None]:
    fleet.server.client().config_set("maxmemory", 1)
    return lambda: fleet.server.client().config_set("maxmemory", 0)


def read_only(fleet: Fleet) -> Callable[[], None]:
    client = fleet.server.client()
    client.config_set("replica-serve-stale-data", "yes")
    client.replicaof("127.0.0.1", "1")
    return lambda: client.replicaof("NO", "ONE")


def replica_without_data(fleet: Fleet) -> Callable[[], None]:
    client = fleet.server.client()
    client.config_set("replica-serve-stale-data", "no")
    client.replicaof("127.0.0.1", "1")

    def mend() -> None:
        client.replicaof("NO", "ONE")
        client.config_set("replica-serve-stale-data", "yes")

    return mend


def wrong(**fields: Any) -> Callable[[Fleet], Callable[[], None]]:
    """The connection is wrong, and is corrected later."""

    def fault(fleet: Fleet) -> Callable[[], None]:
        right = dict(fleet.fields)
        fleet.fields |= fields

        def mend() -> None:
            fleet.fields = right

        return mend

    return fault


def too_many_clients(fleet: Fleet) -> Callable[[], None]:
    client = fleet.server.client()
    client.config_set("maxclients", 1)
    # Open connections of this process would still work.
    redis_store.reset()

    def mend() -> None:
        client.config_set("maxclients", 10000)
        client.close()

    return mend


def without_scripts(fleet: Fleet) -> Callable[[], None]:
    """Locks can be taken, and nothing saved under them."""
    rules = ["on", ">secret", "~openmarkets:*", "+@all", "-eval", "-evalsha"]
    fleet.server.client().execute_command("ACL", "SETUSER", "limited", *rules)
    return wrong(login="limited", password="secret")(fleet)


FAULTS = {
    "killed": killed,
    "answers nothing (SIGSTOP)": slow,
    "full (maxmemory)": full,
    "read-only replica": read_only,
    "replica without its master's data": replica_without_data,
    "wrong password": wrong(password="wrong"),
    "no password": wrong(password=""),
    "unknown user": wrong(login="nobody"),
    "no such database": wrong(extra={"db": 999}),
    "TLS to a server without it": wrong(extra={"ssl": True}),
    "host that no name server knows": wrong(host="no-such-host.invalid"),
    "port that nobody listens on": wrong(port=1),
    "too many clients": too_many_clients,
    "scripts not allowed": without_scripts,
}


@pytest.mark.parametrize("name", FAULTS)
def test_redis_cannot_be_used_from_the_start(fleet: Fleet, warnings, table, name):
    mend = FAULTS[name](fleet)
    assert fleet.tasks() == {"token 1"}
    assert fleet.requests == 1
    report = len(warnings())
    assert 1 <= report <= TASKS
    assert all("Redis of a" in text and fleet.server.password not in text for text in warnings())
    mend()
    fleet.forget()
    assert {fleet.task("a"), fleet.task("b"), fleet.task("c")} == {"token 2"}
    assert fleet.server.client().exists(RECORD)
    assert len(warnings()) == report
    table.append((name, "from the start, empty host", "1 a host", "1 a process", "yes"))


@pytest.mark.parametrize("name", FAULTS)
def test_redis_breaks_down_when_a_host_knows_the_token(fleet: Fleet, warnings, table, name):
    assert {fleet.task("a"), fleet.task("b")} == {"token 1"}
    mend = FAULTS[name](fleet)
    assert {fleet.task("a"), fleet.task("b"), fleet.task("a"), fleet.task("b")} == {"token 1"}
    assert fleet.requests == 1
    # One a process; none where what is needed can still be read.
    assert len(warnings()) == (0 if name in {"full (maxmemory)", "read-only replica", "scripts not allowed"} else 4)
    mend()
    fleet.forget()
    assert {fleet.task("a"), fleet.task("b")} == {"token 2"}
    table.append((name, "the host knows the token", "0", "1 a process" if warnings() else "0", "yes"))


DURING = {
    name: FAULTS[name] for name in ("killed", "answers nothing (SIGSTOP)", "full (maxmemory)", "read-only replica")
}


@pytest.mark.parametrize("name", DURING)
def test_redis_breaks_down_while_a_task_holds_its_lock(fleet: Fleet, warnings, table, name):
    mended: list[Callable[[], None]] = []
    fleet.during = lambda: mended.append(DURING[name](fleet))
    assert fleet.tasks() == {"token 1"}
    assert fleet.requests == 1
    assert 1 <= len(warnings()) <= TASKS
    mended[0]()
    fleet.forget()
    assert {fleet.task("a"), fleet.task("b")} == {"token 2"}
    table.append((name, "during the token request", "1", "1 a process", "yes"))


def test_redis_is_killed_in_the_middle_of_a_call(fleet: Fleet, warnings, table):
    # Otherwise an open connection would look like the task's.
    redis_store.reset()
    fleet.server.pause()
    with ThreadPoolExecutor(1) as pool:
        task = pool.submit(fleet.task)
        while not _has_connected(fleet.server.port):
            assert not task.done()
            time.sleep(0.001)
        fleet.server.kill()
        assert task.result(30) == "token 1"
    assert fleet.tasks() == {"token 1"}
    assert fleet.requests == 1
    assert 1 <= len(warnings()) <= 1 + TASKS
    fleet.server.start()
    fleet.forget()
    assert {fleet.task("a"), fleet.task("b")} == {"token 2"}
    table.append(("killed", "in the middle of a call", "1 a host", "1 a process", "yes"))


def test_redis_is_restarted_empty(fleet: Fleet, warnings, table):
    assert fleet.task() == "token 1"
    fleet.server.kill()
    fleet.server.start()
    assert fleet.task("a") == "token 1"
    assert {fleet.task("b"), fleet.task("c")} == {"token 2"}
    assert fleet.requests == 2
    assert warnings() == []
    table.append(("restarted empty", "between two tasks", "1 in all; 0 where it is known", "0", "yes"))


def test_redis_is_restarted_empty_during_the_request(fleet: Fleet, warnings, table):
    def restart() -> None:
        fleet.server.kill()
        fleet.server.start()

    fleet.during = restart
    assert {fleet.task("a"), fleet.task("b")} == {"token 1"}
    assert warnings() == []
    table.append(("restarted empty", "during the token request", "1 in all", "0", "yes"))


def put(kind: str) -> Callable[[Any], None]:
    def into(client: Any) -> None:
        match kind:
            case "list":
                client.delete(RECORD)
                client.rpush(RECORD, "a")
            case "flood":
                client.set(RECORD, b"\0" * (8 << 20))
            case "damaged":
                client.setrange(RECORD, 20, b"xxxx")
            case "foreign":
                client.set(RECORD, EntryCipher("another secret").encrypt(KEY, {"written": 1}))
            case "version":
                client.set(RECORD, EntryCipher("secret").encrypt(KEY, {"of": "another version"}))

    return into


JUNK = {
    "a list under the key": "list",
    "8 MiB of junk under the key": "flood",
    "a damaged record": "damaged",
    "a record sealed with another secret": "foreign",
    "a record of another version": "version",
}


@pytest.mark.parametrize("name", JUNK)
def test_what_is_not_ours_under_the_key_counts_as_none(fleet: Fleet, warnings, table, name):
    assert fleet.task() == "token 1"
    put(JUNK[name])(fleet.server.client())
    fleet.task("a")
    assert {fleet.task("b"), fleet.task("c")} == {"token 2"}
    assert fleet.requests == 2
    assert warnings() == []
    table.append((name, "between two tasks", "1 in all", "0", "yes"))


def test_a_wrong_authority_of_tls_is_told_and_mended(tmp_path: Path, warnings, table):
    with RedisServer(tls=True) as server:
        fleet = Fleet(server, tmp_path)
        right = dict(fleet.fields)
        fleet.fields |= {"extra": {"ssl": True}}
        assert fleet.tasks() == {"token 1"}
        assert fleet.requests == 1
        assert "certificate verify failed" in warnings()[0]
        assert len(warnings()) <= TASKS
        fleet.fields = right
        fleet.forget()
        assert {fleet.task("a"), fleet.task("b")} == {"token 2"}
    table.append(("TLS certificate not trusted", "from the start, empty host", "1 a host", "1 a process", "yes"))


def test_a_slow_redis_costs_its_time_out_once_and_not_every_task(fleet: Fleet, warnings):
    """Counted by the connections that were tried: none after the first failure."""
    fleet.server.pause()
    fleet.task()
    tried = fallback_store._outages["Redis of a"].until
    for _ in range(50):
        fleet.task(new=False)
    assert fallback_store._outages["Redis of a"].until == tried
    assert fleet.requests == len(warnings()) == 1


def test_threads_share_one_request_while_redis_is_down(fleet: Fleet, warnings):
    fleet.server.kill()
    with ThreadPoolExecutor(16) as threads:
        assert set(threads.map(lambda _: fleet.task(new=False), range(64))) == {"token 1"}
    assert fleet.requests == len(warnings()) == 1


def test_nothing_in_redis_can_be_read_without_the_secret(fleet: Fleet):
    fleet.task()
    client = fleet.server.client()
    assert client.keys() == [RECORD.encode()]
    data = client.get(RECORD)
    for clue in (b"token", SCOPE.encode(), b"secret", b"written"):
        assert clue not in data
    assert client.pttl(RECORD) > 0


def _has_connected(port: int) -> bool:
    """Return whether a client waits for an answer of a stopped server."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    # Address and port of the peer, state 01: established.
    return any(line.split()[2].endswith(f":{port:04X}") and line.split()[3] == "01" for line in lines)
