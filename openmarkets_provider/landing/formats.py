"""File formats, by name: how rows are written to a file and read again.

Every file has all columns of its layout, even without rows. The same rows give the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, NamedTuple, Protocol

from openmarkets_provider.exceptions import OpenmarketsConfigurationError
from openmarkets_provider.landing.layout import Columns, Layout
from openmarkets_provider.landing.places import redact
from openmarkets_provider.landing.text_formats import TextWriter, read_text

FORMATS = ("parquet", "csv", "jsonl")
COMPRESSIONS = ("gzip", "zstd", "snappy")
INFER = "infer"
"""The compression that fits the format and the name of the file."""

_FORMAT_OF_END: Mapping[str, str] = {
    "parquet": "parquet",
    "pq": "parquet",
    "csv": "csv",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "json": "jsonl",
}
_COMPRESSION_OF_END: Mapping[str, str] = {"gz": "gzip", "zst": "zstd"}
_END_OF_COMPRESSION: Mapping[str | None, str] = {None: "", "gzip": ".gz", "zstd": ".zst"}
_CONTENT_TYPES: Mapping[str, str] = {
    "parquet": "application/vnd.apache.parquet",
    "csv": "text/csv",
    "jsonl": "application/x-ndjson",
    # Not a content encoding: readers that undo it would get a file that does not match its name.
    "gzip": "application/gzip",
    "zstd": "application/zstd",
}
_FOREIGN_ENDS = ("bz2", "xz", "lz4", "zip", "tar", "tgz", "xlsx", "feather", "arrow", "avro", "orc")
_TEMPLATE_ENDS = re.compile(r"}}|%}|#}")


class Writer(Protocol):
    """Writes the rows of one query into one file."""

    def write(self, columns: Columns) -> None:
        """Add a batch of :meth:`Layout.values`.

        :raises OpenmarketsInvalidResponse: a value does not fit the format.
        """

    def close(self) -> None:
        """Complete the file, and leave it open."""

    def discard(self) -> None:
        """Give up. The file must not be read, even if it looks complete."""


class FileFormat(NamedTuple):
    """How rows are written to a file.

    :ivar name: one of :data:`FORMATS`.
    :ivar compression: None, ``gzip``, ``zstd``, or for Parquet ``snappy``.
    """

    name: str
    compression: str | None

    @property
    def content_type(self) -> str:
        """The media type of a file."""
        return _CONTENT_TYPES[self.name if self.name == "parquet" else self.compression or self.name]

    @property
    def suffix(self) -> str:
        """The end of a file's name, such as ``.csv.gz``."""
        return f".{self.name}" + ("" if self.name == "parquet" else _END_OF_COMPRESSION[self.compression])

    def open(self, file: IO[bytes], layout: Layout) -> Writer:
        """Return a writer, and import the packages that it needs.

        :raises OpenmarketsConfigurationError: a package is missing; the text says how to install it.
        """
        if self.name == "parquet":
            try:
                from openmarkets_provider.landing.parquet import ParquetWriter
            except ImportError as error:
                raise OpenmarketsConfigurationError(
                    "format='parquet' needs the package pyarrow. Run: pip install "
                    "'airflow-provider-openmarkets[parquet]'"
                ) from error
            return ParquetWriter(file, layout, self.compression)
        return TextWriter(file, layout, self.name, self.compression)

    def read(self, file: IO[bytes], layout: Layout) -> Iterator[Columns]:
        """Yield the rows of a file in the form of :meth:`Layout.values`; a column that the file lacks is None.

        :param file: written by :meth:`open`. It may be closed at the end.
        :raises Exception: an error of the reader, if the file was not written by :meth:`open`.
        """
        if self.name == "parquet":
            from openmarkets_provider.landing.parquet import read_batches

            return read_batches(file, layout)
        return read_text(file, layout, self.name, self.compression)


def choose_format(name: str, compression: str | None, file_name: str | None) -> FileFormat:
    """Return a format, and check it against the name of the file.

    :param compression: None, ``gzip``, ``zstd``, or for Parquet ``snappy``. ``infer`` uses the end of the file's name,
        and ``snappy`` for Parquet.
    :param file_name: path or URL of the file. Only the part after its last template is checked. None for no name.
    :raises OpenmarketsConfigurationError: there is no such format or compression, or the file's name does not match.
    """
    if name not in FORMATS:
        raise OpenmarketsConfigurationError(f"format must be one of {', '.join(FORMATS)}, not {name!r}.")
    ends = _ends(file_name)
    for end in ends[-2:]:
        if _FORMAT_OF_END.get(end, name) != name:
            raise OpenmarketsConfigurationError(
                f"destination: {redact(file_name)} ends in .{end}, but format is {name!r}. Change one of them."
            )
    end = ends[-1] if ends else ""
    if end in _FOREIGN_ENDS:
        raise OpenmarketsConfigurationError(
            f"destination: {redact(file_name)} ends in .{end}, which is not a supported format. Use "
            f"{', '.join(FORMATS)}; CSV and JSON lines may also end in .gz or .zst."
        )
    by_name = _COMPRESSION_OF_END.get(end)
    if name == "parquet":
        if by_name is not None:
            raise OpenmarketsConfigurationError(
                f"destination: {redact(file_name)} ends in .{end}, but Parquet is compressed inside the file. "
                f"Remove .{end}, and set compression={by_name!r}."
            )
        return FileFormat(name, _choose(compression, COMPRESSIONS, "snappy"))
    chosen = _choose(compression, COMPRESSIONS[:2], by_name)
    # A template at the end of the name may render to anything.
    if chosen != by_name and end and (by_name or end in _FORMAT_OF_END):
        raise OpenmarketsConfigurationError(
            f"destination: {redact(file_name)} ends in .{end}, but compression is {chosen!r}. End the name in "
            f"{FileFormat(name, chosen).suffix}, or remove compression."
        )
    return FileFormat(name, chosen)


def _choose(compression: str | None, allowed: Sequence[str], inferred: str | None) -> str | None:
    if compression == INFER:
        return inferred
    if compression is not None and compression not in allowed:
        raise OpenmarketsConfigurationError(
            f"compression must be None or one of {INFER}, {', '.join(allowed)}, not {compression!r}."
        )
    return compression


def _ends(file_name: str | None) -> list[str]:
    """Return the parts after the points in a file's name, as far as they are literal."""
    literal = _TEMPLATE_ENDS.split(file_name or "")[-1]
    return literal.lower().split(".")[1:]
