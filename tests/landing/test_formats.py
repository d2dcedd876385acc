from __future__ import annotations

import csv
import gc
import gzip
import io
import json
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Context, Decimal, Inexact, InvalidOperation, localcontext
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from openmarkets_provider import queries
from openmarkets_provider.exceptions import OpenmarketsConfigurationError, OpenmarketsError
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
from openmarkets_provider.landing.arrow import to_arrays
from openmarkets_provider.landing.formats import FORMATS, FileFormat, choose_format
from openmarkets_provider.landing.layout import LOADED_AT, OTHER_FIELDS, Column, Layout, Storage, layout_of
from tests.support.batches import values_of
from tests.support.queries import of_every_kind

EVERY = of_every_kind("2026-03-02", "2026-03-03", account="SBX0001", portfolio="SBX0001P")
COMPRESSIONS = {
    "parquet": (None, "snappy", "gzip", "zstd"),
    "csv": (None, "gzip", "zstd"),
    "jsonl": (None, "gzip", "zstd"),
}
ALL = [FileFormat(name, compression) for name in FORMATS for compression in COMPRESSIONS[name]]
PLAIN = [FileFormat(name, None) for name in FORMATS]
SQL_TYPES = {
    Storage.TEXT: "VARCHAR",
    Storage.INTEGER: "BIGINT",
    Storage.BOOLEAN: "BOOLEAN",
    Storage.DATE: "DATE",
    Storage.TIME: "TIMESTAMP WITH TIME ZONE",
    Storage.JSON: "VARCHAR",
}
ARROW_TYPES = {
    Storage.TEXT: pa.string(),
    Storage.INTEGER: pa.int64(),
    Storage.BOOLEAN: pa.bool_(),
    Storage.DATE: pa.date32(),
    Storage.TIME: pa.timestamp("us", tz="UTC"),
    Storage.JSON: pa.string(),
}


def arrow_type(column: Column) -> pa.DataType:
    return pa.decimal128(*column.precision) if column.storage is Storage.DECIMAL else ARROW_TYPES[column.storage]


KINDS = Layout(
    "kinds",
    (
        Column("id", Storage.TEXT, key=True),
        Column("text", Storage.TEXT),
        Column("integer", Storage.INTEGER, "count"),
        Column("decimal", Storage.DECIMAL, "main unit"),
        Column("boolean", Storage.BOOLEAN),
        Column("date", Storage.DATE, "exchange date"),
        Column("time", Storage.TIME, "UTC"),
        Column("json", Storage.JSON),
        Column(OTHER_FIELDS, Storage.JSON),
    ),
    "time",
)
"""One column of each kind."""
NOW = datetime(2026, 3, 2, 12, 30, 15, 123456, tzinfo=UTC)


def ids(form: FileFormat) -> str:
    return f"{form.name}-{form.compression}"


def written(form: FileFormat, layout: Layout, batches: Sequence[Sequence[Any]]) -> bytes:
    file = io.BytesIO()
    writer = form.open(file, layout)
    for batch in batches:
        writer.write(values_of(layout, batch))
    writer.close()
    assert not file.closed
    return file.getvalue()


def row(number: int, **values: Any) -> dict[str, Any]:
    return {column.name: None for column in KINDS.columns[:-1]} | {"id": str(number)} | values


def unpacked(form: FileFormat, data: bytes) -> bytes:
    if form.compression == "gzip":
        return gzip.decompress(data)
    return zstandard.ZstdDecompressor().decompressobj().decompress(data) if form.compression == "zstd" else data


def read(form: FileFormat, layout: Layout, data: bytes) -> list[dict[str, Any]]:
    """Read a file with what is not ours; columns of JSON as their JSON."""
    if form.name == "parquet":
        table = pq.read_table(io.BytesIO(data))
        assert [(field.name, field.type) for field in table.schema] == [
            (column.name, arrow_type(column)) for column in layout.columns
        ]
        rows = table.to_pylist()
        return [_converted(layout, each, {Storage.JSON: exact_json}) for each in rows]
    lines = unpacked(form, data).decode()
    if form.name == "csv":
        header, *cells = csv.reader(io.StringIO(lines, newline=""), strict=True)
        assert header == [column.name for column in layout.columns]
        from_text = {
            Storage.INTEGER: int,
            Storage.DECIMAL: Decimal,
            Storage.BOOLEAN: {"true": True, "false": False}.__getitem__,
            Storage.DATE: date.fromisoformat,
            Storage.TIME: datetime.fromisoformat,
            Storage.JSON: exact_json,
        }
        return [
            _converted(layout, {name: text or None for name, text in zip(header, each, strict=True)}, from_text)
            for each in cells
        ]
    objects = [exact_json(line) for line in lines.split("\n")[:-1]]
    assert lines == "" or lines.endswith("\n")
    assert all(list(each) == [column.name for column in layout.columns] for each in objects)
    from_text = {Storage.DATE: date.fromisoformat, Storage.TIME: datetime.fromisoformat, Storage.DECIMAL: Decimal}
    return [_converted(layout, each, from_text) for each in objects]


