from __future__ import annotations

import asyncio
import random
from typing import Any

import httpcore
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmarkets_provider import exceptions
from openmarkets_provider.client.cache.crypto import EntryCipher
from openmarkets_provider.client.exchange import MAX_ATTEMPTS, MAX_HOLD_WAIT, MAX_SERVER_WAIT, MAX_WAIT, Exchange, pause
from openmarkets_provider.client.http.clients import NoAnswer, Reply
from openmarkets_provider.client.io import TaskGroup, ThreadGroup, run_blocking
from openmarkets_provider.client.metrics import NO_METRICS, Metrics
from openmarkets_provider.client.ratelimit.hold import MAX_HOLD, MAX_SPREAD, Holds, OnHold, spread
from openmarkets_provider.exceptions import (
    OpenmarketsError,
    OpenmarketsInvalidResponse,
    OpenmarketsNotFound,
    OpenmarketsRateLimited,
    OpenmarketsServerError,
    OpenmarketsTransportError,
)
from openmarkets_provider.query.plan import ApiCall

TRANSIENT = [OpenmarketsTransportError, OpenmarketsRateLimited, OpenmarketsServerError]
KINDS = [kind for kind in vars(exceptions).values() if isinstance(kind, type) and issubclass(kind, OpenmarketsError)]
PERMANENT = [kind for kind in KINDS if kind not in TRANSIENT]

ASKED = st.none() | st.floats(0, 1e9)
ATTEMPTS = st.integers(1, 10)


@given(st.sampled_from(KINDS), ASKED, ATTEMPTS, st.booleans(), st.booleans(), st.integers())
def test_a_pause_is_bounded_and_never_shorter_than_asked(
    kind: type[OpenmarketsError], asked: float | None, attempt: int, sent: bool, safe: bool, seed: int
):
    random.seed(seed)
    wait = pause(kind("x", retry_after=asked, sent=sent), attempt, safe_to_repeat=safe)
    if wait is not None:
        assert 0 < wait <= MAX_WAIT or asked == wait == 0
        assert wait >= (asked or 0)
        assert kind in TRANSIENT
        assert attempt < MAX_ATTEMPTS
        assert safe or not sent


@given(st.sampled_from(PERMANENT), ASKED, ATTEMPTS, st.booleans(), st.booleans())
def test_a_permanent_error_is_never_repeated(
    kind: type[OpenmarketsError], asked: float | None, attempt: int, sent: bool, safe: bool
):
    assert pause(kind("x", retry_after=asked, sent=sent), attempt, safe_to_repeat=safe) is None


@pytest.mark.parametrize("kind", TRANSIENT)
@pytest.mark.parametrize(
    ("sent", "safe", "again"), [(True, True, True), (False, True, True), (False, False, True), (True, False, False)]
)
def test_an_unsafe_call_is_repeated_only_when_it_was_certainly_not_sent(
    kind: type[OpenmarketsError], sent: bool, safe: bool, again: bool
):
    assert (pause(kind("x", sent=sent), 1, safe_to_repeat=safe) is not None) is again


@pytest.mark.parametrize("asked", [60.001, 61, 3600, 1e9])
def test_who_asks_for_more_than_a_minute_is_not_waited_for(asked: float):
    assert pause(OpenmarketsRateLimited("x", retry_after=asked), 1, safe_to_repeat=True) is None


@pytest.mark.parametrize("kind", [OpenmarketsServerError, OpenmarketsRateLimited])
def test_who_asks_for_just_a_minute_gets_it_and_tasks_do_not_come_back_together(kind: type[OpenmarketsError]):
    waits = [pause(kind("x", retry_after=60.0), 2, safe_to_repeat=True) or 0.0 for _ in range(50)]
    assert min(waits) >= 60.0
    assert max(waits) <= MAX_WAIT
    assert len(set(waits)) > 25


@pytest.mark.parametrize(("asked", "most"), [(0, 0), (0.5, 1), (1, 1), (10, 5), (60, 15), (1e9, 15)])
def test_those_whom_a_rate_limit_sends_away_come_back_over_some_time(asked: float, most: float):
    extra = [spread(asked) for _ in range(200)]
    assert 0 <= min(extra) <= most / 4
    assert most * 3 / 4 <= max(extra) <= most


def test_there_are_four_attempts_and_no_more():
    error = OpenmarketsTransportError("x")
    assert [pause(error, attempt, safe_to_repeat=True) is not None for attempt in (1, 2, 3, 4, 5, 100)] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]


