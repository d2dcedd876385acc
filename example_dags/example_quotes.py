"""Wait until a share is trading, then pull quotes and announcements, and rank the quotes.

## Needs

The connection `openmarkets_default`, and a triggerer for the sensor. `make demo` runs it against the sandbox.

## Tasks

- **market_open** waits without a worker slot. `OPEN` is the state in the sandbox; your API plan documents the values of
  the real API.
- **quotes** is mapped: one task for each watch list. All tasks share one access token for each API.
- **announcements** calls an endpoint without its own query function. The endpoints of the news API are not public: path
  and parameters are those of the sandbox.
- **movers** ranks the quotes. Rows keep their types through XCom: prices are `Decimal`, in dollars, and times are aware
  datetimes. A price can be None, such as the last price of a share that has never traded.
"""

from __future__ import annotations

from decimal import Decimal
from itertools import chain
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
    market_open = OpenmarketsSensor(
        task_id="market_open",
        query=queries.quotes(["BHP"]),
        condition="[0].trading_status == 'OPEN'",
        poke_interval=3,
        timeout=600,
        deferrable=True,
    )
    quotes = OpenmarketsOperator.partial(
        task_id="quotes", map_index_template="{{ task.query.securities | join(', ') }}"
    ).expand(query=[queries.quotes(codes) for codes in WATCH_LISTS.values()])
    announcements = OpenmarketsOperator(
        task_id="announcements",
        query=queries.request("news", "GET", "announcements/v1", params={"security": "BHP.ASX@TM"}),
    )

    @task
    def movers(pulled: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """Rank the quotes of all lists by the change of the price since the last close, in percent.

        Quotes have no adjusted prices. Whether the API adjusts the last close on the day of a split is not public.
        """
        ranked = [
            {
                "security": quote["security_code"],
                "last": quote["last_price"],
                "move_percent": (100 * quote["movement"] / quote["previous_close_price"]).quantize(Decimal("0.01")),
                "volume": quote["total_volume"],
                "traded_at": quote["trade_date_time"],
            }
            for quote in chain.from_iterable(pulled)
            if quote["movement"] is not None and quote["previous_close_price"]
        ]
        return sorted(ranked, key=lambda row: row["move_percent"], reverse=True)

    market_open >> [quotes, announcements]
    movers(quotes.output)


example_quotes()
