"""The event trigger in Airflow's own trigger runner, against the sandbox."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import subprocess
import sys
import threading
from typing import Any

import pytest
from airflow.sdk import Asset, AssetWatcher
from airflow.serialization.decoders import smart_decode_trigger_kwargs
from airflow.serialization.encoders import encode_trigger
from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from openmarkets_provider import queries
from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
from openmarkets_provider.triggers._quote_batching import Outcome
from openmarkets_provider.triggers._seen_keys import digest
from openmarkets_provider.triggers._shared_polls import Reading
from openmarkets_provider.triggers.events import OpenmarketsEventTrigger
from tests.support.triggerer import StateStores, Triggerer
from tests.support.versions import at_least

NEWS = queries.request("news", "GET", "announcements/v1", params={"security": "BHP.ASX@TM"})
BHP = "BHP.ASX@TM"
NEWS_PATH = "GET /news/announcements/v1"
DEEP: list[Any] = functools.reduce(lambda inner, _: [inner], range(2000), [])


def watch(**changes: Any) -> OpenmarketsEventTrigger:
    return OpenmarketsEventTrigger(**({"query": NEWS, "key": "announcementId", "poll_interval": 1} | changes))


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch) -> StateStores:
    return StateStores(monkeypatch)


@pytest.fixture
def polls(openmarkets_sandbox):
    return lambda: openmarkets_sandbox.stats()["by_path"].get(NEWS_PATH, 0)


async def answer(query: Any) -> Any:
    hook = OpenmarketsHook()
    try:
        return await hook.arun(query)
    finally:
        await hook.aclose()


def keys(payloads: list[Any]) -> list[Any]:
    return [part["key"] for payload in payloads for part in payload["items"]]


def seen(stores: StateStores, asset: str = "a") -> int:
    """Return how many keys an asset remembers."""
    return sum(value["count"] for value in stores.values[asset].values())


# --- what is refused when the DAG is parsed


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"query": queries.request("news", "GET", "a/v1", params={"day": "{{ ds }}"})},
            "query: .*can't use a template",
        ),
        ({"query": queries.quotes("{{ params.codes }}")}, "query: .*can't use a template"),
        ({"items": "{{ x }}"}, "items: .*can't use a template"),
        ({"key": "{% x %}"}, "key: .*can't use a template"),
        ({"openmarkets_conn_id": "{{ x }}"}, "openmarkets_conn_id: .*can't use a template"),
        ({"openmarkets_conn_id": ""}, "openmarkets_conn_id must be the id"),
        ({"openmarkets_conn_id": None}, "openmarkets_conn_id must be the id"),
        ({"items": "a["}, "^items: 'a\\[' is not a JMESPath"),
        ({"key": "a..b"}, "^key: 'a..b' is not a JMESPath"),
        ({"key": None}, "^key: expected a JMESPath"),
        ({"query": queries.orders(), "items": "[?orderState]"}, "^items: 'orderState' is not a column of orders"),
        ({"query": queries.orders(), "key": "[orderNumber, state]"}, "^key: .*; did you mean 'order_number'"),
        ({"query": queries.orders(), "items": "[?state].{n: order_number}", "key": "b["}, "^key: 'b\\[' is not a JMES"),
        ({"poll_interval": 0}, "poll_interval must be from 1 to 86400 seconds, not 0"),
        ({"poll_interval": 0.5}, "poll_interval"),
        ({"poll_interval": -1}, "poll_interval"),
        ({"poll_interval": True}, "poll_interval"),
        ({"poll_interval": "60"}, "poll_interval"),
        ({"poll_interval": float("nan")}, "poll_interval"),
        ({"poll_interval": float("inf")}, "poll_interval"),
        ({"query": {"endpoint": "quote"}}, "quote"),
        ({"query": None}, "query"),
        (
            {"query": queries.request("oms", "POST", "orders/v4", json={})},
            "query: POST oms orders/v4 is not known to be",
        ),
        ({"query": queries.request("oms", "DELETE", "orders/1")}, "safe_to_repeat=True"),
        ({"query": {**NEWS, "params": {"a": DEEP}}}, "^query: nested too deeply"),
        ({"items": DEEP}, "^items: nested too deeply"),
    ],
)
def test_what_can_not_work_fails_the_dags_parsing(changes: dict[str, Any], says: str):
    with pytest.raises(OpenmarketsQueryError, match=says) as caught:
        watch(**changes)
    # Any other kind, raised where the triggerer makes the trigger, ends the whole triggerer.
    assert isinstance(caught.value, TypeError)


def test_a_call_that_is_said_to_only_read_is_taken():
    query = queries.request("oms", "POST", "search/v1", json={"state": "FILLED"}, safe_to_repeat=True)
    assert watch(query=query).query == query


def test_a_query_with_what_is_not_json_is_refused():
    with pytest.raises(OpenmarketsQueryError, match="query"):
        watch(query={**NEWS, "params": {"a": object()}})


async def test_a_trigger_that_this_version_refuses_does_not_end_the_triggerer(stores: StateStores):
    async with Triggerer() as triggerer:
        refused = watch()
        refused.items = "a["
        await triggerer.start(1, refused, "a")
        ((trigger_id, error),) = triggerer.runner.failed_triggers
        assert (trigger_id, type(error).__mro__[1]) == (1, OpenmarketsQueryError)


# --- how Airflow keeps it


def test_it_is_made_again_from_what_airflow_keeps_which_holds_no_secret(openmarkets_sandbox):
    trigger = watch(items="[?priceSensitive]")
    path, kwargs = trigger.serialize()
    assert path == "openmarkets_provider.triggers.events.OpenmarketsEventTrigger"
    kept = json.loads(json.dumps(encode_trigger(trigger), default=str))
    again = OpenmarketsEventTrigger(**{name: smart_decode_trigger_kwargs(value) for name, value in kwargs.items()})
    assert again.serialize() == (path, kwargs)
    assert openmarkets_sandbox.client_secret not in repr(again) + str(kept)
    # A different hash at each parse would create the watcher again each time.
    assert BaseEventTrigger.hash(**encode_trigger(trigger)) == BaseEventTrigger.hash(path, kwargs)


def test_its_queue_is_what_airflow_keeps_which_has_queues_from_3_4_on():
    if not at_least("3.4"):
        with pytest.raises(OpenmarketsQueryError, match=r"queue needs Airflow 3\.4 or later") as caught:
            watch(queue="news")
        assert isinstance(caught.value, TypeError)
        return
    trigger = watch(queue="news")
    assert encode_trigger(trigger)["queue"] == "news"
    _, kwargs = trigger.serialize()
    assert OpenmarketsEventTrigger(**kwargs).queue == "news"
    # Airflow identifies triggers by these arguments: a watcher with a new queue is another trigger.
    assert kwargs != watch().serialize()[1]
    assert trigger.shared_stream_key() == watch().shared_stream_key()
    for value, says in (
        (1, "queue must be the name"),
        ("", "queue must be the name"),
        ("{{ x }}", "can't use a template"),
    ):
        with pytest.raises(OpenmarketsQueryError, match=f"^queue: .*{says}"):
            watch(queue=value)


def test_an_asset_takes_it_and_loading_it_costs_little():
    assert Asset("a", watchers=[AssetWatcher(name="news", trigger=watch())]).watchers[0].trigger.poll_interval == 1.0
    probe = (
        "import sys, airflow.triggers.base; before = set(sys.modules); import openmarkets_provider.triggers.events;"
        "print(sorted(name for name in set(sys.modules) - before if not name.startswith('openmarkets_provider')"
        " and name.partition('.')[0] not in sys.stdlib_module_names))"
    )
    output = subprocess.check_output([sys.executable, "-c", probe], text=True)
    assert output.splitlines()[-1] == "[]"


# --- what fires


async def test_each_new_item_fires_once_and_what_is_there_already_never(openmarkets_sandbox, stores, polls):
    openmarkets_sandbox.publish(BHP, headline="before")
    async with Triggerer() as triggerer:
        await triggerer.start(1, watch(), "a")
        await triggerer.until(lambda: seen(stores))
        first = openmarkets_sandbox.publish(BHP, headline="first")
        await triggerer.until(lambda: triggerer.stored[1])
        assert triggerer.stored[1] == [{"items": [{"item": first, "key": first["announcementId"]}]}]
        others = [openmarkets_sandbox.publish(BHP) for _ in range(3)]
        enough = polls() + 4
        await triggerer.until(lambda: polls() >= enough)
    expected = [each["announcementId"] for each in (first, *others)]
    # One poll or two may have found the others.
    assert sorted(keys(triggerer.stored[1])) == sorted(expected)


async def test_watchers_with_the_same_poll_share_it(openmarkets_sandbox, stores, polls):
    async with Triggerer() as triggerer:
        await triggerer.start(1, watch(), "a")
        await triggerer.start(2, watch(items="[?priceSensitive]", key="[announcementId, headline]"), "b")
        await triggerer.start(3, watch(items="nowhere"), "c")
        await triggerer.until(lambda: seen(stores, "a") and stores.values["b"])
        published = openmarkets_sandbox.publish(BHP, priceSensitive=True, headline="x")
        openmarkets_sandbox.publish(BHP)
        enough = polls() + 4
        await triggerer.until(lambda: polls() >= enough)
        assert len(triggerer.runner._shared_streams._groups) == 1
    assert len(keys(triggerer.stored[1])) == 2
    assert keys(triggerer.stored[2]) == [[published["announcementId"], "x"]]
    assert triggerer.stored[3] == []
    # Since the first one started, one request for all three at each poll.
    assert openmarkets_sandbox.stats()["requests"]["news"] == polls() <= enough + 1


async def test_what_a_poll_finds_is_one_event_and_what_is_too_much_for_it_fires_next(openmarkets_sandbox, stores):
    async with Triggerer() as triggerer:
        await triggerer.start(1, watch(), "a")
        await triggerer.until(lambda: seen(stores))
        before = seen(stores)
        published = [openmarkets_sandbox.publish(BHP, headline="x" * 16_000)["announcementId"] for _ in range(12)]
        await triggerer.until(lambda: seen(stores) == before + 12)
    assert sorted(keys(triggerer.stored[1])) == sorted(published)
    assert len(triggerer.stored[1]) < 12


# --- what survives


async def test_what_was_not_stored_when_the_triggerer_was_killed_fires_again(openmarkets_sandbox, stores):
    async with Triggerer() as killed:
        await killed.start(1, watch(), "a")
        await killed.until(lambda: seen(stores))
        stored = openmarkets_sandbox.publish(BHP)["announcementId"]
        before = seen(stores)
        await killed.until(lambda: seen(stores) > before)
        assert keys(killed.stored[1]) == [stored]
        lost = openmarkets_sandbox.publish(BHP)["announcementId"]
        await killed.until(killed.fired, storing=False)
    meanwhile = openmarkets_sandbox.publish(BHP)["announcementId"]
    async with Triggerer() as again:
        await again.start(1, watch(), "a")
        await again.until(lambda: len(keys(again.stored[1])) == 2)
        await again.until(lambda: seen(stores) == before + 3)
        assert keys(again.stored[1]) == [meanwhile, lost]


async def test_what_others_of_the_stream_confirm_says_nothing_of_a_watcher_that_was_ended(openmarkets_sandbox, stores):
    async with Triggerer() as triggerer:
        triggerer.runner._shared_streams._ack_timeout = 2
        await triggerer.start(1, watch(), "a")
        await triggerer.start(2, watch(items="[]"), "b")
        await triggerer.until(lambda: seen(stores, "a") and seen(stores, "b"))
        before = seen(stores, "a")
        published = openmarkets_sandbox.publish(BHP)["announcementId"]
        await triggerer.until(lambda: triggerer.fired() == 2, storing=False)
        # That of the first one is never stored.
        lost = next(entry for entry in triggerer.runner.events if entry.trigger_id == 1)
        triggerer.runner.events.remove(lost)
        triggerer.runner.triggers[1]["task"].cancel()
        await triggerer.until(lambda: seen(stores, "b") == before + 1 and triggerer.stored[1])
        await triggerer.until(lambda: seen(stores, "a") == before + 1)
    assert set(keys(triggerer.stored[1])) == set(keys(triggerer.stored[2])) == {published}


async def test_events_that_are_never_stored_time_out_and_fire_again(openmarkets_sandbox, stores, polls):
    async with Triggerer() as triggerer:
        triggerer.runner._shared_streams._ack_timeout = 2
        await triggerer.start(1, watch(), "a")
        await triggerer.until(lambda: seen(stores))
        before = seen(stores)
        published = openmarkets_sandbox.publish(BHP)["announcementId"]
        await triggerer.until(triggerer.fired, storing=False)
        triggerer.runner.events.clear()
        await triggerer.until(lambda: triggerer.runner.triggers[1]["task"].done(), storing=False)
        assert seen(stores) == before
        await triggerer.until(lambda: seen(stores) > before)
        assert keys(triggerer.stored[1]) == [published]


async def test_a_changed_watcher_begins_anew_and_a_changed_interval_goes_on(openmarkets_sandbox, stores):
    async def run(trigger: OpenmarketsEventTrigger) -> list[Any]:
        published = openmarkets_sandbox.publish(BHP)["announcementId"]
        everything = len(await answer(NEWS))
        async with Triggerer() as triggerer:
            await triggerer.start(1, trigger, "a")
            kept = stores.values["a"]
            await triggerer.until(lambda: kept.get(trigger._store._key, {}).get("count") == everything)
            assert keys(triggerer.stored[1]) in ([], [published])
            return triggerer.stored[1]

    assert await run(watch()) == []
    assert await run(watch(poll_interval=2)) != []
    assert await run(watch(items="[]")) == []
    assert await run(watch(key="[announcementId]")) == []
    assert len(stores.values["a"]) == 3


async def test_a_damaged_memory_is_told_and_begins_anew(openmarkets_sandbox, stores, caplog):
    stores.values["a"][watch()._store._key] = "garbage"
    async with Triggerer() as triggerer:
        await triggerer.start(1, watch(), "a")
        await triggerer.until(lambda: stores.values["a"][watch()._store._key] != "garbage")
        assert triggerer.stored[1] == []
    assert "is damaged and ignored" in caplog.text
    assert "Watching GET news announcements/v1 (openmarkets_default)" in caplog.text


async def test_while_the_state_store_fails_nothing_fires_that_can_not_be_compared(
    openmarkets_sandbox, stores, polls, caplog
):
    async with Triggerer() as triggerer:
        await triggerer.start(1, watch(), "a")
        await triggerer.until(lambda: seen(stores))
    published = [openmarkets_sandbox.publish(BHP)["announcementId"]]
    stores.fails = True
    async with Triggerer() as triggerer:
        await triggerer.start(1, watch(), "a")
        enough = polls() + 3
        await triggerer.until(lambda: polls() >= enough)
        assert triggerer.stored[1] == []
        assert "could not read the asset's state store" in caplog.text
        stores.fails = False
        await triggerer.until(lambda: triggerer.stored[1])
        before = seen(stores)
        # What can't be kept is kept later, and fires once.
        stores.fails = True
        published.append(openmarkets_sandbox.publish(BHP)["announcementId"])
        await triggerer.until(lambda: "could not save the keys of an event" in caplog.text)
        stores.fails = False
        await triggerer.until(lambda: seen(stores) > before)
        assert not triggerer.runner.triggers[1]["task"].done()
    assert keys(triggerer.stored[1]) == published


async def test_identical_watchers_of_two_assets_share_what_either_remembers(openmarkets_sandbox, stores, polls):
    async with Triggerer() as triggerer:
        await triggerer.start(1, watch(), "a")
        await triggerer.until(lambda: seen(stores, "a"))
    published = openmarkets_sandbox.publish(BHP)["announcementId"]
    async with Triggerer() as triggerer:
        await triggerer.start(1, watch(), "a", "b")
        await triggerer.until(lambda: seen(stores, "a") == seen(stores, "b") > 0)
        assert keys(triggerer.stored[1]) == [published]
    # One of them is behind, as after a failed write: nothing fires again.
    stores.values["b"] = {watch()._store._key: {"format": 1, "count": 0, "seen": ""}}
    async with Triggerer() as triggerer:
        await triggerer.start(1, watch(), "a", "b")
        await triggerer.until(lambda: seen(stores, "b") == seen(stores, "a"))
        assert triggerer.stored[1] == []


# --- errors


@pytest.mark.parametrize("status", [503, 404, 403])
async def test_errors_end_nothing_and_are_polled_ever_more_seldom(openmarkets_sandbox, stores, polls, caplog, status):
    async with Triggerer() as triggerer:
        await triggerer.start(1, watch(), "a")
        await triggerer.until(lambda: seen(stores))
        openmarkets_sandbox.fault(
            target="news", kind="status", status=status, retry_after=0, times=12 if status == 503 else 3
        )
        published = openmarkets_sandbox.publish(BHP)["announcementId"]
        await triggerer.until(lambda: triggerer.stored[1])
        assert not triggerer.runner.triggers[1]["task"].done()
    assert keys(triggerer.stored[1]) == [published]
    found = [record for record in caplog.records if "(failure " in record.message]
    assert found[0].levelno == (logging.WARNING if status == 503 else logging.ERROR)
    assert f"{status}" in found[0].message
    if len(found) > 2:
        assert "Polling again in 2 s (failure 2 in a row)" in found[1].message
    assert "polls succeed again" in caplog.text
    assert openmarkets_sandbox.client_secret not in caplog.text


async def test_a_connection_that_is_missing_is_told_and_ends_nothing(openmarkets_sandbox, stores, caplog, monkeypatch):
    async with Triggerer() as triggerer:
        await triggerer.start(1, watch(openmarkets_conn_id="later"), "a")
        await triggerer.until(lambda: "(failure 1 in a row)" in caplog.text)
        assert "later" in caplog.text
        monkeypatch.setenv("AIRFLOW_CONN_LATER", json.dumps(openmarkets_sandbox.connection))
        await triggerer.until(lambda: seen(stores))
        assert not triggerer.runner.triggers[1]["task"].done()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"items": "nowhere"}, "items: 'nowhere' gives null"),
        ({"key": "nowhere"}, "key: 'nowhere' is null for"),
        ({"key": "abs(headline)"}, "key: 'abs(headline)' does not fit"),
    ],
)
async def test_expressions_that_do_not_fit_are_told_seldom_and_end_nothing(
    openmarkets_sandbox, stores, polls, caplog, changes, says
):
    async with Triggerer() as triggerer:
        await triggerer.start(1, watch(**changes), "a")
        enough = polls() + 4
        await triggerer.until(lambda: polls() >= enough)
        assert not triggerer.runner.triggers[1]["task"].done()
    found = [record.message for record in caplog.records if says in record.message]
    assert [text[text.rindex("(") :] for text in found][:2] == ["(failure 1 in a row).", "(failure 2 in a row)."]
    assert len(found) <= 3
    assert stores.values["a"] == {}


async def test_polls_that_break_off_are_begun_again(openmarkets_sandbox, stores, polls, caplog):
    async with Triggerer() as triggerer:
        await triggerer.start(1, watch(), "a")
        await triggerer.until(lambda: seen(stores))
        (polling,) = [task for task in asyncio.all_tasks() if "_Group._run" in repr(task)]
        polling.cancel()
        published = openmarkets_sandbox.publish(BHP)["announcementId"]
        await triggerer.until(lambda: triggerer.stored[1])
        assert keys(triggerer.stored[1]) == [published]
        assert "shares with others has failed" in caplog.text


async def test_the_event_loop_goes_on_while_a_large_poll_is_compared_once_for_all_watchers():
    looked_at: list[str] = []
    go_on = threading.Event()

    class Item(dict[str, Any]):
        def items(self):
            looked_at.append(self["announcementId"])
            assert go_on.wait(10)
            return super().items()

    reading, watchers = Reading(Outcome([Item(announcementId="1")]), 1.0), [watch() for _ in range(5)]
    looks = [asyncio.create_task(watcher._find_payload(reading)) for watcher in watchers]
    while not looked_at:
        await asyncio.sleep(0.01)
    go_on.set()
    assert await asyncio.gather(*looks) == [[]] * 5
    assert looked_at == ["1"]
    assert [watcher._seen.digests for watcher in watchers] == [(digest("1"),)] * 5


# --- Airflow before 3.3


async def test_without_shared_streams_and_state_it_runs_with_the_memory_of_its_process(openmarkets_sandbox, polls):
    trigger = watch()
    fired: list[TriggerEvent] = []

    async def run() -> None:
        async for event in trigger.run():
            fired.append(event)

    running = asyncio.create_task(run())
    async with asyncio.timeout(60):
        while polls() < 2:
            await asyncio.sleep(0.02)
        published = openmarkets_sandbox.publish(BHP)
        while not fired:
            await asyncio.sleep(0.02)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert [event.payload for event in fired] == [{"items": [{"item": published, "key": published["announcementId"]}]}]
