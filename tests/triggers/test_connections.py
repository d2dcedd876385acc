"""Connections that change while triggers wait."""

from __future__ import annotations

import asyncio
import json

import pytest
from airflow.providers.common.compat.sdk import AirflowNotFoundException

from openmarkets_provider import queries
from openmarkets_provider.exceptions import (
    OpenmarketsAuthError,
    OpenmarketsConfigurationError,
)
from openmarkets_provider.sandbox.server import Client, SandboxServer
from openmarkets_provider.triggers import _connections as connections
from tests.support.hostile import HostileServer
from tests.support.polls import (
    CONNECTION,
    LONG,
    QuotesServer,
    Waiter,
    codes_of,
    connection_to,
    take,
)

pytestmark = pytest.mark.usefixtures("nothing_is_left")


async def test_a_secret_that_is_rotated_fails_nobody(monkeypatch):
    with SandboxServer(clients=(Client("someone", "old"),)) as sandbox:
        monkeypatch.setenv(CONNECTION, json.dumps(sandbox.connection))
        waiters = [Waiter(queries.quotes(code), 0.05) for code in ("BHP", "CBA")]
        waiters.append(Waiter(queries.accounts(), 0.05))
        for waiter in waiters:
            await waiter.has(1)
        monkeypatch.setenv(CONNECTION, json.dumps({**sandbox.connection, "password": "new"}))
        sandbox._state.clients["someone"] = Client("someone", "new")
        sandbox.revoke_tokens()
        for waiter in waiters:
            await waiter.has(len(waiter.seen) + 4)
            await waiter.cancel()
            assert [reading.error for reading in waiter.seen] == [None] * len(waiter.seen)
        # One with the old secret at most, whose refusal everybody shares.
        assert sandbox.stats()["token_errors"] <= 2


async def test_a_secret_that_is_wrong_is_told_and_the_connection_looked_up_before(openmarkets_sandbox, monkeypatch):
    wrong = json.dumps({**openmarkets_sandbox.connection, "password": "wrong"})
    monkeypatch.setenv(CONNECTION, wrong)
    (reading,) = await take(queries.quotes("BHP"))
    assert isinstance(reading.error, OpenmarketsAuthError)
    assert openmarkets_sandbox.stats()["token_requests_total"] == 1


async def test_a_connection_that_leads_elsewhere_is_followed_and_the_old_one_closed(offended, monkeypatch):
    monkeypatch.setattr(connections, "LOOK_UP_INTERVAL", 0.0)
    there = QuotesServer()
    with HostileServer(there) as server:
        waiter = Waiter(queries.quotes("BHP"), 0.05)
        await waiter.has(1)
        offended.server.closed.clear()
        monkeypatch.setenv(CONNECTION, connection_to(server.url))
        while not there.calls:
            await waiter.has(len(waiter.seen) + 1)
        assert await asyncio.to_thread(offended.server.closed.wait, 60)
        before = len(offended.calls)
        await waiter.has(len(waiter.seen) + 3)
        await waiter.cancel()
    assert len(offended.calls) == before
    assert all(reading.error is None for reading in waiter.seen)


async def test_a_poll_under_way_when_the_connection_changes_is_finished(offended, monkeypatch):
    monkeypatch.setattr(connections, "LOOK_UP_INTERVAL", 0.0)
    there = QuotesServer()
    with HostileServer(there) as server:
        offended.hold.clear()
        slow = Waiter(queries.quotes("BHP"), LONG)
        while not offended.calls:
            await asyncio.sleep(0.01)
        monkeypatch.setenv(CONNECTION, connection_to(server.url))
        # Another interval: a separate group with the same connection.
        other = Waiter(queries.quotes("CBA"), 0.05)
        await other.has(2)
        assert not slow.seen
        offended.hold.set()
        assert codes_of(await slow.has(1)) == ["BHP"]
        await other.cancel()
        await slow.cancel()
    assert {tuple(call) for call in there.calls} == {("CBA.ASX@TM",)}


async def test_a_connection_that_is_not_there_is_the_error_of_each_reading(monkeypatch, caplog):
    monkeypatch.setattr(connections, "RETRY_INTERVAL", 0.01)
    monkeypatch.delenv(CONNECTION, raising=False)
    (reading,) = await take(queries.quotes("BHP"), conn_id="nowhere")
    assert isinstance(reading.error, AirflowNotFoundException)
    with pytest.raises(AirflowNotFoundException):
        reading.evaluate("@")
    assert caplog.text.count("Could not look up") == connections.MAX_FAILURES - 1


async def test_a_first_look_up_that_fails_is_repeated_for_all_and_fails_nobody(
    openmarkets_sandbox, monkeypatch, caplog
):
    monkeypatch.delenv(CONNECTION)
    # Each with a different interval: three groups that wait for one look-up.
    gone, *others = (Waiter(queries.quotes("BHP"), LONG + number) for number in range(3))
    async with asyncio.timeout(60):
        while "Could not look up" not in caplog.text:
            assert not any(waiter.seen for waiter in (gone, *others))
            await asyncio.sleep(0.01)
    monkeypatch.setenv(CONNECTION, json.dumps(openmarkets_sandbox.connection))
    await gone.cancel()
    for waiter in others:
        assert codes_of(await waiter.has(1)) == ["BHP"]
        await waiter.cancel()
    assert caplog.text.count("Could not look up") == 1


async def test_a_connection_that_can_not_be_looked_up_now_and_then_fails_nobody(openmarkets_sandbox, monkeypatch):
    monkeypatch.setattr(connections, "LOOK_UP_INTERVAL", 0.0)
    waiter = Waiter(queries.quotes("BHP"), 0.05)
    await waiter.has(1)
    # Airflow raises the same error for a deleted connection and for an unavailable database.
    monkeypatch.delenv(CONNECTION)
    gone = await waiter.has(len(waiter.seen) + 1)
    while gone.error is None:
        gone = await waiter.has(len(waiter.seen) + 1)
    tolerated = [reading.error for reading in waiter.seen].count(None)
    assert tolerated >= connections.MAX_FAILURES
    assert isinstance(gone.error, AirflowNotFoundException)
    monkeypatch.setenv(CONNECTION, json.dumps(openmarkets_sandbox.connection))
    monkeypatch.setattr(connections, "RETRY_INTERVAL", 0.0)
    back = await waiter.has(len(waiter.seen) + 1)
    while back.error is not None:
        back = await waiter.has(len(waiter.seen) + 1)
    assert codes_of(back) == ["BHP"]
    await waiter.cancel()


async def test_a_connection_that_becomes_another_type_is_an_error(openmarkets_sandbox, monkeypatch):
    monkeypatch.setattr(connections, "LOOK_UP_INTERVAL", 0.0)
    waiter = Waiter(queries.quotes("BHP"), 0.05)
    await waiter.has(1)
    monkeypatch.setenv(CONNECTION, json.dumps({"conn_type": "http", "host": "example.com"}))
    reading = waiter.seen[-1]
    while reading.error is None:
        reading = await waiter.has(len(waiter.seen) + 1)
    assert isinstance(reading.error, OpenmarketsConfigurationError)
    await waiter.cancel()
