"""Loads as tasks in a separate process, for tests that kill them, or run two at once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

from tests.support.context import context
from tests.support.processes import FORK_SERVER

PATIENCE = 60


@contextmanager
def loads(operator: type[Any], *arguments: Mapping[str, Any]) -> Iterator[BaseProcess]:
    """Give a process that runs loads one after the other; its exit status is 0 when all have succeeded."""
    process = FORK_SERVER.Process(target=_work, args=(dict(os.environ), operator, arguments))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join(PATIENCE)


def _work(environment: dict[str, str], operator: type[Any], arguments: tuple[Mapping[str, Any], ...]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for each in arguments:
        operator(task_id="load", **each).execute(context())
