"""The attempts of a call that needs a token, while the identity server is in trouble."""

from __future__ import annotations

import itertools

import pytest

from openmarkets_provider.client.auth.provider import TokenProvider
from openmarkets_provider.client.auth.token import failure_seconds
from openmarkets_provider.client.cache.clock import Instant
from openmarkets_provider.client.cache.crypto import EntryCipher
from openmarkets_provider.client.exchange import MAX_ATTEMPTS, Exchange
from openmarkets_provider.client.io import run_blocking
from openmarkets_provider.client.metrics import NO_METRICS
from openmarkets_provider.client.ratelimit.hold import Holds
from openmarkets_provider.exceptions import (
    OpenmarketsError,
    OpenmarketsRateLimited,
    OpenmarketsServerError,
    OpenmarketsTransportError,
    from_dict,
)
from tests.support.processes import NoMasker

CIPHER = EntryCipher("secret")


class MovingIo:
    """Its waits move a clock."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def clock(self) -> Instant:
        return Instant(1e9 + self.seconds, self.seconds, "boot")

    async def sleep(self, seconds: float, *, rate_limited: bool = False) -> None:
        self.seconds += seconds


@pytest.mark.parametrize(
    "error",
    [
        OpenmarketsServerError("busy", status=503),
        OpenmarketsServerError("busy", status=503, retry_after=7.0),
        OpenmarketsTransportError("no answer"),
        OpenmarketsRateLimited("too many", status=429),
    ],
    ids=["503", "503 with Retry-After", "no answer", "429"],
)
def test_each_attempt_of_a_task_is_a_token_request_and_none_meets_the_failure_of_the_one_before(
    error: OpenmarketsError,
):
    io, requests = MovingIo(), []

    def fetch(scope: str) -> tuple[str, float]:
        requests.append(io.seconds)
        raise from_dict(error.as_dict())

    provider = TokenProvider(
        key=lambda scope: f"attempts {scope}",
        fetch=fetch,
        store=None,
        cipher=CIPHER,
        masker=NoMasker(),
        wait=1,
        clock=io.clock,
    )

    async def attempt() -> str:
        return provider.get("oms-api").value

    exchange = Exchange(io, Holds(key=str, store=None, cipher=CIPHER), NO_METRICS)
    with pytest.raises(type(error)):
        run_blocking(exchange.persist(attempt, safe_to_repeat=False))
    assert len(requests) == MAX_ATTEMPTS
    pauses = [later - sooner for sooner, later in itertools.pairwise(requests)]
    assert min(pauses) >= failure_seconds(error)
