"""Conditions: JMESPath expressions over a query's result. They are data, so a triggerer can evaluate them."""

from __future__ import annotations

import functools
import math
import reprlib
from collections.abc import Collection
from datetime import date
from decimal import Decimal
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.query.arguments import is_literal
from openmarkets_provider.query.endpoints import ENDPOINTS
from openmarkets_provider.query.schema import snake_case

if TYPE_CHECKING:
    from openmarkets_provider.query.query import Query

_CACHE_SIZE = 4096
"""Compiled expressions. A triggerer may have more sensors than jmespath's own cache has entries."""
_MANY_VALUES = 3000
"""As many as a hundred quotes have. A condition on more values takes a millisecond or longer."""
_CONTAINERS = (dict, list)
_JSON_SCALARS = frozenset({str, int, float, bool, type(None)})


def check_condition(condition: str, query: Query) -> None:
    """Check that an expression is valid, and that rows of the query have the columns that it names.

    A template is not checked. Only names that certainly refer to a column are checked: ``not_null(@).name`` can be any
    field of a row. Results of ``request``, and of queries with ``raw``, have no columns.

    :param query: may contain templates, or be one.
    :raises OpenmarketsQueryError: it is not a JMESPath expression, or names something that is not a column.
    """
    check_expression(condition, query, 1)


def check_expression(expression: str, query: Query, depth: int | None) -> int | None:
    """Check an expression like :func:`check_condition`.

    :param depth: what it is evaluated on: 0 is a row, 1 a list of rows, 2 a list of such lists; None is anything else.
    :return: the depth of its value.
    """
    if not is_literal(expression):
        return None
    tree = _compile(expression).parsed
    columns = _list_columns(query)
    try:
        return _Columns(query["endpoint"], columns).follow(tree, depth) if columns else None
    except RecursionError:
        # The evaluation fails in the same way, with its own error.
        return None


def evaluate(condition: str, result: Any) -> Any:
    """Evaluate a condition. It is met unless its value is false, null, 0 or empty.

    The expression sees rows as JSON: decimals as numbers, dates and times as ISO 8601 texts (UTC). Its value is also
    JSON.

    :param condition: JMESPath expression.
    :param result: the result of a query.
    :raises OpenmarketsQueryError: the expression is malformed, or does not fit the result.
    """
    return Evaluator(result).evaluate(condition)


def describe_poll(condition: str, value: Any, result: Any) -> str:
    """Describe the outcome of a condition for a log.

    :param value: of the condition.
    :param result: of the query.
    """
    value = f"{reprlib.repr(value):.500}"
    if not isinstance(result, list):
        return f"{condition:.500} is {value}; the result is a {type(result).__name__}."
    return f"{condition:.500} is {value}; the result has {len(result)} row{'' if len(result) == 1 else 's'}."


def is_large(result: Any) -> bool:
    """Tell whether a condition on the result of a query takes too long for an event loop."""
    count, containers = 0, [result] if isinstance(result, _CONTAINERS) else []
    while containers:
        value = containers.pop()
        count += len(value)
        if count > _MANY_VALUES:
            return True
        items = value.values() if isinstance(value, dict) else value
        containers += [item for item in items if isinstance(item, _CONTAINERS)]
    return False


class Evaluator:
    """Evaluates many conditions on one result: converts it to JSON once, and evaluates each condition once.

    :param result: the result of a query.
    """

    def __init__(self, result: Any) -> None:
        self._result = result
        self._is_json = False
        self._values: dict[str, Any] = {}

    def evaluate(self, condition: str) -> Any:
        """Evaluate a condition like :func:`evaluate`. Equal conditions get the same object."""
        expression = _compile(condition)
        if condition not in self._values:
            self._values[condition] = self._search(condition, expression)
        value = self._values[condition]
        if isinstance(value, OpenmarketsQueryError):
            raise value.with_traceback(None) from None
        return value

    def _search(self, condition: str, expression: Any) -> Any:
        try:
            if not self._is_json:
                self._result, self._is_json = _to_json(self._result), True
            return expression.search(self._result)
        except Exception as error:  # noqa: BLE001 - jmespath lets Python's own errors through, such as a TypeError of `<`
            # Cut, because the text of a type error repeats the value.
            return OpenmarketsQueryError(f"condition: {condition!r:.500} does not fit the result: {_describe(error)}")


