"""docs/howto/history.md counts the calls as a server gets them."""

from __future__ import annotations

import re
from datetime import date, timedelta
from typing import Any

import pytest

from openmarkets_provider import queries
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
from openmarkets_provider.query.endpoints import MAX_DAYS
from openmarkets_provider.sessions.calendar import ASX
from tests.support.context import context
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
    daily = [queries.time_series(codes, session=day) for day in DAYS]
    assert calls(openmarkets_sandbox, whole)["bars"] == len(codes)
    assert calls(openmarkets_sandbox, *daily)["bars"] == len(codes) * len(DAYS)


def test_the_figures_of_a_whole_exchange(openmarkets_sandbox):
    counted = calls(openmarkets_sandbox, queries.time_series(exchange="ASX", session=DAYS[0]))
    lines = re.findall(r"^\| (?:one|a) run .*\| ([\d,]+) \| ([\d,]+)(?: \(extrapolated\))? \|$", PAGE, re.MULTILINE)
    figures = [[int(cell.replace(",", "")) for cell in line] for line in lines]
    assert [runs for runs, _ in figures] == [1, 24, ASX.count_sessions("2024-01-01", "2025-12-31")]
    assert all(total == runs * counted["bars"] for runs, total in figures)
    assert f"makes {counted['others']} more" in PAGE
    assert f": {ASX.count_sessions('2021-01-01', '2025-12-31'):,} in these five years" in PAGE


@pytest.mark.since("3.3")
def test_both_ways_of_the_page_write_the_same_files_and_emit_the_same_keys(openmarkets_sandbox, s3, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", s3.connection_json)
    s3.client.create_bucket(Bucket="lake")
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(code, "docs/howto/history.md", "exec"), names)

    def run(name: str, **given: Any) -> tuple[list[str], list[str]]:
        """Return the sessions of the files that a task has written, and the keys that it has emitted."""
        task = names[name]().get_task("lake")
        report = context() | {"params": {"start": "2026-04-01", "end": "2026-04-09"}} | given
        task.render_template_fields(report)
        files = task.execute(report)["files"]
        (event,) = report["outlet_events"].values()
        return [file.split("exchange_date=")[1][:10] for file in files], event.partition_keys

    sessions = [str(day) for day in ASX.sessions_in_range("2026-04-01", "2026-04-08")]
    assert run("load_the_past") == (sessions, sessions)
    # Airflow adds the key of the run to the event.
    assert [run("each_session", partition_key=session) for session in sessions] == [
        ([session], []) for session in sessions
    ]
    assert names["each_session"]().timetable.partitioned


def test_the_longest_ranges_of_one_call():
    shown = re.findall(r"^\| `intraday_time_series`, (\d+)(?: to (\d+))? minutes \| (\d+) \|", PAGE, re.MULTILINE)
    report = {
        interval: int(most)
        for first, last, most in shown
        for interval in MAX_DAYS
        if int(first) <= interval <= int(last or first)
    }
    assert report == MAX_DAYS
