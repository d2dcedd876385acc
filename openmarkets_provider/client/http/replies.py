"""From the bytes of a reply to JSON or to the error that it means. Pure."""

from __future__ import annotations

import datetime
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from decimal import Context, Decimal, InvalidOperation, localcontext
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from openmarkets_provider.exceptions import (
    OpenmarketsAccessRefused,
    OpenmarketsApiError,
    OpenmarketsError,
    OpenmarketsInvalidResponse,
    OpenmarketsNotFound,
    OpenmarketsRateLimited,
    OpenmarketsServerError,
)
from openmarkets_provider.query.plan import ApiCall
from openmarkets_provider.query.records import known_records

MAX_TEXT = 500
"""Characters of a server's words that an error repeats."""
MAX_RETRY_AFTER = 365 * 86400.0
"""A server that asks for more than this many seconds means "for good"; clocks and sleeps have bounds, too."""
TRANSIENT_STATUSES = frozenset({408, 425})
"""Below 500; those from 500 on are, too."""
_DOUBT = " It may have been carried out: check before you send it again."
_WHY_REFUSED = (
    "Client credentials have no user context: endpoints that need one, and endpoints outside your API plan, are "
    "always refused. Ask Openmarkets what your plan includes."
)


_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|([\"/\\]))")
"""What a server may write in JSON for a character of a token."""
_LONGEST_ESCAPE = 6
_TELLING = 16
"""Characters by which the begin of a token is found."""

_decoder = msgspec.json.Decoder()
_exact_decoder = msgspec.json.Decoder(float_hook=Decimal)
_CONTEXT = Context(traps=[InvalidOperation])


def decode(body: bytes, *, exact: bool = False, fields: tuple[str, ...] = ()) -> Any:
    """Decode JSON strictly (no NaN, bounded nesting).

    :param exact: numbers with a fraction become Decimal, as they are written.
    :param fields: of what is expected: with ``exact`` a list of objects that have no other fields is a list of
        :class:`~openmarkets_provider.query.records.KnownRecord`.
    :raises ValueError: it is not JSON.
    """
    try:
        if not exact:
            return _decoder.decode(body)
        # The thread's own context is the user's: it may make a number that is too large a NaN.
        with localcontext(_CONTEXT):
            if fields:
                # Not as expected: whoever reads the records says so, or takes them as they are.
                with suppress(msgspec.ValidationError):
                    return known_records(fields).decode(body)
            return _exact_decoder.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError, InvalidOperation) as error:
        raise ValueError(f"not JSON: {error}") from None


def doubt(call: ApiCall) -> str:
    """Return what to tell of a call that was sent and whose outcome is unknown; nothing when repeating is safe."""
    return "" if call.safe_to_repeat else _DOUBT


def read_reply(
    call: ApiCall,
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    request_id: str,
    hidden: Collection[str] = (),
) -> Any:
    """Return the JSON of an API's reply; None when it is empty.

    :param request_id: the one that was sent; the one that the reply echoes wins.
    :param hidden: texts that are taken out of what an error quotes: the token.
    :raises OpenmarketsApiError: the reply is an error, or not JSON.
    """
    problem = None
    if 200 <= status < 300:
        if not body.strip():
            return None
        try:
            return decode(body, exact=call.exact, fields=call.fields)
        except ValueError as error:
            problem = error
    request_id = printable(headers.get("x-request-id") or request_id, hidden)
    if problem is None:
        raise _api_error(call, status, headers, body, request_id, hidden)
    kind = printable(headers.get("content-type", "no content type"), hidden)
    raise OpenmarketsInvalidResponse(
        f"{call.label}: the reply ({status}, {kind}, {len(body)} bytes) is {problem} [request id {request_id}]"
        + doubt(call),
        status=status,
        detail=_text(body, hidden),
        request_id=request_id,
        endpoint=call.label,
    )


def wrong_contents(
    error: OpenmarketsInvalidResponse, reply: Any, status: int, request_id: str, hidden: Collection[str]
) -> OpenmarketsInvalidResponse:
    """Return the error for a reply that holds no rows, with its request id and what the server says in it.

    :param error: what is wrong with the contents.
    :param reply: the JSON of the reply.
    """
    request_id = printable(request_id, hidden)
    title, detail = _find_words(reply, hidden)
    said = ": ".join(part for part in (title, detail) if part)
    text = str(error)
    for each in hidden:
        # A value is cut before it is quoted, so the begin of a token is hidden, too.
        text = re.sub(re.escape(each[:_TELLING]) + r"[^\s'\"]*", "***", text)
    return replace(
        error,
        message=f"{text}{' The server says: ' + said if said else ''} [request id {request_id}]",
        status=status,
        title=title,
        detail=detail,
        request_id=request_id,
    )


