"""Variables as tasks and triggers reach them: Airflow's own client, over a socket, with a supervisor of ours."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import airflow
import msgspec
import pytest
from airflow.jobs.triggerer_job_runner import TriggerCommsDecoder
from airflow.sdk._shared.secrets_masker import _secrets_masker
from airflow.sdk.exceptions import ErrorType
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import (
    CommsDecoder,
    ErrorResponse,
    OKResponse,
    VariableKeysResult,
    VariableResult,
    _RequestFrame,
    _ResponseFrame,
)

from openmarkets_provider.client.cache.file import FileStore
from openmarkets_provider.hooks import _variable_store
from openmarkets_provider.hooks._token_cache import store_of
from openmarkets_provider.hooks._variable_store import PREFIX, SWEEP_AFTER, VariableStore
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
from openmarkets_provider.testing.memory import reset_memory

KEY, OTHER = "0123456789abcdef" * 2, "f" * 32
DATA = bytes(range(256)) * 5
PATIENCE = 60


class Supervisor:
    """Answers requests about Variables for one process, like a supervisor with an API server.

    :ivar values: the Variables and their values.
    :ivar asked: the types of what was asked, in order.
    :ivar instead: functions by type of question, which are called with the question instead of an answer.
    """

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.descriptions: dict[str, str] = {}
        self.asked: list[str] = []
        self.instead: dict[str, Callable[[dict[str, Any]], Any]] = {}
        self.theirs, self._ours = socket.socketpair()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ours.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._ours.close()
        self.theirs.close()

    def _serve(self) -> None:
        with self._ours.makefile("rb") as stream:
            while len(size := stream.read(4)) == 4:
                frame = msgspec.msgpack.decode(stream.read(int.from_bytes(size)), type=_RequestFrame)
                self.asked.append(frame.body["type"])
                answer = self.instead.get(frame.body["type"], self._answer)(frame.body)
                error = answer.model_dump() if isinstance(answer, ErrorResponse) else None
                body = answer.model_dump(by_alias=False) if answer is not None and error is None else None
                with contextlib.suppress(OSError):
                    self._ours.sendall(_ResponseFrame(frame.id, body, error).as_bytes())

    def _answer(self, question: dict[str, Any]) -> Any:
        match question:
            case {"type": "GetVariable", "key": key} if key in self.values:
                return VariableResult(key=key, value=self.values[key])
            case {"type": "GetVariable"}:
                return ErrorResponse(error=ErrorType.VARIABLE_NOT_FOUND)
            case {"type": "PutVariable", "key": key, "value": value, "description": description}:
                self.values[key], self.descriptions[key] = value, description
            case {"type": "DeleteVariable", "key": key}:
                del self.values[key]
            case {"type": "GetVariableKeys", "prefix": prefix}:
                keys = [key for key in self.values if key.startswith(prefix)]
                return VariableKeysResult(keys=keys, total_entries=len(keys))
        return OKResponse(ok=True)


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    with Supervisor() as supervisor:
        yield supervisor


@pytest.fixture
def task(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this process that of a task."""
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", CommsDecoder(socket=supervisor.theirs), raising=False)


@pytest.fixture
def new_host(task: None, tmp_path: Path) -> Callable[[], VariableStore]:
    """Makes the stores of hosts that share nothing but the Variables."""
    numbers = itertools.count()
    return lambda: VariableStore(FileStore(tmp_path / f"host {next(numbers)}"))


@pytest.fixture
def store(new_host: Callable[[], VariableStore]) -> VariableStore:
    return new_host()


@pytest.fixture
def load(new_host: Callable[[], VariableStore]) -> Callable[[str], bytes | None]:
    """Looks up an entry on a new host, under the lock."""

    def load(key: str) -> bytes | None:
        host = new_host()
        assert host.load(key) is None
        with host.lock(key, PATIENCE) as lease:
            assert lease is not None
            return host.load(key)

    return load


