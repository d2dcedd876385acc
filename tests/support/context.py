"""What a transfer finds in a task's context, outside of Airflow."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any


class OutletEvents:
    """Events of a task's assets; assets can't be hashed in every version of Airflow."""

    def __init__(self) -> None:
        self._events: list[tuple[Any, SimpleNamespace]] = []

    def __getitem__(self, asset: Any) -> SimpleNamespace:
        for known, event in self._events:
            if known == asset:
                return event
        keys: list[str] = []
        self._events.append((asset, SimpleNamespace(extra={}, partition_keys=keys, add_partitions=keys.extend)))
        return self._events[-1][1]

    def values(self) -> Iterator[SimpleNamespace]:
        """Give the events that were asked for."""
        return (event for _, event in self._events)

    def items(self) -> Iterator[tuple[Any, SimpleNamespace]]:
        """Give each asset that was asked for, and its event."""
        return iter(self._events)


def context(run_id: str = "run", map_index: int = -1) -> dict[str, Any]:
    """Return what of a task's context a transfer uses."""
    return {
        "ti": SimpleNamespace(dag_id="dag", run_id=run_id, task_id="load", map_index=map_index),
        "outlet_events": OutletEvents(),
    }
