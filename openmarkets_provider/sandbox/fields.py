"""Checks of the names and values of a user's fields."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence


def check_names(names: Iterable[str], allowed: Sequence[str], context: str = "") -> None:
    """Check that all names are allowed.

    :param context: for the message, such as ``" for kind delay"``.
    :raises ValueError: some are unknown; the message has each with the closest allowed name.
    """
    unknown = [_hint(str(name), allowed) for name in sorted(set(names) - set(allowed))]
    if unknown:
        raise ValueError(f"unknown{context}: {', '.join(unknown)}; allowed: {', '.join(allowed)}")


def is_scalar(value: object) -> bool:
    """Return whether a value is a JSON scalar."""
    return isinstance(value, str | int | None) or (isinstance(value, float) and math.isfinite(value))


def _hint(name: str, allowed: Sequence[str]) -> str:
    """Return the name with the closest allowed one. For a column of our rows, that is the API's field."""
    by_letters = {_letters(each): each for each in allowed}
    close = difflib.get_close_matches(_letters(name), by_letters, n=1)
    return f"{name} (did you mean {by_letters[close[0]]}?)" if close else name


def _letters(name: str) -> str:
    return name.replace("_", "").lower()
