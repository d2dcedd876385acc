"""Run for new announcements, instead of by a schedule.

## Needs

Airflow 3 with a triggerer, and the connection `openmarkets_default`.

## What starts a run

The triggerer polls the news once a minute, and creates an event of the asset `announcements` for new ones. It starts
when Airflow parses the file after the DAG was unpaused. Announcements before that start no run.

## Try it

The sandbox publishes on demand:

    curl -X POST http://127.0.0.1:8765/_sandbox/announcements -d '{"security": "BHP.ASX@TM"}'

The endpoints of the news API are not public: path, parameters and fields are those of the sandbox.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import Asset, AssetWatcher, dag, task

from openmarkets_provider import queries
from openmarkets_provider.triggers.events import OpenmarketsEventTrigger

announcements = Asset(
    "announcements",
    watchers=[
        AssetWatcher(
            name="openmarkets_news",
            trigger=OpenmarketsEventTrigger(
                query=queries.request("news", "GET", "announcements/v1"),
                key="announcementId",
                poll_interval=60,
            ),
        )
    ],
)


@dag(schedule=[announcements], tags=["openmarkets"], doc_md=__doc__)
def example_on_announcement() -> None:
    @task
    def read(triggering_asset_events: Any = None) -> list[dict[str, Any]]:
        """Return the announcements of this run. Several at the same time start one run."""
        found = []
        for event in triggering_asset_events[announcements]:
            for part in event.extra["payload"]["items"]:
                item = part["item"]
                print(f"{item['securityCode']} at {item['announcementDateTime']}: {item['headline']}")
                found.append(item)
        return found

    read()


example_on_announcement()
