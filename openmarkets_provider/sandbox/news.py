"""The news endpoint.

No endpoint of the real API is public: this path and this shape are invented by the sandbox.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from openmarkets_provider.sandbox import data, wire
from openmarkets_provider.sandbox.securities import SECURITIES


async def announcements(request: Request) -> JSONResponse:
    """List the last week's announcements, of one security if the request names it."""
    text = request.query_params.get("security")
    asked = SECURITIES.values() if text is None else [wire.security(text)]
    return JSONResponse(data.announcements(asked, data.exchange_now()))


ROUTES = [Route("/announcements/v1", announcements)]
