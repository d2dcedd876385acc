"""Intents of orders in Airflow's state stores (Airflow 3.3 and later)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from openmarkets_provider.exceptions import OpenmarketsError

T = TypeVar("T")

PREFIX = "openmarkets_order_"
"""How the keys begin."""


class StateStoreJournal:
    """Stores intents in state stores of Airflow: those of a task instance, of an asset, or both.

    The store of a task instance outlives retries, and from Airflow 3.4 on not a clear; that of an asset outlives both.
    Airflow runs one try of a task instance at a time, so there is no lock.

    :param stores: such as ``context["task_state_store"]`` and ``context["asset_state_store"][asset]``. All are written;
        the first that has an entry is read.
    """

    def __init__(self, *stores: Any) -> None:
        self._stores = stores

    def load(self, key: str) -> dict[str, Any] | None:
        """Return what the first store that has the entry holds."""
        for store in self._stores:
            data = _access(lambda store=store: store.get(PREFIX + key))  # type: ignore[misc]
            if isinstance(data, dict):
                return data
        return None

    def save(self, key: str, data: dict[str, Any]) -> None:
        """Store a dict in all stores, for good."""
        for store in self._stores:
            _access(lambda store=store: _set_forever(store, PREFIX + key, data))  # type: ignore[misc]

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Do nothing."""
        yield


def _set_forever(store: Any, key: str, value: Any) -> None:
    # The stubs of 3.3 leave it out. Entries of assets have no end.
    from airflow.sdk import NEVER_EXPIRE  # type: ignore[attr-defined]

    try:
        store.set(key, value, retention=NEVER_EXPIRE)
    except TypeError:
        store.set(key, value)


def _access(access: Callable[[], T]) -> T:
    try:
        return access()
    except Exception as error:
        # Airflow's own, or whatever a state backend raises.
        raise OpenmarketsError(
            f"Airflow's state store, which holds the intents of orders, failed: {error}", transient=True
        ) from error
