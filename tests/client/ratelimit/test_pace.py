from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from openmarkets_provider.client.ratelimit.pace import Pace

GAP = 0.02
MOST = 5.0
EVENT = st.one_of(
    st.tuples(st.just("slow down"), st.floats(0, 60)),
    st.tuples(st.just("speed up"), st.just(0.0)),
    st.tuples(st.just("pass"), st.floats(0, 10)),
)


def gap_of(pace: Pace, now: float) -> float:
    """Return the gap between two requests that nothing delays."""
    assert pace.delay(now) == 0
    return pace.delay(now)


def test_nothing_is_delayed_before_a_server_complains():
    pace = Pace()
    assert [pace.delay(100.0) for _ in range(1000)] == [0.0] * 1000


def test_success_alone_changes_nothing():
    pace = Pace()
    pace.speed_up()
    assert gap_of(pace, 1.0) == 0


def test_a_limit_holds_every_request_back_for_as_long_as_it_says():
    pace = Pace()
    pace.slow_down(100.0, 3.0)
    assert [pace.delay(now) for now in (100.0, 101.0, 102.5)] == [3.0, 2.0, 0.5]
    assert pace.delay(103.0) == 0


def test_after_a_limit_requests_keep_a_gap():
    pace = Pace()
    pace.slow_down(100.0, 0.0)
    assert pace.delay(100.0) == 0
    assert abs(pace.delay(100.0) - GAP) < 1e-9
    assert pace.delay(100.0 + GAP) == 0


def test_who_has_to_wait_takes_nobody_s_turn():
    pace = Pace()
    pace.slow_down(100.0, 0.0)
    pace.delay(100.0)
    assert pace.delay(100.01) > 0
    assert pace.delay(100.01) > 0
    assert pace.delay(100.0 + GAP) == 0


def test_each_further_limit_doubles_the_gap_up_to_a_bound():
    pace, gaps = Pace(), []
    for step in range(12):
        pace.slow_down(100.0 * step, 0.0)
        gaps.append(gap_of(pace, 100.0 * step + 50))
    expected = [min(GAP * 2**step, MOST) for step in range(12)]
    assert all(abs(gap - wanted) < 1e-6 for gap, wanted in zip(gaps, expected, strict=True))
    assert gaps[-1] == MOST


def test_limits_that_come_while_one_holds_are_one_reason_to_slow_down():
    pace = Pace()
    for _ in range(8):
        pace.slow_down(100.0, 1.0)
    assert abs(gap_of(pace, 200.0) - GAP) < 1e-6


def test_a_longer_limit_that_comes_while_one_holds_counts_and_a_shorter_one_does_not():
    pace = Pace()
    pace.slow_down(100.0, 2.0)
    pace.slow_down(100.5, 5.0)
    pace.slow_down(100.6, 0.1)
    assert pace.delay(100.5) == 5.0


def test_every_success_makes_the_gap_a_tenth_shorter_until_there_is_none():
    pace = Pace()
    pace.slow_down(0.0, 0.0)
    gaps = []
    for step in range(1, 20):
        pace.speed_up()
        gaps.append(gap_of(pace, 100.0 * step))
    assert abs(gaps[0] - 0.9 * GAP) < 1e-6
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] == 0


@given(st.lists(EVENT, max_size=60))
def test_a_request_is_never_held_longer_than_the_longest_limit_and_the_largest_gap(events: list[tuple[str, float]]):
    pace, now, held_until = Pace(), 0.0, 0.0
    for kind, value in events:
        if kind == "slow down":
            pace.slow_down(now, value)
            held_until = max(held_until, now + value)
        elif kind == "speed up":
            pace.speed_up()
        else:
            now += value
            before = pace.delay(now)
            assert 0 <= before <= max(held_until - now, MOST) + 1e-6
            # a request that waits for its delay is sent then
            assert pace.delay(now + before + 1e-6) == 0 or before == 0
            now += before + 1e-6
