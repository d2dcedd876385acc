"""Replies on disk, kept until the rows of their load have landed. The next attempt of the load continues from them.

Bodies are stored as the API sent them, because versions of this package may parse them differently.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import secrets
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple, Self

from openmarkets_provider.client.http.clients import Reply
from openmarkets_provider.client.private_folder import make_private_folder
from openmarkets_provider.query.plan import ApiCall

log = logging.getLogger(__name__)

OPTION = "resume_folder"
MAX_AGE = 7 * 86400.0
"""Seconds after which the files of a load are deleted."""
MAX_AGE_OF_STATE = 3600.0
"""Seconds for which a reply that may still change, such as quotes or today's bars, is reused."""
_MAGIC = b"openmarkets replies 1\n"
_HEADER = struct.Struct(">16scII")
"""The header of a record: call, kind, length of the data, and checksum of the whole record."""
_CERTAIN, _DOUBTFUL, _FORGET, _FORGET_DOUBTFUL = b"c", b"d", b"f", b"F"
_LOAD = re.compile(r"[0-9a-f]{32}")
_FILE = re.compile(r"(\d{19})-[0-9a-f]{16}\.replies")


class _Record(NamedTuple):
    """The place of a reply in a file.

    :ivar file: descriptor.
    :ivar is_doubtful: the reply may change after a user has corrected something.
    """

    file: int
    offset: int
    length: int
    is_doubtful: bool


class Pulled:
    """The replies of one load. Each attempt writes its own file, and reads those of earlier attempts.

    A damaged file is used up to the damage. If files can't be read or written, the load continues without them, and one
    warning is logged. A context manager. Threads may share it.

    :param folder: the folder of all loads; private to the user.
    :param load: identifies the load.
    :param settled: when replies stop changing, in seconds since the epoch. The replies of an attempt that began before
        are reused for :data:`MAX_AGE_OF_STATE` after its last reply.
    :ivar since: no reply is older than this, in seconds since the epoch.
    :ivar earlier: number of calls that were answered by replies of earlier attempts.
    :ivar new: number of replies that this attempt has added.
    """

    def __init__(self, folder: Path, load: str, settled: float) -> None:
        self._root = folder
        self._folder = folder / hashlib.sha256(load.encode()).hexdigest()[:32]
        self._settled = settled
        self._lock = threading.Lock()
        self._records: dict[bytes, _Record] = {}
        self._readers: list[IO[bytes]] = []
        self._writer: IO[bytes] | None = None
        self._is_usable = True
        self.since = time.time()
        self.earlier = self.new = 0

    def __enter__(self) -> Self:
        """Read the replies of earlier attempts, and delete old ones."""
        try:
            make_private_folder(self._root, OPTION)
            _sweep(self._root)
            make_private_folder(self._folder, OPTION)
            for path in sorted(self._folder.iterdir()):
                name = _FILE.fullmatch(path.name)
                if name and self._is_good(begun := int(name[1]) / 1e9, path.lstat().st_mtime):
                    self.since = min(self.since, begun)
                    self._read(path)
        except OSError as error:
            self._give_up(error)
        if self._records:
            log.info("Reusing %d replies of earlier attempts.", len(self._records))
        return self

    def __exit__(self, *_: object) -> None:
        """Close the files; they stay for the next attempt."""
        for file in [*self._readers, *filter(None, [self._writer])]:
            file.close()
        self._readers.clear()
        self._writer = None
        self._is_usable = False

    def find(self, call: ApiCall) -> Reply | None:
        """Return the reply to a call from an earlier attempt, and remove it: a load makes each call once."""
        record = self._records.pop(_key(call), None)
        if record is None:
            return None
        try:
            head, _, body = zlib.decompress(os.pread(record.file, record.length, record.offset)).partition(b"\n")
            status, request_id = json.loads(head)
        except (OSError, ValueError, zlib.error) as error:
            log.warning("Could not read a stored reply of an earlier attempt; requesting it again: %s", error)
            return None
        self.earlier += 1
        return Reply(status, {"x-request-id": request_id}, body)

    def add(self, call: ApiCall, reply: Reply, request_id: str) -> None:
        """Store a reply, unless it contains the token."""
        if any(text.encode() in reply.body for text in reply.hidden):
            return
        head = json.dumps([reply.status, request_id]).encode()
        is_certain = reply.status == 200 and call.security is not None and len(reply.body) > len(b"[]")
        data = zlib.compress(b"%b\n%b" % (head, reply.body), 1)
        self._write(_key(call), _CERTAIN if is_certain else _DOUBTFUL, data)
        self.new += 1

    def forget(self, call: ApiCall) -> None:
        """Forget a reply with invalid contents, so that the next attempt sends the call again."""
        self._write(_key(call), _FORGET)

    def forget_doubtful(self) -> None:
        """Forget replies about the securities themselves, and replies without rows."""
        self._write(bytes(16), _FORGET_DOUBTFUL)

    def discard(self) -> None:
        """Delete all replies."""
        self._is_usable = False
        self._records.clear()
        with suppress(OSError):
            for path in self._folder.iterdir():
                if _FILE.fullmatch(path.name):
                    path.unlink()
            self._folder.rmdir()

    def _is_good(self, begun: float, ended: float) -> bool:
        age = time.time() - ended
        return age < (MAX_AGE if begun >= self._settled else MAX_AGE_OF_STATE)

    def _read(self, path: Path) -> None:
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK), "rb")
        self._readers.append(file)
        for key, kind, offset, length in _read_records(file):
            if kind == _FORGET:
                self._records.pop(key, None)
            elif kind == _FORGET_DOUBTFUL:
                self._records = {each: kept for each, kept in self._records.items() if not kept.is_doubtful}
            else:
                self._records[key] = _Record(file.fileno(), offset, length, kind == _DOUBTFUL)

    def _write(self, key: bytes, kind: bytes, data: bytes = b"") -> None:
        with self._lock:
            if not self._is_usable:
                return
            try:
                if self._writer is None:
                    self._writer = self._create()
                record = _HEADER.pack(key, kind, len(data), _checksum(key, kind, data)) + data
                if self._writer.write(record) != len(record):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                self._give_up(error)

    def _create(self) -> IO[bytes]:
        path = self._folder / f"{time.time_ns():019d}-{secrets.token_hex(8)}.replies"
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb", 0)
        file.write(_MAGIC)
        return file

    def _give_up(self, error: OSError) -> None:
        """Continue without stored replies, and free their space: rows may need it."""
        self._is_usable = False
        log.warning(
            "Could not store the replies of this load in %s; another attempt would request them again: %s",
            self._folder,
            error,
        )
        if self._writer is not None:
            with suppress(OSError):
                os.ftruncate(self._writer.fileno(), 0)