def _converted(layout: Layout, found: dict[str, Any], convert: dict[Storage, Any]) -> dict[str, Any]:
    made = {}
    for column in layout.columns:
        value = found[column.name]
        made[column.name] = value if value is None else convert.get(column.storage, lambda same: same)(value)
    return made


def exact_json(text: str) -> Any:
    return json.loads(text, parse_float=Decimal)


def stored(layout: Layout, row: dict[str, Any]) -> dict[str, Any]:
    """Return what a row becomes: what the schema does not know is in one column."""
    known = {column.name: row[column.name] for column in layout.columns if column.name not in (LOADED_AT, OTHER_FIELDS)}
    other = {name: value for name, value in row.items() if name not in known and value is not None}
    added = {LOADED_AT: layout.loaded_at, OTHER_FIELDS: other or None}
    return {**known, **{column.name: added[column.name] for column in layout.columns if column.name in added}}


def seen(form: FileFormat, layout: Layout, row: dict[str, Any]) -> dict[str, Any]:
    """Return a row as Python's reader returns it: it drops CSV quotes, which distinguish empty text from null."""
    texts = {column.name for column in layout.columns if column.storage is Storage.TEXT and form.name == "csv"}
    return {name: None if name in texts and value == "" else value for name, value in row.items()}


def as_double(value: Any) -> Any:
    return float(value) if type(value) is Decimal else value


def kinds_of(rows: Any) -> list[dict[str, type]]:
    return [{name: type(value) for name, value in each.items()} for each in rows]


def sql_type(form: FileFormat, column: Column) -> str:
    in_json = {Storage.DECIMAL: "DOUBLE", Storage.JSON: "JSON"} if form.name == "jsonl" else {}
    if column.storage in in_json:
        return in_json[column.storage]
    digits, decimals = column.precision
    return f"DECIMAL({digits},{decimals})" if column.storage is Storage.DECIMAL else SQL_TYPES[column.storage]


def query_of(path: Path, form: FileFormat, layout: Layout) -> str:
    """Return what DuckDB calls the file's rows; types are given where the file has none."""
    columns = ", ".join(f"'{column.name}': '{sql_type(form, column)}'" for column in layout.columns)
    return {
        "parquet": f"read_parquet('{path}')",
        "csv": f"read_csv('{path}', header=true, allow_quoted_nulls=false, columns={{{columns}}})",
        "jsonl": f"read_json('{path}', format='newline_delimited', columns={{{columns}}})",
    }[form.name]


