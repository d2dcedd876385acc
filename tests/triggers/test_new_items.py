"""What an event trigger makes of a poll."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmarkets_provider.conditions import Conditions
from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.triggers._new_items import MAX_PART_BYTES, MAX_PAYLOAD_BYTES, News, described, find_news
from openmarkets_provider.triggers._seen_keys import MAX_ITEMS, Memory

POLLS = st.lists(st.lists(st.integers(0, 12), max_size=8), min_size=1, max_size=8)


def look(result: Any, memory: Memory | None, items: str = "@", key: str = "id") -> News:
    return find_news(Conditions(result).evaluate, items, key, memory)


def payload(item: Any, key: Any) -> dict[str, Any]:
    return described(item, key)[0]


def test_of_a_first_poll_nothing_is_new():
    news = look([{"id": 1}, {"id": 2}], None)
    assert (news.count, news.fresh, len(news.memory.digests)) == (2, [], 2)
    assert look([], None).memory == Memory()


@given(POLLS)
def test_each_key_is_new_once_and_never_if_it_was_there_at_first(polls: list[list[int]]):
    memory, fired = None, []
    for poll in polls:
        news = look([{"id": each, "poll": poll} for each in poll], memory)
        memory = news.memory
        fired += [told["key"] for told in news.fresh]
        assert all(told["item"]["poll"] == poll for told in news.fresh)
    listed = [key for poll in polls[1:] for key in poll]
    assert fired == [key for key in dict.fromkeys(listed) if key not in polls[0]]


def test_a_key_of_several_fields_makes_a_changed_status_new():
    before = [{"order": {"number": 1, "state": "OPEN"}}]
    after = [{"order": {"number": 1, "state": "FILLED"}}]
    key = "order.[number, state]"
    news = look(after, look(before, None, key=key).memory, key=key)
    assert news.fresh == [{"item": after[0], "key": [1, "FILLED"]}]
    assert look(before, news.memory, key=key).fresh == []


def test_items_choose_from_the_result():
    items = "data[?state == 'FILLED']"
    memory = look({"data": [{"id": 1, "state": "FILLED"}]}, None, items).memory
    news = look({"data": [{"id": 1, "state": "FILLED"}, {"id": 2, "state": "OPEN"}]}, memory, items)
    assert (news.count, news.fresh) == (1, [])


@pytest.mark.parametrize(
    ("result", "items", "says"),
    [
        ({"data": [], "page": 1}, "@", "items: '@' gives dict and not a list (it has the fields data, page)."),
        ({"data": []}, "dat", "items: 'dat' gives null and not a list. Name the field"),
        (None, "@", "items: '@' gives null and not a list."),
        ([{"id": 1}], "abs(@)", "items: 'abs(@)' does not fit the result:"),
        ([{"id": 1}] * (MAX_ITEMS + 1), "@", "items: '@' gives 5,001 items, and a watcher remembers 5,000 at most."),
    ],
)
def test_items_that_do_not_fit_are_told_with_the_fix(result: Any, items: str, says: str):
    with pytest.raises(OpenmarketsQueryError) as caught:
        look(result, None, items)
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize("key", ["number", "[number, state]", "{n: number}", "`[]`"])
def test_a_key_that_no_item_has_is_told_with_the_fix(key: str):
    with pytest.raises(OpenmarketsQueryError, match=r"^key: .* null for 2 of 2 items \(it has the fields id, at\)"):
        look([{"id": 1, "at": 0}, {"id": 2}], Memory(), key=key)


def test_a_key_that_does_not_fit_is_told():
    with pytest.raises(OpenmarketsQueryError, match=r"^key: 'abs\(id\)' does not fit the result"):
        look([{"id": "x"}], Memory(), key="abs(id)")


def test_items_without_a_key_are_told_and_keep_nobody_from_firing():
    news = look([{"id": None}, {"id": 7}, "text", None], Memory())
    assert [told["key"] for told in news.fresh] == [7]
    assert news.trouble.startswith("key: 'id' gives null for 3 of 4 items")
    assert look([{"id": 0}, {"id": False}, {"id": ""}], Memory()).trouble == ""


def test_a_payload_is_the_item_and_its_key():
    assert payload({"id": 1}, 1) == {"item": {"id": 1}, "key": 1}


@pytest.mark.parametrize("over", [0, 1])
def test_a_large_item_is_replaced_by_its_size(over: int):
    item = "x" * (MAX_PART_BYTES - 2 + over)
    made = payload(item, "key")
    assert made == (
        {"item": None, "item_bytes": MAX_PART_BYTES + 1, "key": "key"} if over else {"item": item, "key": "key"}
    )
    assert bool(News(1, [made], 0, Memory(), "").cut()) is bool(over)
    assert payload(1, "é" * MAX_PART_BYTES)["key_bytes"] == 2 * MAX_PART_BYTES + 2


def deep() -> list[Any]:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    return nested


@pytest.mark.parametrize("item", [2**70, math.nan, "\ud800", {"\udfff": 1}, deep(), {1, 2}])
def test_what_airflow_could_not_store_is_replaced_by_why(item: Any):
    made = payload(item, "key")
    assert made["item"] is None
    assert made["item_error"]
    assert News(1, [made], 0, Memory(), "").cut()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.text(max_size=3), parts, max_size=3),
    max_leaves=8,
)


@given(VALUES, VALUES)
def test_every_payload_can_be_passed_on_and_stored(item: Any, key: Any):
    made = payload(item, key)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(made)) == made
    assert len(json.dumps(made, allow_nan=False, ensure_ascii=False).encode()) < 2 * MAX_PART_BYTES + 200


def test_more_than_fits_is_new_again_until_all_is_told():
    rows = [{"id": each, "text": "x" * 10_000} for each in range(30)]
    memory, told, sizes = Memory(), [], []
    while news := look(rows, memory):
        memory = news.memory
        told += [part["key"] for part in news.fresh]
        sizes.append(len(json.dumps(news.fresh)))
        assert news.left == len(rows) - len(told)
        if not news.fresh:
            break
    assert told == list(range(30))
    assert max(sizes) < MAX_PAYLOAD_BYTES + 1000
    assert len(sizes) == 4


def test_the_log_names_a_few():
    news = look([{"id": each} for each in range(7)], Memory())
    assert news.told() == "0, 1, 2, 3, 4 and 2 more"
    assert look([{"id": "a"}], Memory()).told() == '"a"'
