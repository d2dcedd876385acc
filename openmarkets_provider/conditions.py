"""Conditions: JMESPath expressions over a query's result. Data, so that a triggerer can evaluate them."""

from __future__ import annotations

from typing import Any

from openmarkets_provider.client.planning import is_literal
from openmarkets_provider.exceptions import OpenmarketsQueryError


def check_condition(condition: str) -> None:
    """Check an expression that is not a template.

    :raises OpenmarketsQueryError: it is not a JMESPath expression.
    """
    if is_literal(condition):
        _compile(condition)


def evaluate(condition: str, result: Any) -> Any:
    """Evaluate a condition: what it gives counts as met unless it is false, null, 0 or empty.

    :param result: what a query gave.
    :raises OpenmarketsQueryError: the expression is malformed, or does not fit the result.
    """
    expression = _compile(condition)
    try:
        return expression.search(result)
    except Exception as error:  # noqa: BLE001 - jmespath lets Python's own errors through, such as a TypeError of `<`
        # Cut, because the text of a type error repeats the value.
        raise OpenmarketsQueryError(f"condition: {condition!r} does not fit the result: {error!s:.500}") from None


def _compile(condition: str) -> Any:
    import jmespath

    if not isinstance(condition, str):
        raise OpenmarketsQueryError(f"condition: expected a JMESPath expression, got {condition!r:.100}.")
    try:
        return jmespath.compile(condition)
    except Exception as error:  # noqa: BLE001 - likewise, such as a RecursionError
        raise OpenmarketsQueryError(f"condition: {condition!r} is not a JMESPath expression: {error}") from None
