"""A watcher, which starts when its DAG is unpaused."""

from __future__ import annotations

from airflow.sdk import Asset, AssetWatcher, dag, task

from openmarkets_provider import queries
from openmarkets_provider.triggers.events import OpenmarketsEventTrigger

# Once, so that no later poll is among the requests that a test counts.
trigger = OpenmarketsEventTrigger(query=queries.depth(["ANZ"]), key="[level, ask_price]", poll_interval=86_400)
levels = Asset("levels", watchers=[AssetWatcher(name="levels", trigger=trigger)])


@dag(schedule=[levels])
def watching() -> None:
    @task
    def nothing() -> None:
        pass

    nothing()


watching()
