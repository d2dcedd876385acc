"""Folders that only their user can read."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path


def make_private_folder(folder: Path, option: str) -> None:
    """Create a folder with mode 0700 if it is missing.

    :param option: the option of ``[openmarkets]`` in ``airflow.cfg`` that sets it, for messages.
    :raises OSError: it can't be created, is not a folder, belongs to another user, or is open to others.
    """
    try:
        status = folder.lstat()
    except FileNotFoundError:
        _make(folder)
        status = folder.lstat()
    require(stat.S_ISDIR(status.st_mode), folder, "is not a directory (a link is not followed)", option)
    require_private(status, folder, option)


def require_private(status: os.stat_result, path: Path, option: str) -> None:
    """Check that a file belongs to this user and is closed to others.

    :raises OSError: it is not.
    """
    require(status.st_uid == os.geteuid(), path, "belongs to another user", option)
    require(not status.st_mode & 0o077, path, "is open to other users", option)


def require(condition: bool, path: Path, problem: str, option: str) -> None:
    """Check a condition about a file.

    :raises OSError: the condition is false.
    """
    if not condition:
        raise PermissionError(f"{path} {problem}; set [openmarkets] {option} to your own directory")


def _make(folder: Path) -> None:
    for parent in [each for each in reversed(folder.parents) if not each.exists()]:
        # With a umask of 0, `parents=True` would create directories in which everybody may replace files.
        with suppress(FileExistsError):
            parent.mkdir(mode=0o755)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
