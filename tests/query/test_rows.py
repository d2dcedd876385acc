from __future__ import annotations

import decimal
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from openmarkets_provider.client.http.replies import decode
from openmarkets_provider.exceptions import OpenmarketsInvalidResponse
from openmarkets_provider.query.batch import Batch
from openmarkets_provider.query.exchange_time import read_moment
from openmarkets_provider.query.plan import ApiCall, plan
from openmarkets_provider.query.rows import (
    find_missing_multipliers,
    order_state,
    read_invalid_securities,
    read_multipliers,
    read_records,
    select_range,
    to_batch,
)
from openmarkets_provider.query.schema import Kind, snake_case
from tests.support.queries import SCHEMAS, of_every_kind

DAY = {"start": "2026-01-05", "end": "2026-01-06"}
ONE_CALL = of_every_kind(**DAY)
BHP = ("BHP", "ASX")
RIGHT = {
    Kind.TEXT: "a text",
    Kind.ID: "17",
    Kind.COUNT: 3,
    Kind.VOLUME: 500,
    Kind.QUANTITY: Decimal("10.5"),
    Kind.NUMBER: Decimal("0.5"),
    Kind.PRICE: Decimal("4512.5"),
    Kind.VALUE: Decimal("17.25"),
    Kind.MULTIPLIER: Decimal("0.01"),
    Kind.BOOLEAN: True,
    Kind.DATE: "2026-01-05",
    Kind.EXCHANGE_TIME: "2026-01-05T10:00:00",
    Kind.UTC_TIME: "2026-01-04T23:00:00",
    Kind.JSON: ["anything"],
}
WRONG: Mapping[Kind, list[Any]] = {
    Kind.TEXT: [5, Decimal("0.5"), True, [], {}],
    Kind.ID: [Decimal("1.5"), Decimal("100.0"), True, [], {}],
    Kind.COUNT: ["5", "", Decimal("1.5"), True, [], {}, Decimal("1e999999"), 10**18 + Decimal("0.5")],
    Kind.VOLUME: ["5", "", Decimal("-1.5"), False, [], {}, Decimal("-1e999999")],
    Kind.QUANTITY: ["5", "NaN", "", False, [], {}],
    Kind.NUMBER: ["0.5", "NaN", "", True, [], {}],
    Kind.PRICE: ["4512", "NaN", "", True, [], {}],
    Kind.VALUE: ["17.25", "", False, [], {}],
    Kind.MULTIPLIER: ["0.01", 0, Decimal("0.00"), Decimal("-0.01"), -1, True, [], {}],
    Kind.BOOLEAN: ["true", 1, 0, Decimal("1.0"), [], {}],
    Kind.DATE: [5, "", "5 January", "2026-02-30", "2026-01-05T10:00:00", "2026-01-05T00:00:00Z", True, [], {}],
    Kind.EXCHANGE_TIME: [5, "", "10:00", "2026-01-05T25:00:00", "0001-01-01T00:00:01", True, [], {}],
    Kind.UTC_TIME: [5, "", "now", "2026-02-30T10:00:00", "9999-12-31T23:59:59-01:00", True, [], {}],
}
FIELDS = [(name, field) for name, schema in SCHEMAS.items() for field in schema.by_api_name.values()]
FIELD_IDS = [f"{name}-{field.api}" for name, field in FIELDS]

SPECIAL = st.sampled_from(
    [
        "2026-04-05T02:30:00",
        "9999-12-31T23:59:59-10:00",
        "0001-01-01T00:00:00+14:00",
        "0001-01-01T00:00:00",
        "9999-12-31",
        Decimal("1e9999999"),
        Decimal("-1e-9999999"),
        10**30,
    ]
)
TEXTS = st.text(max_size=8) | st.datetimes(timezones=st.none() | st.just(UTC)).map(datetime.isoformat)
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.decimals(allow_nan=False, allow_infinity=False) | TEXTS | SPECIAL
)
JSON = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(st.text(max_size=3), SCALARS, max_size=2)


def call_of(name: str) -> ApiCall:
    (call,) = plan(ONE_CALL[name])
    return call


def make_batch(name: str, *given_records: dict[str, Any], multipliers: Any = None) -> Batch:
    return to_batch(SCHEMAS[name], call_of(name), list(given_records), {} if multipliers is None else multipliers)


