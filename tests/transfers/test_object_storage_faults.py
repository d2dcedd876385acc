"""What a load leaves behind when it is disturbed, and that a further one then gives what an undisturbed one gives.

Each load runs in a separate process, as tasks of Airflow do, so that it can be killed at any point. Servers tell when
that point is reached, or the kernel ends the process there.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from openmarkets_provider import queries
from openmarkets_provider.landing import spool
from openmarkets_provider.sandbox.securities import SECURITIES
from tests.support.landed import without_loaded_at
from tests.support.load_process import WAIT, Load
from tests.support.processes import FORK_SERVER
from tests.support.s3_server import S3Server

pytestmark = pytest.mark.slow

MANY = [security.code for security in SECURITIES.values() if security.option is None][:300]
SOME, FEW = MANY[:100], MANY[:5]
WEEK = {"start": "2026-03-02", "end": "2026-03-08"}
DAYS = [f"exchange_date=2026-03-0{day}" for day in range(2, 8)]
"""The last one is a Saturday, and has no rows."""
BARS = "/market-data/pricing/timeseries/"
LARGE = [{"number": number, "text": str(number % 10) * (1 << 20)} for number in range(40)]
"""What one call may give, and takes several parts to upload."""


class Local:
    """A destination on a disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.environment: dict[str, str] = {}

    def url(self, name: str) -> str:
        return str(self._folder / name)

    def files(self) -> dict[str, bytes]:
        return {name: content for name, content in self._all().items() if not name.rpartition("/")[2].startswith(".")}

    def left(self) -> list[str]:
        """Return everything that is not a file."""
        return sorted(set(self._all()) - set(self.files()))

    def put(self, name: str, content: bytes) -> None:
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def _all(self) -> dict[str, bytes]:
        found = (path for path in self._folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self._folder)): without_loaded_at(path.read_bytes()) for path in found}


class Remote:
    """A destination in an object store."""

    def __init__(self, server: S3Server, scratch: Path) -> None:
        self.server = server
        self._scratch = scratch
        self.environment = {"AIRFLOW_CONN_FAULTS_S3": server.connection_json, "TMPDIR": str(scratch)}

    def url(self, name: str) -> str:
        return f"s3://faults_s3@{self.server.BUCKET}/{name}"

    def files(self) -> dict[str, bytes]:
        keys = self.server.keys()
        return {key: without_loaded_at(self.server.read(key)) for key in keys}

    def left(self) -> list[str]:
        return sorted([*(upload["Key"] for upload in self.server.uploads()), *os.listdir(self._scratch)])

    def put(self, name: str, content: bytes) -> None:
        self.server.put(name, content)


@pytest.fixture
def start(openmarkets_sandbox) -> Iterator[Callable[..., Load]]:
    """Give a function that starts a load; those that still run are killed when the test ends."""
    connection = {"AIRFLOW_CONN_OPENMARKETS_DEFAULT": json.dumps(openmarkets_sandbox.connection)}
    folders = ("AIRFLOW__OPENMARKETS__TOKEN_CACHE_DIR", "AIRFLOW__OPENMARKETS__RESUME_FOLDER")
    cache = {name: os.environ[name] for name in folders}
    loads: list[Load] = []

    def begin(where: Local | Remote, before: Callable[[], None] | None = None, **arguments: Any) -> Load:
        loads.append(Load({**connection, **cache, **where.environment}, arguments, before))
        return loads[-1]

    yield begin
    for load in loads:
        load.end()


@pytest.fixture(params=["disk", "object store"])
def where(request, tmp_path: Path) -> Local | Remote:
    if request.param == "disk":
        return local(tmp_path)
    return remote(request.getfixturevalue("s3"), tmp_path)


def local(tmp_path: Path) -> Local:
    folder = tmp_path / "landing"
    folder.mkdir()
    return Local(folder)


def remote(server: S3Server, tmp_path: Path) -> Remote:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return Remote(server, scratch)


def of(where: Local | Remote, partition: str | None, codes: list[str] = FEW, kind: str = "csv") -> dict[str, Any]:
    """Return the arguments of a load."""
    return {
        "query": queries.time_series(codes, **WEEK),
        "destination": where.url("bars" if partition else f"x.{kind}"),
        "format": kind,
        "partition": partition,
    }


