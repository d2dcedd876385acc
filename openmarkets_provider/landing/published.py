"""Which files a task instance has published, so that its next attempt knows them for its own."""

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
    """The checksums of files by name, in a file of its own. Where that cannot be used, no file is known.

    :param folder: of all loads; private to the user.
    :param load: identifies the load.
    """

    def __init__(self, folder: Path, load: str) -> None:
        self._root = folder
        # Named as the folders of replies, with which it is deleted when it is old.
        self._folder = folder / hashlib.sha256(f"published {load}".encode()).hexdigest()[:32]

    def add(self, name: str, file: IO[bytes]) -> None:
        """Note a file that is about to appear."""
        line = json.dumps([name, _digest(file)]) + "\n"
        with suppress(OSError):
            for folder in (self._root, self._folder):
                make_private_folder(folder, OPTION)
            descriptor = os.open(self._folder / "names", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w") as names:
                names.write(line)

    def has(self, name: str, file: IO[bytes]) -> bool:
        """Tell whether a file is one that was noted, and unchanged."""
        try:
            lines = (self._folder / "names").read_text().splitlines()
        except OSError:
            return False
        return json.dumps([name, _digest(file)]) in lines


def _digest(file: Any) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()