def rows_of(name: str, *given_records: dict[str, Any], multipliers: Any = None) -> list[dict[str, Any]]:
    return make_batch(name, *given_records, multipliers=multipliers).rows()


def row_of(name: str, **record: Any) -> dict[str, Any]:
    (row,) = rows_of(name, record)
    return row


def whole_record(name: str) -> dict[str, Any]:
    return {field.api: RIGHT[field.kind] for field in SCHEMAS[name].by_api_name.values()}


# --- the shape of a reply


@pytest.mark.parametrize("reply", [[], [{"accountCode": "1"}, {"accountCode": "2"}]])
def test_a_list_is_the_records_themselves(reply: list[Any]):
    assert read_records(call_of("accounts"), reply) is reply


@pytest.mark.parametrize("reply", [None, {}, {"accounts": []}, "[]", 5, True])
def test_anything_but_the_promised_list_is_an_invalid_response(reply: Any):
    with pytest.raises(OpenmarketsInvalidResponse, match=r"^GET oms accounts/v1: expected a list of records, got") as e:
        read_records(call_of("accounts"), reply)
    assert e.value.endpoint == "GET oms accounts/v1"
    assert not e.value.transient


@pytest.mark.parametrize("reply", [None, [], {}, {"Quotes": []}, "quotes", ["quotes"], 5])
def test_quotes_without_their_wrapping_are_an_invalid_response(reply: Any):
    with pytest.raises(OpenmarketsInvalidResponse, match="expected an object with 'quotes', got") as caught:
        read_records(call_of("quotes"), reply)
    assert caught.value.endpoint == "POST market_data pricing/quotes/v3"


@pytest.mark.parametrize("reply", [None, {}, "x", 5])
def test_wrapped_quotes_must_be_a_list(reply: Any):
    with pytest.raises(OpenmarketsInvalidResponse, match="expected a list of records, got"):
        read_records(call_of("quotes"), {"quotes": reply})


@pytest.mark.parametrize("record", [None, 5, "x", [], [{}], True])
def test_records_that_are_no_objects_are_an_invalid_response(record: Any):
    with pytest.raises(OpenmarketsInvalidResponse, match="expected a list of objects, got"):
        read_records(call_of("accounts"), [{}, record])


def test_securities_that_the_reply_calls_invalid_are_told():
    call = call_of("quotes")
    assert read_invalid_securities(call, {"quotes": [], "invalidSecurities": ["X.ASX@TM"]}) == ["X.ASX@TM"]
    odd = {"quotes": [], "invalidSecurities": [10**300, Decimal("1.5"), {"securityCode": "X"}]}
    assert read_invalid_securities(call, odd) == ["1" + 199 * "0", '"1.5"', '{"securityCode": "X"}']
    assert read_invalid_securities(call, {"quotes": [], "invalidSecurities": None}) == []
    assert read_invalid_securities(call, {"quotes": []}) == []
    assert read_invalid_securities(call_of("accounts"), [{"invalidSecurities": ["X"]}]) == []


@pytest.mark.parametrize("listed", ["", "X.ASX@TM", {}, 5, False])
def test_invalid_securities_that_are_no_list_are_an_invalid_response(listed: Any):
    with pytest.raises(OpenmarketsInvalidResponse, match="field invalidSecurities: expected a list, got"):
        read_invalid_securities(call_of("quotes"), {"quotes": [], "invalidSecurities": listed})


# --- names


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_row_has_the_columns_of_its_schema_in_order(name: str):
    assert list(row_of(name)) == [field.name for field in SCHEMAS[name].fields]
    (row,) = rows_of(name, whole_record(name))
    assert list(row) == [field.name for field in SCHEMAS[name].fields]


@pytest.mark.parametrize("name", SCHEMAS)
def test_no_records_are_no_rows(name: str):
    assert rows_of(name) == []


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_is_missing_or_null_is_none_and_never_zero(name: str):
    nulls = dict.fromkeys(SCHEMAS[name].by_api_name)
    added = {field.name for field in SCHEMAS[name].fields if field.api is None}
    for row in rows_of(name, {}, nulls):
        assert {value for column, value in row.items() if column not in added} <= {None}


@pytest.mark.parametrize("name", SCHEMAS)
def test_all_rows_of_a_batch_have_the_same_names_in_the_same_order(name: str):
    whole = whole_record(name)
    backwards = {"zzLast": 1, **dict(reversed(whole.items())), "aaFirst": 2}
    made = rows_of(name, {}, {"aaFirst": 3}, whole, backwards)
    assert len({tuple(row) for row in made}) == 1
    assert list(made[0])[len(SCHEMAS[name].fields) :] == ["aa_first", "zz_last"]


