"""The body of a reply: decoded piece by piece, so that a small bomb never gets large. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

MAX_REPLY = 64 << 20
"""Bytes of a decoded reply that are read, where a request does not say otherwise."""
_PIECE = 1 << 20
"""Decoded bytes at a time."""


class UnreadableBodyError(Exception):
    """A body is too large, or not encoded as asked for. The text is a sentence without a subject.

    :ivar advice: a sentence that says what the caller of an API can do; empty when there is nothing.
    """

    def __init__(self, problem: str, advice: str = "") -> None:
        super().__init__(problem)
        self.advice = advice


class Body:
    """Collects a reply's body.

    :param encoding: the ``Content-Encoding`` header; empty when there is none.
    :param max_bytes: most bytes of the decoded body.
    :raises UnreadableBodyError: the encoding was not asked for.
    """

    def __init__(self, encoding: str, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._size = 0
        self._pieces: list[bytes] = []
        self._gzip = None
        encoding = encoding.strip().lower()
        if encoding == "gzip":
            self._gzip = zlib.decompressobj(16 + zlib.MAX_WBITS)
        elif encoding not in ("", "identity"):
            raise UnreadableBodyError(f"has the content encoding {encoding[:50]!r}, which was not asked for")

    def add(self, chunk: bytes) -> None:
        """Add what the server sent next.

        :raises UnreadableBodyError: the body is too large, or damaged.
        """
        for piece in [chunk] if self._gzip is None else self._decompress(chunk):
            self._size += len(piece)
            if self._size > self._max_bytes:
                raise UnreadableBodyError(f"is larger than {self._max_bytes} bytes", "Ask for less in one call.")
            self._pieces.append(piece)

    def read(self) -> bytes:
        """Return the whole body.

        :raises UnreadableBodyError: it ends too early.
        """
        if self._gzip is not None and self._pieces and not self._gzip.eof:
            raise UnreadableBodyError("is gzip that ends too early")
        return b"".join(self._pieces)

    def _decompress(self, chunk: bytes) -> Iterator[bytes]:
        decoder = self._gzip
        while chunk and decoder is not None:
            if decoder.eof:
                raise UnreadableBodyError("is gzip that goes on after its end")
            try:
                yield decoder.decompress(chunk, _PIECE)
            except zlib.error:
                raise UnreadableBodyError("is damaged gzip") from None
            chunk = decoder.unconsumed_tail or decoder.unused_data
