"""The store for hosts without Redis: files of each host, exchanged through Airflow Variables, one for each key."""

from __future__ import annotations

import asyncio
import binascii
import logging
import math
import random
import re
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import NoReturn, TypeVar

from openmarkets_provider.client.cache.store import Store

log = logging.getLogger(__name__)

# The name must not look like a secret to Airflow: its masker would keep every value forever. Values are encrypted.
PREFIX = "openmarkets_cache_"
TIMEOUT = 30.0
"""Longest time in seconds to wait for Airflow. The first answer of a triggerer (3.3.2) takes a few seconds, and more
than ten on a busy host."""
SWEEP_AFTER = 8 * 86_400.0
"""Seconds after which an expired Variable is deleted. Reading and deleting are two steps, between which another host
may update the Variable. Eight days avoid this for a DAG that runs once a week."""
_NAME = re.compile(re.escape(PREFIX) + r"[0-9a-f]{32}")
_SWEEP_SIZE = 10
_MESSAGE_LENGTH = 200

T = TypeVar("T")

_late: threading.Thread | None = None
"""A call that timed out. Until it ends, no other call is made."""


def reset() -> None:
    """Wait until a call that timed out has ended, at most TIMEOUT seconds, and forget it."""
    global _late
    if _late is not None:
        _late.join(TIMEOUT)
    _late = None


class VariableStore:
    """Stores entries in files of the host, which all hosts exchange through Airflow Variables.

    Reads use the files. The lock copies a newer Variable to the file; saves write both. Airflow has no locks for
    Variables, so each host has its own.

    A Variable contains its expiry (UTC), a space, and the entry in Base64. If Variables can't be used, the files still
    work. :func:`_call` describes where Variables can be used.

    :param file: the store of this host.
    """

    name = "variable"

    def __init__(self, file: Store) -> None:
        self._file = file

    def load(self, key: str) -> bytes | None:
        """Read the file, or the Variable if files can't be used."""
        try:
            return self._file.load(key)
        except OSError:
            return _read_variable(key)[1]

    def save(self, key: str, data: bytes, seconds: float, lease: str | None = None) -> None:
        """Write the file, set the Variable, and delete Variables that expired long ago."""
        try:
            self._file.save(key, data, seconds, lease)
        finally:
            _write_variable(key, data, seconds)

    @contextmanager
    def lock(self, key: str, timeout: float) -> Iterator[str | None]:
        """Acquire the lock of the file, and update the file from the Variable."""
        before = self._file.load(key)
        with self._file.lock(key, timeout) as lease:
            # If the file changed during the wait, the previous owner of the lock has updated it.
            if lease is not None and self._file.load(key) == before:
                self._copy_variable(key, before, lease)
            yield lease

    def _copy_variable(self, key: str, data: bytes | None, lease: str) -> None:
        try:
            seconds, newer = _read_variable(key)
            if newer is not None and newer != data:
                self._file.save(key, newer, seconds, lease)
        except OSError as error:
            # The caller saves next, which logs a warning.
            log.debug("The Variable of a shared entry can't be used: %s", error)


def _read_variable(key: str) -> tuple[float, bytes | None]:
    """Return the seconds until a Variable expires, and its entry; None if it is missing, expired or damaged."""
    end, data = _parse(_call(lambda: _get(PREFIX + key)))
    seconds = end - time.time()
    return seconds, data if seconds > 0 else None


def _write_variable(key: str, data: bytes, seconds: float) -> None:
    end = datetime.fromtimestamp(math.ceil(time.time() + seconds), UTC)
    value = f"{end:%Y-%m-%dT%H:%M:%SZ} {b64encode(data).decode()}"
    description = (
        "Shared by the tasks of the Openmarkets provider. Encrypted with the client secret, of use until "
        f"{end:%Y-%m-%d %H:%M:%S} UTC. It may be deleted at any time."
    )
    _call(lambda: _set(PREFIX + key, value, description))


def _parse(value: str | None) -> tuple[float, bytes | None]:
    """Return the expiry of a value, in seconds since the epoch, and its entry; infinity and None if damaged."""
    end, _, text = (value or "").partition(" ")
    with suppress(ValueError, binascii.Error):
        return datetime.strptime(end, "%Y-%m-%dT%H:%M:%S%z").timestamp(), b64decode(text, validate=True)
    return math.inf, None


def _get(name: str) -> str | None:
    from airflow.providers.common.compat.sdk import Variable

    # Versions of Airflow name the default argument differently, but its position is the same.
    value = Variable.get(name, None)
    return value if isinstance(value, str) else None


def _set(name: str, value: str, description: str) -> None:
    from airflow.providers.common.compat.sdk import Variable

    try:
        Variable.set(name, value, description)
    except ImportError:
        # Without a supervisor, as in the API server, Airflow's SDK can only read Variables.
        from airflow.models.variable import Variable as DatabaseVariable

        DatabaseVariable.set(name, value, description)
        return
    # Airflow before 3.3 can't list Variables.
    if not hasattr(Variable, "keys"):
        return
    try:
        # A random few at a time, so that all are checked eventually.
        others = [other for other in Variable.keys(PREFIX) if other != name and _NAME.fullmatch(other)]
        for other in random.sample(others, min(len(others), _SWEEP_SIZE)):
            if _parse(_get(other))[0] < time.time() - SWEEP_AFTER:
                Variable.delete(other)
    except Exception as error:  # noqa: BLE001 (the Variable itself is set)
        log.debug("The sweep of Variables stopped: %s", error)


def _has_thread_access() -> bool:
    """Return whether any thread can use Variables in this version of Airflow."""
    from airflow import __version__

    major, minor, patch = (int(number) for number in re.findall(r"\d+", __version__)[:3])
    return major < 3 or (major, minor, patch) >= (3, 2, 2)


def _call(function: Callable[[], T]) -> T:
    """Call a function that uses Airflow Variables.

    Before Airflow 3.0, and from 3.2.2 on, it runs in a thread, so that it can time out. In the versions between, only
    the main thread of a process can use Variables.

    :raises OSError: the call failed or timed out, or Variables can't be used here.
    """
    global _late
    with suppress(RuntimeError):
        asyncio.get_running_loop()
        # Airflow may need the event loop to answer.
        raise OSError("Variables can't be read on an event loop")
    if not _has_thread_access():
        if threading.current_thread() is not threading.main_thread():
            raise OSError("only the main thread of a task can use Variables before Airflow 3.2.2")
        try:
            return function()
        except Exception as error:  # noqa: BLE001 (a secrets backend may raise anything)
            _raise_os_error(error)
    if _late is not None and _late.is_alive():
        raise TimeoutError("an earlier call to Airflow has not returned yet")
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 (some of Airflow's errors are not Exceptions)
            future.set_exception(error)

    thread = threading.Thread(target=run, name="openmarkets_variable", daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    if thread.is_alive():
        _late = thread
        raise TimeoutError(f"Airflow did not answer within {TIMEOUT:g} s")
    if failure := future.exception():
        _raise_os_error(failure)
    return future.result()


def _raise_os_error(error: BaseException) -> NoReturn:
    if isinstance(error, OSError):
        raise error
    # Only the first line: SQLAlchemy shows values in the others.
    message = next(iter(str(error).splitlines()), "")[:_MESSAGE_LENGTH]
    raise OSError(f"{type(error).__name__}: {message}") from error
