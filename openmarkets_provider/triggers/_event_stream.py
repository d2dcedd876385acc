"""The polls that several watchers share, as Airflow 3.3 wants them: what they came to, and when that is dealt with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, Protocol

from airflow.triggers.shared_stream import AdvanceItem, SharedStreamProducer


class Poll(Protocol):
    """A poll, and what is to be done when it is dealt with."""

    @property
    def confirmations(self) -> Sequence[Callable[[bool], Coroutine[Any, Any, None]]]:
        """What is to be done; it is told whether all events that came of the poll are stored."""


class PollProducer(SharedStreamProducer):
    """Gives each poll to all watchers, and tells them when Airflow has stored what they made of it.

    :param open_polls: opens the polls, which never end.
    """

    def __init__(self, open_polls: Callable[[], AsyncIterator[Poll]]) -> None:
        self._open_polls = open_polls

    async def open_stream(self) -> AsyncIterator[tuple[Poll, Poll]]:
        """Give every poll, as what the watchers see and as what comes back when it is dealt with."""
        async for poll in self._open_polls():
            yield poll, poll

    async def advance(self, batch: Sequence[AdvanceItem]) -> None:
        """Tell the watchers of each poll whether all events are stored; of whom they are not, Airflow doesn't say."""
        for poll, outcome in batch:
            for confirm in poll.confirmations:
                await confirm(outcome.is_clean)
