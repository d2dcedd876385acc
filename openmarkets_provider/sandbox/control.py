"""The control paths below `/_sandbox`: time, counts, failures, replies, data and orders, credentials, reset.

They need no token. An invalid body gets a 400 with the message of the Python method.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from openmarkets_provider.sandbox import clock, wire
from openmarkets_provider.sandbox.fields import check_names
from openmarkets_provider.sandbox.state import state_of


@contextmanager
def _refusal() -> Iterator[None]:
    """Turn a ValueError into a 400."""
    try:
        yield
    except ValueError as error:
        raise wire.bad_request(str(error)) from None


async def _fields(request: Request, *allowed: str) -> dict[str, Any]:
    """Return the fields of the body. The first one is required."""
    fields = await wire.json_object(request)
    with _refusal():
        check_names(fields, allowed)
        if allowed[0] not in fields:
            raise ValueError(f"the body needs {allowed[0]}")
    return fields


async def stats(request: Request) -> JSONResponse:
    """Return the counts since the start or the last reset."""
    return JSONResponse(state_of(request).stats.report())


async def reset(request: Request) -> Response:
    """Reset the counts, the time, orders and secrets, and everything that was set or published."""
    state_of(request).reset()
    return Response(status_code=204)


async def get_time(request: Request) -> JSONResponse:
    """Return the current exchange time."""
    return JSONResponse({"now": state_of(request).clock.now().isoformat()})


async def set_time(request: Request) -> JSONResponse:
    """Set a fixed time, or null for the real time. Return the time."""
    fields = await _fields(request, "now")
    with _refusal():
        state_of(request).clock.set(clock.parse(fields["now"]))
    return await get_time(request)


async def list_faults(request: Request) -> JSONResponse:
    """Return the active faults."""
    return JSONResponse({"faults": state_of(request).faults.describe()})


async def add_fault(request: Request) -> JSONResponse:
    """Activate a fault."""
    fields = await wire.json_object(request)
    with _refusal():
        return JSONResponse(state_of(request).fault(fields), 201)


async def clear_faults(request: Request) -> Response:
    """End all faults."""
    state_of(request).faults.clear()
    return Response(status_code=204)


async def add_reply(request: Request) -> Response:
    """Add a canned reply."""
    fields = await wire.json_object(request)
    with _refusal():
        state_of(request).replies.add(fields)
    return Response(status_code=204)


async def set_security(request: Request) -> JSONResponse:
    """Override fields of a security's quote, and return all current overrides."""
    security, fields = request.path_params["security"], await wire.json_object(request)
    overrides = state_of(request).overrides
    with _refusal():
        overrides.set(security, fields)
    return JSONResponse(overrides.current(security))


async def add_security(request: Request) -> Response:
    """Add a security, with fields of its information."""
    fields = await wire.json_object(request)
    with _refusal():
        state_of(request).records.add_security(request.path_params["security"], fields)
    return Response(status_code=204)


async def set_bars(request: Request) -> Response:
    """Set all bars of a security for one frequency (default: daily)."""
    fields = await _fields(request, "bars", "frequency")
    with _refusal():
        state_of(request).records.set_bars(
            request.path_params["security"], fields["bars"], fields.get("frequency", "Daily")
        )
    return Response(status_code=204)


async def set_positions(request: Request) -> Response:
    """Set all positions of a portfolio."""
    fields = await _fields(request, "positions")
    with _refusal():
        state_of(request).records.set_positions(request.path_params["portfolio"], fields["positions"])
    return Response(status_code=204)


async def set_cash(request: Request) -> Response:
    """Set the cash of a portfolio."""
    fields = await _fields(request, "cash")
    with _refusal():
        state_of(request).records.set_cash(request.path_params["portfolio"], fields["cash"])
    return Response(status_code=204)


async def list_orders(request: Request) -> JSONResponse:
    """Return all orders that clients created, listed or not."""
    return JSONResponse({"orders": state_of(request).orders.created()})


async def set_order_behaviour(request: Request) -> Response:
    """Set the behaviour of new orders."""
    fields = await wire.json_object(request)
    with _refusal():
        state_of(request).set_order_behaviour(fields)
    return Response(status_code=204)


async def fill_order(request: Request) -> Response:
    """Fill an order: the remaining volume, unless the body has a volume."""
    fields = await wire.json_object(request)
    with _refusal():
        check_names(fields, ("volume", "price"))
        state_of(request).orders.fill(request.path_params["number"], fields.get("volume"), fields.get("price"))
    return Response(status_code=204)


async def set_accounts(request: Request) -> Response:
    """Replace all accounts with empty ones."""
    fields = await _fields(request, "accounts")
    with _refusal():
        state_of(request).set_accounts(fields["accounts"])
    return Response(status_code=204)


async def publish(request: Request) -> JSONResponse:
    """Publish an announcement, and return its record."""
    fields = await wire.json_object(request)
    with _refusal():
        return JSONResponse(state_of(request).announcements.publish(fields), 201)


async def list_tokens(request: Request) -> JSONResponse:
    """Return all issued access tokens, so that tests can search for leaked ones."""
    return JSONResponse({"tokens": state_of(request).tokens.list_issued()})


async def change_secret(request: Request) -> Response:
    """Change the secret of a client. The old one is refused from now on; tokens stay valid."""
    fields = await wire.json_object(request)
    with _refusal():
        state_of(request).change_secret(request.path_params["client_id"], fields)
    return Response(status_code=204)


ROUTES = [
    Route("/stats", stats),
    Route("/reset", reset, methods=["POST"]),
    Route("/clock", get_time),
    Route("/clock", set_time, methods=["POST"]),
    Route("/faults", list_faults),
    Route("/faults", add_fault, methods=["POST"]),
    Route("/faults", clear_faults, methods=["DELETE"]),
    Route("/replies", add_reply, methods=["POST"]),
    Route("/securities/{security}", add_security, methods=["PUT"]),
    Route("/securities/{security}", set_security, methods=["POST"]),
    Route("/securities/{security}/bars", set_bars, methods=["POST"]),
    Route("/accounts", set_accounts, methods=["POST"]),
    Route("/portfolios/{portfolio}/positions", set_positions, methods=["POST"]),
    Route("/portfolios/{portfolio}/cash", set_cash, methods=["POST"]),
    Route("/orders", list_orders),
    Route("/orders/behaviour", set_order_behaviour, methods=["POST"]),
    Route("/orders/{number:int}/fills", fill_order, methods=["POST"]),
    Route("/announcements", publish, methods=["POST"]),
    Route("/tokens", list_tokens),
    Route("/clients/{client_id}", change_secret, methods=["POST"]),
]
