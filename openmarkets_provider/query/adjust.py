"""Adjusted prices and volumes of bars, from their adjustment factors. Pure.

The API page names the field ``adjustmentFactor`` without its meaning. :data:`METHODS` has the usual meanings; it is
inferred that the API uses :data:`DEFAULT_METHOD`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import ROUND_HALF_EVEN, Context, Decimal, DivisionByZero, InvalidOperation, Overflow, localcontext
from itertools import accumulate
from operator import mul, truediv
from typing import Any, NamedTuple


class Method(NamedTuple):
    """What a factor means.

    :ivar per_event: True if it belongs to the event (a split, a dividend) before its bar, which is the first on the new
        basis, and applies to all earlier bars. Otherwise it is cumulative and applies to its own bar.
    :ivar divide: True if prices are divided by it and volumes multiplied. Otherwise it is the other way round.
    """

    per_event: bool
    divide: bool


DEFAULT_METHOD = "cumulative_multiply"
"""The meaning of ``adjusted=True``. Inferred."""
METHODS: Mapping[str, Method] = {
    DEFAULT_METHOD: Method(per_event=False, divide=False),
    "cumulative_divide": Method(per_event=False, divide=True),
    "event_multiply": Method(per_event=True, divide=False),
    "event_divide": Method(per_event=True, divide=True),
}
"""The meanings of a factor by name."""
PRICES: Mapping[str, str] = {
    f"adjusted_{name}": name for name in ("open_price", "high_price", "low_price", "close_price")
}
"""Columns with an adjusted price, and the columns that they are computed from."""
VOLUMES: Mapping[str, str] = {"adjusted_total_volume": "total_volume"}
"""The same for volumes."""
DECIMALS = 12
"""Digits after the point of an adjusted value."""
_LAST_DIGIT = Decimal(1).scaleb(-DECIMALS)
_CONTEXT = Context(prec=60, rounding=ROUND_HALF_EVEN, traps=[DivisionByZero, InvalidOperation, Overflow])


def adjust_series(method: str, columns: Mapping[str, Sequence[Any]]) -> dict[str, list[Decimal | None]]:
    """Return the adjusted columns of the bars of one security.

    Prices and volumes are adjusted by the same factor: their product stays the same. Values are computed with 60 digits
    and rounded half even to :data:`DECIMALS` digits after the point.

    :param method: of :data:`METHODS`.
    :param columns: the bars by column, the oldest first, with ``adjustment_factor``.
    :return: the values by column; None if the bar has no value, or no cumulative factor.
    :raises ArithmeticError: a factor is not above 0, or a result has too many digits.
    """
    per_event, divide = METHODS[method]
    apply_price, apply_volume = (truediv, mul) if divide else (mul, truediv)
    factors: Sequence[Decimal | None] = columns["adjustment_factor"]
    if any(factor is not None and factor <= 0 for factor in factors):
        raise ArithmeticError
    with localcontext(_CONTEXT):
        if per_event:
            factors = _accumulate(factors)
        return {
            name: [
                None if value is None or factor is None else _round(apply(Decimal(value), factor))
                for value, factor in zip(columns[source], factors, strict=True)
            ]
            for sources, apply in ((PRICES, apply_price), (VOLUMES, apply_volume))
            for name, source in sources.items()
        }


def _accumulate(factors: Sequence[Decimal | None]) -> list[Decimal]:
    """Return the product of the factors of all later bars. A bar without a factor has no event."""
    later: Iterable[Decimal] = (Decimal(1) if factor is None else factor for factor in reversed(factors[1:]))
    return list(accumulate(later, mul, initial=Decimal(1)))[: len(factors)][::-1]


def _round(value: Decimal) -> Decimal:
    # Rounding adds zeros to a value with fewer digits.
    rounded = value.quantize(_LAST_DIGIT)
    # Without the exponent of a quotient such as 1.395E+5.
    return value + 0 if value == rounded else rounded
