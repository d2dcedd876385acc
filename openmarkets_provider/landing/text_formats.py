"""Rows as CSV and JSON lines: writing and reading."""

from __future__ import annotations

import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, datetime
from decimal import Decimal
from io import TextIOWrapper
from itertools import islice
from typing import IO, Any, Protocol

from openmarkets_provider.exceptions import OpenmarketsConfigurationError
from openmarkets_provider.landing.layout import Column, Columns, Layout, Storage

_AT_ONCE = 8192
"""Number of rows that are read at once."""
_MOST_DIGITS = 1000
_CELL = re.compile(r'(?:"((?:[^"]|"")*)"|([^",\n]*))[,\n]')
_FROM_TEXT: Mapping[Storage, Callable[[str], Any]] = {
    Storage.TEXT: str,
    Storage.INTEGER: int,
    Storage.DECIMAL: Decimal,
    Storage.BOOLEAN: "true".__eq__,
    Storage.DATE: date.fromisoformat,
    Storage.TIME: datetime.fromisoformat,
    Storage.JSON: str,
}


class TextWriter:
    """Writes lines.

    :param name: ``csv`` or ``jsonl``.
    :param compression: None, ``gzip`` or ``zstd``.
    :raises OpenmarketsConfigurationError: a package is missing; the text says how to install it.
    """

    def __init__(self, file: IO[bytes], layout: Layout, name: str, compression: str | None) -> None:
        head, self._encode = _FORMATS[name]
        self._file = file
        self._layout = layout
        self._compressor = _compressor(compression)
        self._rows = 0
        self._put(head(layout))

    def write(self, columns: Columns) -> None:
        """Add a batch of :meth:`Layout.values`.

        :raises OpenmarketsInvalidResponse: a number is too long for CSV.
        """
        self._put(self._encode(self._layout, columns, self._rows))
        self._rows += len(columns[0])

    def close(self) -> None:
        """Complete the file, and leave it open."""
        self._file.write(self._compressor.flush())

    def discard(self) -> None:
        """Do nothing: an incomplete text file needs no end."""

    def _put(self, data: bytes) -> None:
        self._file.write(self._compressor.compress(data))


def read_text(file: IO[bytes], layout: Layout, name: str, compression: str | None) -> Iterator[Columns]:
    """Yield the rows of a file in the form of :meth:`Layout.values`; a column that the file lacks is None.

    :param file: closed at the end.
    :param name: ``csv`` or ``jsonl``.
    """
    with TextIOWrapper(_decompress(file, compression), encoding="utf-8", newline="\n") as lines:
        rows = (_csv_rows if name == "csv" else _json_rows)(lines)
        while texts := list(islice(rows, _AT_ONCE)):
            yield [_read_column(column, texts) for column in layout.columns]


def _read_column(column: Column, rows: Iterable[Mapping[str, str | None]]) -> list[Any]:
    convert = _FROM_TEXT[column.storage]
    # A file without a column of the key was not written by a load.
    texts = (row[column.name] if column.key else row.get(column.name) for row in rows)
    return [None if text is None else convert(text) for text in texts]


def _csv_rows(lines: Iterable[str]) -> Iterator[dict[str, str | None]]:
    """Yield the cells by name. Empty text has quotes and None has not, but the csv module reads both the same."""
    records = map(_cells, _records(lines))
    names = next(records)
    return (dict(zip(map(str, names), cells, strict=True)) for cells in records)


def _records(lines: Iterable[str]) -> Iterator[str]:
    record = ""
    for line in lines:
        record += line
        if record.count('"') % 2 == 0:
            yield record
            record = ""
    # The file ends within a text, so this record has too few cells.
    if record:
        yield record


def _cells(record: str) -> list[str | None]:
    return [
        plain or None if quoted is None else quoted.replace('""', '"')
        for quoted, plain in (match.groups() for match in _CELL.finditer(record))
    ]


def _json_rows(lines: Iterable[str]) -> Iterator[dict[str, str | None]]:
    """Yield the values by name: texts unchanged, everything else as JSON, with all digits of numbers."""
    from msgspec import Raw
    from msgspec.json import Decoder, decode

    decoder = Decoder(dict[str, Raw])

    def read(raw: Raw) -> str | None:
        text = bytes(raw).decode()
        return None if text == "null" else decode(text, type=str) if text[0] == '"' else text

    return ({name: read(raw) for name, raw in decoder.decode(line).items()} for line in lines)


class _Compressor(Protocol):
    """The interface of the compressors in the standard library and zstandard."""

    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


class _Plain:
    """Leaves the bytes unchanged."""

    def compress(self, data: bytes, /) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


def _compressor(compression: str | None) -> _Compressor:
    if compression is None:
        return _Plain()
    if compression == "gzip":
        # Its header has no time and no name, so the same rows give the same bytes.
        return zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
    if sys.version_info >= (3, 14):
        from compression.zstd import ZstdCompressor

        return ZstdCompressor()
    try:
        import zstandard
    except ImportError as error:
        raise OpenmarketsConfigurationError(
            "compression='zstd' needs the package zstandard. Run: pip install 'airflow-provider-openmarkets[zstd]'"
        ) from error
    return zstandard.ZstdCompressor().compressobj()


def _decompress(file: Any, compression: str | None) -> Any:
    if compression is None:
        return file
    if compression == "gzip":
        import gzip

        return gzip.open(file)
    if sys.version_info >= (3, 14):
        from compression import zstd

        return zstd.open(file)
    import zstandard

    return zstandard.open(file, "rb")


_NEEDS_QUOTES = re.compile(r'[",\r\n]')


def _csv_head(layout: Layout) -> bytes:
    return (",".join(column.name for column in layout.columns) + "\n").encode()


def _csv(layout: Layout, columns: Columns, before: int) -> bytes:
    """Return lines of CSV (RFC 4180) that end with a line feed.

    The csv module writes None and an empty text the same, and before Python 3.13 a carriage return without quotes.
    """
    texts = []
    for column, cells in zip(layout.columns, columns, strict=True):
        to_text = _CSV_TEXT[column.storage]
        try:
            texts.append(["" if cell is None else to_text(cell) for cell in cells])
        except OverflowError:
            row = next(row for row, cell in enumerate(cells) if cell is not None and _is_endless(cell))
            problem = f"has more than {_MOST_DIGITS} digits when written out. Use JSON lines."
            raise layout.unfit(columns, column, row, before, problem) from None
    return "".join(f"{line}\n" for line in map(",".join, zip(*texts, strict=True))).encode()


def _quote(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if not text or _NEEDS_QUOTES.search(text) else text


def _write_out(number: Decimal) -> str:
    """Write a number with all digits and without an exponent."""
    text = str(number)
    # The user's decimal context may write a lower-case "e".
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
    # Write all digits; the reader decides about their type.
    return Encoder(decimal_format="number").encode_lines(rows)


_FORMATS: Mapping[str, tuple[Callable[[Layout], bytes], Callable[[Layout, Columns, int], bytes]]] = {
    "csv": (_csv_head, _csv),
    "jsonl": (lambda layout: b"", _json_lines),
}
