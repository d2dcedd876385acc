"""The state of incremental loads: how far a destination is loaded, and the claims of its last runs.

The state is stored with the destination. Airflow deletes what is stored with a task when the task is cleared, but a
cleared load must take the same range again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from openmarkets_provider.exceptions import OpenmarketsError
from openmarkets_provider.landing.claims import Claim, resolve_open
from openmarkets_provider.landing.destination import Destination
from openmarkets_provider.query.arguments import describe, is_security
from openmarkets_provider.query.exchange_time import read_moment
from openmarkets_provider.query.query import Query

T = TypeVar("T")

KEY = "openmarkets"
"""The prefix of all keys."""
KEPT_CLAIMS = 100
"""Number of runs whose claims the store keeps for each state."""


class StateStore(Protocol):
    """Stores JSON-able data by key."""

    def get(self, key: str) -> Any:
        """Return the data, or None."""

    def set(self, key: str, value: Any) -> None:
        """Store the data."""

    def delete(self, key: str) -> None:
        """Delete the data, if there is any."""


class LoadState:
    """The state of a destination, or of one query if several queries load the destination.

    :param store: shared by all loads of the destination.
    :param store_name: the store's name in messages, such as ``asset 'lake'``.
    :param owner: the task, such as ``dag.task``.
    :param run: the run of the task, such as ``dag/run/task/map index``; the same after a retry or when cleared.
    """

    def __init__(
        self, store: StateStore, destination: Destination, query: Query, *, store_name: str, owner: str, run: str
    ) -> None:
        self._store = store
        self._store_name = store_name
        self._run = run
        self._own = {
            "destination": destination.name,
            "owner": owner,
            "query": fingerprint(query),
            "format": destination.format,
        }
        self._key = _key(self._own, per_query=not destination.is_exclusive)
        self._claim_key = f"{self._key}_{_digest(run)}"

    def read(self) -> dict[str, Any]:
        """Return the state; empty if there is none.

        :raises OpenmarketsError: a load did not write it.
        """
        return self._read(check_state, self._key)

    def write(self, state: Mapping[str, Any]) -> None:
        """Store the state, with this task as its owner."""
        self._store.set(self._key, self._own | dict(state))

    def read_claim(self) -> dict[str, str] | None:
        """Return the data of the claim of this run; None if there is none.

        :raises OpenmarketsError: a load did not write it.
        """
        return self._read(check_claim, self._claim_key)

    def write_claim(self, claim: Claim) -> None:
        """Store the claim of this run, and delete all but the last :data:`KEPT_CLAIMS`.

        Each claim has its own key, so that loads that begin at the same time do not lose one. A store can't list its
        keys, so there is a list of claims. A claim that is missing in the list is never deleted.
        """
        self._store.set(self._claim_key, {"run": self._run, **claim.as_data()})
        listed = self._store.get(f"{self._key}_claims")
        keys = [key for key in listed if key != self._claim_key] if isinstance(listed, list) else []
        keys.append(self._claim_key)
        for key in keys[:-KEPT_CLAIMS]:
            self._store.delete(str(key))
        self._store.set(f"{self._key}_claims", keys[-KEPT_CLAIMS:])

    def check_owner(self, state: Mapping[str, Any]) -> None:
        """Refuse a state of another task, query or format.

        :raises OpenmarketsError: the state is of another one.
        """
        # Until something is loaded, the query may be corrected.
        names = ("owner", "query", "format") if state.get("watermark") else ("owner",)
        if state and any(state[name] != self._own[name] for name in names):
            raise OpenmarketsError(
                f"{self._own['destination']} was loaded by task {state['owner']}, or with another query "
                "(securities, interval...), partition or format: rows would be missing or duplicated. Use "
                "another destination; or empty this one, and run the task with full_refresh=True."
            )

    def check_refresh(self, state: Mapping[str, Any], destination: Destination) -> None:
        """Refuse to start over if files of another query or format would stay.

        :raises OpenmarketsError: such files exist.
        """
        is_other = state and any(state[name] != self._own[name] for name in ("query", "format"))
        if is_other and destination.exists():
            raise OpenmarketsError(
                f"full_refresh: {destination.name} has files of another query (securities, interval...), "
                "partition or format, which would stay there. Empty it first."
            )

    def _read(self, check: Callable[[Any], T], key: str) -> T:
        try:
            return check(self._store.get(key))
        except ValueError as error:
            # Users can also write to the store.
            raise OpenmarketsError(
                f"The state of this incremental load is damaged: {error}. To start again, delete the key {key!r} "
                f"in the state store of {self._store_name}."
            ) from None


def fingerprint(query: Query) -> str:
    """Return a short text, which is equal if queries differ only in range, order of codes and handling of errors."""
    others = ("start", "end", "on_invalid", "on_missing_field")
    arguments = {name: value for name, value in resolve_open(query).items() if name not in others}
    plain = {name: sorted(value) if isinstance(value, list) else value for name, value in arguments.items()}
    return _digest(json.dumps(plain, sort_keys=True))


def _key(own: Mapping[str, str], *, per_query: bool) -> str:
    """Return the key of the state of a destination, or of a query if several queries load the destination."""
    text = f"{own['destination']} {own['query']}" if per_query else own["destination"]
    return f"{KEY}_{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_state(data: Any) -> dict[str, Any]:
    """Return the state of a destination from a store; empty if there is none.

    :raises ValueError: a load did not write it.
    """
    match data:
        case {"destination": str(), "owner": str(), "query": str(), "format": str()}:
            if "first" in data or "watermark" in data:
                _check_moments(data, "first", "watermark")
            _check_skipped(data.get("skipped", {}))
            return dict(data)
    if data is None or data == {}:
        return {}
    raise ValueError(f"expected the state of an incremental load, got {describe(data)}")


def _check_skipped(skipped: Any) -> None:
    if not isinstance(skipped, dict) or not all(isinstance(each, str) and is_security(each) for each in skipped):
        raise ValueError(f"skipped: expected a time for each security, got {describe(skipped)}")
    _check_moments(skipped, *skipped)


def check_claim(data: Any) -> dict[str, str] | None:
    """Return the claim of a run from a store; None if there is none.

    :raises ValueError: it is not the data of a :class:`Claim`.
    """
    if data is None:
        return None
    if not isinstance(data, dict):
        raise ValueError(f"expected the range of a run, got {describe(data)}")
    _check_moments(data, "start", "end")
    return data


def _check_moments(data: Mapping[str, Any], *names: str) -> None:
    for name in names:
        moment = data.get(name)
        if not isinstance(moment, str):
            raise ValueError(f"{name}: expected a date or a time, got {describe(moment)}")
        try:
            read_moment(moment)
        except ValueError:
            raise ValueError(f"{name}: expected a date or a time, got {describe(moment)}") from None
