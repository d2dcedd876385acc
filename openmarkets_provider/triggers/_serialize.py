"""Serialises triggers: import path and arguments."""

from __future__ import annotations

import inspect
from typing import Any


def serialize_trigger(trigger: Any) -> tuple[str, dict[str, Any]]:
    """Return the import path of a trigger, and its arguments by name, from attributes with the same names."""
    kind = type(trigger)
    return f"{kind.__module__}.{kind.__qualname__}", {
        name: getattr(trigger, name) for name in inspect.signature(kind).parameters
    }
