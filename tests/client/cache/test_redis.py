from __future__ import annotations

import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from openmarkets_provider.client.cache import redis as module
from openmarkets_provider.client.cache.redis import LEASE, MAX_BYTES, RedisStore, redis_options
from tests.client.conftest import redis_store
from tests.support.redis_server import RedisServer

KEY = "0123456789abcdef0123456789abcdef"
RECORD, LOCK = module._entry(KEY), module._lock(KEY)
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def store(empty_redis: RedisServer) -> RedisStore:
    return redis_store(empty_redis)


def options(**fields: Any) -> dict[str, Any]:
    given = {"host": "h", "port": None, "login": None, "password": None, "extra": {}}
    return redis_options(**given | fields)


class TestOptions:
    def test_what_is_left_out_is_redis_own_default(self):
        expected = {"host": "h", "port": 6379, "db": 0, "username": None, "password": None}
        assert options() == options(extra={"db": None, "ssl_certfile": ""}) == expected

    @pytest.mark.parametrize("password", [None, "", "None", "none", "False"])
    def test_no_password_is_written_as_for_airflows_own_hook(self, password):
        assert options(password=password)["password"] is None

    def test_everything_that_airflows_own_hook_knows_is_taken_and_the_rest_ignored(self):
        tls = {"ssl_cert_reqs": "optional", "ssl_ca_certs": "ca", "ssl_keyfile": "key", "ssl_certfile": "cert"}
        flags = {"ssl": True, "ssl_check_hostname": False}
        extra = {"db": 3, **tls, **flags, "cluster": False, "startup_nodes": "a:1", "anything": {}}
        made = options(port=7000, login="user", password="p", extra=extra)
        assert made == {"host": "h", "port": 7000, "db": 3, "username": "user", "password": "p", **tls, **flags}

    def test_texts_from_a_uri_are_coerced(self):
        made = options(extra={"db": "2", "ssl": "true", "ssl_check_hostname": "False", "cluster": "false"})
        assert (made["db"], made["ssl"], made["ssl_check_hostname"]) == (2, True, False)

    @pytest.mark.parametrize(
        ("fields", "text"),
        [
            ({"host": ""}, "host is empty"),
            ({"extra": []}, "Extra is not a JSON object"),
            ({"extra": {"db": "first"}}, "db must be .*, not 'first'"),
            ({"extra": {"db": -1}}, "db must be .*, not -1"),
            ({"extra": {"db": True}}, "db must be .*, not True"),
            ({"extra": {"ssl": "maybe"}}, "ssl must be .*, not 'maybe'"),
            ({"extra": {"ssl_ca_certs": 5}}, "ssl_ca_certs must be a string, not 5"),
            (
                {"extra": {"ssl_cert_reqs": "require"}},
                "ssl_cert_reqs must be one of required, optional, none, not 'require'",
            ),
            ({"extra": {"cluster": True}}, "cluster: Redis in cluster mode is not supported"),
        ],
    )
    def test_what_is_not_allowed_is_named(self, fields, text):
        with pytest.raises(ValueError, match=text):
            options(**fields)


def test_a_record_ends_soon_after_its_use(store: RedisStore, empty_redis: RedisServer):
    store.save(KEY, b"sealed", 100)
    assert 100_000 < empty_redis.client().pttl(RECORD) <= (100 + module.CLOCK_TOLERANCE) * 1000
    store.save(KEY, b"over", 0)
    assert 0 < empty_redis.client().pttl(RECORD) <= module.CLOCK_TOLERANCE * 1000


def test_a_reset_closes_the_connections(store: RedisStore, empty_redis: RedisServer):
    with empty_redis.client() as observer:
        store.load(KEY)
        in_use = module._clients.copy()
        assert len(observer.client_list()) == 2
        module.reset()
        assert len(observer.client_list()) == 1
    assert in_use


