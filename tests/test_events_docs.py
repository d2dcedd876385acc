"""The figures in docs/events.md are the code's."""

from __future__ import annotations

from pathlib import Path

from openmarkets_provider.triggers._new_items import MAX_PART_BYTES, MAX_PAYLOAD_BYTES
from openmarkets_provider.triggers._seen_keys import MAX_ITEMS
from openmarkets_provider.triggers._watcher_arguments import MAX_POLL_INTERVAL, MIN_POLL_INTERVAL

TEXT = (Path(__file__).parent.parent / "docs" / "events.md").read_text()


def test_numbers_in_the_text_are_those_of_the_code():
    assert f"{MAX_ITEMS:,}" in TEXT
    assert f"{MAX_PART_BYTES // 1024} KiB" in TEXT
    assert f"{MAX_PAYLOAD_BYTES // 1024} KiB" in TEXT
    assert f"{MIN_POLL_INTERVAL:.0f} to {MAX_POLL_INTERVAL:,.0f}" in TEXT
