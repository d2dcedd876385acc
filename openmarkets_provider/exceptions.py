"""The errors of this provider.

Catch :class:`OpenmarketsError` for all of them. Attributes have the data of an error; its text says what the user can
do. No error contains a token, a client secret or a request body.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

_NOTES = "__notes__"


@dataclass(eq=False, repr=False, kw_only=True)
class OpenmarketsError(Exception):
    """Base of all errors of this provider.

    :ivar message: the text.
    :ivar transient: True if the same call may succeed later without any change. For a call that is not safe to repeat,
        only if it was not sent.
    :ivar sent: False if it is certain that no byte of the API request left this machine.
    :ivar retry_after: seconds to wait before another attempt makes sense; None if unknown.
    """

    message: str = field(kw_only=False)
    transient: bool = False
    sent: bool = False
    retry_after: float | None = None

    def __post_init__(self) -> None:
        """Set the argument that Exception shows and that unpickling passes to the class."""
        super().__init__(self.message)

    def as_dict(self) -> dict[str, Any]:
        """Return the error as plain data for another process; :func:`from_dict` reads it."""
        details = asdict(self)
        if notes := getattr(self, _NOTES, None):
            details[_NOTES] = list(notes)
        return {"kind": type(self).__name__, "message": details.pop("message"), "details": details}


@dataclass(eq=False, repr=False, kw_only=True)
class OpenmarketsConfigurationError(OpenmarketsError, ValueError):
    """A connection field or a setting is missing or not allowed. The text names the field.

    :ivar scope: the OAuth scope that the connection lacks, if that is the problem.
    """

    scope: str | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class OpenmarketsQueryError(OpenmarketsError, ValueError):
    """A query or a condition is malformed, or names something that the API does not know.

    Examples are unknown securities, an exchange without securities, and a portfolio without a link to an account. The
    text names the argument.

    :ivar securities: the unknown securities, if they are the problem.
    """

    securities: list[Any] | None = None


class OpenmarketsOrderError(OpenmarketsError, ValueError):
    """An order instruction is malformed, or forbidden by a limit, the connection or the order's state.

    Nothing was sent. The text names the argument or the limit.
    """


@dataclass(eq=False, repr=False, kw_only=True)
class OpenmarketsOrderUnknown(OpenmarketsError):
    """It is not known whether an order was placed, amended or cancelled. A person has to check.

    :ivar tag: the text at the start of the order's notes, if the order is in the market.
    :ivar account: the order's account.
    :ivar absent: True if the tag should be listed by now and is not: the order is most likely not in the market.
    :ivar candidates: orders with the same terms, each with ``order_number`` and ``state``.
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

    It is transient if something other than a token endpoint answered, such as a firewall or a proxy.

    :ivar status: HTTP status of the token reply.
    :ivar error: OAuth error code, such as ``invalid_client``; None if the reply has none.
    :ivar error_description: the server's description, if any.
    :ivar scope: the requested OAuth scope.
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
    :ivar title: the server's short text.
    :ivar detail: the server's longer text, cut if it is very long.
    :ivar request_id: the ``X-Request-ID`` that support asks for.
    :ivar endpoint: the call, such as ``GET news announcements``.
    """

    status: int | None = None
    title: str | None = None
    detail: str | None = None
    request_id: str | None = None
    endpoint: str | None = None


class OpenmarketsNotFound(OpenmarketsApiError):
    """The path, or what it names, does not exist (404, 410)."""


class OpenmarketsAccessRefused(OpenmarketsApiError):
    """The API refuses the call although the token is valid (401 with a new token, 403).

    Either the endpoint needs a user, which client credentials do not have, or it is not in the API plan.
    """


@dataclass(eq=False, repr=False, kw_only=True)
class OpenmarketsRateLimited(OpenmarketsApiError):
    """Too many requests (429). ``retry_after`` has the seconds to wait, if the server sent them.

    :ivar on_hold: True if another call got the 429 and this one was not sent.
    """

    transient: bool = True
    on_hold: bool = False


@dataclass(eq=False, repr=False, kw_only=True)
class OpenmarketsServerError(OpenmarketsApiError):
    """The server failed (408, 425, 5xx)."""

    transient: bool = True


class OpenmarketsInvalidResponse(OpenmarketsApiError):
    """The reply is not as documented: not JSON, too large, badly encoded, or a value has the wrong type."""


@dataclass(eq=False, repr=False, kw_only=True)
class OpenmarketsDatabaseError(OpenmarketsError):
    """A database does not accept rows: it failed, its table does not fit, or it refused a row.

    :ivar row: number of the refused row, from 1 for the first row of the query; None if no row is at fault.
    :ivar key: the key columns of that row, as texts by name.
    """

    row: int | None = None
    key: dict[str, str] | None = None


def is_on_hold(error: BaseException) -> bool:
    """Tell whether a call was not sent because another call got a 429."""
    return isinstance(error, OpenmarketsRateLimited) and error.on_hold


def without_frames(error: OpenmarketsError) -> OpenmarketsError:
    """Return the error without its traceback, for use as a cause whose message says everything.

    In a task's log, the frames would push the message out of sight.
    """
    return error.with_traceback(None)


def from_dict(data: dict[str, Any]) -> OpenmarketsError:
    """Return the error of the data that :meth:`OpenmarketsError.as_dict` returned.

    :raises ValueError: the data are not an error of this provider.
    """
    match data:
        case {"kind": str(name), "message": str(message), "details": dict(details)}:
            kind = globals().get(name)
            if isinstance(kind, type) and issubclass(kind, OpenmarketsError):
                # Another version of this package may have other details.
                names = {each.name for each in fields(kind)} - {"message"} | {_NOTES}
                error = kind(message)
                vars(error).update({name: value for name, value in details.items() if name in names})
                return error
    raise ValueError(f"not an error from this provider: {data!r:.200}")
