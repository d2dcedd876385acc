from __future__ import annotations

import asyncio
import gc
import itertools
import json
import logging
import re
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import trustme

from openmarkets_provider import queries
from openmarkets_provider.client import io, progress
from openmarkets_provider.client.cache.file import FileStore
from openmarkets_provider.client.client import OpenmarketsClient
from openmarkets_provider.client.io import AHEAD
from openmarkets_provider.exceptions import (
    OpenmarketsAccessRefused,
    OpenmarketsApiError,
    OpenmarketsConfigurationError,
    OpenmarketsError,
    OpenmarketsInvalidClient,
    OpenmarketsInvalidResponse,
    OpenmarketsNotFound,
    OpenmarketsQueryError,
    OpenmarketsTransportError,
)
from openmarkets_provider.query.exchange_time import read_moment
from openmarkets_provider.query.plan import plan
from openmarkets_provider.query.query import schema_of
from openmarkets_provider.sandbox.server import Client, SandboxServer
from tests.client.conftest import USER_AGENT, MakeClient, RecordingMasker, Runner
from tests.support import hostile
from tests.support.hostile import HostileServer
from tests.support.processes import in_processes
from tests.support.queries import SCHEMAS

LONG = 30.0
"""Seconds that nothing here may really take."""
INFORMATION = "POST /market-data/securities/information/v2"
PAST = {"start": "2026-01-05", "end": "2026-01-10"}
INFO = {"securityCode": "BHP", "exchange": "ASX", "currencyCode": "AUD", "priceMultiplier": 0.01}
CENTS = {"on_missing_multiplier": "cents"}
AGAIN = ["Retry-After: 0"]
INVENTED = [f"Z{number:04}" for number in range(1, 2001)]

Answer = Callable[[str, Any], bytes]
Make = Callable[..., OpenmarketsClient]


class Api:
    """A handler that answers by path and body, and counts the calls that are under way.

    :ivar arrived: what was asked for, in the order of arrival.
    """

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._lock = threading.Lock()
        self._under_way = 0
        self.arrived: list[str] = []
        self.most = 0

    def __call__(self, sock: socket.socket, request: bytes) -> None:
        asked = hostile.target(request).partition(" ")[2]
        with self._lock:
            self._under_way += 1
            self.most = max(self.most, self._under_way)
            self.arrived.append(asked)
        try:
            answer = self._answer(asked, json.loads(hostile.body(request) or b"null"))
        finally:
            with self._lock:
                self._under_way -= 1
        sock.sendall(answer)


def reply(content: Any, status: int = 200, headers: Any = ()) -> bytes:
    return hostile.reply(json.dumps(content).encode(), status, headers)


def order(account: str, **fields: Any) -> dict[str, Any]:
    return {"orderNumber": 1, "accountCode": account, "orderPrice": 4512, "priceMultiplier": 0.01} | fields


def account_of(asked: str) -> int:
    return int(asked.split("/")[3][1:])


def orders_of(count: int, **options: Any) -> queries.Query:
    """Return a query with a number of calls, one for each account."""
    return queries.orders([f"A{number}" for number in range(count)], **options)


def accounts_in(rows: list[dict[str, Any]]) -> list[int]:
    return [int(row.get("account_code", row.get("accountCode"))[1:]) for row in rows]


def one_order(asked: str, body: Any) -> bytes:
    return reply([order(f"A{account_of(asked)}")])


def threads_of_runs() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if re.fullmatch(r"openmarkets_\d+", thread.name)]


def check_no_threads() -> None:
    assert threads_of_runs() == []


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.fixture
def make(make_client: MakeClient, tmp_path: Path, masker: RecordingMasker) -> Iterator[Make]:
    """Makes clients with a number of concurrent requests."""
    clients = []

    def make(concurrency: int = 8, **settings: Any) -> OpenmarketsClient:
        given = make_client(**settings).settings
        client = OpenmarketsClient(
            given,
            store=FileStore(tmp_path / "tokens"),
            masker=masker,
            user_agent=USER_AGENT,
            concurrency=concurrency,
        )
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()


@pytest.fixture(autouse=True)
def no_leftovers() -> Iterator[None]:
    yield
    check_no_threads()


# --- rows from the sandbox


TYPED = [
    queries.securities(),
    queries.security_information("BHP, BHPXA7, Z0001"),
    queries.quotes("BHP, BHPXY7, Z0002"),
    queries.depth("BHP, Z0003", levels=3),
    queries.time_series("BHP, Z0002", **PAST),
    queries.intraday_time_series("BHP, Z0001", **PAST, interval=60),
    queries.trades("BHP, Z0003", **PAST),
    queries.accounts(),
    queries.portfolio_links(),
    queries.portfolio_details(),
    queries.cash(),
    queries.positions(),
    queries.orders(),
    queries.order_trades(**PAST),
]
TYPED_IDS = [query["endpoint"] for query in TYPED]


def raw_of(query: queries.Query) -> queries.Query:
    return {**query, "raw": True}


@pytest.mark.parametrize("query", TYPED, ids=TYPED_IDS)
def test_rows_have_the_columns_and_types_of_their_schema(run: Runner, make_client: MakeClient, query: Any):
    rows = run(make_client(), query)
    schema = SCHEMAS[query["endpoint"]]
    types = {"str": str, "int": int, "Decimal": Decimal, "bool": bool, "date": date, "datetime": datetime}
    assert rows
    for row in rows:
        assert list(row)[: len(schema.fields)] == [field.name for field in schema.fields]
        for field in schema.fields:
            if row[field.name] is not None and field.kind.type != "any":
                assert type(row[field.name]) is types[field.kind.type]
                assert getattr(row[field.name], "tzinfo", UTC) is UTC
    assert len({tuple(row) for row in rows}) == 1


@pytest.mark.parametrize("query", TYPED, ids=TYPED_IDS)
def test_a_row_is_identified_by_the_key_of_its_schema(make_client: MakeClient, query: Any):
    rows = make_client().run(query)
    keys = [tuple(row[name] for name in SCHEMAS[query["endpoint"]].key) for row in rows]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("query", TYPED, ids=TYPED_IDS)
def test_prices_are_native_prices_times_the_multiplier_exactly(make_client: MakeClient, query: Any):
    client, schema = make_client(), SCHEMAS[query["endpoint"]]
    rows, records = client.run(query), client.run(raw_of(query))
    prices = 0
    for row, record in zip(rows, records, strict=True):
        for api_name in schema.price_api_names:
            native, price = record[api_name], row[schema.by_api_name[api_name].name]
            assert (price is None) == (native is None)
            if native is not None:
                assert price == Decimal(repr(native)) * row["price_multiplier"]
                prices += 1
    assert prices or not schema.price_api_names


@pytest.mark.parametrize("query", TYPED, ids=TYPED_IDS)
def test_raw_gives_the_api_s_records_untouched(run: Runner, make_client: MakeClient, query: Any):
    client = make_client()
    records = run(client, raw_of(query))
    named = raw_of(query)
    if query["endpoint"] in ("portfolio_details", "cash", "positions"):
        named["accounts"] = None
        named["portfolios"] = ["SBX0001P", "SBX0001Q", "SBX0002P", "SBX0003P"]
    if query["endpoint"] in ("orders", "order_trades"):
        named["accounts"] = ["SBX0001", "SBX0002", "SBX0003"]
    expected = []
    for call in plan(named):
        answer = client.run(queries.request(call.api, call.method, call.path, params=call.params, json=call.json))
        expected += answer[call.records] if call.records else answer
    assert records == expected
    assert not {type(value) for record in records for value in record.values()} & {Decimal, datetime, date}


def test_a_field_that_no_documentation_lists_is_kept(run: Runner, make_client: MakeClient):
    (quote,) = run(make_client(), queries.quotes("BHP"))
    assert quote["sandbox_field"] == "a field that no documentation lists"
    assert list(quote)[-1] == "sandbox_field"


def test_an_option_that_never_traded_has_no_prices_but_its_exercise_price(run: Runner, make_client: MakeClient):
    (quote,) = run(make_client(), queries.quotes("CBAXY7"))
    assert {quote[name] for name in ("last_price", "open_price", "previous_close_price", "movement")} == {None}
    (option,) = run(make_client(), queries.security_information("CBAXY7"))
    assert (option["exercise_price"], option["price_multiplier"]) == (Decimal("99.99"), Decimal("0.001"))
    assert option["maturity_date"] == date(2030, 12, 19)


@pytest.mark.parametrize("code", ["BHP", "BHPXA7", "Z0002", "Z0003"])
def test_bars_depth_and_trades_take_the_multiplier_that_quotes_have(run: Runner, make_client: MakeClient, code: str):
    client = make_client()
    (quote,) = run(client, queries.quotes(code))
    for query in (queries.depth(code), queries.time_series(code, **PAST), queries.trades(code, **PAST)):
        rows = run(client, query)
        assert {row["price_multiplier"] for row in rows} == {quote["price_multiplier"]}
    last = quote["last_price"]
    assert all(last / 2 < row["close_price"] < last * 2 for row in run(client, queries.time_series(code, **PAST)))


def test_trades_say_the_same_time_twice(run: Runner, make_client: MakeClient):
    rows = run(make_client(), queries.trades("BHP", **PAST))
    assert all(row["trade_date_time"] == row["trade_gmt_date_time"] for row in rows)
    rows = run(make_client(), queries.order_trades(**PAST))
    assert all(row["trade_date_time"] == row["trade_date_time_gmt"] for row in rows)


# --- price multipliers


def informed(sandbox: SandboxServer) -> int:
    return sandbox.stats()["by_path"].get(INFORMATION, 0)


def position(code: Any, **fields: Any) -> dict[str, Any]:
    return {"portfolioCode": "P", "securityCode": code, "exchange": "ASX", "averagePrice": 4512} | fields


def test_multipliers_are_asked_for_once_before_all_calls(run: Runner, make_client: MakeClient, sandbox: SandboxServer):
    run(make_client(), queries.trades("BHP, CBA, Z0001", **PAST))
    assert sandbox.stats()["by_path"].pop(INFORMATION) == 1
    assert sum(sandbox.stats()["by_path"].values()) == 1 + 1 + 3 * 5


