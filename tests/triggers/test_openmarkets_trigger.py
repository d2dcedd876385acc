from __future__ import annotations

import asyncio
import json
import sys
import time
from types import FrameType
from typing import Any

import pytest
from airflow.triggers.base import TaskSuccessEvent, TriggerEvent

from openmarkets_provider import queries
from openmarkets_provider.conditions import Evaluator
from openmarkets_provider.exceptions import OpenmarketsQueryError, OpenmarketsServerError, from_dict
from openmarkets_provider.query.rows import to_batch
from openmarkets_provider.triggers.openmarkets import OpenmarketsConditionTrigger
from tests.support.polls import QUOTES
from tests.support.versions import serde

OPEN = "[0].trading_status == 'OPEN'"


def trigger(**changes: Any) -> OpenmarketsConditionTrigger:
    kwargs: dict[str, Any] = {
        "openmarkets_conn_id": "openmarkets_default",
        "query": queries.quotes(["BHP"]),
        "condition": OPEN,
        "poke_interval": 0.05,
        "deadline": time.time() + 60,
        "max_failures": 3,
        "max_xcom_bytes": None,
    }
    return OpenmarketsConditionTrigger(**(kwargs | changes))


def events(trigger: OpenmarketsConditionTrigger) -> list[TriggerEvent]:
    async def collect() -> list[TriggerEvent]:
        return [event async for event in trigger.run()]

    return asyncio.run(asyncio.wait_for(collect(), 60))


def error_of(fired: list[TriggerEvent]):
    (event,) = fired
    assert event.payload["status"] == "error"
    return from_dict(json.loads(json.dumps(event.payload["error"])))


def test_it_is_made_again_from_what_it_serialises_which_holds_no_secret(openmarkets_sandbox):
    path, kwargs = trigger().serialize()
    assert path == "openmarkets_provider.triggers.openmarkets.OpenmarketsConditionTrigger"
    assert serde.deserialize(serde.serialize(kwargs)) == kwargs
    again = OpenmarketsConditionTrigger(**kwargs)
    assert again.serialize() == (path, kwargs)
    assert openmarkets_sandbox.client_secret not in repr(again)


def test_a_met_condition_ends_the_task_without_a_worker(openmarkets_sandbox):
    (event,) = events(trigger())
    assert isinstance(event, TaskSuccessEvent)
    assert event.xcoms is None


def test_with_resume_a_worker_ends_the_task_and_gets_the_value_where_it_needs_it(openmarkets_sandbox):
    (resumed,) = events(trigger(resume=True))
    assert resumed.payload == {"status": "met", "value": None}
    (resumed,) = events(trigger(resume=True, max_xcom_bytes=1000))
    assert resumed.payload == {"status": "met", "value": True}


def test_the_value_that_a_worker_gets_is_json(openmarkets_sandbox):
    bars = queries.time_series("BHP", start="2026-03-02", end="2026-03-03")
    (resumed,) = events(trigger(query=bars, condition="[0]", resume=True, max_xcom_bytes=10_000))
    value = resumed.payload["value"]
    assert json.loads(json.dumps(value)) == value
    assert value["time_series_date"] == "2026-03-02"
    assert type(value["close_price"]) is float


@pytest.mark.parametrize("value", ["1180591620717411303424", "1e999"])
def test_a_value_that_would_end_the_triggerer_is_an_error_of_its_task_alone(openmarkets_sandbox, value):
    error = error_of(events(trigger(condition=f"`{value}`", resume=True, max_xcom_bytes=1000)))
    assert "can't be pushed to XCom" in str(error)
    assert not error.transient


async def test_it_polls_until_the_condition_is_met(openmarkets_sandbox):
    openmarkets_sandbox.set_security("BHP.ASX@TM", tradingStatus="PRE_OPEN")

    async def open_after_some_polls() -> None:
        while openmarkets_sandbox.stats()["requests"].get("market_data", 0) <= 3:
            await asyncio.sleep(0.01)
        openmarkets_sandbox.set_security("BHP.ASX@TM", tradingStatus="OPEN")

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        tasks.create_task(open_after_some_polls())
        (event,) = [event async for event in trigger().run()]
    assert isinstance(event, TaskSuccessEvent)
    assert openmarkets_sandbox.stats()["requests"]["market_data"] > 3
    assert openmarkets_sandbox.stats()["token_requests_total"] <= 1


@pytest.mark.parametrize(
    ("query", "is_large"),
    [(queries.quotes(["BHP"]), False), (queries.time_series("BHP", start="2025-01-01", end="2025-12-31"), True)],
    ids=["small", "large"],
)
def test_a_large_result_is_built_and_evaluated_in_a_thread_and_a_small_one_on_the_event_loop(
    openmarkets_sandbox, query, is_large
):
    on_the_loop = set()

    def record(frame: FrameType, event: str, argument: object) -> None:
        on_the_loop.add(frame.f_code)

    sys.setprofile(record)
    try:
        (event,) = events(trigger(query=query, condition="length(@) > `0`"))
    finally:
        sys.setprofile(None)
    assert isinstance(event, TaskSuccessEvent)
    assert (to_batch.__code__ in on_the_loop) is not is_large
    assert (Evaluator.evaluate.__code__ in on_the_loop) is not is_large


