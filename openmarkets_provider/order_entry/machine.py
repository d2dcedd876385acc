"""The states of an intent, as a table: state and event to the next state and what to do.

Who carries it out saves a new state before the action, so that a process that is killed leaves the state that says
most. Only one action sends: ``SEND``. It follows a look at the list of orders that did not have the tag.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class State(StrEnum):
    """How far an intent is. Stored."""

    NEW = "new"
    """Nothing is known of an earlier try."""
    READY = "ready"
    """An earlier attempt certainly did not reach the API, or the API certainly refused it for now."""
    SENDING = "sending"
    """It may be on its way: stored before the first byte leaves."""
    UNKNOWN = "unknown"
    """It was sent or may have been, and its outcome is not known."""
    ABSENT = "absent"
    """The same, and the list of orders would have had it by now."""
    PLACED = "placed"
    """The order has a number."""
    REFUSED = "refused"
    """The API refused it for good."""


class Event(StrEnum):
    """What happens to an intent."""

    START = "start"
    """A process takes the intent up."""
    LISTED = "listed"
    """The list has the tag."""
    NOT_LISTED = "not_listed"
    """It has not, and still may get it."""
    SETTLED = "settled"
    """It has not, and would have it by now."""
    UNPROVEN = "unproven"
    """It has not, and it is not known whether the list has tags at all."""
    NUMBERED = "numbered"
    """The reply has the order's number."""
    REFUSAL = "refusal"
    """The reply says no: 4xx, but for 408, 425 and 429."""
    NOT_SENT = "not_sent"
    """Certainly no byte left, or the API answered 429."""
    LATE = "late"
    """The time to send in was over before the first byte left."""
    DOUBT = "doubt"
    """No reply, or one that does not say whether the order is there."""
    RESEND = "resend"
    """The user chose in advance that it is sent again."""
    IDENTIFIED = "identified"
    """A person says which order it is."""
    DENIED = "denied"
    """A person says that it was not placed."""


class Action(StrEnum):
    """What to do next."""

    LOOK = "look"
    """Read the list of the account's orders."""
    SEND = "send"
    WAIT = "wait"
    """Wait a little, then look again."""
    DONE = "done"
    """Return the order's number."""
    ASK = "ask"
    """Say that it is not known, and send nothing."""
    FAIL = "fail"
    """Raise what the API said."""


TRANSITIONS: Mapping[tuple[State, Event], tuple[State, Action]] = {
    (State.NEW, Event.START): (State.NEW, Action.LOOK),
    (State.READY, Event.START): (State.READY, Action.LOOK),
    (State.REFUSED, Event.START): (State.READY, Action.LOOK),
    # Whoever wrote it is dead, or finds the time to send in to be over.
    (State.SENDING, Event.START): (State.UNKNOWN, Action.LOOK),
    (State.UNKNOWN, Event.START): (State.UNKNOWN, Action.LOOK),
    (State.ABSENT, Event.START): (State.UNKNOWN, Action.LOOK),
    (State.PLACED, Event.START): (State.PLACED, Action.DONE),
    (State.NEW, Event.LISTED): (State.PLACED, Action.DONE),
    (State.READY, Event.LISTED): (State.PLACED, Action.DONE),
    (State.UNKNOWN, Event.LISTED): (State.PLACED, Action.DONE),
    (State.NEW, Event.NOT_LISTED): (State.SENDING, Action.SEND),
    (State.READY, Event.NOT_LISTED): (State.SENDING, Action.SEND),
    (State.UNKNOWN, Event.NOT_LISTED): (State.UNKNOWN, Action.WAIT),
    (State.UNKNOWN, Event.SETTLED): (State.ABSENT, Action.ASK),
    (State.UNKNOWN, Event.UNPROVEN): (State.UNKNOWN, Action.ASK),
    (State.ABSENT, Event.RESEND): (State.SENDING, Action.SEND),
    (State.UNKNOWN, Event.IDENTIFIED): (State.PLACED, Action.DONE),
    (State.ABSENT, Event.IDENTIFIED): (State.PLACED, Action.DONE),
    (State.UNKNOWN, Event.DENIED): (State.READY, Action.LOOK),
    (State.ABSENT, Event.DENIED): (State.READY, Action.LOOK),
    (State.SENDING, Event.NUMBERED): (State.PLACED, Action.DONE),
    (State.SENDING, Event.REFUSAL): (State.REFUSED, Action.FAIL),
    (State.SENDING, Event.NOT_SENT): (State.READY, Action.FAIL),
    # Not READY: another process may have taken over meanwhile.
    (State.SENDING, Event.LATE): (State.SENDING, Action.FAIL),
    (State.SENDING, Event.DOUBT): (State.UNKNOWN, Action.LOOK),
}
"""What is not here can't happen."""
