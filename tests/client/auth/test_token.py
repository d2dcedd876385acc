from __future__ import annotations

import pytest

from openmarkets_provider.client.auth.token import (
    MAX_FAILURE,
    UNKNOWN_LIFETIME,
    Decision,
    Failure,
    Token,
    TokenEntry,
    decide,
    failure_seconds,
)
from openmarkets_provider.client.cache.clock import Instant
from openmarkets_provider.exceptions import (
    OpenmarketsAuthError,
    OpenmarketsInvalidClient,
    OpenmarketsRateLimited,
    OpenmarketsScopeNotInPlan,
    OpenmarketsServerError,
    OpenmarketsTransportError,
)

START = Instant(1_000_000.0, 500.0, "boot")


def later(seconds: float, *, wall: float | None = None, boot_id: str = "boot") -> Instant:
    return Instant(START.wall + (seconds if wall is None else wall), START.boot + seconds, boot_id)


def token(value: str = "t1", lifetime: float = 3600, **kwargs: object) -> Token:
    return Token(value, "market-data-api", START, lifetime, **kwargs)


def entry(**kwargs: object) -> TokenEntry:
    return TokenEntry(START, **kwargs)


@pytest.mark.parametrize(
    ("moment", "decision"),
    [
        (0, Decision.USE),
        (3299, Decision.USE),
        (3301, Decision.REFRESH),
        (3569, Decision.REFRESH),
        (3571, Decision.REQUEST),
        (3601, Decision.REQUEST),
    ],
)
def test_a_token_of_an_hour_is_used_then_refreshed_ahead_then_dropped_before_its_end(moment: float, decision: Decision):
    assert decide(entry(token=token()), later(moment), None)[0] is decision


@pytest.mark.parametrize(
    ("moment", "decision"), [(0.5, Decision.USE), (1.7, Decision.REFRESH), (1.85, Decision.REQUEST)]
)
def test_a_lifetime_of_two_seconds_has_margins_in_proportion(moment: float, decision: Decision):
    assert decide(entry(token=token(lifetime=2)), later(moment), None)[0] is decision


@pytest.mark.parametrize(
    ("moment", "decision"),
    [
        (0, Decision.USE),
        (47, Decision.USE),
        (49, Decision.REFRESH),
        (53, Decision.REFRESH),
        (55, Decision.REQUEST),
    ],
)
def test_a_lifetime_that_nobody_named_is_one_of_a_minute(moment: float, decision: Decision):
    assert decide(entry(token=token(lifetime=UNKNOWN_LIFETIME)), later(moment), None)[0] is decision


def test_without_an_entry_a_token_is_requested():
    assert decide(None, START, None) == (Decision.REQUEST, None)


@pytest.mark.parametrize(
    ("moment", "alive"),
    [
        (later(4000, wall=10), False),  # the wall clock was set back: the boot clock knows better
        (later(10, wall=4000), False),  # it jumped ahead: better a request too many
        (later(10, wall=-30, boot_id="other"), True),  # another host whose clock is a little behind
        (later(10, wall=-4000, boot_id="other"), False),  # after a reboot the clock is hours back
        (later(10, wall=10, boot_id="other"), True),
    ],
)
def test_a_jumping_clock_keeps_no_dead_token_alive(moment: Instant, alive: bool):
    assert (token().remaining(moment) > 0) is alive


def test_a_rejected_token_is_replaced_unless_somebody_did_so():
    assert decide(entry(token=token("t1")), later(5), "t1") == (Decision.REQUEST, None)
    assert decide(entry(token=token("t2")), later(5), "t1") == (Decision.USE, token("t2"))


def test_a_replacement_that_is_refused_too_comes_back_for_half_a_minute():
    replacement = token("t2", replacement=True)
    assert decide(entry(token=replacement), later(29), "t2") == (Decision.USE, replacement)
    assert decide(entry(token=replacement), later(31), "t2") == (Decision.REQUEST, None)


def test_a_recent_failure_holds_everyone_back_and_then_no_more():
    failure = Failure.of(OpenmarketsInvalidClient("no", status=401, error="invalid_client"), START)
    with pytest.raises(OpenmarketsInvalidClient) as raised:
        decide(entry(failure=failure), later(59), None)
    assert (raised.value.status, raised.value.error, str(raised.value)) == (401, "invalid_client", "no")
    assert decide(entry(failure=failure), later(61), None) == (Decision.REQUEST, None)


def test_a_failed_refresh_leaves_the_living_token_in_use_and_is_not_repeated_at_once():
    failure = Failure.of(OpenmarketsServerError("down", status=503), later(3400))
    both = TokenEntry(later(3400), token(), failure)
    assert decide(both, later(3401), None) == (Decision.USE, token())
    assert decide(both, later(3403), None) == (Decision.REFRESH, token())
    with pytest.raises(OpenmarketsServerError):
        decide(
            TokenEntry(later(3599), token(), Failure.of(OpenmarketsServerError("down"), later(3599))), later(3600), None
        )


def test_a_shared_rate_limit_tells_the_time_that_is_left():
    failure = Failure.of(OpenmarketsRateLimited("slow down", status=429, retry_after=40.0), START)
    with pytest.raises(OpenmarketsRateLimited) as raised:
        decide(entry(failure=failure), later(15), None)
    assert raised.value.retry_after == pytest.approx(25)


def test_a_shared_failure_that_may_pass_tells_when_to_try_again():
    failure = Failure.of(OpenmarketsTransportError("refused"), START)
    assert failure.recreate(later(0.5)).retry_after == pytest.approx(1.5)
    permanent = Failure.of(OpenmarketsInvalidClient("no", status=401), START)
    assert permanent.recreate(later(0.5)).retry_after is None


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (OpenmarketsScopeNotInPlan("", status=400), 300),
        (OpenmarketsInvalidClient("", status=401), 60),
        (OpenmarketsAuthError("", status=200), 60),
        (OpenmarketsAuthError("", status=403, transient=True), 5),
        (OpenmarketsAuthError("", status=400, transient=True), 5),
        (OpenmarketsAuthError("", status=403, transient=True, retry_after=9.0), 9),
        (OpenmarketsRateLimited("", status=429), 5),
        (OpenmarketsRateLimited("", status=429, retry_after=17.0), 17),
        (OpenmarketsRateLimited("", status=429, retry_after=1e9), MAX_FAILURE),
        (OpenmarketsServerError("", status=503), 2),
        (OpenmarketsServerError("", status=503, retry_after=9.0), 9),
        (OpenmarketsTransportError(""), 2),
    ],
)
def test_how_long_a_failure_is_shared(error, seconds):
    assert failure_seconds(error) == seconds


def test_no_representation_shows_the_token():
    shown = repr(entry(token=token("s3cret-token"), failure=Failure.of(OpenmarketsServerError("x"), START)))
    assert "s3cret-token" not in shown
    assert "market-data-api" in shown
