"""What is left in a table after a fault, and that a retry gives the same as a run that was never disturbed."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from operator import itemgetter
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred

from openmarkets_provider import queries
from openmarkets_provider.exceptions import OpenmarketsDatabaseError, OpenmarketsServerError
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
from openmarkets_provider.landing.modes import APPEND, MODES, REPLACE_RANGE, UPSERT
from openmarkets_provider.transfers.openmarkets_to_sql import OpenmarketsToSqlOperator
from tests.support.context import context
from tests.support.databases import PostgresDatabase
from tests.support.holds import end_holds
from tests.support.landed import rows_in
from tests.support.sql_task import PATIENCE, sql_task

CODES = ["ANZ", "BHP", "CBA", "NAB", "RIO", "WBC"]
SERIES = "/market-data/pricing/timeseries"
DAYS = {"start": "2026-03-02", "end": "2026-03-09"}
QUERY = queries.time_series(CODES, **DAYS)
PART = queries.time_series(CODES[:3], **DAYS)
REPLACED = {"table": "rows", "conn_id": "db", "mode": REPLACE_RANGE}
NEVER = 1_000_000


@pytest.fixture
def database(postgres, monkeypatch: pytest.MonkeyPatch) -> PostgresDatabase:
    made = PostgresDatabase(postgres)
    monkeypatch.setenv("AIRFLOW_CONN_DB", made.airflow_connection)
    return made


def until(condition: Callable[[], Any]) -> Any:
    """Wait for something to happen, and return what the condition gave."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)
    return found


def load(query: queries.Query = QUERY, mode: str = REPLACE_RANGE, table: str = "rows") -> dict[str, Any]:
    arguments: dict[str, Any] = {"query": query, "table": table, "mode": mode, "conn_id": "db"}
    return OpenmarketsToSqlOperator(task_id="load", **arguments).execute(context())


def everything(database: PostgresDatabase, table: str = "rows") -> list[tuple[Any, ...]]:
    return sorted(rows_in(database, table), key=itemgetter(0, 1, 2, 3, 4))


def stale(database: PostgresDatabase) -> list[tuple[Any, ...]]:
    """Load some of the rows, change them, move some to a day without a run, and return the table's rows."""
    load(PART)
    database.execute("UPDATE rows SET close_price = 1")
    database.execute("UPDATE rows SET time_series_date = '2026-03-07' WHERE time_series_date = '2026-03-06'")
    return everything(database)


@contextmanager
def blocked(database: PostgresDatabase) -> Iterator[Any]:
    """Block an insert after the old rows were deleted, with an uncommitted row that has the same key."""
    with database.server.connect(database.name) as connection:
        connection.autocommit = False
        connection.execute(
            "INSERT INTO rows (security_code, exchange, data_source, frequency, time_series_date) "
            "VALUES ('WBC', 'ASX', 'TM', 'Daily', '2026-03-06')"
        )
        yield connection
        connection.rollback()


def waiting(database: PostgresDatabase) -> list[int]:
    return [pid for pid, _, waits_for, _ in database.others() if waits_for == "Lock"]


def assert_a_retry_is_as_if_nothing_had_happened(database: PostgresDatabase, query: queries.Query = QUERY) -> None:
    load(query)
    load(query, table="undisturbed")
    assert everything(database) == everything(database, "undisturbed")


def pieces(sandbox: Any) -> int:
    """Return how many pieces of the query were asked for."""
    return sum(count for path, count in sandbox.stats()["by_path"].items() if SERIES in path)


class TestWhileItIsPulled:
    """While the API is slow or fails, there is no lock and no transaction, and the table is unchanged."""

    @pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
    def test_the_process_is_ended(self, openmarkets_sandbox, database, tmp_path, end):
        before = stale(database)
        openmarkets_sandbox.reset()
        openmarkets_sandbox.fault(target=SERIES, kind="delay", seconds=NEVER, times=None, after=3)
        with sql_task(tmp_path / "task", {"query": QUERY, **REPLACED}) as task:
            until(lambda: pieces(openmarkets_sandbox) == len(CODES))
            assert database.others() == []
            assert list(task.temp.iterdir()) == []
            task.signal(end)
            assert task.wait() == (1 if end == signal.SIGTERM else -end)
            assert ("Killed: The task was killed" in task.output()) == (end == signal.SIGTERM)
            assert list(task.temp.iterdir()) == []
        assert everything(database) == before
        openmarkets_sandbox.reset()
        assert_a_retry_is_as_if_nothing_had_happened(database)

    def test_the_150th_of_300_pieces_fails(self, openmarkets_sandbox, database):
        listed = [row["security_code"] for row in OpenmarketsHook().run(queries.securities())][:300]
        query = queries.time_series(listed, start="2026-03-02", end="2026-03-03")
        openmarkets_sandbox.reset()
        openmarkets_sandbox.fault(target=SERIES, kind="status", status=500, retry_after=0, times=None, after=149)
        with pytest.raises(OpenmarketsServerError, match=r"Call \d+ of 300 .* failed"):
            load(query)
        assert (database.tables(), database.others()) == ([], [])
        openmarkets_sandbox.reset()
        assert_a_retry_is_as_if_nothing_had_happened(database, query)

    def test_the_api_wants_a_short_rest(self, openmarkets_sandbox, database):
        openmarkets_sandbox.fault(target=SERIES, kind="status", status=429, retry_after=0, times=2, after=3)
        assert load()["rows"] == 30
        assert_a_retry_is_as_if_nothing_had_happened(database)

    def test_the_api_wants_a_long_rest(self, openmarkets_sandbox, database):
        before = stale(database)
        openmarkets_sandbox.fault(target=SERIES, kind="status", status=429, retry_after=600, after=3)
        task = OpenmarketsToSqlOperator(task_id="load", query=QUERY, deferrable=True, **REPLACED)
        with pytest.raises(TaskDeferred) as deferred:
            task.execute(context())
        assert (everything(database), database.others()) == (before, [])
        end_holds()
        resumed = task.resume_execution(deferred.value.method_name, {**deferred.value.kwargs, "event": None}, context())
        assert resumed["rows"] == 30
        assert_a_retry_is_as_if_nothing_had_happened(database)


