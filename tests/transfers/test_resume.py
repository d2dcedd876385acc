"""A load continues where its last attempt ended: deferred, retried, killed or cleared."""

from __future__ import annotations

import errno
import json
import logging
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred

from openmarkets_provider import queries
from openmarkets_provider.client.http.clients import Reply
from openmarkets_provider.client.pulled import MAX_AGE, MAX_AGE_OF_STATE, Pulled
from openmarkets_provider.client.settings import DEFAULT_CONCURRENCY
from openmarkets_provider.exceptions import OpenmarketsInvalidResponse, OpenmarketsServerError
from openmarkets_provider.policies._waits import WAITS_AFTER_429
from openmarkets_provider.query.plan import ApiCall
from openmarkets_provider.sandbox.securities import SECURITIES
from openmarkets_provider.transfers.openmarkets_to_object_storage import OpenmarketsToObjectStorageOperator
from openmarkets_provider.transfers.openmarkets_to_sql import OpenmarketsToSqlOperator
from tests.support.bulk_server import BulkServer
from tests.support.context import context
from tests.support.holds import end_holds
from tests.support.landed import without_loaded_at
from tests.support.load_process import WAIT, Load

CODES = [security.code for security in SECURITIES.values() if security.option is None][:200]
WEEK = {"start": "2026-03-02", "end": "2026-03-08"}
BARS = "/market-data/pricing/timeseries/"


def stored() -> list[Path]:
    """Return the files of replies."""
    return sorted(Path(os.environ["AIRFLOW__OPENMARKETS__RESUME_FOLDER"]).glob("*/*"))


def to_file(path: Path, query: Any, **kwargs: Any) -> OpenmarketsToObjectStorageOperator:
    return OpenmarketsToObjectStorageOperator(
        task_id="land", query=query, destination=str(path), format="csv", **{"deferrable": False} | kwargs
    )


def bars(codes: list[str], **kwargs: Any) -> queries.Query:
    return queries.time_series(codes, **WEEK, **kwargs)


def calls(sandbox: Any) -> int:
    """Return how many calls for bars the sandbox got since it was asked last."""
    count = sum(number for path, number in sandbox.stats()["by_path"].items() if BARS in path)
    sandbox.reset()
    return count


def fail_after(sandbox: Any, count: int, **fault: Any) -> None:
    sandbox.fault(target=BARS, after=count, times=None, **{"kind": "status", "status": 500, "retry_after": 0} | fault)


def fail_once(sandbox: Any, task: Any, count: int) -> None:
    """Make a load fail after some calls were answered."""
    fail_after(sandbox, count)
    with pytest.raises(OpenmarketsServerError):
        task.execute(context())
    calls(sandbox)


def expected(tmp_path: Path, query: Any) -> bytes:
    """Return the file of a load that nothing disturbs."""
    path = tmp_path / "undisturbed" / "x.csv"
    to_file(path, query).execute(context())
    return without_loaded_at(path.read_bytes())


@pytest.mark.slow
def test_2000_calls_killed_ten_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    count, kills = 2000, 10
    query = queries.time_series([f"C{number:04}" for number in range(count)], start="2026-03-02", end="2026-03-28")
    with BulkServer(latency=0.01) as server:
        monkeypatch.setenv("AIRFLOW_CONN_OPENMARKETS_DEFAULT", server.connection_json)
        whole = expected(tmp_path, query)
        undisturbed = server.counts()["requests"]
        path, requests = tmp_path / "x.csv", 0
        arguments = {"query": query, "destination": str(path), "format": "csv"}
        for number in range(kills):
            load, before = Load(dict(os.environ), arguments), requests
            deadline = time.monotonic() + WAIT
            while requests < before + 20 + 31 * number:
                assert time.monotonic() < deadline
                requests += server.counts()["requests"]
            load.kill()
            assert load.outcome() is signal.SIGKILL
            requests += server.counts()["requests"]
            # Replies wait in one folder of the load. At the destination there is at most what the next load deletes.
            (folder,) = {file.parent for file in stored()}
            size = sum(file.stat().st_size for file in folder.iterdir())
            beside = [f"{file.name[-5:]} of {file.stat().st_size:,} bytes" for file in tmp_path.glob(".*")]
            print(f"kill {number + 1}: {requests} calls; {size:,} bytes of replies wait; at the destination {beside}")
            assert not path.exists()
        rows = load_again(arguments)["rows"]
        requests += server.counts()["requests"]
        print(f"landed: {requests} calls ({undisturbed} undisturbed), {rows} rows")
    assert rows == count * 20
    assert list(tmp_path.glob(".*")) == []
    assert requests <= undisturbed + kills * DEFAULT_CONCURRENCY
    assert without_loaded_at(path.read_bytes()) == whole
    assert stored() == []


