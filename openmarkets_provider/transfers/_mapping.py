"""The arguments of the other instances of a mapped task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


def list_siblings(task: Any, context: Context) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the map index and the arguments of the other instances. Templates are not rendered.

    :param task: the mapped operator.
    """
    for index, mapped in enumerate(_list_mapped(task.expand_input.value, context)):
        if index != context["ti"].map_index:
            yield index, {**task.partial_kwargs, **_resolve(mapped, context)}


def _list_mapped(value: Any, context: Context) -> list[Any]:
    if not isinstance(value, Mapping):
        # .expand_kwargs()
        return list(_resolve(value, context))
    # .expand(): all combinations. The last argument changes fastest.
    lists = [_resolve(each, context) for each in value.values()]
    return [dict(zip(value, each, strict=True)) for each in product(*lists)]


def _resolve(value: Any, context: Context) -> Any:
    """Return the output of an upstream task, or the value itself."""
    return value.resolve(context) if hasattr(value, "resolve") else value