@pytest.mark.since("3.2")
class TestInTheTransaction:
    """After the old rows were deleted, before the new ones are there.

    Before 3.2 Airflow has psycopg2, and Python gets no signal while that waits for the server.
    """

    def test_the_process_is_killed(self, openmarkets_sandbox, database, tmp_path):
        before = stale(database)
        with blocked(database), sql_task(tmp_path / "task", {"query": QUERY, **REPLACED}) as task:
            until(lambda: waiting(database))
            task.signal(signal.SIGKILL)
            assert list(task.temp.iterdir()) == []
        until(lambda: database.others() == [])
        assert everything(database) == before
        assert_a_retry_is_as_if_nothing_had_happened(database)

    def test_airflow_ends_the_task(self, openmarkets_sandbox, database, tmp_path):
        before = stale(database)
        with blocked(database) as blocker, sql_task(tmp_path / "task", {"query": QUERY, **REPLACED}) as task:
            until(lambda: waiting(database))
            task.signal(signal.SIGTERM)
            assert "Killed: The task was killed" in task.output()
            # The server itself has given up, too, although what it waited for is still held.
            until(lambda: [pid for pid, *_ in database.others()] == [blocker.info.backend_pid])
        assert everything(database) == before
        assert_a_retry_is_as_if_nothing_had_happened(database)

    def test_the_server_ends_the_connection(self, openmarkets_sandbox, database):
        before = stale(database)
        with ThreadPoolExecutor(1) as pool, blocked(database):
            loading = pool.submit(load)
            (pid,) = until(lambda: waiting(database))
            database.execute("SELECT pg_terminate_backend(%s)", pid)
            with pytest.raises(
                OpenmarketsDatabaseError, match=r"rows \(conn_id 'db'\): terminating connection"
            ) as lost:
                loading.result(PATIENCE)
        assert lost.value.transient
        assert everything(database) == before
        assert_a_retry_is_as_if_nothing_had_happened(database)

    def test_the_server_goes_down(self, openmarkets_sandbox, database):
        before = stale(database)
        # Not blocked(): there is nothing left to roll back afterwards.
        blocker = database.server.connect(database.name)
        blocker.autocommit = False
        blocker.execute("UPDATE rows SET close_price = 2")
        with ThreadPoolExecutor(1) as pool:
            loading = pool.submit(load)
            until(lambda: waiting(database))
            database.server.stop()
            try:
                with pytest.raises(OpenmarketsDatabaseError, match="Nothing was changed") as lost:
                    loading.result(PATIENCE)
                with pytest.raises(OpenmarketsDatabaseError, match=r"rows \(conn_id 'db'\): ") as down:
                    load()
            finally:
                database.server.start()
                blocker.close()
        assert lost.value.transient
        assert (down.value.transient, down.value.sent) == (True, False)
        assert everything(database) == before
        assert_a_retry_is_as_if_nothing_had_happened(database)


def test_the_same_task_twice_at_once_in_every_mode(openmarkets_sandbox, database, tmp_path):
    loads = [{"query": QUERY, "table": f"rows_{mode}", "conn_id": "db", "mode": mode} for mode in MODES]
    for mode in MODES:
        load(PART, mode, f"rows_{mode}")
        database.execute(f"UPDATE rows_{mode} SET close_price = 1")
    held = {mode: database.server.connect(database.name) for mode in MODES}
    for mode, connection in held.items():
        connection.autocommit = False
        connection.execute(f"UPDATE rows_{mode} SET close_price = 2")
    with sql_task(tmp_path / "one", *loads) as one, sql_task(tmp_path / "other", *loads) as other:
        for mode in MODES:
            # One of them is in the middle, and the other one at the beginning, of its transaction.
            until(lambda: len(waiting(database)) == 2)
            held[mode].rollback()
            held[mode].close()
        assert (one.wait(), other.wait()) == (0, 0), one.output() + other.output()
    for mode in (UPSERT, REPLACE_RANGE, APPEND):
        load(QUERY, mode, f"undisturbed_{mode}")
        assert everything(database, f"rows_{mode}") == everything(database, f"undisturbed_{mode}")
