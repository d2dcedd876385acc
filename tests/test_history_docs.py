"""docs/howto/history.md counts the calls as a server gets them."""

from __future__ import annotations

import re
from datetime import date, timedelta

from openmarkets_provider import queries
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
from openmarkets_provider.query.endpoints import MAX_DAYS
from tests.support.pages import DOCS

PAGE = (DOCS / "howto" / "history.md").read_text(encoding="utf-8")
DAYS = [date(2026, 3, day) for day in range(2, 7)]
DAY = timedelta(days=1)


def calls(sandbox, *wanted: queries.Query) -> dict[str, int]:
    """Return how many calls for bars, and how many others, queries make together."""
    sandbox.reset()
    for query in wanted:
        OpenmarketsHook().run(query)
    api = {path: count for path, count in sandbox.stats()["by_path"].items() if "/market-data/" in path}
    bars = sum(count for path, count in api.items() if "/timeseries/" in path)
    return {"bars": bars, "others": sum(api.values()) - bars}


def test_the_calls_for_bars_are_those_of_the_securities_for_each_query(openmarkets_sandbox):
    codes = ["BHP", "CBA", "RIO"]
    whole = queries.time_series(codes, start=DAYS[0], end=DAYS[-1] + DAY)
    daily = [queries.time_series(codes, start=day, end=day + DAY) for day in DAYS]
    assert calls(openmarkets_sandbox, whole)["bars"] == len(codes)
    assert calls(openmarkets_sandbox, *daily)["bars"] == len(codes) * len(DAYS)


def test_the_figures_of_a_whole_exchange(openmarkets_sandbox):
    whole = queries.time_series(exchange="ASX", start=DAYS[0], end=DAYS[0] + DAY)
    counted = calls(openmarkets_sandbox, whole)
    lines = re.findall(r"^\| a?(?:one)? ?run .*\| ([\d,]+) \| ([\d,]+) \|$", PAGE, re.MULTILINE)
    figures = [[int(cell.replace(",", "")) for cell in line] for line in lines]
    assert [runs for runs, _ in figures] == [1, 24, 520]
    assert all(total == runs * counted["bars"] for runs, total in figures)
    assert f"makes {counted['others']} more" in PAGE
    start, end = date(2024, 3, 4), date(2026, 3, 2)
    assert sum((start + number * DAY).weekday() < 5 for number in range((end - start).days)) == 520


def test_the_longest_ranges_of_one_call():
    shown = re.findall(r"^\| `intraday_time_series`, (\d+)(?: to (\d+))? minutes \| (\d+) \|", PAGE, re.MULTILINE)
    told = {
        interval: int(most)
        for first, last, most in shown
        for interval in MAX_DAYS
        if int(first) <= interval <= int(last or first)
    }
    assert told == MAX_DAYS
