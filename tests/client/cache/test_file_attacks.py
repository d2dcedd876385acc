"""What other users of a machine, full disks and odd files can do to the records of a host: nothing but cost time."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import stat
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from openmarkets_provider.client.cache.file import MAX_FILE_BYTES, FileStore
from tests.support.processes import FORK
from tests.support.users import OURS, THEIRS, as_user, become

KEY = "0123456789abcdef0123456789abcdef"
DATA = b"sealed"


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that all users may write to, such as /tmp: pytest's own are closed to them."""
    folder = Path(tempfile.mkdtemp(prefix="openmarkets-shared-"))
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "cache")


def use(store: FileStore) -> list[str]:
    """Do all that a store can do, and return the outcome of each."""

    def load() -> Any:
        return store.load(KEY)

    def lock() -> Any:
        with store.lock(KEY, 0.1) as held:
            return held

    def outcome(work: Callable[[], Any]) -> str:
        try:
            return repr(work())
        except OSError as error:
            return type(error).__name__

    return [outcome(work) for work in (load, lambda: store.save(KEY, DATA, 60), lock)]


REFUSED = ["PermissionError"] * 3
USED = ["None", "None", "'file'"]


# Other users


def test_a_folder_is_for_the_user_alone_who_made_it(shared: Path):
    store = FileStore(shared / "cache")
    assert as_user(OURS, lambda: use(store)) == USED
    assert as_user(THEIRS, lambda: use(store)) == REFUSED
    # Root may read everything, and would trust what somebody else can write.
    assert use(store) == REFUSED
    assert as_user(OURS, lambda: store.load(KEY)) == DATA


def squat(folder: Path) -> None:
    folder.mkdir(mode=0o700)


def squat_open(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


def link_to_own(folder: Path) -> None:
    own = folder.with_name("theirs")
    own.mkdir(mode=0o777)
    folder.symlink_to(own)


def link_to_nothing(folder: Path) -> None:
    folder.symlink_to(folder.with_name("nowhere"))


def link_to_itself(folder: Path) -> None:
    folder.symlink_to(folder)


def make_file(folder: Path) -> None:
    folder.write_bytes(b"")


def make_fifo(folder: Path) -> None:
    os.mkfifo(folder)


@pytest.mark.parametrize(
    "make", [squat, squat_open, link_to_own, link_to_nothing, link_to_itself, make_file, make_fifo]
)
def test_what_somebody_else_put_in_place_of_the_folder_is_refused(shared: Path, make: Callable[[Path], None]):
    store = FileStore(shared / "cache")
    as_user(THEIRS, lambda: make(store.directory))
    assert as_user(OURS, lambda: use(store)) == REFUSED
    assert not (shared / "nowhere").exists()
    assert not (shared / "theirs").exists() or not list((shared / "theirs").iterdir())


def test_a_link_above_the_folder_that_leads_to_what_is_not_ours_is_refused(shared: Path):
    as_user(THEIRS, lambda: (shared / "theirs" / "cache").mkdir(parents=True))
    as_user(THEIRS, lambda: (shared / "parent").symlink_to(shared / "theirs"))
    assert as_user(OURS, lambda: use(FileStore(shared / "parent" / "cache"))) == REFUSED


def test_a_link_above_the_folder_that_leads_to_our_own_is_no_harm(shared: Path):
    as_user(OURS, lambda: (shared / "real").mkdir(mode=0o700))
    as_user(OURS, lambda: (shared / "parent").symlink_to(shared / "real"))
    assert as_user(OURS, lambda: use(FileStore(shared / "parent" / "cache"))) == USED


def test_with_a_umask_of_nothing_no_folder_and_no_file_is_open_to_others(shared: Path):
    store = FileStore(shared / "new" / "deeper" / "cache")

    def work() -> list[str]:
        os.umask(0)
        return use(store)

    assert as_user(OURS, work) == USED
    for path in [shared / "new", *(shared / "new").rglob("*")]:
        assert not stat.S_IMODE(path.lstat().st_mode) & 0o022, path
    for path in [store.directory, *store.directory.iterdir()]:
        assert not stat.S_IMODE(path.lstat().st_mode) & 0o077, path


def test_a_file_of_somebody_else_is_not_read(store: FileStore):
    store.save(KEY, DATA, 60)
    os.chown(store.directory / f"{KEY}.entry", THEIRS, THEIRS)
    with pytest.raises(PermissionError, match="another user"):
        store.load(KEY)
    store.save(KEY, b"new", 60)
    assert store.load(KEY) == b"new"


def swap_for_ever(place: Path, theirs: Path, aside: Path, connection: Any) -> None:
    """Alternate between the attacker's folder, a link, and our folder at a path, as fast as possible."""
    become(THEIRS)
    connection.send(True)
    with suppress(BrokenPipeError):
        while not connection.poll():
            with suppress(OSError):
                place.rename(aside)
            for _ in range(3):
                with suppress(OSError):
                    theirs.rename(place)
                    place.rename(theirs)
            with suppress(OSError):
                place.symlink_to(theirs)
                place.unlink()
            with suppress(OSError):
                aside.rename(place)


def test_who_may_swap_the_folder_can_neither_give_nor_get_nor_remove_anything(shared: Path):
    # Without the sticky bit others may rename what is ours: the worst place that can be chosen.
    shared.chmod(0o777)
    store, home, theirs = FileStore(shared / "cache"), shared / "home", shared / "theirs"

    def prepare() -> None:
        store.save(KEY, DATA, 60)
        home.mkdir(mode=0o700)
        for name in ("notes.txt", "a" * 32 + ".notes"):
            (home / name).write_text("precious")
            os.utime(home / name, (1, 1))

    def trap() -> None:
        theirs.mkdir()
        theirs.chmod(0o777)
        (theirs / f"{KEY}.entry").write_bytes(b"forged")
        (theirs / f"{'b' * 32}.entry").symlink_to(home / "notes.txt")
        (theirs / f"{KEY}.lock").symlink_to(home / "notes.txt")

    as_user(OURS, prepare)
    as_user(THEIRS, trap)
    stop, report = FORK.Pipe()
    process = FORK.Process(target=swap_for_ever, args=(store.directory, theirs, shared / "aside", report))
    process.start()
    assert stop.recv()

    def work() -> set[str]:
        return {outcome for _ in range(400) for outcome in use(store)}

    outcomes = as_user(OURS, work)
    stop.send(True)
    process.join()
    assert "b'forged'" not in outcomes
    # The scheduler decides which of the two comes first, and how often.
    assert outcomes & {"'file'", repr(DATA), "PermissionError", "FileNotFoundError", "NotADirectoryError"}
    assert {path.name: path.read_text() for path in home.iterdir()} == {
        "notes.txt": "precious",
        "a" * 32 + ".notes": "precious",
    }
    assert {path.stat().st_mtime for path in home.iterdir()} == {1}


# Odd files


def put_link(path: Path) -> None:
    path.symlink_to(path.with_name("victim"))


def put_hard_link(path: Path) -> None:
    path.hardlink_to(path.with_name("victim"))


def put_fifo(path: Path) -> None:
    os.mkfifo(path, 0o600)


def put_socket(path: Path) -> None:
    # A path as long as a socket's may not be.
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"/proc/self/fd/{directory}/{path.name}")
    finally:
        os.close(directory)
    path.chmod(0o600)


