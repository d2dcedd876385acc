"""How files are put in place: in folders of this machine, and in buckets of object stores.

A file appears under its name when it is complete, or never. It is encoded into a temporary file first, and then put in
place in one step: on a disk by renaming it, in a bucket by an upload that counts only when it has ended.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import pickle
import posixpath
import re
import secrets
import stat
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

from openmarkets_provider.client.progress import PROGRESS_EVERY
from openmarkets_provider.exceptions import OpenmarketsConfigurationError, OpenmarketsError
from openmarkets_provider.landing.destinations import CHUNK, STORES, Place
from openmarkets_provider.query.schema import Row

Key = TypeVar("Key")

log = logging.getLogger(__name__)

MAX_CHUNKS = 10_000
"""Most parts of an upload to S3."""
STOP_GRACE = 3.0
"""Seconds that a killed task gives an upload to take back what it sent; Airflow gives the task five."""
MAX_SPOOLED_ROWS = 20_000
"""Rows that wait in memory for their partition."""
MAX_TOLD = 300
"""Characters of an error of a store that are told."""
_TEMPORARY = re.compile(r"\.openmarkets-[0-9a-f]{16}\.part")


class Folder(ABC):
    """A folder that files are landed in, or what stands for one in a bucket.

    :param place: where it is.
    """

    def __init__(self, place: Place) -> None:
        self.place = place

    def url(self, name: str) -> str:
        """Return the URL of a file in it."""
        return self.place._replace(path=posixpath.join(self.place.path, name)).url

    @abstractmethod
    def prepare(self, names: Collection[str]) -> None:
        """Find out early what would go wrong late, and remove what killed tasks left behind.

        :raises OpenmarketsError: no file with such a name can be landed here.
        """

    @abstractmethod
    def existing(self, names: Collection[str]) -> set[str]:
        """Return those of the names that have a file already.

        :raises OpenmarketsError: that can't be told.
        """

    @abstractmethod
    def is_there(self) -> bool:
        """Tell whether it holds partitions.

        :raises OpenmarketsError: that can't be told.
        """

    @abstractmethod
    def stage(self) -> Any:
        """Return a context with a temporary file to write and to read; nothing of it is left afterwards.

        :raises OpenmarketsError: there can be none.
        """

    @abstractmethod
    def publish(self, file: IO[bytes], name: str) -> int:
        """Put a temporary file of this folder in place of what has that name, whole or not at all.

        :return: its size in bytes.
        :raises OpenmarketsError: it could not be done.
        """

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, if there is one.

        :raises OpenmarketsError: it could not be done.
        """

    @contextmanager
    def told(self, doing: str) -> Iterator[None]:
        """Turn whatever goes wrong into an error that says what was being done."""
        try:
            yield
        except OpenmarketsError:
            raise
        except Exception as error:
            raise _explained(doing, error) from error

    @property
    @abstractmethod
    def scratch(self) -> str:
        """Where the temporary files are, in words."""


class LocalFolder(Folder):
    """A folder of this machine, or one that it has mounted.

    Temporary files are in the folder itself, or beside the target where the only file is a link, which may lead to
    another file system. They have names that readers of folders pass over, and each is locked as long as its task
    lives, so that the next task knows those that a dead one left.
    """

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._path = self._scratch = Path(os.path.realpath(place.path))

    @property
    def scratch(self) -> str:
        """The folder of the temporary files."""
        return str(self._scratch)

    def prepare(self, names: Collection[str]) -> None:
        """Make the folder, and remove what dead tasks left in it."""
        with self.told(f"What is in {self._path} can't be told"):
            for name in names:
                path = self._target(name)
                mode = _mode(path)
                if mode is not None and not stat.S_ISREG(mode):
                    raise OpenmarketsConfigurationError(
                        f"destination: {path} is there and is not a file; name another."
                    )
                if len(names) == 1 and (self._path / name).is_symlink():
                    self._scratch = path.parent
        for folder in dict.fromkeys((self._path, self._scratch)):
            with self.told(f"The folder {folder} can't be made"):
                folder.mkdir(parents=True, exist_ok=True)
            with self.told(f"The folder {folder} can't be read"):
                for path in folder.iterdir():
                    if _TEMPORARY.fullmatch(path.name):
                        _remove_if_dead(path)

    def existing(self, names: Collection[str]) -> set[str]:
        """Return those of the names that have a file."""
        with self.told(f"What is in {self._path} can't be told"):
            return {name for name in names if _mode(self._target(name)) is not None}

    def is_there(self) -> bool:
        """Tell whether a folder in it has a file."""
        with self.told(f"What is in {self._path} can't be told"):
            return any(path.is_file() for path in self._path.glob("*/*"))

    @contextmanager
    def stage(self) -> Iterator[IO[bytes]]:
        """Give a hidden file beside the destination."""
        with self.told(f"No file can be made in {self._scratch}"):
            file = self._make()
        try:
            yield file
        finally:
            # Still locked when it goes: after the lock another task may take it for a dead one's.
            with suppress(OSError):
                Path(file.name).unlink()
            _close(file)

    def publish(self, file: IO[bytes], name: str) -> int:
        """Rename the file when all of it is on the disk."""
        path = self._target(name)
        with self.told(f"{path} can't be written"):
            path.parent.mkdir(parents=True, exist_ok=True)
            file.flush()
            os.fsync(file.fileno())
            size = os.fstat(file.fileno()).st_size
            Path(file.name).replace(path)
            _sync_folder(path.parent)
        return size

    def remove(self, name: str) -> None:
        """Remove a file."""
        with self.told(f"{self._target(name)} can't be removed"):
            self._target(name).unlink(missing_ok=True)

    def _target(self, name: str) -> Path:
        # A link is followed, and not replaced by a file.
        return Path(os.path.realpath(self._path / name))

    def _make(self) -> IO[bytes]:
        while True:
            # Not by tempfile: its files are readable by nobody else.
            file = (self._scratch / f".openmarkets-{secrets.token_hex(8)}.part").open("x+b")
            if _is_locked(file) and os.fstat(file.fileno()).st_nlink:
                return file
            # Another task found it before it was locked, and took it for a dead one's.
            file.close()


