"""Fixtures of triggers that share polls."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from openmarkets_provider.triggers import _shared_polls
from tests.support.hostile import HostileServer
from tests.support.polls import CONNECTION, QuotesServer, connection_to


@pytest.fixture
def nothing_is_left() -> Iterator[None]:
    """Fail a test that leaves groups or connections behind."""
    # What was there before is not looked through: in a long run of tests that takes seconds.
    gc.freeze()
    yield
    gc.collect()
    gc.unfreeze()
    assert not any(each.groups or each._connections for each in _shared_polls._registries.values())


@pytest.fixture
def offended(monkeypatch: pytest.MonkeyPatch) -> Iterator[QuotesServer]:
    """Let the default connection lead to a server that refuses securities."""
    answers = QuotesServer()
    with HostileServer(answers) as server:
        answers.server = server
        monkeypatch.setenv(CONNECTION, connection_to(server.url))
        yield answers
