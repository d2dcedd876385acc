"""What is new in a poll, and what a trigger tells of it; pure."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from openmarkets_provider.conditions import Conditions
from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.triggers._seen_keys import MAX_ITEMS, Memory, canonical, digest
from openmarkets_provider.xcom import ensure_airflow_takes

MAX_PART_BYTES = 16_384
"""Largest item, and largest key, in a payload: Airflow logs it and keeps it in its metadata database."""
MAX_PAYLOAD_BYTES = 131_072
"""Largest payload, but for the names of its parts."""
_PARTS = 2
_TOLD = 5


@dataclass(frozen=True)
class News:
    """What came of a poll.

    :ivar count: how many items the poll listed.
    :ivar fresh: what to tell of the new items, in the list's order.
    :ivar left: how many more are new, and too much for one event; they are not remembered, and so new next time.
    :ivar memory: what to remember after it.
    :ivar trouble: what is wrong with some of the items, and what to do; empty when nothing is.
    """

    count: int
    fresh: list[dict[str, Any]]
    left: int
    memory: Memory
    trouble: str

    def told(self) -> str:
        """Name some of the new items by their keys."""
        return _some([f"{canonical(each['key']):.100}" for each in self.fresh])

    def cut(self) -> str:
        """Name some that are told without item or key; empty when all have both."""
        return _some([f"{canonical(each):.200}" for each in self.fresh if len(each) > _PARTS])


def find_news(evaluate_result: Callable[[str], Any], items: str, key: str, memory: Memory | None) -> News:
    """Compare a poll with what is remembered.

    :param evaluate_result: evaluates a JMESPath expression over the poll's result.
    :param memory: None for a first poll, of which nothing is new.
    :raises OpenmarketsQueryError: the expressions don't fit the result; the text says what to do.
    """
    listed = _listed(_named("items", evaluate_result, items), items)
    keys = [_named("key", Conditions(item).evaluate, key) for item in listed]
    keyed: dict[str, tuple[Any, Any]] = {}
    for item, found in zip(listed, keys, strict=True):
        if not _is_nothing(found):
            keyed.setdefault(digest(found), (item, found))
    trouble = ""
    if keyless := sum(map(_is_nothing, keys)):
        trouble = (
            f"key: {key!r} gives null for {keyless} of {len(listed)} items{_fields(listed[0])}; those never fire. Take "
            "a key that all of them have, or leave them out with items."
        )
        if not keyed:
            raise OpenmarketsQueryError(trouble)
    known = frozenset(keyed if memory is None else memory.digests)
    new = [each for each in keyed if each not in known]
    fresh: list[dict[str, Any]] = []
    room = MAX_PAYLOAD_BYTES
    for each in new:
        part, size = described(*keyed[each])
        room -= size
        if room < 0:
            break
        fresh.append(part)
    left = frozenset(new[len(fresh) :])
    seen = [each for each in keyed if each not in left]
    return News(len(listed), fresh, len(left), (memory or Memory()).after(seen), trouble)


def described(item: Any, key: Any) -> tuple[dict[str, Any], int]:
    """Return what an event tells of an item, and its size in bytes as JSON.

    A part that is too large, or that Airflow could not pass on or store, is null, and a further field says why: Airflow
    (3.3.2) ends the whole triggerer over an event that it can't handle.
    """
    fields: dict[str, Any] = {}
    total = 0
    for name, value in (("item", item), ("key", key)):
        try:
            size = _size(value)
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            fields |= {name: None, f"{name}_error": f"{error!s:.200}"}
        else:
            if size <= MAX_PART_BYTES:
                fields[name] = value
                total += size
            else:
                fields |= {name: None, f"{name}_bytes": size}
    return fields, total


def _size(value: Any) -> int:
    """Return the size of a value as JSON, when Airflow can take it."""
    ensure_airflow_takes(value)
    return len(json.dumps(value, ensure_ascii=False).encode())


def _named(argument: str, evaluate: Callable[[str], Any], expression: str) -> Any:
    try:
        return evaluate(expression)
    except OpenmarketsQueryError as error:
        raise OpenmarketsQueryError(named(argument, error)) from None


def named(argument: str, error: OpenmarketsQueryError) -> str:
    """Return the text of an expression's error with the argument's own name."""
    return f"{argument}: {str(error).removeprefix('condition: ')}"


def _some(texts: list[str]) -> str:
    more = len(texts) - _TOLD
    return ", ".join(texts[:_TOLD]) + (f" and {more} more" if more > 0 else "")


def _listed(found: Any, items: str) -> list[Any]:
    if not isinstance(found, list):
        kind = "null" if found is None else type(found).__name__
        raise OpenmarketsQueryError(
            f"items: {items!r} gives {kind} and not a list{_fields(found)}. Name the field that holds the list; where "
            "the API leaves out an empty one, add: || `[]`"
        )
    if len(found) > MAX_ITEMS:
        raise OpenmarketsQueryError(
            f"items: {items!r} gives {len(found):,} items, and a watcher remembers {MAX_ITEMS:,} at most. Ask for less "
            "in the query, or filter with items, such as [?field == 'value']."
        )
    return found


def _fields(value: Any) -> str:
    return f" (it has the fields {', '.join(value):.300})" if isinstance(value, dict) else ""


def _is_nothing(key: Any) -> bool:
    if isinstance(key, list | dict):
        return all(part is None for part in (key.values() if isinstance(key, dict) else key))
    return key is None
