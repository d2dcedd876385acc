"""Local folders and buckets of object stores, in which files appear complete or not at all.

A file is first written as a temporary file and then published in one step. On a disk it is renamed; in a bucket, an
upload takes effect when it ends.
"""

from __future__ import annotations

import fcntl
import logging
import os
import posixpath
import re
import secrets
import stat
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from openmarkets_provider.client.progress import PROGRESS_EVERY
from openmarkets_provider.exceptions import OpenmarketsConfigurationError, OpenmarketsError
from openmarkets_provider.landing.errors import explain_errors
from openmarkets_provider.landing.places import CHUNK, Place
from openmarkets_provider.landing.spool import close, open_scratch, scratch_folder

log = logging.getLogger(__name__)

MAX_CHUNKS = 10_000
"""Most parts of an upload to S3."""
PROBE_WAIT = 10.0
"""Seconds that a bucket has to answer. The stores' own clients retry for up to minutes."""
STOP_GRACE = 3.0
"""Seconds that a killed task gives an upload to abort; Airflow gives the task five."""
_TEMPORARY = re.compile(r"\.openmarkets-[0-9a-f]{16}\.part")


class Folder(ABC):
    """A folder that files are landed in, or a prefix in a bucket.

    :param place: where it is.
    """

    def __init__(self, place: Place) -> None:
        self.place = place

    def url(self, name: str) -> str:
        """Return the URL of a file in it."""
        return self.place._replace(path=posixpath.join(self.place.path, name)).url

    @abstractmethod
    def prepare(self, names: Collection[str]) -> None:
        """Check that files can be landed here, and remove leftovers of killed tasks.

        :raises OpenmarketsError: a file with such a name can't be landed here.
        """

    @abstractmethod
    def find(self, names: Collection[str]) -> set[str]:
        """Return the names that have a file.

        :raises OpenmarketsError: the folder cannot be read.
        """

    @abstractmethod
    def has_files(self) -> bool:
        """Tell whether it has partitions.

        :raises OpenmarketsError: the folder cannot be read.
        """

    @abstractmethod
    def open(self, name: str) -> IO[bytes]:
        """Open a file to read it."""

    @abstractmethod
    def stage(self) -> AbstractContextManager[IO[bytes]]:
        """Open a temporary file for writing and reading; nothing of it is left afterwards.

        :raises OpenmarketsError: it cannot be created.
        """

    @abstractmethod
    def publish(self, file: IO[bytes], name: str) -> int:
        """Replace the file with this name by a temporary file of this folder, entirely or not at all.

        :return: its size in bytes.
        :raises OpenmarketsError: it could not be written.
        """

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, if it exists.

        :raises OpenmarketsError: it could not be removed.
        """

    @property
    @abstractmethod
    def scratch(self) -> str:
        """Where the temporary files are, in words."""


class LocalFolder(Folder):
    """A local or mounted folder.

    Temporary files are in the folder itself. If the only file is a link, they are next to its target, which may be on
    another file system. They have hidden names, which readers of folders ignore. A task locks its temporary files while
    it runs, so that the next task can recognize those of a dead task.
    """

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._path = self._scratch = Path(os.path.realpath(place.path))

    @property
    def scratch(self) -> str:
        """The folder of the temporary files."""
        return str(self._scratch)

    def prepare(self, names: Collection[str]) -> None:
        """Create the folder, and remove leftovers of dead tasks."""
        with explain_errors(f"Cannot read {self._path}"):
            for name in names:
                path = self._target(name)
                mode = _mode(path)
                if mode is not None and not stat.S_ISREG(mode):
                    raise OpenmarketsConfigurationError(
                        f"destination: {path} exists and is not a file; use another name."
                    )
                if len(names) == 1 and (self._path / name).is_symlink():
                    self._scratch = path.parent
        for folder in dict.fromkeys((self._path, self._scratch)):
            with explain_errors(f"Cannot create the folder {folder}"):
                folder.mkdir(parents=True, exist_ok=True)
            with explain_errors(f"Cannot read {folder}"):
                for path in folder.iterdir():
                    if _TEMPORARY.fullmatch(path.name):
                        _remove_if_dead(path)

    def find(self, names: Collection[str]) -> set[str]:
        """Return the names that have a file."""
        with explain_errors(f"Cannot read {self._path}"):
            return {name for name in names if _mode(self._target(name)) is not None}

    def has_files(self) -> bool:
        """Tell whether a folder in it has a file."""
        with explain_errors(f"Cannot read {self._path}"):
            return any(path.is_file() for path in self._path.glob("*/*"))

    def open(self, name: str) -> IO[bytes]:
        """Open a file to read it."""
        return self._target(name).open("rb")

    @contextmanager
    def stage(self) -> Iterator[IO[bytes]]:
        """Open a hidden file next to the destination."""
        with explain_errors(f"Cannot create a temporary file in {self._scratch}"):
            file = self._create()
        try:
            yield file
        finally:
            # Unlink while it is locked: another task may mistake an unlocked file for a dead task's.
            with suppress(OSError):
                Path(file.name).unlink()
            close(file)

    def publish(self, file: IO[bytes], name: str) -> int:
        """Rename the file when all of it is on the disk."""
        path = self._target(name)
        with explain_errors(f"Cannot write {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            file.flush()
            os.fsync(file.fileno())
            size = os.fstat(file.fileno()).st_size
            Path(file.name).replace(path)
            _sync_folder(path.parent)
        return size

    def remove(self, name: str) -> None:
        """Remove a file."""
        with explain_errors(f"Cannot remove {self._target(name)}"):
            self._target(name).unlink(missing_ok=True)

    def _target(self, name: str) -> Path:
        # Follow a link instead of replacing it by a file.
        return Path(os.path.realpath(self._path / name))

    def _create(self) -> IO[bytes]:
        while True:
            # Not with tempfile, because nobody else could read the file.
            file = (self._scratch / f".openmarkets-{secrets.token_hex(8)}.part").open("x+b")
            if _lock(file) and os.fstat(file.fileno()).st_nlink:
                return file
            # Another task found the file before it was locked, and mistook it for a dead task's.
            file.close()


def _lock(file: IO[bytes]) -> bool:
    """Lock a file, if the file system has locks; return False if another process has locked it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # Some network file systems have no locks. A file that cannot be locked never counts as a dead task's.
        pass
    return True