def old_files(where: Local | Remote, partition: str | None, kind: str = "csv") -> dict[str, bytes]:
    """Put files there from a load before; the Saturday had rows then."""
    names = [f"bars/{day}/part-0.{kind}" for day in DAYS] if partition else [f"x.{kind}"]
    for name in names:
        where.put(name, f"old {name}".encode())
    return where.files()


_UNDISTURBED: dict[str, dict[str, bytes]] = {}


def undisturbed(start: Callable[..., Load], tmp_path: Path, arguments: dict[str, Any]) -> dict[str, bytes]:
    """Return the files of a load that nothing disturbs."""
    name = arguments["destination"].rpartition("/")[2]
    known = repr({**arguments, "destination": name})
    if known not in _UNDISTURBED:
        other = Local(tmp_path / "undisturbed")
        outcome = start(other, **{**arguments, "destination": other.url(name)}).outcome()
        assert isinstance(outcome, dict), outcome
        _UNDISTURBED[known] = other.files()
    return _UNDISTURBED[known]


def again(start: Callable[..., Load], where: Local | Remote, arguments: dict[str, Any]) -> dict[str, bytes]:
    """Load once more; return the files, when nothing else is left."""
    outcome = start(where, **arguments).outcome()
    assert isinstance(outcome, dict), outcome
    assert where.left() == []
    return where.files()


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not reached():
        assert time.monotonic() < deadline, "the point was not reached"
        time.sleep(0.01)


def hang(sandbox: Any, after: int) -> Callable[[], None]:
    """Make a call for bars hang after some were answered. Return a function that waits for it."""
    sandbox.fault(target=BARS, kind="delay", seconds=WAIT, after=after, times=None)

    def is_reached() -> bool:
        paths = sandbox.stats()["by_path"]
        return sum(count for path, count in paths.items() if BARS in path) > after

    return lambda: wait_until(is_reached)


PARTITIONS = pytest.mark.parametrize("partition", [None, "day"])
KINDS = pytest.mark.parametrize(("partition", "kind"), [(None, "parquet"), (None, "csv"), ("day", "parquet")])


@PARTITIONS
@pytest.mark.parametrize("how", ["killed", "terminated"])
def test_a_load_that_ends_while_it_fetches(start, openmarkets_sandbox, where, partition, how, tmp_path):
    arguments = of(where, partition)
    expected = undisturbed(start, tmp_path, arguments)
    old = old_files(where, partition)
    openmarkets_sandbox.reset()
    wait = hang(openmarkets_sandbox, after=2)
    load = start(where, **arguments)
    wait()
    if how == "killed":
        load.kill()
        assert load.outcome() is signal.SIGKILL
    else:
        load.terminate()
        assert load.outcome() == "Killed: The task was killed; its load was rolled back."
    assert where.files() == old
    # Of a killed one a hidden file beside the destination; in the temporary folder of the machine nothing.
    assert len(where.left()) == (how == "killed" and isinstance(where, Local))
    openmarkets_sandbox.reset()
    assert again(start, where, arguments) == expected


