"""A server as a separate process, for tests that fork or that start other processes."""

from __future__ import annotations

import subprocess
import sys
from types import TracebackType
from typing import Self


class ServerProcess:
    """Runs a Python module that says on its standard output where it serves, once it does.

    :param arguments: the module and its options.
    """

    def __init__(self, *arguments: str) -> None:
        self._command = [sys.executable, "-m", *arguments]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        try:
            if not self.has_started():
                code = self._process.wait(10)
                raise RuntimeError(f"{' '.join(self._command[1:])} did not start: exit status {code}.")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        self._process.terminate()
        self._process.wait(20)
        self._process.stdout.close()

    def has_started(self) -> bool:
        """Read where it serves; False when the output ends before that."""
        raise NotImplementedError