def test_multipliers_are_asked_for_in_batches_of_1000_and_once_for_each_security(
    run: Runner, make_client: MakeClient, sandbox: SandboxServer
):
    held = [position(code) for code in (*INVENTED, "BHP", *INVENTED)]
    with HostileServer(hostile.answering(reply(held))) as server:
        rows = run(make_client(oms_url=server.url), queries.positions(portfolios="P"))
    assert informed(sandbox) == 3
    assert len(rows) == 4001
    by_code = {row["security_code"]: row["average_price"] for row in rows}
    assert [by_code[code] for code in ("Z0001", "Z0002", "Z0003", "Z0004", "BHP")] == [
        4512, Decimal("4.512"), Decimal("0.4512"), Decimal("45.12"), Decimal("45.12")
    ]  # fmt: skip


def test_a_security_that_two_batches_hold_is_asked_for_once(
    run: Runner, make_client: MakeClient, sandbox: SandboxServer
):
    portfolios = [f"P{number}" for number in range(2500)]

    def both(asked: str, body: Any) -> bytes:
        return reply([position(code, portfolioCode=body["portfolioCodes"][0]) for code in ("BHP", "Z0002")])

    api = Api(both)
    with HostileServer(api) as server:
        rows = run(make_client(oms_url=server.url), queries.positions(portfolios=portfolios))
    assert len(api.arrived) == 3
    assert informed(sandbox) == 1
    assert [row["average_price"] for row in rows] == 3 * [Decimal("45.12"), Decimal("4.512")]


def test_the_multiplier_of_a_security_is_looked_up_at_the_data_source_of_the_query(run: Runner, make: Make):
    wanted = []

    def answer(asked: str, body: Any) -> bytes:
        if body is not None:
            wanted.extend(body["securities"])
            return reply([{"securityCode": "BHP", "exchange": "CXA", "priceMultiplier": 1}])
        return reply([{"timeSeriesDate": "2026-01-05", "closePrice": 45}])

    with HostileServer(Api(answer)) as server:
        (row,) = run(make(1, market_data_url=server.url), queries.time_series("BHP.CXA@CX", **PAST))
    assert wanted == ["BHP.CXA@CX"]
    assert (row["close_price"], row["data_source"]) == (45, "CX")


def test_each_run_asks_anew(run: Runner, make_client: MakeClient, sandbox: SandboxServer):
    query = queries.depth("BHP")
    run(make_client(), query, query)
    assert informed(sandbox) == 2


@pytest.mark.parametrize(
    "query",
    [raw_of(queries.quotes("BHP, Z0002")), queries.orders(), queries.order_trades(**PAST), queries.securities(),
     raw_of(queries.depth("BHP")), raw_of(queries.positions())],
    ids=lambda query: query["endpoint"],
)  # fmt: skip
def test_nothing_is_asked_for_when_the_reply_has_the_multipliers_or_raw_is_wanted(
    run: Runner, make_client: MakeClient, sandbox: SandboxServer, query: Any
):
    run(make_client(), query)
    assert informed(sandbox) == 0


def test_a_quote_without_its_multiplier_gets_the_security_s(
    run: Runner, make_client: MakeClient, sandbox: SandboxServer, caplog: pytest.LogCaptureFixture
):
    sandbox.set_security("Z0002.ASX@TM", priceMultiplier=None, lastPrice=4512)
    rows = run(make_client(), queries.quotes("BHP, Z0002"))
    assert informed(sandbox) == 1
    assert (rows[1]["last_price"], rows[1]["price_multiplier"]) == (Decimal("4.512"), Decimal("0.001"))
    assert caplog.messages == []


# --- currencies


@pytest.mark.parametrize(
    "query",
    [
        queries.quotes("BHP"),
        queries.depth("BHP"),
        queries.time_series("BHP", **PAST),
        queries.intraday_time_series("BHP", interval=60, **PAST),
        queries.trades("BHP", **PAST),
        queries.positions(),
        queries.orders(),
    ],
    ids=lambda query: query["endpoint"],
)
def test_a_row_with_a_price_has_its_currency(run: Runner, make_client: MakeClient, sandbox: SandboxServer, query: Any):
    rows = run(make_client(), query)
    assert rows
    assert {row["currency"] for row in rows} == {"AUD"}


def test_of_own_trades_a_currency_is_known_where_a_multiplier_was_looked_up(
    run: Runner, make_client: MakeClient, sandbox: SandboxServer
):
    trade = {"tradeNumber": 1, "orderNumber": 2, "accountCode": "A", "exchange": "ASX", "tradePrice": 4512}
    trade["tradeDateTime"] = "2026-01-05T10:00:00"
    trades = [trade | {"securityCode": "BHP", "priceMultiplier": 0.01}, trade | {"securityCode": "CBA"}]
    with HostileServer(hostile.answering(reply(trades))) as server:
        client = make_client(oms_url=server.url)
        # What this client has looked up for others makes no difference.
        rows = run(client, queries.quotes("BHP"), queries.order_trades("A", **PAST))
    assert [row["currency"] for row in rows] == [None, "AUD"]


def test_currencies_are_looked_up_once_for_all_quotes_of_a_client(
    run: Runner, make_client: MakeClient, sandbox: SandboxServer
):
    client = make_client()
    run(client, queries.quotes("BHP, CBA"), queries.quotes("BHP"), queries.quotes("CBA, BHP"))
    assert informed(sandbox) == 1
    rows = run(client, queries.quotes("BHP, RIO"))
    assert informed(sandbox) == 2
    assert [row["currency"] for row in rows] == ["AUD", "AUD"]


def test_a_currency_that_a_reply_has_is_taken(run: Runner, make_client: MakeClient, sandbox: SandboxServer):
    quotes = [
        {"securityCode": code, "exchange": "ASX", "lastPrice": 45, "priceMultiplier": 1} for code in ("CBA", "BHP")
    ]
    quotes[0]["currency"] = "NZD"
    found = {"quotes": quotes, "invalidSecurities": []}
    with HostileServer(Api(lambda asked, body: reply([INFO] if "information" in asked else found))) as server:
        rows = run(make_client(market_data_url=server.url), queries.quotes("BHP, CBA"))
    assert [row["currency"] for row in rows] == ["NZD", "AUD"]


def test_a_currency_that_security_information_lacks_is_none(
    run: Runner, make_client: MakeClient, sandbox: SandboxServer
):
    record = {"securityCode": "BHP", "exchange": "ASX", "currencyCode": None, "priceMultiplier": 0.01}
    sandbox.fault(target="/market-data/securities/information", kind="body", body=[record])
    (row,) = run(make_client(), queries.quotes("BHP"))
    assert row["currency"] is None


def test_a_currency_that_can_not_be_is_an_error(run: Runner, make_client: MakeClient, sandbox: SandboxServer):
    record = {"securityCode": "BHP", "exchange": "ASX", "currencyCode": 36, "priceMultiplier": 0.01}
    sandbox.fault(target="/market-data/securities/information", kind="body", body=[record])
    with pytest.raises(OpenmarketsInvalidResponse, match="field currencyCode: expected a string, got 36"):
        run(make_client(), queries.depth("BHP"))


# --- the length and the adjustment of bars


def test_bars_say_how_long_they_are(run: Runner, make_client: MakeClient):
    client = make_client()
    daily, weekly = (run(client, queries.time_series("BHP", frequency=each, **PAST)) for each in ("Daily", "Weekly"))
    assert ({row["frequency"] for row in daily}, {row["frequency"] for row in weekly}) == ({"Daily"}, {"Weekly"})
    bars = run(client, queries.intraday_time_series("BHP", interval="30", **PAST))
    assert {row["interval"] for row in bars} == {30}


BY_HAND = """
    security day         open   high   low    close  volume  factor  adj.open adj.high adj.low adj.close adj.volume
    ZSPLIT   2026-02-26  36.15  36.39  35.94  36.18   34875  0.25    9.0375   9.0975   8.985   9.045     139500
    ZSPLIT   2026-02-27  36.07  36.48  35.92  36.31   28700  0.25    9.0175   9.12     8.98    9.0775    114800
    ZSPLIT   2026-03-02   9.08   9.33   9.04   9.29   96300  1       9.08     9.33     9.04    9.29      96300
    ZDIV     2026-03-06  27.05  27.48  26.95  27.35   30514  0.96    25.968   26.3808  25.872  26.256    31785.416666666667
    ZDIV     2026-03-09  26.34  27.11  26.23  26.99   61360  1       26.34    27.11    26.23   26.99     61360
    ZCONS    2026-03-13  0.48   0.485  0.475  0.48  2178000  10      4.8      4.85     4.75    4.8       217800
    ZCONS    2026-03-16  4.8    4.81   4.62   4.63   206600  1       4.8      4.81     4.62    4.63      206600
"""  # noqa: E501 - a table
"""Bars around a 4:1 split, a dividend of 4 % and a consolidation 1:10, as the sandbox sends them, and adjusted."""


def test_adjusted_bars_beside_those_computed_by_hand(run: Runner, make_client: MakeClient):
    query = queries.time_series("ZSPLIT, ZDIV, ZCONS", start="2026-02-26", end="2026-03-17", adjusted=True)
    names = ("open_price", "high_price", "low_price", "close_price", "total_volume")
    columns = (*names, "adjustment_factor", *(f"adjusted_{name}" for name in names))
    rows = {
        (row["security_code"], str(row["time_series_date"])): [row[name] for name in columns]
        for row in run(make_client(), query)
    }
    for line in BY_HAND.splitlines()[2:-1]:
        code, day, *numbers = line.split()
        assert rows[code, day] == list(map(Decimal, numbers))