@given(st.integers())
def test_pauses_grow(seed: int):
    random.seed(seed)
    waits = [pause(OpenmarketsTransportError("x"), attempt, safe_to_repeat=True) for attempt in (1, 2, 3)]
    for wait, (low, high) in zip(waits, [(0.25, 0.5), (0.5, 1.0), (1.0, 2.0)], strict=True):
        assert wait is not None
        assert low <= wait <= high


@pytest.mark.parametrize("asked", [None, 5.0])
def test_tasks_that_failed_together_do_not_come_back_together(asked: float | None):
    error = OpenmarketsRateLimited("x", retry_after=asked)
    assert len({pause(error, 1, safe_to_repeat=True) for _ in range(20)}) > 10


def test_all_attempts_together_take_about_three_minutes_at_the_most():
    error = OpenmarketsServerError("x", retry_after=MAX_SERVER_WAIT)
    waits = [pause(error, attempt, safe_to_repeat=True) for attempt in range(1, MAX_ATTEMPTS)]
    assert sum(wait or 0 for wait in waits) <= (MAX_ATTEMPTS - 1) * MAX_WAIT


# --- calls

ACCOUNTS = ApiCall("oms", "GET", "accounts/v1", safe_to_repeat=True)
ORDER = ApiCall("oms", "POST", "orders/v4", json={"side": "Buy"})
GOOD = Reply(200, {}, b'{"orderNumber": 1}')


def no_answer(error: Exception) -> NoAnswer:
    """Return what a client raises for an error of httpcore."""
    failure = NoAnswer("https://oms.example", error)
    failure.__cause__ = error
    return failure


def status(code: int, **headers: str) -> Reply:
    return Reply(code, headers, b"{}")


class ScriptedIo:
    """Returns or raises the given answers in turn, then the last one again, and records the calls.

    :ivar sent: the calls, each with its request id.
    :ivar waits: seconds, and whether a server asked for them.
    """

    def __init__(self, *answers: Reply | Exception) -> None:
        self._answers = list(answers)
        self.sent: list[tuple[ApiCall, str]] = []
        self.waits: list[tuple[float, bool]] = []
        self.holds: list[tuple[str, float | None]] = []

    async def send(self, call: ApiCall, request_id: str) -> Reply:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if not isinstance(answer, OnHold):
            self.sent.append((call, request_id))
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def sleep(self, seconds: float, *, rate_limited: bool = False) -> None:
        self.waits.append((seconds, rate_limited))

    async def record_hold(self, api: str, seconds: float | None) -> None:
        self.holds.append((api, seconds))


def exchange_of(io: ScriptedIo, metrics: Metrics = NO_METRICS) -> Exchange:
    holds = Holds(key=lambda api: f"test {api}", store=None, cipher=EntryCipher("secret"), metrics=metrics)
    return Exchange(io, holds, metrics)


def ask(io: ScriptedIo, call: ApiCall) -> Any:
    return run_blocking(exchange_of(io).ask(call))


def failure_of(io: ScriptedIo, call: ApiCall) -> Any:
    with pytest.raises(OpenmarketsError) as raised:
        ask(io, call)
    return raised.value


class Recording(Metrics):
    def __init__(self) -> None:
        self.counts: list[str] = []
        self.requests: list[tuple[str, str, int | None]] = []

    def count(self, name: str, by: int = 1) -> None:
        self.counts.append(name)

    def sent(self, endpoint: str, request_id: str, status: int | None) -> None:
        self.requests.append((endpoint, request_id, status))


def test_a_call_returns_the_json_of_its_reply():
    io = ScriptedIo(GOOD)
    assert ask(io, ACCOUNTS) == {"orderNumber": 1}
    assert [call for call, _ in io.sent] == [ACCOUNTS]
    assert io.waits == []


TROUBLE = [
    pytest.param(no_answer(httpcore.ReadTimeout("slow")), OpenmarketsTransportError, True, id="no answer"),
    pytest.param(no_answer(httpcore.ConnectError("refused")), OpenmarketsTransportError, False, id="not sent"),
    pytest.param(status(503), OpenmarketsServerError, True, id="503"),
    pytest.param(status(429), OpenmarketsRateLimited, True, id="429"),
    pytest.param(
        OpenmarketsInvalidResponse("the reply is damaged gzip.", status=503), OpenmarketsServerError, True, id="gzip"
    ),
    pytest.param(OpenmarketsTransportError("no token", sent=False), OpenmarketsTransportError, False, id="no token"),
]


