"""Keeps the keys that a watcher has seen in the state stores of its assets (Airflow 3.3)."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from openmarkets_provider.exceptions import OpenmarketsError
from openmarkets_provider.triggers._seen_keys import SeenKeys

Confirmation = Callable[[bool], Coroutine[Any, Any, None]]
"""Called once Airflow has handled the events of a poll; True if it has stored all of them."""


class SeenStore:
    """Loads and saves the keys of one watcher.

    Airflow runs identical watchers on several assets as one trigger, so there may be several stores.

    :param key: name of the record in each store.
    :param list_stores: returns the stores; Airflow sets them after it has created the trigger.
    :param log: logs a line for the watcher: level, text and values.
    """

    def __init__(self, key: str, list_stores: Callable[[], Sequence[Any]], log: Callable[..., None]) -> None:
        self._key = key
        self._list_stores = list_stores
        self._log = log
        self._saved: SeenKeys | None = None
        self._unclean_polls = 0

    async def load(self) -> SeenKeys | None:
        """Return the keys of all stores; None if no store has any.

        :raises OpenmarketsError: a store failed.
        """
        stores = self._list_stores()
        try:
            records = [await store.aget(self._key) for store in stores]
        except Exception as error:
            raise OpenmarketsError(
                f"could not read the asset's state store, so no event fires: {type(error).__name__}: {error!s:.500}."
            ) from error
        loaded = [seen for record in records if (seen := self._read(record)) is not None]
        if not loaded:
            return None
        seen = functools.reduce(SeenKeys.merge, loaded)
        if len(loaded) == len(stores) and len({frozenset(each.digests) for each in loaded}) == 1:
            self._saved = seen
        return seen

    def is_saved(self, seen: SeenKeys) -> bool:
        """Return whether all stores have these keys."""
        return seen is self._saved

    def prepare_save(self, seen: SeenKeys) -> Confirmation:
        """Return a function that saves the keys of a poll after Airflow has stored its events.

        It saves nothing if Airflow failed to store an event of this poll, or of an earlier unconfirmed one, because the
        event may be this watcher's. If it is, Airflow restarts the trigger; if not, the next poll saves the keys.
        """
        unclean_polls = self._unclean_polls

        async def confirm(is_clean: bool) -> None:
            if not is_clean:
                self._unclean_polls += 1
            if unclean_polls == self._unclean_polls:
                await self._save(seen)

        return confirm

    async def _save(self, seen: SeenKeys) -> None:
        try:
            for store in self._list_stores():
                await store.aset(self._key, seen.to_json())
        except Exception as error:  # noqa: BLE001 - any error would end the stream of all watchers
            self._log(
                logging.WARNING,
                "could not save the keys of an event in the asset's state store; trying again at the next poll. "
                "If the triggerer restarts before that, the event fires again. %s: %.500s",
                type(error).__name__,
                error,
            )
        else:
            self._saved = seen

    def _read(self, record: Any) -> SeenKeys | None:
        if record is None:
            return None
        try:
            return SeenKeys.from_json(record)
        except ValueError as error:
            self._log(
                logging.ERROR,
                "the record %s in the asset's state store is damaged and ignored; items of the next poll do not "
                "fire: %s",
                self._key,
                error,
            )
            return None
