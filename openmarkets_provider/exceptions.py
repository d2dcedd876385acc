"""What can go wrong, as a tree of exceptions.

Catch :class:`OpenmarketsError` for everything. The data of an error are its attributes, its text says what the
user can do. No error carries a token, a client secret or a request body.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

_NOTES = "__notes__"


@dataclass(eq=False, repr=False, kw_only=True)
class OpenmarketsError(Exception):
    """Base of every error of this provider.

    :ivar message: the text.
    :ivar transient: True when the same call may be sent again, and succeed later without anyone changing anything. So
        of a call that is not safe to repeat only while it has not been sent.
    :ivar sent: False when it is certain that no byte of the API request left this machine.
    :ivar retry_after: seconds to wait before a further attempt makes sense; None when nobody said.
    """

    message: str = field(kw_only=False)
    transient: bool = False
    sent: bool = False
    retry_after: float | None = None

    def __post_init__(self) -> None:
        """Set what Exception shows, and what pickling replays before it restores the attributes."""
        super().__init__(self.message)

    def as_dict(self) -> dict[str, Any]:
        """Return the error as plain data, for another process; :func:`from_dict` makes it again."""
        details = asdict(self)
        if notes := getattr(self, _NOTES, None):
            details[_NOTES] = list(notes)
        return {"kind": type(self).__name__, "message": details.pop("message"), "details": details}


@dataclass(eq=False, repr=False, kw_only=True)
class OpenmarketsConfigurationError(OpenmarketsError, ValueError):
    """A connection field or a setting is missing or not allowed. The text names the field.

    :ivar scope: the OAuth scope that the connection lacks, when it is that.
    """

    scope: str | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class OpenmarketsQueryError(OpenmarketsError, ValueError):
    """A query or a condition is malformed, or names what the API does not know.

    Securities, an exchange, accounts or portfolios without a link. The text names the argument.

    :ivar securities: those that the API does not know, when it is that.
    """

    securities: list[Any] | None = None


class OpenmarketsOrderError(OpenmarketsError, ValueError):
    """An order instruction is malformed, or a limit, the connection or the state of the order forbids it.

    Nothing was sent. The text names the argument or the limit.
    """


@dataclass(eq=False, repr=False, kw_only=True)
class OpenmarketsOrderUnknown(OpenmarketsError):
    """It is not known whether an order was placed, amended or cancelled. A person has to look.

    :ivar tag: the text that begins the order's notes, if it is in the market.
    :ivar account: the order's account.
    :ivar absent: the tag would have been listed by now: the order is most likely not in the market.
    :ivar candidates: orders with the same terms that may be it, each with ``order_number`` and ``state``.
    """

    tag: str | None = None
    account: str | None = None
    absent: bool = False
    candidates: list[dict[str, Any]] = field(default_factory=list)


@dataclass(eq=False, repr=False, kw_only=True)
class OpenmarketsTransportError(OpenmarketsError):
    """No answer: host not found, connection refused or lost, time-out.

    :ivar endpoint: the call, such as ``POST market_data pricing/quotes/v3``.
    :ivar request_id: the ``X-Request-ID`` that was sent, which support asks for; None for a token request.
    """

    transient: bool = True
    endpoint: str | None = None
    request_id: str | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class OpenmarketsAuthError(OpenmarketsError):
    """The identity server gave no usable access token (RFC 6749, section 5).

    It is transient when something else than a token endpoint answered: a firewall or a proxy may be in between.

    :ivar status: HTTP status of the token reply.
    :ivar error: OAuth error code, such as ``invalid_client``; None when the reply had none.
    :ivar error_description: the server's words, when it gave any.
    :ivar scope: the OAuth scope that was asked for.
    :ivar request_id: the ``X-Request-ID`` that support asks for.
    """

    status: int | None = None
    error: str | None = None
    error_description: str | None = None
    scope: str | None = None
    request_id: str | None = None


class OpenmarketsInvalidClient(OpenmarketsAuthError):
    """The identity server does not accept the client id and secret."""


class OpenmarketsScopeNotInPlan(OpenmarketsAuthError):
    """The client may not use this API: its scope is not in the plan."""


@dataclass(eq=False, repr=False, kw_only=True)
class OpenmarketsApiError(OpenmarketsError):
    """An Openmarkets server answered with an error.

    :ivar status: HTTP status.
    :ivar title: short text of the problem, as the server gave it.
    :ivar detail: longer text, as the server gave it (cut when long).
    :ivar request_id: the ``X-Request-ID`` that support asks for.
    :ivar endpoint: the call, such as ``GET news announcements``.
    """

    status: int | None = None
    title: str | None = None
    detail: str | None = None
    request_id: str | None = None
    endpoint: str | None = None


class OpenmarketsNotFound(OpenmarketsApiError):
    """The path or the thing it names does not exist (404, 410)."""


class OpenmarketsAccessRefused(OpenmarketsApiError):
    """The API refuses the call although the token is good (401 with a new token, 403).

    Either the endpoint needs a user, which this grant has none of, or it is not in the API plan.
    """


@dataclass(eq=False, repr=False, kw_only=True)
class OpenmarketsRateLimited(OpenmarketsApiError):
    """Too many requests (429). ``retry_after`` says for how many seconds, where the server told.

    :ivar on_hold: True when another call was told so, and this one was not sent.
    """

    transient: bool = True
    on_hold: bool = False


@dataclass(eq=False, repr=False, kw_only=True)
class OpenmarketsServerError(OpenmarketsApiError):
    """The server failed (408, 425, 5xx)."""

    transient: bool = True


class OpenmarketsInvalidResponse(OpenmarketsApiError):
    """The reply is not what the API promises: not JSON, too large, wrongly encoded, a type that is wrong."""


@dataclass(eq=False, repr=False, kw_only=True)
class OpenmarketsDatabaseError(OpenmarketsError):
    """A database does not take rows: it failed, its table is not as needed, or it refuses one of them.

    :ivar row: number of the row that is refused, 1 for the first that the query gave; None when it is no row's fault.
    :ivar key: the columns that identify that row, as texts by name.
    """

    row: int | None = None
    key: dict[str, str] | None = None


def is_on_hold(error: BaseException) -> bool:
    """Tell whether a call was not sent because another one had been told to wait: no failure of its own."""
    return isinstance(error, OpenmarketsRateLimited) and error.on_hold


def without_frames(error: OpenmarketsError) -> OpenmarketsError:
    """Return the error without where it was raised, for a cause whose message says all that a task's log needs.

    Its frames would push the message out of sight.
    """
    return error.with_traceback(None)


def from_dict(data: dict[str, Any]) -> OpenmarketsError:
    """Make an error again from what :meth:`OpenmarketsError.as_dict` returned.

    :raises ValueError: the data are of something else.
    """
    match data:
        case {"kind": str(name), "message": str(message), "details": dict(details)}:
            kind = globals().get(name)
            if isinstance(kind, type) and issubclass(kind, OpenmarketsError):
                # Another version of this package may know other details.
                names = {each.name for each in fields(kind)} - {"message"} | {_NOTES}
                error = kind(message)
                vars(error).update({name: value for name, value in details.items() if name in names})
                return error
    raise ValueError(f"not an error from this provider: {data!r:.200}")
