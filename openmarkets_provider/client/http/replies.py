"""Turns the bytes of a reply into JSON or an error. Pure."""

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
"""Most characters of a server's words that an error quotes."""
MAX_RETRY_AFTER = 365 * 86400.0
"""Longest ``Retry-After`` in seconds: clocks and sleeps have limits."""
TRANSIENT_STATUSES = frozenset({408, 425})
"""Transient statuses below 500. All from 500 on are transient."""
_DOUBT = " It may have been carried out: check before you send it again."
_WHY_REFUSED = (
    "Client credentials have no user context: endpoints that need one, and endpoints outside your API plan, are "
    "always refused. Ask Openmarkets what your plan includes."
)


_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|([\"/\\]))")
"""JSON escapes, which a server may use for characters of a token."""
_LONGEST_ESCAPE = 6
_TELLING = 16
"""How many leading characters identify a truncated token."""

_decoder = msgspec.json.Decoder()
_exact_decoder = msgspec.json.Decoder(float_hook=Decimal)
_CONTEXT = Context(traps=[InvalidOperation])


def decode(body: bytes, *, exact: bool = False, fields: tuple[str, ...] = ()) -> Any:
    """Decode JSON strictly (no NaN, limited nesting).

    :param exact: decode numbers with a fraction as Decimal, with all their digits.
    :param fields: the expected fields. With ``exact``, a list of objects that have no others is decoded into
        :class:`~openmarkets_provider.query.records.KnownRecord`.
    :raises ValueError: it is not JSON.
    """
    try:
        if not exact:
            return _decoder.decode(body)
        # Not the user's decimal context of this thread, which may turn a large number into NaN.
        with localcontext(_CONTEXT):
            if fields:
                # If the records have other fields, decode them as dicts. Their reader checks them.
                with suppress(msgspec.ValidationError):
                    return known_records(fields).decode(body)
            return _exact_decoder.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError, InvalidOperation) as error:
        raise ValueError(f"not JSON: {error}") from None


def doubt(call: ApiCall) -> str:
    """Return a warning that the outcome of a call is unknown; empty if the call is safe to repeat."""
    return "" if call.safe_to_repeat else _DOUBT


def read_reply(
    call: ApiCall,
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    request_id: str,
    hidden: Collection[str] = (),
) -> Any:
    """Return the JSON of an API's reply; None if it is empty.

    :param request_id: as sent. If the reply echoes another one, that one is used.
    :param hidden: texts that errors must not quote: the token.
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
    """Return the error for a reply with invalid contents, with its request id and the server's words.

    :param error: the problem with the contents.
    :param reply: the JSON of the reply.
    """
    request_id = printable(request_id, hidden)
    title, detail = _find_words(reply, hidden)
    said = ": ".join(part for part in (title, detail) if part)
    text = str(error)
    for each in hidden:
        # Quoted values are truncated, so hide truncated tokens, too.
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
    """Return the error for a reply with an unreadable body. Its status decides whether the error is transient."""
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
    """Convert ``Retry-After`` (RFC 9110, section 10.2.3), seconds or an HTTP date, to seconds from now.

    None if it is missing or malformed.
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
    """Find the server's words in an error body: problem details, an OAuth error, ``message``, or plain text."""
    title, detail = _find_words(decode_object(body), hidden)
    return (None, _text(body, hidden)) if title is None else (title, detail)


def _find_words(reply: Any, hidden: Collection[str]) -> tuple[str | None, str | None]:
    for name, more in (("error", "error_description"), ("title", "detail"), ("message", "detail")):
        if isinstance(reply, dict) and isinstance(title := reply.get(name), str):
            said = reply.get(more)
            return printable(title, hidden), printable(said, hidden) if isinstance(said, str) and said else None
    return None, printable(reply, hidden) if isinstance(reply, str) else None


def decode_object(body: bytes) -> dict[str, Any]:
    """Decode a JSON object. Anything else gives an empty dict."""
    try:
        reply = decode(body)
    except ValueError:
        return {}
    return reply if isinstance(reply, dict) else {}


def _text(body: bytes, hidden: Collection[str]) -> str | None:
    # As much as is quoted, plus the rest of a hidden text that starts in it.
    longest = 4 * (MAX_TEXT + 1) + _LONGEST_ESCAPE * max(map(len, hidden), default=0)
    return printable(body[:longest].decode("utf-8", "replace"), hidden).strip() or None


def printable(text: str, hidden: Collection[str]) -> str:
    """Make a server's words safe to log: hide secrets, truncate, and remove control characters."""
    text = _without(text, hidden)
    if len(text) <= MAX_TEXT and text.isprintable():
        return text
    words = "".join(character if character.isprintable() else " " for character in text[: MAX_TEXT + 1])
    return words if len(words) <= MAX_TEXT else words[:MAX_TEXT] + "…"


def _without(text: str, hidden: Collection[str]) -> str:
    """Hide texts of our request that a server repeats, as debug pages do, with or without JSON escapes."""
    if not hidden:
        return text
    plain = _ESCAPE.sub(lambda match: chr(int(match[1], 16)) if match[1] else match[2], text)
    if any(each in plain for each in hidden):
        text = plain
    for each in hidden:
        text = text.replace(each, "***")
    return text
