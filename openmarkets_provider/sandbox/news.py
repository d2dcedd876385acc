"""The news endpoint: announcements of the real companies, not of invented shares and options.

A user's announcements come before those of the last week.

The real API's endpoints are not public: path and format are invented.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from openmarkets_provider.sandbox import data, wire
from openmarkets_provider.sandbox.securities import COMPANIES
from openmarkets_provider.sandbox.state import state_of


async def announcements(request: Request) -> JSONResponse:
    """List the announcements, newest first, of all securities or one."""
    text = request.query_params.get("security")
    state = state_of(request)
    company_filter = None if text is None else wire.security(text, state.records.find)
    companies = [company for company in COMPANIES.values() if company_filter in (None, company)]
    published = state.announcements.of(companies)
    return JSONResponse(published + data.announcements(companies, state.clock.exchange_time()))


ROUTES = [Route("/announcements/v1", announcements)]
