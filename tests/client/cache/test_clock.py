from __future__ import annotations

import math

import pytest

from openmarkets_provider.client.cache.clock import CLOCK_SKEW, Instant, now

START = Instant(1_000_000.0, 500.0, "boot")


def test_the_real_clock_moves_and_knows_its_boot():
    first, second = now(), now()
    assert 0 <= first.elapsed(second) < 60
    assert first.boot_id == second.boot_id
    assert first.boot_id.strip() == first.boot_id != ""
    assert Instant(first.wall + 1e6, first.boot, "other").elapsed(second) == math.inf


@pytest.mark.parametrize(
    ("wall", "boot", "boot_id", "seconds"),
    [
        (10.0, 10.0, "boot", 10.0),
        (-86_400.0, 10.0, "boot", 10.0),  # the wall clock was set back
        (86_400.0, 10.0, "boot", 86_400.0),  # it was set forward
        (10.0, 99_999.0, "other", 10.0),  # another machine, or a reboot
        (-CLOCK_SKEW + 1, 10.0, "other", -CLOCK_SKEW + 1),
        (-CLOCK_SKEW, 10.0, "other", math.inf),
    ],
)
def test_the_elapsed_time_is_the_larger_one_of_the_clocks_that_can_be_compared(
    wall: float, boot: float, boot_id: str, seconds: float
):
    assert START.elapsed(Instant(START.wall + wall, START.boot + boot, boot_id)) == seconds
