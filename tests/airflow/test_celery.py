"""Two Celery workers with separate homes share tokens through Redis: one request per scope, and few if Redis fails."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from openmarkets_provider.sandbox.server import Client, SandboxServer
from tests.support.airflow import CeleryWorkers, DagRun, RealAirflow, session_members
from tests.support.postgres import Postgres
from tests.support.redis_server import RedisServer
from tests.support.sandbox_process import SandboxProcess

pytestmark = [pytest.mark.airflow, pytest.mark.nightly]

DAG = "celery_tokens"
TASKS, TASKS_WHILE_REDIS_FAILS = 200, 120
APIS = 3
WORKERS = ("worker1", "worker2")
CONCURRENCY = 4
"""Tasks of one worker at the same time: more than the processors, so that some wait for others' tokens."""
CLIENTS = tuple(Client(f"client{number}", f"secret{number}") for number in range(8))
"""A token lives longer than a run: new clients take care that some are asked for at any moment of it."""
SCOPES = ("market-data-api", "news-api", "oms-api")
PATIENCE = 300


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxProcess]:
    with SandboxProcess() as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def many_clients() -> Iterator[SandboxServer]:
    with SandboxServer(clients=CLIENTS) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def token_redis() -> Iterator[RedisServer]:
    with RedisServer() as redis:
        yield redis


@pytest.fixture(scope="module")
def airflow(
    sandbox: SandboxProcess, many_clients: SandboxServer, token_redis: RedisServer, postgres: Postgres
) -> Iterator[RealAirflow]:
    def shared(connection: dict[str, Any], **fields: str) -> str:
        extra = connection["extra"] | {"cache_backend": "redis", "redis_conn_id": "token_redis"}
        return json.dumps({**connection, **fields, "extra": extra})

    env = {
        f"AIRFLOW_CONN_{client.client_id.upper()}": shared(
            many_clients.connection, login=client.client_id, password=client.client_secret
        )
        for client in CLIENTS
    } | {
        "AIRFLOW_CONN_OPENMARKETS_DEFAULT": shared(sandbox.connection),
        "AIRFLOW_CONN_TOKEN_REDIS": token_redis.connection_json(),
        "AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG": str(TASKS),
    }
    postgres.empty_database("celery")
    # Not the Redis of the tokens, which is killed.
    with RedisServer() as broker:
        celery = CeleryWorkers(WORKERS, CONCURRENCY, broker.url(), postgres.url("celery", "psycopg2"))
        with RealAirflow(Path(__file__).parent / "celery_dags", env=env, parallelism=32, celery=celery) as airflow:
            yield airflow


def ran(airflow: RealAirflow, run: DagRun) -> dict[str, int]:
    """Return how many tasks of a run there were on each worker."""
    files = {name: airflow.worker_home(name) / "ran" for name in WORKERS}
    return {name: file.read_text().split().count(run.run_id) if file.exists() else 0 for name, file in files.items()}


def states(run: DagRun) -> Counter[str | None]:
    return Counter(task.state for task in run.tasks if task.task_id == "ask")


def warnings(airflow: RealAirflow, run: DagRun) -> int:
    """Return how many tasks of a run went on without Redis, by their logs."""
    logs = [path.read_text() for path in (airflow.home / "logs").rglob("*.log") if run.run_id in str(path)]
    return sum("are shared on this host only" in log for log in logs)


@pytest.fixture(scope="module")
def undisturbed(airflow: RealAirflow) -> DagRun:
    return airflow.run_dag(DAG, {"conn_ids": ["openmarkets_default"] * TASKS}, timeout=PATIENCE)


@pytest.fixture(scope="module")
def disturbed(
    airflow: RealAirflow, undisturbed: DagRun, many_clients: SandboxServer, token_redis: RedisServer
) -> DagRun:
    """The Redis of the tokens is away for a third of the run."""

    def calls(share: float) -> bool:
        return sum(many_clients.stats()["requests"].values()) >= share * APIS * TASKS_WHILE_REDIS_FAILS

    conn_ids = [CLIENTS[n * len(CLIENTS) // TASKS_WHILE_REDIS_FAILS].client_id for n in range(TASKS_WHILE_REDIS_FAILS)]
    run_id = airflow.start_dag(DAG, {"conn_ids": conn_ids})
    airflow.wait_until("a third of the calls", lambda: calls(1 / 3), PATIENCE)
    token_redis.kill()
    airflow.wait_until("two thirds of the calls", lambda: calls(2 / 3), PATIENCE)
    token_redis.start()
    assert not calls(1)
    return airflow.wait_for_run(DAG, run_id, PATIENCE)


def test_200_tasks_on_two_workers_take_one_token_request_a_scope(
    airflow: RealAirflow, undisturbed: DagRun, sandbox: SandboxProcess
):
    requests = sandbox.stats()["token_requests"]
    print(f"token requests for {TASKS} tasks over two Celery workers: {requests}; tasks {ran(airflow, undisturbed)}")
    assert states(undisturbed) == {"success": TASKS}
    assert (requests, warnings(airflow, undisturbed)) == (dict.fromkeys(SCOPES, 1), 0)
    assert sum(ran(airflow, undisturbed).values()) == TASKS
    assert all(ran(airflow, undisturbed).values())


def test_tasks_go_on_while_redis_is_away_with_a_token_request_for_each_host_at_most(
    airflow: RealAirflow, disturbed: DagRun, many_clients: SandboxServer, token_redis: RedisServer
):
    requests = many_clients.stats()["token_requests"]
    print(
        f"token requests for {TASKS_WHILE_REDIS_FAILS} tasks of {len(CLIENTS)} clients over two Celery workers, Redis "
        f"killed and restarted: {requests}; warnings {warnings(airflow, disturbed)}; tasks {ran(airflow, disturbed)}"
    )
    assert states(disturbed) == {"success": TASKS_WHILE_REDIS_FAILS}
    assert all(ran(airflow, disturbed).values())
    # Without Redis each host asks for itself, once a client and scope. A client whose tokens are just being asked for
    # when it goes may do so once more; but those before and after have theirs asked for by one host only.
    assert all(len(CLIENTS) <= requests[scope] <= len(CLIENTS) * len(WORKERS) for scope in SCOPES)
    assert warnings(airflow, disturbed) > 0
    with token_redis.client() as client:
        assert client.dbsize() > 0, "it was used again"


def test_nothing_listens_but_on_loopback(airflow: RealAirflow, undisturbed: DagRun):
    inodes = {inode for leader in airflow.pids.values() for pid in session_members(leader) for inode in sockets(pid)}
    addresses = [address for address, inode in listening() if inode in inodes]
    assert addresses
    assert all(address.is_loopback for address in addresses)


def sockets(pid: int) -> set[str]:
    """Return the inodes of a process' sockets."""
    found = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            kind, _, inode = str(path.readlink()).partition(":")
            if kind == "socket":
                found.add(inode.strip("[]"))
    return found


def listening() -> Iterator[tuple[Any, str]]:
    """Return the addresses that are listened on, with the inodes of the sockets."""
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            (
                _,
                local,
                _,
                state,
                *_,
            ) = line.split()
            if state == "0A":
                words = bytes.fromhex(local.partition(":")[0])
                # Four bytes at a time, the lowest first.
                address = b"".join(words[n : n + 4][::-1] for n in range(0, len(words), 4))
                yield ip_address(address), line.split()[9]
