"""Work as other users of the machine; the tests run as root."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.processes import FORK

OURS, THEIRS = 65533, 65534
"""Two users without a name, a home or rights."""


def as_user(uid: int, work: Callable[[], Any]) -> Any:
    """Return what work returns, or the name of the OSError that it raises, done by another user in a forked process."""
    if os.geteuid() != 0:
        pytest.fail("This test acts as several users and must run as root.")
    ours, theirs = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_work, args=(uid, work, theirs))
    process.start()
    theirs.close()
    came, value = ours.recv()
    process.join()
    if not came:
        pytest.fail(value)
    return value


def _work(uid: int, work: Callable[[], Any], connection: Any) -> None:
    try:
        become(uid)
        connection.send((True, work()))
    except OSError as error:
        connection.send((True, f"{type(error).__name__}: {error}"))
    except BaseException:
        connection.send((False, traceback.format_exc()))
    finally:
        os._exit(0)


def become(uid: int) -> None:
    """Be another user from now on, without root's groups and way back."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
