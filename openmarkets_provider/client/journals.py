"""Where the intent of an order is written before the order is sent: the protocol, in memory, and files."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from openmarkets_provider.client.cache.lock import file_lock
from openmarkets_provider.exceptions import OpenmarketsError

LOCK_TIMEOUT = 60.0
"""Seconds for which another process that carries out the same intent is waited for."""


class Journal(Protocol):
    """Stores JSON-able dicts under keys of letters, digits, ``-`` and ``_``."""

    def load(self, key: str) -> dict[str, Any] | None:
        """Return what is stored, or None.

        :raises OpenmarketsError: transient: it can't be read.
        """

    def save(self, key: str, data: dict[str, Any]) -> None:
        """Store a dict, so that it outlives this process.

        :raises OpenmarketsError: transient: it can't be stored.
        """

    def lock(self, key: str) -> AbstractContextManager[None]:
        """Keep others away who carry out the same intent, where the journal can.

        :raises OpenmarketsError: transient: another one still does after a minute.
        """


class MemoryJournal:
    """Forgets with the process: then the list of orders alone tells whether an order is there."""

    def __init__(self) -> None:
        self._entries: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()

    def load(self, key: str) -> dict[str, Any] | None:
        """Return what is stored."""
        return self._entries.get(key)

    def save(self, key: str, data: dict[str, Any]) -> None:
        """Store a dict."""
        self._entries[key] = data

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Keep other threads away."""
        with self._lock:
            yield


class FileJournal:
    """A file for each key in a folder of a local disk, for programs without Airflow.

    :param folder: created with mode 0700 if it is missing.
    """

    def __init__(self, folder: Path | str) -> None:
        self._folder = Path(folder)

    def load(self, key: str) -> dict[str, Any] | None:
        """Read a file."""
        try:
            data = json.loads(self._path(key).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise _failure(error) from error
        return data if isinstance(data, dict) else {}

    def save(self, key: str, data: dict[str, Any]) -> None:
        """Replace a file; it is on the disk when this returns."""
        path = self._path(key)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with temporary.open("w", encoding="utf-8") as file:
                json.dump(data, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_folder(self._folder)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise _failure(error) from error

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Keep other processes of this host away."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise _failure(error) from error
        with file_lock(self._path(key).with_suffix(".lock"), LOCK_TIMEOUT) as acquired:
            if not acquired:
                raise OpenmarketsError("Another process carries out the same intent; nothing was sent.", transient=True)
            yield

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.json"


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _failure(error: Exception) -> OpenmarketsError:
    return OpenmarketsError(f"The journal of orders failed: {error}", transient=True)