def test_unknown_fields_are_kept_as_they_are_sent():
    value = {"deep": [Decimal("0.5"), None, {"er": 10**20}]}
    first, second = rows_of("accounts", {"accountCode": "1"}, {"somethingNew": value, "": False})
    assert second["something_new"] is value
    assert second[""] is False
    assert first["something_new"] is first[""] is None


@pytest.mark.parametrize(
    ("name", "record", "column"),
    [
        ("quotes", {"lastPrice": 100, "last_price": "theirs"}, "last_price"),
        ("quotes", {"last_price": "theirs", "lastPrice": 100}, "last_price"),
        ("quotes", {"lastPrice": 100, "LastPrice": "theirs"}, "last_price"),
        ("quotes", {"lastPrice": 100, "price_multiplier": "theirs"}, "price_multiplier"),
        ("orders", {"orderState": "ACTIVE", "state": "theirs"}, "state"),
        ("depth", {"level": "theirs"}, "level"),
        ("positions", {"price_multiplier": "theirs", "averagePrice": 100}, "price_multiplier"),
    ],
)
def test_an_unknown_field_never_takes_the_place_of_a_column(name: str, record: dict[str, Any], column: str):
    (row,) = rows_of(name, record)
    assert row[column] != "theirs"
    assert row[column] is not None
    assert "theirs" in row.values()


def test_unknown_fields_that_would_have_the_same_name_are_all_kept():
    (row,) = rows_of("accounts", {"fooBar": 1, "foo_bar": 2, "FooBar": 3, "foo_bar_": 4})
    assert {1, 2, 3, 4} <= set(row.values())
    assert len(row) == len(SCHEMAS["accounts"].fields) + 4


def test_a_single_security_is_named_in_its_rows():
    for name in ("depth", "time_series", "intraday_time_series"):
        row = row_of(name)
        assert (row["security_code"], row["exchange"], row["data_source"]) == ("BHP", "ASX", "TM")


def test_what_a_reply_says_of_its_security_is_kept():
    own = {"securityCode": "BHPX", "exchange": "NSX", "dataSource": "CXA"}
    for name in ("depth", "time_series", "intraday_time_series"):
        kept, filled = rows_of(name, own, {})
        assert (kept["security_code"], kept["exchange"], kept["data_source"]) == ("BHPX", "NSX", "CXA")
        assert (filled["security_code"], filled["exchange"], filled["data_source"]) == ("BHP", "ASX", "TM")


def test_levels_are_counted_from_1():
    assert [row["level"] for row in rows_of("depth", {}, {}, {})] == [1, 2, 3]


# --- types


@pytest.mark.parametrize(("name", "field"), FIELDS, ids=FIELD_IDS)
def test_a_wrong_type_is_an_error_that_names_endpoint_field_and_value(name: str, field: Any):
    for wrong in WRONG.get(field.kind, []):
        with pytest.raises(OpenmarketsInvalidResponse) as caught:
            rows_of(name, whole_record(name), {**whole_record(name), field.api: wrong}, {})
        assert caught.value.endpoint == call_of(name).label
        assert str(caught.value).startswith(f"{call_of(name).label}: field {field.api}: expected ")
        assert f"got {wrong!r:.100}." in str(caught.value)
        assert not caught.value.transient


def test_every_kind_that_the_api_sends_has_wrong_values_but_json():
    assert {field.kind for _, field in FIELDS} - WRONG.keys() == {Kind.JSON}


@pytest.mark.parametrize("value", [None, 1, "x", True, Decimal("0.5"), [], {"a": [None]}])
def test_a_field_that_may_hold_anything_is_left_as_it_is(value: Any):
    assert row_of("trades", conditionCodes=value)["condition_codes"] is value


@pytest.mark.parametrize(("sent", "value"), [("007", "007"), (7, "7"), (10**30, str(10**30)), ("", "")])
def test_an_identifier_is_a_text(sent: Any, value: str):
    assert row_of("accounts", accountCode=sent)["account_code"] == value


@pytest.mark.parametrize("sent", [100, Decimal("100.0"), Decimal("1E+2")])
def test_a_whole_number_may_be_written_with_a_fraction_of_zero(sent: Any):
    volume = row_of("quotes", askVolume=sent)["ask_volume"]
    assert (type(volume), volume) == (int, 100)


