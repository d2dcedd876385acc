"""Conditions: JMESPath expressions over a query's result. Data, so that a triggerer can evaluate them."""

from __future__ import annotations

import math
from datetime import date
from decimal import Decimal
from typing import Any

from openmarkets_provider.client.arguments import is_literal
from openmarkets_provider.exceptions import OpenmarketsQueryError


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
    expression = _compile(condition)
    try:
        return expression.search(_as_json(result))
    except Exception as error:  # noqa: BLE001 - jmespath lets Python's own errors through, such as a TypeError of `<`
        # Cut, because the text of a type error repeats the value.
        raise OpenmarketsQueryError(f"condition: {condition!r} does not fit the result: {error!s:.500}") from None


def _as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _as_json(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_as_json(item) for item in value]
    if isinstance(value, Decimal):
        number = float(value)
        if math.isinf(number):
            raise OverflowError(f"{value} is too large for a JSON number")
        return number
    return value.isoformat() if isinstance(value, date) else value


def _compile(condition: str) -> Any:
    import jmespath

    if not isinstance(condition, str):
        raise OpenmarketsQueryError(f"condition: expected a JMESPath expression, got {condition!r:.100}.")
    try:
        return jmespath.compile(condition)
    except Exception as error:  # noqa: BLE001 - likewise, such as a RecursionError
        raise OpenmarketsQueryError(f"condition: {condition!r} is not a JMESPath expression: {error}") from None
