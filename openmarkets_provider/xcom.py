"""Checks of values that go through XCom."""

from __future__ import annotations

import json
from typing import Any

from openmarkets_provider.exceptions import OpenmarketsError

DEFAULT_MAX_XCOM_BYTES = 1 << 20
"""Size limit of a task's result as JSON: Airflow stores XComs in its metadata database."""
_ALTERNATIVES = (
    "land it with a transfer (OpenmarketsToObjectStorageOperator, OpenmarketsToSqlOperator), or use "
    "OpenmarketsHook.stream(query) in a @task."
)


def ensure_fits_xcom(result: Any, max_bytes: int) -> None:
    """Refuse a result that is too large for XCom, or that Airflow can't pass on or store.

    :param result: the result of a query.
    :param max_bytes: size limit of the result as JSON.
    :raises OpenmarketsError: the text says what to do instead.
    """
    import msgspec

    try:
        size = len(msgspec.json.encode(result))
        if size <= max_bytes:
            ensure_airflow_takes(result)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise OpenmarketsError(f"The result can't be pushed to XCom: {error}. Instead, {_ALTERNATIVES}") from None
    if size > max_bytes:
        raise OpenmarketsError(
            f"The result is {size:,} bytes as JSON; the limit for XCom is {max_bytes:,} (max_xcom_bytes). Query "
            f"less in one task (map over smaller queries with .expand), {_ALTERNATIVES}"
        )


def ensure_airflow_takes(value: Any) -> None:
    """Encode the value of an XCom or an event like Airflow does.

    :raises TypeError, ValueError, OverflowError, RecursionError: Airflow can't pass on or store the value.
    """
    import msgspec

    # Between processes: MessagePack, whose integers have 64 bits.
    msgspec.msgpack.encode(value)
    # In the database: JSON; PostgreSQL refuses NaN and infinity.
    json.dumps(value, allow_nan=False, default=str)
