"""Rows that wait on the local disk until all of them are pulled."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Generic, TypeVar

from openmarkets_provider.landing.errors import explain_errors
from openmarkets_provider.landing.layout import Columns
from openmarkets_provider.query.batch import join

Key = TypeVar("Key")

MAX_ROWS = 10_000
"""Most rows in memory. A batch is never split, so there may be more."""


class Spool(Generic[Key]):
    """Batches of rows by key, in the order of arrival: some in memory, the rest in a file.

    :param file: an empty file for writing and reading. No other process can write to it.
    :param folder: where the file is, for messages.
    :ivar rows: number of rows.
    """

    def __init__(self, file: IO[bytes], folder: str) -> None:
        self._file = file
        self._problem = f"Cannot write rows to a temporary file in {folder}"
        self._batches: dict[Key, list[Columns]] = {}
        self._offsets: dict[Key, list[int]] = {}
        self._in_memory = 0
        self.rows = 0

    def add(self, key: Key, columns: Columns) -> None:
        """Add a batch. A batch without rows adds no key.

        :raises OpenmarketsError: transient; the disk is full.
        """
        if not columns[0]:
            return
        self._batches.setdefault(key, []).append(columns)
        self.rows += len(columns[0])
        self._in_memory += len(columns[0])
        if self._in_memory >= MAX_ROWS:
            self._spill()

    def list_keys(self) -> list[Key]:
        """Return the keys in the order of arrival."""
        return list(dict.fromkeys([*self._offsets, *self._batches]))

    def batches(self, key: Key) -> Iterator[Columns]:
        """Yield the rows of a key, in batches of other sizes.

        :raises OpenmarketsError: transient; the file cannot be read.
        """
        for offset in self._offsets.get(key, ()):
            with explain_errors(self._problem, sent=True):
                self._file.seek(offset)
                columns: Columns = pickle.load(self._file)  # noqa: S301 (no other process can write to this file)
            yield columns
        if key in self._batches:
            yield _join(self._batches[key])

    def _spill(self) -> None:
        with explain_errors(self._problem, sent=True):
            self._file.seek(0, os.SEEK_END)
            for key, batches in self._batches.items():
                self._offsets.setdefault(key, []).append(self._file.tell())
                pickle.dump(_join(batches), self._file, pickle.HIGHEST_PROTOCOL)
            # Report a full disk now, not when the rows are read.
            self._file.flush()
        self._batches.clear()
        self._in_memory = 0


def _join(batches: list[Columns]) -> Columns:
    return [join(parts) for parts in zip(*batches, strict=True)]


@contextmanager
def open_scratch() -> Iterator[IO[bytes]]:
    """Open a temporary file without a name: nothing is left of it, even if the process is killed.

    :raises OpenmarketsError: it cannot be created.
    """
    with explain_errors(f"Cannot create a temporary file in {scratch_folder()}"):
        file = tempfile.TemporaryFile()  # noqa: SIM115
    try:
        yield file
    finally:
        close(file)


def scratch_folder() -> str:
    """Return where :func:`open_scratch` creates files, in words."""
    # gettempdir() raises an error if there is no such folder.
    with suppress(OSError):
        return f"{tempfile.gettempdir()} (set by TMPDIR)"
    return "the temporary folder (set by TMPDIR)"


def close(file: IO[bytes]) -> None:
    """Close a file that is no longer needed."""
    # On a full disk, Python can't write its buffer.
    with suppress(OSError):
        file.close()