def _close(file: IO[bytes]) -> None:
    # What Python still holds can't be written to a full disk.
    with suppress(OSError):
        file.close()


def _is_locked(file: IO[bytes]) -> bool:
    """Lock a file, where that is possible; False when another process has."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # Some file systems of a network know no locks; a file that can't be locked is never taken for a dead task's.
        pass
    return True


def _mode(path: Path) -> int | None:
    """Return what kind of file there is, or None; ``Path.exists`` hides faults, on Python 3.14 all of them."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def _remove_if_dead(path: Path) -> None:
    # Another task may be at it, too; and where nothing can be locked nothing is known to be dead.
    with suppress(OSError), path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        log.info("Removed %s, which a task that was killed had left.", path)


def _sync_folder(path: Path) -> None:
    """Make a renaming outlast a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class RemoteFolder(Folder):
    """What the names of some objects of a bucket begin with.

    Temporary files have no name, so that nothing is left of them even when the process is killed.

    :param place: where it is.
    :param fs: the fsspec file system of its store, with credentials.
    """

    def __init__(self, place: Place, fs: Any) -> None:
        super().__init__(place)
        self._fs = fs

    @property
    def scratch(self) -> str:
        """The temporary folder of the machine."""
        return f"{tempfile.gettempdir()} (set by TMPDIR)"

    def prepare(self, names: Collection[str]) -> None:
        """Look whether there is such a bucket, and whether it answers."""
        bucket = self.place.bucket
        with self.told(f"The bucket {bucket} can't be reached"):
            try:
                self._fs.info(bucket)
            except FileNotFoundError:
                raise OpenmarketsError(f"There is no bucket {bucket!r}, or this connection can't see it.") from None
            except (ConnectionError, TimeoutError):
                raise
            except OSError as error:
                # Who may write objects need not be allowed to look at their bucket.
                if isinstance(error, PermissionError) and getattr(self._fs, "anon", False):
                    raise OpenmarketsError(
                        f"The bucket {bucket!r} is not open to everyone, and there are no credentials: neither a "
                        "connection (conn_id) nor any in the worker's environment."
                    ) from error

    def existing(self, names: Collection[str]) -> set[str]:
        """Return those of the names that have an object."""
        self._fs.invalidate_cache()
        return {name for name in names if self._exists(name)}

    def is_there(self) -> bool:
        """Tell whether an object's name begins with it."""
        self._fs.invalidate_cache()
        with self.told(f"What is in {self.place.url} can't be told"):
            try:
                return bool(self._fs.ls(posixpath.join(self.place.bucket, self.place.path), detail=False))
            except FileNotFoundError:
                return False

    @contextmanager
    def stage(self) -> Iterator[IO[bytes]]:
        """Give a file without a name."""
        with self.told(f"No temporary file can be made in {self.scratch}"):
            file = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            yield file
        finally:
            _close(file)

    def publish(self, file: IO[bytes], name: str) -> int:
        """Upload the file."""
        with self.told(f"What was to be uploaded can't be written to {self.scratch}"):
            file.flush()
            size = os.fstat(file.fileno()).st_size
            file.seek(0)
        with self.told(f"{self.url(name)} can't be written"):
            self._upload(file, name, size)
        return size

    def remove(self, name: str) -> None:
        """Remove an object."""
        with self.told(f"{self.url(name)} can't be removed"), suppress(FileNotFoundError):
            self._fs.rm_file(self._key(name))

    def _key(self, name: str) -> str:
        return posixpath.join(self.place.bucket, self.place.path, name)

    def _exists(self, name: str) -> bool:
        with self.told(f"Whether {self.url(name)} exists can't be told"):
            try:
                return bool(self._fs.info(self._key(name))["type"] == "file")
            except FileNotFoundError:
                return False

    def _upload(self, file: IO[bytes], name: str, size: int) -> None:
        """Upload in a thread, so that this one can tell of the progress, and stop it."""
        watch, ended, started = _Watch(), threading.Event(), time.monotonic()
        options = dict(STORES[self.place.scheme].options)
        if "chunksize" in options:
            options["chunksize"] = _chunk(size)
        failures: list[BaseException] = []

        def put() -> None:
            try:
                self._fs.put_file(f"/dev/fd/{file.fileno()}", self._key(name), callback=watch, **options)
            except BaseException as error:  # noqa: BLE001
                failures.append(error)
            finally:
                ended.set()

        threading.Thread(target=put, name="openmarkets-upload", daemon=True).start()
        try:
            while not ended.wait(PROGRESS_EVERY):
                sent, seconds = watch.sent / 1e6, time.monotonic() - started
                log.info("%s: %.0f of %.0f MB uploaded, %.1f MB/s.", self.url(name), sent, size / 1e6, sent / seconds)
        except BaseException:
            watch.stop = True
            ended.wait(STOP_GRACE)
            raise
        if failures:
            raise failures[0]


