"""The store of one host: a file for each key, with a lock file beside it."""

from __future__ import annotations

import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openmarkets_provider.client.cache.lock import file_lock
from openmarkets_provider.client.cache.store import MAX_BYTES
from openmarkets_provider.client.private_folder import make_private_folder, require, require_private

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 1 << 20
SWEEP_AFTER = 3600.0
"""Seconds after which an outdated file is deleted."""
_OPTION = "token_cache_dir"
_OURS = re.compile(r"([0-9a-f]{32})\.(entry|lock|[0-9a-f]{16}\.tmp)")
"""Names of this class's files: the directory may contain others."""


class FileStore:
    """Stores entries as files in a private directory.

    Files are replaced atomically: a reader finds the old entry or the new one, and a killed process leaves at most a
    temporary file. The kernel releases the locks of a process that dies.

    :param directory: created with mode 0700 if it is missing. It must belong to the user and be closed to other
        users; otherwise every method raises OSError.
    """

    name = "file"

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def load(self, key: str) -> bytes | None:
        """Read a file; None if it is missing."""
        self._check_directory()
        path = self._path(key)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        try:
            status = os.fstat(descriptor)
            # A file without links has just been replaced by a writer, which is fine.
            require(stat.S_ISREG(status.st_mode) and status.st_nlink <= 1, path, "is not a plain file", _OPTION)
            require_private(status, path, _OPTION)
            return os.read(descriptor, MAX_FILE_BYTES)
        finally:
            os.close(descriptor)

    def save(self, key: str, data: bytes, seconds: float, lease: str | None = None) -> None:
        """Replace a file, and delete outdated ones. The lease is ignored, since the lock can't expire."""
        self._check_directory()
        with self._temporary_file(key, data, seconds) as temporary:
            temporary.replace(self._path(key))
        self._sweep()

    @contextmanager
    def lock(self, key: str, timeout: float) -> Iterator[str | None]:
        """Acquire the lock file of the key.

        :raises OSError: nothing can be saved, for example because the disk is full. Otherwise all waiting callers
            would acquire the lock one after another, and each would request a token.
        """
        self._check_directory()
        with file_lock(self._lock_path(key), timeout) as acquired:
            if acquired:
                with self._temporary_file(key, bytes(MAX_BYTES), 0):
                    pass
            yield self.name if acquired else None

    @contextmanager
    def _temporary_file(self, key: str, data: bytes, seconds: float) -> Iterator[Path]:
        """Write a temporary file, and delete it at the end unless it was renamed."""
        temporary = self.directory / f"{key}.{secrets.token_hex(8)}.tmp"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                # The sweep can't decrypt the entry, so the file's time says how long it is useful.
                end = time.time() + seconds
                os.utime(descriptor, (end, end))
            yield temporary
        except OSError as error:
            # The error of a failed write has no file name.
            error.filename = error.filename or str(self.directory)
            raise
        finally:
            temporary.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.directory / f"{key}.entry"

    def _lock_path(self, key: str) -> Path:
        return self.directory / f"{key}.lock"

    def _check_directory(self) -> None:
        make_private_folder(self.directory, _OPTION)

    def _sweep(self) -> None:
        """Delete the files of outdated keys, under their locks."""
        try:
            for key in {match[1] for path in self.directory.iterdir() if (match := _OURS.fullmatch(path.name))}:
                if self._is_stale(key):
                    with file_lock(self._lock_path(key), 0) as acquired:
                        if acquired and self._is_stale(key):
                            for path in self._files(key):
                                path.unlink()
        except OSError as error:
            log.debug("The sweep of %s stopped: %s", self.directory, error)

    def _files(self, key: str) -> list[Path]:
        return [path for path in self.directory.glob(f"{key}.*") if _OURS.fullmatch(path.name)]

    def _is_stale(self, key: str) -> bool:
        times = {path.suffix: path.lstat().st_mtime for path in self._files(key)}
        # The lock file counts only if it is the only file.
        lock = times.pop(".lock", 0)
        return max(times.values(), default=lock) < time.time() - SWEEP_AFTER