def _mode(path: Path) -> int | None:
    """Return the mode of a file, or None if there is none. ``Path.exists`` hides errors, on Python 3.14 all of them."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def _remove_if_dead(path: Path) -> None:
    # Another task may remove it at the same time. Without locks, no file counts as a dead task's.
    with suppress(OSError), path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        log.info("Removed %s, which a killed task left behind.", path)


def _sync_folder(path: Path) -> None:
    """Make a rename survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class RemoteFolder(Folder):
    """A prefix of object names in a bucket.

    Temporary files have no name, so that nothing is left of them even if the process is killed.

    :param place: where it is.
    :param fs: the fsspec file system of its store, with credentials.
    :param options: arguments of its ``put_file``, from :func:`~openmarkets_provider.landing.places.upload_options`.
    """

    def __init__(self, place: Place, fs: Any, options: Mapping[str, Any]) -> None:
        super().__init__(place)
        self._fs = fs
        self._options = options

    @property
    def scratch(self) -> str:
        """The machine's temporary folder."""
        return scratch_folder()

    def prepare(self, names: Collection[str]) -> None:
        """Check that the bucket exists and answers."""
        bucket = self.place.bucket
        with explain_errors(f"Cannot reach the bucket {bucket}"):
            try:
                _Work(lambda: self._fs.info(bucket)).end(PROBE_WAIT)
            except FileNotFoundError:
                raise OpenmarketsError(
                    f"Bucket {bucket!r} does not exist, or the connection has no access to it."
                ) from None
            # A user who may write objects may not be allowed to look at the bucket.
            except PermissionError as error:
                if getattr(self._fs, "anon", False):
                    raise OpenmarketsError(
                        f"Bucket {bucket!r} is not public, and there are no credentials. Set them in a "
                        "connection (conn_id) or in the worker's environment."
                    ) from error
            except OSError as error:
                # This error of gcsfs has no number; the errors of an unreachable store have one.
                if error.errno is not None or isinstance(error, ConnectionError | TimeoutError):
                    raise

    def find(self, names: Collection[str]) -> set[str]:
        """Return the names that have an object."""
        self._fs.invalidate_cache()
        return {name for name in names if self._exists(name)}

    def has_files(self) -> bool:
        """Tell whether an object's name begins with it."""
        self._fs.invalidate_cache()
        with explain_errors(f"Cannot read {self.place.url}"):
            try:
                return bool(self._fs.ls(posixpath.join(self.place.bucket, self.place.path), detail=False))
            except FileNotFoundError:
                return False

    def open(self, name: str) -> IO[bytes]:
        """Open an object to read it."""
        file: IO[bytes] = self._fs.open(self._key(name), "rb")
        return file

    def stage(self) -> AbstractContextManager[IO[bytes]]:
        """Open a file without a name."""
        return open_scratch()

    def publish(self, file: IO[bytes], name: str) -> int:
        """Upload the file."""
        with explain_errors(f"Cannot write a temporary file in {self.scratch}"):
            file.flush()
            size = os.fstat(file.fileno()).st_size
            file.seek(0)
        with explain_errors(f"Cannot write {self.url(name)}"):
            self._upload(file, name, size)
        return size

    def remove(self, name: str) -> None:
        """Remove an object."""
        with explain_errors(f"Cannot remove {self.url(name)}"), suppress(FileNotFoundError):
            self._fs.rm_file(self._key(name))

    def _key(self, name: str) -> str:
        return posixpath.join(self.place.bucket, self.place.path, name)

    def _exists(self, name: str) -> bool:
        with explain_errors(f"Cannot read {self.url(name)}"):
            try:
                return bool(self._fs.info(self._key(name))["type"] == "file")
            except FileNotFoundError:
                return False

    def _upload(self, file: IO[bytes], name: str, size: int) -> None:
        """Upload in another thread, so that this thread can log the progress and stop it."""
        watch, started = _Watch(), time.monotonic()
        options = _content_settings(self._options)
        if "chunksize" in options:
            options["chunksize"] = _chunk(size)
        source, key = f"/dev/fd/{file.fileno()}", self._key(name)
        work = _Work(lambda: self._fs.put_file(source, key, callback=watch, **options))
        try:
            while not work.ended.wait(PROGRESS_EVERY):
                sent, seconds = watch.sent / 1e6, time.monotonic() - started
                log.info("%s: %.0f of %.0f MB uploaded, %.1f MB/s.", self.url(name), sent, size / 1e6, sent / seconds)
        except BaseException:
            watch.stop = True
            work.ended.wait(STOP_GRACE)
            raise
        work.end()


