"""Watchers that share their polls, and one whose expressions don't fit."""

from __future__ import annotations

from typing import Any

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


def on_news(asset: Asset) -> None:
    @dag(dag_id=f"on_{asset.name}", schedule=[asset], default_args={"retries": 0})
    def on() -> None:
        @task
        def read(triggering_asset_events: Any = None) -> list[dict[str, Any]]:
            payloads = [event.extra["payload"] for event in triggering_asset_events[asset]]
            return [part["item"] for payload in payloads for part in payload["items"]]

        read()

    on()


for each in (ALL, SENSITIVE, TWIN, WRONG):
    on_news(each)
