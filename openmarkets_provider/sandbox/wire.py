"""Problem details, and checks of bodies and parameters, for all endpoints."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from openmarkets_provider.sandbox import securities
from openmarkets_provider.sessions.calendar import EXCHANGE_ZONE

_WHOLE_NUMBER = re.compile(r"[0-9]{1,9}")


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return a problem-details reply."""
    try:
        title = HTTPStatus(status).phrase
    except ValueError:
        title = "Error"
    content = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    return JSONResponse(content, status, headers=headers, media_type="application/problem+json")


def bad_request(detail: str) -> HTTPException:
    """Return the error for an invalid request."""
    return HTTPException(400, detail)


async def json_object(request: Request) -> dict[str, Any]:
    """Return the body, which must be a JSON object."""
    try:
        body = json.loads(await request.body(), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise bad_request("The body isn't valid JSON.") from None
    if not isinstance(body, dict):
        raise bad_request("The body must be a JSON object.")
    return body


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} isn't JSON")


def strings(body: Mapping[str, Any], field: str, most: int | None = None) -> list[str]:
    """Return a field that must be a non-empty list of strings."""
    items = body.get(field)
    if not isinstance(items, list) or not items or not all(isinstance(item, str) for item in items):
        raise bad_request(f"{field} must be a non-empty list of strings.")
    if most is not None and len(items) > most:
        raise bad_request(f"{field} may have at most {most} entries; it has {len(items)}.")
    return items


def choice(source: Mapping[str, Any], field: str, allowed: Sequence[str], default: str | None = None) -> str:
    """Return a field that must be one of the allowed values."""
    text = source.get(field, default)
    if text not in allowed:
        raise bad_request(f"{field} must be one of {', '.join(allowed)}.")
    return str(text)


def whole_number(source: Mapping[str, Any], field: str, low: int, high: int, default: int) -> int:
    """Return a parameter that must be an integer from low to high."""
    text = str(source.get(field, default))
    if not _WHOLE_NUMBER.fullmatch(text) or not low <= int(text) <= high:
        raise bad_request(f"{field} must be an integer from {low} to {high}.")
    return int(text)


def period(source: Mapping[str, Any], first: str, last: str) -> tuple[datetime, datetime]:
    """Return the range between two ISO times, as exchange time without an offset."""
    start, end = moment(source, first), moment(source, last)
    if start > end:
        raise bad_request(f"{first} must not be after {last}.")
    return start, end


def moment(source: Mapping[str, Any], field: str) -> datetime:
    """Return a field that must be an ISO time, as exchange time without an offset."""
    try:
        time = datetime.fromisoformat(source.get(field, ""))
        return time if time.tzinfo is None else time.astimezone(EXCHANGE_ZONE).replace(tzinfo=None)
    except (ValueError, TypeError, OverflowError):
        raise bad_request(f"{field} must be an ISO 8601 date or time.") from None


def security(text: str, find: Callable[[str], securities.Security | None]) -> securities.Security:
    """Return the security in a path or parameter."""
    if not securities.well_formed(text):
        raise bad_request(f"{text!r} isn't written CODE.EXCHANGE@DATASOURCE, such as BHP.ASX@TM.")
    security = find(text)
    if security is None:
        raise HTTPException(404, f"The sandbox doesn't know the security {text}.")
    return security