def test_redis_holds_nothing_but_what_was_saved_and_locks(store: RedisStore, empty_redis: RedisServer):
    with store.lock(KEY, 5) as lease:
        store.save(KEY, b"sealed", 100, lease)
        client = empty_redis.client()
        assert {name: client.get(name) for name in client.scan_iter()} == {
            RECORD.encode(): b"sealed",
            LOCK.encode(): lease.encode(),
        }
    assert empty_redis.client().keys() == [RECORD.encode()]


def put_list(client: Any) -> None:
    client.rpush(RECORD, "a", "b")


def put_hash(client: Any) -> None:
    client.hset(RECORD, "a", "b")


def put_empty(client: Any) -> None:
    client.set(RECORD, "")


@pytest.mark.parametrize("put", [put_list, put_hash, put_empty])
def test_what_is_no_record_counts_as_none_and_is_replaced(store: RedisStore, empty_redis: RedisServer, put):
    put(empty_redis.client())
    assert store.load(KEY) is None
    store.save(KEY, b"sealed", 60)
    assert store.load(KEY) == b"sealed"


def test_of_a_flood_no_more_than_a_record_is_read(store: RedisStore, empty_redis: RedisServer):
    empty_redis.client().set(RECORD, b"x" * (50 << 20))
    assert len(store.load(KEY)) == MAX_BYTES


def test_a_lock_is_kept_for_longer_than_its_lease_while_the_holder_lives(store: RedisStore):
    with store.lock(KEY, 5) as lease:
        with store.lock(KEY, LEASE + 2) as second:
            assert second is None
        store.save(KEY, b"sealed", 60, lease)
    assert store.load(KEY) == b"sealed"


def test_a_lost_lock_ends_its_thread_and_is_not_taken_from_its_new_owner(store: RedisStore, empty_redis: RedisServer):
    client = empty_redis.client()
    with store.lock(KEY, 5) as lease:
        (thread,) = [thread for thread in threading.enumerate() if thread.name == "openmarkets-lease"]
        store.save(KEY, b"first", 60)
        client.set(LOCK, "somebody else")
        store.save(KEY, b"too late", 60, lease)
        thread.join(10)
        assert not thread.is_alive()
    assert client.get(LOCK) == b"somebody else"
    assert store.load(KEY) == b"first"


def test_after_a_restart_a_holder_saves_where_nothing_is(store: RedisStore, empty_redis: RedisServer):
    with store.lock(KEY, 5) as lease:
        empty_redis.kill()
        empty_redis.start()
        store.save(KEY, b"sealed", 60, lease)
        assert store.load(KEY) == b"sealed"
        store.save(KEY, b"again", 60, lease)
    assert store.load(KEY) == b"sealed"