class _Work:
    """Work in a thread that does not keep the process alive.

    :ivar ended: set when the work has ended or failed.
    """

    def __init__(self, work: Callable[[], object]) -> None:
        self.ended = threading.Event()
        self._work = work
        self._failure: BaseException | None = None
        threading.Thread(target=self._run, name="openmarkets-store", daemon=True).start()

    def end(self, seconds: float | None = None) -> None:
        """Wait for the end of the work, and raise its exception.

        :raises TimeoutError: it takes longer.
        """
        if not self.ended.wait(seconds):
            raise TimeoutError(f"no answer in {seconds:.0f} seconds")
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001
            self._failure = error
        finally:
            self.ended.set()


def _content_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of ``put_file``, with Azure's content settings as the class that all versions accept."""
    if "content_settings" not in options:
        return dict(options)
    from azure.storage.blob import ContentSettings

    return {**options, "content_settings": ContentSettings(**options["content_settings"])}


class _Watch:
    """Progress of an upload: the callback of fsspec file systems.

    :ivar sent: bytes sent so far.
    :ivar stop: True makes the upload fail. The file system then aborts it and removes the sent parts.
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
    """Return how many bytes to send at a time: a multiple of 256 KiB, as Google requires."""
    unit = 1 << 18
    return max(CHUNK, -(-size // MAX_CHUNKS // unit) * unit)