@pytest.mark.parametrize(
    ("code", "day", "jump"), [("ZSPLIT", "2026-03-02", 4), ("ZDIV", "2026-03-09", 1.04), ("ZCONS", "2026-03-16", 0.1)]
)
@pytest.mark.parametrize("frequency", ["Daily", "Weekly"])
def test_adjusted_bars_have_no_jump(
    run: Runner, make_client: MakeClient, code: str, day: str, jump: float, frequency: str
):
    query = queries.time_series(code, start="2026-01-05", end="2026-05-01", frequency=frequency, adjusted=True)
    rows = run(make_client(), query)
    at = next(index for index, row in enumerate(rows) if row["time_series_date"] >= date.fromisoformat(day))
    before, first = rows[at - 1], rows[at]
    assert float(before["close_price"] / first["open_price"]) == pytest.approx(jump, rel=0.01)
    assert float(before["adjusted_close_price"] / first["adjusted_open_price"]) == pytest.approx(1, rel=0.01)
    steps = [later["adjusted_open_price"] / each["adjusted_close_price"] for each, later in itertools.pairwise(rows)]
    assert all(0.98 < step < 1.02 for step in steps)
    volumes = sorted(row["adjusted_total_volume"] for row in rows if row is not rows[-1])
    assert volumes[-1] < 4 * volumes[0]


def bars_of(*bars: tuple[Any, ...]) -> list[dict[str, Any]]:
    names = ("timeSeriesDate", "closePrice", "totalVolume", "adjustmentFactor")
    return [dict(zip(names, bar, strict=True)) for bar in bars]


@pytest.mark.parametrize(
    ("method", "factors", "closes"),
    [
        (True, (0.5, 0.5, 1), ["4", "4.5", "5"]),
        ("cumulative_divide", (2, 2, 1), ["4", "4.5", "5"]),
        ("event_multiply", (1, 1, 0.5), ["4", "4.5", "5"]),
        ("event_divide", (None, None, 2), ["4", "4.5", "5"]),
    ],
)
def test_each_meaning_of_a_factor(run: Runner, make_client: MakeClient, method: Any, factors: Any, closes: Any):
    # The newest bar comes first. The reply has one bar more than the range, with its own event.
    days = [f"2026-01-0{day}" for day in (5, 6, 7)]
    bars = bars_of(("2026-01-08", 100, 1, 0.25), *zip(days, (800, 900, 500), (1, 1, 1), factors, strict=True))[::-1]
    with HostileServer(Api(lambda asked, body: reply([INFO] if body else bars))) as server:
        query = queries.time_series("BHP", start="2026-01-05", end="2026-01-08", adjusted=method)
        rows = run(make_client(market_data_url=server.url), query)
    assert [row["adjusted_close_price"] for row in rows] == list(map(Decimal, closes))
    assert [row["adjusted_open_price"] for row in rows] == [None] * 3
    assert list(rows[0]) == [field.name for field in schema_of(query).fields]


@pytest.mark.parametrize("factor", [0, -1])
def test_a_factor_that_can_not_be_is_an_error(run: Runner, make_client: MakeClient, factor: Any):
    bars = bars_of(("2026-01-05", 800, 1, factor))
    with HostileServer(Api(lambda asked, body: reply([INFO] if body else bars))) as server:
        client = make_client(market_data_url=server.url)
        assert run(client, queries.time_series("BHP", **PAST))[0]["adjustment_factor"] == factor
        with pytest.raises(OpenmarketsInvalidResponse, match=f"field adjustmentFactor: .*usual size, got .*{factor}"):
            run(client, queries.time_series("BHP", **PAST, adjusted=True))


def test_a_factor_of_an_unusual_size_is_an_error(run: Runner, make_client: MakeClient):
    bars = hostile.reply(b'[{"timeSeriesDate": "2026-01-05", "closePrice": 800, "adjustmentFactor": 1e99999}]')
    with HostileServer(Api(lambda asked, body: reply([INFO]) if body else bars)) as server:
        query = queries.time_series("BHP", **PAST, adjusted=True)
        with pytest.raises(OpenmarketsInvalidResponse, match="field adjustmentFactor: expected a number above 0"):
            run(make_client(market_data_url=server.url), query)


@pytest.mark.parametrize("multiplier", [0, -0.01, "0.01"])
def test_a_multiplier_that_can_not_be_is_an_error(
    run: Runner, make_client: MakeClient, sandbox: SandboxServer, multiplier: Any
):
    sandbox.set_security("BHP.ASX@TM", priceMultiplier=multiplier)
    with pytest.raises(OpenmarketsInvalidResponse, match="field priceMultiplier: expected a number above 0") as caught:
        run(make_client(), queries.quotes("BHP"))
    assert caught.value.endpoint == "POST market_data pricing/quotes/v3"


@pytest.mark.parametrize("multiplier", [0, -1, "1"])
def test_a_multiplier_of_security_information_that_can_not_be_is_an_error(
    run: Runner, make_client: MakeClient, sandbox: SandboxServer, multiplier: Any
):
    record = {"securityCode": "BHP", "exchange": "ASX", "priceMultiplier": multiplier}
    sandbox.fault(target="/market-data/securities/information", kind="body", body=[record])
    with pytest.raises(OpenmarketsInvalidResponse, match="field priceMultiplier: expected a number above 0") as caught:
        run(make_client(), queries.depth("BHP"))
    assert caught.value.endpoint == "POST market_data securities/information/v2"


def test_where_nothing_supplies_a_multiplier_it_is_an_error_that_names_the_securities(
    run: Runner, make_client: MakeClient, sandbox: SandboxServer
):
    held = [position("BHP"), position("NEW"), position("OLD", averagePrice=None)]
    with (
        HostileServer(hostile.answering(reply(held))) as server,
        pytest.raises(OpenmarketsQueryError, match="price multiplier") as caught,
    ):
        run(make_client(oms_url=server.url), queries.positions(portfolios="P"))
    assert caught.value.securities == ["NEW.ASX@TM"]


def test_where_nothing_supplies_a_multiplier_it_is_the_one_for_cents_with_a_warning_that_names_the_securities(
    run: Runner, make_client: MakeClient, sandbox: SandboxServer, caplog: pytest.LogCaptureFixture
):
    held = [position("BHP"), position("NEW"), position("NEW"), position("OLD", averagePrice=None)]
    with HostileServer(hostile.answering(reply(held))) as server:
        rows = run(
            make_client(oms_url=server.url), queries.positions(portfolios=[f"P{n}" for n in range(1001)], **CENTS)
        )
    prices = {row["security_code"]: (row["average_price"], row["price_multiplier_assumed"]) for row in rows}
    assert prices == {"BHP": (Decimal("45.12"), False), "NEW": (Decimal("45.12"), True), "OLD": (None, None)}
    (warning,) = [message for message in caplog.messages if "price multiplier" in message]
    assert "price multiplier is known for ['NEW.ASX@TM']; 0.01 is assumed" in warning


@pytest.mark.parametrize("code", ["BRK.B", "A B", "", "É", "A/B", "../x"])
def test_a_security_whose_code_can_not_be_asked_for_is_no_query_error(
    run: Runner, make_client: MakeClient, sandbox: SandboxServer, caplog: pytest.LogCaptureFixture, code: str
):
    # invalid data in the API is not the user's mistake
    with HostileServer(hostile.answering(reply([position(code), position("Z0002")]))) as server:
        rows = run(make_client(oms_url=server.url), queries.positions(portfolios="P", **CENTS))
    assert [row["average_price"] for row in rows] == [Decimal("45.12"), Decimal("4.512")]
    assert "0.01 is assumed" in caplog.text


def test_a_price_without_a_security_is_in_cents_and_asks_for_none(
    run: Runner, make_client: MakeClient, sandbox: SandboxServer, caplog: pytest.LogCaptureFixture
):
    with HostileServer(hostile.answering(reply([position(None)]))) as server:
        (row,) = run(make_client(oms_url=server.url), queries.positions(portfolios="P", **CENTS))
    assert (row["average_price"], row["security_code"]) == (Decimal("45.12"), None)
    assert informed(sandbox) == 0
    assert "0.01 is assumed" in caplog.text


def test_positions_of_a_connection_without_market_data_are_in_cents_with_a_warning(
    run: Runner, make_client: MakeClient, sandbox: SandboxServer, caplog: pytest.LogCaptureFixture
):
    client = make_client(scopes=("oms-api",))
    rows = run(client, queries.positions(portfolios="SBX0001P", **CENTS))
    assert {(row["price_multiplier"], row["price_multiplier_assumed"]) for row in rows} == {(Decimal("0.01"), True)}
    assert "Z0001.ASX@TM" in caplog.text
    assert "0.01 is assumed" in caplog.text
    assert informed(sandbox) == 0


def test_a_certificate_that_is_not_trusted_is_not_a_reason_to_guess(run: Runner, make_client: MakeClient):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    with HostileServer(hostile.answering(hostile.reply()), tls=context) as server:
        client = make_client(market_data_url=server.url)
        with pytest.raises(OpenmarketsConfigurationError, match="TLS certificate"):
            run(client, queries.positions(portfolios="SBX0001P"))


def test_positions_of_a_plan_without_market_data_are_in_cents_with_a_warning(
    run: Runner, make_client: MakeClient, caplog: pytest.LogCaptureFixture
):
    with SandboxServer(clients=(Client("oms-only", "secret", ("oms-api",)),)) as sandbox:
        client = make_client(
            client_id="oms-only",
            client_secret="secret",
            identity_url=sandbox.identity_url,
            oms_url=sandbox.oms_url,
            market_data_url=sandbox.market_data_url,
        )
        with pytest.raises(OpenmarketsQueryError, match="not in the client's plan"):
            run(client, queries.positions(portfolios="SBX0001P"))
        caplog.clear()
        rows = run(client, queries.positions(portfolios="SBX0001P", **CENTS))
    assert {row["price_multiplier"] for row in rows} == {Decimal("0.01")}
    assert "not in the client's plan" in caplog.text
    assert "0.01 is assumed" in caplog.text