@pytest.mark.parametrize(("trouble", "kind", "sent"), TROUBLE)
def test_a_safe_call_is_sent_again_and_again_and_then_fails(
    trouble: Reply | Exception, kind: type[OpenmarketsError], sent: bool
):
    io = ScriptedIo(trouble)
    error = failure_of(io, ACCOUNTS)
    assert type(error) is kind
    assert error.sent is sent
    assert error.transient
    assert len(io.sent) == MAX_ATTEMPTS
    assert len(io.waits) == MAX_ATTEMPTS - 1
    assert {asked for _, asked in io.waits} == {kind is OpenmarketsRateLimited}
    assert ask(ScriptedIo(trouble, trouble, GOOD), ACCOUNTS) == {"orderNumber": 1}


@pytest.mark.parametrize(("trouble", "kind", "sent"), TROUBLE)
def test_an_unsafe_call_that_may_have_been_carried_out_is_sent_once(
    trouble: Reply | Exception, kind: type[OpenmarketsError], sent: bool
):
    io = ScriptedIo(trouble, GOOD)
    if not sent:
        assert ask(io, ORDER) == {"orderNumber": 1}
        return
    error = failure_of(io, ORDER)
    assert type(error) is kind
    assert error.sent
    # Callers that retry transient errors must not retry this one.
    assert not error.transient
    assert len(io.sent) == 1


def test_a_permanent_error_is_raised_at_once():
    io = ScriptedIo(status(404))
    error = failure_of(io, ACCOUNTS)
    assert isinstance(error, OpenmarketsNotFound)
    assert error.sent
    assert len(io.sent) == 1


def test_each_attempt_has_a_request_id_of_its_own_which_the_error_names():
    io, metrics = ScriptedIo(status(503), no_answer(httpcore.ReadError("cut"))), Recording()
    with pytest.raises(OpenmarketsTransportError) as raised:
        run_blocking(exchange_of(io, metrics).ask(ACCOUNTS))
    ids = [request_id for _, request_id in io.sent]
    assert len(set(ids)) == MAX_ATTEMPTS
    assert raised.value.request_id == ids[-1]
    assert f"[request id {ids[-1]}]" in str(raised.value)
    statuses = [503, None, None, None]
    assert metrics.requests == [(ACCOUNTS.label, *each) for each in zip(ids, statuses, strict=True)]
    assert metrics.counts == ["retries.503", "retries.transport", "retries.transport"]


def test_no_answer_says_from_where_and_whether_the_call_may_have_been_carried_out():
    error = failure_of(ScriptedIo(no_answer(httpcore.ReadTimeout("slow"))), ORDER)
    assert str(error).startswith("POST oms orders/v4: no answer from https://oms.example: ReadTimeout: slow. ")
    assert str(error).endswith("It may have been carried out: check before you send it again.")
    assert isinstance(error.__cause__, httpcore.ReadTimeout)
    error = failure_of(ScriptedIo(no_answer(httpcore.ReadTimeout("slow"))), ACCOUNTS)
    assert "carried out" not in str(error)


def test_an_unreadable_reply_is_an_error_of_its_call():
    io = ScriptedIo(OpenmarketsInvalidResponse("the reply is damaged gzip.", status=200))
    error = failure_of(io, ORDER)
    assert type(error) is OpenmarketsInvalidResponse
    assert str(error).startswith("POST oms orders/v4: the reply is damaged gzip. [request id ")
    assert error.endpoint == ORDER.label
    assert error.sent
    assert len(io.sent) == 1


@pytest.mark.parametrize(
    ("trouble", "seconds"),
    [
        pytest.param(status(429), None, id="without a time"),
        pytest.param(Reply(429, {"retry-after": "7"}, b"{}"), 7.0, id="with a time"),
        pytest.param(OpenmarketsInvalidResponse("the reply is damaged gzip.", status=429), None, id="unreadable"),
    ],
)
def test_a_429_of_the_api_is_recorded_for_everyone(trouble: Reply | Exception, seconds: float | None):
    io = ScriptedIo(trouble, GOOD)
    assert isinstance(failure_of(io, ORDER), OpenmarketsRateLimited)
    assert io.holds == [("oms", seconds)]


