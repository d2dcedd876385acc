"""The intent to place one order: its tag, and what is stored of it before and after the send."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from openmarkets_provider.exceptions import OpenmarketsOrderError
from openmarkets_provider.order_entry.machine import State
from openmarkets_provider.order_entry.terms import differences

PREFIX = "OM"
_TAG = re.compile(rf"{PREFIX}[A-Z2-7]{{16}}\b")
"""A tag of this package at the beginning of notes."""


def make_tag(*parts: object) -> str:
    """Return the tag of an intent: 18 characters, the same for the same parts, whoever computes it.

    :param parts: what identifies the intent, such as DAG, run, task and map index.
    """
    name = json.dumps([str(part) for part in parts])
    return PREFIX + base64.b32encode(hashlib.sha256(name.encode()).digest()[:10]).decode()


def find_tag(rows: Iterable[Mapping[str, Any]], tag: str) -> Mapping[str, Any] | None:
    """Return the order whose notes begin with a tag.

    :param rows: of ``queries.orders``.
    """
    return next((row for row in rows if _notes(row).startswith(tag)), None)


def has_tag(row: Mapping[str, Any]) -> bool:
    """Tell whether an order's notes begin with a tag of this package, of whatever intent."""
    return _TAG.match(_notes(row)) is not None


def _notes(row: Mapping[str, Any]) -> str:
    notes = row.get("notes")
    return notes if isinstance(notes, str) else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """What is stored of an intent. JSON-able by :meth:`to_data`.

    :ivar state: how far it is.
    :ivar tag: see :func:`make_tag`.
    :ivar digest: of the terms.
    :ivar terms: of the instruction, as texts, to say what has changed.
    :ivar body: what the last attempt sent: the JSON body, with the price in native units.
    :ivar attempt: number of sends so far.
    :ivar began: when the last attempt began, in seconds since 1970.
    :ivar send_before: the time after which the last attempt sends nothing, in seconds since 1970.
    :ivar alike: numbers of the account's orders with the same terms before the last attempt.
    :ivar number: the order's number.
    :ivar epoch: what changes when the task is cleared, and not when it is retried.
    :ivar approved_by: who approved the order.
    :ivar approved_at: when, as ISO 8601 text.
    :ivar resolved_by: who said whether an attempt with an unknown outcome placed the order.
    :ivar resolved_at: when, as ISO 8601 text.
    :ivar outcome: the outcome of the order, once it is known.
    """

    tag: str
    digest: str
    terms: dict[str, Any]
    state: State = State.NEW
    attempt: int = 0
    began: float = 0.0
    send_before: float = 0.0
    alike: list[str] = field(default_factory=list)
    body: dict[str, Any] | None = None
    number: str | None = None
    epoch: int | None = None
    approved_by: str | None = None
    approved_at: str | None = None
    resolved_by: str | None = None
    resolved_at: str | None = None
    outcome: str | None = None

    @property
    def is_unsent(self) -> bool:
        """Whether the order is certainly not in the market."""
        return self.state in (State.NEW, State.READY, State.REFUSED)

    def to_data(self) -> dict[str, Any]:
        """Return what a journal stores."""
        return {each.name: getattr(self, each.name) for each in fields(self)} | {"state": self.state.value}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Intent:
        """Read what a journal stored.

        :raises OpenmarketsOrderError: it is not an intent.
        """
        try:
            names = {each.name for each in fields(cls)}
            known = {name: value for name, value in data.items() if name in names}
            return cls(**known | {"state": State(data["state"])})
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise OpenmarketsOrderError(
                f"The journal holds no intent that this version reads ({error}). Nothing is sent: look the order up, "
                "and delete the entry."
            ) from None

    def require_same_terms(self, other: Intent) -> None:
        """Check that a new try wants the same order.

        :param other: the intent of the new try.
        :raises OpenmarketsOrderError: its terms are different.
        """
        if self.digest != other.digest:
            raise OpenmarketsOrderError(
                f"The order's terms have changed since an earlier try ({differences(self.terms, other.terms)}). "
                "Nothing was sent by this one. To place another order, raise generation by one, or use another intent. "
                "To change this one, amend it."
            )
