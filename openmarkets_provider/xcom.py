"""What may go through XCom."""

from __future__ import annotations

import json
from typing import Any

from openmarkets_provider.exceptions import OpenmarketsError

DEFAULT_MAX_XCOM_BYTES = 1 << 20
"""Largest result, as JSON, that tasks pass on through XCom: it ends up in Airflow's metadata database."""
_INSTEAD = (
    "land it with a transfer (OpenmarketsToObjectStorageOperator, OpenmarketsToSqlOperator), or use "
    "OpenmarketsHook.stream(query) in a @task."
)


def ensure_fits_xcom(result: Any, max_bytes: int) -> None:
    """Refuse a result that is too large for XCom, or that Airflow could not pass on or store.

    :param max_bytes: limit for the result as JSON.
    :raises OpenmarketsError: the text says what to do instead.
    """
    import msgspec

    try:
        size = len(msgspec.json.encode(result))
        if size <= max_bytes:
            ensure_airflow_takes(result)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise OpenmarketsError(f"The result can't go to XCom: {error}. Instead, {_INSTEAD}") from None
    if size > max_bytes:
        raise OpenmarketsError(
            f"The result is {size:,} bytes as JSON; the limit for XCom is {max_bytes:,} (max_xcom_bytes). Ask for "
            f"less in one task (map over smaller queries with .expand), {_INSTEAD}"
        )


def ensure_airflow_takes(value: Any) -> None:
    """Try what Airflow does with a value of an XCom or an event.

    :raises TypeError, ValueError, OverflowError or RecursionError: it could not pass it on, or not store it.
    """
    import msgspec

    # Between its processes: MessagePack, whose integers have 64 bits.
    msgspec.msgpack.encode(value)
    # Into the database: JSON, which PostgreSQL takes without NaN and infinity only.
    json.dumps(value, allow_nan=False, default=str)
