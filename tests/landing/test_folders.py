from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import re
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath
from botocore.exceptions import CredentialRetrievalError, NoCredentialsError, PartialCredentialsError

from openmarkets_provider.exceptions import OpenmarketsConfigurationError, OpenmarketsError
from openmarkets_provider.landing import folders
from openmarkets_provider.landing.errors import explain_errors
from openmarkets_provider.landing.folders import Folder, LocalFolder, RemoteFolder
from openmarkets_provider.landing.places import CHUNK, read_place, upload_options
from tests.support.black_hole import black_hole
from tests.support.hostile import reply, reset
from tests.support.s3_server import SECRET

WAIT = 60
PART = r"PUT /bucket/bars/x\?partNumber={}&"


@pytest.fixture
def local(tmp_path: Path) -> LocalFolder:
    folder = LocalFolder(read_place(str(tmp_path / "bars"), is_folder=True))
    folder.prepare(["x"])
    return folder


def land(folder: Folder, name: str, content: bytes) -> int:
    with folder.stage() as file:
        file.write(content)
        return folder.publish(file, name)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def before_locking(act: Callable[[], None]) -> Iterator[None]:
    """Do something whenever a file is about to be locked. A hook stays for ever in Python, so this one is emptied."""
    acts = [act]

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "fcntl.flock" and acts:
            acts[0]()

    sys.addaudithook(hook)
    try:
        yield
    finally:
        acts.clear()


class TestLocal:
    def test_a_file_is_there_once_it_is_complete(self, local, tmp_path):
        land(local, "x", b"old")
        with local.stage() as file:
            file.write(b"new")
            assert local.find(["x", "y"]) == {"x"}
            assert (tmp_path / "bars/x").read_bytes() == b"old"
            assert local.publish(file, "x") == 3
            assert (tmp_path / "bars/x").read_bytes() == b"new"
        assert files(tmp_path) == {"bars/x": b"new"}
        assert local.url("x") == f"file://{tmp_path}/bars/x"

    def test_temporary_files_have_names_that_readers_of_folders_pass_over(self, local, tmp_path):
        import pyarrow.dataset as ds

        with local.stage() as file:
            name = Path(file.name).name
            assert name.startswith(".")
            assert not name.endswith((".parquet", ".csv", ".jsonl", ".gz", ".zst"))
            assert ds.dataset(tmp_path / "bars").files == []

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_what_is_not_published_vanishes(self, local, tmp_path, error):
        land(local, "x", b"old")

        def fail() -> None:
            with local.stage() as file:
                file.write(b"new")
                raise error

        with pytest.raises(error):
            fail()
        assert files(tmp_path) == {"bars/x": b"old"}

    def test_the_usual_permissions_are_given(self, local, tmp_path):
        before = os.umask(0o027)
        try:
            land(local, "x", b"")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "bars/x").stat().st_mode) == 0o640

    def test_what_dead_tasks_left_is_removed_and_what_others_write_is_not(self, local, tmp_path, caplog):
        dead = tmp_path / "bars/.openmarkets-0123456789abcdef.part"
        foreign = tmp_path / "bars/.other.part"
        for path in (dead, foreign):
            path.write_bytes(b"half")
        with local.stage() as living, caplog.at_level(logging.INFO):
            living.write(b"twin's")
            local.prepare(["x"])
            assert not dead.exists()
            assert Path(living.name).exists()
            local.publish(living, "x")
        assert files(tmp_path / "bars") == {"x": b"twin's", ".other.part": b"half"}
        assert "which a killed task left behind" in caplog.text

    def test_a_temporary_file_is_locked_from_the_beginning_to_the_end(self, local):
        with local.stage() as file:
            path = Path(file.name)
            with path.open("r+b") as other, pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert not path.exists()

    def test_a_file_that_was_removed_before_it_was_locked_is_made_again(self, local, tmp_path):
        """Another task's cleaning may come between the making of a file and its lock."""
        opened: list[str] = []

        def clean() -> None:
            # Only the first one: it disappears while it is being locked.
            if not opened:
                opened.extend(map(str, (tmp_path / "bars").glob(".openmarkets-*")))
                os.unlink(opened[0])

        with before_locking(clean), local.stage() as file:
            assert Path(file.name).exists()
            assert file.name not in opened
        assert len(opened) == 1

    def test_where_nothing_can_be_locked_files_land_and_none_is_taken_for_a_dead_tasks(self, local, tmp_path):
        (tmp_path / "bars/.openmarkets-0123456789abcdef.part").write_bytes(b"half")

        def refuse() -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        with before_locking(refuse):
            local.prepare(["x"])
            land(local, "x", b"new")
        assert files(tmp_path / "bars") == {"x": b"new", ".openmarkets-0123456789abcdef.part": b"half"}

    def test_it_is_there_when_it_holds_more_than_temporary_files(self, tmp_path):
        folder = LocalFolder(read_place(str(tmp_path / "new"), is_folder=True))
        assert not folder.has_files()
        folder.prepare(["day=1/x"])
        with folder.stage():
            assert not folder.has_files()
        land(folder, "day=1/x", b"")
        assert folder.has_files()

    def test_a_link_is_followed_and_what_is_temporary_is_beside_its_target(self, local, tmp_path):
        """The target may be on another file system, into which nothing can be renamed."""
        (tmp_path / "bars/x").symlink_to(tmp_path / "real/y")
        dead = tmp_path / "real/.openmarkets-0123456789abcdef.part"
        for _ in range(2):
            local.prepare(["x"])
            with local.stage() as file:
                assert Path(file.name).parent == tmp_path / "real"
                file.write(b"new")
                local.publish(file, "x")
            assert (tmp_path / "bars/x").is_symlink()
            assert files(tmp_path / "real") == {"y": b"new"}
            dead.write_bytes(b"half")

    def test_folders_of_partitions_are_made_when_they_get_their_file(self, local, tmp_path):
        with local.stage() as file:
            file.write(b"new")
            assert [path.name for path in (tmp_path / "bars").iterdir()] == [Path(file.name).name]
            local.publish(file, "day=1/x")
        assert files(tmp_path) == {"bars/day=1/x": b"new"}
        local.remove("day=1/x")
        local.remove("day=1/x")
        assert files(tmp_path) == {}

    def test_what_is_no_file_is_not_replaced(self, local, tmp_path):
        (tmp_path / "bars/x").mkdir()
        with pytest.raises(OpenmarketsConfigurationError, match="x exists and is not a file"):
            local.prepare(["x"])

    def test_a_folder_that_can_not_be_made_is_an_error_that_does_not_pass(self, tmp_path):
        (tmp_path / "file").write_bytes(b"")
        folder = LocalFolder(read_place(str(tmp_path / "file/bars"), is_folder=True))
        with pytest.raises(OpenmarketsError, match=r"Cannot create the folder .*bars: NotADirectoryError") as error:
            folder.prepare(["x"])
        assert not error.value.transient

    def test_a_name_that_is_too_long_is_an_error_that_does_not_pass(self, local):
        with pytest.raises(OpenmarketsError, match=r"Cannot read .*bars: OSError: .*File name too long") as error:
            local.prepare(["x" * 300])
        assert not error.value.transient


