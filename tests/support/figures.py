"""Figures of the benchmark, printed beside their goals."""

from __future__ import annotations

import operator
import statistics
from collections.abc import Sequence

MISSED: list[str] = []
"""The lines of figures that miss their goals, of all parts of the benchmark."""
_HOLDS = {"<=": operator.le, ">=": operator.ge}


def ratios(ours: Sequence[float], base: Sequence[float]) -> list[float]:
    """Divide pair by pair."""
    return [one / other for one, other in zip(ours, base, strict=True)]


def show(what: str, figures: Sequence[float], goal: str = "", digits: int = 3) -> None:
    """Print median, smallest and largest, and whether the median meets the goal.

    :param goal: such as ``goal <= 1.1``.
    """
    middle, low, high = statistics.median(figures), min(figures), max(figures)
    line = f"{what}: {middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
    if goal:
        _, sign, bound = goal.split()
        met = _HOLDS[sign](middle, float(bound))
        line = f"{line} {goal}: {'met' if met else 'MISSED'}"
        if not met:
            MISSED.append(line)
    print(f"  {line}")


def show_missed() -> None:
    """Print the list of missed goals."""
    print(f"\nMissed goals: {len(MISSED)}")
    for line in MISSED:
        print(f"  {line}")
