"""Wait until a share trades, then pull quotes and announcements.

Needs the connection ``openmarkets_default``. Every task is a process of its own; together they ask the identity
server for one access token per API. Try it against the sandbox: ``make demo``.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from airflow.sdk import dag, task

from openmarkets_provider import queries
from openmarkets_provider.operators.openmarkets import OpenmarketsOperator
from openmarkets_provider.sensors.openmarkets import OpenmarketsSensor

WATCH_LISTS = {
    "miners": ["BHP", "RIO", "FMG"],
    "banks": ["CBA", "NAB", "WBC", "ANZ"],
    "retail": ["WOW", "COL", "WES"],
}


@dag(schedule=None, tags=["openmarkets"], doc_md=__doc__)
def example_quotes() -> None:
    # "OPEN" is what the sandbox calls it; your API plan documents the values of the real API.
    market_open = OpenmarketsSensor(
        task_id="market_open",
        query=queries.quotes(["BHP"]),
        condition="[0].tradingStatus == 'OPEN'",
        poke_interval=3,
        timeout=600,
        deferrable=True,
    )
    quotes = OpenmarketsOperator.partial(task_id="quotes").expand(
        query=[queries.quotes(codes) for codes in WATCH_LISTS.values()]
    )
    # No endpoint of the news API is public: path and parameters are those of the sandbox.
    announcements = OpenmarketsOperator(
        task_id="announcements",
        query=queries.request("news", "GET", "announcements/v1", params={"security": "BHP.ASX@TM"}),
    )

    @task
    def in_dollars(pulled: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """Turn native prices (commonly cents) into dollars, exactly."""
        return [
            {
                "security": quote["securityCode"],
                "last": str(Decimal(str(quote["lastPrice"])) * Decimal(str(quote["priceMultiplier"]))),
                "volume": quote["totalVolume"],
                "updated (Sydney)": quote["updateDateTime"],
            }
            for quotes_of_list in pulled
            for quote in quotes_of_list
        ]

    market_open >> [quotes, announcements]
    in_dollars(quotes.output)


example_quotes()