class TestChoosing:
    @pytest.mark.parametrize(
        ("name", "compression", "file_name", "expected", "suffix"),
        [
            ("parquet", "infer", None, "snappy", ".parquet"),
            ("parquet", "infer", "s3://bucket/bars.parquet", "snappy", ".parquet"),
            ("parquet", None, "bars.pq", None, ".parquet"),
            ("parquet", "zstd", "bars", "zstd", ".parquet"),
            ("parquet", "gzip", "bars.snap.2026", "gzip", ".parquet"),
            ("csv", "infer", None, None, ".csv"),
            ("csv", "infer", "bars.csv", None, ".csv"),
            ("csv", "infer", "BARS.CSV.GZ", "gzip", ".csv.gz"),
            ("csv", "infer", "gs://bucket/v1.parquet/bars.zst", "zstd", ".csv.zst"),
            ("csv", "gzip", None, "gzip", ".csv.gz"),
            ("csv", "zstd", "bars.csv.zst", "zstd", ".csv.zst"),
            ("csv", "gzip", "bars.txt", "gzip", ".csv.gz"),
            ("csv", None, "no.json/end", None, ".csv"),
            ("jsonl", "infer", "bars.ndjson", None, ".jsonl"),
            ("jsonl", "infer", "bars.json.gz", "gzip", ".jsonl.gz"),
            ("jsonl", "infer", "", None, ".jsonl"),
            # What a template gives is not known yet.
            ("csv", "infer", "bars_{{ ds }}.csv.gz", "gzip", ".csv.gz"),
            ("csv", "gzip", "bars.json.{{ end }}", "gzip", ".csv.gz"),
            ("csv", "infer", "{{ params.name }}.json/{% if x %}.parquet{% endif %}", None, ".csv"),
            ("jsonl", "zstd", "{{ params.folder }}/x", "zstd", ".jsonl.zst"),
        ],
    )
    def test_what_fits_is_chosen(self, name, compression, file_name, expected, suffix):
        form = choose_format(name, compression, file_name)
        assert form == (name, expected)
        assert form.suffix == suffix

    @pytest.mark.parametrize(
        ("name", "compression", "file_name", "message"),
        [
            ("xlsx", "infer", None, r"format must be one of parquet, csv, jsonl, not 'xlsx'"),
            (None, "infer", None, r"format must be one of parquet, csv, jsonl, not None"),
            ("csv", "bz2", None, r"compression must be None or one of infer, gzip, zstd, not 'bz2'"),
            ("csv", "snappy", None, r"compression must be None or one of infer, gzip, zstd, not 'snappy'"),
            ("parquet", "lz4", None, r"compression must be None or one of infer, gzip, zstd, snappy, not 'lz4'"),
            ("parquet", True, None, r"compression must be None or one of .*, not True"),
            ("csv", "infer", "bars.parquet", r"destination: 'bars.parquet' ends in .parquet, but format is 'csv'"),
            ("csv", "infer", "bars.json.gz", r"ends in .json, but format is 'csv'"),
            ("parquet", "infer", "bars.csv", r"ends in .csv, but format is 'parquet'"),
            ("jsonl", "infer", "{{ ds }}.csv", r"ends in .csv, but format is 'jsonl'"),
            ("parquet", "infer", "bars.parquet.gz", r"compressed inside .* Remove .gz, and set compression='gzip'"),
            ("parquet", "zstd", "bars.zst", r"Remove .zst"),
            ("csv", None, "bars.csv.gz", r"ends in .gz, but compression is None. End the name in .csv, or remove"),
            (
                "csv",
                "zstd",
                "bars.csv.gz",
                r"ends in .gz, but compression is 'zstd'. End the name in .csv.zst, or remove",
            ),
            (
                "jsonl",
                "gzip",
                "s3://b/bars.jsonl",
                r"ends in .jsonl, but compression is 'gzip'. End the name in .jsonl.gz",
            ),
            ("csv", "infer", "bars.csv.zip", r"ends in .zip, which is not a supported format"),
            ("parquet", "infer", "bars.orc", r"ends in .orc, which is not a supported format"),
        ],
    )
    def test_what_does_not_fit_is_refused_in_words_that_help(self, name, compression, file_name, message):
        with pytest.raises(ValueError, match=message):
            choose_format(name, compression, file_name)


