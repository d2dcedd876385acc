"""What docs/events.md shows works."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from openmarkets_provider.conditions import Conditions
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
from openmarkets_provider.triggers._memory import MAX_ITEMS, Memory
from openmarkets_provider.triggers._news import MAX_PART_BYTES, MAX_PAYLOAD_BYTES, find_news
from openmarkets_provider.triggers.events import MAX_POLL_INTERVAL, MIN_POLL_INTERVAL, OpenmarketsEventTrigger

TEXT = (Path(__file__).parent.parent / "docs" / "events.md").read_text()


@pytest.fixture(scope="module")
def shown() -> dict[str, Any]:
    names: dict[str, Any] = {}
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(compile(code, "docs/events.md", "exec"), names)
    return names


def test_the_watcher_fits_what_its_query_gives_and_the_dag_what_it_tells(openmarkets_sandbox, shown):
    (watcher,) = shown["orders"].watchers
    trigger = watcher.trigger
    assert isinstance(trigger, OpenmarketsEventTrigger)
    rows = OpenmarketsHook().run(trigger.query)
    news = find_news(Conditions(rows).evaluate, trigger.items, trigger.key, Memory())
    assert (len(news.fresh), news.trouble) == (len(rows), "")
    assert len(rows) > 1
    event = SimpleNamespace(extra={"payload": {"items": news.fresh}})
    told = shown["on_order"]().task_dict["read"].python_callable({shown["orders"]: [event]})
    assert [item["order_number"] for item in told] == [row["order_number"] for row in rows]


def test_numbers_in_the_text_are_those_of_the_code():
    assert f"{MAX_ITEMS:,}" in TEXT
    assert f"{MAX_PART_BYTES // 1024} KiB" in TEXT
    assert f"{MAX_PAYLOAD_BYTES // 1024} KiB" in TEXT
    assert f"{MIN_POLL_INTERVAL:.0f} to {MAX_POLL_INTERVAL:,.0f}" in TEXT
