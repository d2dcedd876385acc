"""The behaviour of orders that clients create: when they are accepted, listed, filled or rejected.

A behaviour is a JSON object; all of its fields are optional. Seconds are real time, not the sandbox's time.

    accept_after   seconds until a new order is ACTIVE; until then it is PENDING (default 0)
    list_after     seconds until the list of orders has it (default 0)
    fills          a list of [seconds, volume] steps; the seconds count from the acceptance, and a volume of null is the
                   remaining volume (default: nothing is filled)
    reject_after   seconds until the remaining volume is refused: INACTIVE and DENIED (default null: never)
    change_after   seconds between the answer to an amendment or cancellation and its effect (default 0); if the order
                   is filled in the meantime, the change has FAILED
    notes_length   how many characters of `notes` the list returns; 0 drops them (default null: all)

An order with the lifetime FillAndKill ends after the fills at its acceptance. So does one with FillOrKill, which those
fill as a whole or not at all. Both are purged, as at the close.

All of this is the sandbox's own: how the real OMS treats an order is not public.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from openmarkets_provider.sandbox.answers import check, is_number, is_whole
from openmarkets_provider.sandbox.fields import check_names


class Step(NamedTuple):
    """A step in the life of an order.

    :ivar seconds: since the order was created.
    :ivar action: ``accept``, ``fill``, ``reject`` or ``purge``.
    :ivar volume: of a fill; None is all that remains.
    """

    seconds: float
    action: str
    volume: int | None = None


@dataclass(frozen=True)
class Behaviour:
    """A checked behaviour."""

    accept_after: float = 0
    list_after: float = 0
    fills: Sequence[tuple[float, int | None]] = ()
    reject_after: float | None = None
    change_after: float = 0
    notes_length: int | None = None

    def __post_init__(self) -> None:
        """Check the fields.

        :raises ValueError: a field is invalid.
        """
        for name in ("accept_after", "list_after", "change_after"):
            check(is_number(getattr(self, name)), f"{name} must be a number, 0 or more")
        check(
            self.reject_after is None or is_number(self.reject_after),
            "reject_after must be a number, 0 or more, or null",
        )
        check(
            isinstance(self.fills, Sequence) and all(map(_is_fill, self.fills)),
            "fills must be a list of [seconds, volume] steps; a volume is an integer above 0, or null",
        )
        check(
            self.notes_length is None or is_whole(self.notes_length, 0),
            "notes_length must be an integer, 0 or more, or null",
        )

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Behaviour:
        """Return the behaviour that a JSON object describes.

        :raises ValueError: a field is unknown or invalid.
        """
        check_names(values, [each.name for each in fields(cls)])
        return cls(**values)

    def steps(self, lifetime: str, order_volume: int) -> list[Step]:
        """Return what happens to an order, in order of time."""
        accepted = self.accept_after
        fills = [Step(accepted + seconds, "fill", volume) for seconds, volume in self.fills]
        ends = [] if self.reject_after is None else [Step(self.reject_after, "reject")]
        if lifetime in ("FillAndKill", "FillOrKill"):
            fills = [fill for fill in fills if fill.seconds == accepted]
            at_once = sum(order_volume if fill.volume is None else fill.volume for fill in fills)
            if lifetime == "FillOrKill" and at_once < order_volume:
                fills = []
            ends.append(Step(accepted, "purge"))
        return sorted([Step(accepted, "accept"), *fills, *ends], key=lambda step: step.seconds)


def _is_fill(step: object) -> bool:
    if not isinstance(step, list | tuple) or len(step) != 2:
        return False
    seconds, volume = step
    return is_number(seconds) and (volume is None or is_whole(volume, 1))