class TestEveryQuery:
    @pytest.fixture
    def answers(self, openmarkets_sandbox) -> Iterator[dict[str, list[dict[str, Any]]]]:
        hook = OpenmarketsHook()
        yield {name: hook.run(query) for name, query in EVERY.items()}
        hook.close()

    @pytest.mark.parametrize("form", ALL, ids=ids)
    def test_its_rows_come_back_with_their_values_and_types(self, form: FileFormat, answers):
        for name, query in EVERY.items():
            layout, rows = layout_of(query, NOW), answers[name]
            assert rows
            found = read(form, layout, written(form, layout, [rows]))
            expected = [seen(form, layout, stored(layout, each)) for each in rows]
            assert found == expected
            assert kinds_of(found) == kinds_of(expected)

    @pytest.mark.parametrize("form", ALL, ids=ids)
    def test_duckdb_reads_them(self, form: FileFormat, answers, tmp_path: Path):
        for name, query in EVERY.items():
            layout, rows = layout_of(query, NOW), answers[name]
            path = tmp_path / f"{name}{form.suffix}"
            path.write_bytes(written(form, layout, [rows]))
            relation = duckdb.sql(f"FROM {query_of(path, form, layout)}")
            assert relation.columns == [column.name for column in layout.columns]
            assert list(map(str, relation.types)) == [sql_type(form, column) for column in layout.columns]
            found = [dict(zip(relation.columns, each, strict=True)) for each in relation.fetchall()]
            found = [_converted(layout, each, {Storage.JSON: exact_json}) for each in found]
            expected = [stored(layout, each) for each in rows]
            if form.name == "jsonl":
                # The digits are in the file, but DuckDB takes every number of JSON with a point for a double.
                expected = [{name: as_double(value) for name, value in each.items()} for each in expected]
            assert found == expected

    @pytest.mark.parametrize("form", ALL, ids=ids)
    def test_records_without_a_schema_come_back_as_the_api_sent_them(self, form: FileFormat, openmarkets_sandbox):
        hook = OpenmarketsHook()
        for query in (queries.quotes(["BHP", "RIO"], raw=True), queries.request("oms", "GET", "accounts/v1")):
            layout, sent = layout_of(query, NOW), hook.run(query)
            data = written(form, layout, hook.stream(query))
            if form.name == "jsonl":
                found = [json.loads(line) for line in unpacked(form, data).splitlines()]
            elif form.name == "csv":
                header, *lines = csv.reader(io.StringIO(unpacked(form, data).decode(), newline=""))
                assert header == ["record", "loaded_at"]
                assert {loaded_at for _, loaded_at in lines} == {NOW.isoformat()}
                found = [json.loads(line) for line, _ in lines]
            else:
                found = list(map(json.loads, pq.read_table(io.BytesIO(data)).to_pydict()["record"]))
            assert found == sent
        hook.close()

    @pytest.mark.parametrize("form", ALL, ids=ids)
    def test_a_result_without_rows_has_all_columns(self, form: FileFormat, openmarkets_sandbox):
        query = queries.time_series("BHP", start="2026-03-07", end="2026-03-09")
        hook = OpenmarketsHook()
        batches = list(hook.stream(query))
        assert batches == []
        for batches in ([], [[]]):
            data = written(form, layout_of(query), batches)
            assert read(form, layout_of(query), data) == []
        for each in EVERY.values():
            layout = layout_of(each)
            assert read(form, layout, written(form, layout, [])) == []
        if form.name == "jsonl":
            assert unpacked(form, data) == b""
        hook.close()

    @pytest.mark.parametrize("form", ALL, ids=ids)
    def test_a_field_that_is_new_in_the_second_batch_changes_no_column(self, form: FileFormat, openmarkets_sandbox):
        bar = {"timeSeriesDate": "2026-03-02", "closePrice": 4512, "vwapNote": 'a "b",\n', "swings": [1, 2.50]}
        openmarkets_sandbox.fault(target="/market-data/pricing/timeseries/RIO.ASX@TM", kind="body", body=[bar])
        query = queries.time_series(["BHP", "RIO", "CBA"], start="2026-03-02", end="2026-03-03")
        hook = OpenmarketsHook()
        batches = list(hook.stream(query))
        hook.close()
        assert [len(batch) for batch in batches] == [1, 1, 1]
        assert len({len(batch[0]) for batch in batches}) == 2
        found = read(form, layout_of(query), written(form, layout_of(query), batches))
        assert [each["security_code"] for each in found] == ["BHP", "RIO", "CBA"]
        assert [each[OTHER_FIELDS] for each in found] == [
            None,
            {"vwap_note": 'a "b",\n', "swings": [1, Decimal("2.5")]},
            None,
        ]
        assert found[1]["close_price"] == Decimal("45.12")


DECIMALS = st.builds(
    lambda sign, digits, exponent: Decimal((sign, digits, exponent)),
    st.integers(0, 1),
    st.lists(st.integers(0, 9), min_size=1, max_size=20).map(tuple),
    st.integers(-18, 0),
)
"""All of them fit 38 digits, 18 of them after the point."""
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | DECIMALS | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.text(),
            "text": st.none()
            | st.text()
            | st.sampled_from(["\r", "\n", '"', ",", "\x00", "NULL", "nan", " ", "é" * 9]),
            "integer": st.none() | st.integers(-(2**63), 2**63 - 1),
            "decimal": st.none() | DECIMALS,
            "boolean": st.none() | st.booleans(),
            "date": st.none() | st.dates(),
            "time": st.none() | st.datetimes(timezones=st.just(UTC)),
            "json": st.none() | JSON_VALUES,
        }
    ),
    max_size=12,
)
BATCHES = st.lists(ROWS, max_size=4)


