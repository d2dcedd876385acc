"""The order-management endpoints. Unknown portfolios are left out of a reply."""

from __future__ import annotations

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from openmarkets_provider.sandbox import accounts, wire
from openmarkets_provider.sandbox.sessions import exchange_now
from openmarkets_provider.sandbox.state import state_of

ORDER_FILTER = "AllOrdersForTheLast3Days"


def _account(request: Request) -> accounts.Account:
    code = request.path_params["account"]
    try:
        return accounts.ACCOUNTS[code]
    except KeyError:
        raise HTTPException(404, f"There is no account {code}.") from None


def _portfolios(body: dict[str, Any]) -> list[accounts.Portfolio]:
    codes = dict.fromkeys(wire.strings(body, "portfolioCodes"))
    return [accounts.PORTFOLIOS[code] for code in codes if code in accounts.PORTFOLIOS]


async def list_accounts(request: Request) -> JSONResponse:
    """List the order accounts."""
    return JSONResponse([accounts.account_record(account) for account in accounts.ACCOUNTS.values()])


async def portfolio_links(request: Request) -> JSONResponse:
    """List which portfolios belong to which accounts, and which did once."""
    return JSONResponse([accounts.link_record(link) for link in accounts.LINKS])


async def portfolio_details(request: Request) -> JSONResponse:
    """Describe portfolios; no two of the sandbox's share a cash account."""
    body = await wire.json_object(request)
    if not isinstance(body.get("includePortfoliosWithSameCashAccount", False), bool):
        raise wire.bad_request("includePortfoliosWithSameCashAccount must be true or false.")
    return JSONResponse([accounts.details_record(portfolio) for portfolio in _portfolios(body)])


async def cash(request: Request) -> JSONResponse:
    """Return the cash of portfolios."""
    now = exchange_now()
    portfolios = _portfolios(await wire.json_object(request))
    return JSONResponse([accounts.cash_record(portfolio, now) for portfolio in portfolios])


async def positions(request: Request) -> JSONResponse:
    """Return the holdings of portfolios."""
    now = exchange_now()
    return JSONResponse(
        [
            accounts.position_record(portfolio, security, now)
            for portfolio in _portfolios(await wire.json_object(request))
            for security in accounts.holdings(portfolio)
        ]
    )


async def list_orders(request: Request) -> JSONResponse:
    """List an account's orders."""
    account = _account(request)
    wire.choice(request.query_params, "orderFilter", (ORDER_FILTER,), ORDER_FILTER)
    children = wire.choice(request.query_params, "includeChildOrders", ("true", "false"), "true") == "true"
    return JSONResponse(state_of(request).orders.records(account, children=children))


async def list_trades(request: Request) -> JSONResponse:
    """List an account's trades of a range, both ends included."""
    account = _account(request)
    first, last = wire.period(request.query_params, "dateTimeFrom", "dateTimeTo")
    fills = accounts.fills(account, first, min(last, exchange_now()))
    return JSONResponse([accounts.trade_record(fill) for fill in fills])


async def create_order(request: Request) -> JSONResponse:
    """Create an order."""
    number = state_of(request).orders.create(await wire.json_object(request))
    return JSONResponse({"orderNumber": number})


async def amend_order(request: Request) -> Response:
    """Amend an active order."""
    state_of(request).orders.amend(request.path_params["number"], await wire.json_object(request))
    return Response()


async def cancel_order(request: Request) -> Response:
    """Cancel an active order."""
    state_of(request).orders.cancel(request.path_params["number"])
    return Response()


ROUTES = [
    Route("/accounts/v1", list_accounts),
    Route("/accounts/portfoliolinks/v1", portfolio_links),
    Route("/portfolios/details/by-portfolio/v2", portfolio_details, methods=["POST"]),
    Route("/portfolios/cash/by-portfolio/v2", cash, methods=["POST"]),
    Route("/portfolios/positions/v2", positions, methods=["POST"]),
    Route("/orders/by-account/{account}/v4", list_orders),
    Route("/trades/by-account/{account}/v1", list_trades),
    Route("/orders/v4", create_order, methods=["POST"]),
    Route("/orders/{number:int}/v4", amend_order, methods=["PUT"]),
    Route("/orders/{number:int}/v1", cancel_order, methods=["DELETE"]),
]
