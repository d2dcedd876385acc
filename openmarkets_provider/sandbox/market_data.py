"""The market-data endpoints.

Times without an offset are exchange time; ranges include both ends. `pricing/trades` refuses ranges of more than one
day, as documented for the real API. Replies end at the current time.
"""

from __future__ import annotations

from datetime import timedelta
from functools import cache

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from openmarkets_provider.sandbox import data, securities, wire
from openmarkets_provider.sandbox.state import state_of

MOST_SECURITIES = 1000
INTERVALS = (1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30, 60)


async def list_securities(request: Request) -> Response:
    """List the securities of the exchanges (default: ASX)."""
    exchanges = request.query_params.get("exchanges", securities.EXCHANGE).split(",")
    records = state_of(request).records
    if securities.EXCHANGE not in exchanges:
        return JSONResponse([])
    if not records.new_securities:
        return Response(_listing(), media_type="application/json")
    listed = [*securities.SECURITIES.values(), *records.new_securities]
    return JSONResponse([records.describe(security, securities.listing(security)) for security in listed])


def _security(request: Request) -> securities.Security:
    return wire.security(request.path_params["security"], state_of(request).records.find)


@cache
def _listing() -> bytes:
    # Thousands of records that never change, so they are encoded once.
    return bytes(JSONResponse([securities.listing(security) for security in securities.SECURITIES.values()]).body)


async def information(request: Request) -> JSONResponse:
    """Return the information of securities. Unknown ones are left out."""
    texts = wire.strings(await wire.json_object(request), "securities", MOST_SECURITIES)
    records = state_of(request).records
    matches = map(records.find, dict.fromkeys(texts))
    return JSONResponse([records.describe(security, data.information(security)) for security in matches if security])


async def quotes(request: Request) -> JSONResponse:
    """Return quotes. Unknown securities are listed as invalid."""
    texts = wire.strings(await wire.json_object(request), "securities", MOST_SECURITIES)
    state = state_of(request)
    records, invalid = [], []
    for text in dict.fromkeys(texts):
        security = state.records.find(text)
        if security is None:
            invalid.append(text)
        else:
            records.append(state.quote(security))
    return JSONResponse({"quotes": records, "invalidSecurities": invalid})


async def depth(request: Request) -> JSONResponse:
    """Return a security's order book by price."""
    security = _security(request)
    params = request.query_params
    wire.choice(params, "groupBy", ("Price",), default="Price")
    asks = wire.whole_number(params, "askLevelMax", 1, 100, default=10)
    bids = wire.whole_number(params, "bidLevelMax", 1, 100, default=10)
    return JSONResponse(data.depth(security, asks, bids, state_of(request).clock.exchange_time()))


async def time_series(request: Request) -> JSONResponse:
    """Return a security's daily or weekly bars."""
    security = _security(request)
    params = request.query_params
    frequency = wire.choice(params, "frequency", ("Daily", "Weekly"))
    first, last = wire.period(params, "dateFrom", "dateTo")
    state = state_of(request)
    bars = state.records.bars(security, frequency, first.date(), last.date())
    if bars is None:
        now, weekly = state.clock.exchange_time(), frequency == "Weekly"
        bars = data.time_series(security, first.date(), last.date(), weekly=weekly, now=now)
    return JSONResponse(bars)


async def intraday_series(request: Request) -> JSONResponse:
    """Return a security's intraday bars."""
    security = _security(request)
    params = request.query_params
    wire.choice(params, "frequency", ("Minutes",))
    minutes = int(wire.choice(params, "consolidationInterval", tuple(map(str, INTERVALS))))
    first, last = wire.period(params, "dateTimeFrom", "dateTimeTo")
    most_days = 7 if minutes < 10 else 30 if minutes <= 30 else 60
    if last - first > timedelta(days=most_days):
        raise wire.bad_request(f"The range may have at most {most_days} days at {minutes} minutes.")
    state = state_of(request)
    bars = state.records.bars(security, "Minutes", first, last)
    if bars is None:
        now = state.clock.exchange_time()
        bars = data.intraday_series(security, first, last, minutes=minutes, now=now)
    return JSONResponse(bars)


async def trades(request: Request) -> JSONResponse:
    """Return a security's trades, of at most one day."""
    security = _security(request)
    first, last = wire.period(await wire.json_object(request), "dateTimeFrom", "dateTimeTo")
    if last - first > timedelta(days=1):
        raise wire.bad_request("The range may have at most one day.")
    return JSONResponse(data.market_trades(security, first, last, state_of(request).clock.exchange_time()))


ROUTES = [
    Route("/securities/v1", list_securities),
    Route("/securities/information/v2", information, methods=["POST"]),
    Route("/pricing/quotes/v3", quotes, methods=["POST"]),
    Route("/pricing/depth/{security}/v1", depth),
    Route("/pricing/timeseries/{security}/v2", time_series),
    Route("/pricing/timeseriesintraday/{security}/v1", intraday_series),
    Route("/pricing/trades/{security}/v2", trades, methods=["POST"]),
]