def load_again(arguments: dict[str, Any]) -> Any:
    return Load(dict(os.environ), arguments).outcome()


def test_200_calls_of_an_api_that_pauses_after_every_15(openmarkets_sandbox, tmp_path):
    query = bars(CODES)
    whole = expected(tmp_path, query)
    calls(openmarkets_sandbox)
    task, path = to_file(tmp_path / "x.csv", query, deferrable=True), tmp_path / "x.csv"
    carry_on: Callable[[], Any] = partial(task.execute, context())
    answered = sent_away = 0
    deferrals: list[TaskDeferred] = []
    while True:
        openmarkets_sandbox.fault(target=BARS, kind="status", status=429, retry_after=120, after=15, times=None)
        try:
            result = carry_on()
            break
        except TaskDeferred as deferred:
            deferrals.append(deferred)
        resume = {**deferrals[-1].kwargs, "event": None}
        carry_on = partial(task.resume_execution, "execute_after_wait", resume, context())
        end_holds()
        sent_away += openmarkets_sandbox.stats()["by_status"]["429"]
        answered += calls(openmarkets_sandbox)
    assert len(deferrals) > WAITS_AFTER_429
    assert {sum(each.kwargs.values()) for each in deferrals} == {1}
    assert answered + calls(openmarkets_sandbox) - sent_away == len(CODES)
    assert result["rows"] == 5 * len(CODES)
    assert without_loaded_at(path.read_bytes()) == whole
    assert stored() == []


def test_a_retry_says_what_came_from_an_earlier_attempt(openmarkets_sandbox, tmp_path, caplog, capsys):
    task = to_file(tmp_path / "x.csv", bars(CODES[:30]))
    fail_once(openmarkets_sandbox, task, 20)
    with caplog.at_level(logging.INFO):
        task.execute(context())
    assert 10 <= calls(openmarkets_sandbox) <= 10 + DEFAULT_CONCURRENCY
    assert "replies of earlier attempts." in caplog.text
    assert "replies came from earlier attempts." in capsys.readouterr().out
    assert stored() == []


def test_another_run_begins_afresh(openmarkets_sandbox, tmp_path):
    task = to_file(tmp_path / "x.csv", bars(CODES[:30]))
    fail_once(openmarkets_sandbox, task, 20)
    task.execute(context(run_id="another"))
    assert calls(openmarkets_sandbox) == 30


def test_a_load_that_is_cleared_after_it_succeeded_begins_afresh(openmarkets_sandbox, tmp_path):
    task = to_file(tmp_path / "x.csv", bars(CODES[:3]))
    for _ in range(2):
        task.execute(context())
        assert calls(openmarkets_sandbox) == 3