@pytest.fixture
def without_files(task: None, tmp_path: Path) -> VariableStore:
    """The store of a host whose directory can't be used."""
    (tmp_path / "file").write_text("")
    return VariableStore(FileStore(tmp_path / "file"))


def at(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%dT%H:%M:%SZ}"


class TestEntries:
    def test_what_was_saved_last_is_found_by_another_host(self, store, load):
        assert load(KEY) is None
        for data in (b"", b"before", DATA):
            store.save(KEY, data, 60)
            assert store.load(KEY) == load(KEY) == data
        assert load(OTHER) is None

    def test_a_host_that_has_an_older_entry_gets_the_newer_one_with_the_lock(self, new_host):
        one, other = new_host(), new_host()
        one.save(KEY, b"old", 60)
        with other.lock(KEY, PATIENCE):
            assert other.load(KEY) == b"old"
        one.save(KEY, b"new", 60)
        assert other.load(KEY) == b"old"
        with other.lock(KEY, PATIENCE):
            assert other.load(KEY) == b"new"

    def test_who_waited_for_the_lock_reads_what_the_one_before_saved_and_no_variable(self, store, supervisor):
        def wait() -> bytes | None:
            waiting.set()
            with store.lock(KEY, PATIENCE):
                return store.load(KEY)

        waiting = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            with store.lock(KEY, PATIENCE) as lease:
                result = pool.submit(wait)
                assert waiting.wait(PATIENCE)
                # It reads its file, and waits for the lock.
                time.sleep(0.2)
                store.save(KEY, DATA, 60, lease)
            assert result.result(PATIENCE) == DATA
        assert supervisor.asked.count("GetVariable") == 1

    def test_a_copy_lasts_as_long_as_the_variable(self, store, load, new_host, supervisor, tmp_path):
        store.save(KEY, DATA, 3600)
        assert load(KEY) == DATA
        (copy,) = tmp_path.glob(f"host [!0]*/{KEY}.entry")
        assert 3600 - PATIENCE < copy.stat().st_mtime - time.time() <= 3601

    def test_a_variable_tells_what_it_is_and_until_when(self, store, supervisor):
        store.save(KEY, b"\xff" * 3, 3600)
        ((name, value),) = supervisor.values.items()
        assert name == f"openmarkets_cache_{KEY}"
        end, _, text = value.partition(" ")
        left = datetime.fromisoformat(end) - datetime.now(UTC)
        assert 3600 - PATIENCE < left.total_seconds() <= 3601
        assert text == "////"
        assert f"of use until {end[:10]} {end[11:19]} UTC" in supervisor.descriptions[name]

    def test_a_name_is_not_one_whose_values_the_masker_keeps(self, store, load):
        assert not _secrets_masker().should_hide_value_for_key(PREFIX + KEY)
        store.save(KEY, DATA, 60)
        patterns = len(_secrets_masker().patterns)
        assert load(KEY) == DATA
        assert len(_secrets_masker().patterns) == patterns

    def test_what_is_past_its_use_is_not_loaded(self, load, supervisor):
        supervisor.values[PREFIX + KEY] = f"{at(time.time() - 1)} AAAA"
        assert load(KEY) is None

    @pytest.mark.parametrize(
        "value",
        [
            *("", " ", "AAAA", "AAAA AAAA", "{end}", "{end} ", "{end} A", "{end} AA!A", "{end} ä", "{end}  AAAA"),
            *("2099-01-01T00:00:00 AAAA", "2099-13-01T00:00:00Z AAAA", "inf AAAA", json.dumps({"a": 1}), "\0"),
        ],
    )
    def test_damaged_values_hold_nothing_and_are_replaced(self, store, load, supervisor, value):
        supervisor.values[PREFIX + KEY] = value.replace("{end}", "2099-01-01T00:00:00Z")
        assert not load(KEY)
        store.save(KEY, DATA, 60)
        assert load(KEY) == DATA

    def test_one_of_the_same_name_that_goes_before_ours_hides_it_and_harms_nothing(self, store, load, monkeypatch):
        monkeypatch.setenv(f"AIRFLOW_VAR_{PREFIX}{KEY}".upper(), "something else")
        store.save(KEY, DATA, 60)
        assert load(KEY) is None

    def test_the_lock_is_that_of_a_host(self, new_host):
        one, other = new_host(), new_host()
        with one.lock(KEY, PATIENCE) as first, other.lock(KEY, 0) as second, one.lock(KEY, 0) as third:
            assert first is not None
            assert second is not None
            assert third is None

    def test_a_host_whose_files_cannot_be_used_shares_the_variable(self, without_files, load, store):
        with pytest.raises(OSError, match="not a directory"):
            without_files.save(KEY, DATA, 60)
        assert without_files.load(KEY) == load(KEY) == DATA


