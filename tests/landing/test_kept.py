from __future__ import annotations

import gzip
import io
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openmarkets_provider.landing.formats import FORMATS, FileFormat
from openmarkets_provider.landing.kept import select_kept
from openmarkets_provider.landing.layout import Column, Columns, Layout, Storage

COMPRESSIONS = {
    "parquet": (None, "snappy", "gzip", "zstd"),
    "csv": (None, "gzip", "zstd"),
    "jsonl": (None, "gzip", "zstd"),
}
ALL = [FileFormat(name, compression) for name in FORMATS for compression in COMPRESSIONS[name]]
KINDS = Layout("kinds", tuple(Column(storage.name.lower(), storage) for storage in Storage))
VALUES: dict[Storage, st.SearchStrategy[Any]] = {
    Storage.TEXT: st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20),
    Storage.INTEGER: st.integers(-(2**63), 2**63 - 1),
    Storage.DECIMAL: st.decimals(-(10**12), 10**12, places=6),
    Storage.BOOLEAN: st.booleans(),
    Storage.DATE: st.dates(date(1900, 1, 1)),
    Storage.TIME: st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    Storage.JSON: st.sampled_from(['{"a":[1.50,null],"b":"\\"x\\n"}', "[]", "0.10"]),
}
ROWS = st.lists(st.tuples(*(st.none() | VALUES[column.storage] for column in KINDS.columns)), max_size=30)
BARS = Layout(
    "bars",
    (
        Column("security_code", Storage.TEXT, key=True),
        Column("exchange", Storage.TEXT, key=True),
        Column("day", Storage.DATE, key=True),
        Column("price", Storage.DECIMAL),
    ),
)
DAY = date(2026, 3, 2)


def written(form: FileFormat, layout: Layout, columns: Columns) -> io.BytesIO:
    file = io.BytesIO()
    writer = form.open(file, layout)
    writer.write(columns)
    writer.close()
    return io.BytesIO(file.getvalue())


def columns_of(rows: list[tuple[Any, ...]], layout: Layout) -> Columns:
    return [list(values) for values in zip(*rows, strict=True)] if rows else [[] for _ in layout.columns]


def rows_of(batches: Any) -> list[tuple[Any, ...]]:
    return [row for columns in batches for row in zip(*columns, strict=True)]


def bar(code: str, days: int, price: str) -> tuple[Any, ...]:
    return code, "ASX", DAY + days * timedelta(days=1), Decimal(price)


@pytest.mark.parametrize("form", ALL, ids=str)
@settings(max_examples=20)
@given(rows=ROWS)
def test_rows_are_read_as_they_were_written(form: FileFormat, rows: list[tuple[Any, ...]]):
    found = rows_of(form.read(written(form, KINDS, columns_of(rows, KINDS)), KINDS))
    assert found == rows
    assert [[type(value) for value in row] for row in found] == [[type(value) for value in row] for row in rows]


@pytest.mark.parametrize("form", ALL, ids=str)
def test_many_rows_are_read_in_pieces(form: FileFormat):
    rows = [bar("BHP", number, "1.5") for number in range(20_000)]
    pieces = list(form.read(written(form, BARS, columns_of(rows, BARS)), BARS))
    assert len(pieces) > 1
    assert rows_of(pieces) == rows


@pytest.mark.parametrize("form", ALL, ids=str)
def test_a_column_that_an_older_file_lacks_is_none(form: FileFormat):
    file = written(form, BARS, columns_of([bar("BHP", 0, "1.5")], BARS))
    newer = Layout("bars", (*BARS.columns[:2], Column("currency", Storage.TEXT), *BARS.columns[2:]))
    assert rows_of(form.read(file, newer)) == [("BHP", "ASX", None, DAY, Decimal("1.5"))]


@pytest.mark.parametrize("form", ALL, ids=str)
def test_what_is_no_such_file_is_an_error(form: FileFormat):
    content = b'security_code\n"what\n'
    file = io.BytesIO(gzip.compress(content) if form.compression == "gzip" else content)
    with pytest.raises(Exception):  # noqa: B017, PT011 (whatever the reader raises)
        list(form.read(file, BARS))


def test_rows_of_some_securities_stay_whatever_their_data_source_and_case():
    stored = [bar("BHP", 0, "1"), bar("cba", 0, "2"), bar("CBA", 1, "3"), bar("RIO", 0, "4")]
    kept = select_kept([columns_of(stored, BARS)], [], BARS, {"CBA.ASX@TM"})
    assert rows_of(kept) == stored[1:3]


@pytest.mark.parametrize("securities", [None, {"BHP.ASX@TM"}], ids=["all", "some"])
def test_a_new_row_replaces_the_one_with_its_key(securities: Any):
    stored = [bar("BHP", 0, "1"), bar("BHP", 1, "2")]
    kept = select_kept([columns_of(stored, BARS)], [columns_of([bar("BHP", 1, "3")], BARS)], BARS, securities)
    assert rows_of(kept) == stored[:1]