@pytest.mark.parametrize("sent", [10**18, 10**30, -(10**30)])
def test_a_whole_number_may_be_large(sent: int):
    assert row_of("quotes", askVolume=sent)["ask_volume"] == sent


@pytest.mark.parametrize("sent", ["1.10", "1e999999", "-0.0", "1e-999999", "123456789012345678901234567890.5"])
def test_money_is_kept_as_it_is_written(sent: str):
    value = row_of("cash", cashBalance=decode(sent.encode(), exact=True))["cash_balance"]
    assert str(value) == str(Decimal(sent))


@pytest.mark.parametrize("sent", [10, Decimal("10.5"), Decimal("-0.000001")])
def test_holdings_and_own_orders_may_be_parts_of_a_unit(sent: Any):
    (position,) = rows_of("positions", {"actualVolume": sent})
    (order,) = rows_of("orders", {"orderVolume": sent})
    for value in (position["actual_volume"], order["order_volume"]):
        assert (type(value), value) == (Decimal, sent)


def test_whole_money_is_decimal_too():
    value = row_of("cash", cashBalance=10**40)["cash_balance"]
    assert (type(value), value) == (Decimal, Decimal(10**40))


@pytest.mark.parametrize("number", ["1e9999999", "-1e9999999"])
def test_a_whole_number_beyond_decimal_arithmetic_is_an_invalid_response(number: str):
    with pytest.raises(OpenmarketsInvalidResponse, match="field askVolume: expected a whole number"):
        row_of("quotes", askVolume=decode(number.encode(), exact=True))


@pytest.mark.parametrize("text", ["9999-12-31T23:59:59-10:00", "0001-01-02T00:00:00+14:00"])
def test_a_date_beyond_the_calendar_is_an_invalid_response(text: str):
    with pytest.raises(OpenmarketsInvalidResponse, match="field maturityDate: expected a date"):
        row_of("security_information", maturityDate=text)


@settings(max_examples=500)
@given(st.sampled_from(sorted(SCHEMAS)), st.data())
def test_whatever_a_record_holds_it_is_a_row_or_an_invalid_response(name: str, data: st.DataObject):
    names = st.sampled_from([*SCHEMAS[name].by_api_name, "exchange", "priceMultiplier", "price_multiplier", "state"])
    given_records = data.draw(st.lists(st.dictionaries(names, JSON, max_size=3), max_size=3))
    try:
        made = make_batch(name, *given_records)
        select_range(SCHEMAS[name], call_of(name), made, None)
        made.keys(SCHEMAS[name].key)
    except OpenmarketsInvalidResponse:
        return
    assert len(made) == len(given_records)
    assert {len(column) for column in made.columns.values()} == {len(given_records)}


# --- prices


def native_texts() -> st.SearchStrategy[str]:
    whole = st.integers(-(10**15), 10**15).map(str)
    fraction = st.decimals(-(10**9), 10**9, places=6).map(lambda number: f"{number:f}")
    return whole | fraction | st.sampled_from(["0", "0.0", "-0.5", "1e3", "1.5E-7"])


@given(native_texts(), st.sampled_from(["1", "1.0", "0.01", "0.001", "0.0001", "1e-5", "100", "0.07"]))
@example("0.1", "0.1")
@example("999999999999999", "0.0001")
def test_a_price_is_native_price_times_multiplier_exactly(native: str, multiplier: str):
    record = decode(f'{{"lastPrice": {native}, "priceMultiplier": {multiplier}}}'.encode(), exact=True)
    with decimal.localcontext() as context:
        # what other code of the process has set must not matter
        context.prec, context.Emax, context.Emin = 1, 1, -1
        context.rounding = decimal.ROUND_UP
        for signal in (decimal.Inexact, decimal.Rounded, decimal.Subnormal, decimal.Underflow, decimal.Clamped):
            context.traps[signal] = True
        (row,) = rows_of("quotes", record)
    assert type(row["last_price"]) is type(row["price_multiplier"]) is Decimal
    assert Fraction(row["last_price"]) == Fraction(native) * Fraction(multiplier)
    assert Fraction(row["price_multiplier"]) == Fraction(multiplier)