class TestSweep:
    def test_a_save_deletes_what_is_long_past_its_use(self, store, supervisor):
        long_ago = f"{at(time.time() - SWEEP_AFTER - 100)} AAAA"
        kept = {
            PREFIX + "1" * 32: f"{at(time.time() + 1)} AAAA",
            # Another task may be writing it again, such as a DAG that runs once a week.
            PREFIX + "2" * 32: f"{at(time.time() - 7 * 86400)} AAAA",
            PREFIX + "3" * 32: "not of this version",
            PREFIX + "mine": long_ago,
            "mine": long_ago,
        }
        supervisor.values = {PREFIX + OTHER: long_ago, **kept}
        store.save(KEY, DATA, 60)
        assert supervisor.values.keys() == {PREFIX + KEY, *kept}

    def test_a_save_looks_at_a_few_only_and_in_time_at_all(self, store, supervisor):
        supervisor.values = {
            f"{PREFIX}{number:032x}": f"{at(time.time() - SWEEP_AFTER - 100)} AAAA" for number in range(25)
        }
        store.save(KEY, DATA, 60)
        assert supervisor.asked.count("GetVariable") == supervisor.asked.count("DeleteVariable") == 10
        while len(supervisor.values) > 1:
            store.save(KEY, DATA, 60)

    @pytest.mark.parametrize("question", ["GetVariableKeys", "GetVariable", "DeleteVariable"])
    def test_a_sweep_that_fails_is_no_failure_of_the_save(self, store, supervisor, question):
        supervisor.values[PREFIX + OTHER] = f"{at(time.time() - SWEEP_AFTER - 100)} AAAA"
        supervisor.instead[question] = lambda _: ErrorResponse(error=ErrorType.GENERIC_ERROR)
        store.save(KEY, DATA, 60)
        assert PREFIX + KEY in supervisor.values


