"""Loads of files in separate processes, as tasks of Airflow are, so that they can be killed at any point."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from openmarkets_provider.transfers.openmarkets_to_object_storage import OpenmarketsToObjectStorageOperator
from tests.support.context import context
from tests.support.processes import FORK_SERVER

WAIT = 60
ENDING = "has to end"


def run(pipe: Any, environment: dict[str, str], arguments: dict[str, Any], before: Callable[[], None] | None) -> None:
    """Run a task in a separate process, and report the outcome."""
    os.environ.update(environment)
    task = OpenmarketsToObjectStorageOperator(task_id="land", **arguments)

    def on_term(number: int, frame: object) -> None:
        pipe.send(ENDING)
        # As Airflow does.
        task.on_kill()

    signal.signal(signal.SIGTERM, on_term)
    if before is not None:
        before()
    try:
        pipe.send(task.execute(context()))
    except BaseException as error:
        pipe.send(f"{type(error).__name__}: {error}")
    pipe.close()
    # Airflow's tasks end like this.
    os._exit(0)


class Load:
    """A task that runs."""

    def __init__(
        self, environment: dict[str, str], arguments: dict[str, Any], before: Callable[[], None] | None = None
    ) -> None:
        self._pipe, other = FORK_SERVER.Pipe(duplex=False)
        self._process = FORK_SERVER.Process(target=run, args=(other, environment, arguments, before), daemon=True)
        self._process.start()
        other.close()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal."""
        os.kill(self._process.pid, number)

    def end(self) -> None:
        """Make sure that it does not run any more."""
        if self._process.is_alive():
            self.kill()
        self._process.join(WAIT)

    def terminate(self) -> None:
        """Ask it to end, and wait until it knows."""
        self.kill(signal.SIGTERM)
        assert self._pipe.poll(WAIT), "a load does not learn that it is to end"
        assert self._pipe.recv() == ENDING

    def outcome(self) -> Any:
        """Return what the task returned, the text of its error, or the signal that ended its process."""
        outcome: Any = ENDING
        try:
            while outcome == ENDING:
                assert self._pipe.poll(WAIT), "a load does not end"
                outcome = self._pipe.recv()
        except EOFError:
            outcome = None
        self._process.join(WAIT)
        return outcome if self._process.exitcode == 0 else signal.Signals(-self._process.exitcode)
