"""A token that expires soon is refreshed; callers that can still send it do not wait."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from openmarkets_provider import queries
from openmarkets_provider.client.auth.token import Token, TokenEntry
from openmarkets_provider.client.cache.clock import Instant, now
from openmarkets_provider.client.cache.crypto import EntryCipher, entry_key
from openmarkets_provider.client.cache.entry import SharedEntry
from openmarkets_provider.client.client import OpenmarketsClient
from tests.client.conftest import MakeClient, token_reply
from tests.support import hostile
from tests.support.hostile import HostileServer

SCOPE = "oms-api"
MANY = 16
LONG = 60
"""Seconds after which a test that hangs fails."""
WELL_BELOW = 20


class Identity:
    """An identity server that keeps every reply back until the test releases it.

    :ivar arrived: set when a token request has arrived.
    :ivar answer: sends the reply.
    """

    def __init__(self) -> None:
        self.arrived = threading.Event()
        self.release = threading.Event()
        self.answer: hostile.Handler = hostile.answering(token_reply("new"))

    def handle(self, sock: socket.socket, request: bytes) -> None:
        self.arrived.set()
        assert self.release.wait(LONG)
        self.answer(sock, request)


@pytest.fixture
def identity() -> Identity:
    return Identity()


@pytest.fixture
def servers(identity: Identity) -> Iterator[tuple[HostileServer, HostileServer]]:
    """An identity server and an API."""
    with HostileServer(identity.handle) as server, HostileServer(hostile.answering(hostile.reply())) as api:
        yield server, api


@pytest.fixture
def client(
    servers: tuple[HostileServer, HostileServer], identity: Identity, make_client: MakeClient
) -> Iterator[OpenmarketsClient]:
    """A client as that of a new process, in whose store is a token with 200 seconds left."""
    server, api = servers
    client = make_client(identity_url=server.url, oms_url=api.url, timeout=LONG)
    moment = now()
    obtained = Instant(moment.wall - 3400, moment.boot - 3400, moment.boot_id)
    shared = SharedEntry(
        client.store, entry_key(client.settings, SCOPE), EntryCipher(client.settings.client_secret), TokenEntry
    )
    shared.save(TokenEntry(obtained, Token("old", SCOPE, obtained, 3600)), 200)
    yield client
    identity.release.set()


def wait_for_refresh() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("openmarkets_token"):
            thread.join(LONG)
            assert not thread.is_alive()


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        pytest.param(hostile.answering(token_reply("new")), "new", id="slow"),
        pytest.param(hostile.reset, "old", id="hanging"),
    ],
)
async def test_no_coroutine_waits_while_the_identity_server_keeps_its_reply_back(
    client: OpenmarketsClient,
    servers: tuple[HostileServer, HostileServer],
    identity: Identity,
    caplog: pytest.LogCaptureFixture,
    answer: hostile.Handler,
    value: str,
) -> None:
    identity.answer = answer
    server, api = servers
    # The first round finds the token in the store, the second one in memory.
    for _ in range(2):
        async with asyncio.timeout(WELL_BELOW):
            await asyncio.gather(*(client.arun(queries.accounts()) for _ in range(MANY)))
        assert not identity.release.is_set()
    assert {hostile.header(request, "authorization") for request in api.requests} == {"Bearer old"}
    assert len(api.requests) == 2 * MANY
    assert await asyncio.to_thread(identity.arrived.wait, LONG)
    identity.release.set()
    await asyncio.to_thread(wait_for_refresh)
    assert (await client.tokens.aget(SCOPE)).value == value
    assert len(server.requests) == 1
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == (value == "old")
    await client.aclose()


def test_an_event_loop_ends_while_a_refresh_is_under_way(
    client: OpenmarketsClient, identity: Identity, caplog: pytest.LogCaptureFixture
) -> None:
    async def poll() -> str:
        try:
            return (await client.tokens.aget(SCOPE)).value
        finally:
            await client.aclose()

    def poll_on_a_loop() -> str:
        return asyncio.run(poll(), debug=True)

    with ThreadPoolExecutor(1) as pool:
        try:
            assert pool.submit(poll_on_a_loop).result(WELL_BELOW) == "old"
            assert identity.arrived.wait(LONG)
        finally:
            identity.release.set()
        wait_for_refresh()
        assert pool.submit(poll_on_a_loop).result(WELL_BELOW) == "new"
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    # In debug mode asyncio also warns that a callback took long, as any does on a busy machine.
    assert [text for text in warnings if not text.startswith("Executing ")] == []
