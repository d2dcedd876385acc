"""The files that a task instance has published, so that its next try recognizes them."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from openmarkets_provider.client.private_folder import make_private_folder
from openmarkets_provider.client.pulled import OPTION


class Published:
    """The checksums of files by name, in a file for each load. If that can't be used, no file is recognized.

    :param folder: for all loads; private to the user.
    :param load: identifies the load.
    """

    def __init__(self, folder: Path, load: str) -> None:
        self._root = folder
        # Named like the folders of replies, so that it is deleted with them when it is old.
        self._folder = folder / hashlib.sha256(f"published {load}".encode()).hexdigest()[:32]

    def add(self, name: str, file: IO[bytes]) -> None:
        """Record a file that is about to appear."""
        line = json.dumps([name, _digest(file)]) + "\n"
        with suppress(OSError):
            for folder in (self._root, self._folder):
                make_private_folder(folder, OPTION)
            descriptor = os.open(self._folder / "names", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w") as names:
                names.write(line)

    def has(self, name: str, file: IO[bytes]) -> bool:
        """Tell whether a file was recorded and has not changed."""
        try:
            lines = (self._folder / "names").read_text().splitlines()
        except OSError:
            return False
        return json.dumps([name, _digest(file)]) in lines


def _digest(file: Any) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()
