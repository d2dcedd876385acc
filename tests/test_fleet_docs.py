"""What docs/fleet.md shows works, and the figures in it are the code's."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from openmarkets_provider.client import settings
from openmarkets_provider.client.cache import fallback as fallback_store
from openmarkets_provider.client.cache import redis as redis_store
from openmarkets_provider.client.exchange import MAX_SERVER_WAIT
from openmarkets_provider.client.ratelimit import hold
from openmarkets_provider.get_provider_info import CONNECTION_FIELDS
from openmarkets_provider.triggers import _connections

TEXT = (Path(__file__).parent.parent / "docs" / "fleet.md").read_text()
PROSE = " ".join(TEXT.split())


def test_the_backends_are_all_there():
    (table,) = re.findall(r"\| `cache_backend` \|.*?\n\n", TEXT, re.DOTALL)
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) - {"cache_backend"} == set(settings.CACHE_BACKENDS)


def test_the_connections_shown_have_fields_that_there_are():
    of_redis, of_openmarkets = map(json.loads, re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL))
    assert of_openmarkets.keys() <= CONNECTION_FIELDS.keys()
    fields = {"port": None, "login": None, **of_redis["redis_default"]}
    assert fields.pop("conn_type") == "redis"
    assert redis_store.redis_options(**fields)["ssl"] is True


@pytest.mark.parametrize(
    ("sentence", "figure", "value"),
    [
        ("The lock expires five seconds after", redis_store.LEASE, 5),
        ("try Redis again every five seconds", fallback_store.RETRY_SECONDS, 5),
        ("`Retry-After` (else 5 seconds;", hold.DEFAULT_HOLD, 5),
        ("an hour at most)", hold.MAX_HOLD, 3600),
        ("An event loop (the triggerer) reads the store once a second", hold.READ_EVERY, 1),
        ("When more than 60 seconds are left", MAX_SERVER_WAIT, 60),
        ("at most 8 connections to each API", settings.MAX_ASYNC_CONCURRENCY, 8),
        ("is looked up again once a minute", _connections.LOOK_UP_INTERVAL, 60),
        ("after three look-ups in a row", _connections.MAX_FAILURES, 3),
    ],
)
def test_the_figures_are_those_of_the_code(sentence: str, figure: float, value: float):
    assert sentence in PROSE
    assert figure == value