class TestAnyRows:
    @pytest.mark.parametrize("form", PLAIN, ids=ids)
    @settings(deadline=None)
    @given(batches=BATCHES)
    def test_they_come_back(self, form: FileFormat, batches):
        rows = [each for batch in batches for each in batch]
        found = read(form, KINDS, written(form, KINDS, batches))
        assert found == [seen(form, KINDS, {**each, OTHER_FIELDS: None}) for each in rows]

    @pytest.mark.parametrize("form", ALL, ids=ids)
    @settings(deadline=None, max_examples=30)
    @given(batches=BATCHES)
    def test_the_same_rows_give_the_same_bytes_however_they_are_split(self, form: FileFormat, batches):
        rows = [each for batch in batches for each in batch]
        data = written(form, KINDS, [rows])
        if form.compression is None or form.name == "parquet":
            assert data == written(form, KINDS, batches) == written(form, KINDS, [[each] for each in rows])
        assert data == written(form, KINDS, [rows])

    @settings(deadline=None)
    @given(number=st.decimals(allow_nan=False, allow_infinity=False) | DECIMALS)
    def test_csv_and_json_lines_hold_every_digit_of_a_number(self, number: Decimal):
        (line,) = written(FileFormat("csv", None), KINDS, [[row(1, decimal=number)]]).decode().split("\n")[1:-1]
        text = line.split(",")[3]
        assert "E" not in text
        assert Decimal(text).compare_total(number) == 0 or (number.as_tuple().exponent > 0 and Decimal(text) == number)
        data = written(FileFormat("jsonl", None), KINDS, [[row(1, decimal=number)]])
        found = json.loads(data, parse_float=Decimal, parse_int=Decimal)["decimal"]
        assert found.compare_total(number) == 0

    @settings(deadline=None)
    @given(numbers=st.lists(st.none() | st.decimals(allow_nan=False, allow_infinity=False) | DECIMALS, min_size=1))
    def test_parquet_holds_every_digit_of_a_number_or_refuses_it(self, numbers):
        context = Context(prec=38, traps=[InvalidOperation, Inexact])
        rows = [row(index, decimal=number) for index, number in enumerate(numbers)]
        try:
            expected = [
                None if number is None else number.quantize(Decimal("1E-18"), context=context) for number in numbers
            ]
        except (InvalidOperation, Inexact):
            with pytest.raises(OpenmarketsError, match="does not fit decimal"):
                written(FileFormat("parquet", None), KINDS, [rows])
            return
        data = written(FileFormat("parquet", None), KINDS, [rows])
        assert pq.read_table(io.BytesIO(data)).to_pydict()["decimal"] == expected