def put_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("suffix", ["entry", "lock"])
@pytest.mark.parametrize("put", [put_link, put_hard_link, put_fifo, put_socket, put_folder])
def test_an_odd_file_is_neither_read_nor_written_nor_waited_for(store: FileStore, put, suffix: str):
    store.directory.mkdir(mode=0o700)
    victim = store.directory / "victim"
    victim.write_bytes(b"precious")
    victim.chmod(0o600)
    put(store.directory / f"{KEY}.{suffix}")
    loaded, saved, locked = use(store)
    if suffix == "entry":
        assert loaded in ("PermissionError", "OSError")
        assert saved == ("IsADirectoryError" if put is put_folder else "None")
    assert locked in ("'file'", "None", "PermissionError", "OSError", "IsADirectoryError")
    assert victim.read_bytes() == b"precious"
    assert stat.S_IMODE(victim.stat().st_mode) == 0o600


def test_of_a_file_that_is_larger_than_a_disk_little_is_read(store: FileStore):
    store.save(KEY, DATA, 60)
    os.truncate(store.directory / f"{KEY}.entry", 10 << 30)
    tracemalloc.start()
    try:
        assert len(store.load(KEY) or b"") <= MAX_FILE_BYTES
        assert tracemalloc.get_traced_memory()[1] < 4 * MAX_FILE_BYTES
    finally:
        tracemalloc.stop()


def test_files_of_others_in_the_folder_stay_however_old_they_are(store: FileStore):
    store.save(KEY, DATA, 60)
    others = [
        "airflow.cfg",
        "airflow.db",
        ".profile",
        "notes",
        f"{KEY}.notes",
        f"{'a' * 31}.entry",
        "x.lock",
        "A" * 32,
    ]
    for name in others:
        (store.directory / name).write_text("precious")
        os.utime(store.directory / name, (1, 1))
    (store.directory / "folder").mkdir()
    os.utime(store.directory / "folder", (1, 1))
    store.save(KEY, DATA, 60)
    assert {path.name for path in store.directory.iterdir()} >= {*others, "folder"}


# Disks


def test_a_disk_that_is_full_leaves_the_old_record_and_no_part_of_the_new_one(shared: Path):
    store = FileStore(shared / "cache")

    def work() -> tuple[str, bytes | None, list[str]]:
        store.save(KEY, DATA, 60)
        # As a quota does: a write fails in the middle.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            store.save(KEY, b"x" * 5000, 60)
        except OSError as error:
            problem = type(error).__name__
        return problem, store.load(KEY), [path.suffix for path in store.directory.iterdir()]

    assert as_user(OURS, work) == ("OSError", DATA, [".entry"])


def test_a_folder_that_can_only_be_read_still_gives_what_it_holds(shared: Path):
    store = FileStore(shared / "cache")

    def work() -> list[str]:
        store.save(KEY, DATA, 60)
        store.directory.chmod(0o500)
        return use(store)

    assert as_user(OURS, work) == [repr(DATA), "PermissionError", "PermissionError"]


def test_where_no_folder_can_be_made_every_call_says_so(shared: Path):
    shared.chmod(0o755)
    assert as_user(OURS, lambda: use(FileStore(shared / "new" / "cache"))) == REFUSED