def test_a_429_of_the_identity_server_holds_no_api():
    io = ScriptedIo(OpenmarketsRateLimited("no token", status=429, sent=False), GOOD)
    assert ask(io, ACCOUNTS) == {"orderNumber": 1}
    assert io.holds == []


def test_what_the_token_request_may_persist_in_is_the_same_policy():
    attempts = 0

    async def attempt() -> str:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise OpenmarketsServerError("x", status=503)
        return "done"

    io = ScriptedIo(GOOD)
    assert run_blocking(exchange_of(io).persist(attempt, safe_to_repeat=True)) == "done"
    assert len(io.waits) == 2


@pytest.mark.parametrize("kind", ["threads", "loop"])
def test_the_calls_of_a_run_wait_through_their_group(kind: str):
    """The Io of one call would sleep alone."""

    async def run(io: ScriptedIo) -> Any:
        async with ThreadGroup[Any](1) if kind == "threads" else TaskGroup[Any](1) as group:
            return await exchange_of(io).for_group(group).ask(ACCOUNTS)

    io = ScriptedIo(Reply(429, {"retry-after": "0"}, b"{}"), GOOD)
    assert (run_blocking(run(io)) if kind == "threads" else asyncio.run(run(io))) == {"orderNumber": 1}
    assert io.waits == []
    assert io.holds == [("oms", 0.0)]


# --- waits of one call for holds


def test_a_call_waits_for_the_hold_and_a_little_longer_and_looks_again():
    holds = (10.0, 0.3, MAX_SERVER_WAIT)
    io = ScriptedIo(*map(OnHold, holds), GOOD)
    assert ask(io, ORDER) == {"orderNumber": 1}
    assert len(io.sent) == 1
    for seconds, (wait, rate_limited) in zip(holds, io.waits, strict=True):
        assert rate_limited
        assert seconds <= wait <= min(seconds + max(1.0, min(seconds / 2, MAX_SPREAD)), MAX_WAIT)


def test_waits_for_a_hold_are_no_attempts():
    io = ScriptedIo(*[OnHold(0.1)] * 20, status(503), *[OnHold(0.1)] * 20, GOOD)
    assert ask(io, ACCOUNTS) == {"orderNumber": 1}
    assert len(io.sent) == 2
    assert len({request_id for _, request_id in io.sent}) == 2


def test_those_who_wait_for_the_same_hold_do_not_come_back_together():
    def wait() -> float:
        io = ScriptedIo(OnHold(10.0), GOOD)
        ask(io, ORDER)
        [(seconds, _)] = io.waits
        return seconds

    waits = [wait() for _ in range(50)]
    assert max(waits) - min(waits) > 2.5


@pytest.mark.parametrize("seconds", [MAX_SERVER_WAIT + 0.001, 500.0, MAX_HOLD])
@pytest.mark.parametrize("call", [ACCOUNTS, ORDER], ids=["safe", "unsafe"])
def test_a_long_hold_is_not_waited_for(call: ApiCall, seconds: float):
    io = ScriptedIo(OnHold(seconds))
    error = failure_of(io, call)
    assert isinstance(error, OpenmarketsRateLimited)
    assert "not sent: the oms API asked another call to wait" in str(error)
    assert error.sent is False
    assert error.transient
    assert error.on_hold
    assert seconds <= error.retry_after <= seconds + MAX_SPREAD
    assert io.sent == io.waits == io.holds == []


def test_holds_one_after_another_are_not_waited_for_without_end():
    io = ScriptedIo(OnHold(20.0))
    error = failure_of(io, ORDER)
    assert isinstance(error, OpenmarketsRateLimited)
    waited = sum(seconds for seconds, _ in io.waits)
    assert MAX_HOLD_WAIT - 20 - MAX_SPREAD < waited <= MAX_HOLD_WAIT
    assert f"has answered other calls with 429 for {waited:.0f} s" in str(error)
    # More than is waited for in the worker: the task is deferred.
    assert error.retry_after > MAX_SERVER_WAIT
    assert error.sent is False
    assert io.sent == []


def test_every_wait_for_a_hold_is_counted():
    metrics = Recording()
    run_blocking(exchange_of(ScriptedIo(OnHold(20.0), OnHold(1.0), GOOD), metrics).ask(ORDER))
    assert metrics.counts == ["ratelimit.waits.oms"] * 2
