"""Tasks that each think they are on one of several hosts, since the files that tokens are kept in differ."""

from __future__ import annotations

import os
from datetime import UTC, datetime

from airflow.sdk import dag, task

from openmarkets_provider import queries
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
from openmarkets_provider.sensors.openmarkets import OpenmarketsSensor

TASKS, HOSTS = 60, 4
QUOTES = queries.quotes(["BHP"])
NEWS = queries.request("news", "GET", "announcements/v1")


def ask(host: str, query: queries.Query) -> None:
    os.environ["AIRFLOW__OPENMARKETS__TOKEN_CACHE_DIR"] = f"{os.environ['FLEET_HOSTS']}/{host}"
    assert OpenmarketsHook().run(query)


@dag(schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC), default_args={"retries": 0})
def fleet_tokens() -> None:
    @task(do_xcom_push=False)
    def burst(number: int) -> None:
        ask(f"host{number % HOSTS}", QUOTES)

    @task(do_xcom_push=False)
    def quotes_on_a_new_host() -> None:
        ask("quotes", QUOTES)

    @task(do_xcom_push=False)
    def news_on_a_new_host() -> None:
        ask("news", NEWS)

    # The triggerer is a host, too; only it asks for news.
    waiting = {"deferrable": True, "condition": "@", "poke_interval": 3, "timeout": 300}
    quotes = OpenmarketsSensor(task_id="quotes_in_the_triggerer", query=QUOTES, **waiting)
    news = OpenmarketsSensor(task_id="news_in_the_triggerer", query=NEWS, **waiting)
    burst.expand(number=list(range(TASKS))) >> [quotes_on_a_new_host(), quotes]
    news >> news_on_a_new_host()


fleet_tokens()
