"""Airflow's own trigger runner in this process; the supervisor's part, and the state store, are here."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Self

import pytest
from airflow.executors.workloads.trigger import RunTrigger
from airflow.jobs.triggerer_job_runner import TriggerRunner
from airflow.models.trigger import Trigger
from airflow.sdk.exceptions import ErrorType
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import (
    AssetStateStoreResult,
    ErrorResponse,
    GetAssetStateStoreByName,
    SetAssetStateStoreByName,
)
from airflow.triggers.base import BaseEventTrigger

PATIENCE = 60


class StateStores:
    """The state stores of all assets, as the supervisor answers for them.

    :ivar values: their values, by asset and key.
    :ivar fails: they answer with an error.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.values: dict[str, dict[str, Any]] = defaultdict(dict)
        self.fails = False
        self.asked = 0
        monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", self, raising=False)

    async def asend(self, message: Any) -> Any:
        self.asked += 1
        if self.fails:
            raise RuntimeError("the API server is down")
        match message:
            case GetAssetStateStoreByName(name=name, key=key):
                if key not in self.values[name]:
                    return ErrorResponse(error=ErrorType.ASSET_STORE_NOT_FOUND)
                return AssetStateStoreResult(value=self.values[name][key])
            case SetAssetStateStoreByName(name=name, key=key, value=value):
                self.values[name][key] = value
        return None


class Triggerer:
    """Runs event triggers as Airflow does; what they fire is stored when the test says so.

    :ivar stored: payloads of the events that were stored, by trigger.
    """

    def __init__(self) -> None:
        self.runner = TriggerRunner()
        self.stored: dict[int, list[Any]] = defaultdict(list)
        self._kinds: dict[int, tuple[BaseEventTrigger, tuple[str, ...]]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """End everything, as a triggerer does that is killed: nothing more is stored."""
        tasks = [details["task"] for details in self.runner.triggers.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.runner._shared_streams.stop_all()

    async def start(self, trigger_id: int, trigger: BaseEventTrigger, *assets: str) -> None:
        """Make the trigger from what Airflow keeps of it, and run it."""
        self._kinds[trigger_id] = (trigger, assets)
        path, kwargs = trigger.serialize()
        watched = {name: f"x://{name}" for name in assets}
        work = RunTrigger(
            id=trigger_id, classpath=path, encrypted_kwargs=Trigger.encrypt_kwargs(kwargs), watched_assets=watched
        )
        self.runner.to_create.append(work)
        await self.runner.create_triggers()

    async def store(self) -> None:
        """Store the events, notify the triggers, and restart those that have ended."""
        entries = [self.runner.events.popleft() for _ in range(len(self.runner.events))]
        for entry in entries:
            self.stored[entry.trigger_id].append(entry.event.payload)
        self.runner._shared_streams.confirm_persisted(
            [entry.persist_seq for entry in entries if entry.persist_seq is not None]
        )
        for trigger_id in await self.runner.cleanup_finished_triggers():
            trigger, assets = self._kinds[trigger_id]
            await self.start(trigger_id, trigger, *assets)

    def fired(self) -> int:
        """Return how many events wait to be stored."""
        return len(self.runner.events)

    async def until(self, reached: Callable[[], Any], storing: bool = True) -> None:
        """Continue until a condition is true."""
        async with asyncio.timeout(PATIENCE):
            while not reached():
                if storing:
                    await self.store()
                await asyncio.sleep(0.02)
