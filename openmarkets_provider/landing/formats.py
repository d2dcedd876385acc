"""File formats: CSV and JSON lines here, Parquet in its own module.

Every file has all columns of its layout, also when there are no rows. The same rows give the same bytes.
"""

from __future__ import annotations

import re
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import IO, Any, NamedTuple, Protocol

from openmarkets_provider.exceptions import OpenmarketsConfigurationError
from openmarkets_provider.landing.layout import Columns, Layout, Storage
from openmarkets_provider.landing.places import redact

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
    # Not as the content encoding of what is inside: readers that undo it get another file than its name says.
    "gzip": "application/gzip",
    "zstd": "application/zstd",
}
_FOREIGN_ENDS = ("bz2", "xz", "lz4", "zip", "tar", "tgz", "xlsx", "feather", "arrow", "avro", "orc")
_TEMPLATE_ENDS = re.compile(r"}}|%}|#}")
_MOST_DIGITS = 1000


class Writer(Protocol):
    """Writes the rows of one query into one file."""

    def write(self, columns: Columns) -> None:
        """Add a batch of :meth:`Layout.values`.

        :raises OpenmarketsInvalidResponse: a value does not fit the format.
        """

    def close(self) -> None:
        """Complete the file, and leave it open."""

    def discard(self) -> None:
        """Give up. The file may look complete or not; it must not be read."""


class FileFormat(NamedTuple):
    """How rows become the bytes of a file.

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
        """Return a writer. It imports the packages that it needs now.

        :raises OpenmarketsConfigurationError: a package is missing; the text says how to install it.
        """
        if self.name == "parquet":
            try:
                from openmarkets_provider.landing.parquet import ParquetWriter
            except ImportError as error:
                raise OpenmarketsConfigurationError(
                    "format='parquet' needs the package pyarrow: pip install 'airflow-provider-openmarkets[parquet]'"
                ) from error
            return ParquetWriter(file, layout, self.compression)
        head, encode = _TEXT_FORMATS[self.name]
        return _TextWriter(file, layout, _compressor(self.compression), head(layout), encode)


def choose_format(name: str, compression: str | None, file_name: str | None) -> FileFormat:
    """Return a format, and check it against the name of the file.

    :param compression: None, ``gzip``, ``zstd``, or for Parquet ``snappy``. ``infer`` goes by the end of the file's
        name, and is snappy for Parquet.
    :param file_name: path or URL of the file. Only what follows its last template is checked. None for no name.
    :raises OpenmarketsConfigurationError: there is no such format or compression, or the file's name says something
        else.
    """
    if name not in FORMATS:
        raise OpenmarketsConfigurationError(f"format must be one of {', '.join(FORMATS)}, not {name!r}.")
    ends = _ends(file_name)
    for end in ends[-2:]:
        if _FORMAT_OF_END.get(end, name) != name:
            raise OpenmarketsConfigurationError(
                f"destination: {redact(file_name)} ends in .{end}, and format is {name!r}. Change one of them."
            )
    end = ends[-1] if ends else ""
    if end in _FOREIGN_ENDS:
        raise OpenmarketsConfigurationError(
            f"destination: {redact(file_name)} ends in .{end}, which is not written here. Formats are "
            f"{', '.join(FORMATS)}; CSV and JSON lines may end in .gz or .zst, too."
        )
    by_name = _COMPRESSION_OF_END.get(end)
    if name == "parquet":
        if by_name is not None:
            raise OpenmarketsConfigurationError(
                f"destination: {redact(file_name)} ends in .{end}, but a Parquet file is compressed inside and read by "
                f"its own name. Leave .{end} out and use compression={by_name!r}."
            )
        return FileFormat(name, _choose(compression, COMPRESSIONS, "snappy"))
    chosen = _choose(compression, COMPRESSIONS[:2], by_name)
    # A template at the end of the name may render to anything.
    if chosen != by_name and end and (by_name or end in _FORMAT_OF_END):
        raise OpenmarketsConfigurationError(
            f"destination: {redact(file_name)} ends in .{end}, and compression is {chosen!r}. Readers go by the "
            f"name: end it in {FileFormat(name, chosen).suffix}, or leave compression out."
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
    """Return what follows each point in a file's name, as far as it is literal."""
    literal = _TEMPLATE_ENDS.split(file_name or "")[-1]
    return literal.lower().split(".")[1:]


class _Compressor(Protocol):
    """The compressors of the standard library and of zstandard."""

    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


