"""The body of a reply, decoded piece by piece: a gzip bomb stays within the size limit. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from openmarkets_provider.exceptions import OpenmarketsInvalidResponse

MAX_REPLY = 64 << 20
"""Default limit of a decoded reply in bytes."""
_PIECE = 1 << 20
"""Bytes that are decoded at a time."""


class Body:
    """Collects a reply's body.

    :param status: the reply's HTTP status, for errors.
    :param encoding: the ``Content-Encoding`` header; empty if there is none.
    :param max_bytes: most bytes of the decoded body.
    :raises OpenmarketsInvalidResponse: the encoding was not requested.
    """

    def __init__(self, status: int, encoding: str, max_bytes: int) -> None:
        self._status = status
        self._max_bytes = max_bytes
        self._size = 0
        self._pieces: list[bytes] = []
        self._gzip = None
        encoding = encoding.strip().lower()
        if encoding == "gzip":
            self._gzip = zlib.decompressobj(16 + zlib.MAX_WBITS)
        elif encoding not in ("", "identity"):
            raise self._error(f"has the content encoding {encoding[:50]!r}, which was not requested")

    def add(self, chunk: bytes) -> None:
        """Add the next part that the server sent.

        :raises OpenmarketsInvalidResponse: the body is too large, or damaged.
        """
        for piece in [chunk] if self._gzip is None else self._decompress(chunk):
            self._size += len(piece)
            if self._size > self._max_bytes:
                raise self._error(f"is larger than {self._max_bytes} bytes", "Request less in one call.")
            self._pieces.append(piece)

    def read(self) -> bytes:
        """Return the whole body.

        :raises OpenmarketsInvalidResponse: it ends too early.
        """
        if self._gzip is not None and self._pieces and not self._gzip.eof:
            raise self._error("is truncated gzip")
        return b"".join(self._pieces)

    def _decompress(self, chunk: bytes) -> Iterator[bytes]:
        decoder = self._gzip
        while chunk and decoder is not None:
            if decoder.eof:
                raise self._error("is gzip with extra data at the end")
            try:
                yield decoder.decompress(chunk, _PIECE)
            except zlib.error:
                raise self._error("is damaged gzip") from None
            chunk = decoder.unconsumed_tail or decoder.unused_data

    def _error(self, problem: str, advice: str | None = None) -> OpenmarketsInvalidResponse:
        """Return the error.

        :param advice: a sentence on what the caller can do.
        """
        return OpenmarketsInvalidResponse(f"the reply {problem}.", status=self._status, detail=advice, sent=True)
