"""From replies to the result that the user gets. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openmarkets_provider.client.planning import ApiCall, Query
from openmarkets_provider.exceptions import OpenmarketsInvalidResponse, OpenmarketsQueryError


def result(query: Query, answered: Sequence[tuple[ApiCall, Any]]) -> Any:
    """Put the replies to a query's calls together.

    :param answered: each call of the plan with the JSON of its reply, in the order of the plan.
    :return: a list of records; for ``request`` the JSON of the reply, untouched.
    :raises OpenmarketsError: as :func:`records`.
    """
    if query["endpoint"] == "request":
        return answered[0][1]
    return [row for call, reply in answered for row in records(call, reply)]


def records(call: ApiCall, reply: Any) -> list[Any]:
    """Return the records of one reply to a typed query.

    :raises OpenmarketsInvalidResponse: the reply does not have the shape that the API promises.
    :raises OpenmarketsQueryError: the API does not know some of the securities.
    """
    rows = reply
    if call.rows is not None:
        if not isinstance(reply, dict) or call.rows not in reply:
            raise OpenmarketsInvalidResponse(
                f"{call.label}: expected an object with {call.rows!r}, got {type(reply).__name__}.",
                endpoint=call.label,
            )
        rows = reply[call.rows]
        if invalid := reply.get("invalidSecurities"):
            raise OpenmarketsQueryError(f"{call.label}: the API does not know the securities {invalid!r:.1000}.")
    if not isinstance(rows, list):
        raise OpenmarketsInvalidResponse(
            f"{call.label}: expected a list of records, got {type(rows).__name__}.", endpoint=call.label
        )
    return rows