def test_numbers_with_a_fraction_are_read_whatever_the_decimal_context():
    with decimal.localcontext() as context:
        context.prec = 1
        context.traps[decimal.Inexact] = context.traps[decimal.Rounded] = True
        row = row_of("quotes", askVolume=Decimal("1234567.0"), totalValue=Decimal("1234567.25"), tradeCount=12)
    assert (row["ask_volume"], row["total_value"], row["trade_count"]) == (1234567, Decimal("1234567.25"), 12)


@pytest.mark.parametrize("name", [name for name in SCHEMAS if "price_multiplier" in SCHEMAS[name].names])
def test_every_price_of_a_row_is_in_main_units_and_its_multiplier_stays(name: str):
    whole = whole_record(name) | {"priceMultiplier": Decimal("0.001")}
    (row,) = rows_of(name, whole, multipliers={BHP: Decimal("0.001"), ("a text", "a text"): Decimal("0.001")})
    prices = [field.name for field in SCHEMAS[name].fields if field.kind is Kind.PRICE]
    assert prices
    assert {row[price] for price in prices} == {Decimal("4.5125")}
    assert row["price_multiplier"] == Decimal("0.001")
    assert {row[field.name] for field in SCHEMAS[name].fields if field.kind is Kind.VALUE} <= {Decimal("17.25")}


def test_the_reply_s_multiplier_wins_over_the_security_s_and_that_over_the_one_for_cents():
    sent = {"securityCode": "BHP", "exchange": "ASX", "lastPrice": 100}
    made = rows_of(
        "quotes",
        {**sent, "priceMultiplier": 1},
        sent,
        {**sent, "securityCode": "CBA"},
        {"securityCode": "BHP", "lastPrice": 100},
        multipliers={BHP: Decimal("0.001")},
    )
    assert [row["last_price"] for row in made] == [100, Decimal("0.1"), 1, Decimal("0.1")]
    expected = [1, Decimal("0.001"), Decimal("0.01"), Decimal("0.001")]
    assert [row["price_multiplier"] for row in made] == expected


def test_the_reply_s_multiplier_wins_over_the_one_of_the_only_security_of_the_call():
    sent = {"timeSeriesDate": "2026-01-05", "openPrice": 100}
    made = rows_of("time_series", {**sent, "priceMultiplier": 1}, sent, multipliers={BHP: Decimal("0.001")})
    assert [(row["open_price"], row["price_multiplier"]) for row in made] == [
        (100, 1),
        (Decimal("0.1"), Decimal("0.001")),
    ]


def test_a_security_has_one_multiplier_whatever_the_letters_of_the_reply():
    small = {"securityCode": "bhp", "exchange": "asx"}
    found = read_multipliers(call_of("security_information"), [{**small, "priceMultiplier": Decimal("0.001")}])
    assert found == {BHP: Decimal("0.001")}
    (row,) = rows_of("quotes", {**small, "lastPrice": 100}, multipliers=found)
    assert (row["last_price"], row["security_code"], row["exchange"]) == (Decimal("0.1"), "bhp", "asx")
    assert find_missing_multipliers(SCHEMAS["quotes"], call_of("quotes"), [{**small, "lastPrice": 100}]) == [
        "BHP.ASX@TM"
    ]


def test_the_only_security_of_a_call_has_one_multiplier_whatever_the_letters_of_the_query():
    call = call_of("time_series")._replace(security="bhp.asx@TM")
    bar = {"timeSeriesDate": "2026-01-05", "openPrice": 100}
    assert find_missing_multipliers(SCHEMAS["time_series"], call, [bar]) == ["bhp.asx@TM"]
    (row,) = to_batch(SCHEMAS["time_series"], call, [bar], {BHP: Decimal("0.001")}).rows()
    assert (row["open_price"], row["price_multiplier"]) == (Decimal("0.1"), Decimal("0.001"))


def test_a_missing_price_stays_missing_beside_others():
    first, second = rows_of("quotes", {"lastPrice": None, "askPrice": 0, "priceMultiplier": 1}, {"lastPrice": 5})
    assert (first["last_price"], first["ask_price"], first["bid_price"]) == (None, 0, None)
    assert (second["last_price"], second["ask_price"]) == (Decimal("0.05"), None)


@pytest.mark.parametrize("digits", [29, 59])
def test_a_price_of_many_digits_is_exact(digits: int):
    native = Decimal("1." + "7" * (digits - 1))
    row = row_of("quotes", lastPrice=native, priceMultiplier=3)
    assert Fraction(row["last_price"]) == Fraction(native) * 3
    assert len(row["last_price"].as_tuple().digits) == digits


