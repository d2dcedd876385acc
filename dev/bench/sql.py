"""The benchmark of loads into a table: a year's daily bars of 300 securities into PostgreSQL. See :mod:`dev.bench`.

The rows are already in a file on disk. The figures are those of the step from the file to the table.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

from dev.bench.bulk import Cost, turns
from tests.support.batches import values_of
from tests.support.figures import ratios, show
from tests.support.postgres import Postgres

SECURITIES, DAYS = 300, 260
ROWS = SECURITIES * DAYS
ONE_BY_ONE = 3000
"""Rows that are inserted one by one; all of them would take too long."""
ROUNDS = 5


def sql() -> None:
    """Run the benchmark and print its figures; ``AIRFLOW_HOME`` is set."""
    with Postgres() as server:
        os.environ["AIRFLOW_CONN_BENCH_DB"] = server.airflow_connection("postgres")
        into_a_table(server)


def into_a_table(server: Postgres) -> None:
    """Compare our load with COPY and with ``insert_rows``, each into an empty table with a primary key."""
    from airflow.providers.postgres.hooks.postgres import PostgresHook

    from openmarkets_provider import queries
    from openmarkets_provider.landing.database import Database
    from openmarkets_provider.landing.layout import layout_of
    from openmarkets_provider.landing.spool import Spool, open_scratch, scratch_folder
    from openmarkets_provider.landing.table_load import Loader
    from openmarkets_provider.transfers._databases import open_engine

    layout = layout_of(queries.time_series(exchange="ASX", start="2025-01-01", end="2026-01-01"))
    names = [column.name for column in layout.columns]
    hook = PostgresHook("bench_db")
    # Otherwise each load and each commit would be logged.
    logging.getLogger("openmarkets_provider").setLevel(logging.WARNING)
    hook._log = logging.getLogger("silent")
    hook._log.setLevel(logging.ERROR)
    batches = [values_of(layout, _bars(f"C{number:04d}")) for number in range(SECURITIES)]
    rows = [row for batch in batches for row in zip(*batch, strict=True)]
    few = rows[:ONE_BY_ONE]

    def copy() -> None:
        with server.connect() as connection, connection.cursor() as cursor, cursor.copy("COPY bars FROM STDIN") as into:
            for row in rows:
                into.write_row(row)

    with open_engine(hook) as engine, open_scratch() as file, open_scratch() as empty_file:
        database, nothing = Database(engine, "bars"), Spool(empty_file, scratch_folder())
        spool = Spool(file, scratch_folder())
        for batch in batches:
            spool.add(None, batch)

        def ours(mode: str = "upsert") -> None:
            Loader(database, layout, mode).load(spool)

        def empty() -> None:
            with server.connect() as connection:
                connection.execute("DROP TABLE IF EXISTS bars")
            Loader(database, layout, "upsert").load(nothing)

        def rate(work: Callable[[], Any], count: int, number: int, *, refill: bool = False) -> float:
            if not refill:
                empty()
            (cost,) = turns([work], number)
            with server.connect() as connection:
                assert connection.execute("SELECT count(*) FROM bars").fetchone() == (count,)
            costs.append(cost)
            return count / cost.wall

        costs: list[Cost] = []
        figures: list[list[float]] = []
        for number in range(ROUNDS):
            figures.append(
                [
                    rate(copy, ROWS, number),
                    rate(ours, ROWS, number),
                    rate(ours, ROWS, number, refill=True),
                    rate(lambda: hook.insert_rows("bars", rows, names), ROWS, number),
                    rate(lambda: hook.insert_rows("bars", few, names, commit_every=1), ONE_BY_ONE, number),
                ]
            )
    by_copy, new, again, default, single = zip(*figures, strict=True)
    print(f"\n{ROWS} daily bars into an empty PostgreSQL table with a primary key, rows/s (higher is better)")
    show("our load (upsert) / COPY of the same rows", ratios(new, by_copy), "goal >= 0.6")
    show("our load (upsert) / insert_rows", ratios(new, default))
    show(
        f"our load (upsert) / insert_rows one by one (commit_every=1, {ONE_BY_ONE} rows)", ratios(new, single), digits=1
    )
    for what, rates in (
        ("our load", new),
        ("our load again, every row there already", again),
        ("COPY", by_copy),
        ("insert_rows", default),
        ("insert_rows one by one", single),
    ):
        show(f"{what}, rows/s", rates, digits=0)
    show("our load, CPU in s", [cost.cpu for cost in costs[1::5]])
    show("COPY, CPU in s", [cost.cpu for cost in costs[::5]])


def _bars(code: str) -> list[dict[str, Any]]:
    """Return the rows of a year, with as many digits as real ones."""
    made = []
    for number in range(DAYS):
        price = Decimal(3000 + (number * 37 + int(code[1:]) * 11) % 2000) / 100
        volume = 100_000 + number * 7919 % 4_000_000
        made.append(
            {
                "security_code": code,
                "exchange": "ASX",
                "data_source": "TM",
                "frequency": "Daily",
                "currency": "AUD",
                "time_series_date": date(2025, 1, 1) + timedelta(number),
                "open_price": price,
                "high_price": price + 1,
                "low_price": price - 1,
                "close_price": price + Decimal("0.05"),
                "total_volume": volume,
                "total_value": volume * price,
                "trade_count": 1000 + number,
                "market_vwap": price + Decimal(number) / 10_000,
                "adjustment_factor": Decimal(1),
                "price_multiplier": Decimal("0.01"),
                "price_multiplier_assumed": False,
            }
        )
    return made
