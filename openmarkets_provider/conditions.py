"""Conditions: JMESPath expressions over a query's result. They are data, so a triggerer can evaluate them."""

from __future__ import annotations

import functools
import math
from datetime import date
from decimal import Decimal
from typing import Any

from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.query.arguments import is_literal

_CACHE_SIZE = 4096
"""Compiled expressions; jmespath's own cache is smaller than the number of sensors that a triggerer may have."""
_MANY_VALUES = 3000
"""Those of about a hundred quotes: a condition on more of them takes a millisecond or longer."""
_CONTAINERS = (dict, list)
_JSON_SCALARS = frozenset({str, int, float, bool, type(None)})


def check_condition(condition: str) -> None:
    """Check an expression, unless it is a template.

    :raises OpenmarketsQueryError: it is not a JMESPath expression.
    """
    if is_literal(condition):
        _compile(condition)


def evaluate(condition: str, result: Any) -> Any:
    """Evaluate a condition. It is met unless its value is false, null, 0 or empty.

    The expression sees rows as JSON: decimals as numbers, dates and times as ISO 8601 texts (UTC). Its value is JSON,
    too.

    :param condition: JMESPath expression.
    :param result: the result of a query.
    :raises OpenmarketsQueryError: the expression is malformed, or does not fit the result.
    """
    return Evaluator(result).evaluate(condition)


def is_large(result: Any) -> bool:
    """Tell whether a condition on the result of a query takes so long that an event loop should not wait for it."""
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
        """Evaluate a condition, as :func:`evaluate`. Equal conditions get the same object."""
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


def _to_json(value: Any) -> Any:
    if type(value) in _JSON_SCALARS:
        return value
    if isinstance(value, dict):
        # Inlined for scalars, which are most of the values: a call for each would take most of the time.
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
    # It repeats the expression, which may hold characters that no log can take.
    return str(error)[:500].encode(errors="backslashreplace").decode()