class _Watch:
    """What an fsspec file system tells of an upload.

    :ivar sent: bytes.
    :ivar stop: True ends the upload, as a failure: then the file system takes back the parts that it has sent.
    """

    def __init__(self) -> None:
        self.sent = 0
        self.stop = False

    def set_size(self, size: int) -> None:
        self.absolute_update(0)

    def relative_update(self, count: int) -> None:
        self.absolute_update(self.sent + count)

    def absolute_update(self, sent: int) -> None:
        self.sent = sent
        if self.stop:
            raise InterruptedError("The upload was stopped.")


def _chunk(size: int) -> int:
    """Return how many bytes to send at a time, a multiple of 256 KiB as Google asks for."""
    unit = 1 << 18
    return max(CHUNK, -(-size // MAX_CHUNKS // unit) * unit)


_PERMANENT = (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError, ValueError)
_PERMANENT_NUMBERS = (errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.EXDEV)
# By their names: they are botocore's, which need not be installed.
_PERMANENT_NAMES = ("ParamValidationError", "NoCredentialsError", "PartialCredentialsError")
# The last one is also what comes of a service that gives credentials and can't be reached for a moment.
_WITHOUT_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError")


def _explained(doing: str, error: Exception) -> OpenmarketsError:
    name = type(error).__name__
    is_permanent = isinstance(error, _PERMANENT) or name in _PERMANENT_NAMES
    # Some tell of all that would have been right, in hundreds of lines.
    told = re.sub(r"\s+", " ", str(error))
    text = f"{doing}: {name}: {told if len(told) <= MAX_TOLD else told[:MAX_TOLD] + '...'}"
    hint = " Are there credentials: a connection (conn_id), or some in the worker's environment?"
    return OpenmarketsError(
        f"{text}{hint if name in _WITHOUT_CREDENTIALS else ''}",
        transient=not (is_permanent or getattr(error, "errno", None) in _PERMANENT_NUMBERS),
    )


class PartitionSpool(Generic[Key]):
    """Rows that wait for the others of their partition: some in memory, the rest in a temporary file.

    :param file: to write and to read, empty; nobody else may write to it.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._batches: dict[Key, list[list[Row]]] = {}
        self._places: dict[Key, list[int]] = {}
        self._held = 0

    def add(self, key: Key, rows: list[Row]) -> None:
        """Put rows to those of their partition; rows of one call have the same fields."""
        batches = self._batches.setdefault(key, [])
        if batches and batches[-1][0].keys() == rows[0].keys():
            batches[-1].extend(rows)
        else:
            batches.append(list(rows))
        self._held += len(rows)
        if self._held >= MAX_SPOOLED_ROWS:
            self._spill()

    def waiting(self) -> list[Key]:
        """Return the partitions that have rows."""
        return list(dict.fromkeys([*self._places, *self._batches]))

    def take(self, key: Key) -> Iterator[list[Row]]:
        """Return the rows of a partition in batches of the same fields, in the order in which they came."""
        for place in self._places.pop(key, ()):
            self._file.seek(place)
            # Written by this object, into a file without a name.
            yield from pickle.load(self._file)  # noqa: S301
        yield from self._batches.pop(key, ())

    def _spill(self) -> None:
        self._file.seek(0, os.SEEK_END)
        for key, batches in self._batches.items():
            self._places.setdefault(key, []).append(self._file.tell())
            pickle.dump(batches, self._file, pickle.HIGHEST_PROTOCOL)
        # Else a full disk would show only when rows are read, as their place is looked for.
        self._file.flush()
        self._batches.clear()
        self._held = 0
