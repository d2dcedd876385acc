"""Watchers that share their polls, one whose expressions don't fit, and one of a queue."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow import __version__
from airflow.sdk import Asset, AssetWatcher, dag, task

from openmarkets_provider import queries
from openmarkets_provider.triggers.events import OpenmarketsEventTrigger

NEWS = queries.request("news", "GET", "announcements/v1", params={"security": "BHP.ASX@TM"})


def watched(name: str, **arguments: Any) -> Asset:
    trigger = OpenmarketsEventTrigger(query=NEWS, key="announcementId", poll_interval=2, **arguments)
    return Asset(name, watchers=[AssetWatcher(name="news", trigger=trigger)])


ALL = watched("all_news")
SENSITIVE = watched("sensitive_news", items="[?priceSensitive]")
# The same trigger as that of ALL: Airflow keeps one for both.
TWIN = watched("twin_news")
WRONG = watched("wrong_news", items="nowhere")
# Triggerers have queues for watchers since 3.4; without one it is the trigger of ALL.
QUEUED = watched("queued_news", **({} if __version__ < "3.4" else {"queue": "news"}))
GO = Path(os.environ["EVENTS_GO"])


def on_news(asset: Asset, dag_id: str = "", go: Path | None = None) -> None:
    runs = 16 if go is None else 1

    @dag(dag_id=dag_id or f"on_{asset.name}", schedule=[asset], max_active_runs=runs, default_args={"retries": 0})
    def on() -> None:
        @task(execution_timeout=timedelta(minutes=10))
        def read(ti: Any = None, triggering_asset_events: Any = None) -> list[dict[str, Any]]:
            while go is not None and not go.exists():
                time.sleep(0.2)
            payloads = [event.extra["payload"] for event in triggering_asset_events[asset]]
            ti.xcom_push("events", len(payloads))
            return [part["item"] for payload in payloads for part in payload["items"]]

        read()

    on()


for each in (ALL, SENSITIVE, TWIN, WRONG, QUEUED):
    on_news(each)
# While its first run waits, the events of the others wait.
on_news(ALL, "on_busy_news", GO)