@pytest.mark.parametrize("native", ["1e999999", "1e-999999", "-1e63", "1." + "1" * 100, "1" * 70])
def test_a_price_that_can_not_be_exact_is_an_error_that_names_it(native: str):
    wrong = Decimal(native)
    with pytest.raises(OpenmarketsInvalidResponse, match="field lastPrice: expected a price of a usual size") as caught:
        rows_of("quotes", *[{"lastPrice": 4512}] * 60, {"lastPrice": wrong})
    assert f"got {wrong!r:.100}." in str(caught.value)


@pytest.mark.parametrize("native", ["1e99999999999999999999", "-1e99999999999999999999", "1e-99999999999999999999"])
def test_a_number_that_decimal_can_not_hold_is_not_json(native: str):
    with pytest.raises(ValueError, match="not JSON"):
        decode(f"[{native}]".encode(), exact=True)


@pytest.mark.parametrize("wrong", [0, Decimal("0.0"), -1, Decimal("-0.01"), "0.01", True, []])
def test_a_multiplier_of_security_information_must_be_above_zero(wrong: Any):
    with pytest.raises(OpenmarketsInvalidResponse, match="field priceMultiplier: expected a number above 0, got"):
        read_multipliers(call_of("security_information"), [{"securityCode": "BHP", "priceMultiplier": wrong}])


def test_multipliers_are_read_off_the_records_that_have_one():
    given_records = [
        {"securityCode": "BHP", "exchange": "ASX", "priceMultiplier": 1},
        {"securityCode": "CBA", "priceMultiplier": Decimal("0.001")},
        {"securityCode": "XYZ", "exchange": "ASX"},
        {"securityCode": "NUL", "exchange": "ASX", "priceMultiplier": None},
    ]
    found = read_multipliers(call_of("security_information"), given_records)
    assert found == {BHP: 1, ("CBA", "ASX"): Decimal("0.001")}


def test_only_securities_with_a_price_and_without_a_multiplier_are_to_be_looked_up():
    given_records = [
        {"securityCode": "BHP", "exchange": "ASX", "lastPrice": 5},
        {"securityCode": "CBA", "exchange": "ASX", "lastPrice": 5, "priceMultiplier": 1},
        {"securityCode": "NUL", "exchange": "ASX", "lastPrice": None},
        {"securityCode": "BHP", "exchange": "ASX", "askPrice": 5},
    ]
    assert find_missing_multipliers(SCHEMAS["quotes"], call_of("quotes"), given_records) == ["BHP.ASX@TM"]
    assert find_missing_multipliers(SCHEMAS["time_series"], call_of("time_series"), [{"openPrice": 5}, {}]) == [
        "BHP.ASX@TM"
    ]
    assert find_missing_multipliers(SCHEMAS["accounts"], call_of("accounts"), [{"accountCode": "1"}]) == []


# --- times


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2026-01-05T10:00:00", "2026-01-04T23:00:00"),
        ("2026-07-06T10:00:00", "2026-07-06T00:00:00"),
        ("2026-01-05T10:00:00.123", "2026-01-04T23:00:00.123000"),
        ("2026-01-05T10:00:00.1234567", "2026-01-04T23:00:00.123456"),
        ("2026-01-05T10:00:00.123456789", "2026-01-04T23:00:00.123456"),
        ("2026-01-05T10:00:00Z", "2026-01-05T10:00:00"),
        ("2026-01-05T10:00:00.5+08:00", "2026-01-05T02:00:00.500000"),
        ("2026-01-05 10:00", "2026-01-04T23:00:00"),
        ("2026-01-05", "2026-01-04T13:00:00"),
        # the hour that exists twice: the first of the two
        ("2026-04-05T01:59:59", "2026-04-04T14:59:59"),
        ("2026-04-05T02:30:00", "2026-04-04T15:30:00"),
        ("2026-04-05T03:00:00", "2026-04-04T17:00:00"),
        ("2026-04-05T02:30:00+10:00", "2026-04-04T16:30:00"),
        # the hour that is missing: one hour later
        ("2026-10-04T01:59:59", "2026-10-03T15:59:59"),
        ("2026-10-04T02:30:00", "2026-10-03T16:30:00"),
        ("2026-10-04T03:30:00", "2026-10-03T16:30:00"),
    ],
)
def test_an_exchange_time_is_given_in_utc(text: str, utc: str):
    moment = row_of("quotes", tradeDateTime=text)["trade_date_time"]
    assert moment.tzinfo is UTC
    assert moment.replace(tzinfo=None).isoformat() == utc


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2026-01-05T10:00:00", "2026-01-05T10:00:00"),
        ("2026-04-05T02:30:00.1234567", "2026-04-05T02:30:00.123456"),
        ("2026-10-04T02:30:00", "2026-10-04T02:30:00"),
        ("2026-01-05T10:00:00Z", "2026-01-05T10:00:00"),
        ("2026-01-05T10:00:00+11:00", "2026-01-04T23:00:00"),
    ],
)
@pytest.mark.parametrize(
    ("name", "field"), [("trades", "tradeGmtDateTime"), ("order_trades", "tradeDateTimeGmt")], ids=["market", "own"]
)
def test_a_gmt_time_is_utc(name: str, field: str, text: str, utc: str):
    moment = row_of(name, **{field: text})[snake_case(field)]
    assert moment.tzinfo is UTC
    assert moment.replace(tzinfo=None).isoformat() == utc


