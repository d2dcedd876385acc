"""DAGs that real watchers start: the sandbox publishes, and the triggerer is killed meanwhile."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.serde import deserialize

from tests.support.airflow import AirflowError, RealAirflow
from tests.support.sandbox_process import SandboxProcess
from tests.support.versions import at_least

pytestmark = pytest.mark.airflow

HERE = Path(__file__).parent
EXAMPLES = HERE.parent.parent / "example_dags"
BHP = "BHP.ASX@TM"
NEWS_PATH = "GET /news/announcements/v1"
PATIENCE = 120


@dataclass(frozen=True)
class Story:
    """What happened.

    :ivar there: how many announcements of BHP there were before.
    :ivar published: ids of the announcements, in order.
    :ivar sensitive: those of the price-sensitive ones.
    :ivar seen: ids that the runs of each DAG were started with.
    :ivar runs: how many runs each DAG had.
    :ivar polls: requests for news in some seconds.
    :ivar triggers: the ids of Airflow's triggers, at first and at last.
    :ivar busy: how many events each run of a DAG had that was at its ``max_active_runs`` for most of them.
    :ivar queued: the assets that remembered something before there was a triggerer of the queue, and after that.
    :ivar log: lines of the watchers in the triggerer's log, of both of its lives.
    """

    there: int
    published: list[str]
    sensitive: list[str]
    seen: dict[str, list[str]]
    runs: dict[str, int]
    polls: int
    seconds: float
    triggers: tuple[list[int], list[int]]
    busy: list[int]
    queued: tuple[set[str], set[str]]
    log: str


class Watching:
    """Publishes announcements, and reads what Airflow made of them."""

    def __init__(self, airflow: RealAirflow, sandbox: SandboxProcess) -> None:
        self.airflow, self.sandbox = airflow, sandbox
        self.published: list[str] = []
        self.sensitive: list[str] = []

    def publish(self, sensitive: bool = False) -> None:
        made = self.sandbox.publish(BHP, priceSensitive=sensitive, headline=f"Headline {len(self.published)}")
        self.published.append(made["announcementId"])
        if sensitive:
            self.sensitive.append(made["announcementId"])

    def until_seen(self, *dag_ids: str) -> None:
        """Wait until runs have ended that were started with all that was published."""

        def all_seen() -> bool:
            return all(set(self.published) <= set(self.seen(dag_id)) for dag_id in dag_ids)

        try:
            self.airflow.wait_until(f"{len(self.published)} announcements in {dag_ids}", all_seen, PATIENCE)
        except AirflowError as error:
            error.add_note(f"published: {self.published}, seen: { {dag_id: self.seen(dag_id) for dag_id in dag_ids} }")
            error.add_note("\n".join(self.log()))
            raise

    def seen(self, dag_id: str) -> list[str]:
        """Return the ids that the runs were started with that have ended."""
        return [item["announcementId"] for items in self.xcoms(dag_id, "return_value") for item in items]

    def xcoms(self, dag_id: str, key: str) -> list[Any]:
        """Return what the runs that have ended pushed."""
        ended = [run["dag_run_id"] for run in self.runs(dag_id) if run["state"] == "success"]
        paths = [f"{self.airflow.run_path(dag_id, run_id)}/taskInstances/read/xcomEntries/{key}" for run_id in ended]
        return [deserialize(self.airflow.call("GET", path)["value"]) for path in paths]

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        status, body = self.airflow.api("GET", f"/api/v2/dags/{dag_id}/dagRuns", limit=100)
        return list(body["dag_runs"]) if status == 200 else []

    def polls(self) -> int:
        return int(self.sandbox.stats()["by_path"].get(NEWS_PATH, 0))

    def database(self, statement: str) -> list[Any]:
        with closing(sqlite3.connect(f"file:{self.airflow.home}/airflow.db?mode=ro", uri=True, timeout=30)) as database:
            return database.execute(statement).fetchall()

    def remembered(self) -> dict[str, int]:
        """Return how many keys each asset remembers."""
        rows = self.database(
            "select asset.name, json_extract(value, '$.count') from asset_state_store join asset on asset.id = asset_id"
        )
        return dict(rows)

    def triggers(self) -> list[int]:
        return [each for (each,) in self.database("select id from trigger order by id")]

    def log(self) -> list[str]:
        words = ("Watching ", "Trigger fired event")
        lines = self.airflow.component_logs()["triggerer"].splitlines()
        return [line for line in lines if any(word in line for word in words)]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    dags = tmp_path_factory.mktemp("dags")
    go = tmp_path_factory.mktemp("go") / "go"
    for source in (HERE / "event_dags" / "watchers.py", EXAMPLES / "example_on_announcement.py"):
        # The example polls once a minute.
        (dags / source.name).write_text(source.read_text().replace("poll_interval=60", "poll_interval=2"))
    with SandboxProcess() as sandbox:
        env = {
            "AIRFLOW_CONN_OPENMARKETS_DEFAULT": sandbox.connection_json,
            # After this many seconds without a heartbeat a triggerer's triggers go to another one.
            "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
            "AIRFLOW__TRIGGERER__QUEUES_ENABLED": "True",
            "EVENTS_GO": str(go),
        }
        with RealAirflow(dags, env=env, schedules=True) as airflow:
            return tell(Watching(airflow, sandbox), go)


def tell(watching: Watching, go: Path) -> Story:
    airflow = watching.airflow
    everybody = ("on_all_news", "on_twin_news", "example_on_announcement")

    def first_polls() -> bool:
        return {"all_news", "sensitive_news", "twin_news", "announcements"} <= set(watching.remembered())

    airflow.wait_until("the first polls", first_polls, PATIENCE)
    polls, since = watching.polls(), time.monotonic()
    triggers = watching.triggers()
    start = watching.remembered()["all_news"]
    watching.publish()
    watching.until_seen(*everybody)
    watching.publish(sensitive=True)
    watching.until_seen(*everybody)

    def kept() -> bool:
        return watching.remembered()["all_news"] == start + len(watching.published)

    # Killed sooner, it may fire the last one again.
    airflow.wait_until("the memory", kept, PATIENCE)
    polls, seconds = watching.polls() - polls, time.monotonic() - since
    log = watching.log()
    airflow.kill("triggerer")
    log.append("--- the triggerer is killed, two announcements are published, it starts again")
    watching.publish()
    watching.publish(sensitive=True)
    airflow.start_triggerer()
    watching.until_seen(*everybody)
    airflow.wait_until("the memory", kept, PATIENCE)
    watching.publish()
    watching.until_seen(*everybody)
    # One run after the other: Airflow 3.3 has passed the third and the fourth event to none of them.
    go.touch()
    runs = 4 if at_least("3.4") else 2
    airflow.wait_until(
        "the runs of on_busy_news", lambda: len(watching.xcoms("on_busy_news", "events")) == runs, PATIENCE
    )
    watching.publish()
    watching.until_seen(*everybody, "on_busy_news")
    enough = watching.polls() + 8
    airflow.wait_until("some more polls", lambda: watching.polls() >= enough, PATIENCE)
    log += watching.log()
    queued = set(watching.remembered())
    if at_least("3.4"):
        airflow.start_triggerer("news")
        airflow.wait_until("the watcher of the queue", lambda: "queued_news" in watching.remembered(), PATIENCE)
    dag_ids = (*everybody, "on_sensitive_news", "on_wrong_news")
    return Story(
        start,
        watching.published,
        watching.sensitive,
        {dag_id: watching.seen(dag_id) for dag_id in dag_ids},
        {dag_id: len(watching.runs(dag_id)) for dag_id in dag_ids},
        polls,
        seconds,
        (triggers, watching.triggers()),
        watching.xcoms("on_busy_news", "events"),
        (queued, set(watching.remembered())),
        "\n".join(log),
    )


@pytest.mark.parametrize("dag_id", ["on_all_news", "on_twin_news", "example_on_announcement"])
def test_each_announcement_is_in_a_run_once_also_those_while_the_triggerer_was_down(story: Story, dag_id: str):
    assert len(story.published) == 6
    assert sorted(story.seen[dag_id]) == sorted(story.published)
    # Those two were found by one poll.
    assert story.runs[dag_id] == 5


def test_events_that_wait_for_a_run_come_together_before_airflow_3_4_and_one_by_one_from_then_on(story: Story):
    assert sum(story.busy) == 5
    if at_least("3.4"):
        assert story.busy == [1] * 5
    else:
        assert max(story.busy) > 1


@pytest.mark.since("3.4")
def test_a_watcher_of_a_queue_runs_in_a_triggerer_of_that_queue_alone(story: Story):
    without, there = story.queued
    assert there - without == {"queued_news"}


def test_a_watcher_fires_for_the_items_that_it_chooses(story: Story):
    assert sorted(story.seen["on_sensitive_news"]) == sorted(story.sensitive)
    assert story.runs["on_wrong_news"] == 0


def test_watchers_of_the_same_poll_share_it_and_equal_ones_are_one_trigger(story: Story):
    first, last = story.triggers
    # Before Airflow 3.4 the one of a queue is equal, too.
    assert len(first) == (5 if at_least("3.4") else 4)
    assert first == last
    # The example polls, and the four others do together; each waits two seconds from poll to poll.
    assert story.polls <= 2 * (story.seconds / 2 + 1)


def test_the_log_tells_it(story: Story):
    print(story.log)
    killed, restarted = story.log.split("--- the triggerer is killed")
    name = "Watching GET news announcements/v1 (openmarkets_default), items '@', key 'announcementId': "
    assert f"{name}{story.there} items exist already; new items fire from now on." in killed
    assert f'{name}1 of {story.there + 1} items are new: "{story.published[0]}".' in killed
    assert f"{name}continuing with {story.there + 2} keys from the state store." in restarted
    assert f"{name}2 of {story.there + 4} items are new: " in restarted
    assert "items: 'nowhere' gives null, not a list." in killed
