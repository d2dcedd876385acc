"""The soak of orders in short, and that it would notice what is wrong. ``make soak-orders`` is the long one."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from dev.soak_orders import compare, intent_of
from openmarkets_provider.order_entry.intent import make_tag


@pytest.mark.slow
def test_orders_of_processes_that_are_killed_are_placed_once_or_reported():
    command = [sys.executable, "-m", "dev.soak_orders", "--orders", "30"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "50 orders, " in done.stdout


def entry(number: int, order_number: int) -> dict[str, Any]:
    return {"notes": make_tag(*intent_of(number)), "orderNumber": order_number}


PLACED, ABSENT = {"outcome": "placed", "number": 100001}, {"outcome": "not placed"}


@pytest.mark.parametrize(
    ("result", "book", "wrong"),
    [
        (PLACED, [entry(7, 100001)], 0),
        (ABSENT, [], 0),
        (PLACED, [], 1),
        (PLACED, [entry(7, 100002)], 1),
        (PLACED, [entry(7, 100001), entry(7, 100002)], 1),
        (ABSENT, [entry(7, 100001)], 1),
        ({"outcome": "unknown"}, [], 1),
        (ABSENT, [entry(8, 100001)], 1),
    ],
)
def test_the_book_and_the_reports_are_compared(result: dict[str, Any], book: list[dict[str, Any]], wrong: int):
    assert len(compare({7: result}, book)) == wrong