class TestKilled:
    @KINDS
    def test_while_encoding(self, start, tmp_path, partition, kind):
        where = local(tmp_path)
        arguments = of(where, partition, SOME, kind)
        expected = undisturbed(start, tmp_path, arguments)
        old = old_files(where, partition, kind)
        load = start(where, die_when_a_file_is_large, **arguments)
        assert load.outcome() is signal.SIGXFSZ
        assert where.files() == old
        assert where.left() != []
        assert again(start, where, arguments) == expected

    def test_between_two_partitions_on_a_disk(self, start, tmp_path):
        where = local(tmp_path)
        arguments = of(where, "day")
        expected = undisturbed(start, tmp_path, arguments)
        old = old_files(where, "day")
        assert start(where, die_at_the_third_file, **arguments).outcome() is signal.SIGKILL
        names = sorted(old)
        assert where.files() == {**old, **{name: expected[name] for name in names[:2]}}
        assert len(where.left()) == 3
        assert again(start, where, arguments) == expected

    def test_between_two_partitions_in_an_object_store(self, start, s3, tmp_path):
        where = remote(s3, tmp_path)
        arguments = of(where, "day")
        expected = undisturbed(start, tmp_path, arguments)
        old = old_files(where, "day")
        s3.requests.clear()
        hold = s3.hold("PUT /bucket/bars", after=2)
        load = start(where, **arguments)
        assert hold.reached.wait(WAIT)
        load.kill()
        assert load.outcome() is signal.SIGKILL
        hold.drop()
        names = sorted(old)
        assert where.files() == {**old, **{name: expected[name] for name in names[:2]}}
        assert where.left() == []
        assert again(start, where, arguments) == expected

    @pytest.mark.parametrize("parts", [1, 3])
    def test_while_uploading(self, start, openmarkets_sandbox, s3, tmp_path, parts):
        where = remote(s3, tmp_path)
        reply, name = (LARGE[:20], "large.jsonl") if parts > 1 else (LARGE[:1], "small.jsonl")
        openmarkets_sandbox.fault(target="oms", kind="body", body=reply, times=None)
        arguments = {
            "query": queries.request("oms", "GET", "accounts/v1"),
            "destination": where.url(name),
            "format": "jsonl",
        }
        expected = undisturbed(start, tmp_path, arguments)
        where.put(name, b"old")
        hold = s3.hold(f"PUT /bucket/{name}", after=parts // 2)
        load = start(where, **arguments)
        assert hold.reached.wait(WAIT)
        load.kill()
        assert load.outcome() is signal.SIGKILL
        hold.drop()
        assert where.files() == {name: b"old"}
        # What nobody can take back: an upload without an end, which a rule of the bucket removes.
        assert where.left() == ([name] if parts > 1 else [])
        s3.abort_uploads()
        assert (again(start, where, arguments) == expected) is True


class TestKilledWhereNoFileMayBe:
    """With ``if_exists="error"``."""

    def test_the_next_attempt_knows_its_own_files(self, start, where):
        arguments = of(where, "day") | {"if_exists": "error"}
        if isinstance(where, Local):
            load = start(where, die_at_the_third_file, **arguments)
        else:
            hold = where.server.hold("PUT /bucket/bars", after=2)
            load = start(where, **arguments)
            assert hold.reached.wait(WAIT)
            load.kill()
        assert load.outcome() is signal.SIGKILL
        assert len(where.files()) == 2
        if isinstance(where, Remote):
            hold.drop()
        assert len(again(start, where, arguments)) == 5
        # Also when it was killed after the last one.
        assert len(again(start, where, arguments)) == 5

    def test_a_file_that_somebody_has_changed_is_not_its_own(self, start, where):
        arguments = of(where, None) | {"if_exists": "error"}
        again(start, where, arguments)
        where.put("x.csv", b"of somebody else")
        assert "x.csv already exists" in start(where, **arguments).outcome()
        assert where.files() == {"x.csv": b"of somebody else"}


class TestTerminated:
    """SIGTERM, on which Airflow calls ``on_kill``."""

    def test_between_two_partitions(self, start, tmp_path):
        where = local(tmp_path)
        arguments = of(where, "day")
        expected = undisturbed(start, tmp_path, arguments)
        old = old_files(where, "day")
        outcome = start(where, end_at_the_third_file, **arguments).outcome()
        assert outcome.startswith("Killed: ")
        assert where.left() == []
        assert all(content in (old[name], expected.get(name)) for name, content in where.files().items())
        assert again(start, where, arguments) == expected

    def test_as_a_file_has_just_appeared_where_there_may_be_none(self, start, where):
        arguments = of(where, "day") | {"if_exists": "error"}
        if isinstance(where, Local):
            load = start(where, end_when_the_third_file_is_there, **arguments)
        else:
            hold = where.server.hold("PUT /bucket/bars/.*2026-03-04")
            load = start(where, **arguments)
            assert hold.reached.wait(WAIT)
            load.terminate()
            hold.release()
        assert load.outcome().startswith("Killed: ")
        assert (where.files(), where.left()) == ({}, [])
        assert len(again(start, where, arguments)) == 5

    def test_while_uploading(self, start, openmarkets_sandbox, s3, tmp_path):
        where = remote(s3, tmp_path)
        openmarkets_sandbox.fault(target="oms", kind="body", body=LARGE, times=None)
        arguments = {
            "query": queries.request("oms", "GET", "accounts/v1"),
            "destination": where.url("x.jsonl"),
            "format": "jsonl",
        }
        where.put("x.jsonl", b"old")
        hold = s3.hold(r"PUT /bucket/x\.jsonl", after=1)
        load = start(where, **arguments)
        assert hold.reached.wait(WAIT)
        load.terminate()
        hold.release()
        assert load.outcome().startswith("Killed: ")
        assert (where.files(), where.left()) == ({"x.jsonl": b"old"}, [])
        assert len(again(start, where, arguments)["x.jsonl"]) > 40 << 20


class TestFullDisk:
    @KINDS
    def test_it_is_told_and_nothing_is_left(self, start, where, partition, kind, tmp_path):
        arguments = of(where, partition, SOME, kind)
        expected = undisturbed(start, tmp_path, arguments)
        old = old_files(where, partition, kind)
        outcome = start(where, refuse_when_a_file_is_large, **arguments).outcome()
        assert "Cannot write rows to a temporary file in " in outcome
        assert "File too large" in outcome
        assert (where.files(), where.left()) == (old, [])
        assert again(start, where, arguments) == expected

    def test_rows_that_can_not_be_read_again_are_told(self, start, where):
        arguments = of(where, "day")
        outcome = start(where, fail_to_read_what_waits, **arguments).outcome()
        assert outcome.startswith("OpenmarketsError: Cannot write rows to a temporary file in ")
        assert "Input/output error" in outcome
        assert (where.files(), where.left()) == ({}, [])


class TestFailingApi:
    @PARTITIONS
    def test_at_the_150th_of_300_pieces(self, start, openmarkets_sandbox, where, partition, tmp_path):
        arguments = of(where, partition, MANY)
        expected = undisturbed(start, tmp_path, arguments)
        old = old_files(where, partition)
        openmarkets_sandbox.reset()
        openmarkets_sandbox.fault(target=BARS, kind="status", status=500, retry_after=0, after=149, times=None)
        outcome = start(where, **arguments).outcome()
        assert "OpenmarketsServerError: Call 1" in outcome
        assert "of 300" in outcome
        assert (where.files(), where.left()) == (old, [])
        openmarkets_sandbox.reset()
        assert again(start, where, arguments) == expected

    @PARTITIONS
    def test_429_in_the_middle_only_slows_it(self, start, openmarkets_sandbox, where, partition, tmp_path):
        arguments = of(where, partition)
        expected = undisturbed(start, tmp_path, arguments)
        old_files(where, partition)
        openmarkets_sandbox.reset()
        openmarkets_sandbox.fault(target=BARS, kind="status", status=429, retry_after=0, after=2, times=2)
        assert again(start, where, arguments) == expected
        assert openmarkets_sandbox.stats()["by_status"]["429"] == 2


class TestFailingStore:
    def test_at_the_third_partition(self, start, s3, tmp_path):
        where = remote(s3, tmp_path)
        arguments = of(where, "day")
        expected = undisturbed(start, tmp_path, arguments)
        old = old_files(where, "day")
        s3.fail("PUT /bucket/bars/.*2026-03-04", 500, "InternalError", times=99)
        assert f"Cannot write s3://bucket/bars/{DAYS[2]}/part-0.csv" in start(where, **arguments).outcome()
        names = sorted(old)
        assert where.files() == {**old, **{name: expected[name] for name in names[:2]}}
        assert where.left() == []
        s3.reset()
        assert again(start, where, arguments) == expected

    def test_one_that_can_not_be_taken_back_hides_neither_the_error_nor_the_others(self, start, s3, tmp_path):
        where = remote(s3, tmp_path)
        s3.fail("PUT /bucket/bars/.*2026-03-04", 500, "InternalError", times=99)
        s3.fail("DELETE /bucket/bars/.*2026-03-02", 403, "AccessDenied", times=99)
        outcome = start(where, **of(where, "day"), if_exists="error").outcome()
        assert f"Cannot write s3://bucket/bars/{DAYS[2]}/part-0.csv" in outcome
        assert list(where.files()) == [f"bars/{DAYS[0]}/part-0.csv"]


class TestTwiceAtOnce:
    @PARTITIONS
    def test_on_a_disk(self, start, tmp_path, partition):
        where = local(tmp_path)
        arguments = of(where, partition)
        expected = undisturbed(start, tmp_path, arguments)
        old_files(where, partition)
        meeting = FORK_SERVER.Barrier(2)
        loads = [start(where, MeetAtTheFirstFile(meeting), **arguments) for _ in range(2)]
        for load in loads:
            assert load.outcome()["rows"] == 25
        assert (where.files(), where.left()) == (expected, [])

    @PARTITIONS
    def test_in_an_object_store(self, start, s3, tmp_path, partition):
        where = remote(s3, tmp_path)
        arguments = of(where, partition)
        expected = undisturbed(start, tmp_path, arguments)
        old_files(where, partition)
        hold = s3.hold("PUT /bucket/", times=2)
        loads = [start(where, **arguments) for _ in range(2)]
        assert hold.reached.wait(WAIT)
        hold.release()
        for load in loads:
            assert load.outcome()["rows"] == 25
        assert (where.files(), where.left()) == (expected, [])

    def test_a_load_does_not_take_away_what_its_twin_still_writes(self, start, openmarkets_sandbox, tmp_path):
        where = local(tmp_path)
        arguments = of(where, None)
        expected = undisturbed(start, tmp_path, arguments)
        goes_on = FORK_SERVER.Barrier(2)
        slow = start(where, MeetAtTheFirstFile(goes_on), **arguments)
        wait_until(lambda: where.left() != [])
        (its_file,) = where.left()
        assert start(where, **arguments).outcome()["rows"] == 25
        assert where.left() == [its_file]
        goes_on.wait(WAIT)
        assert slow.outcome()["rows"] == 25
        assert (where.files(), where.left()) == (expected, [])


LIMIT = 8192
"""Bytes that a file may have; each file of these loads has more."""


def refuse_when_a_file_is_large() -> None:
    """Limit the size of files in the kernel, like a full disk. Works for any user."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))


def die_when_a_file_is_large() -> None:
    """Make the kernel end the process while it writes. By default Python ignores the signal."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    refuse_when_a_file_is_large()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def die_at_the_third_file() -> None:
    """End the process right before it renames its third file."""
    at_file(3, lambda: os.kill(os.getpid(), signal.SIGKILL))


def end_at_the_third_file() -> None:
    """Ask the process to end right before it renames its third file."""
    at_file(3, lambda: os.kill(os.getpid(), signal.SIGTERM))


def end_when_the_third_file_is_there() -> None:
    """Ask the process to end when its third file is in place, as its folder is about to be written to the disk."""
    at_event(
        "open", lambda arguments: str(arguments[0]).endswith(DAYS[2]), lambda: os.kill(os.getpid(), signal.SIGTERM)
    )


def fail_to_read_what_waits() -> None:
    """Make the file of waiting rows unreadable."""
    spool.MAX_ROWS = 1

    def fail() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    at_event("pickle.find_class", lambda arguments: True, fail)


class MeetAtTheFirstFile:
    """Makes processes wait for each other right before they rename their first file."""

    def __init__(self, meeting: Any) -> None:
        self._meeting = meeting

    def __call__(self) -> None:
        at_file(1, lambda: self._meeting.wait(WAIT))


def at_file(number: int, act: Callable[[], object]) -> None:
    """Call a function before the n-th time that a process renames a temporary file."""
    at_event("os.rename", lambda arguments: str(arguments[0]).endswith(".part"), act, number)


def at_event(name: str, matches: Callable[[tuple[Any, ...]], bool], act: Callable[[], object], number: int = 1) -> None:
    """Call a function before the n-th event with a name in Python's audit."""
    seen: list[object] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == name and matches(arguments):
            seen.append(arguments)
            if len(seen) == number:
                act()

    sys.addaudithook(hook)