class TestTrouble:
    @pytest.mark.parametrize("error", [ErrorType.API_SERVER_ERROR, ErrorType.PERMISSION_DENIED])
    def test_an_answer_that_is_an_error_is_an_oserror_and_the_file_is_saved(self, store, supervisor, error):
        supervisor.instead["PutVariable"] = lambda _: ErrorResponse(error=error, detail={"message": "no\nno"})
        with pytest.raises(OSError, match=r"AirflowRuntimeError: \w+: .*no"):
            store.save(KEY, DATA, 60)
        assert store.load(KEY) == DATA

    def test_nothing_is_found_while_the_api_server_fails(self, store, load, supervisor):
        store.save(KEY, DATA, 60)
        supervisor.instead["GetVariable"] = lambda _: ErrorResponse(error=ErrorType.API_SERVER_ERROR)
        assert load(KEY) is None

    def test_a_supervisor_that_is_gone_is_an_oserror(self, store, load, supervisor):
        supervisor._ours.shutdown(socket.SHUT_RDWR)
        with pytest.raises(OSError, match=r"."):
            store.save(KEY, DATA, 60)
        assert load(KEY) is None

    def test_airflow_that_does_not_answer_is_left_alone_until_it_does(
        self, store, load, without_files, supervisor, monkeypatch
    ):
        monkeypatch.setattr(_variable_store, "TIMEOUT", 0.1)
        go_on = threading.Event()

        def late(question: dict[str, Any]) -> Any:
            assert go_on.wait(PATIENCE)
            return supervisor._answer(question)

        supervisor.instead["PutVariable"] = late
        with pytest.raises(TimeoutError, match=r"did not answer within 0\.1 s"):
            store.save(KEY, DATA, 60)
        for call in (lambda: without_files.load(OTHER), lambda: store.save(OTHER, DATA, 60)):
            with pytest.raises(TimeoutError, match="earlier call"):
                call()
        assert supervisor.asked.count("PutVariable") == 1
        assert load(KEY) is None
        # A child makes its own call. Here it waits for the lock that its parent's call has acquired.
        if (child := os.fork()) == 0:
            try:
                without_files.load(OTHER)
            except TimeoutError as error:
                os._exit(0 if "did not answer" in str(error) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        go_on.set()
        monkeypatch.setattr(_variable_store, "TIMEOUT", PATIENCE)
        _variable_store.reset()
        assert "openmarkets_variable" not in [each.name for each in threading.enumerate()]
        assert load(KEY) == DATA

    def test_an_event_loop_that_waits_is_never_blocked(self, store, supervisor):
        async def blocking() -> None:
            store.save(KEY, DATA, 60)

        with pytest.raises(OSError, match="event loop"):
            asyncio.run(blocking())
        assert not supervisor.asked

    def test_threads_share_it(self, store, load):
        def work(number: int) -> None:
            key = f"{number:032x}"
            for count in range(5):
                store.save(key, f"{number} {count}".encode(), 60)
                found.append(load(key) == f"{number} {count}".encode())

        found: list[bool] = []
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert found == [True] * 40

    @pytest.mark.parametrize("version", ["3.0.0", "3.1.8", "3.2.1", "3.2.1rc1"])
    def test_where_airflow_lets_one_thread_only_talk_to_it_the_main_thread_does(
        self, store, load, supervisor, monkeypatch, version
    ):
        monkeypatch.setattr(airflow, "__version__", version)
        with (
            ThreadPoolExecutor(1) as pool,
            pytest.raises(OSError, match=r"only the main thread of a task"),
        ):
            pool.submit(store.save, KEY, DATA, 60).result(PATIENCE)
        assert not supervisor.asked
        store.save(KEY, DATA, 60)
        assert load(KEY) == DATA
        supervisor.instead["PutVariable"] = lambda _: ErrorResponse(error=ErrorType.API_SERVER_ERROR)
        with pytest.raises(OSError, match="AirflowRuntimeError"):
            store.save(KEY, DATA, 60)

    def test_a_process_without_supervisor_and_database_is_told_so(self, store, monkeypatch):
        monkeypatch.delattr(task_runner, "SUPERVISOR_COMMS", raising=False)
        with pytest.raises(OSError, match=r"OperationalError: .*no such table: variable$"):
            store.save(KEY, DATA, 60)
        assert store.load(KEY) == DATA


class TestTriggerer:
    """Where coroutines wait on Airflow's own loop, and threads ask through it."""

    @contextlib.asynccontextmanager
    async def comms(self, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch):
        reader, writer = await asyncio.open_connection(sock=supervisor.theirs.dup())
        comms = TriggerCommsDecoder(socket=supervisor.theirs, async_writer=writer, async_reader=reader)
        monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", comms, raising=False)
        await comms.start_reader()
        try:
            yield
        finally:
            comms._reader_task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await comms._reader_task
            writer.close()
            await writer.wait_closed()

    async def test_a_thread_of_the_triggerer_loads_and_saves(self, store, load, supervisor, monkeypatch):
        async with self.comms(supervisor, monkeypatch):
            await asyncio.gather(*(asyncio.to_thread(store.save, f"{n:032x}", DATA, 60) for n in range(5)))
            assert await asyncio.to_thread(load, f"{4:032x}") == DATA
            with pytest.raises(OSError, match="event loop"):
                store.save(KEY, DATA, 60)

    async def test_the_loop_goes_on_while_airflow_does_not_answer(self, without_files, supervisor, monkeypatch):
        monkeypatch.setattr(_variable_store, "TIMEOUT", 0.2)
        go_on = threading.Event()
        supervisor.instead["GetVariable"] = lambda _: go_on.wait(PATIENCE) and None
        async with self.comms(supervisor, monkeypatch):
            waiting = asyncio.create_task(asyncio.to_thread(without_files.load, KEY))
            turns = 0
            while not waiting.done():
                await asyncio.sleep(0.01)
                turns += 1
            with pytest.raises(TimeoutError):
                await waiting
            assert turns > 2
            go_on.set()
            monkeypatch.setattr(_variable_store, "TIMEOUT", PATIENCE)
            await asyncio.to_thread(_variable_store.reset)

    async def test_the_bridge_that_older_triggerers_lack_is_not_tried(self, store, supervisor, monkeypatch):
        monkeypatch.setattr(airflow, "__version__", "3.2.1")
        async with self.comms(supervisor, monkeypatch):
            with pytest.raises(OSError, match="main thread"):
                await asyncio.to_thread(store.save, KEY, DATA, 60)
        assert not supervisor.asked


class TestTokens:
    @pytest.fixture
    def new_hook(self, task, openmarkets_sandbox, monkeypatch, tmp_path) -> Callable[[str], OpenmarketsHook]:
        """Makes hooks of hosts that share nothing but the Variables."""
        made = openmarkets_sandbox.connection
        made["extra"]["cache_backend"] = "variable"
        monkeypatch.setenv("AIRFLOW_CONN_OPENMARKETS_DEFAULT", json.dumps(made))

        def new_hook(name: str) -> OpenmarketsHook:
            reset_memory()
            monkeypatch.setenv("AIRFLOW__OPENMARKETS__TOKEN_CACHE_DIR", str(tmp_path / name))
            return OpenmarketsHook()

        return new_hook

    def test_a_host_that_is_new_finds_the_token_and_keeps_a_copy(self, new_hook, openmarkets_sandbox, supervisor):
        token = new_hook("a").get_access_token("oms-api")
        assert new_hook("b").get_access_token("oms-api") == token
        asked = len(supervisor.asked)
        supervisor.instead["GetVariable"] = lambda _: pytest.fail("the copy is nearer")
        assert new_hook("b").get_access_token("oms-api") == token
        assert "GetVariable" not in supervisor.asked[asked:]
        assert openmarkets_sandbox.stats()["token_requests"] == {"oms-api": 1}

    def test_nothing_of_it_can_be_read(self, new_hook, openmarkets_sandbox, supervisor):
        token = new_hook("a").get_access_token("oms-api")
        held = json.dumps([supervisor.values, supervisor.descriptions])
        for secret in (token, openmarkets_sandbox.client_secret, openmarkets_sandbox.client_id, "oms"):
            assert secret not in held
        assert all(len(value) < 4096 for value in supervisor.values.values())

    def test_while_variables_are_out_of_use_the_file_does_and_one_warning_tells(
        self, new_hook, openmarkets_sandbox, supervisor, caplog
    ):
        supervisor.instead["PutVariable"] = lambda _: ErrorResponse(error=ErrorType.API_SERVER_ERROR)
        hook = new_hook("a")
        with caplog.at_level(logging.WARNING, "openmarkets_provider"):
            for scope in ("oms-api", "news-api", "oms-api"):
                hook.get_access_token(scope)
        assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
            "The variable store can't be used"
        ]
        assert openmarkets_sandbox.stats()["token_requests"] == {"oms-api": 1, "news-api": 1}


def test_the_connection_asks_for_it(openmarkets_sandbox):
    hook = OpenmarketsHook()
    settings = hook.client.settings
    store = store_of(type(settings)(**_fields(settings, cache_backend="variable")))
    assert isinstance(store, VariableStore)


def _fields(settings: Any, **changes: Any) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in settings.__slots__} | changes
