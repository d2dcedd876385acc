"""Rows that wait on the local disk until all have come."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self

from openmarkets_provider.exceptions import OpenmarketsError

BATCH = 5000
"""Rows that are kept together, at least; what one call gives is never divided."""

Columns = list[list[Any]]
"""Values by column, in the order of a layout."""


class Spool:
    """Rows on their way, in a file without a name: it is gone when the process is, whatever ends it.

    :param columns: how many columns the rows have.
    :raises OpenmarketsError: transient; there is no place for them.
    """

    def __init__(self, columns: int) -> None:
        with _told():
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the spool)
        self._waiting: Columns = [[] for _ in range(columns)]
        self.rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # What could not be written can't be written now, either.
        with suppress(OSError):
            self._file.close()

    def add(self, columns: Columns) -> None:
        """Keep some rows.

        :raises OpenmarketsError: transient; there is no room for them.
        """
        for kept, more in zip(self._waiting, columns, strict=True):
            kept.extend(more)
        self.rows += len(columns[0])
        if len(self._waiting[0]) >= BATCH:
            self._write()

    def batches(self) -> Iterator[tuple[int, Columns]]:
        """Yield the rows in order: the number of the first one, from 1 on, and the columns of some.

        :raises OpenmarketsError: transient; they can't be read.
        """
        self._write()
        with _told():
            self._file.seek(0)
        first = 1
        while first <= self.rows:
            with _told():
                columns: Columns = pickle.load(self._file)  # noqa: S301 (nobody else can write to this file)
            yield first, columns
            first += len(columns[0])

    def _write(self) -> None:
        if not self._waiting[0]:
            return
        with _told():
            pickle.dump(self._waiting, self._file, pickle.HIGHEST_PROTOCOL)
            self._file.flush()
        self._waiting = [[] for _ in self._waiting]


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # gettempdir() raises where there is none.
        raise OpenmarketsError(
            f"The rows can't be kept on this machine until all have come: {error}. They go to a file in "
            f"{tempfile.tempdir or 'the temporary folder'}; the variable TMPDIR names another folder.",
            transient=True,
            sent=True,
        ) from error
