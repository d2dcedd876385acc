"""What can be done at the OMS: place, amend and cancel orders."""

from __future__ import annotations

import time
from collections.abc import Callable

from openmarkets_provider.client.journals import Journal, MemoryJournal
from openmarkets_provider.client.order_changing import Changing
from openmarkets_provider.client.order_checks import OmsClient
from openmarkets_provider.client.order_placing import Placing
from openmarkets_provider.order_entry.guards import Limits


class Orders(Placing, Changing):
    """Places, amends and cancels orders with the rights and limits of one client.

    :param client: of the OMS.
    :param journal: where intents are kept; by default in memory.
    :param limits: in addition to those of the client's settings.
    :param clock: seconds since 1970.
    :param sleep: waits for some seconds.
    """

    def __init__(
        self,
        client: OmsClient,
        journal: Journal | None = None,
        *,
        limits: Limits = Limits(),  # noqa: B008 - it can't be changed
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(client, MemoryJournal() if journal is None else journal, limits, clock, sleep)

    def with_journal(self, journal: Journal, *, limits: Limits = Limits()) -> Orders:  # noqa: B008
        """Return the same with another journal, and with other limits."""
        return Orders(self._client, journal, limits=limits, clock=self._clock, sleep=self._sleep)
