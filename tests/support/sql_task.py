"""Loads in separate processes, for tests that kill them."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.context import context
from tests.support.processes import FORK_SERVER

PATIENCE = 60


class SqlTask:
    """A process that runs loads one after the other, with the signal handler of Airflow's task runner.

    :param folder: for its temporary files and its output.
    :param loads: the arguments of an :class:`OpenmarketsToSqlOperator` each.
    """

    def __init__(self, folder: Path, *loads: Mapping[str, Any]) -> None:
        self.temp, self._output = folder / "temp", folder / "output"
        self.temp.mkdir(parents=True)
        arguments = (dict(os.environ), str(self.temp), str(self._output), loads)
        self._process = FORK_SERVER.Process(target=_work, args=arguments)
        self._process.start()

    def signal(self, number: int) -> None:
        """Send it a signal, and wait for its end."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)
        self.wait()

    def wait(self) -> int:
        """Wait for its end, and return its exit status, negative when a signal ended it."""
        self._process.join(PATIENCE)
        assert self._process.exitcode is not None, "it has not ended"
        return self._process.exitcode

    def output(self) -> str:
        """Return what it wrote."""
        return self._output.read_text()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.join(PATIENCE)
        self._process.close()


@contextmanager
def sql_task(folder: Path, *loads: Mapping[str, Any]) -> Iterator[SqlTask]:
    """Run loads in a process that is ended when the block is left."""
    task = SqlTask(folder, *loads)
    try:
        yield task
    finally:
        task.close()


def _work(environment: dict[str, str], temp: str, output: str, loads: tuple[Mapping[str, Any], ...]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = temp
    file = os.open(output, os.O_WRONLY | os.O_CREAT)
    for standard in (1, 2):
        os.dup2(file, standard)
    try:
        for arguments in loads:
            _load(arguments)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        # As Airflow ends a task's process: nobody waits for its threads.
        os._exit(1)


def _load(arguments: Mapping[str, Any]) -> None:
    from openmarkets_provider.transfers.openmarkets_to_sql import OpenmarketsToSqlOperator

    task = OpenmarketsToSqlOperator(task_id="load", **arguments)

    def end(*_: Any) -> None:
        task.on_kill()

    signal.signal(signal.SIGTERM, end)
    print(json.dumps(task.execute(context())), flush=True)
