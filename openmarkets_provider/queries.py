"""What to ask of the Openmarkets APIs: functions that return a query.

A query is plain data. The hook, the operator and the sensor take any; it can hold Jinja templates and results
of upstream tasks, be mapped with ``.expand(query=[...])``, and be kept in XCom. Literal arguments are checked at
once, while the DAG is parsed; everything is checked again when the query runs.

Securities are written ``CODE.EXCHANGE@DATASOURCE``, such as ``BHP.ASX@TM``. ``BHP`` and ``BHP.ASX`` are
completed with the exchange ``ASX`` and the data source ``TM``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from openmarkets_provider.client.planning import Query, check

__all__ = ["Query", "accounts", "quotes", "request", "securities"]


def request(
    api: str,
    method: str,
    path: str,
    params: Mapping[str, Any] | None = None,
    json: Any = None,
    safe_to_repeat: bool | None = None,
) -> Query:
    """Make any call of an API, by the path that your API plan documents.

    Its result is the decoded JSON of the reply, untouched: prices in native units (commonly cents), times as
    the API writes them. An empty reply is None.

    :param api: ``market_data``, ``news`` or ``oms``: decides the host and the OAuth scope.
    :param method: ``GET``, ``POST``, ``PUT``, ``PATCH`` or ``DELETE``.
    :param path: relative to the API's base URL, such as ``securities/v1``.
    :param params: query string: text, number or boolean by name, or a list of them.
    :param json: JSON body; not with GET.
    :param safe_to_repeat: may the call be sent again after a failure? None: every GET, and the POSTs that are
        known to only read. A call that creates, amends or cancels must never be repeated.
    :raises OpenmarketsQueryError: an argument is malformed.
    """
    return check(
        {
            "endpoint": "request",
            "api": api,
            "method": method,
            "path": path,
            "params": params,
            "json": json,
            "safe_to_repeat": safe_to_repeat,
        }
    )


def quotes(securities: Sequence[str] | str) -> Query:
    """Get current quotes (``POST pricing/quotes/v3`` of the market data API, scope ``market-data-api``).

    Its result is a list of quotes as the API gives them, in the order of the reply: prices in native units
    (price in dollars = price x ``priceMultiplier`` of the same quote), times without an offset in exchange
    time (Australia/Sydney). Securities that the API does not know are an error.

    :param securities: a list, or a text with the securities separated by commas or blanks. Asked for once
        each, 1000 a call.
    :raises OpenmarketsQueryError: a security is malformed, or there is none.
    """
    return check({"endpoint": "quotes", "securities": securities})


def securities(exchange: str = "ASX") -> Query:
    """List the securities of an exchange (``GET securities/v1`` of the market data API).

    Its result is a list of securities as the API gives them.

    :param exchange: exchange code.
    :raises OpenmarketsQueryError: the exchange is malformed.
    """
    return check({"endpoint": "securities", "exchange": exchange})


def accounts() -> Query:
    """List the order accounts that the client can see (``GET accounts/v1`` of the OMS API, scope ``oms-api``).

    Its result is a list of accounts as the API gives them.
    """
    return check({"endpoint": "accounts"})
