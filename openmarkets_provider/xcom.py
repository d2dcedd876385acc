"""What may go through XCom."""

from __future__ import annotations

from typing import Any

from openmarkets_provider.exceptions import OpenmarketsError

DEFAULT_MAX_XCOM_BYTES = 1 << 20
"""Largest result, as JSON, that tasks pass on through XCom: it ends up in Airflow's metadata database."""


def ensure_fits_xcom(result: Any, max_bytes: int) -> None:
    """Refuse a result that is too large for XCom.

    :param max_bytes: limit for the result as JSON.
    :raises OpenmarketsError: it is larger, and the text says what to do instead; or it is not JSON.
    """
    import msgspec

    try:
        size = len(msgspec.json.encode(result))
    except (TypeError, ValueError, RecursionError) as error:
        raise OpenmarketsError(f"The result can't go to XCom, since it is not JSON: {error}") from None
    if size > max_bytes:
        raise OpenmarketsError(
            f"The result is {size:,} bytes as JSON; the limit for XCom is {max_bytes:,} (max_xcom_bytes). Ask for "
            "less in one task (map over smaller queries with .expand), land it with a transfer "
            "(OpenmarketsToObjectStorageOperator, OpenmarketsToSqlOperator), or use OpenmarketsHook.stream(query) in "
            "a @task."
        )