def _key(call: ApiCall) -> bytes:
    text = json.dumps([call.api, call.method, call.path, call.params, call.json], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _checksum(key: bytes, kind: bytes, data: bytes) -> int:
    return zlib.crc32(data, zlib.crc32(key + kind))


def _read_records(file: IO[bytes]) -> Iterator[tuple[bytes, bytes, int, int]]:
    """Yield call, kind, offset and length of each record, up to the first damaged one."""
    if file.read(len(_MAGIC)) != _MAGIC:
        return
    left = os.fstat(file.fileno()).st_size - len(_MAGIC)
    while len(header := file.read(_HEADER.size)) == _HEADER.size:
        key, kind, length, checksum = _HEADER.unpack(header)
        left -= _HEADER.size + length
        offset = file.tell()
        if left < 0 or _checksum(key, kind, file.read(length)) != checksum:
            return
        yield key, kind, offset, length


def _sweep(root: Path) -> None:
    """Delete the files of abandoned loads."""
    oldest = time.time() - MAX_AGE
    for folder in root.iterdir():
        if not _LOAD.fullmatch(folder.name):
            continue
        # Other tasks may do the same concurrently.
        with suppress(OSError):
            # Read before the files are deleted, which changes it. A load that starts has a new, empty folder.
            is_old = folder.lstat().st_mtime < oldest
            for path in folder.iterdir():
                if path.lstat().st_mtime < oldest:
                    path.unlink()
            if is_old:
                folder.rmdir()
