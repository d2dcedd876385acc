"""A client secret that is rotated while tasks run: the connection changes, and the server refuses what was before."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from openmarkets_provider import queries
from openmarkets_provider.exceptions import OpenmarketsInvalidClient
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
from openmarkets_provider.operators.openmarkets import OpenmarketsOperator
from openmarkets_provider.sandbox.server import Client, SandboxServer
from openmarkets_provider.sensors.openmarkets import OpenmarketsSensor
from openmarkets_provider.transfers.openmarkets_to_object_storage import OpenmarketsToObjectStorageOperator
from tests.support.context import context as new_context

WORKERS, TASKS_EACH = 12, 6
CONNECTION = "AIRFLOW_CONN_OPENMARKETS_DEFAULT"


class Site:
    """An Airflow with a connection, and the server that it leads to."""

    def __init__(self, sandbox: SandboxServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sandbox = sandbox
        self._monkeypatch = monkeypatch
        self._connect("old")

    def _connect(self, secret: str) -> None:
        self._monkeypatch.setenv(CONNECTION, json.dumps({**self.sandbox.connection, "password": secret}))

    def change_connection(self) -> None:
        self._connect("new")

    def change_server(self) -> None:
        """From now on the old secret and what was had for it are refused."""
        self.sandbox._state.clients["someone"] = Client("someone", "new")
        self.sandbox.revoke_tokens()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch):
    with SandboxServer(clients=(Client("someone", "old"),)) as sandbox:
        yield Site(sandbox, monkeypatch)


QUOTES = queries.quotes(["BHP", "CBA"])


def pull(number: int) -> list[dict[str, Any]]:
    return OpenmarketsOperator(task_id=f"pull{number}", query=QUOTES).execute({})


# In Airflow 2, only the thread that imported it can execute tasks.
@pytest.mark.since("3.0")
def test_tasks_that_run_and_begin_meanwhile_all_finish_with_a_few_requests_for_tokens(site):
    begun, rotated = threading.Barrier(WORKERS + 1), threading.Event()

    class Long(OpenmarketsOperator):
        """A task that has used the old secret, and continues after it is refused."""

        def answer(self, hook: OpenmarketsHook, context: Any) -> Any:
            if not rotated.is_set():
                hook.run(self.query)
                begun.wait(60)
                assert rotated.wait(60)
            return super().answer(hook, context)

    def work(worker: int) -> int:
        rows = len(Long(task_id=f"long{worker}", query=QUOTES).execute({}))
        return rows + sum(len(pull(worker * TASKS_EACH + number)) for number in range(TASKS_EACH))

    with ThreadPoolExecutor(WORKERS) as pool:
        outcomes = [pool.submit(work, worker) for worker in range(WORKERS)]
        begun.wait(60)
        site.change_connection()
        site.change_server()
        rotated.set()
        assert [outcome.result(120) for outcome in outcomes] == [2 * (1 + TASKS_EACH)] * WORKERS
    stats = site.sandbox.stats()
    # One for each secret, and one with the old secret, whose refusal everybody shares.
    assert stats["token_requests_total"] == 3
    assert stats["token_errors"] == 1


def test_a_hook_that_lives_on_goes_by_the_new_secret_as_soon_as_it_asks(site):
    hook = OpenmarketsHook(concurrency=1)
    query = queries.time_series(["BHP", "CBA", "CSL"], start="2026-03-02", end="2026-03-05")
    batches = hook.stream(query)
    assert next(batches)
    assert not hook.reload_connection()
    site.change_connection()
    site.change_server()
    with pytest.raises(OpenmarketsInvalidClient):
        list(batches)
    assert hook.reload_connection()
    assert not hook.reload_connection()
    assert sum(map(len, hook.stream(query))) == 9
    hook.close()


def test_a_sensor_that_polls_on_goes_by_the_new_secret(site):
    sensor = OpenmarketsSensor(task_id="wait", query=queries.quotes("BHP"), condition="[0].trading_status == 'NEVER'")
    assert not sensor.poke({})
    site.change_connection()
    # As long as what was had for the old secret is good, nobody asks.
    assert not sensor.poke({})
    site.change_server()
    for _ in range(3):
        assert not sensor.poke({})
    assert site.sandbox.stats()["token_requests_total"] <= 3
    sensor._hook.close()


def test_a_transfer_that_is_half_way_begins_anew_and_lands_all(site, tmp_path):
    target = tmp_path / "bars.csv"

    class Landing(OpenmarketsToObjectStorageOperator):
        tries = 0

        def answer(self, hook: OpenmarketsHook, context: Any) -> Any:
            self.tries += 1
            if self.tries == 1:
                # What the task has done before the secret is rotated.
                assert next(hook.stream(self.query))
                site.change_connection()
                site.change_server()
            return super().answer(hook, context)

    task = Landing(
        task_id="land",
        query=queries.time_series(["BHP", "CBA"], start="2026-03-02", end="2026-03-05"),
        destination=f"file://{target}",
        format="csv",
    )
    task.execute(new_context())
    assert task.tries == 2
    assert len(target.read_text().splitlines()) == 1 + 2 * 3


def test_a_secret_that_is_wrong_and_stays_so_fails_the_task_at_once(site):
    site.change_server()
    with pytest.raises(AirflowFailException, match="invalid_client"):
        pull(0)
    assert site.sandbox.stats()["token_requests_total"] == 1