@pytest.mark.parametrize(("endpoint", "gmt"), [("trades", "tradeGmtDateTime"), ("order_trades", "tradeDateTimeGmt")])
@pytest.mark.parametrize(
    ("text", "utc", "moment"),
    [
        ("2026-04-05T02:30:00", "2026-04-04T15:30:00", "2026-04-04T15:30:00"),
        ("2026-04-05T02:30:00", "2026-04-04T16:30:00", "2026-04-04T16:30:00"),
        ("2026-04-05T02:30:00.5", "2026-04-04T16:30:00", "2026-04-04T16:30:00.500000"),
        ("2026-04-05T02:30:00", None, "2026-04-04T15:30:00"),
        # only the hour that exists twice is ambiguous
        ("2026-04-05T01:30:00", "2026-04-04T15:30:00", "2026-04-04T14:30:00"),
        ("2026-01-05T10:00:00", "2026-01-05T00:00:00", "2026-01-04T23:00:00"),
    ],
)
def test_in_the_repeated_hour_an_exchange_time_follows_the_gmt_field(
    endpoint: str, gmt: str, text: str, utc: str | None, moment: str
):
    row = row_of(endpoint, **{"tradeDateTime": text, gmt: utc})
    assert row["trade_date_time"] == datetime.fromisoformat(moment).replace(tzinfo=UTC)


@given(
    st.datetimes(datetime(1901, 1, 1), datetime(2199, 1, 1))  # noqa: DTZ001
    | st.datetimes(
        datetime(1901, 1, 1),  # noqa: DTZ001
        datetime(2199, 1, 1),  # noqa: DTZ001
        timezones=st.integers(-840, 840).map(lambda minutes: timezone(timedelta(minutes=minutes))),
    )
)
def test_a_time_of_a_row_and_a_time_of_a_query_mean_the_same(moment: datetime):
    text = moment.isoformat()
    assert row_of("quotes", tradeDateTime=text)["trade_date_time"] == read_moment(text)


@pytest.mark.parametrize(
    "text",
    [
        "2026-04-05",
        "2026-04-05T00:00:00",
        "2026-04-05T00:00:00.0000000",
        "2026-04-05T00:00:00+11:00",
        "2026-04-04T13:00:00Z",
    ],
)
def test_a_date_stays_a_date_and_may_be_written_as_midnight_at_the_exchange(text: str):
    made = rows_of("time_series", {"timeSeriesDate": "2026-01-05"}, {"timeSeriesDate": text}, {})
    days = [row["time_series_date"] for row in made]
    assert days == [date(2026, 1, 5), date(2026, 4, 5), None]
    assert {type(day) for day in days} == {date, type(None)}


# --- ranges


def test_rows_outside_of_the_half_open_range_are_dropped():
    texts = ["2026-01-05T09:59:59.999", "2026-01-05T10:00:00", "2026-01-05T10:59:59.999", "2026-01-05T11:00:00"]
    made = make_batch("trades", *({"tradeDateTime": text} for text in texts))
    window = (read_moment("2026-01-05T10:00:00"), read_moment("2026-01-05T11:00:00"))
    assert select_range(SCHEMAS["trades"], call_of("trades"), made, window).rows() == made.rows()[1:3]
    assert select_range(SCHEMAS["trades"], call_of("trades"), made, None) is made
    assert select_range(SCHEMAS["accounts"], call_of("accounts"), made, window) is made