class TestCsv:
    def test_a_file_as_it_is(self):
        rows = [
            row(1, text='say "no",\r\nplease', integer=-5, decimal=Decimal("1E+3"), boolean=True, json={"a": "b,c"}),
            row(2, text="", decimal=Decimal("0.10"), boolean=False, date=date(2026, 3, 2), extra=Decimal("1.50")),
            row(3, text="a\rb", time=datetime(2026, 3, 2, 1, 2, 3, tzinfo=UTC), json=[]),
            row(4, time=datetime(2026, 3, 2, 1, 2, 3, 40, tzinfo=UTC), decimal=Decimal("-1E-9"), json=""),
        ]
        assert written(FileFormat("csv", None), KINDS, [[each] for each in rows]).decode() == (
            "id,text,integer,decimal,boolean,date,time,json,other_fields\n"
            '1,"say ""no"",\r\nplease",-5,1000,true,,,"{""a"":""b,c""}",\n'
            '2,"",,0.10,false,2026-03-02,,,"{""extra"":1.50}"\n'
            '3,"a\rb",,,,,2026-03-02T01:02:03+00:00,[],\n'
            '4,,,-0.000000001,,,2026-03-02T01:02:03.000040+00:00,"""""",\n'
        )

    @settings(deadline=None)
    @given(text=st.none() | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
    def test_duckdb_tells_what_is_empty_from_what_is_not_there(self, tmp_path_factory, text):
        path = tmp_path_factory.getbasetemp() / "texts.csv"
        path.write_bytes(written(FileFormat("csv", None), KINDS, [[row(1, text=text), row(2, text="x")]]))
        columns = ", ".join(f"'{column.name}': 'VARCHAR'" for column in KINDS.columns)
        options = f"header=true, columns={{{columns}}}, allow_quoted_nulls=false, quote='\"', escape='\"'"
        assert duckdb.sql(f"SELECT text FROM read_csv('{path}', {options})").fetchall() == [(text,), ("x",)]

    def test_the_decimal_context_of_the_user_changes_nothing(self):
        for form in PLAIN[:2]:
            rows = [row(1, decimal=Decimal("1E+5")), row(2, decimal=Decimal("-1.50E-9"))]
            data = written(form, KINDS, [rows])
            with localcontext(prec=2, capitals=0, traps=[Inexact]):
                assert written(form, KINDS, [rows]) == data

    @pytest.mark.parametrize("number", ["1E+999999999999", "-1E-999999999999", "1E+1001"])
    def test_a_number_that_would_fill_the_memory_is_refused(self, number: str):
        with pytest.raises(OpenmarketsError, match=r"column decimal, row 3 \(id 7\): '-?1E") as caught:
            written(
                FileFormat("csv", None),
                KINDS,
                [[row(5), row(6, decimal=Decimal(1))], [row(7, decimal=Decimal(number))]],
            )
        assert "Use JSON lines" in str(caught.value)
        data = written(FileFormat("jsonl", None), KINDS, [[row(7, decimal=Decimal(number))]])
        assert f'"decimal":{number},'.encode() in data


class TestJsonLines:
    def test_a_file_as_it_is(self):
        rows = [
            row(1, text="é\n\0", integer=2**70, decimal=Decimal("1E+3"), boolean=True, json={"a": Decimal("1.10")}),
            row(2, date=date(2026, 3, 2), time=datetime(2026, 3, 2, 1, 2, 3, tzinfo=UTC), json="", extra=0),
        ]
        assert written(FileFormat("jsonl", None), KINDS, [[each] for each in rows]).decode() == (
            '{"id":"1","text":"é\\n\\u0000","integer":1180591620717411303424,"decimal":1E+3,"boolean":true,'
            '"date":null,"time":null,"json":{"a":1.10},"other_fields":null}\n'
            '{"id":"2","text":null,"integer":null,"decimal":null,"boolean":null,'
            '"date":"2026-03-02","time":"2026-03-02T01:02:03Z","json":"","other_fields":{"extra":0}}\n'
        )


class TestParquet:
    FORM = FileFormat("parquet", "snappy")

    def test_units_stand_in_the_schema(self):
        schema = pq.read_schema(io.BytesIO(written(self.FORM, KINDS, [])))
        assert schema.field("decimal").metadata[b"unit"] == b"main unit"
        assert schema.field("time").metadata[b"unit"] == b"UTC"
        assert b"unit" not in (schema.field("text").metadata or {})

    @pytest.mark.parametrize("compression", COMPRESSIONS["parquet"])
    def test_the_codec_is_the_one_that_was_named(self, compression):
        data = written(FileFormat("parquet", compression), KINDS, [[row(1)]])
        codec = pq.read_metadata(io.BytesIO(data)).row_group(0).column(0).compression
        assert codec == (compression or "uncompressed").upper()

    @pytest.mark.parametrize("size", [1000, 4096, 5000, 32_768, 40_000, 98_304])
    def test_row_groups_come_as_the_rows_do_and_lose_none(self, size: int):
        rows = [row(number, integer=number if number % 3 else None) for number in range(98_304 + 17)]
        file = io.BytesIO()
        writer = self.FORM.open(file, KINDS)
        sizes = []
        for start in range(0, len(rows), size):
            writer.write(values_of(KINDS, rows[start : start + size]))
            sizes.append(file.tell())
        assert sizes == sorted(sizes)
        if size < 32_768:
            assert len(set(sizes)) >= 3
        writer.close()
        metadata = pq.read_metadata(file)
        assert [metadata.row_group(each).num_rows for each in range(metadata.num_row_groups)] == [*[32_768] * 3, 17]
        found = pq.read_table(file).to_pydict()
        assert found["id"] == [each["id"] for each in rows]
        assert found["integer"] == [each["integer"] for each in rows]
        assert file.getvalue() == written(self.FORM, KINDS, [rows])

    def test_zeros_at_the_end_of_a_number_make_it_no_longer(self):
        zeros = Decimal("1.100000000000000000000000")
        data = written(self.FORM, KINDS, [[row(1, decimal=zeros), row(2, decimal=Decimal(2))]])
        assert pq.read_table(io.BytesIO(data)).to_pydict()["decimal"] == [Decimal("1.1"), Decimal(2)]

    @pytest.mark.parametrize(
        ("column", "value", "problem"),
        [
            (
                "decimal",
                Decimal("1E+20"),
                r"'1E\+20' does not fit decimal\(38, 18\): it has more than 20 digits before",
            ),
            (
                "decimal",
                Decimal("0.1234567890123456785"),
                r"or 18 after it\. format='csv', 'jsonl' and hook\.run hold it",
            ),
            ("decimal", Decimal("1E+999999999999"), r"'1E\+999999999999' does not fit decimal\(38, 18\)"),
            ("decimal", Decimal("NaN"), r"'NaN' does not fit decimal\(38, 18\)"),
            (
                "integer",
                2**63,
                r"'9223372036854775808' does not fit 64 bits. format='csv', 'jsonl' and hook\.run hold it",
            ),
            ("integer", -(2**63) - 1, r"'-9223372036854775809' does not fit 64 bits"),
            ("text", "a\ud800", r"can't be stored"),
        ],
    )
    def test_what_does_not_fit_is_refused_and_its_row_named(self, column: str, value, problem: str):
        rows = [row(number, **{column: None}) for number in range(10_000)]
        rows[7001][column] = value
        rows[9999][column] = value
        with pytest.raises(
            OpenmarketsError, match=rf"^kinds: column {column}, row 7002 \(id 7001\): .*{problem}"
        ) as caught:
            written(self.FORM, KINDS, [rows[:4500], rows[4500:]])
        assert not caught.value.transient

    @pytest.mark.parametrize("place", [9_000, 14_999])
    def test_the_row_is_counted_from_the_first_of_the_file_whatever_was_converted_before(self, place: int):
        rows = [row(number, integer=2**63 if number == place else number) for number in range(15_000)]
        # The writer converts the first 9,000 rows before the others are there.
        with pytest.raises(OpenmarketsError, match=rf"^kinds: column integer, row {place + 1} \(id {place}\): "):
            written(self.FORM, KINDS, [rows[:9_000], rows[9_000:]])

    @pytest.mark.parametrize("number", ["1E+30", "1E-30", "123456789012345678901", "-12345678901234567890.5"])
    def test_whether_a_number_fits_is_not_left_to_arrow(self, number: str):
        # Arrow 17 reads 672443225819892997682681373220 as 672443225820.675543742469373952.
        with pytest.raises(ValueError, match="closer look"):
            to_arrays([KINDS.columns[3]], [[[Decimal(1), None], [Decimal(number)]]])
        with pytest.raises(ValueError, match="closer look"):
            to_arrays([KINDS.columns[3]], [[[Decimal(1)], [Decimal(number)]]])
        (numbers,) = to_arrays([KINDS.columns[3]], [[[Decimal("-1234567890123456789"), None]]])
        assert numbers.to_pylist() == [Decimal("-1234567890123456789"), None]

    def test_pandas_is_not_imported(self):
        code = """
import io, sys
from datetime import UTC, date, datetime
from decimal import Decimal
from openmarkets_provider.landing.formats import choose_format
from openmarkets_provider.landing.layout import Column, Layout, Storage
from openmarkets_provider.query.batch import Batch
values = dict(TEXT="a", INTEGER=1, DECIMAL=Decimal("11." + 18 * "1"), BOOLEAN=True, DATE=date.today(),
              TIME=datetime.now(UTC), JSON=[])
layout = Layout("all", (*[Column(name, Storage[name]) for name in values], Column("other_fields", Storage.JSON)))
writer = choose_format("parquet", "infer", None).open(io.BytesIO(), layout)
rows = [values, dict.fromkeys(values), {**values, "INTEGER": 2, "DECIMAL": Decimal(2)}]
columns = {name: [row[name] for row in rows] * 5000 for name in values}
writer.write(layout.values(Batch({**columns, "more": [None, None, 1] * 5000})))
writer.close()
print("pandas" in sys.modules, "pyarrow" in sys.modules)
"""
        assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "True"]