def test_a_table_is_resumed(openmarkets_sandbox, tmp_path, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_DB", json.dumps({"conn_type": "sqlite", "host": str(tmp_path / "x.db")}))
    task = OpenmarketsToSqlOperator(
        task_id="load", query=bars(CODES[:30]), table="bars", conn_id="db", mode="replace_range", deferrable=False
    )
    fail_once(openmarkets_sandbox, task, 20)
    assert task.execute(context())["rows"] == 150
    assert 10 <= calls(openmarkets_sandbox) <= 10 + DEFAULT_CONCURRENCY


def test_the_list_of_an_exchange_is_that_of_the_first_attempt(openmarkets_sandbox, tmp_path):
    task = to_file(tmp_path / "x.csv", queries.time_series(exchange="ASX", **WEEK))
    fail_after(openmarkets_sandbox, 20)
    with pytest.raises(OpenmarketsServerError):
        task.execute(context())
    openmarkets_sandbox.reset()
    fail_after(openmarkets_sandbox, 20)
    with pytest.raises(OpenmarketsServerError):
        task.execute(context())
    assert all(BARS in path for path in openmarkets_sandbox.stats()["by_path"] if "/market-data/" in path)


class TestWrongReplies:
    """Replies that made a load fail permanently are pulled again after it is cleared."""

    def test_rows_that_cannot_be_read(self, openmarkets_sandbox, tmp_path):
        task = to_file(tmp_path / "x.csv", bars(CODES[:3]))
        openmarkets_sandbox.fault(target=f"{BARS}{CODES[1]}.", kind="body", body=[{"openPrice": "x"}])
        with pytest.raises(AirflowFailException):
            task.execute(context())
        calls(openmarkets_sandbox)
        assert task.execute(context())["rows"] == 15
        assert calls(openmarkets_sandbox) in (1, 2)

    def test_a_security_that_the_api_did_not_know(self, openmarkets_sandbox, tmp_path):
        task = to_file(tmp_path / "x.csv", bars(["BHP", "CBA", "NEW"]))
        for _ in range(2):
            openmarkets_sandbox.reset()
            openmarkets_sandbox.fault(target=f"{BARS}NEW.", kind="body", body=[])
            with pytest.raises(AirflowFailException, match="does not know the securities"):
                task.execute(context())
        asked = openmarkets_sandbox.stats()["by_path"]
        assert not any("BHP" in path for path in asked)
        assert any("NEW" in path for path in asked)
        assert any("information" in path for path in asked)

    def test_rows_that_do_not_fit(self, openmarkets_sandbox, tmp_path):
        task = to_file(tmp_path / "x.csv", bars(CODES[:3]))
        bar = {"timeSeriesDate": "2026-03-02", "closePrice": 1, "totalVolume": 1, "totalValue": 10.0}
        openmarkets_sandbox.fault(
            target=f"{BARS}{CODES[1]}.", kind="body", body=json.dumps([bar]).replace("10.0", "1.5e2000")
        )
        with pytest.raises((AirflowFailException, OpenmarketsInvalidResponse), match="digits"):
            task.execute(context())
        assert stored() == []


class TestFolder:
    def begin(self, sandbox: Any, tmp_path: Path) -> OpenmarketsToObjectStorageOperator:
        """Return a load of 30 calls that has failed after 20."""
        task = to_file(tmp_path / "x.csv", bars(CODES[:30]))
        fail_once(sandbox, task, 20)
        return task

    def end(self, sandbox: Any, task: Any, least: int, most: int) -> None:
        assert task.execute(context())["rows"] == 150
        assert least <= calls(sandbox) <= most

    def test_nobody_else_can_read_it(self, openmarkets_sandbox, tmp_path):
        self.begin(openmarkets_sandbox, tmp_path)
        (file,) = stored()
        modes = [path.stat().st_mode & 0o777 for path in (file, file.parent, file.parent.parent)]
        assert modes == [0o600, 0o700, 0o700]

    def test_a_reply_that_repeats_the_token_is_not_stored(self, tmp_path):
        call = ApiCall("oms", "GET", "accounts/v1")
        for body, count in ((b"[1, 2]", 1), (b'["t0ken"]', 0)):
            with Pulled(tmp_path / "resume", body.decode(), 0) as pulled:
                pulled.add(call, Reply(200, {}, body, ("t0ken",)), "id")
                assert pulled.new == count
            with Pulled(tmp_path / "resume", body.decode(), 0) as pulled:
                assert (pulled.find(call) is not None) == bool(count)

    @pytest.mark.parametrize("damage", ["torn", "changed", "foreign", "empty"])
    def test_damaged_files(self, openmarkets_sandbox, tmp_path, damage):
        task = self.begin(openmarkets_sandbox, tmp_path)
        (file,) = stored()
        content = file.read_bytes()
        half = len(content) // 2
        changed = bytes([content[half] ^ 1])
        file.write_bytes(
            {
                "torn": content[:-200],
                "changed": content[:half] + changed + content[half + 1 :],
                "foreign": b"something else" * 1000,
                "empty": b"",
            }[damage]
        )
        (file.parent / "foreign").write_text("of somebody else")
        if damage == "torn":
            self.end(openmarkets_sandbox, task, 11, 11 + DEFAULT_CONCURRENCY)
        else:
            self.end(openmarkets_sandbox, task, 15 if damage == "changed" else 30, 30)
        assert stored() == [file.parent / "foreign"]

    def test_two_attempts_at_once_take_nothing_of_each_other(self, openmarkets_sandbox, tmp_path):
        task = self.begin(openmarkets_sandbox, tmp_path)
        fail_once(openmarkets_sandbox, task, 5)
        assert len(stored()) == 2
        self.end(openmarkets_sandbox, task, 5, 5 + DEFAULT_CONCURRENCY)

    def test_old_files_are_deleted_and_those_of_others_stay(self, openmarkets_sandbox, tmp_path):
        self.begin(openmarkets_sandbox, tmp_path)
        (old,) = stored()
        for path in (old, old.parent):
            os.utime(path, times=(0, time.time() - MAX_AGE - 60))
        foreign = old.parent.parent / "foreign"
        foreign.mkdir()
        os.utime(foreign, times=(0, 0))
        other = to_file(tmp_path / "y.csv", bars(CODES[:3]))
        other.execute(context())
        assert not old.parent.exists()
        assert foreign.exists()

    @pytest.mark.parametrize(("days", "asked"), [(1, 3), (-1, 1)], ids=["goes on", "is over"])
    def test_bars_of_hours_ago_count_when_their_range_was_over(self, openmarkets_sandbox, tmp_path, days, asked):
        end = (datetime.now(UTC) + timedelta(days)).isoformat()
        task = to_file(tmp_path / "x.csv", queries.time_series(CODES[:3], start="2026-03-02", end=end))
        fail_once(openmarkets_sandbox, task, 2)
        (file,) = stored()
        os.utime(file, times=(0, time.time() - MAX_AGE_OF_STATE * 2))
        task.execute(context())
        assert calls(openmarkets_sandbox) == asked

    def test_quotes_of_hours_ago_are_not_taken_for_those_of_now(self, openmarkets_sandbox, tmp_path):
        task = to_file(tmp_path / "x.csv", queries.depth(CODES[:3]))
        for age, asked in ((MAX_AGE_OF_STATE / 2, 1), (MAX_AGE_OF_STATE * 2, 3)):
            openmarkets_sandbox.fault(target=f"/market-data/pricing/depth/{CODES[2]}.", kind="status", status=400)
            with pytest.raises(AirflowFailException):
                task.execute(context())
            openmarkets_sandbox.reset()
            (file,) = stored()
            os.utime(file, times=(0, time.time() - age))
            task.execute(context())
            paths = openmarkets_sandbox.stats()["by_path"]
            assert sum(count for path, count in paths.items() if "/depth/" in path) == asked
            openmarkets_sandbox.reset()

    def test_a_folder_that_cannot_be_used_is_one_warning(self, openmarkets_sandbox, tmp_path, monkeypatch, caplog):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("AIRFLOW__OPENMARKETS__RESUME_FOLDER", str(tmp_path / "file"))
        task = to_file(tmp_path / "x.csv", bars(CODES[:3]))
        assert task.execute(context())["rows"] == 15
        (warning,) = warnings(caplog)
        assert "is not a directory" in warning
        assert "[openmarkets] resume_folder" in warning

    def test_a_full_disk_is_one_warning(self, openmarkets_sandbox, tmp_path, caplog):
        # The rows themselves take less.
        task = to_file(tmp_path / "x.csv.gz", bars(CODES[:30]))
        with full_disk():
            fail_once(openmarkets_sandbox, task, 29)
        assert [path.stat().st_size for path in stored()] == [0]
        caplog.clear()
        with full_disk():
            assert task.execute(context())["rows"] == 150
        # The token can't be found either.
        (warning,) = [each for each in warnings(caplog) if "replies" in each]
        assert "Could not store the replies" in warning
        assert os.strerror(errno.ENOSPC) in warning
        assert stored() == []


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings of this package."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and record.name.startswith("openmarkets_provider")
    ]


@contextmanager
def full_disk() -> Iterator[None]:
    """Limit the size of files in the kernel. This includes the file of the tests' report."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
