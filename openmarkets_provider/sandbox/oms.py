"""The order-management endpoints. Replies leave out unknown portfolios."""

from __future__ import annotations

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from openmarkets_provider.sandbox import accounts, booking, wire
from openmarkets_provider.sandbox.records import Own
from openmarkets_provider.sandbox.securities import Record
from openmarkets_provider.sandbox.state import State, state_of

ORDER_FILTER = "AllOrdersForTheLast3Days"


def _account(request: Request) -> accounts.Account:
    code = request.path_params["account"]
    try:
        return state_of(request).records.directory.accounts[code]
    except KeyError:
        raise HTTPException(404, f"There is no account {code}.") from None


def _portfolios(request: Request, body: dict[str, Any]) -> list[accounts.Portfolio]:
    portfolios = state_of(request).records.directory.portfolios
    codes = dict.fromkeys(wire.strings(body, "portfolioCodes"))
    return [portfolios[code] for code in codes if code in portfolios]


async def list_accounts(request: Request) -> JSONResponse:
    """List the order accounts."""
    directory = state_of(request).records.directory
    return JSONResponse([accounts.account_record(account) for account in directory.accounts.values()])


async def portfolio_links(request: Request) -> JSONResponse:
    """List the links between accounts and portfolios, including removed ones."""
    return JSONResponse([accounts.link_record(link) for link in state_of(request).records.directory.links])


async def portfolio_details(request: Request) -> JSONResponse:
    """Return the details of portfolios. No two share a cash account."""
    body = await wire.json_object(request)
    if not isinstance(body.get("includePortfoliosWithSameCashAccount", False), bool):
        raise wire.bad_request("includePortfoliosWithSameCashAccount must be true or false.")
    return JSONResponse([accounts.details_record(portfolio) for portfolio in _portfolios(request, body)])


async def cash(request: Request) -> JSONResponse:
    """Return the cash of portfolios."""
    state = state_of(request)
    now = state.clock.exchange_time()
    found: list[Record] = []
    for portfolio in _portfolios(request, await wire.json_object(request)):
        own = state.records.cash(portfolio)
        records = [accounts.cash_record(portfolio, now)] if own is None else own.records
        found += booking.book_cash(records, _fills(state, portfolio, own), now)
    return JSONResponse(found)


async def positions(request: Request) -> JSONResponse:
    """Return the holdings of portfolios."""
    state = state_of(request)
    now = state.clock.exchange_time()
    found: list[Record] = []
    for portfolio in _portfolios(request, await wire.json_object(request)):
        own = state.records.positions(portfolio)
        made_up = (accounts.position_record(portfolio, security, now) for security in accounts.holdings(portfolio))
        records = list(made_up) if own is None else own.records
        found += booking.book_positions(portfolio, records, _fills(state, portfolio, own), now)
    return JSONResponse(found)


def _fills(state: State, portfolio: accounts.Portfolio, own: Own | None) -> booking.Fills:
    """Return the fills since a user set the records of the portfolio."""
    return state.orders.executions(state.records.directory.accounts_of(portfolio), own.moment if own else 0.0)


async def list_orders(request: Request) -> JSONResponse:
    """List an account's orders."""
    account = _account(request)
    wire.choice(request.query_params, "orderFilter", (ORDER_FILTER,), ORDER_FILTER)
    children = wire.choice(request.query_params, "includeChildOrders", ("true", "false"), "true") == "true"
    return JSONResponse(state_of(request).orders.records(account, children=children))


async def list_trades(request: Request) -> JSONResponse:
    """List an account's trades in a range, inclusive."""
    account = _account(request)
    first, last = wire.period(request.query_params, "dateTimeFrom", "dateTimeTo")
    return JSONResponse(state_of(request).orders.trades(account, first, last))


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