@pytest.mark.parametrize("status", [400, 404, 500])
def test_a_market_data_server_that_fails_is_not_a_reason_to_guess(
    run: Runner, make_client: MakeClient, sandbox: SandboxServer, status: int
):
    sandbox.fault(target="/market-data/securities", kind="status", status=status, retry_after=0, times=None)
    with pytest.raises(OpenmarketsApiError, match=f"securities/information/v2: {status}"):
        run(make_client(), queries.positions(portfolios="SBX0001P"))


# --- what the API does not know


def test_unknown_securities_of_quotes_are_an_error_that_lists_them(run: Runner, make_client: MakeClient):
    with pytest.raises(OpenmarketsQueryError, match=r"\['XX1.ASX@TM', 'XX2.ASX@TM'\].*on_invalid='warn'") as caught:
        run(make_client(), queries.quotes("BHP, XX1, XX2"))
    assert not caught.value.transient


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize(
    "query",
    [queries.quotes("XX1, BHP, XX2", on_invalid="warn"), queries.security_information("XX1, BHP", on_invalid="warn"),
     queries.depth("XX1, BHP", on_invalid="warn"), queries.time_series("XX1, BHP", **PAST, on_invalid="warn"),
     queries.trades("XX1, BHP", **PAST, on_invalid="warn"),
     queries.intraday_time_series("XX1, BHP", **PAST, interval=60, on_invalid="warn")],
    ids=lambda query: query["endpoint"],
)  # fmt: skip
def test_unknown_securities_are_left_out_with_a_warning_on_demand(
    run: Runner, make_client: MakeClient, caplog: pytest.LogCaptureFixture, query: Any, raw: bool
):
    rows = run(make_client(), {**query, "raw": raw})
    assert rows == run(make_client(), {**query, "raw": raw, "securities": ["BHP"]})
    assert "XX1.ASX@TM" in caplog.text
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


@pytest.mark.parametrize(
    "query",
    [queries.depth("BHP, XX1"), queries.time_series("BHP, XX1", **PAST), queries.trades("BHP, XX1", **PAST)],
    ids=lambda query: query["endpoint"],
)
def test_an_unknown_security_of_a_call_of_its_own_is_an_error_that_names_it(
    run: Runner, make_client: MakeClient, query: Any
):
    with pytest.raises(OpenmarketsNotFound, match=r"^Call \d+ of \d+ \(XX1.ASX@TM.*\) failed\. "):
        run(make_client(), query)


@pytest.mark.parametrize("raw", [False, True])
def test_securities_that_security_information_leaves_out_are_an_error(run: Runner, make_client: MakeClient, raw: bool):
    with pytest.raises(OpenmarketsQueryError, match=r"does not know the securities \['XX1.ASX@TM'\]"):
        run(make_client(), queries.security_information("BHP, XX1", raw=raw))


@pytest.mark.parametrize("wrong", [[], {}, 5, None])
def test_security_information_about_no_security_is_an_error_of_ours(
    run: Runner, make_client: MakeClient, sandbox: SandboxServer, wrong: Any
):
    sandbox.fault(target="market_data", kind="body", body=[{"securityCode": wrong, "exchange": "ASX"}])
    with pytest.raises(OpenmarketsError):
        run(make_client(), queries.security_information("BHP"))


def test_security_information_without_an_exchange_is_about_the_default_one(
    run: Runner, make_client: MakeClient, sandbox: SandboxServer
):
    sandbox.fault(target="market_data", kind="body", body=[{"securityCode": "BHP", "exercisePrice": 5}])
    (row,) = run(make_client(), queries.security_information("BHP", **CENTS))
    assert (row["exchange"], row["exercise_price"]) == (None, Decimal("0.05"))


def test_an_account_that_is_unknown_is_an_error(run: Runner, make_client: MakeClient):
    with pytest.raises(OpenmarketsNotFound, match=r"^Call 2 of 2 \(NONE\) failed\. GET oms orders/by-account/NONE/v4"):
        run(make_client(), queries.orders("SBX0001, NONE"))


# --- ranges


def both_ends(asked: str, body: Any) -> bytes:
    """Answer a ranged call with something at each end of its piece, beyond them, and between."""
    given = {key: values[0] for key, values in parse_qs(urlsplit(asked).query).items()} | (body or {})
    if "securities" in given:
        codes = [security.partition(".")[0] for security in given["securities"]]
        return reply([{"securityCode": code, "exchange": "ASX", "priceMultiplier": 0.01} for code in codes])
    first, last = (datetime.fromisoformat(given[name]) for name in ("dateTimeFrom", "dateTimeTo"))
    moments = [first - timedelta(minutes=1), first, first + (last - first) / 2, last, last + timedelta(minutes=1)]
    code = unquote(asked).split("/")[3].partition(".")[0]
    return reply(
        [
            {"timeSeriesDateTime": at.isoformat(), "tradeDateTime": at.isoformat(), "closePrice": 1, "tradePrice": 1}
            | ({"securityCode": code, "tradeNumber": f"{at:%d%H%M%S}", "exchange": "ASX"} if "trades" in asked else {})
            for at in moments
        ]
    )


@pytest.mark.parametrize(
    "query",
    [
        queries.trades("BHP, CBA", start="2026-03-31T12:00", end="2026-04-08T12:00"),
        queries.intraday_time_series("BHP, CBA", start="2026-03-20T12:00", end="2026-04-20T12:00", interval=1),
        queries.intraday_time_series("BHP, CBA", start="2025-09-20", end="2026-01-20", interval=30),
        queries.trades("BHP, CBA", start="2025-10-05T22:00:00+00:00", end="2025-10-07T22:00:00+00:00"),
    ],
    ids=["trades over the change in April", "bars over it", "bars over the change in October", "trades after it"],
)
def test_pieces_of_a_range_that_touch_give_every_row_once_and_nothing_beyond_the_range(
    run: Runner, make_client: MakeClient, query: Any
):
    with HostileServer(Api(both_ends)) as server:
        rows = run(make_client(market_data_url=server.url), query)
        calls = len(server.requests) - 1
    name = SCHEMAS[query["endpoint"]].time
    assert calls >= 4
    start, end = read_moment(query["start"]), read_moment(query["end"])
    for code in ("BHP", "CBA"):
        times = [row[name] for row in rows if row["security_code"] == code]
        assert len(times) == len(set(times))
        assert times[0] == start
        assert all(start <= moment < end for moment in times)
        # the middle of each piece, the seams between them, and a minute to both sides of each seam
        assert len(times) >= calls // 2 + 1
    assert [row["security_code"] for row in rows] == sorted(row["security_code"] for row in rows)


def test_rows_of_one_reply_that_look_alike_are_all_kept(run: Runner, make_client: MakeClient):
    def twice(asked: str, body: Any) -> bytes:
        if body is not None:
            return both_ends(asked, body)
        first = datetime.fromisoformat(parse_qs(urlsplit(asked).query)["dateTimeFrom"][0])
        bar = {"timeSeriesDateTime": (first + timedelta(hours=12)).isoformat(), "closePrice": 1}
        return reply([bar, bar])

    query = queries.intraday_time_series("BHP", start="2026-03-02", end="2026-03-30", interval=1)
    with HostileServer(Api(twice)) as server:
        rows = run(make_client(market_data_url=server.url), query)
        pieces = len(server.requests) - 1
    assert pieces == 4
    assert len(rows) == 2 * pieces


def test_a_range_that_lies_in_the_future_asks_for_nothing(run: Runner, make_client: MakeClient, sandbox: SandboxServer):
    assert run(make_client(), queries.trades("BHP", start="2190-01-01", end="2190-02-01")) == []
    assert not any("pricing" in path for path in sandbox.stats()["by_path"])


# --- replies that nobody promised


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"{}",
        b"5",
        b'"[]"',
        b"true",
        b"[1]",
        b"[null]",
        b"[[]]",
        b'[{"accountCode": "1"}, "x"]',
        b'[{"accountCode": NaN}]',
        b'[{"accountCode": Infinity}]',
        b'[{"accountCode": 1e999999}]',
        b'[{"accountCode": 1e99999999999999999999}]',
        b'[{"x": 1e99999999999999999999}]',
        b'[{"accountCode": 100.0}]',
        b'[{"accountCode": {"a": 1}}]',
        b'[{"accountCode": "1"},]',
        b'[{"accountCode": "1"}',
        b'[{"accountCode": "\xff"}]',
        b'[{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]",
        b'[{"x": ' + b"9" * 10_000_000 + b"}]",
        b"<html></html>",
    ],
    ids=lambda content: content[:30].decode("latin-1"),
)
def test_a_reply_that_nobody_promised_is_an_invalid_response(run: Runner, make_client: MakeClient, content: bytes):
    with HostileServer(hostile.answering(hostile.reply(content))) as server:
        with pytest.raises(OpenmarketsInvalidResponse) as caught:
            run(make_client(oms_url=server.url), queries.accounts())
        assert len(server.requests) == 1
    assert caught.value.endpoint == "GET oms accounts/v1"
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    "field",
    [
        '"averagePrice": 1e999999',
        '"averagePrice": "4512"',
        f'"averagePrice": 1.{"1" * 10_000_000}',
        '"averagePrice": 1e9999999',
        '"buyVolume": 1e9999999',
        '"buyVolume": "5"',
        '"updateDateTime": 5',
        '"updateDateTime": "0001-01-01T00:00:01"',
    ],
    ids=lambda field: field[:40],
)
def test_a_field_that_nobody_promised_is_an_invalid_response_that_names_it(
    run: Runner, make_client: MakeClient, field: str
):
    content = f'[{{"securityCode": "BHP", "exchange": "ASX", {field}}}]'.encode()
    with HostileServer(hostile.answering(hostile.reply(content))) as server:
        name = field.partition(":")[0].strip('"')
        with pytest.raises(OpenmarketsInvalidResponse, match=f"field {name}: expected ") as caught:
            run(make_client(oms_url=server.url), queries.positions(portfolios="P"))
    assert caught.value.endpoint == "POST oms portfolios/positions/v2"
    assert len(str(caught.value)) < 500