def failed(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (failed(errno.ENOSPC), True),
        (failed(errno.EIO), True),
        (failed(errno.EROFS), False),
        (failed(errno.ENAMETOOLONG), False),
        (failed(errno.ELOOP), False),
        (failed(errno.EXDEV), False),
        (NoCredentialsError(), False),
        (PartialCredentialsError(provider="env", cred_var="AWS_SECRET_ACCESS_KEY"), False),
        # The service of a container that gives them was not there for a moment.
        (CredentialRetrievalError(provider="container-role", error_msg="Could not connect"), True),
    ],
    ids=str,
)
def test_what_may_pass_is_told_from_what_does_not(error, passes):
    with pytest.raises(OpenmarketsError) as report, explain_errors("Cannot do it"):
        raise error
    assert report.value.transient is passes
    assert ("Set credentials" in str(report.value)) == ("Credential" in type(error).__name__)


def remote(where: str = "s3://bucket/bars", **added: Any) -> RemoteFolder:
    place = read_place(where, is_folder=True)
    fs = ObjectStoragePath(f"s3://{place.bucket}", conn_id="landing_s3").fs
    return RemoteFolder(place, fs, upload_options("s3", "text/csv", added))


LARGE = b"".join(bytes([number]) * CHUNK for number in range(2)) + b"the rest"