def test_a_lease_survives_an_error_of_the_server(user: RedisStore, empty_redis: RedisServer):
    client = empty_redis.client()
    with user.lock(KEY, 5) as lease:
        client.execute_command("ACL", "SETUSER", "openmarkets", "-evalsha")
        deadline = time.monotonic() + 30
        while "errorstat_NOPERM" not in client.info("errorstats"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        client.execute_command("ACL", "SETUSER", "openmarkets", "+evalsha")
        with user.lock(KEY, LEASE + 1) as second:
            assert second is None
        user.save(KEY, b"sealed", 60, lease)
    assert user.load(KEY) == b"sealed"


def test_a_child_that_leaves_the_block_does_not_release(store: RedisStore):
    lock = store.lock(KEY, 5)
    lock.__enter__()
    if (child := os.fork()) == 0:
        lock.__exit__(None, None, None)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with store.lock(KEY, 0) as held:
        assert held is None
    lock.__exit__(None, None, None)
    with store.lock(KEY, 0) as held:
        assert held


def test_forked_processes_and_threads_never_get_each_others_answers(store: RedisStore, empty_redis: RedisServer):
    """A connection that two processes use gives the one what the other asked for."""
    for number in range(8):
        store.save(f"{number:032x}", str(number).encode() * 100, 60)

    def work(number: int, report: Any) -> None:
        report.send(all(store.load(f"{number:032x}") == str(number).encode() * 100 for _ in range(300)))

    pipes, processes = [], []
    for number in range(8):
        ours, theirs = FORK.Pipe()
        process = FORK.Process(target=work, args=(number, theirs))
        process.start()
        pipes.append(ours)
        processes.append(process)
    assert [pipe.recv() for pipe in pipes] == [True] * 8
    for process in processes:
        process.join()


def test_stores_with_the_same_options_share_connections(empty_redis: RedisServer):
    before = empty_redis.client().info("stats")["total_connections_received"]
    for _ in range(50):
        assert redis_store(empty_redis).load(KEY) is None
    assert empty_redis.client().info("stats")["total_connections_received"] - before <= 2


def test_a_server_that_was_restarted_in_between_is_not_noticed(store: RedisStore, empty_redis: RedisServer):
    store.save(KEY, b"sealed", 60)
    empty_redis.kill()
    empty_redis.start()
    assert store.load(KEY) is None
    store.save(KEY, b"sealed", 60)
    with store.lock(KEY, 0) as held:
        assert held


def test_what_goes_over_tls_needs_the_right_authority():
    with RedisServer(tls=True) as server:
        store = redis_store(server)
        store.save(KEY, b"sealed", 60)
        assert store.load(KEY) == b"sealed"
        with pytest.raises(OSError, match="certificate verify failed"):
            redis_store(server, extra={"ssl": True}).load(KEY)
        with pytest.raises(OSError, match="No such file"):
            redis_store(server, extra={"ssl": True, "ssl_ca_certs": "/nowhere/ca.pem"}).load(KEY)


@pytest.fixture(params=[0, 1])
def user(empty_redis: RedisServer, request: pytest.FixtureRequest) -> Iterator[RedisStore]:
    """A store whose user may do what the documents say that it must be allowed to."""
    rules = "on >secret ~openmarkets:* +getrange +get +set +del +exists +pttl +pexpire +eval +evalsha +script|load"
    rules += " +select" if request.param else ""
    empty_redis.client().execute_command("ACL", "SETUSER", "openmarkets", *rules.split())
    yield redis_store(empty_redis, login="openmarkets", password="secret", extra={"db": request.param})
    empty_redis.client().acl_deluser("openmarkets")


def test_a_user_of_its_own_needs_few_commands(user: RedisStore):
    with user.lock(KEY, 5) as lease:
        user.save(KEY, b"sealed", 60, lease)
    assert user.load(KEY) == b"sealed"
    with user.lock(KEY, 0) as lease:
        assert lease


@contextmanager
def server_that_says(reply: bytes) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(10)


@pytest.mark.parametrize("password", ["pass-w0rd", "pass-w0rd" * 20])
@pytest.mark.parametrize("said", ["unknown command 'AUTH', with args beginning with: '%.128s' ", "no command: %s"])
def test_a_password_that_a_server_repeats_is_in_no_error(password: str, said: str):
    with (
        server_that_says(f"-ERR {said % password}\r\n".encode()) as port,
        pytest.raises(OSError, match=said.partition(",")[0].partition(" %")[0]) as raised,
    ):
        RedisStore(options(host="127.0.0.1", port=port, password=password)).load(KEY)
    error: BaseException | None = raised.value
    assert "pass-w0rd" not in str(error)
    assert error.__suppress_context__


def test_what_is_no_redis_is_an_oserror():
    with (
        server_that_says(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port,
        pytest.raises(OSError, match=r"^127\.0\.0\.1:"),
    ):
        RedisStore(options(host="127.0.0.1", port=port)).load(KEY)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 70, "a..b"])
def test_a_host_that_is_not_found_is_an_oserror(host):
    with pytest.raises(OSError, match=host[:10]):
        RedisStore(options(host=host)).load(KEY)