class TestEnding:
    # Plain text has no end, and a writer of Parquet that is discarded completes its file, which is not published.
    @pytest.mark.parametrize("form", [form for form in ALL if form.name != "parquet" and form.compression], ids=ids)
    @pytest.mark.parametrize("count", [1, 40_000])
    def test_a_writer_that_is_given_up_completes_nothing(self, form: FileFormat, count: int):
        file = io.BytesIO()
        writer = form.open(file, KINDS)
        writer.write(values_of(KINDS, [row(number, text=str(number**7)) for number in range(count)]))
        before = file.getvalue()
        writer.discard()
        del writer
        gc.collect()
        assert file.getvalue() == before
        assert not is_whole(form, before)
        assert is_whole(form, written(form, KINDS, [[row(1)]]))

    @pytest.mark.parametrize("form", ALL, ids=ids)
    def test_a_file_that_is_closed_is_no_concern_of_a_writer_that_was_discarded(self, form: FileFormat):
        file = io.BytesIO()
        writer = form.open(file, KINDS)
        writer.write(values_of(KINDS, [row(1)]))
        writer.discard()
        file.close()
        del writer
        gc.collect()

    @pytest.mark.parametrize("form", ALL, ids=ids)
    def test_a_full_disk_is_an_error_and_stays_one(self, form: FileFormat):
        rows = [row(number, text=str(number**9)) for number in range(40_000)]
        with open("/dev/full", "wb", buffering=0) as file:
            with pytest.raises(OSError, match="No space left on device"):
                written_to(file, form, [rows])
            gc.collect()

    @pytest.mark.parametrize("name", ["csv", "jsonl"])
    def test_gzip_tells_neither_time_nor_name(self, name: str, tmp_path: Path):
        path = tmp_path / "some-name.gz"
        with path.open("wb") as file:
            written_to(file, FileFormat(name, "gzip"), [[row(1)]])
        flags_and_time = path.read_bytes()[3:8]
        assert flags_and_time == bytes(5)


