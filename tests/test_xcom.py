from __future__ import annotations

import json
from typing import Any

import pytest

from openmarkets_provider.conditions import evaluate
from openmarkets_provider.exceptions import OpenmarketsError, OpenmarketsQueryError
from openmarkets_provider.xcom import DEFAULT_MAX_XCOM_BYTES, ensure_fits_xcom

VALUES = [None, 0, "", "é", [], {"a": [1, 2.5, None, True]}, "x" * 1000, 10**30]


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
    with pytest.raises(OpenmarketsError, match=r"\.expand.*OpenmarketsHook\.run\(query\).*@task") as caught:
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
    [object(), evaluate("&a", {}), [evaluate("&a", {})], nested(100_000), 10**5000],
    ids=["object", "expression reference", "list of it", "deep", "huge"],
)
def test_what_json_cannot_hold_is_a_typed_error(value: Any):
    with pytest.raises(OpenmarketsError, match="not JSON"):
        ensure_fits_xcom(value, DEFAULT_MAX_XCOM_BYTES)
