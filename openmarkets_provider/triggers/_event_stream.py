"""The stream that watchers share (Airflow 3.3): one poll for all, confirmed after Airflow has stored its events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from airflow.triggers.shared_stream import AdvanceItem, SharedStreamProducer

if TYPE_CHECKING:
    from openmarkets_provider.triggers._seen_store import Confirmation
    from openmarkets_provider.triggers._shared_polls import Reading


@dataclass(frozen=True, eq=False)
class SharedReading:
    """A reading for several watchers.

    :ivar confirmations: functions of the watchers, called after Airflow has handled all events of the reading.
    """

    reading: Reading
    confirmations: list[Confirmation] = field(default_factory=list)


class PollProducer(SharedStreamProducer):
    """Passes each reading to all watchers, and calls their confirmations.

    :param open_polls: returns an infinite iterator over readings.
    """

    def __init__(self, open_polls: Callable[[], AsyncIterator[Reading]]) -> None:
        self._open_polls = open_polls

    async def open_stream(self) -> AsyncIterator[tuple[SharedReading, SharedReading]]:
        """Yield each reading twice: for the watchers, and as the token that Airflow passes to :meth:`advance`."""
        async for reading in self._open_polls():
            shared = SharedReading(reading)
            yield shared, shared

    async def advance(self, batch: Sequence[AdvanceItem]) -> None:
        """Call the confirmations with whether Airflow stored all events. Airflow does not say which event failed.

        :param batch: readings with their outcomes.
        """
        for shared, outcome in batch:
            for confirm in shared.confirmations:
                await confirm(outcome.is_clean)
