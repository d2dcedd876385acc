"""What an event trigger remembers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from airflow.configuration import conf
from hypothesis import given
from hypothesis import strategies as st

from openmarkets_provider.triggers._seen_keys import MAX_ITEMS, SeenKeys, digest, state_key

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.text(max_size=3), parts, max_size=3),
    max_leaves=8,
)
KEYS = st.lists(st.integers(0, 40), max_size=20)


def digests(keys: Any) -> list[str]:
    return [digest(key) for key in keys]


@given(JSON, JSON)
def test_keys_that_are_the_same_json_and_only_those_have_the_same_digest(one: Any, other: Any):
    def text(value: Any) -> str:
        return json.dumps(value, sort_keys=True)

    assert (digest(one) == digest(other)) == (text(one) == text(other))


def test_the_order_of_an_objects_names_does_not_matter():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})


@given(st.lists(KEYS, max_size=8))
def test_all_keys_of_every_poll_are_remembered_while_there_is_room(polls: list[list[int]]):
    seen = SeenKeys()
    for poll in polls:
        seen = seen.add(digests(poll))
    assert set(seen.digests) == set(digests(key for poll in polls for key in poll))
    assert len(set(seen.digests)) == len(seen.digests)
    assert SeenKeys.from_json(json.loads(json.dumps(seen.to_json()))) == seen


@given(KEYS)
def test_a_poll_without_new_keys_changes_nothing(poll: list[int]):
    seen = SeenKeys().add(digests(range(41)))
    assert seen.add(digests(poll)) is seen


@given(KEYS, KEYS)
def test_merged_keys_hold_what_either_holds(one: list[int], other: list[int]):
    joined = SeenKeys().add(digests(one)).merge(SeenKeys().add(digests(other)))
    assert set(joined.digests) == set(digests(one + other))


def test_full_keys_hold_the_latest_poll_and_what_was_seen_last():
    seen = SeenKeys().add(digests(range(MAX_ITEMS)))
    seen = seen.add(digests([0, "new"]))
    assert len(seen.digests) == MAX_ITEMS
    assert set(digests(["new", 0, 2])) <= set(seen.digests)
    assert digest(1) not in seen.digests
    latest = digests(range(MAX_ITEMS, 2 * MAX_ITEMS))
    assert seen.add(latest).digests == tuple(latest)


@pytest.mark.since("3.3")
def test_full_keys_are_well_below_airflows_limit():
    full = SeenKeys().add(digests(range(MAX_ITEMS)))
    assert len(json.dumps(full.to_json())) < 0.7 * conf.getint("state_store", "max_value_storage_bytes")


@pytest.mark.parametrize(
    "stored",
    [
        "",
        [],
        {},
        {"format": 2, "count": 0, "seen": ""},
        {"format": 1, "count": 1, "seen": ""},
        {"format": 1, "count": 2, "seen": "AAAAAAAA"},
        {"format": 1, "count": 1, "seen": "AAAAAA\n!"},
        {"format": 1, "count": 1, "seen": None},
        {"format": 1, "count": "1", "seen": "AAAAAAAA"},
    ],
)
def test_a_damaged_record_is_refused(stored: Any):
    with pytest.raises(ValueError, match=r"expected format 1|base64|Only|character"):
        SeenKeys.from_json(stored)


def test_a_state_key_is_of_one_watcher():
    parts = ("openmarkets_default", {"endpoint": "orders"}, "@", "order_id")
    keys = {state_key(*parts), *(state_key(*parts[:at], "other", *parts[at + 1 :]) for at in range(len(parts)))}
    assert len(keys) == 5
    assert state_key(*parts) == state_key(*parts)
    assert all(len(key) < 60 for key in keys)
