from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmarkets_provider.conditions import evaluate
from openmarkets_provider.exceptions import OpenmarketsError, OpenmarketsQueryError
from openmarkets_provider.xcom import DEFAULT_MAX_XCOM_BYTES, ensure_fits_xcom
from tests.support.versions import serde

VALUES = [None, 0, "", "é", [], {"a": [1, 2.5, None, True]}, "x" * 1000, 2**64 - 1]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:20])
def test_a_value_of_just_the_limit_passes_and_one_byte_more_does_not(value: Any):
    size = len(json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode())
    ensure_fits_xcom(value, size)
    with pytest.raises(OpenmarketsError, match=f"is {size:,} bytes as JSON; the limit for XCom is {size - 1:,}"):
        ensure_fits_xcom(value, size - 1)


def test_the_default_limit_is_a_mebibyte():
    assert DEFAULT_MAX_XCOM_BYTES == 1024 * 1024
    ensure_fits_xcom("x" * (1024 * 1024 - 2), DEFAULT_MAX_XCOM_BYTES)
    with pytest.raises(OpenmarketsError, match=r"1,048,577 bytes.*1,048,576 \(max_xcom_bytes\)"):
        ensure_fits_xcom("x" * (1024 * 1024 - 1), DEFAULT_MAX_XCOM_BYTES)


def test_the_message_says_what_to_do_and_no_repetition_mends_it():
    with pytest.raises(OpenmarketsError, match=r"\.expand.*OpenmarketsHook\.stream\(query\).*@task") as caught:
        ensure_fits_xcom("secret" * 100, 10)
    assert "secret" not in str(caught.value)
    assert not caught.value.transient
    # It is the result that is too large and not the query that is malformed.
    assert not isinstance(caught.value, OpenmarketsQueryError)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [object(), evaluate("&a", {}), [evaluate("&a", {})], nested(1_000_000), 10**5000, [2**64], math.inf, [math.nan]],
    ids=["object", "expression reference", "list of it", "deep", "huge", "65 bits", "infinity", "not a number"],
)
def test_what_airflow_could_not_pass_on_or_store_is_a_typed_error(value: Any):
    with pytest.raises(OpenmarketsError, match=r"can't be pushed to XCom: .*transfer") as caught:
        ensure_fits_xcom(value, DEFAULT_MAX_XCOM_BYTES)
    assert not caught.value.transient


ROW = {
    "price": Decimal("47.21"),
    "day": date(2026, 3, 2),
    "at": datetime(2026, 3, 2, 5, 0, 1, tzinfo=UTC),
    "none": None,
}


def test_a_row_is_measured_by_its_json():
    size = len(b'[{"price":"47.21","day":"2026-03-02","at":"2026-03-02T05:00:01Z","none":null}]')
    ensure_fits_xcom([ROW], size)
    with pytest.raises(OpenmarketsError, match=f"is {size:,} bytes as JSON"):
        ensure_fits_xcom([ROW], size - 1)


def through_xcom(value: Any) -> Any:
    """Return a value as a downstream task receives it."""
    return serde.deserialize(json.loads(json.dumps(serde.serialize(value))))


@given(st.integers(-(10**15) + 1, 10**15 - 1), st.integers(-8, 4))
def test_a_decimal_of_up_to_15_significant_digits_survives_xcom(digits: int, exponent: int):
    # Airflow writes a Decimal with a fraction as a floating-point number, which keeps this many digits.
    exact = Decimal(digits).scaleb(exponent)
    received = through_xcom([{"price": exact}])[0]["price"]
    assert (received, type(received)) == (exact, Decimal)


@given(
    st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001 - aware by timezones
    st.dates(date(1990, 1, 1), date(2100, 1, 1)),
)
def test_a_time_and_a_date_survive_xcom(moment: datetime, day: date):
    received = through_xcom([{"at": moment, "day": day}])[0]
    assert received == {"at": moment, "day": day}
    assert (type(received["day"]), received["at"].utcoffset()) == (date, moment.utcoffset())
