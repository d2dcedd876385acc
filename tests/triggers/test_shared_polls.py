"""Polls that triggers share."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import json
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from openmarkets_provider import queries
from openmarkets_provider.exceptions import (
    OpenmarketsNotFound,
    OpenmarketsQueryError,
)
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
from openmarkets_provider.sandbox.server import Client, SandboxServer
from openmarkets_provider.triggers import _shared_polls as module
from openmarkets_provider.triggers._quote_batching import Outcome
from openmarkets_provider.triggers._shared_polls import Reading, poll_shared
from tests.support.polls import (
    CONN_ID,
    INFORMATION,
    LONG,
    QUOTES,
    Waiter,
    at_once,
    codes_of,
    full,
    market_data,
    take,
)

pytestmark = pytest.mark.usefixtures("nothing_is_left")


# What is shared


async def test_the_same_queries_share_each_poll_and_its_reading(openmarkets_sandbox):
    seen = await at_once(*(take(queries.accounts(), 3) for _ in range(50)))
    for number in range(3):
        assert len({id(each[number]) for each in seen}) == 1
        assert seen[0][number].result()
    assert openmarkets_sandbox.stats()["requests"]["oms"] == 3


async def test_the_same_query_written_in_another_order_is_the_same(openmarkets_sandbox):
    query = queries.accounts()
    await at_once(take(query), take(dict(reversed(query.items()))))
    assert openmarkets_sandbox.stats()["requests"]["oms"] == 1


async def test_quotes_of_many_securities_are_one_call_and_each_gets_its_own(openmarkets_sandbox):
    hook = OpenmarketsHook()
    codes = [row["security_code"] for row in await hook.arun(queries.securities())][:300]
    alone = await hook.arun(queries.quotes(codes[:3]))
    await hook.aclose()
    openmarkets_sandbox.reset()
    several = take(queries.quotes([codes[2], codes[0], codes[1]]))
    seen = await at_once(several, *(take(queries.quotes(code)) for code in codes))
    assert openmarkets_sandbox.stats()["by_path"] == {QUOTES: 1, INFORMATION: 1}
    assert [codes_of(reading) for (reading,) in seen] == [[codes[2], codes[0], codes[1]], *([code] for code in codes)]
    for (reading,), row in zip(seen[1:], alone, strict=False):
        (own,) = reading.result()
        assert own.keys() == row.keys()
        assert own["price_multiplier"] == row["price_multiplier"]


async def test_records_are_handed_back_as_rows_are(openmarkets_sandbox):
    (bhp,), (cba,) = await at_once(*(take(queries.quotes(code, raw=True)) for code in ("BHP", "CBA")))
    assert [record["securityCode"] for reading in (bhp, cba) for record in reading.result()] == ["BHP", "CBA"]
    assert openmarkets_sandbox.stats()["by_path"] == {QUOTES: 1, "POST /identity/connect/token": 1}


async def test_more_securities_than_one_call_takes_are_several_calls(offended):
    some = [f"A{number:04d}" for number in range(1000)]
    (one,), (other,) = await at_once(take(queries.quotes(some)), take(queries.quotes("BHP")))
    assert sorted(map(len, offended.calls)) == [1, 1000]
    assert codes_of(one) == some
    assert codes_of(other) == ["BHP"]


@pytest.mark.parametrize(
    "other",
    [
        {"query": queries.quotes("CBA", raw=True)},
        {"query": queries.quotes("CBA", on_invalid="warn")},
        {"query": queries.quotes("CBA.ASX@XX", on_invalid="warn")},
        {"query": queries.quotes(["CBA", "CBA.ASX@XX"], on_invalid="warn")},
        {"query": queries.quotes("cba")},
        {"interval": 0.06},
        {"back_off": True},
    ],
    ids=str,
)
async def test_what_differs_in_more_than_securities_is_not_put_together(openmarkets_sandbox, other):
    await at_once(take(queries.quotes("BHP")), take(**({"query": queries.quotes("CBA")} | other)))
    assert openmarkets_sandbox.stats()["by_path"][QUOTES] == 2


async def test_a_malformed_query_is_an_error_of_its_own_readings(openmarkets_sandbox):
    wrong = {**queries.quotes("BHP"), "securities": "B H/P"}
    (bad,), (none,), (unsendable,), (good,) = await at_once(
        take(wrong), take("BHP"), take({"endpoint": "accounts", "raw": {1, None}}), take(queries.quotes("BHP"))
    )
    for reading, text in ((bad, "malformed"), (none, "query must be"), (unsendable, "written as JSON")):
        assert isinstance(reading.error, OpenmarketsQueryError)
        with pytest.raises(OpenmarketsQueryError, match=text):
            reading.result()
    assert codes_of(good) == ["BHP"]


# What is not mixed


async def test_connections_are_never_mixed(openmarkets_sandbox, monkeypatch):
    other = Client("sandbox-market-data-client", "sandbox-market-data-secret")
    changed = {**openmarkets_sandbox.connection, "login": other.client_id, "password": other.client_secret}
    monkeypatch.setenv("AIRFLOW_CONN_OTHER_CLIENT", json.dumps(changed))
    with SandboxServer() as elsewhere:
        monkeypatch.setenv("AIRFLOW_CONN_ELSEWHERE", json.dumps(elsewhere.connection))
        elsewhere.set_security("BHP.ASX@TM", tradingStatus="HALTED")
        query = queries.quotes("BHP")
        (here,), (there,), (_,) = await at_once(
            take(query), take(query, conn_id="elsewhere"), take(query, conn_id="other_client")
        )
        assert there.evaluate("[0].trading_status") == "HALTED"
        assert here.evaluate("[0].trading_status") != "HALTED"
        assert elsewhere.stats()["by_path"][QUOTES] == 1
        assert elsewhere.stats()["token_requests_total"] == 1
    assert openmarkets_sandbox.stats()["by_path"][QUOTES] == 2
    assert openmarkets_sandbox.stats()["token_requests_total"] == 2


# Coming and going


async def test_a_newcomer_is_polled_at_once_and_nobody_else_more_often(openmarkets_sandbox):
    first = Waiter(queries.quotes("BHP"))
    await first.has(1)
    openmarkets_sandbox.set_security("BHP.ASX@TM", tradingStatus="HALTED")
    second, third = Waiter(queries.quotes("BHP")), Waiter(queries.quotes("CBA"))
    assert (await second.has(1)).evaluate("[0].trading_status") == "HALTED"
    assert 0 < (await third.has(1)).next_in < LONG
    assert len(first.seen) == 1
    assert openmarkets_sandbox.stats()["by_path"][QUOTES] == 2
    for waiter in (first, second, third):
        await waiter.cancel()


async def test_newcomers_then_keep_the_pace_of_the_others(openmarkets_sandbox):
    first = Waiter(queries.accounts(), 1.0)
    await first.has(1)
    second = Waiter(queries.accounts(), 1.0)
    await second.has(1)
    before = len(second.seen)
    await second.has(before + 2)
    await first.has(len(first.seen) + 1)
    assert all(any(reading is other for other in first.seen) for reading in second.seen[before : before + 2])
    await first.cancel()
    await second.cancel()
    # One more may have been under way.
    polls = {id(reading) for reading in first.seen + second.seen}
    assert openmarkets_sandbox.stats()["requests"]["oms"] <= len(polls) + 1


async def test_a_newcomer_does_not_get_what_was_asked_before_it_came(offended):
    offended.hold.clear()
    first = Waiter(queries.quotes("BHP"))
    while not offended.calls:
        await asyncio.sleep(0.01)
    second = Waiter(queries.quotes("BHP"))
    await asyncio.sleep(0)
    offended.hold.set()
    await second.has(1)
    assert len(first.seen) == 1
    assert first.seen[0] is not second.seen[0]
    assert len(offended.calls) == 2
    await first.cancel()
    await second.cancel()


async def test_a_newcomer_keeps_the_rest_that_the_server_asked_for(openmarkets_sandbox):
    openmarkets_sandbox.fault(target="market_data", kind="status", status=429, retry_after=100)
    first = Waiter(queries.quotes("BHP"), 0.05)
    assert 90 < round((await first.has(1)).next_in, 3) <= 100
    second = Waiter(queries.quotes("CBA"), 0.05)
    await asyncio.sleep(3 * module.WINDOW)
    assert not second.seen
    assert len(first.seen) == 1
    assert market_data(openmarkets_sandbox) == 1
    await first.cancel()
    await second.cancel()


async def test_cancelling_one_disturbs_nobody(openmarkets_sandbox):
    waiters = [Waiter(queries.quotes(code), 0.05) for code in ("BHP", "CBA", "RIO")]
    for waiter in waiters:
        await waiter.has(1)
    await waiters[0].cancel()
    for waiter in waiters[1:]:
        await waiter.has(len(waiter.seen) + 2)
        await waiter.cancel()


async def test_cancelling_one_during_a_poll_disturbs_nobody(offended):
    offended.hold.clear()
    first, second = Waiter(queries.quotes("BHP")), Waiter(queries.quotes("CBA"))
    while not offended.calls:
        await asyncio.sleep(0.01)
    await first.cancel()
    offended.hold.set()
    assert codes_of(await second.has(1)) == ["CBA"]
    assert len(offended.calls) == 1
    await second.cancel()


@pytest.mark.parametrize("in_flight", [False, True])
async def test_the_last_one_closes_the_connections(offended, in_flight):
    waiters = [Waiter(queries.quotes(code)) for code in ("BHP", "CBA")]
    if in_flight:
        offended.hold.clear()
        while not offended.calls:
            await asyncio.sleep(0.01)
    else:
        for waiter in waiters:
            await waiter.has(1)
    # Those to the identity server are not kept.
    offended.server.closed.clear()
    await asyncio.gather(*(waiter.cancel() for waiter in waiters))
    offended.hold.set()
    assert await asyncio.to_thread(offended.server.closed.wait, 60)


async def test_one_that_is_cancelled_twice_still_closes_the_connections(offended):
    waiter = Waiter(queries.quotes("BHP"))
    await waiter.has(1)
    offended.server.closed.clear()
    waiter._task.cancel()
    await asyncio.sleep(0)
    await waiter.cancel()
    assert await asyncio.to_thread(offended.server.closed.wait, 60)


async def test_one_that_begins_again_after_it_was_cancelled_is_polled(openmarkets_sandbox):
    for number in range(1, 4):
        waiter = Waiter(queries.quotes("BHP"))
        await waiter.has(1)
        await waiter.cancel()
        assert openmarkets_sandbox.stats()["by_path"][QUOTES] == number
    at_the_same_time = Waiter(queries.quotes("BHP"))
    await at_the_same_time.has(1)
    again = Waiter(queries.quotes("BHP"))
    await asyncio.gather(at_the_same_time.cancel(), again.has(1))
    await again.cancel()


def test_loops_one_after_another_have_nothing_in_common(openmarkets_sandbox):
    for _ in range(10):
        (reading,) = asyncio.run(take(queries.quotes("BHP")))
        assert codes_of(reading) == ["BHP"]
    assert openmarkets_sandbox.stats()["by_path"][QUOTES] == 10
    assert openmarkets_sandbox.stats()["token_requests_total"] == 1


def test_a_loop_that_ends_while_triggers_wait_ends_their_polls(openmarkets_sandbox):
    async def begin() -> None:
        waiters.extend(Waiter(queries.quotes(code)) for code in ("BHP", "CBA"))
        for waiter in waiters:
            await waiter.has(1)

    waiters: list[Waiter] = []
    asyncio.run(begin())
    assert all(waiter._task.cancelled() for waiter in waiters)


async def test_a_poll_that_breaks_off_is_told_to_everyone(openmarkets_sandbox):
    waiters = [Waiter(queries.quotes(code)) for code in ("BHP", "CBA")]
    for waiter in waiters:
        await waiter.has(1)
    (group,) = module._registries[asyncio.get_running_loop()].groups.values()
    group._task.cancel()
    for waiter in waiters:
        with pytest.raises(RuntimeError, match="shares with others has failed"):
            await waiter.has(2)
    (after,) = await take(queries.quotes("BHP"))
    assert codes_of(after) == ["BHP"]


async def test_who_is_slow_gets_the_newest_reading(openmarkets_sandbox):
    async with contextlib.aclosing(poll_shared(CONN_ID, queries.accounts(), 0.05)) as slow:
        before = await anext(slow)
        others = await take(queries.accounts(), 5)
        after = await anext(slow)
    assert after in others[1:]
    assert after is not before


async def test_what_a_poll_logs_is_in_no_triggers_context(openmarkets_sandbox, caplog):
    trigger: contextvars.ContextVar[str] = contextvars.ContextVar("trigger", default="nobody")
    whose = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            whose.append(trigger.get())

    trigger.set("the first one")
    handler = Handler()
    client = logging.getLogger("openmarkets_provider.client.exchange")
    client.addHandler(handler)
    caplog.set_level(logging.INFO)
    openmarkets_sandbox.fault(target="market_data", kind="status", status=503, retry_after=0)
    try:
        await take(queries.quotes("BHP"))
    finally:
        client.removeHandler(handler)
    assert whose == ["nobody"]


# Errors and pace


async def test_polls_go_on_after_an_error(openmarkets_sandbox):
    openmarkets_sandbox.fault(target="market_data", kind="status", status=404, times=2)
    first, second, third = await take(queries.securities(), 3)
    assert isinstance(first.error, OpenmarketsNotFound)
    assert isinstance(second.error, OpenmarketsNotFound)
    assert third.result()
    assert market_data(openmarkets_sandbox) == 3


async def test_each_reading_is_one_poll_whatever_it_came_to(openmarkets_sandbox):
    for status in (403, 429):
        openmarkets_sandbox.fault(target="market_data", kind="status", status=status, retry_after=0, times=4)
    seen = await take(queries.securities(), 6)
    assert [type(reading.error).__name__ for reading in seen] == [
        *["OpenmarketsAccessRefused"] * 4,
        "OpenmarketsRateLimited",
        "NoneType",
    ]
    assert market_data(openmarkets_sandbox) == 4 + 4 + 1


@pytest.mark.parametrize(("status", "asked", "rest"), [(429, 61, 61), (503, 61, 61), (503, 31_536_000, 3600)])
async def test_a_rest_that_the_server_asks_for_is_kept_up_to_an_hour(openmarkets_sandbox, status, asked, rest):
    openmarkets_sandbox.fault(target="market_data", kind="status", status=status, retry_after=asked, times=None)
    waiter = Waiter(queries.securities(), 0.05)
    assert rest - 1 < round((await waiter.has(1)).next_in, 3) <= rest
    await asyncio.sleep(0.5)
    assert len(waiter.seen) == 1
    assert market_data(openmarkets_sandbox) == 1
    await waiter.cancel()


async def test_with_back_off_the_wait_is_doubled_after_each_failure_in_a_row(openmarkets_sandbox):
    openmarkets_sandbox.fault(target="market_data", kind="status", status=404, times=4)
    seen = await take(queries.securities(), 6, back_off=True)
    assert [round(reading.next_in / 0.05) for reading in seen] == [1, 2, 4, 8, 1, 1]


async def test_one_that_backs_off_leaves_the_pace_of_the_others_as_it_is(offended):
    offended.refused.update(full("BAD"))
    bad, good = (Waiter(queries.quotes(code), 0.05, back_off=True) for code in ("BAD", "GOOD"))
    await bad.has(4)
    assert [round(reading.next_in / 0.05) for reading in bad.seen] == [1, 2, 4, 8]
    assert len(good.seen) >= 1 + 1 + 2 + 4
    assert all(reading.error is None and round(reading.next_in / 0.05) == 1 for reading in good.seen)
    await bad.cancel()
    await good.cancel()


@pytest.mark.parametrize(("interval", "most"), [(10.0, 900.0), (300.0, 900.0), (1000.0, 1000.0), (0.0, 0.0)])
async def test_the_wait_grows_to_a_quarter_of_an_hour_at_most(openmarkets_sandbox, interval, most):
    group, member = module._join(CONN_ID, queries.accounts(), interval, True)
    assert [group._count_skips(failures) for failures in (0, 1)] == [0, 0]
    for failures in (64, 10_000):
        assert (1 + group._count_skips(failures)) * interval == most
    await group.leave(member)


# Conditions


async def test_equal_conditions_give_the_same_object_and_different_ones_the_same_json(openmarkets_sandbox):
    (reading,) = await take(queries.quotes("BHP"))
    value = reading.evaluate("[0]")
    assert reading.evaluate("[0]") is value
    assert reading.evaluate("@")[0] is value
    assert type(value["last_price"]) is float


async def test_a_condition_that_does_not_fit_is_told_to_each_who_has_it(openmarkets_sandbox):
    (reading,) = await take(queries.quotes("BHP"))
    for _ in range(2):
        with pytest.raises(OpenmarketsQueryError, match="does not fit"):
            reading.evaluate("length(`1`)")
        with pytest.raises(OpenmarketsQueryError, match="is not a JMESPath expression"):
            reading.evaluate("[")
        with pytest.raises(OpenmarketsQueryError, match="expected a JMESPath expression"):
            reading.evaluate(["BHP"])


def test_an_error_that_many_raise_does_not_grow():
    def depth() -> int:
        try:
            reading.result()
        except OpenmarketsNotFound as error:
            frames, place = 0, error.__traceback__
            while place is not None:
                frames, place = frames + 1, place.tb_next
            return frames

    reading = Reading(Outcome(error=OpenmarketsNotFound("nothing")), 1.0)
    take_one: Callable[[], int] = depth
    assert [take_one() for _ in range(3)] == [depth()] * 3


class SlowRows(list):
    """Rows that can be read when the test lets it."""

    def __init__(self, rows: list[Any]) -> None:
        super().__init__(rows)
        self.is_read, self.may_go_on = threading.Event(), threading.Event()

    def __iter__(self) -> Iterator[Any]:
        self.is_read.set()
        assert self.may_go_on.wait(10), "the event loop stands still"
        return super().__iter__()


@pytest.mark.parametrize(
    ("wrap", "condition"),
    [(lambda rows: rows, "length(@)"), (lambda rows: {"reply": {"items": rows}}, "length(reply.items)")],
    ids=["rows", "a reply"],
)
async def test_the_event_loop_goes_on_while_a_condition_on_a_large_result_is_evaluated(wrap, condition):
    rows = SlowRows([{"number": number} for number in range(10_000)])
    async with asyncio.TaskGroup() as tasks:
        large = tasks.create_task(Reading(Outcome(wrap(rows)), 1.0).aevaluate(condition))
        while not rows.is_read.is_set():
            await asyncio.sleep(0.01)
        small = Reading(Outcome([{"number": 7}]), 1.0)
        assert await small.aevaluate("[0].number") == 7
        rows.may_go_on.set()
    assert large.result() == 10_000
