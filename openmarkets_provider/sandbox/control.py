"""The control paths below `/_sandbox`: counts, faults, overridden quotes, announcements, credentials, reset.

They need no token.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from openmarkets_provider.sandbox import wire
from openmarkets_provider.sandbox.state import state_of


async def stats(request: Request) -> JSONResponse:
    """Return the counts since the start or the last reset."""
    return JSONResponse(state_of(request).stats.report())


async def reset(request: Request) -> Response:
    """Zero the counts, drop faults, overrides and published announcements, restore the first orders and secrets."""
    state_of(request).reset()
    return Response(status_code=204)


async def list_faults(request: Request) -> JSONResponse:
    """Return the active faults."""
    return JSONResponse({"faults": state_of(request).faults.describe()})


async def add_fault(request: Request) -> JSONResponse:
    """Make a fault active."""
    fields = await wire.json_object(request)
    try:
        return JSONResponse(state_of(request).fault(fields), 201)
    except ValueError as error:
        raise wire.bad_request(str(error)) from None


async def clear_faults(request: Request) -> Response:
    """End all faults."""
    state_of(request).faults.clear()
    return Response(status_code=204)


async def set_security(request: Request) -> JSONResponse:
    """Override fields of a security's quote, and return all that hold now."""
    security, fields = request.path_params["security"], await wire.json_object(request)
    overrides = state_of(request).overrides
    try:
        overrides.set(security, fields)
    except ValueError as error:
        raise wire.bad_request(str(error)) from None
    return JSONResponse(overrides.current(security))


async def publish(request: Request) -> JSONResponse:
    """Publish an announcement, and return it as the news endpoint lists it."""
    fields = await wire.json_object(request)
    try:
        return JSONResponse(state_of(request).announcements.publish(fields), 201)
    except ValueError as error:
        raise wire.bad_request(str(error)) from None


async def list_tokens(request: Request) -> JSONResponse:
    """Return every access token that was issued, so that a test can look for them where none may be."""
    return JSONResponse({"tokens": state_of(request).tokens.issued()})


async def change_secret(request: Request) -> Response:
    """Give a client another secret; from now on the one before is refused, and tokens stay valid."""
    fields = await wire.json_object(request)
    try:
        state_of(request).change_secret(request.path_params["client_id"], fields)
    except ValueError as error:
        raise wire.bad_request(str(error)) from None
    return Response(status_code=204)


ROUTES = [
    Route("/stats", stats),
    Route("/reset", reset, methods=["POST"]),
    Route("/faults", list_faults),
    Route("/faults", add_fault, methods=["POST"]),
    Route("/faults", clear_faults, methods=["DELETE"]),
    Route("/securities/{security}", set_security, methods=["POST"]),
    Route("/announcements", publish, methods=["POST"]),
    Route("/tokens", list_tokens),
    Route("/clients/{client_id}", change_secret, methods=["POST"]),
]
