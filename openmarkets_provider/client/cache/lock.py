"""File locks between processes (``flock``). The kernel releases the lock of a process that dies."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

POLL = 0.02
"""Seconds between two tries to acquire a lock."""
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_descriptors: set[int] = set()
"""The descriptors of the locks of this process."""
# Reentrant, since a signal handler may fork.
_fork_lock = threading.RLock()
"""Prevents forks between opening a lock file and adding its descriptor to the set."""


def _close_in_child() -> None:
    # A child with an open descriptor would keep the lock after its parent is killed.
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()
    _fork_lock.release()


os.register_at_fork(before=_fork_lock.acquire, after_in_parent=_fork_lock.release, after_in_child=_close_in_child)


@contextmanager
def file_lock(path: Path, timeout: float) -> Iterator[bool]:
    """Acquire the lock of a file. The file is created with mode 0600 if it is missing.

    :param timeout: longest wait in seconds; 0 tries once.
    :return: a context with whether the lock was acquired.
    :raises OSError: the file can't be opened or locked.
    """
    end = time.monotonic() + timeout
    while (descriptor := _acquire(path)) is None:
        if time.monotonic() >= end:
            yield False
            return
        time.sleep(POLL)
    process = os.getpid()
    try:
        yield True
    finally:
        # In a forked child it is already closed, and the number may belong to another file.
        if os.getpid() == process:
            with _fork_lock:
                _descriptors.remove(descriptor)
                os.close(descriptor)


def _acquire(path: Path) -> int | None:
    with _fork_lock:
        descriptor = os.open(path, _FLAGS, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The lock of a file that has just been deleted excludes nobody.
            if os.fstat(descriptor).st_nlink:
                _descriptors.add(descriptor)
                return descriptor
        except BlockingIOError:
            pass
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None
