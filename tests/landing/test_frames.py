"""Arrow tables and DataFrames, against the rows of ``hook.run``."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openmarkets_provider import queries
from openmarkets_provider.exceptions import OpenmarketsInvalidResponse
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
from openmarkets_provider.landing import arrow
from openmarkets_provider.landing.frames import _to_floats, run_arrow, run_df
from openmarkets_provider.landing.layout import LOADED_AT, OTHER_FIELDS, Storage, layout_of
from openmarkets_provider.query.batch import Batch
from tests.support.queries import of_every_kind

EVERY = of_every_kind("2026-03-02", "2026-03-03", account="SBX0001", portfolio="SBX0001P")
WEEK = queries.time_series(["BHP", "CBA"], start="2026-03-02", end="2026-03-07")


class Answer:
    """A source that answers every query with the same batches."""

    def __init__(self, *batches: Batch) -> None:
        self._batches = batches

    def run(self, query: Any) -> Any:
        raise NotImplementedError

    def stream_columns(self, query: Any) -> Any:
        yield from self._batches


@pytest.mark.parametrize("name", EVERY)
def test_a_table_has_the_values_of_the_rows(openmarkets_sandbox, name: str):
    hook = OpenmarketsHook()
    table, rows = hook.run_arrow(EVERY[name]), hook.run(EVERY[name])
    columns = layout_of(EVERY[name]).columns
    assert table.column_names == [column.name for column in columns]
    assert rows
    for column in columns[:-2]:
        expected = [row[column.name] for row in rows]
        found = table.column(column.name).to_pylist()
        if column.storage is Storage.JSON:
            found = [None if text is None else json.loads(text) for text in found]
        assert found == expected, column.name


def test_the_types_are_those_of_the_documentation(openmarkets_sandbox):
    table = OpenmarketsHook().run_arrow(WEEK)
    kinds = {field.name: field.type for field in table.schema}
    assert kinds["close_price"] == pa.decimal128(18, 6)
    assert kinds["market_vwap"] == pa.decimal128(24, 12)
    assert kinds["total_value"] == pa.decimal128(28, 10)
    assert kinds["price_multiplier"] == pa.decimal128(18, 9)
    assert kinds["adjustment_factor"] == pa.decimal128(28, 18)
    assert kinds["time_series_date"] == pa.date32()
    assert kinds[LOADED_AT] == pa.timestamp("us", "UTC")


def test_a_table_without_rows_has_all_columns(openmarkets_sandbox):
    hook = OpenmarketsHook()
    sunday = queries.time_series("BHP", start="2026-03-07", end="2026-03-08")
    assert hook.run_arrow(sunday).schema == hook.run_arrow(WEEK).schema
    assert len(hook.run_df(sunday)) == 0


def test_batches_are_put_together(openmarkets_sandbox, monkeypatch):
    monkeypatch.setattr(arrow, "AT_ONCE", 7)
    sizes = [
        batch.num_rows
        for batch in OpenmarketsHook().stream_arrow(
            queries.time_series(["BHP", "CBA", "RIO"], start="2026-03-02", end="2026-03-07")
        )
    ]
    assert sizes == [10, 5]


def test_fields_that_the_schema_does_not_know_are_kept():
    accounts = {"account_code": ["1"], "account_name": ["One"], "account_designation": [None]}
    table = run_arrow(Answer(Batch({**accounts, "broker": ["X"]}), Batch(accounts)), queries.accounts())
    assert table.column(OTHER_FIELDS).to_pylist() == ['{"broker":"X"}', None]


def test_records_are_json(openmarkets_sandbox):
    table = OpenmarketsHook().run_arrow(queries.accounts(raw=True))
    assert table.column_names == ["record", LOADED_AT]
    assert "accountCode" in json.loads(table.column("record")[0].as_py())


def test_a_price_that_does_not_fit_is_refused():
    fitting = {column.name: [None] for column in layout_of(WEEK).columns[:-2]} | {"security_code": ["BHP"]}
    batch = Batch({**fitting, "close_price": [Decimal("1.0000001")]})
    with pytest.raises(
        OpenmarketsInvalidResponse,
        match=r"column close_price, row 1 \(security_code BHP, .*"
        r"'1.0000001' does not fit decimal\(18, 6\).*hook\.run hold it",
    ):
        run_arrow(Answer(batch), WEEK)


class TestPandas:
    def test_it_computes_at_once(self, openmarkets_sandbox):
        hook = OpenmarketsHook()
        bars, rows = hook.run_df(WEEK), hook.run(WEEK)
        assert bars["close_price"].dtype == "float64"
        assert bars["close_price"].tolist() == [float(row["close_price"]) for row in rows]
        assert bars["total_volume"].dtype == "Int64"
        assert bars["time_series_date"].dtype.kind == "M"
        assert bars["time_series_date"].dt.date.tolist() == [row["time_series_date"] for row in rows]
        assert str(bars[LOADED_AT].dtype) == "datetime64[ns, UTC]"
        assert bars.groupby("security_code")["close_price"].mean().index.tolist() == ["BHP", "CBA"]

    def test_times_are_utc(self, openmarkets_sandbox):
        hook = OpenmarketsHook()
        trades, rows = hook.run_df(EVERY["trades"]), hook.run(EVERY["trades"])
        assert str(trades["trade_date_time"].dtype) == "datetime64[ns, UTC]"
        assert trades["trade_date_time"].dt.to_pydatetime().tolist() == [row["trade_date_time"] for row in rows]

    def test_decimals_keep_all_digits(self, openmarkets_sandbox):
        hook = OpenmarketsHook()
        prices = hook.run_df(WEEK, prices="decimal")["market_vwap"].tolist()
        assert prices == [row["market_vwap"] for row in hook.run(WEEK)]
        assert {type(price) for price in prices} == {Decimal}

    def test_a_time_beyond_nanoseconds_is_kept(self):
        never = datetime(9999, 12, 31, tzinfo=UTC)
        fitting = {column.name: [None] for column in layout_of(EVERY["orders"]).columns[:-2]}
        frame = run_df(Answer(Batch({**fitting, "expiry_date_time": [never]})), EVERY["orders"])
        assert frame["expiry_date_time"][0] == pd.Timestamp(never)


class TestPolars:
    def test_it_computes_at_once(self, openmarkets_sandbox):
        hook = OpenmarketsHook()
        bars, rows = hook.run_df(WEEK, engine="polars"), hook.run(WEEK)
        assert bars.schema["close_price"] == pl.Float64
        assert bars.schema["time_series_date"] == pl.Date
        assert bars.schema[LOADED_AT] == pl.Datetime("us", "UTC")
        assert bars["close_price"].to_list() == [float(row["close_price"]) for row in rows]

    def test_decimals_keep_all_digits(self, openmarkets_sandbox):
        hook = OpenmarketsHook()
        prices = hook.run_df(WEEK, prices="decimal", engine="polars")["market_vwap"]
        assert prices.to_list() == [row["market_vwap"] for row in hook.run(WEEK)]


@settings(deadline=None)
@given(numbers=st.lists(st.decimals(-(10**11), 10**11, places=6), min_size=1))
def test_a_float_is_the_one_next_to_the_decimal(numbers: list[Decimal]):
    # Arrow's own cast is one off in the last bit for many.
    table = pa.table({"price": pa.array(numbers, pa.decimal128(18, 6))})
    assert _to_floats(table).column("price").to_pylist() == [float(number) for number in numbers]


@pytest.mark.parametrize(("argument", "value"), [("prices", "cents"), ("engine", "excel")])
def test_an_argument_that_is_none_of_the_allowed_ones_is_refused(argument: str, value: str):
    with pytest.raises(ValueError, match=f"^{argument} must be one of .*, not '{value}'"):
        run_df(Answer(), WEEK, **{argument: value})


@pytest.mark.parametrize(
    ("package", "call", "extra"),
    [
        ("pyarrow", "run_arrow(None, query)", "parquet"),
        ("pyarrow", "stream_arrow(None, query)", "parquet"),
        ("pandas", "run_df(None, query)", "pandas"),
        ("polars", "run_df(None, query, engine='polars')", "polars"),
    ],
)
def test_a_package_that_is_missing_is_named_with_its_extra(package: str, call: str, extra: str):
    code = f"""
import sys
sys.modules["{package}"] = None
from openmarkets_provider import queries
from openmarkets_provider.exceptions import OpenmarketsConfigurationError
from openmarkets_provider.landing.frames import run_arrow, run_df, stream_arrow
query = queries.accounts()
try:
    {call}
except OpenmarketsConfigurationError as error:
    print(error)
"""
    said = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert said == f"The package {package} is missing. Run: pip install 'airflow-provider-openmarkets[{extra}]'\n"
