"""The trigger of a deferred sensor: waits in the triggerer until the result of a query meets a condition."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TaskSuccessEvent, TriggerEvent

from openmarkets_provider.conditions import describe_poll
from openmarkets_provider.exceptions import OpenmarketsError, is_on_hold
from openmarkets_provider.queries import Query
from openmarkets_provider.query.query import check_reads_only
from openmarkets_provider.triggers._serialize import serialize_trigger
from openmarkets_provider.triggers._shared_polls import poll_shared
from openmarkets_provider.xcom import ensure_fits_xcom


class OpenmarketsConditionTrigger(BaseTrigger):
    """Polls a query until its result meets a condition. Triggers with the same query share their requests.

    Fires one event. If the condition is met, the event ends the task successfully without a worker; with ``resume`` it
    is ``{"status": "met", "value": ...}``. After an error it is ``{"status": "error", "error": {...}}`` with the error
    as data, and at the deadline ``{"status": "timeout"}``.

    :param openmarkets_conn_id: id of a connection of type ``openmarkets``.
    :param query: the query, rendered; must only read.
    :param condition: JMESPath expression, rendered.
    :param poke_interval: seconds between polls; longer if the server asks for it.
    :param deadline: when to give up, in seconds since the epoch, so that a restart of the triggerer does not move it.
    :param max_failures: most transient failures in a row that are tolerated; None for any number.
    :param max_xcom_bytes: size limit of the value as JSON, in bytes, for a worker that pushes it; None passes no value.
    :param resume: end the task on a worker.
    :raises OpenmarketsQueryError: the query is not known to be safe to repeat.
    """

    def __init__(
        self,
        openmarkets_conn_id: str,
        query: Query,
        condition: str,
        poke_interval: float,
        deadline: float,
        max_failures: int | None,
        max_xcom_bytes: int | None,
        resume: bool = False,
    ) -> None:
        super().__init__()
        check_reads_only(query, "a trigger")
        self.openmarkets_conn_id = openmarkets_conn_id
        self.query = query
        self.condition = condition
        self.poke_interval = poke_interval
        self.deadline = deadline
        self.max_failures = max_failures
        self.max_xcom_bytes = max_xcom_bytes
        self.resume = resume

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the import path and the arguments, which hold no secret."""
        return serialize_trigger(self)

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll until the condition is met, an error is permanent, too many polls fail in a row, or the deadline."""
        try:
            async with asyncio.timeout(self.deadline - time.time()) as until_deadline:
                event = await self._poll()
        except TimeoutError:
            if not until_deadline.expired():
                raise
            event = TriggerEvent({"status": "timeout"})
        yield event

    async def _poll(self) -> TriggerEvent:
        failures = 0
        is_first = True
        async with contextlib.aclosing(poll_shared(self.openmarkets_conn_id, self.query, self.poke_interval)) as polls:
            async for reading in polls:
                try:
                    value = await reading.aevaluate(self.condition)
                    if is_first:
                        self.log.info("First poll: %s", describe_poll(self.condition, value, reading.result()))
                        is_first = False
                    if value:
                        return self._make_event(value)
                    failures = 0
                    self.log.info("The condition is not met yet; polling again in %.0f s.", reading.next_in)
                except OpenmarketsError as error:
                    if is_on_hold(error):
                        self.log.info("%s Polling again in %.0f s.", error, reading.next_in)
                        continue
                    failures += 1
                    if not error.transient or (self.max_failures is not None and failures > self.max_failures):
                        return TriggerEvent({"status": "error", "error": error.as_dict()})
                    self.log.warning(
                        "%s Polling again in %.0f s (failure %d in a row).", error, reading.next_in, failures
                    )
        raise AssertionError  # polls never end

    def _make_event(self, value: Any) -> TriggerEvent:
        self.log.info("The condition is met.")
        if not self.resume:
            return TaskSuccessEvent()
        if self.max_xcom_bytes is None:
            value = None
        else:
            ensure_fits_xcom(value, self.max_xcom_bytes)
        return TriggerEvent({"status": "met", "value": value})