def test_a_null_time_is_none_where_no_range_goes_by_it(run: Runner, make_client: MakeClient):
    content = reply([{"portfolioCode": "P", "updateDateTime": None}])
    with HostileServer(hostile.answering(content)) as server:
        (row,) = run(make_client(oms_url=server.url), queries.cash(portfolios="P"))
    assert row["update_date_time"] is None


def test_an_empty_list_is_no_rows(run: Runner, make_client: MakeClient):
    with HostileServer(hostile.answering(hostile.reply(b"[]"))) as server:
        client = make_client(oms_url=server.url)
        assert run(client, queries.accounts()) == []
        assert run(client, queries.orders()) == []
        assert run(client, queries.positions()) == []
        assert list(client.stream(queries.orders("1, 2, 3"))) == []


# --- streams


@pytest.mark.parametrize("query", [None, {}, 5, [], "quotes", {"endpoint": "x"}, {"endpoint": "quotes"}, orders_of])
def test_what_is_no_query_is_refused_before_anything_is_iterated(
    make_client: MakeClient, sandbox: SandboxServer, query: Any
):
    with pytest.raises(OpenmarketsQueryError):
        make_client().stream(query)
    assert sandbox.stats()["by_path"] == {}


@pytest.mark.parametrize("query", TYPED, ids=TYPED_IDS)
def test_a_stream_gives_the_rows_of_a_run_in_batches(make_client: MakeClient, query: Any):
    batches = list(make_client().stream(query))
    assert all(batches)
    assert [row for batch in batches for row in batch] == make_client().run(query)


def test_a_stream_of_a_request_is_its_list_or_its_reply(make_client: MakeClient):
    client = make_client()
    (batch,) = client.stream(queries.request("oms", "GET", "accounts/v1"))
    assert batch == client.run(raw_of(queries.accounts()))
    with HostileServer(hostile.answering(reply({"a": 1}), reply([]), reply(None))) as server:
        client = make_client(oms_url=server.url)
        assert [list(client.stream(queries.request("oms", "GET", "x"))) for _ in range(3)] == [[[{"a": 1}]], [], []]


@pytest.mark.parametrize("concurrency", [1, 2, 5, 8])
def test_so_many_requests_are_under_way_and_never_more(run: Runner, make: Make, concurrency: int):
    meeting = threading.Barrier(concurrency)

    def together(asked: str, body: Any) -> bytes:
        meeting.wait(LONG)
        return one_order(asked, body)

    api = Api(together)
    with HostileServer(api) as server:
        rows = run(make(concurrency, oms_url=server.url), orders_of(4 * concurrency))
    assert api.most == concurrency
    assert accounts_in(rows) == list(range(4 * concurrency))


def test_threads_send_up_to_16_requests_at_a_time(make: Make):
    meeting = threading.Barrier(16)

    def together(asked: str, body: Any) -> bytes:
        meeting.wait(LONG)
        return one_order(asked, body)

    api = Api(together)
    with HostileServer(api) as server:
        make(16, oms_url=server.url).run(orders_of(32))
    assert api.most == 16


def test_looking_up_multipliers_counts_as_one_of_the_requests_under_way(run: Runner, make: Make):
    # The first reply holds a security without a multiplier. The call that asks for it and the next two calls wait for
    # each other, but not for ever: they need not meet.
    meeting = threading.Barrier(3, timeout=1)

    def answer(asked: str, body: Any) -> bytes:
        first = body["securities"][0] == "S0.ASX@TM"
        if not first:
            with suppress(threading.BrokenBarrierError):
                meeting.wait()
        fields = {"securityCode": "BHP", "exchange": "ASX"}
        if asked.startswith("/securities/information"):
            return reply([fields | {"priceMultiplier": 1}])
        return reply({"quotes": [fields | {"lastPrice": 5, "priceMultiplier": None if first else 1}]})

    api = Api(answer)
    with HostileServer(api) as server:
        rows = run(make(2, market_data_url=server.url), queries.quotes([f"S{number}" for number in range(3001)]))
    assert [row["last_price"] for row in rows] == [5] * 4
    assert api.most <= 2


def test_the_order_of_the_plan_is_kept_although_replies_come_out_of_order(run: Runner, make: Make):
    answered = [threading.Event() for _ in range(5)]

    def backwards(asked: str, body: Any) -> bytes:
        account = account_of(asked)
        if account < 3:
            assert answered[account + 1].wait(LONG)
        answered[account].set()
        return one_order(asked, body)

    with HostileServer(Api(backwards)) as server:
        assert accounts_in(run(make(4, oms_url=server.url), orders_of(4))) == [0, 1, 2, 3]


def test_few_calls_are_ahead_of_the_consumer(make: Make):
    consumed, ahead = 0, []
    count, concurrency = 60, 3
    reached = threading.Condition()

    def answer(asked: str, body: Any) -> bytes:
        with reached:
            ahead.append(account_of(asked) - consumed)
            reached.notify()
        return one_order(asked, body)

    with HostileServer(Api(answer)) as server:
        for _ in make(concurrency, oms_url=server.url).stream(orders_of(count, raw=True)):
            # slower than the server: everything that may start ahead has started
            with reached:
                wanted = min(count, consumed + AHEAD * concurrency)
                assert reached.wait_for(lambda wanted=wanted: len(ahead) >= wanted, LONG)
                consumed += 1
    assert max(ahead) <= AHEAD * concurrency <= 10


def test_a_permanent_error_stops_a_run_soon_and_says_which_call_failed(run: Runner, make: Make):
    def answer(asked: str, body: Any) -> bytes:
        if account_of(asked) == 4:
            return reply({"title": "No", "detail": "never"}, 403)
        return one_order(asked, body)

    api = Api(answer)
    with HostileServer(api) as server:
        with pytest.raises(OpenmarketsAccessRefused, match=r"^Call 5 of 300 \(A4\) failed\. GET oms orders/by-"):
            run(make(3, oms_url=server.url), orders_of(300))
        check_no_threads()
    assert len(api.arrived) <= 4 + AHEAD * 3 + 1


def test_a_run_that_fails_does_not_wait_for_replies_that_do_not_come(run: Runner, make: Make):
    hanging = threading.Event()

    def handle(sock: socket.socket, request: bytes) -> None:
        if account_of(hostile.target(request).partition(" ")[2]) == 0:
            hanging.set()
            hostile.silent(sock, request)
        assert hanging.wait(10)
        sock.sendall(reply({"title": "No"}, 403))

    with HostileServer(handle) as server, ThreadPoolExecutor(1) as pool:
        # Longer than the test has time for.
        failing = pool.submit(run, make(2, oms_url=server.url, timeout=45.0), orders_of(2))
        with pytest.raises(OpenmarketsAccessRefused, match=r"^Call 2 of 2 \(A1\)"):
            failing.result(30)
    check_no_threads()


def test_a_stream_gives_what_came_before_the_error(make: Make):
    def answer(asked: str, body: Any) -> bytes:
        return reply([], 400) if account_of(asked) == 7 else one_order(asked, body)

    with HostileServer(Api(answer)) as server:
        stream = make(1, oms_url=server.url).stream(orders_of(20, raw=True))
        assert [accounts_in(next(stream)) for _ in range(7)] == [[number] for number in range(7)]
        with pytest.raises(OpenmarketsError, match=r"^Call 8 of 20 \(A7\)"):
            next(stream)


def test_a_wrong_field_of_one_call_says_which(run: Runner, make: Make):
    def answer(asked: str, body: Any) -> bytes:
        return reply([order("A", orderVolume="x" if account_of(asked) == 2 else 1)])

    with (
        HostileServer(Api(answer)) as server,
        pytest.raises(OpenmarketsInvalidResponse, match=r"^Call 3 of 5 \(A2\) failed\. .* field orderVolume"),
    ):
        run(make(2, oms_url=server.url), orders_of(5))


@pytest.mark.parametrize(
    "query",
    [queries.accounts(), queries.orders(["A1", "A2"]), queries.quotes(["BHP"]), queries.depth(["BHP"])],
    ids=["accounts", "orders", "quotes", "multipliers"],
)
def test_a_reply_without_records_has_its_request_id_and_the_words_of_the_server(
    run: Runner, make: Make, query: queries.Query
):
    requests = []

    def handle(sock: socket.socket, request: bytes) -> None:
        requests.append(hostile.header(request, "x-request-id"))
        words = {"error": "down", "error_description": f"for {hostile.header(request, 'authorization')}"}
        sock.sendall(reply(words))

    with HostileServer(handle) as server:
        client = make(1, oms_url=server.url, market_data_url=server.url)
        with pytest.raises(OpenmarketsInvalidResponse) as caught:
            run(client, query)
    error = caught.value
    assert (error.status, error.title, error.detail) == (200, "down", "for Bearer ***")
    assert error.request_id == requests[-1]
    assert f"down: for Bearer *** [request id {error.request_id}]" in str(error)
    assert str(error).count(str(error.endpoint)) == 1


def test_a_wrong_field_has_the_request_id_of_its_reply_and_no_token(run: Runner, make: Make):
    def handle(sock: socket.socket, request: bytes) -> None:
        account = account_of(hostile.target(request).partition(" ")[2])
        records = [order("A", orderVolume=str(hostile.header(request, "authorization")))]
        sock.sendall(hostile.reply(json.dumps(records).encode(), headers=[f"X-Request-ID: of {account}"]))

    with HostileServer(handle) as server, pytest.raises(OpenmarketsInvalidResponse) as caught:
        run(make(2, oms_url=server.url), orders_of(5))
    error = caught.value
    assert (error.status, error.request_id) == (200, "of 0")
    assert str(error).endswith("[request id of 0]")
    assert "got 'Bearer ***" in str(error)
    assert str(error).count(str(error.endpoint)) == 1


def test_a_call_that_fails_for_a_while_is_repeated_and_no_other(run: Runner, make: Make):
    left = {3: 2, 11: 1}
    lock = threading.Lock()

    def answer(asked: str, body: Any) -> bytes:
        account = account_of(asked)
        with lock:
            left[account] = left.get(account, 0) - 1
            failing = left[account] >= 0
        return hostile.reply(b"", 503, AGAIN) if failing else one_order(asked, body)

    api = Api(answer)
    with HostileServer(api) as server:
        rows = run(make(4, oms_url=server.url), orders_of(20))
    assert accounts_in(rows) == list(range(20))
    times = Counter(map(account_of, api.arrived))
    assert {account: count for account, count in times.items() if count > 1} == {3: 3, 11: 2}


