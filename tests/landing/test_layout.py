from __future__ import annotations

import json
from datetime import UTC, date, datetime
from decimal import Decimal

import pytest

from openmarkets_provider import queries
from openmarkets_provider.exceptions import OpenmarketsInvalidResponse
from openmarkets_provider.landing.layout import LOADED_AT, OTHER_FIELDS, Storage, layout_of
from openmarkets_provider.query.batch import RECORD
from tests.support.batches import values_of
from tests.support.queries import SCHEMAS, of_every_kind

EVERY = of_every_kind("2026-03-02", "2026-03-03")
PYTHON_TYPES = {
    Storage.TEXT: "str",
    Storage.INTEGER: "int",
    Storage.DECIMAL: "Decimal",
    Storage.BOOLEAN: "bool",
    Storage.DATE: "date",
    Storage.TIME: "datetime",
    Storage.JSON: "any",
}


NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)


def accounts(*rows: dict) -> list[dict]:
    names = ("account_code", "account_name", "account_designation")
    return [dict.fromkeys(names) | row for row in rows]


PRECISIONS = {
    "price": (18, 6),
    "value": (28, 10),
    "multiplier": (18, 9),
    "quantity": (24, 6),
    "number": (28, 18),
}
AVERAGES = ("market_vwap", "average_price", "average_price_start_of_day")


@pytest.mark.parametrize("name", EVERY)
def test_a_layout_has_the_columns_of_the_schema_in_order_and_one_for_other_fields(name: str):
    layout, schema = layout_of(EVERY[name]), SCHEMAS[name]
    assert layout.name == name
    assert layout.has_schema
    assert [column.name for column in layout.columns] == [
        *(field.name for field in schema.fields),
        LOADED_AT,
        OTHER_FIELDS,
    ]
    assert (layout.key, layout.time) == (schema.key, schema.time)
    for column, field in zip(layout.columns, schema.fields, strict=False):
        assert PYTHON_TYPES[column.storage] == field.kind.type
        assert column.unit == field.unit
        if column.storage is Storage.DECIMAL:
            is_average = column.name in AVERAGES
            assert column.precision == ((24, 12) if is_average else PRECISIONS[field.kind.name.lower()])


@pytest.mark.parametrize(("adjusted", "more"), [(False, 0), ("False", 0), (True, 5), ("True", 5), ("event_divide", 5)])
def test_adjusted_bars_have_columns_of_their_own(adjusted, more):
    query = EVERY["time_series"] | {"adjusted": adjusted}
    found = [column for column in layout_of(query).columns if column.name.startswith("adjusted_")]
    assert len(found) == more
    assert {column.storage for column in found} == {Storage.DECIMAL} if more else not found


@pytest.mark.parametrize(
    "query",
    [
        queries.request("oms", "GET", "accounts/v1"),
        queries.quotes("BHP", raw=True),
        # As a template leaves it.
        {**queries.quotes("BHP"), "raw": "True"},
    ],
)
def test_records_without_a_schema_are_one_column(query):
    layout = layout_of(query, NOW)
    assert [column.name for column in layout.columns] == [RECORD, LOADED_AT]
    assert not layout.has_schema
    assert (layout.key, layout.time) == ((), None)
    assert values_of(layout, [{"b": 1.5, "a": [None]}, 7]) == [['{"b":1.5,"a":[null]}', "7"], [NOW, NOW]]
    assert values_of(layout, []) == [[], []]


def test_values_are_those_of_the_rows_by_column():
    rows = accounts({"account_code": "A1", "account_name": "One"}, {"account_code": "A2"})
    layout = layout_of(EVERY["accounts"], NOW)
    assert values_of(layout, rows) == [["A1", "A2"], ["One", None], [None, None], [NOW, NOW], [None, None]]
    assert values_of(layout, []) == [[], [], [], [], []]


def test_a_field_of_the_api_that_has_the_name_of_an_added_column_is_kept():
    rows = accounts({"account_code": "A1", "loaded_at": "1999", "other_fields": 7})
    *_, loaded_at, other = values_of(layout_of(EVERY["accounts"], NOW), rows)
    assert loaded_at == [NOW]
    assert json.loads(other[0]) == {"loaded_at": "1999", "other_fields": 7}


def test_what_the_schema_does_not_know_goes_into_the_last_column_as_json():
    unknown = {"broker": "X", "since": date(2026, 3, 2), "fee": Decimal("0.10"), "at": datetime(2026, 3, 2, tzinfo=UTC)}
    rows = accounts({"account_code": "A1", **unknown}, {"account_code": "A2", **dict.fromkeys(unknown)})
    *known, _, other = values_of(layout_of(EVERY["accounts"]), rows)
    assert known == [["A1", "A2"], [None, None], [None, None]]
    assert other == ['{"broker":"X","since":"2026-03-02","fee":0.10,"at":"2026-03-02T00:00:00Z"}', None]


def test_columns_of_json_are_texts_with_every_digit():
    names = SCHEMAS["trades"].names
    rows = [dict.fromkeys(names) | {"condition_codes": codes} for codes in (["XT", Decimal("1.10")], None, [], "", 0)]
    values = dict(zip([column.name for column in layout_of(EVERY["trades"]).columns], _trades(rows), strict=True))
    assert values["condition_codes"] == ['["XT",1.10]', None, "[]", '""', "0"]
    assert json.loads(values["condition_codes"][0]) == ["XT", 1.1]


def _trades(rows: list[dict]) -> list[list]:
    return values_of(layout_of(EVERY["trades"]), rows)


def test_the_error_for_a_value_names_column_row_and_key():
    layout = layout_of(EVERY["accounts"])
    values = values_of(layout, accounts({"account_code": "A1"}, {"account_code": "A2", "account_name": "x" * 100}))
    error = layout.unfit(values, layout.columns[1], 1, 40, "is too long.")
    assert isinstance(error, OpenmarketsInvalidResponse)
    assert not error.transient
    assert str(error) == f"accounts: column account_name, row 42 (account_code A2): '{'x' * 60}' is too long."
    without_key = layout_of(queries.request("oms", "GET", "accounts/v1"))
    assert str(without_key.unfit([["{}"], [None]], without_key.columns[0], 0, 0, "is bad.")) == (
        "request: column record, row 1: '{}' is bad."
    )