def _list_columns(query: Any) -> tuple[str, ...]:
    """Return the columns of a query's rows; empty if they are not known."""
    if not isinstance(query, dict) or query.get("raw") not in (False, None):
        return ()
    endpoint = ENDPOINTS.get(query.get("endpoint", ""))
    return tuple(field.name for field in endpoint.schema.fields) if endpoint else ()


class _Columns:
    """Follows rows through an expression, and refuses names that are not columns."""

    def __init__(self, endpoint: str, names: Collection[str]) -> None:
        self._endpoint = endpoint
        self._names = names

    def follow(self, node: dict[str, Any], depth: int | None) -> int | None:
        """Return the depth of the value of a node of the syntax tree; see :func:`check_expression`."""
        kind, children = node["type"], node["children"]
        if kind in ("identity", "current"):
            return depth
        if kind in ("subexpression", "index_expression", "pipe"):
            for child in children:
                depth = self.follow(child, depth)
            return depth
        if kind == "field":
            self._check_field(node["value"], depth)
        elif kind == "index":
            return depth - 1 if depth else None
        elif kind == "slice":
            return depth or None
        elif kind == "flatten":
            inner = self.follow(children[0], depth)
            return max(inner - 1, 1) if inner else None
        elif kind in ("projection", "filter_projection"):
            array, each, *conditions = children
            item = self._enter(array, depth)
            for condition in conditions:
                self.follow(condition, item)
            value = self.follow(each, item)
            return None if value is None else value + 1
        elif kind == "value_projection":
            self.follow(children[0], depth)
        elif kind == "function_expression":
            return self._call(node["value"], children, depth)
        else:
            depths = {self.follow(child, depth) for child in children}
            return depths.pop() if kind in ("or_expression", "and_expression") and len(depths) == 1 else None
        return None

    def _enter(self, array: dict[str, Any], depth: int | None) -> int | None:
        """Return the depth of the items of an array."""
        depth = self.follow(array, depth)
        return depth - 1 if depth else None

    def _call(self, function: str, arguments: list[dict[str, Any]], depth: int | None) -> int | None:
        arrays = [self.follow(argument, depth) for argument in arguments if argument["type"] != "expref"]
        array = arrays[0] if arrays else None
        for argument in arguments:
            if argument["type"] == "expref":
                # All functions that take an expression evaluate it on the items of their array.
                self.follow(argument["children"][0], array - 1 if array else None)
        if function in ("max_by", "min_by"):
            return array - 1 if array else None
        return array if function in ("reverse", "sort_by") else None

    def _check_field(self, name: str, depth: int | None) -> None:
        if depth is None:
            return
        if name not in self._names:
            if near := get_close_matches(snake_case(name), self._names, 1):
                advice = f"did you mean {near[0]!r}?"
            else:
                columns = ", ".join(self._names)
                advice = f"its columns are {columns}; for another field of the API, write not_null(@).{name:.200}"
            raise OpenmarketsQueryError(f"condition: {name!r:.200} is not a column of {self._endpoint}; {advice}")
        if depth:
            raise OpenmarketsQueryError(
                f"condition: the result is a list of rows; write [0].{name} for the first row, or [?{name}] for "
                "the rows that have a value."
            )


def _to_json(value: Any) -> Any:
    if type(value) in _JSON_SCALARS:
        return value
    if isinstance(value, dict):
        # Inlined for scalars: most values are scalars, and a call for each would take most of the time.
        return {name: item if type(item) in _JSON_SCALARS else _to_json(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_to_json(item) for item in value]
    if isinstance(value, Decimal):
        number = float(value)
        if math.isinf(number):
            raise OverflowError(f"{value} is too large for a JSON number")
        return number
    return value.isoformat() if isinstance(value, date) else value


def _compile(condition: str) -> Any:
    if not isinstance(condition, str):
        raise OpenmarketsQueryError(f"condition: expected a JMESPath expression, got {condition!r:.100}.")
    return _compile_text(condition)


@functools.lru_cache(_CACHE_SIZE)
def _compile_text(condition: str) -> Any:
    import jmespath

    try:
        return jmespath.compile(condition)
    except Exception as error:  # noqa: BLE001 - likewise, such as a RecursionError
        raise OpenmarketsQueryError(
            f"condition: {condition!r:.500} is not a JMESPath expression: {_describe(error)}"
        ) from None


def _describe(error: Exception) -> str:
    # It repeats the expression, which may contain characters that a log can't write.
    return str(error)[:500].encode(errors="backslashreplace").decode()