def test_a_server_that_dies_in_the_middle_is_a_transport_error(run: Runner, make: Make):
    dead = threading.Event()

    def dying(sock: socket.socket, request: bytes) -> None:
        if dead.is_set() or account_of(hostile.target(request).partition(" ")[2]) == 10:
            dead.set()
            hostile.reset(sock, request)
        else:
            sock.sendall(one_order(hostile.target(request), None))

    with (
        HostileServer(dying) as server,
        pytest.raises(OpenmarketsTransportError, match=r"^Call \d+ of 40 \(A\d+\) failed\. .*no answer from"),
    ):
        run(make(2, oms_url=server.url), orders_of(40))


def test_a_server_that_is_gone_in_the_middle_of_a_stream_is_a_transport_error(make: Make):
    server = HostileServer(Api(one_order))
    with server:
        stream = make(2, oms_url=server.url).stream(orders_of(200, raw=True))
        assert accounts_in(next(stream)) == [0]
    with pytest.raises(OpenmarketsTransportError, match="no answer from"):
        for _ in stream:
            pass


def test_a_429_on_one_call_holds_the_others_back(run: Runner, make: Make, caplog: pytest.LogCaptureFixture):
    # The first eight are concurrent. One gets a 429; the others are answered after the client has recorded it.
    concurrency = 8
    meeting, noted = threading.Barrier(concurrency), threading.Event()
    lock = threading.Lock()
    limited_at = 0.0
    gone_early = 0
    caplog.set_level(logging.INFO)

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "all calls of this run pause" in record.getMessage():
                noted.set()

    def answer(asked: str, body: Any) -> bytes:
        nonlocal limited_at, gone_early
        if account_of(asked) < concurrency and not noted.is_set():
            meeting.wait(LONG)
            if account_of(asked) == 0:
                limited_at = time.monotonic()
                return hostile.reply(b"", 429, ["Retry-After: 1"])
            assert noted.wait(LONG)
        else:
            with lock:
                gone_early += time.monotonic() < limited_at + 1
        return one_order(asked, body)

    listener, logger = Listener(), logging.getLogger("openmarkets_provider.client.io")
    logger.addHandler(listener)
    try:
        with HostileServer(Api(answer)) as server:
            rows = run(make(concurrency, oms_url=server.url), orders_of(AHEAD * concurrency))
    finally:
        logger.removeHandler(listener)
    assert accounts_in(rows) == list(range(AHEAD * concurrency))
    assert gone_early == 0


def test_closing_a_stream_early_stops_the_run_and_leaves_no_threads(make: Make):
    api = Api(one_order)
    with HostileServer(api) as server:
        stream = make(3, oms_url=server.url).stream(orders_of(300, raw=True))
        next(stream)
        stream.close()
        check_no_threads()
        count = len(api.arrived)
        assert count <= 1 + AHEAD * 3
        assert list(stream) == []
        assert len(api.arrived) == count


def test_a_stream_that_nobody_begins_sends_nothing(make: Make, sandbox: SandboxServer):
    make().stream(queries.quotes("BHP")).close()
    stream = make().stream(queries.trades("BHP", **PAST))
    del stream
    assert sandbox.stats()["by_path"] == {}


def test_closing_a_stream_wakes_what_waits_for_a_server_that_said_429(make: Make):
    limited = threading.Event()

    def answer(asked: str, body: Any) -> bytes:
        if account_of(asked) == 0:
            return one_order(asked, body)
        limited.set()
        return hostile.reply(b"", 429, ["Retry-After: 50"])

    with HostileServer(Api(answer)) as server:
        stream = make(2, oms_url=server.url).stream(orders_of(50, raw=True))
        next(stream)
        assert limited.wait(LONG)
        stream.close()
        # 15 s at most, and they would wait for 50
        check_no_threads()