def test_the_first_poll_says_what_the_condition_gave(openmarkets_sandbox, caplog, capfd):
    openmarkets_sandbox.set_security("BHP.ASX@TM", tradingStatus="PRE_OPEN")
    caplog.set_level("INFO")

    async def fire() -> None:
        async for _ in trigger().run():
            return

    async def meet_the_condition() -> None:
        polling = asyncio.create_task(fire())
        while openmarkets_sandbox.stats()["requests"]["market_data"] < 2:
            await asyncio.sleep(0.01)
        openmarkets_sandbox.set_security("BHP.ASX@TM", tradingStatus="OPEN")
        await polling

    asyncio.run(asyncio.wait_for(meet_the_condition(), 60))
    # Through structlog from Airflow 3 on.
    report = capfd.readouterr().out + caplog.text
    assert report.count("First poll: ") == 1
    assert f"First poll: {OPEN} is False; the result has 1 row." in report


@pytest.mark.parametrize("late_by", [-1.5, 3600])
def test_its_deadline_ends_it_even_where_a_triggerer_starts_it_after_that(openmarkets_sandbox, late_by):
    openmarkets_sandbox.set_security("BHP.ASX@TM", tradingStatus="PRE_OPEN")
    (event,) = events(trigger(deadline=time.time() - late_by))
    assert event.payload == {"status": "timeout"}


@pytest.mark.parametrize("status", [404, 403, 400])
def test_a_permanent_error_is_told_at_once(openmarkets_sandbox, status):
    openmarkets_sandbox.fault(target="market_data", kind="status", status=status, times=None)
    error = error_of(events(trigger()))
    assert error.status == status
    assert openmarkets_sandbox.stats()["requests"]["market_data"] == 1


def test_a_few_transient_errors_in_a_row_are_tolerated(openmarkets_sandbox):
    openmarkets_sandbox.fault(target="market_data", kind="status", status=503, retry_after=0, times=12)
    (event,) = events(trigger())
    assert isinstance(event, TaskSuccessEvent)
    assert openmarkets_sandbox.stats()["by_path"][QUOTES] == 13


def test_too_many_transient_errors_in_a_row_are_told(openmarkets_sandbox):
    openmarkets_sandbox.fault(target="market_data", kind="status", status=503, retry_after=0, times=None)
    error = error_of(events(trigger()))
    assert isinstance(error, OpenmarketsServerError)
    assert error.transient
    assert openmarkets_sandbox.stats()["requests"]["market_data"] == 16


def test_with_any_number_tolerated_it_goes_on(openmarkets_sandbox):
    openmarkets_sandbox.fault(target="market_data", kind="status", status=503, retry_after=0, times=20)
    (event,) = events(trigger(max_failures=None))
    assert isinstance(event, TaskSuccessEvent)


@pytest.mark.parametrize("interval", [0.2, 0.5])
def test_the_interval_is_kept_when_the_condition_is_not_met(openmarkets_sandbox, interval):
    polls = trigger(query=queries.securities(), poke_interval=interval, condition="length(@) > `100000`")

    def polled() -> int:
        return openmarkets_sandbox.stats()["requests"].get("market_data", 0)

    async def time_of_two_intervals() -> float:
        running = asyncio.ensure_future(anext(aiter(polls.run())))
        while polled() < 1:
            await asyncio.sleep(0.01)
        first = time.monotonic()
        while polled() < 3:
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        return time.monotonic() - first

    # Between the first poll, which may be seen a little late, and the third.
    assert asyncio.run(time_of_two_intervals()) > 1.5 * interval


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_asks_for_a_longer_rest_is_not_polled_at_the_interval(openmarkets_sandbox, status):
    openmarkets_sandbox.fault(target="market_data", kind="status", status=status, retry_after=100, times=None)
    polls = trigger(query=queries.securities(), poke_interval=0.1, max_failures=None, condition="@")

    def polled() -> int:
        return openmarkets_sandbox.stats()["requests"].get("market_data", 0)

    async def for_ten_intervals() -> None:
        running = asyncio.ensure_future(anext(aiter(polls.run())))
        while polled() < 1:
            await asyncio.sleep(0.01)
        done, _ = await asyncio.wait({running}, timeout=1)
        assert not done
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(for_ten_intervals())
    assert polled() == 1


def test_a_value_too_large_for_xcom_is_an_error_and_not_a_crash(openmarkets_sandbox):
    assert "limit for XCom" in str(error_of(events(trigger(condition="@", max_xcom_bytes=10, resume=True))))


def test_an_expression_that_does_not_fit_the_result_is_told(openmarkets_sandbox):
    assert "does not fit" in str(error_of(events(trigger(condition="length(`1`)"))))


def test_cancelling_closes_the_connections(openmarkets_sandbox):
    async def cancel_between_polls() -> None:
        task = asyncio.create_task(anext(aiter(trigger(condition="`false`", poke_interval=30).run())))
        while openmarkets_sandbox.stats()["requests"].get("market_data", 0) < 1:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    started = time.monotonic()
    asyncio.run(cancel_between_polls())
    assert time.monotonic() - started < 20


def test_a_call_that_is_not_safe_to_repeat_is_refused():
    with pytest.raises(OpenmarketsQueryError, match="not known to be safe to repeat"):
        trigger(query=queries.request("oms", "POST", "orders/v4", json={}))
