"""What an event trigger makes of a poll."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmarkets_provider.conditions import Evaluator
from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.triggers._new_items import (
    MAX_PART_BYTES,
    MAX_PAYLOAD_BYTES,
    NewItems,
    find_new_items,
    make_part,
)
from openmarkets_provider.triggers._seen_keys import MAX_ITEMS, SeenKeys

POLLS = st.lists(st.lists(st.integers(0, 12), max_size=8), min_size=1, max_size=8)


def look(result: Any, seen: SeenKeys | None, items: str = "@", key: str = "id") -> NewItems:
    return find_new_items(Evaluator(result).evaluate, items, key, seen)


def payload(item: Any, key: Any) -> dict[str, Any]:
    return make_part(item, key)[0]


def test_of_a_first_poll_nothing_is_new():
    new = look([{"id": 1}, {"id": 2}], None)
    assert (new.total, new.payload, len(new.seen.digests)) == (2, [], 2)
    assert look([], None).seen == SeenKeys()


@given(POLLS)
def test_each_key_is_new_once_and_never_if_it_was_there_at_first(polls: list[list[int]]):
    seen, fired = None, []
    for poll in polls:
        new = look([{"id": each, "poll": poll} for each in poll], seen)
        seen = new.seen
        fired += [part["key"] for part in new.payload]
        assert all(part["item"]["poll"] == poll for part in new.payload)
    listed = [key for poll in polls[1:] for key in poll]
    assert fired == [key for key in dict.fromkeys(listed) if key not in polls[0]]


def test_a_key_of_several_fields_makes_a_changed_status_new():
    before = [{"order": {"number": 1, "state": "OPEN"}}]
    after = [{"order": {"number": 1, "state": "FILLED"}}]
    key = "order.[number, state]"
    new = look(after, look(before, None, key=key).seen, key=key)
    assert new.payload == [{"item": after[0], "key": [1, "FILLED"]}]
    assert look(before, new.seen, key=key).payload == []


def test_items_choose_from_the_result():
    items = "data[?state == 'FILLED']"
    seen = look({"data": [{"id": 1, "state": "FILLED"}]}, None, items).seen
    new = look({"data": [{"id": 1, "state": "FILLED"}, {"id": 2, "state": "OPEN"}]}, seen, items)
    assert (new.total, new.payload) == (1, [])


@pytest.mark.parametrize(
    ("result", "items", "says"),
    [
        ({"data": [], "page": 1}, "@", "items: '@' gives dict, not a list (it has the fields data, page)."),
        ({"data": []}, "dat", "items: 'dat' gives null, not a list. Name the field"),
        (None, "@", "items: '@' gives null, not a list."),
        ([{"id": 1}], "abs(@)", "items: 'abs(@)' does not fit the result:"),
        ([{"id": 1}] * (MAX_ITEMS + 1), "@", "items: '@' has 5,001 items; the maximum for a watcher is 5,000."),
    ],
)
def test_items_that_do_not_fit_are_told_with_the_fix(result: Any, items: str, says: str):
    with pytest.raises(OpenmarketsQueryError) as caught:
        look(result, None, items)
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize("key", ["number", "[number, state]", "{n: number}", "`[]`"])
def test_a_key_that_no_item_has_is_told_with_the_fix(key: str):
    with pytest.raises(OpenmarketsQueryError, match=r"^key: .* null for 2 of 2 items \(it has the fields id, at\)"):
        look([{"id": 1, "at": 0}, {"id": 2}], SeenKeys(), key=key)


def test_a_key_that_does_not_fit_is_told():
    with pytest.raises(OpenmarketsQueryError, match=r"^key: 'abs\(id\)' does not fit the result"):
        look([{"id": "x"}], SeenKeys(), key="abs(id)")


def test_items_without_a_key_are_told_and_keep_nobody_from_firing():
    new = look([{"id": None}, {"id": 7}, "text", None], SeenKeys())
    assert [part["key"] for part in new.payload] == [7]
    assert new.problem.startswith("key: 'id' is null for 3 of 4 items")
    assert look([{"id": 0}, {"id": False}, {"id": ""}], SeenKeys()).problem == ""


def test_a_payload_is_the_item_and_its_key():
    assert payload({"id": 1}, 1) == {"item": {"id": 1}, "key": 1}


@pytest.mark.parametrize("over", [0, 1])
def test_a_large_item_is_replaced_by_its_size(over: int):
    item = "x" * (MAX_PART_BYTES - 2 + over)
    part = payload(item, "key")
    assert part == (
        {"item": None, "item_bytes": MAX_PART_BYTES + 1, "key": "key"} if over else {"item": item, "key": "key"}
    )
    assert bool(NewItems(1, [part], 0, SeenKeys(), "").list_omissions()) is bool(over)
    assert payload(1, "é" * MAX_PART_BYTES)["key_bytes"] == 2 * MAX_PART_BYTES + 2


def deep() -> list[Any]:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    return nested


@pytest.mark.parametrize("item", [2**70, math.nan, "\ud800", {"\udfff": 1}, deep(), {1, 2}])
def test_what_airflow_could_not_store_is_replaced_by_why(item: Any):
    part = payload(item, "key")
    assert part["item"] is None
    assert part["item_error"]
    assert NewItems(1, [part], 0, SeenKeys(), "").list_omissions()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.text(max_size=3), parts, max_size=3),
    max_leaves=8,
)


@given(VALUES, VALUES)
def test_every_payload_can_be_passed_on_and_stored(item: Any, key: Any):
    part = payload(item, key)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(part)) == part
    assert len(json.dumps(part, allow_nan=False, ensure_ascii=False).encode()) < 2 * MAX_PART_BYTES + 200


def test_more_than_fits_is_new_again_until_all_is_told():
    rows = [{"id": each, "text": "x" * 10_000} for each in range(30)]
    seen, keys, sizes = SeenKeys(), [], []
    while new := look(rows, seen):
        seen = new.seen
        keys += [part["key"] for part in new.payload]
        sizes.append(len(json.dumps(new.payload)))
        assert new.overflow == len(rows) - len(keys)
        if not new.payload:
            break
    assert keys == list(range(30))
    assert max(sizes) < MAX_PAYLOAD_BYTES + 1000
    assert len(sizes) == 4


def test_the_log_names_a_few():
    new = look([{"id": each} for each in range(7)], SeenKeys())
    assert new.list_keys() == "0, 1, 2, 3, 4 and 2 more"
    assert look([{"id": "a"}], SeenKeys()).list_keys() == '"a"'