def test_closing_a_stream_waits_for_no_reply_and_sends_nothing_again(make: Make, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    meeting = threading.Barrier(3)

    def handle(sock: socket.socket, request: bytes) -> None:
        asked = hostile.target(request).partition(" ")[2]
        if account_of(asked) == 0:
            sock.sendall(one_order(asked, None))
        else:
            meeting.wait(LONG)
            hostile.silent(sock, request)

    with HostileServer(handle) as server:
        # Its time-out is 10 s.
        stream = make(2, oms_url=server.url).stream(orders_of(50, raw=True))
        next(stream)
        meeting.wait(LONG)
        began = time.monotonic()
        stream.close()
        assert time.monotonic() - began < 5
        check_no_threads()
        assert len(server.requests) == 3
    assert "Trying again" not in caplog.text


def test_an_error_of_the_consumer_stops_the_run(make: Make):
    api = Api(one_order)

    def consume(client: OpenmarketsClient) -> None:
        with closing(client.stream(orders_of(300, raw=True))) as stream:
            for _ in stream:
                raise LookupError("the consumer's")

    with HostileServer(api) as server:
        with pytest.raises(LookupError, match="the consumer's"):
            consume(make(3, oms_url=server.url))
        check_no_threads()
    assert len(api.arrived) <= 1 + AHEAD * 3


@pytest.mark.parametrize(
    "query", [queries.trades("BHP, Z0001, Z0002", **PAST), queries.intraday_time_series("BHP, CBA", start="2026-01-01",
     end="2026-02-01", interval=5), queries.time_series(INVENTED[:60], **PAST), queries.order_trades(**PAST)],
    ids=lambda query: query["endpoint"],
)  # fmt: skip
def test_threads_and_loops_give_the_same_in_any_number(make: Make, query: Any):
    expected = make(1).run(query)
    assert len(expected) > 10
    assert make(5).run(query) == expected

    async def arun(client: OpenmarketsClient) -> Any:
        try:
            return await client.arun(query)
        finally:
            await client.aclose()

    assert asyncio.run(arun(make(1))) == expected
    assert asyncio.run(arun(make(5))) == expected


def test_threads_and_loops_may_share_a_client(make: Make):
    client, query = make(4), queries.trades("BHP, Z0002, CBA", **PAST)
    expected = make(1).run(query)

    async def twice() -> list[Any]:
        return list(await asyncio.gather(client.arun(query), client.arun(query)))

    def on_loop() -> list[Any]:
        async def run() -> list[Any]:
            found = await twice()
            for http in [*client._async_clients.get(asyncio.get_running_loop(), {}).values()]:
                await http.aclose()
            return found

        return asyncio.run(run())

    with ThreadPoolExecutor(4) as pool:
        loops = [pool.submit(on_loop) for _ in range(2)]
        threads = [pool.submit(client.run, query) for _ in range(2)]
        assert [thread.result(LONG) for thread in threads] == [expected] * 2
        assert [loop.result(LONG) for loop in loops] == [[expected] * 2] * 2


def test_a_loop_that_closes_its_connections_disturbs_nobody_else_s_token_request(make: Make, sandbox: SandboxServer):
    client, fetching = make(1), threading.Event()

    async def end_while_another_thread_fetches_a_token() -> None:
        await client.arun(queries.request("oms", "GET", "accounts/v1"))
        assert await asyncio.to_thread(fetching.wait, LONG)
        await client.aclose()

    with ThreadPoolExecutor(2) as pool:
        loop = pool.submit(asyncio.run, end_while_another_thread_fetches_a_token())
        wait_until(lambda: sandbox.stats()["by_path"].get("GET /oms/accounts/v1") == 1)
        sandbox.fault(target="identity", kind="delay", seconds=0.5)
        token = pool.submit(client.get_access_token, "market-data-api")
        wait_until(lambda: sandbox.stats()["token_requests_total"] == 2)
        fetching.set()
        loop.result(LONG)
        assert token.result(LONG)
    assert sandbox.stats()["token_requests_total"] == 2


async def test_cancelling_a_run_in_mid_air_leaves_nothing_behind(make: Make):
    arrived, release = threading.Semaphore(0), threading.Event()

    def hang(asked: str, body: Any) -> bytes:
        arrived.release()
        release.wait(LONG)
        return one_order(asked, body)

    api = Api(hang)
    with HostileServer(api) as server:
        client = make(3, oms_url=server.url)
        task = asyncio.create_task(client.arun(orders_of(100)))
        for _ in range(3):
            await asyncio.to_thread(arrived.acquire)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert len(api.arrived) == 3
        release.set()
        # the client is as good as before
        assert accounts_in(await client.arun(orders_of(5))) == list(range(5))
        await client.aclose()
    # what was never awaited or closed is heard of when it is collected
    gc.collect()


async def test_cancelling_a_run_while_it_prepares_leaves_nothing_behind(make: Make, sandbox: SandboxServer):
    sandbox.fault(target="/oms/accounts/v1", kind="delay", seconds=20)
    client = make(3)
    task = asyncio.create_task(client.arun(queries.orders()))
    await asyncio.to_thread(wait_until, lambda: sandbox.stats()["by_path"].get("GET /oms/accounts/v1") == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.all_tasks() == {asyncio.current_task()}
    await client.aclose()


# --- progress


def progress_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [message for message in caplog.messages if "calls done" in message]


def test_a_quick_run_logs_no_progress(run: Runner, make: Make, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    with HostileServer(Api(one_order)) as server:
        run(make(oms_url=server.url), orders_of(100))
    assert progress_lines(caplog) == []
    assert progress.PROGRESS_EVERY >= 1


def test_progress_is_counted_in_calls_and_rows(
    run: Runner, make: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(progress, "PROGRESS_EVERY", 0.0)
    caplog.set_level(logging.INFO)

    def two_orders(asked: str, body: Any) -> bytes:
        return reply([order(f"{account_of(asked)}{number}") for number in range(2)])

    with HostileServer(Api(two_orders)) as server:
        run(make(1, oms_url=server.url), orders_of(5))
    said = [
        re.match(r"orders: (\d+) of 5 calls done, (\d+) rows, \d+ rows/s\.", line) for line in progress_lines(caplog)
    ]
    assert [(int(line[1]), int(line[2])) for line in said if line] == [(1, 2), (2, 4), (3, 6), (4, 8)]


def test_a_run_that_waits_for_one_reply_still_says_how_far_it_is(
    run: Runner, make: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(progress, "PROGRESS_EVERY", 0.01)
    monkeypatch.setattr(io, "TICK", 0.01)
    caplog.set_level(logging.INFO)
    heard = threading.Event()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "3 of 4 calls done" in record.getMessage():
                heard.set()

    def answer(asked: str, body: Any) -> bytes:
        if account_of(asked) == 3:
            assert heard.wait(LONG)
        return one_order(asked, body)

    listener = Listener()
    logging.getLogger(progress.__name__).addHandler(listener)
    try:
        with HostileServer(Api(answer)) as server:
            assert len(run(make(2, oms_url=server.url), orders_of(4))) == 4
    finally:
        logging.getLogger(progress.__name__).removeHandler(listener)


# --- what must not be lost or widened in silence


def test_none_for_the_accounts_does_not_mean_all_of_them(run: Runner, make_client: MakeClient, sandbox: SandboxServer):
    query = queries.cash(accounts="{{ params.account }}")
    with pytest.raises(OpenmarketsQueryError, match="accounts and portfolios are None"):
        run(make_client(), query | {"accounts": None})
    assert sandbox.stats()["by_path"] == {}


def test_a_portfolio_that_nothing_is_said_of_is_told(
    run: Runner, make_client: MakeClient, caplog: pytest.LogCaptureFixture
):
    assert len(run(make_client(), queries.cash(portfolios="SBX0001P, TYPO"))) == 1
    assert "portfolios/cash/by-portfolio/v2: the reply has nothing for ['TYPO']" in caplog.text


def test_a_portfolio_whose_code_the_api_writes_as_a_number_is_not_missing(
    run: Runner, make_client: MakeClient, sandbox: SandboxServer, caplog: pytest.LogCaptureFixture
):
    sandbox.fault(target="oms", kind="body", body=[{"portfolioCode": 123}])
    (row,) = run(make_client(), queries.portfolio_details(portfolios="123, 456"))
    assert row["portfolio_code"] == "123"
    assert "the reply has nothing for ['456']" in caplog.text


def test_a_quote_that_is_left_out_without_a_word_is_told(
    run: Runner, make_client: MakeClient, sandbox: SandboxServer, caplog: pytest.LogCaptureFixture
):
    body = {"quotes": [{"securityCode": "BHP", "exchange": "ASX"}], "invalidSecurities": []}
    sandbox.fault(target="market_data", kind="body", body=body)
    assert len(run(make_client(), queries.quotes("BHP, RIO"))) == 1
    assert "the reply has nothing for ['RIO.ASX@TM']" in caplog.text


@pytest.mark.parametrize("make_query", [queries.time_series, queries.trades])
def test_when_no_security_at_all_is_known_that_is_an_error(run: Runner, make_client: MakeClient, make_query: Any):
    query = make_query("XX1, XX2", on_invalid="warn", **PAST)
    with pytest.raises(OpenmarketsQueryError, match="the API knows none of the 2 securities"):
        run(make_client(), query)


def test_an_endpoint_that_is_gone_is_an_error_whatever_is_unknown(
    run: Runner, make_client: MakeClient, sandbox: SandboxServer
):
    sandbox.fault(target="/market-data/pricing", kind="status", status=410, times=None)
    with pytest.raises(OpenmarketsNotFound, match="410"):
        run(make_client(), queries.depth("BHP, CBA", on_invalid="warn"))


def test_an_order_that_two_accounts_share_is_there_once(run: Runner, make: Make):
    shared, own = order("A0", orderNumber=5), Counter[str]()

    def answer(asked: str, body: Any) -> bytes:
        own[asked] += 1
        return reply([shared, order(f"A{account_of(asked)}", orderNumber=account_of(asked))])

    with HostileServer(Api(answer)) as server:
        rows = run(make(1, oms_url=server.url), orders_of(3))
    assert [row["order_number"] for row in rows] == ["5", "0", "1", "2"]


def test_what_stands_beside_a_shared_order_makes_it_no_other(run: Runner, make: Make):
    def answer(asked: str, body: Any) -> bytes:
        account = account_of(asked)
        beside = {"newField": account} if account else {}
        return reply([order("A0", orderNumber=5), order(f"A{account}", orderNumber=account) | beside])

    with HostileServer(Api(answer)) as server:
        rows = run(make(2, oms_url=server.url), orders_of(3))
    assert [row["order_number"] for row in rows] == ["5", "0", "1", "2"]


def test_a_shared_trade_whose_multiplier_is_known_later_is_there_once_at_the_right_price(run: Runner, make: Make):
    def answer(asked: str, body: Any) -> bytes:
        trade = {
            "tradeNumber": 7,
            "orderNumber": 1,
            "accountCode": "A0",
            "securityCode": "XJO",
            "tradePrice": 9000,
            "tradeVolume": 105,
            "tradeDateTime": "2026-01-06T11:00:00",
        }
        return reply([trade | ({"priceMultiplier": 1} if account_of(asked) else {})])

    with HostileServer(Api(answer)) as server, HostileServer(Api(lambda asked, body: reply([]))) as market_data:
        client = make(1, oms_url=server.url, market_data_url=market_data.url)
        (row,) = run(client, queries.order_trades(["A0", "A1"], **PAST, **CENTS))
    assert (row["trade_price"], row["trade_volume"]) == (9000, 105)


def test_of_two_states_of_a_shared_order_the_later_reply_is_kept(run: Runner, make: Make):
    def answer(asked: str, body: Any) -> bytes:
        done = 40 * account_of(asked)
        return reply([order("A0", orderNumber=5, orderVolume=100, doneVolumeTotal=done)])

    with HostileServer(Api(answer)) as server:
        (row,) = run(make(1, oms_url=server.url), orders_of(3))
    assert row["done_volume_total"] == 80


def test_an_order_without_its_number_is_an_error_where_two_accounts_may_share_it(run: Runner, make: Make):
    with HostileServer(Api(lambda asked, body: reply([order("A0", orderNumber=None)]))) as server:
        with pytest.raises(OpenmarketsInvalidResponse, match="orderNumber"):
            run(make(1, oms_url=server.url), orders_of(2))
        assert len(run(make(1, oms_url=server.url), orders_of(1))) == 1


def market_data(*records: Any) -> Api:
    """Answer every call about one security with the same records, and know BHP."""
    known = {"securityCode": "BHP", "exchange": "ASX", "priceMultiplier": 0.01}
    return Api(lambda asked, body: reply([known] if asked.startswith("/securities/information") else records))


def test_rows_are_in_order_of_time_whatever_the_order_of_the_reply(run: Runner, make: Make):
    days = ["2026-01-07", "2026-01-05", "2026-01-06"]
    with HostileServer(market_data(*({"timeSeriesDate": day} for day in days))) as server:
        rows = run(make(1, market_data_url=server.url), queries.time_series("BHP", **PAST))
    assert [str(row["time_series_date"]) for row in rows] == sorted(days)


@pytest.mark.parametrize("backwards", [False, True])
def test_no_more_levels_than_the_query_wants_and_the_best_first(run: Runner, make: Make, backwards: bool):
    asks, bids = [4510, 4511, 4512, 4513, None], [4509, 4508, 4507, 4506, 4505]
    book = [
        {"askPrice": ask, "askVolume": ask and ask % 100, "bidPrice": bid, "bidVolume": bid % 100}
        for ask, bid in zip(asks, bids, strict=True)
    ]
    with HostileServer(market_data(*(reversed(book) if backwards else book))) as server:
        client = make(1, market_data_url=server.url)
        three, ten = (run(client, queries.depth("BHP", levels=levels)) for levels in (3, 10))
    assert [row["level"] for row in three] == [1, 2, 3]
    assert [(row["ask_price"] * 100, row["ask_volume"]) for row in three] == [(4510, 10), (4511, 11), (4512, 12)]
    assert [(row["bid_price"] * 100, row["bid_volume"]) for row in three] == [(4509, 9), (4508, 8), (4507, 7)]
    assert ten[:3] == three
    assert (ten[4]["ask_price"], ten[4]["bid_price"] * 100, len(ten)) == (None, 4505, 5)


def test_the_sides_of_a_book_are_ranked_each_by_itself(run: Runner, make: Make):
    book = [{"askPrice": 3, "bidPrice": 2}, {"askPrice": 4, "bidPrice": None}, {"askPrice": None, "bidPrice": 1}]
    with HostileServer(market_data(*book)) as server:
        rows = run(make(1, market_data_url=server.url), queries.depth("BHP"))
    assert [(row["ask_price"], row["bid_price"]) for row in rows] == [
        (Decimal("0.03"), Decimal("0.02")),
        (Decimal("0.04"), Decimal("0.01")),
        (None, None),
    ]


def test_records_that_one_reply_repeats_are_all_kept(run: Runner, make: Make):
    def answer(asked: str, body: Any) -> bytes:
        return reply([order("A0", orderNumber=5)] * 2)

    with HostileServer(Api(answer)) as server:
        rows = run(make(1, oms_url=server.url), orders_of(3))
    assert len(rows) == 2


def test_the_case_in_which_the_api_writes_a_security_makes_no_price_of_another_size(run: Runner, make: Make):
    def answer(asked: str, body: Any) -> bytes:
        if asked.startswith("/securities/information"):
            return reply([{"securityCode": "XJO", "exchange": "ASX", "priceMultiplier": 1}])
        return reply([{"timeSeriesDate": "2026-01-05", "closePrice": 200}])

    with HostileServer(Api(answer)) as server:
        rows = run(make(1, market_data_url=server.url), queries.time_series("xjo, XJO", **PAST))
    assert [row["close_price"] for row in rows] == [200, 200]


def test_a_bar_that_straddles_two_ranges_is_in_the_one_at_whose_end_it_is_complete(
    run: Runner, make_client: MakeClient
):
    def hour(start: str, end: str) -> list[Any]:
        query = queries.intraday_time_series("BHP", start=f"2026-01-05T{start}", end=f"2026-01-05T{end}", interval=60)
        return run(make_client(), query)

    parts = [*hour("10:07", "11:07"), *hour("11:07", "12:59:59.9"), *hour("12:59:59.9", "14:07")]
    assert parts == hour("10:00", "14:00")
    assert len(parts) == 4


def test_a_week_that_straddles_two_ranges_is_in_one_of_them_as_a_whole(run: Runner, make_client: MakeClient):
    def weeks(start: str, end: str) -> list[Any]:
        return run(make_client(), queries.time_series("BHP", start=start, end=end, frequency="Weekly"))

    parts = [*weeks("2026-02-04", "2026-02-11"), *weeks("2026-02-11", "2026-02-18")]
    assert parts == weeks("2026-01-31", "2026-02-14")
    (first, *_) = parts
    days = run(make_client(), queries.time_series("BHP", start="2026-02-02", end="2026-02-07"))
    assert first["total_volume"] == sum(day["total_volume"] for day in days)


@pytest.mark.parametrize("day", ["2026-02-02", "2026-02-04", "2026-02-06"])
def test_a_week_may_be_dated_on_any_day_of_trading(run: Runner, make: Make, day: str):
    with HostileServer(market_data({"timeSeriesDate": day})) as server:
        client = make(1, market_data_url=server.url)
        for start, end, count in [("2026-01-26", "2026-02-02", 0), ("2026-02-02", "2026-02-09", 1)]:
            assert len(run(client, queries.time_series("BHP", start=start, end=end, frequency="Weekly"))) == count


@pytest.mark.parametrize("day", ["2026-02-07", "2026-02-08"])
def test_a_week_that_is_dated_on_a_weekend_is_an_error(run: Runner, make: Make, day: str):
    with HostileServer(market_data({"timeSeriesDate": day})) as server:
        client = make(1, market_data_url=server.url)
        with pytest.raises(OpenmarketsInvalidResponse, match="timeSeriesDate"):
            run(client, queries.time_series("BHP", start="2026-02-02", end="2026-02-09", frequency="Weekly"))
        assert len(run(client, queries.time_series("BHP", start="2026-02-02", end="2026-02-09"))) == 1


def knowing_only_bhp(rows_of_others: int = 0) -> Api:
    """Answer calls about an unknown security with 200 and a number of bars, and with one bar of BHP."""

    def answer(asked: str, body: Any) -> bytes:
        if body is not None:
            return reply([{"securityCode": "bhp", "exchange": "ASX", "priceMultiplier": 0.01}])
        first = parse_qs(urlsplit(asked).query)["dateTimeFrom"][0]
        return reply([{"timeSeriesDateTime": first}] * (1 if "BHP.ASX" in asked else rows_of_others))

    return Api(answer)


TWO_PIECES = {"start": "2026-01-05", "end": "2026-01-19", "interval": 5}


def test_an_unknown_security_that_the_api_has_nothing_of_is_an_error_that_names_it(run: Runner, make: Make):
    with HostileServer(knowing_only_bhp()) as server:
        client = make(1, market_data_url=server.url)
        with pytest.raises(OpenmarketsQueryError) as caught:
            run(client, queries.intraday_time_series("BHP, BPH", **TWO_PIECES))
        assert caught.value.securities == ["BPH.ASX@TM"]
        with pytest.raises(OpenmarketsQueryError, match="none"):
            run(client, queries.intraday_time_series("BPH, PBH", on_invalid="warn", **TWO_PIECES))


def test_an_unknown_security_that_the_api_has_nothing_of_is_left_out_on_demand(
    run: Runner, make: Make, caplog: pytest.LogCaptureFixture
):
    with HostileServer(knowing_only_bhp()) as server:
        query = queries.intraday_time_series("BPH, BHP", on_invalid="warn", **TWO_PIECES)
        rows = run(make(1, market_data_url=server.url), query)
    assert [row["security_code"] for row in rows] == ["BHP", "BHP"]
    assert "BPH.ASX@TM" in caplog.text


def test_a_security_that_only_security_information_lacks_is_known(run: Runner, make: Make):
    with HostileServer(knowing_only_bhp(rows_of_others=1)) as server:
        rows = run(make(1, market_data_url=server.url), queries.intraday_time_series("BPH", **TWO_PIECES))
    assert len(rows) == 2


def test_coroutines_that_fail_for_one_reason_name_one_call_each(make_client: MakeClient):
    client = make_client(client_secret="wrong")
    with pytest.raises(OpenmarketsInvalidClient) as caught:
        asyncio.run(client.arun(orders_of(20)))
    assert str(caught.value).count("failed. ") == 1


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_stream_that_is_carried_on_in_a_forked_process_is_an_error(make_client: MakeClient):
    stream = make_client().stream(queries.depth(INVENTED[:100]))
    assert next(stream)

    def carry_on() -> str:
        with pytest.raises(OpenmarketsError) as caught:
            next(stream)
        return str(caught.value)

    assert in_processes(1, carry_on) == ["A stream can't continue in a forked process. Start a new one there."]
    assert len(list(stream)) == 99


# --- what a stream leaves out


def skipped_of(client: OpenmarketsClient, query: queries.Query) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the rows of a stream, and what it left out."""
    skipped: set[str] = set()
    rows = [row for batch in client.stream(query, skipped) for row in batch]
    return rows, sorted(skipped)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize(
    "query",
    [queries.quotes("XX1, BHP, XX2", on_invalid="warn"),
     queries.security_information("XX1, BHP, XX2", on_invalid="warn"),
     queries.depth("XX1, BHP, XX2", on_invalid="warn"),
     queries.trades("XX1, BHP, XX2", **PAST, on_invalid="warn")],
    ids=lambda query: query["endpoint"],
)  # fmt: skip
def test_a_stream_tells_the_unknown_securities(make_client: MakeClient, query: Any, raw: bool):
    rows, skipped = skipped_of(make_client(), {**query, "raw": raw})
    assert rows
    assert skipped == ["XX1.ASX@TM", "XX2.ASX@TM"]
    assert skipped_of(make_client(), {**query, "securities": ["BHP"], "raw": raw}) == (rows, [])


def test_a_stream_tells_securities_that_the_api_has_nothing_of(make: Make):
    with HostileServer(knowing_only_bhp()) as server:
        query = queries.intraday_time_series("BPH, BHP", on_invalid="warn", **TWO_PIECES)
        rows, skipped = skipped_of(make(1, market_data_url=server.url), query)
    assert (len(rows), skipped) == (2, ["BPH.ASX@TM"])


def test_a_stream_tells_the_quotes_that_are_left_out_without_a_word(make_client: MakeClient, sandbox: SandboxServer):
    body = {"quotes": [{"securityCode": "BHP", "exchange": "ASX"}], "invalidSecurities": []}
    sandbox.fault(target="market_data", kind="body", body=body)
    rows, skipped = skipped_of(make_client(), queries.quotes("BHP, RIO"))
    assert (len(rows), skipped) == (1, ["RIO.ASX@TM"])


def pricing_only_bhp(asked: str, body: Any) -> bytes:
    """Answer quotes, or one bar of any security; only BHP has a price multiplier."""
    if asked.startswith("/pricing/quotes"):
        codes = [security.partition(".")[0] for security in body["securities"]]
        return reply({"quotes": [{"securityCode": code, "exchange": "ASX", "lastPrice": 4512} for code in codes]})
    if body is not None:
        codes = [security.partition(".")[0] for security in body["securities"]]
        records = [{"securityCode": code, "exchange": "ASX"} for code in codes]
        return reply(
            [record | ({"priceMultiplier": 0.01} if record["securityCode"] == "BHP" else {}) for record in records]
        )
    return reply([{"timeSeriesDate": "2026-01-05", "closePrice": 4512}])


@pytest.mark.parametrize(
    ("make_query", "price"),
    [(queries.quotes, "last_price"), (partial(queries.time_series, **PAST), "close_price")],
    ids=["one reply", "replies of their own"],
)
def test_a_security_without_a_price_multiplier_is_left_out_on_demand_and_told(make: Make, make_query: Any, price: str):
    with HostileServer(Api(pricing_only_bhp)) as server:
        client = make(1, market_data_url=server.url)
        rows, skipped = skipped_of(client, make_query("XX1, BHP, XX2", on_invalid="warn"))
        assert [(row["security_code"], row[price]) for row in rows] == [("BHP", Decimal("45.12"))]
        assert skipped == ["XX1.ASX@TM", "XX2.ASX@TM"]
        for query in (make_query("XX1, BHP"), make_query("XX1, BHP", on_invalid="error")):
            with pytest.raises(OpenmarketsQueryError, match="no price multiplier is known") as caught:
                client.run(query)
            assert caught.value.securities == ["XX1.ASX@TM"]
        rows, skipped = skipped_of(client, make_query("XX1, BHP", on_invalid="warn", **CENTS))
        assert (len(rows), skipped) == (2, [])


def test_when_no_security_has_a_price_multiplier_that_is_an_error(make: Make):
    with HostileServer(Api(pricing_only_bhp)) as server:
        query = queries.time_series("XX1, XX2", on_invalid="warn", **PAST)
        with pytest.raises(OpenmarketsQueryError, match="or has no price multiplier") as caught:
            make(1, market_data_url=server.url).run(query)
    assert caught.value.securities == ["XX1.ASX@TM", "XX2.ASX@TM"]


def test_when_security_information_is_refused_no_security_is_left_out_for_it(
    make_client: MakeClient, sandbox: SandboxServer
):
    sandbox.fault(target="/market-data/securities", kind="status", status=403, times=None)
    query = queries.time_series("BHP, CBA", on_invalid="warn", **PAST)
    with pytest.raises(OpenmarketsQueryError, match=r"Security information: .*403"):
        make_client().run(query)
