"""The store that hosts without a Redis share: one Airflow Variable a key."""

from __future__ import annotations

import asyncio
import binascii
import logging
import math
import random
import re
import sys
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, TypeVar

log = logging.getLogger(__name__)

# No word that Airflow takes for a secret: what it masks stays in the masker of a triggerer until that ends, and
# what is held here can be read by nobody anyway.
PREFIX = "openmarkets_cache_"
TIMEOUT = 30.0
"""Longest time in seconds that Airflow may take: the task goes on without the store then.

A triggerer (3.3.2) takes a few seconds for its first answer, and on a host that is busy more than ten.
"""
SWEEP_AFTER = 8 * 86_400.0
"""Seconds past its use: reading and deleting are two steps, and in between a host may renew what is used every week."""
_OURS = re.compile(re.escape(PREFIX) + r"[0-9a-f]{32}")
_SWEPT_AT_ONCE = 10
_MESSAGE_LENGTH = 200

T = TypeVar("T")

_late: threading.Thread | None = None
"""A call that Airflow has not answered in time; there is one way to it in a process."""


class VariableStore:
    """Records as Airflow Variables, which all hosts of a deployment share.

    A Variable holds until when it is of use (UTC), a blank, and the record in base64. Airflow has no lock for them:
    where another store is nearer, its lock keeps one host from asking more than once.

    It works where Airflow can be reached from a thread: in tasks from Airflow 3.2 on, in a triggerer that bridges
    threads to its event loop (3.3), and where the metadata database can be used directly (the API server, and
    everywhere before 3.0). Elsewhere every call raises OSError.
    """

    name = "variable"

    def load(self, key: str) -> bytes | None:
        """Read a Variable; None when there is none that is of use and undamaged."""
        end, data = _parse(_bounded(lambda: _Variables().get(PREFIX + key)))
        return data if end > time.time() else None

    def save(self, key: str, data: bytes, seconds: float, lease: str | None = None) -> None:
        """Set a Variable, and delete what nobody needs any more. There is no lock, so the lease doesn't matter."""
        end = datetime.fromtimestamp(math.ceil(time.time() + seconds), UTC)
        value = f"{end:%Y-%m-%dT%H:%M:%SZ} {b64encode(data).decode()}"
        description = (
            "What the Openmarkets provider's tasks share. Encrypted with the client secret, of use until "
            f"{end:%Y-%m-%d %H:%M:%S} UTC; may be deleted at any time."
        )
        _bounded(lambda: _set(PREFIX + key, value, description))

    @contextmanager
    def lock(self, key: str, timeout: float) -> Iterator[str | None]:
        """Hold nothing: Airflow has no lock for Variables."""
        yield self.name


def _parse(value: str | None) -> tuple[float, bytes | None]:
    """Return until when a value is of use, in seconds since 1970, and the record; infinity and None when damaged."""
    end, _, text = (value or "").partition(" ")
    with suppress(ValueError, binascii.Error):
        return datetime.strptime(end, "%Y-%m-%dT%H:%M:%S%z").timestamp(), b64decode(text, validate=True)
    return math.inf, None


def _set(name: str, value: str, description: str) -> None:
    variables = _Variables()
    variables.set(name, value, description)
    try:
        # A few of them, whichever: the others' turn comes.
        others = [other for other in variables.names() if other != name and _OURS.fullmatch(other)]
        for other in random.sample(others, min(len(others), _SWEPT_AT_ONCE)):
            if _parse(variables.get(other))[0] < time.time() - SWEEP_AFTER:
                variables.delete(other)
    except Exception as error:  # noqa: BLE001 (what was to be saved is saved)
        log.debug("The sweep of Variables stopped: %s", error)


class _Variables:
    """Airflow's Variables, in a task, a triggerer, the API server, or before Airflow 3.

    :raises OSError: they can't be used here.
    """

    def __init__(self) -> None:
        task_runner = sys.modules.get("airflow.sdk.execution_time.task_runner")
        comms = getattr(task_runner, "SUPERVISOR_COMMS", None)
        self._variable: Any
        if comms is None:
            from airflow.models import variable

            self._variable = variable.Variable
            self._no_value = {"default_var": None}
        elif not hasattr(comms, "_thread_lock"):
            raise OSError("Airflow before 3.2 lets one thread of a task read Variables")
        elif hasattr(comms, "_async_reader") and not hasattr(comms, "start_reader"):
            raise OSError("the triggerer of this Airflow lets no thread read Variables; later ones of 3.3 do")
        else:
            from airflow import sdk

            self._variable = sdk.Variable
            self._no_value = {"default": None}

    def get(self, name: str) -> str | None:
        value = self._variable.get(name, **self._no_value)
        return value if isinstance(value, str) else None

    def set(self, name: str, value: str, description: str) -> None:
        self._variable.set(name, value, description=description)

    def delete(self, name: str) -> None:
        self._variable.delete(name)

    def names(self) -> list[str]:
        """Return the names that begin with ours; none before Airflow 3.3, and outside of tasks and triggers."""
        return list(self._variable.keys(PREFIX)) if hasattr(self._variable, "keys") else []


def _bounded(call: Callable[[], T]) -> T:
    """Return what a call returns, within the time-out, whatever Airflow does.

    :raises OSError: it failed, or takes too long; it is left to itself then.
    """
    global _late
    with suppress(RuntimeError):
        asyncio.get_running_loop()
        # What the call waits for may need the loop.
        raise OSError("Variables can't be used while an event loop waits")
    if _late is not None and _late.is_alive():
        raise TimeoutError("an earlier call to Airflow still waits for its answer")
    answers: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(call())
        except BaseException as error:  # noqa: BLE001 (some of Airflow's errors are no Exception)
            failures.append(error)

    thread = threading.Thread(target=run, name="openmarkets_variable", daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    if thread.is_alive():
        _late = thread
        raise TimeoutError(f"Airflow did not answer within {TIMEOUT:g} s")
    if failures:
        (error,) = failures
        if isinstance(error, OSError):
            raise error
        # The first line: SQLAlchemy tells the values in the others.
        message = next(iter(str(error).splitlines()), "")[:_MESSAGE_LENGTH]
        raise OSError(f"{type(error).__name__}: {message}") from error
    return answers[0]