def unreadable_reply(call: ApiCall, error: OpenmarketsInvalidResponse, request_id: str) -> OpenmarketsError:
    """Return the error for a reply whose body the transport refused: its status still tells whether that passes."""
    if error.status is not None and not 200 <= error.status < 300:
        return _api_error(call, error.status, {}, str(error).encode(), request_id)
    return OpenmarketsInvalidResponse(
        f"{call.label}: {error}{f' {error.detail}' if error.detail else ''} [request id {request_id}]{doubt(call)}",
        status=error.status,
        request_id=request_id,
        endpoint=call.label,
    )


def _api_error(
    call: ApiCall,
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    request_id: str,
    hidden: Collection[str] = (),
) -> OpenmarketsError:
    title, detail = read_words(body, hidden)
    wait = retry_after(headers.get("retry-after"))
    kind: type[OpenmarketsApiError] = OpenmarketsApiError
    advice = ""
    if status in (401, 403):
        kind, advice = OpenmarketsAccessRefused, _WHY_REFUSED
    elif status in (404, 410):
        kind, advice = OpenmarketsNotFound, "Check path and names against your API plan's documentation."
    elif status == 429:
        kind = OpenmarketsRateLimited
        advice = "" if wait is None else f"The server asks to wait {wait:.0f} s."
    elif status in TRANSIENT_STATUSES or status >= 500:
        kind, advice = OpenmarketsServerError, doubt(call).strip()
    elif 300 <= status < 400:
        advice = "Redirects are not followed; check the base URL in the connection."
    said = ": ".join(part for part in (title, detail) if part)
    return kind(
        f"{call.label}: {status}{' ' + said if said else ''} [request id {request_id}]{' ' + advice if advice else ''}",
        status=status,
        title=title,
        detail=detail,
        request_id=request_id,
        endpoint=call.label,
        retry_after=wait,
    )


def retry_after(value: str | None) -> float | None:
    """Read ``Retry-After`` (RFC 9110, section 10.2.3), seconds or an HTTP date, as seconds from now.

    None when it is absent or malformed.
    """
    if value is None or len(value) > 100:
        return None
    try:
        seconds = float(value) if value.strip().isdecimal() and value.isascii() else _seconds_until(value)
    except (ValueError, OverflowError):
        return None
    return min(max(0.0, seconds), MAX_RETRY_AFTER)


def _seconds_until(value: str) -> float:
    moment = parsedate_to_datetime(value)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return (moment - datetime.datetime.now(datetime.UTC)).total_seconds()


def read_words(body: bytes, hidden: Collection[str]) -> tuple[str | None, str | None]:
    """Find what a server says in an error body: problem details, OAuth error, ``message``, or plain text."""
    title, detail = _find_words(decode_object(body), hidden)
    return (None, _text(body, hidden)) if title is None else (title, detail)


def _find_words(reply: Any, hidden: Collection[str]) -> tuple[str | None, str | None]:
    for name, more in (("error", "error_description"), ("title", "detail"), ("message", "detail")):
        if isinstance(reply, dict) and isinstance(title := reply.get(name), str):
            said = reply.get(more)
            return printable(title, hidden), printable(said, hidden) if isinstance(said, str) and said else None
    return None, printable(reply, hidden) if isinstance(reply, str) else None


def decode_object(body: bytes) -> dict[str, Any]:
    """Decode a JSON object; an empty one when it is something else."""
    try:
        reply = decode(body)
    except ValueError:
        return {}
    return reply if isinstance(reply, dict) else {}


def _text(body: bytes, hidden: Collection[str]) -> str | None:
    # No more than is shown, and the rest of what is to be hidden and begins in it.
    longest = 4 * (MAX_TEXT + 1) + _LONGEST_ESCAPE * max(map(len, hidden), default=0)
    return printable(body[:longest].decode("utf-8", "replace"), hidden).strip() or None


def printable(text: str, hidden: Collection[str]) -> str:
    """Cut a server's words, and take out what could forge a line of a log, and what is to be hidden."""
    text = _without(text, hidden)
    if len(text) <= MAX_TEXT and text.isprintable():
        return text
    words = "".join(character if character.isprintable() else " " for character in text[: MAX_TEXT + 1])
    return words if len(words) <= MAX_TEXT else words[:MAX_TEXT] + "…"


def _without(text: str, hidden: Collection[str]) -> str:
    """Hide what a server repeats of our request, as debug pages do, be it with the escapes of JSON."""
    if not hidden:
        return text
    plain = _ESCAPE.sub(lambda match: chr(int(match[1], 16)) if match[1] else match[2], text)
    if any(each in plain for each in hidden):
        text = plain
    for each in hidden:
        text = text.replace(each, "***")
    return text
