"""Finds the new items of a poll, and makes the payload of the event. No I/O."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from openmarkets_provider.conditions import Evaluator
from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.triggers._seen_keys import MAX_ITEMS, SeenKeys, canonical, digest
from openmarkets_provider.xcom import ensure_airflow_takes

MAX_PART_BYTES = 16_384
"""Size limit of an item or key in a payload: Airflow logs payloads and stores them in its metadata database."""
MAX_PAYLOAD_BYTES = 131_072
"""Size limit of the items and keys of a payload."""
_PARTS = 2
_SHOWN = 5


@dataclass(frozen=True)
class NewItems:
    """The new items of a poll.

    :ivar total: number of items in the poll.
    :ivar payload: the new items for the event, in the order of the list.
    :ivar overflow: number of new items that do not fit into the event. They are not in ``seen``, so they are new in
        the next poll.
    :ivar seen: the keys to remember.
    :ivar problem: a problem with some of the items, and what to do; empty if there is none.
    """

    total: int
    payload: list[dict[str, Any]]
    overflow: int
    seen: SeenKeys
    problem: str

    def list_keys(self) -> str:
        """Return the keys of the first new items, for the log."""
        return _join([f"{canonical(part['key']):.100}" for part in self.payload])

    def list_omissions(self) -> str:
        """Return the first new items whose item or key is null in the event, for the log; empty if there are none."""
        return _join([f"{canonical(part):.200}" for part in self.payload if len(part) > _PARTS])


def find_new_items(evaluate_result: Callable[[str], Any], items: str, key: str, seen: SeenKeys | None) -> NewItems:
    """Compare a poll with the keys that were seen before.

    :param evaluate_result: evaluates a JMESPath expression over the poll's result.
    :param items: expression for the list of items.
    :param key: expression, over an item, for its key.
    :param seen: None for the first poll, whose items are not new.
    :raises OpenmarketsQueryError: an expression does not fit the result; the message says what to do.
    """
    listed = _check_list(_evaluate("items", evaluate_result, items), items)
    keys = [_evaluate("key", Evaluator(item).evaluate, key) for item in listed]
    by_digest: dict[str, tuple[Any, Any]] = {}
    for item, item_key in zip(listed, keys, strict=True):
        if not _is_null(item_key):
            by_digest.setdefault(digest(item_key), (item, item_key))
    problem = ""
    if keyless := sum(map(_is_null, keys)):
        problem = (
            f"key: {key!r} is null for {keyless} of {len(listed)} items{_list_fields(listed[0])}, which never "
            "fire. Use a key that all items have, or filter these out with items."
        )
        if not by_digest:
            raise OpenmarketsQueryError(problem)
    old = frozenset(by_digest if seen is None else seen.digests)
    new = [each for each in by_digest if each not in old]
    payload: list[dict[str, Any]] = []
    room = MAX_PAYLOAD_BYTES
    for each in new:
        part, size = make_part(*by_digest[each])
        room -= size
        if room < 0:
            break
        payload.append(part)
    overflow = frozenset(new[len(payload) :])
    to_remember = [each for each in by_digest if each not in overflow]
    return NewItems(len(listed), payload, len(overflow), (seen or SeenKeys()).add(to_remember), problem)


def make_part(item: Any, key: Any) -> tuple[dict[str, Any], int]:
    """Return the part of the payload for an item, and its size in bytes as JSON.

    If an item or key is too large, or Airflow can't pass or store it, it is null, and another field says why. An event
    that Airflow (3.3.2) can't handle would end the whole triggerer.
    """
    fields: dict[str, Any] = {}
    total = 0
    for name, value in (("item", item), ("key", key)):
        try:
            size = _measure(value)
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            fields |= {name: None, f"{name}_error": f"{error!s:.200}"}
        else:
            if size <= MAX_PART_BYTES:
                fields[name] = value
                total += size
            else:
                fields |= {name: None, f"{name}_bytes": size}
    return fields, total


def rename_expression(argument: str, error: OpenmarketsQueryError) -> str:
    """Return the message of an expression's error with the name of the argument."""
    return f"{argument}: {str(error).removeprefix('condition: ')}"


def _measure(value: Any) -> int:
    """Return the size of a value as JSON in bytes.

    :raises ValueError, TypeError, OverflowError, RecursionError: Airflow can't take it.
    """
    ensure_airflow_takes(value)
    return len(json.dumps(value, ensure_ascii=False).encode())


def _evaluate(argument: str, evaluate: Callable[[str], Any], expression: str) -> Any:
    try:
        return evaluate(expression)
    except OpenmarketsQueryError as error:
        raise OpenmarketsQueryError(rename_expression(argument, error)) from None


def _check_list(value: Any, items: str) -> list[Any]:
    if not isinstance(value, list):
        kind = "null" if value is None else type(value).__name__
        raise OpenmarketsQueryError(
            f"items: {items!r} gives {kind}, not a list{_list_fields(value)}. Name the field that has the list. If "
            "the API leaves out an empty list, add: || `[]`"
        )
    if len(value) > MAX_ITEMS:
        raise OpenmarketsQueryError(
            f"items: {items!r} has {len(value):,} items; the maximum for a watcher is {MAX_ITEMS:,}. Query less, "
            "or filter with items, such as [?field == 'value']."
        )
    return value


def _join(texts: list[str]) -> str:
    more = len(texts) - _SHOWN
    return ", ".join(texts[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _list_fields(value: Any) -> str:
    return f" (it has the fields {', '.join(value):.300})" if isinstance(value, dict) else ""


def _is_null(key: Any) -> bool:
    if isinstance(key, list | dict):
        return all(part is None for part in (key.values() if isinstance(key, dict) else key))
    return key is None