class _Plain:
    """Leaves the bytes as they are."""

    def compress(self, data: bytes, /) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


def _compressor(compression: str | None) -> _Compressor:
    if compression is None:
        return _Plain()
    if compression == "gzip":
        # Its header has no time and no name: the same rows give the same bytes.
        return zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
    if sys.version_info >= (3, 14):
        from compression.zstd import ZstdCompressor

        return ZstdCompressor()
    try:
        import zstandard
    except ImportError as error:
        raise OpenmarketsConfigurationError(
            "compression='zstd' needs the package zstandard: pip install 'airflow-provider-openmarkets[zstd]'"
        ) from error
    return zstandard.ZstdCompressor().compressobj()


class _TextWriter:
    """Writes lines.

    :param head: what comes before the first row.
    :param encode: makes lines of a layout, values by column, and the number of rows before them.
    """

    def __init__(
        self,
        file: IO[bytes],
        layout: Layout,
        compressor: _Compressor,
        head: bytes,
        encode: Callable[[Layout, Columns, int], bytes],
    ) -> None:
        self._file = file
        self._layout = layout
        self._compressor = compressor
        self._encode = encode
        self._rows = 0
        self._put(head)

    def write(self, columns: Columns) -> None:
        self._put(self._encode(self._layout, columns, self._rows))
        self._rows += len(columns[0])

    def close(self) -> None:
        self._file.write(self._compressor.flush())

    def discard(self) -> None:
        pass

    def _put(self, data: bytes) -> None:
        self._file.write(self._compressor.compress(data))


_NEEDS_QUOTES = re.compile(r'[",\r\n]')


def _csv_head(layout: Layout) -> bytes:
    return (",".join(column.name for column in layout.columns) + "\n").encode()


def _csv(layout: Layout, columns: Columns, before: int) -> bytes:
    """Return lines of CSV (RFC 4180) that end in a line feed.

    The csv module writes None and an empty text alike, and before Python 3.13 a carriage return without quotes.
    """
    texts = []
    for column, cells in zip(layout.columns, columns, strict=True):
        to_text = _CSV_TEXT[column.storage]
        try:
            texts.append(["" if cell is None else to_text(cell) for cell in cells])
        except OverflowError:
            row = next(row for row, cell in enumerate(cells) if cell is not None and _is_endless(cell))
            problem = f"has more than {_MOST_DIGITS} digits when it is written out. JSON lines hold it."
            raise layout.unfit(columns, column, row, before, problem) from None
    return "".join(f"{line}\n" for line in map(",".join, zip(*texts, strict=True))).encode()


def _quote(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if not text or _NEEDS_QUOTES.search(text) else text


def _write_out(number: Decimal) -> str:
    """Write a number without an exponent, all digits of it."""
    text = str(number)
    # The user's decimal context may have small ones.
    if "E" not in text and "e" not in text:
        return text
    if _is_endless(number):
        raise OverflowError
    return f"{number:f}"


def _is_endless(number: Decimal) -> bool:
    exponent = number.as_tuple().exponent
    return not isinstance(exponent, int) or abs(exponent) > _MOST_DIGITS


_CSV_TEXT: Mapping[Storage, Callable[[Any], str]] = {
    Storage.TEXT: _quote,
    Storage.INTEGER: str,
    Storage.DECIMAL: _write_out,
    Storage.BOOLEAN: lambda value: "true" if value else "false",
    Storage.DATE: lambda value: value.isoformat(),
    Storage.TIME: lambda value: value.isoformat(),
    Storage.JSON: _quote,
}


def _json_lines(layout: Layout, columns: Columns, before: int) -> bytes:
    """Return one JSON object per line; a record without a schema is the line itself."""
    if not layout.has_schema:
        return "".join(f"{record}\n" for record in columns[0]).encode()
    from msgspec import Raw
    from msgspec.json import Encoder

    names = [column.name for column in layout.columns]
    encoded = [
        [None if cell is None else Raw(cell.encode()) for cell in cells] if column.storage is Storage.JSON else cells
        for column, cells in zip(layout.columns, columns, strict=True)
    ]
    rows = (dict(zip(names, row, strict=True)) for row in zip(*encoded, strict=True))
    # All digits: the reader decides what they become.
    return Encoder(decimal_format="number").encode_lines(rows)


_TEXT_FORMATS: Mapping[str, tuple[Callable[[Layout], bytes], Callable[[Layout, Columns, int], bytes]]] = {
    "csv": (_csv_head, _csv),
    "jsonl": (lambda layout: b"", _json_lines),
}
