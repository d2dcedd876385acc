from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmarkets_provider import exceptions
from openmarkets_provider.client.exchange import MAX_ATTEMPTS, MAX_SPREAD, MAX_WAIT, pause, spread
from openmarkets_provider.exceptions import (
    OpenmarketsError,
    OpenmarketsRateLimited,
    OpenmarketsServerError,
    OpenmarketsTransportError,
)

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
        assert 0 < wait <= MAX_WAIT + MAX_SPREAD == 75 or asked == wait == 0
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


def test_who_asks_for_just_a_minute_gets_it():
    assert pause(OpenmarketsServerError("x", retry_after=60.0), 1, safe_to_repeat=True) == 60.0


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
    error = OpenmarketsServerError("x", retry_after=MAX_WAIT)
    waits = [pause(error, attempt, safe_to_repeat=True) for attempt in range(1, MAX_ATTEMPTS)]
    assert sum(wait or 0 for wait in waits) <= (MAX_ATTEMPTS - 1) * MAX_WAIT
