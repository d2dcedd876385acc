"""Rows that stay when a file is written anew, read from the file that is there."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import date, datetime
from decimal import Decimal
from io import TextIOWrapper
from itertools import islice
from typing import IO, Any

from openmarkets_provider.landing.formats import FileFormat
from openmarkets_provider.landing.layout import Column, Columns, Layout, Storage
from openmarkets_provider.query.rows import to_listing

_AT_ONCE = 8192
"""Rows of a text file that are read at once."""
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


def read_rows(file_format: FileFormat, file: IO[bytes], layout: Layout) -> Iterator[Columns]:
    """Yield the rows of a file as :meth:`Layout.values` gave them; a column that the file lacks is None.

    :param file: written by :meth:`FileFormat.open`. It may be closed at the end.
    :raises Exception: the reader's own: it was not.
    """
    if file_format.name == "parquet":
        from openmarkets_provider.landing.parquet import read_batches

        yield from read_batches(file, layout)
        return
    with TextIOWrapper(_decompress(file, file_format.compression), encoding="utf-8", newline="\n") as lines:
        rows = (_csv_rows if file_format.name == "csv" else _json_rows)(lines)
        while texts := list(islice(rows, _AT_ONCE)):
            yield [_read_column(column, texts) for column in layout.columns]


def _read_column(column: Column, rows: Iterable[Mapping[str, str | None]]) -> list[Any]:
    convert = _FROM_TEXT[column.storage]
    # A file without a column of the key is not one of ours.
    texts = (row[column.name] if column.key else row.get(column.name) for row in rows)
    return [None if text is None else convert(text) for text in texts]


def select_kept(
    stored: Iterable[Columns], new: Iterable[Columns], layout: Layout, securities: Collection[str] | None
) -> Iterator[Columns]:
    """Yield the stored rows that stay.

    :param new: they replace stored rows with the same key.
    :param securities: whose rows stay, in full form; None for all. The data source does not count: rows of one query
        may have several.
    """
    names = [column.name for column in layout.columns]
    of_key, of_listing = ([names.index(name) for name in some] for some in (layout.key, ("security_code", "exchange")))
    listings = None if securities is None else set(map(to_listing, securities))

    def find(columns: Columns) -> Iterator[tuple[int, tuple[Any, ...]]]:
        """Yield the number and the key of the rows of these securities."""
        keys, codes = (zip(*(columns[each] for each in some), strict=True) for some in (of_key, of_listing))
        for row, (key, (code, exchange)) in enumerate(zip(keys, codes, strict=True)):
            if listings is None or (str(code).upper(), str(exchange).upper()) in listings:
                yield row, key

    replaced = {key for columns in new for _, key in find(columns)}
    for columns in stored:
        if rows := [row for row, key in find(columns) if key not in replaced]:
            yield [[values[row] for row in rows] for values in columns]


def _csv_rows(lines: Iterable[str]) -> Iterator[dict[str, str | None]]:
    """Yield the cells by name. An empty text is in quotes, and None is not: the csv module reads both alike."""
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
    # It ends within a text, and so has too few cells.
    if record:
        yield record


def _cells(record: str) -> list[str | None]:
    return [
        plain or None if quoted is None else quoted.replace('""', '"')
        for quoted, plain in (match.groups() for match in _CELL.finditer(record))
    ]


def _json_rows(lines: Iterable[str]) -> Iterator[dict[str, str | None]]:
    """Yield the values by name: texts as they are, all else as JSON, with all digits of numbers."""
    from msgspec import Raw
    from msgspec.json import Decoder, decode

    decoder = Decoder(dict[str, Raw])

    def read(raw: Raw) -> str | None:
        text = bytes(raw).decode()
        return None if text == "null" else decode(text, type=str) if text[0] == '"' else text

    return ({name: read(raw) for name, raw in decoder.decode(line).items()} for line in lines)


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
