"""Checks the arguments of the event trigger when the DAG is parsed. No I/O."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from openmarkets_provider.conditions import check_expression
from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.query.arguments import is_literal
from openmarkets_provider.query.query import check, check_reads_only
from openmarkets_provider.triggers._new_items import rename_expression
from openmarkets_provider.triggers._seen_keys import canonical

MIN_POLL_INTERVAL = 1.0
"""Seconds. A watcher polls for months, and the API limits the rate. Shorter intervals need a stream."""
MAX_POLL_INTERVAL = 86_400.0
"""Seconds: one day. Longer intervals need a schedule."""


class WatcherArgumentError(OpenmarketsQueryError, TypeError):
    """An argument is malformed.

    Airflow (3.3.2) handles only a TypeError of a trigger's constructor. Any other error ends the triggerer with all of
    its triggers, for example if the DAG was parsed with another version of this package.
    """


def check_watcher(conn_id: Any, query: Any, items: Any, key: Any, poll_interval: Any, queue: Any) -> None:
    """Check the arguments.

    :raises WatcherArgumentError: one is malformed; the message names it and says what to do.
    """
    try:
        _check_literals(openmarkets_conn_id=conn_id, query=query, items=items, key=key, queue=queue)
        if not isinstance(conn_id, str) or not conn_id:
            raise OpenmarketsQueryError(f"openmarkets_conn_id must be the id of a connection, not {conn_id!r:.100}.")
        check(query)
        depth = _check_expression("items", items, query, 1)
        _check_expression("key", key, query, depth - 1 if depth else None)
        _check_interval(poll_interval)
        if queue is not None:
            _check_queue(queue)
        _check_json(query)
        check_reads_only(query, "a watcher")
    except OpenmarketsQueryError as error:
        raise WatcherArgumentError(str(error)) from None


def _check_literals(**arguments: Any) -> None:
    for name, value in arguments.items():
        try:
            has_template = not all(map(is_literal, _list_leaves(value)))
        except RecursionError:
            raise OpenmarketsQueryError(f"{name}: nested too deeply; use fewer levels of lists and dicts.") from None
        if has_template:
            raise OpenmarketsQueryError(
                f"{name}: a watcher runs outside of DAG runs, so it can't use a template or a task's result, "
                f"such as {value!r:.200}. Write a literal value; a query without a range returns what is current."
            )


def _list_leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for name, part in value.items():
            yield name
            yield from _list_leaves(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _list_leaves(part)
    else:
        yield value


def _check_expression(name: str, expression: Any, query: Any, depth: int | None) -> int | None:
    try:
        return check_expression(expression, query, depth)
    except OpenmarketsQueryError as error:
        raise OpenmarketsQueryError(rename_expression(name, error)) from None


def _check_interval(seconds: Any) -> None:
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not is_number or not MIN_POLL_INTERVAL <= seconds <= MAX_POLL_INTERVAL:
        raise OpenmarketsQueryError(
            f"poll_interval must be from {MIN_POLL_INTERVAL:.0f} to {MAX_POLL_INTERVAL:.0f} seconds, not "
            f"{seconds!r:.100}."
        )


def _check_queue(queue: Any) -> None:
    from airflow.triggers.base import BaseEventTrigger

    if "queue" not in inspect.signature(BaseEventTrigger).parameters:
        raise OpenmarketsQueryError(
            "queue needs Airflow 3.4 or later; remove it. In earlier versions every triggerer runs all watchers."
        )
    if not isinstance(queue, str) or not queue:
        raise OpenmarketsQueryError(f"queue must be the name of a trigger queue, not {queue!r:.100}.")


def _check_json(query: Any) -> None:
    try:
        canonical(query)
    except (TypeError, ValueError) as error:
        raise OpenmarketsQueryError(
            f"query can't be written as JSON ({error}); create it with a function of openmarkets_provider.queries."
        ) from None