def test_bars_are_dropped_by_their_day():
    made = make_batch("time_series", *({"timeSeriesDate": f"2026-01-0{day}"} for day in range(4, 9)))
    kept = select_range(SCHEMAS["time_series"], call_of("time_series"), made, (date(2026, 1, 5), date(2026, 1, 7)))
    assert [day.day for day in kept.columns["time_series_date"]] == [5, 6]


@pytest.mark.parametrize("name", [name for name in SCHEMAS if SCHEMAS[name].time is not None])
def test_a_row_without_a_time_can_not_be_in_a_range(name: str):
    window = (date.min, date.max) if name == "time_series" else (read_moment("1999-01-01"), read_moment("2100-01-01"))
    (field,) = [field for field in SCHEMAS[name].fields if field.name == SCHEMAS[name].time]
    with pytest.raises(OpenmarketsInvalidResponse, match=rf"field {field.api}: expected a .*, got None"):
        select_range(SCHEMAS[name], call_of(name), make_batch(name, whole_record(name), {}), window)


def test_a_row_is_identified_by_its_key():
    record = whole_record("trades")
    made = make_batch("trades", record, {**record, "tradePrice": 1}, {**record, "tradeNumber": 2})
    first, same, other = made.keys(SCHEMAS["trades"].key)
    assert first == same != other


# --- order state


@pytest.mark.parametrize(
    ("record", "state"),
    [
        ({"orderState": "ACTIVE"}, "working"),
        ({"orderState": "ACTIVE", "doneVolumeTotal": 99, "orderVolume": 100}, "working"),
        ({"orderState": "ACTIVE", "doneVolumeTotal": 100, "orderVolume": 100}, "finished"),
        ({"orderState": "ACTIVE", "doneVolumeTotal": 101, "orderVolume": 100}, "finished"),
        ({"orderState": "ACTIVE", "doneVolumeTotal": Decimal("100.0"), "orderVolume": 100}, "finished"),
        ({"orderState": "ACTIVE", "doneVolumeTotal": None, "orderVolume": 0}, "working"),
        ({"orderState": "ACTIVE", "doneVolumeTotal": 5}, "working"),
        ({"orderState": "INACTIVE"}, "finished"),
        ({"orderState": "INACTIVE", "actionStatus": "FAILED"}, "failed"),
        ({"orderState": "ACTIVE", "lastAction": "CANCEL", "actionStatus": "DENIED"}, "failed"),
        ({"orderState": "ACTIVE", "actionStatus": "FAILED", "doneVolumeTotal": 5, "orderVolume": 5}, "finished"),
        ({"orderState": "ACTIVE", "lastAction": "CANCEL"}, "finished"),
        ({"orderState": "ACTIVE", "lastAction": "PURGE"}, "finished"),
        ({"orderState": "ACTIVE", "lastAction": "AMEND"}, "working"),
        ({"orderState": "ACTIVE", "actionStatus": "FAILED"}, "failed"),
        ({"orderState": "PENDING", "actionStatus": "DENIED"}, "failed"),
        ({"orderState": "PENDING", "actionStatus": "OK"}, "pending"),
        ({"orderState": "active"}, "pending"),
        ({"orderState": None}, "pending"),
        ({}, "pending"),
    ],
)
def test_the_state_of_an_order(record: dict[str, Any], state: str):
    assert order_state(record) == row_of("orders", **record)["state"] == state


def test_the_fields_that_a_state_is_made_of_stay_in_the_row():
    row = row_of("orders", orderState="ACTIVE", lastAction="AMEND", actionStatus="OK")
    assert (row["order_state"], row["last_action"], row["action_status"]) == ("ACTIVE", "AMEND", "OK")


@pytest.mark.parametrize(
    ("endpoint", "field", "name"),
    [("orders", "expiryDateTime", "expiry_date_time"), ("security_information", "maturityDate", "maturity_date")],
)
def test_the_beginning_of_all_time_is_no_time(endpoint: str, field: str, name: str):
    for text in ("0001-01-01", "0001-01-01T00:00:00", "0001-01-01T00:00:00Z", "0001-01-01T00:00:00.0000000"):
        assert row_of(endpoint, **{field: text})[name] is None
    assert row_of(endpoint, **{field: "0001-01-01T00:00:00+11:00"})[name] is None