class TestRemote:
    @pytest.mark.parametrize(("content", "puts"), [(b"", 1), (b"small", 1), (LARGE, 3)])
    def test_an_object_is_uploaded_whole(self, s3, content, puts):
        folder = remote()
        folder.prepare(["x"])
        assert folder.find(["x"]) == set()
        assert land(folder, "x", content) == len(content)
        assert s3.read("bars/x") == content
        assert folder.find(["x", "y"]) == {"x"}
        assert sum(request.startswith("PUT /bucket/bars/x") for request in s3.requests) == puts
        folder.remove("x")
        folder.remove("x")
        assert s3.keys() == []

    def test_an_object_is_not_one_of_those_whose_names_go_on(self, s3):
        s3.put("bars/x/y", b"")
        assert remote().find(["x"]) == set()

    @pytest.mark.parametrize("where", ["s3://bucket/bars", "s3://bucket"])
    def test_it_is_there_when_an_object_is(self, s3, where):
        folder = remote(where)
        assert not folder.has_files()
        s3.put("barsandmore/x", b"")
        assert folder.has_files() == (where == "s3://bucket")
        land(folder, "day=1/x", b"")
        assert folder.has_files()

    def test_whether_it_exists_is_asked_anew_each_time(self, s3):
        folder = remote()
        assert folder.find(["x"]) == set()
        s3.put("bars/x", b"")
        assert folder.find(["x"]) == {"x"}

    def test_a_temporary_file_has_no_name(self, s3, tmp_path, monkeypatch):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        with remote().stage() as file:
            file.write(LARGE)
            file.flush()
            assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("part", [1, 3])
    @pytest.mark.parametrize("kind", ["answers with an error", "cuts the connection"])
    def test_a_part_that_fails_for_good_leaves_the_old_object_and_no_parts(self, s3, part, kind):
        s3.put("bars/x", b"old")
        if kind == "cuts the connection":
            s3.fault(PART.format(part), reset, times=99)
        else:
            s3.fail(PART.format(part), 500, "InternalError", times=99)
        with pytest.raises(OpenmarketsError, match=r"Cannot write s3://bucket/bars/x: ") as error:
            land(remote(), "x", LARGE)
        assert error.value.transient
        assert SECRET not in repr(error.value)
        assert s3.read("bars/x") == b"old"
        assert s3.uploads() == []

    def test_a_part_that_was_cut_once_is_sent_again_as_a_whole(self, s3):
        s3.fault(PART.format(2), reset)
        land(remote(), "x", LARGE)
        assert s3.read("bars/x") == LARGE

    def test_an_upload_that_can_not_be_completed_leaves_the_old_object(self, s3):
        s3.put("bars/x", b"old")
        s3.fail("POST /bucket/bars/x.uploadId", 503, "ServiceUnavailable", times=99)
        with pytest.raises(OpenmarketsError) as error:
            land(remote(), "x", LARGE)
        assert error.value.transient
        assert s3.read("bars/x") == b"old"
        assert s3.uploads() == []

    def test_one_request_that_fails_leaves_the_old_object(self, s3):
        s3.put("bars/x", b"old")
        s3.fault("PUT /bucket/bars/x", reset, times=99)
        with pytest.raises(OpenmarketsError):
            land(remote(), "x", b"new")
        assert s3.read("bars/x") == b"old"

    def test_a_killed_task_takes_back_the_parts_that_it_has_sent(self, s3):
        s3.put("bars/x", b"old")
        hold = s3.hold(PART.format(2))
        report = threading.Event()

        def on_signal(number: int, frame: object) -> None:
            report.set()
            raise KeyboardInterrupt

        def kill() -> None:
            assert hold.reached.wait(WAIT)
            os.kill(os.getpid(), signal.SIGUSR1)
            assert report.wait(WAIT)
            hold.release()

        before = signal.signal(signal.SIGUSR1, on_signal)
        killer = threading.Thread(target=kill)
        killer.start()
        try:
            with pytest.raises(KeyboardInterrupt):
                land(remote(), "x", LARGE + LARGE)
        finally:
            killer.join()
            signal.signal(signal.SIGUSR1, before)
        assert s3.read("bars/x") == b"old"
        assert s3.uploads() == []

    def test_a_bucket_that_is_missing_is_told_before_anything_is_pulled(self, s3):
        with pytest.raises(OpenmarketsError, match="Bucket 'nowhere' does not exist") as error:
            remote("s3://nowhere/bars").prepare(["x"])
        assert not error.value.transient

    def test_a_name_that_no_bucket_can_have_does_not_pass_by_itself(self, s3):
        with pytest.raises(OpenmarketsError, match=r"ParamValidationError: .*Invalid bucket name") as error:
            remote("s3://a bucket/bars").prepare(["x"])
        assert not error.value.transient
        assert len(str(error.value)) < 400

    def test_who_may_not_look_at_the_bucket_may_write_to_it(self, s3):
        s3.fail("HEAD /bucket ", 403, "AccessDenied", times=99)
        remote().prepare(["x"])

    def test_missing_credentials_are_told(self, s3):
        from s3fs import S3FileSystem

        s3.fault("HEAD /bucket", lambda sock, request: sock.sendall(reply(b"", 403)), times=99)
        anonymous = S3FileSystem(anon=True, endpoint_url=s3.url)
        with pytest.raises(OpenmarketsError, match="there are no credentials") as error:
            RemoteFolder(read_place("s3://bucket/bars", is_folder=True), anonymous, {}).prepare(["x"])
        assert not error.value.transient

    def test_a_refused_write_does_not_pass_by_itself(self, s3):
        s3.fail("PUT /bucket/bars/x", 403, "AccessDenied", times=99)
        with pytest.raises(OpenmarketsError, match="PermissionError: The message of AccessDenied") as error:
            land(remote(), "x", b"new")
        assert not error.value.transient

    def test_a_server_that_is_gone_may_come_back(self):
        from s3fs import S3FileSystem

        from tests.support.s3_server import closed_port

        gone = S3FileSystem(key="key", secret=SECRET, endpoint_url=f"http://127.0.0.1:{closed_port()}")
        gone.config_kwargs = {"retries": {"max_attempts": 0}}
        with pytest.raises(OpenmarketsError, match="Cannot reach the bucket bucket") as error:
            RemoteFolder(read_place("s3://bucket/bars", is_folder=True), gone, {}).prepare(["x"])
        assert error.value.transient

    def test_a_bucket_that_does_not_answer_is_not_waited_for_as_long_as_its_client_does(self, monkeypatch):
        from s3fs import S3FileSystem

        monkeypatch.setattr(folders, "PROBE_WAIT", 0.5)
        with black_hole() as listener:
            silent = S3FileSystem(
                key="key", secret=SECRET, endpoint_url=f"http://127.0.0.1:{listener.getsockname()[1]}"
            )
            started = time.monotonic()
            with pytest.raises(OpenmarketsError, match="Cannot reach the bucket bucket: TimeoutError: ") as error:
                RemoteFolder(read_place("s3://bucket/bars", is_folder=True), silent, {}).prepare(["x"])
        assert time.monotonic() - started < 10
        assert error.value.transient

    @pytest.mark.parametrize(("error", "is_told"), [(None, True), (OSError("Forbidden: bucket"), False)])
    def test_a_client_that_gives_up_by_itself_is_told_before_anything_is_pulled(self, error, is_told):
        import aiohttp
        from fsspec import AbstractFileSystem

        from tests.support.s3_server import closed_port

        class Gone(AbstractFileSystem):
            """Fails like gcsfs: with aiohttp's errors, or its own error after a 403."""

            def info(self, path: str, **options: Any) -> Any:
                if error is not None:
                    raise error
                asyncio.run(self._get())

            async def _get(self) -> None:
                async with aiohttp.ClientSession() as session:
                    await session.get(f"http://127.0.0.1:{closed_port()}")

        folder = RemoteFolder(read_place("gs://bucket/bars", is_folder=True), Gone(), {})
        if is_told:
            with pytest.raises(
                OpenmarketsError, match="Cannot reach the bucket bucket: ClientConnectorError"
            ) as caught:
                folder.prepare(["x"])
            assert caught.value.transient
        else:
            folder.prepare(["x"])

    @pytest.mark.parametrize("content", [b"small", LARGE])
    def test_an_object_has_its_content_type_encryption_tags_and_metadata(self, s3, content):
        folder = remote(
            ServerSideEncryption="aws:kms", SSEKMSKeyId="my-key", Tagging="team=data&of=bars", Metadata={"run": "one"}
        )
        land(folder, "x", content)
        head = s3.client.head_object(Bucket="bucket", Key="bars/x")
        assert (head["ContentType"], head["ServerSideEncryption"], head["Metadata"]) == (
            "text/csv",
            "aws:kms",
            {"run": "one"},
        )
        assert head["SSEKMSKeyId"].endswith("my-key")
        tags = s3.client.get_object_tagging(Bucket="bucket", Key="bars/x")["TagSet"]
        assert {tag["Key"]: tag["Value"] for tag in tags} == {"team": "data", "of": "bars"}

    def test_progress_of_a_long_upload_is_told(self, s3, monkeypatch, caplog):
        monkeypatch.setattr(folders, "PROGRESS_EVERY", 0.05)
        hold = s3.hold(PART.format(2))
        lines = threading.Event()

        class Wake(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                if re.search(r"8 of 17 MB uploaded, \d+\.\d MB/s", record.getMessage()):
                    lines.set()

        handler = Wake()
        folders.log.addHandler(handler)
        releaser = threading.Thread(target=lambda: (lines.wait(WAIT), hold.release()))
        releaser.start()
        try:
            with caplog.at_level(logging.INFO):
                land(remote(), "x", LARGE)
        finally:
            releaser.join()
            folders.log.removeHandler(handler)
        assert lines.is_set()
        assert SECRET not in caplog.text


def test_parts_of_a_very_large_file_are_larger_so_that_ten_thousand_are_enough():
    for size in (1, CHUNK * 10_000, CHUNK * 10_000 + 1, 5 << 40):
        chunk = folders._chunk(size)
        assert chunk >= CHUNK
        assert chunk % (1 << 18) == 0
        assert chunk * 10_000 >= size