def is_whole(form: FileFormat, data: bytes) -> bool:
    if form.compression == "gzip":
        inflate: Any = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    else:
        inflate = zstandard.ZstdDecompressor().decompressobj()
    inflate.decompress(data)
    return bool(inflate.eof)


def written_to(file: Any, form: FileFormat, batches: Sequence[Sequence[Any]]) -> None:
    writer = form.open(file, KINDS)
    try:
        for batch in batches:
            writer.write(values_of(KINDS, batch))
        writer.close()
    finally:
        writer.discard()


class TestMissingPackages:
    def test_pyarrow_is_named_with_the_way_to_install_it(self, monkeypatch):
        monkeypatch.delitem(sys.modules, "openmarkets_provider.landing.parquet", raising=False)
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        form = choose_format("parquet", "infer", None)
        with pytest.raises(
            OpenmarketsConfigurationError, match=r"pip install 'airflow-provider-openmarkets\[parquet\]'"
        ):
            form.open(io.BytesIO(), KINDS)
        assert written(FileFormat("csv", None), KINDS, [[row(1)]])

    def test_zstandard_is_named_with_the_way_to_install_it_where_python_lacks_zstd(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "zstandard", None)
        form = choose_format("csv", "zstd", None)
        if sys.version_info < (3, 14):
            with pytest.raises(
                OpenmarketsConfigurationError, match=r"pip install 'airflow-provider-openmarkets\[zstd\]'"
            ):
                form.open(io.BytesIO(), KINDS)
        else:
            assert written(form, KINDS, [[row(1)]])
        assert written(FileFormat("parquet", "zstd"), KINDS, [[row(1)]])

    def test_a_dag_file_that_names_a_format_imports_neither(self):
        heavy = "{'pyarrow', 'zstandard', 'msgspec'}"
        code = f"import sys, openmarkets_provider.landing.formats; print(sys.modules.keys() & {heavy})"
        assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


@pytest.mark.parametrize("form", PLAIN, ids=ids)
def test_times_of_another_zone_are_the_same_moment(form: FileFormat):
    from zoneinfo import ZoneInfo

    time = datetime(2026, 3, 2, 10, tzinfo=ZoneInfo("Australia/Sydney"))
    assert read(form, KINDS, written(form, KINDS, [[row(1, time=time)]]))[0]["time"] == time
    assert time.astimezone(UTC) == datetime(2026, 3, 1, 23, tzinfo=UTC)
    assert timedelta(hours=11) == time.utcoffset()
