"""The store that the processes of one host share: one file a key, with a lock beside it."""

from __future__ import annotations

import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 1 << 20
SWEEP_AFTER = 3600.0
"""Seconds after the end of its content at which a file is removed."""
_LOCK_POLL = 0.02
_OURS = re.compile(r"([0-9a-f]{32})\.(record|lock|[0-9a-f]{16}\.tmp)")
"""Names of files that this class makes: a site may have chosen a directory that holds others, too."""


class FileStore:
    """Records as files of a private directory.

    A file is replaced as a whole, so that a reader finds the old record or the new one, and a process that is
    killed while it writes leaves a stray temporary file at most. The kernel drops the lock of a process that
    dies.

    :param directory: made with mode 0700 when it is missing. It must belong to the user and be closed to all
        others; anything else is refused with OSError.
    """

    name = "file"

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def load(self, key: str) -> bytes | None:
        """Read a file; None when there is none."""
        self._check_directory()
        try:
            descriptor = os.open(self._path(key), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        try:
            status = os.fstat(descriptor)
            # No link at all is fine: a writer has just put a newer file in its place.
            plain = stat.S_ISREG(status.st_mode) and status.st_nlink <= 1
            _require(plain, self._path(key), "is not a plain file")
            _require_private(status, self._path(key))
            return os.read(descriptor, MAX_FILE_BYTES)
        finally:
            os.close(descriptor)

    def save(self, key: str, data: bytes, seconds: float, lease: str | None = None) -> None:
        """Write a file, and remove what nobody needs any more. The lock can't expire, so the lease doesn't matter."""
        self._check_directory()
        path = self._path(key)
        temporary = path.with_name(f"{key}.{secrets.token_hex(8)}.tmp")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                # The time stamp says until when the content is of use: the sweep can't read what others wrote.
                end = time.time() + seconds
                os.utime(descriptor, (end, end))
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        self._sweep()

    @contextmanager
    def lock(self, key: str, timeout: float) -> Iterator[str | None]:
        """Hold the lock file of the key (``flock``)."""
        self._check_directory()
        path = self.directory / f"{key}.lock"
        lock = filelock.FileLock(path, timeout=timeout, mode=0o600, poll_interval=_LOCK_POLL)
        try:
            lock.acquire()
        except filelock.Timeout:
            yield None
            return
        try:
            yield self.name
        finally:
            lock.release()

    def _path(self, key: str) -> Path:
        return self.directory / f"{key}.record"

    def _check_directory(self) -> None:
        if not self.directory.exists():
            self._make_directory()
        status = self.directory.lstat()
        _require(stat.S_ISDIR(status.st_mode), self.directory, "is not a directory (a link is not followed)")
        _require_private(status, self.directory)

    def _make_directory(self) -> None:
        for parent in [each for each in reversed(self.directory.parents) if not each.exists()]:
            # Not by `parents=True`, which with a umask of 0 makes what everybody may write to, and so replace.
            with suppress(FileExistsError):
                parent.mkdir(mode=0o755)
        with suppress(FileExistsError):
            self.directory.mkdir(mode=0o700)

    def _sweep(self) -> None:
        """Remove the files of keys past their use, under the lock so that nobody waits on one that is gone."""
        try:
            for key in {match[1] for path in self.directory.iterdir() if (match := _OURS.fullmatch(path.name))}:
                if self._is_stale(key):
                    with self.lock(key, 0) as held:
                        if held and self._is_stale(key):
                            for path in self._files(key):
                                path.unlink()
        except OSError as error:
            log.debug("The sweep of %s stopped: %s", self.directory, error)

    def _files(self, key: str) -> list[Path]:
        return [path for path in self.directory.glob(f"{key}.*") if _OURS.fullmatch(path.name)]

    def _is_stale(self, key: str) -> bool:
        times = {path.suffix: path.lstat().st_mtime for path in self._files(key)}
        # Taking the lock may touch its file, which counts where there is nothing else only.
        lock = times.pop(".lock", 0)
        return max(times.values(), default=lock) < time.time() - SWEEP_AFTER


def _require_private(status: os.stat_result, path: Path) -> None:
    _require(status.st_uid == os.geteuid(), path, "belongs to another user")
    _require(not status.st_mode & 0o077, path, "is open to other users")


def _require(condition: bool, path: Path, problem: str) -> None:
    if not condition:
        raise PermissionError(f"{path} {problem}; name a directory of your own in [openmarkets] token_cache_dir")
