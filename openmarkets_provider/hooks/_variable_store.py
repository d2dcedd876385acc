"""The store for hosts without a Redis: the host's files, exchanged through Airflow Variables, one for each key."""

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

# Not a word that Airflow takes for a secret: it would keep each value in its masker for good, and what is stored here
# is encrypted anyway.
PREFIX = "openmarkets_cache_"
TIMEOUT = 30.0
"""Longest time in seconds to wait for Airflow.

A triggerer (3.3.2) takes a few seconds for its first answer, and on a busy host more than ten.
"""
SWEEP_AFTER = 8 * 86_400.0
"""Seconds past its use at which a Variable is deleted. Reading and deleting are two steps, so another host may have
just updated it: a DAG that runs once a week must not lose its token."""
_NAME = re.compile(re.escape(PREFIX) + r"[0-9a-f]{32}")
_SWEEP_SIZE = 10
_MESSAGE_LENGTH = 200

T = TypeVar("T")

_late: threading.Thread | None = None
"""A call that Airflow has not answered in time. While it waits, no other call is made."""


class VariableStore:
    """Entries in the files of the host, which all hosts exchange through Airflow Variables.

    Reads are answered by the files. Who acquires the lock, because the files are not enough, first copies a newer
    Variable to them; what is saved goes to both. Airflow has no lock for Variables, so each host has its own.

    A Variable holds the end of its use (UTC), a space, and the entry in Base64. Variables that can't be used are no
    reason to fail: the files remain. :func:`_call` says where they can be used.

    :param file: the store of this host.
    """

    name = "variable"

    def __init__(self, file: Store) -> None:
        self._file = file

    def load(self, key: str) -> bytes | None:
        """Read the file; the Variable only where files can't be used."""
        try:
            return self._file.load(key)
        except OSError:
            return _read_variable(key)[1]

    def save(self, key: str, data: bytes, seconds: float, lease: str | None = None) -> None:
        """Write the file, set the Variable, and delete Variables that are long past their use."""
        try:
            self._file.save(key, data, seconds, lease)
        finally:
            _write_variable(key, data, seconds)

    @contextmanager
    def lock(self, key: str, timeout: float) -> Iterator[str | None]:
        """Acquire the lock of the file, and bring the file up to date."""
        before = self._file.load(key)
        with self._file.lock(key, timeout) as lease:
            # A file that has changed while this process waited was brought up to date by the one before.
            if lease is not None and self._file.load(key) == before:
                self._copy_variable(key, before, lease)
            yield lease

    def _copy_variable(self, key: str, data: bytes | None, lease: str) -> None:
        try:
            seconds, newer = _read_variable(key)
            if newer is not None and newer != data:
                self._file.save(key, newer, seconds, lease)
        except OSError as error:
            # The caller will save, and that warns.
            log.debug("The Variable of a shared entry can't be used: %s", error)


def _read_variable(key: str) -> tuple[float, bytes | None]:
    """Return for how many seconds a Variable is of use, and its entry; None when it is missing, over or damaged."""
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
    """Return the end of a value's use, in seconds since 1970, and its entry; infinity and None when damaged."""
    end, _, text = (value or "").partition(" ")
    with suppress(ValueError, binascii.Error):
        return datetime.strptime(end, "%Y-%m-%dT%H:%M:%S%z").timestamp(), b64decode(text, validate=True)
    return math.inf, None


def _get(name: str) -> str | None:
    from airflow.providers.common.compat.sdk import Variable

    # The name of the argument for a default differs between versions of Airflow; its place does not.
    value = Variable.get(name, None)
    return value if isinstance(value, str) else None


def _set(name: str, value: str, description: str) -> None:
    from airflow.providers.common.compat.sdk import Variable

    try:
        Variable.set(name, value, description)
    except ImportError:
        # Without a supervisor, as in the API server, Airflow's SDK can only read.
        from airflow.models.variable import Variable as DatabaseVariable

        DatabaseVariable.set(name, value, description)
        return
    # Airflow can list Variables from 3.3 on.
    if not hasattr(Variable, "keys"):
        return
    try:
        # A random few: the others' turn comes.
        others = [other for other in Variable.keys(PREFIX) if other != name and _NAME.fullmatch(other)]
        for other in random.sample(others, min(len(others), _SWEEP_SIZE)):
            if _parse(_get(other))[0] < time.time() - SWEEP_AFTER:
                Variable.delete(other)
    except Exception as error:  # noqa: BLE001 (the Variable itself is set)
        log.debug("The sweep of Variables stopped: %s", error)


def _has_thread_access() -> bool:
    """Return whether this Airflow lets any thread use Variables: through its database, or by taking turns."""
    from airflow import __version__

    major, minor, patch = (int(number) for number in re.findall(r"\d+", __version__)[:3])
    return major < 3 or (major, minor, patch) >= (3, 2, 2)


def _call(function: Callable[[], T]) -> T:
    """Call a function that uses Airflow Variables.

    From Airflow 3.2.2 on, and before 3.0, it runs in a thread, so that it can time out. In between, only the main
    thread of a process may use Variables.

    :raises OSError: it failed, timed out, or Variables can't be used here.
    """
    global _late
    with suppress(RuntimeError):
        asyncio.get_running_loop()
        # Airflow may need the loop for its answer.
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
    # The first line: SQLAlchemy shows values in the others.
    message = next(iter(str(error).splitlines()), "")[:_MESSAGE_LENGTH]
    raise OSError(f"{type(error).__name__}: {message}") from error
