"""Conditions: JMESPath expressions over a query's result. Data, so that a triggerer can evaluate them."""

from __future__ import annotations

import functools
import math
from datetime import date
from decimal import Decimal
from typing import Any

from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.query.arguments import is_literal

_COMPILED = 4096
"""Expressions that are kept; jmespath itself keeps fewer than a triggerer may have sensors."""
_AS_THEY_ARE = frozenset({str, int, float, bool, type(None)})


def check_condition(condition: str) -> None:
    """Check an expression that is not a template.

    :raises OpenmarketsQueryError: it is not a JMESPath expression.
    """
    if is_literal(condition):
        _compile(condition)


def evaluate(condition: str, result: Any) -> Any:
    """Evaluate a condition: what it gives counts as met unless it is false, null, 0 or empty.

    The expression sees rows as JSON: decimals as numbers, dates and times as ISO 8601 texts (UTC). So what it gives
    is JSON, too.

    :param result: what a query gave.
    :raises OpenmarketsQueryError: the expression is malformed, or does not fit the result.
    """
    return Conditions(result).evaluate(condition)


class Conditions:
    """Conditions on one result, for many who ask: its JSON is made once, and each condition evaluated once.

    :param result: what a query gave.
    """

    def __init__(self, result: Any) -> None:
        self._result = result
        self._values: dict[str, Any] = {}

    def evaluate(self, condition: str) -> Any:
        """Evaluate a condition; as :func:`evaluate`. Whoever asks for the same one gets the same object."""
        expression = _compile(condition)
        if condition not in self._values:
            self._values[condition] = self._search(condition, expression)
        value = self._values[condition]
        if isinstance(value, OpenmarketsQueryError):
            raise value.with_traceback(None) from None
        return value

    def _search(self, condition: str, expression: Any) -> Any:
        try:
            return expression.search(self._json)
        except Exception as error:  # noqa: BLE001 - jmespath lets Python's own errors through, such as a TypeError of `<`
            # Cut, because the text of a type error repeats the value.
            return OpenmarketsQueryError(f"condition: {condition!r:.500} does not fit the result: {_said(error)}")

    @functools.cached_property
    def _json(self) -> Any:
        return _as_json(self._result)


def _as_json(value: Any) -> Any:
    if type(value) in _AS_THEY_ARE:
        return value
    if isinstance(value, dict):
        # Most values are of these types: a call for each of them would take most of the time.
        return {name: item if type(item) in _AS_THEY_ARE else _as_json(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_as_json(item) for item in value]
    if isinstance(value, Decimal):
        number = float(value)
        if math.isinf(number):
            raise OverflowError(f"{value} is too large for a JSON number")
        return number
    return value.isoformat() if isinstance(value, date) else value


def _compile(condition: str) -> Any:
    if not isinstance(condition, str):
        raise OpenmarketsQueryError(f"condition: expected a JMESPath expression, got {condition!r:.100}.")
    return _compiled(condition)


@functools.lru_cache(_COMPILED)
def _compiled(condition: str) -> Any:
    import jmespath

    try:
        return jmespath.compile(condition)
    except Exception as error:  # noqa: BLE001 - likewise, such as a RecursionError
        raise OpenmarketsQueryError(
            f"condition: {condition!r:.500} is not a JMESPath expression: {_said(error)}"
        ) from None


def _said(error: Exception) -> str:
    # It repeats the expression, which may hold what no log can take.
    return str(error)[:500].encode(errors="backslashreplace").decode()
