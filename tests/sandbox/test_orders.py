"""Orders from their creation to their end, and answers that a client never gets, over HTTP and from Python."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest

from openmarkets_provider.sandbox.server import SandboxServer

ACCOUNT = "SBX0001"
CREATE = "/oms/orders/v4"
TRADES = f"/oms/trades/by-account/{ACCOUNT}/v1"
SYDNEY = ZoneInfo("Australia/Sydney")
THURSDAY = datetime(2026, 3, 5, 12, 30, tzinfo=SYDNEY)
LATE = 3600
"""Seconds in which no test ends."""
LIMIT = {
    "accountCode": ACCOUNT,
    "securityCode": "BHP",
    "exchange": "ASX",
    "destination": "ASX",
    "side": "Buy",
    "orderPrice": 4400.5,
    "orderVolume": 100,
    "lifetime": "EndOfDay",
    "pricingInstruction": "Limit",
}


def create(api: httpx.Client, **changes: object) -> int:
    reply = api.post(CREATE, json=LIMIT | changes)
    assert reply.status_code == 200, reply.text
    return int(reply.json()["orderNumber"])


def listed(api: httpx.Client, account: str = ACCOUNT) -> dict[int, dict[str, Any]]:
    """Return the orders that clients created, by number, the newest first."""
    orders = api.get(f"/oms/orders/by-account/{account}/v4").raise_for_status().json()
    return {order["orderNumber"]: order for order in orders if 100_000 < order["orderNumber"] < 1_000_000}


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ({"kind": "status", "status": 502}, 502),
        ({"kind": "body", "body": {}}, 200),
        ({"kind": "status", "status": 429, "retry_after": 1}, 429),
    ],
)
def test_an_order_is_accepted_and_its_number_is_lost(
    openmarkets_sandbox: SandboxServer, api: httpx.Client, fault: dict[str, Any], status: int
) -> None:
    openmarkets_sandbox.fault(target=CREATE, process_first=True, **fault)
    reply = api.post(CREATE, json=LIMIT)
    assert (reply.status_code, "orderNumber" in reply.text) == (status, False)
    assert len(listed(api)) == 1


def test_an_order_is_accepted_and_the_connection_is_cut(openmarkets_sandbox: SandboxServer, api: httpx.Client) -> None:
    openmarkets_sandbox.fault(target=CREATE, kind="reset", process_first=True)
    with pytest.raises(httpx.TransportError):
        api.post(CREATE, json=LIMIT)
    assert len(listed(api)) == 1


def test_an_order_is_accepted_long_before_its_answer(openmarkets_sandbox: SandboxServer, api: httpx.Client) -> None:
    openmarkets_sandbox.fault(target=CREATE, kind="delay", seconds=1, process_first=True)
    with pytest.raises(httpx.ReadTimeout):
        api.post(CREATE, json=LIMIT, timeout=0.2)
    assert len(listed(api)) == 1
    # the list is the first that is answered
    wait_until(lambda: openmarkets_sandbox.stats()["by_status"] == {"200": 2})


def test_an_answer_that_comes_late_is_the_endpoints_own(openmarkets_sandbox: SandboxServer, api: httpx.Client) -> None:
    openmarkets_sandbox.fault(target=CREATE, kind="delay", seconds=0.3, process_first=True)
    start = time.monotonic()
    number = create(api)
    assert time.monotonic() - start >= 0.3
    assert list(listed(api)) == [number]
    openmarkets_sandbox.fault(target=CREATE, kind="delay", seconds=0, process_first=True)
    assert api.post(CREATE, json=LIMIT | {"orderVolume": 0}).status_code == 400


def test_an_order_is_accepted_after_its_client_gave_up(openmarkets_sandbox: SandboxServer, api: httpx.Client) -> None:
    openmarkets_sandbox.fault(target=CREATE, kind="delay", seconds=0.6)
    with pytest.raises(httpx.ReadTimeout):
        api.post(CREATE, json=LIMIT, timeout=0.1)
    assert listed(api) == {}
    wait_until(lambda: len(listed(api)) == 1)


def test_an_amendment_and_a_cancellation_take_effect_unheard(
    openmarkets_sandbox: SandboxServer, api: httpx.Client
) -> None:
    number = create(api)
    openmarkets_sandbox.fault(target=f"/oms/orders/{number}", kind="status", status=502, process_first=True, times=2)
    assert api.put(f"/oms/orders/{number}/v4", json={"orderVolume": 50}).status_code == 502
    assert listed(api)[number]["orderVolume"] == 50
    assert api.delete(f"/oms/orders/{number}/v1").status_code == 502
    assert listed(api)[number]["orderState"] == "INACTIVE"


@pytest.fixture
def sandbox(openmarkets_sandbox: SandboxServer, api: httpx.Client) -> SandboxServer:
    """A sandbox at the noon of a trading day, set after the reset of the client's fixture."""
    openmarkets_sandbox.now = THURSDAY
    return openmarkets_sandbox


def look(api: httpx.Client, number: int) -> tuple[str, str, str, int]:
    order = listed(api)[number]
    return order["orderState"], order["lastAction"], order["actionStatus"], order["doneVolumeTotal"]


def trades(api: httpx.Client, number: int) -> list[dict[str, Any]]:
    days = {"dateTimeFrom": "2026-03-05", "dateTimeTo": "2026-03-14"}
    found = api.get(TRADES, params=days).raise_for_status().json()
    return [trade for trade in found if trade["orderNumber"] == number]


def position(api: httpx.Client, code: str = "BHP", portfolio: str = "SBX0001P") -> dict[str, Any]:
    found = api.post("/oms/portfolios/positions/v2", json={"portfolioCodes": [portfolio]}).raise_for_status().json()
    return next((dict(each) for each in found if each["securityCode"] == code), {})


def cash(api: httpx.Client, portfolio: str = "SBX0001P") -> dict[str, Any]:
    (found,) = api.post("/oms/portfolios/cash/by-portfolio/v2", json={"portfolioCodes": [portfolio]}).json()
    return dict(found)


def test_an_order_is_accepted_late(sandbox: SandboxServer, api: httpx.Client) -> None:
    sandbox.set_order_behaviour(accept_after=0.3)
    number = create(api)
    assert look(api, number) == ("PENDING", "CREATE", "PENDING", 0)
    assert api.delete(f"/oms/orders/{number}/v1").status_code == 409
    wait_until(lambda: look(api, number) == ("ACTIVE", "CREATE", "OK", 0))


def test_an_order_is_listed_late(sandbox: SandboxServer, api: httpx.Client) -> None:
    sandbox.set_order_behaviour(list_after=0.3)
    number = create(api)
    assert listed(api) == {}
    assert [order["orderNumber"] for order in sandbox.orders()] == [number]
    wait_until(lambda: number in listed(api))


def test_an_order_is_filled_in_parts(sandbox: SandboxServer, api: httpx.Client) -> None:
    sandbox.set_order_behaviour(accept_after=0.1, fills=[[0, 30], [0.3, None]])
    number = create(api)
    wait_until(lambda: look(api, number) == ("ACTIVE", "CREATE", "OK", 30))
    wait_until(lambda: look(api, number) == ("INACTIVE", "CREATE", "OK", 100))
    assert [(trade["tradeVolume"], trade["tradePrice"]) for trade in trades(api, number)] == [
        (30, 4400.5),
        (70, 4400.5),
    ]
    assert api.delete(f"/oms/orders/{number}/v1").status_code == 409


def test_a_fill_is_in_the_order_and_in_the_trades(sandbox: SandboxServer, api: httpx.Client) -> None:
    number = create(api)
    sandbox.fill_order(number, 30)
    sandbox.now += timedelta(minutes=1)
    sandbox.fill_order(number, 20, price=4400)
    order = listed(api)[number]
    assert (order["remainingVolume"], order["doneVolumeTotal"], order["doneValueTotal"]) == (50, 50, 2200.15)
    assert order["averagePrice"] == pytest.approx(4400.3)
    first, second = trades(api, number)
    assert len({trade["tradeNumber"] for trade in (first, second)}) == 2
    assert set(first) == set(
        api.get(TRADES, params={"dateTimeFrom": "2026-01-05", "dateTimeTo": "2026-01-06"}).json()[0]
    )
    assert (first["side"], first["tradeValue"], first["tradeDateTime"]) == ("Buy", 1320.15, "2026-03-05T12:30:00.000")
    assert (second["tradeDateTime"], second["tradeDateTimeGmt"]) == (
        "2026-03-05T12:31:00.000",
        "2026-03-05T01:31:00.000",
    )

    # in order, also among the trades that the account has without orders of clients
    sandbox.now = THURSDAY.replace(hour=15, minute=59)
    whole_day = api.get(TRADES, params={"dateTimeFrom": "2026-03-05", "dateTimeTo": "2026-03-06"}).json()
    dates = [trade["tradeDateTime"] for trade in whole_day]
    assert (len(dates), dates) == (4, sorted(dates))


def test_a_market_order_is_filled_at_the_last_price(sandbox: SandboxServer, api: httpx.Client) -> None:
    sandbox.set_order_behaviour(fills=[[0, None]])
    market = {"pricingInstruction": "Market", "orderPrice": None}
    (quote,) = api.post("/market-data/pricing/quotes/v3", json={"securities": ["BHP.ASX@TM"]}).json()["quotes"]
    assert [trade["tradePrice"] for trade in trades(api, create(api, **market))] == [quote["lastPrice"]]
    sandbox.set_security("BHP.ASX@TM", lastPrice=4512)
    assert [trade["tradePrice"] for trade in trades(api, create(api, **market))] == [4512]
    sandbox.set_security("BHP.ASX@TM", lastPrice=None)
    assert [trade["tradePrice"] for trade in trades(api, create(api, **market))] == [quote["lastPrice"]]
    untraded = create(api, **market, securityCode="BHPXY7")
    assert trades(api, untraded)[0]["tradePrice"] > 0
    assert position(api, "BHPXY7")["actualVolume"] == 100


def test_an_order_is_rejected(sandbox: SandboxServer, api: httpx.Client) -> None:
    sandbox.set_order_behaviour(reject_after=0)
    number = create(api)
    assert look(api, number) == ("INACTIVE", "CREATE", "DENIED", 0)
    assert trades(api, number) == []
    sandbox.set_order_behaviour(accept_after=LATE, reject_after=0)
    assert look(api, create(api)) == ("INACTIVE", "CREATE", "DENIED", 0)
    sandbox.set_order_behaviour(fills=[[0, 40], [LATE, None]], reject_after=0)
    assert look(api, create(api)) == ("INACTIVE", "CREATE", "DENIED", 40)


def test_one_security_behaves_in_its_own_way(sandbox: SandboxServer, api: httpx.Client) -> None:
    sandbox.set_order_behaviour("CBA.ASX@TM", reject_after=0)
    sandbox.set_order_behaviour(fills=[[0, None]])
    assert look(api, create(api, securityCode="CBA")) == ("INACTIVE", "CREATE", "DENIED", 0)
    assert look(api, create(api)) == ("INACTIVE", "CREATE", "OK", 100)
    sandbox.reset()
    assert look(api, create(api, securityCode="CBA")) == ("ACTIVE", "CREATE", "OK", 0)


@pytest.mark.parametrize(
    ("lifetime", "fills", "done"),
    [
        ("FillAndKill", [[0, 30], [9, None]], 30),
        ("FillAndKill", [], 0),
        ("FillAndKill", [[0, None]], 100),
        ("FillOrKill", [[0, 30], [9, None]], 0),
        ("FillOrKill", [[0, 30], [0, 70]], 100),
    ],
)
def test_an_order_that_is_filled_at_once_or_ends(
    sandbox: SandboxServer, api: httpx.Client, lifetime: str, fills: list[Any], done: int
) -> None:
    sandbox.set_order_behaviour(fills=fills)
    number = create(api, lifetime=lifetime)
    assert look(api, number) == ("INACTIVE", "CREATE" if done == 100 else "PURGE", "OK", done)


def test_an_order_expires_at_the_close(sandbox: SandboxServer, api: httpx.Client) -> None:
    today = create(api)
    tomorrow = create(api, lifetime="Date", expiryDateTime="2026-03-06T14:00:00")
    sandbox.fill_order(today, 10)
    sandbox.now = THURSDAY.replace(hour=15, minute=59)
    assert look(api, today) == ("ACTIVE", "CREATE", "OK", 10)
    sandbox.now = THURSDAY.replace(hour=16, minute=0)
    assert look(api, today) == ("INACTIVE", "PURGE", "OK", 10)
    after_close = create(api)
    sandbox.now = THURSDAY.replace(day=6, hour=15)
    assert listed(api)[today]["updateDateTime"] == "2026-03-05T16:00:00.000"
    assert look(api, tomorrow) == ("INACTIVE", "PURGE", "OK", 0)
    assert look(api, after_close) == ("ACTIVE", "CREATE", "OK", 0)
    sandbox.now = THURSDAY.replace(day=9)
    assert listed(api)[after_close]["updateDateTime"] == "2026-03-06T16:00:00.000"


def test_an_amendment_changes_when_an_order_expires(sandbox: SandboxServer, api: httpx.Client) -> None:
    number = create(api)
    changes = {"lifetime": "Date", "expiryDateTime": "2026-03-06T14:00:00"}
    assert api.put(f"/oms/orders/{number}/v4", json=changes).status_code == 200
    sandbox.now = THURSDAY.replace(hour=17)
    assert look(api, number) == ("ACTIVE", "AMEND", "OK", 0)


def test_nothing_is_filled_after_an_order_expired(sandbox: SandboxServer, api: httpx.Client) -> None:
    sandbox.set_order_behaviour(fills=[[0.2, None]])
    number = create(api)
    sandbox.now = THURSDAY.replace(hour=16)
    time.sleep(0.2)
    assert look(api, number) == ("INACTIVE", "PURGE", "OK", 0)


def test_orders_that_ended_long_ago_are_not_listed(sandbox: SandboxServer, api: httpx.Client) -> None:
    ended = create(api)
    good = create(api, lifetime="Date", expiryDateTime="2026-03-31T16:00:00")
    sandbox.now = THURSDAY.replace(day=8)
    assert list(listed(api)) == [good, ended]
    sandbox.now = THURSDAY.replace(day=9)
    assert list(listed(api)) == [good]
    assert [order["orderNumber"] for order in sandbox.orders()] == [ended, good]


@pytest.mark.parametrize(("length", "notes"), [(None, "OMABC my notes"), (5, "OMABC"), (0, None)])
def test_notes_come_back_whole_cut_or_not_at_all(
    sandbox: SandboxServer, api: httpx.Client, length: int | None, notes: str | None
) -> None:
    sandbox.set_order_behaviour(notes_length=length)
    number = create(api, notes="OMABC my notes", orderGiver="A")
    assert listed(api)[number]["notes"] == notes
    (order,) = sandbox.orders()
    assert order["notes"] == "OMABC my notes"
    assert order["body"] == LIMIT | {"notes": "OMABC my notes", "orderGiver": "A"}
    assert api.get("/_sandbox/orders").json() == {"orders": sandbox.orders()}


def test_an_order_without_notes(sandbox: SandboxServer, api: httpx.Client) -> None:
    sandbox.set_order_behaviour(notes_length=5)
    without, empty = create(api), create(api, notes="")
    assert [listed(api)[number]["notes"] for number in (without, empty)] == [None, None]


def test_a_cancellation_comes_too_late(sandbox: SandboxServer, api: httpx.Client) -> None:
    sandbox.set_order_behaviour(change_after=LATE)
    number = create(api)
    assert api.delete(f"/oms/orders/{number}/v1").status_code == 200
    assert look(api, number) == ("ACTIVE", "CANCEL", "PENDING", 0)
    assert api.delete(f"/oms/orders/{number}/v1").status_code == 409
    sandbox.fill_order(number, 40)
    assert look(api, number) == ("ACTIVE", "CANCEL", "PENDING", 40)
    sandbox.fill_order(number)
    assert look(api, number) == ("INACTIVE", "CANCEL", "FAILED", 100)


def test_changes_take_effect_late(sandbox: SandboxServer, api: httpx.Client) -> None:
    sandbox.set_order_behaviour(change_after=0.3)
    number = create(api)
    assert api.put(f"/oms/orders/{number}/v4", json={"orderVolume": 50}).status_code == 200
    assert (look(api, number), listed(api)[number]["orderVolume"]) == (("ACTIVE", "AMEND", "PENDING", 0), 100)
    wait_until(lambda: look(api, number) == ("ACTIVE", "AMEND", "OK", 0))
    assert listed(api)[number]["orderVolume"] == 50
    assert api.delete(f"/oms/orders/{number}/v1").status_code == 200
    wait_until(lambda: look(api, number) == ("INACTIVE", "CANCEL", "OK", 0))


def test_an_amendment_to_less_than_was_filled_meanwhile(sandbox: SandboxServer, api: httpx.Client) -> None:
    sandbox.set_order_behaviour(change_after=0.3)
    number = create(api)
    assert api.put(f"/oms/orders/{number}/v4", json={"orderVolume": 50}).status_code == 200
    sandbox.fill_order(number, 60)
    wait_until(lambda: look(api, number) == ("INACTIVE", "AMEND", "OK", 60))
    assert listed(api)[number]["orderVolume"] == 60


def test_a_fill_moves_position_and_cash(sandbox: SandboxServer, api: httpx.Client) -> None:
    before = cash(api)
    assert position(api, "CSL") == {}
    number = create(api, securityCode="CSL", orderPrice=24000)
    assert (position(api, "CSL"), cash(api)) == ({}, before)
    sandbox.fill_order(number, 60)
    sandbox.fill_order(number, price=25000)
    bought = position(api, "CSL")
    names = (
        "volumeStartOfDay",
        "buyVolume",
        "sellVolume",
        "actualVolume",
        "availableVolume",
        "averagePrice",
        "costValue",
    )
    assert [bought[name] for name in names] == [0, 100, 0, 100, 100, 24400, 24400]
    assert bought["totalProfit"] == pytest.approx(bought["marketValue"] - 24400)
    spent = {name: round(before[name] - cash(api)[name], 2) for name in ("cashBalance", "netCash", "freeEquity")}
    assert set(spent.values()) == {24400}
    assert cash(api)["totalNonCfdMarketValue"] == pytest.approx(
        before["totalNonCfdMarketValue"] + bought["marketValue"]
    )

    sandbox.fill_order(create(api, securityCode="CSL", orderPrice=26000, orderVolume=25, side="Sell"))
    sold = position(api, "CSL")
    assert [sold[name] for name in names] == [0, 100, 25, 75, 75, 24400, 18300]
    assert sold["closedProfit"] == 400
    assert round(before["cashBalance"] - cash(api)["cashBalance"], 2) == 24400 - 6500
    sandbox.now += timedelta(days=1)
    assert [position(api, "CSL")[name] for name in names] == [75, 0, 0, 75, 75, 24400, 18300]
    assert position(api, "CSL", "SBX0001Q") == {}


def test_a_short_sale_turns_a_position_around(sandbox: SandboxServer, api: httpx.Client) -> None:
    (held,) = (position(api, code) for code in ("Z0001",))
    volume = held["actualVolume"]
    sell = {"securityCode": "Z0001", "orderPrice": 0.5, "side": "Short", "orderVolume": volume + 40}
    sandbox.fill_order(create(api, **sell))
    sold = position(api, "Z0001")
    names = ("volumeStartOfDay", "sellVolume", "shortSellVolume", "actualVolume", "averagePrice", "costValue")
    assert [sold[name] for name in names] == [volume, volume + 40, volume + 40, -40, 0.5, -20]
    assert sold["closedProfit"] == pytest.approx(volume * 0.5 - held["costValue"])
    sandbox.fill_order(create(api, **sell | {"side": "Buy", "orderPrice": 0.25, "orderVolume": 40}))
    bought = position(api, "Z0001")
    assert [bought[name] for name in names[3:]] == [0, 0, 0]
    assert bought["closedProfit"] == pytest.approx(sold["closedProfit"] + 10)


def test_a_fill_moves_what_a_user_set(sandbox: SandboxServer, api: httpx.Client) -> None:
    sandbox.set_accounts([{"accountCode": "FUND1"}])
    early = create(api, accountCode="FUND1")
    sandbox.fill_order(early, 10)
    assert position(api, portfolio="FUND1")["actualVolume"] == 10
    sandbox.set_positions("FUND1", [{"securityCode": "BHP", "actualVolume": 200, "averagePrice": 4400}])
    sandbox.set_cash("FUND1", [{"cashBalance": 5000.25}])
    assert position(api, portfolio="FUND1")["actualVolume"] == 200
    sandbox.fill_order(early, 20, price=4500)
    moved = position(api, portfolio="FUND1")
    assert (moved["actualVolume"], moved["buyVolume"]) == (220, 20)
    assert moved["averagePrice"] == pytest.approx((200 * 4400 + 20 * 4500) / 220)
    assert cash(api, "FUND1")["cashBalance"] == 4100.25


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"accept_after": -1}, "accept_after must be a number, 0 or more"),
        ({"list_after": None}, "list_after must be a number, 0 or more"),
        ({"reject_after": "soon"}, "reject_after must be a number, 0 or more, or null"),
        ({"fills": [[1]]}, "fills must be a list of [seconds, volume] steps"),
        ({"fills": [[1, 0]]}, "fills must be a list of [seconds, volume] steps"),
        ({"fills": "all"}, "fills must be a list of [seconds, volume] steps"),
        ({"notes_length": -1}, "notes_length must be an integer, 0 or more, or null"),
        ({"note_length": 1}, "unknown: note_length (did you mean notes_length?)"),
        ({"security": "BHP"}, "the sandbox doesn't know the security 'BHP'"),
    ],
)
def test_a_behaviour_that_cannot_be(api: httpx.Client, fields: dict[str, Any], message: str) -> None:
    reply = api.post("/_sandbox/orders/behaviour", json=fields)
    assert (reply.status_code, message in reply.json()["detail"]) == (400, True), reply.text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"volume": 0}, "volume must be an integer above 0, or null"),
        ({"price": 0}, "price must be a number above 0, in native units, or null"),
        ({"prize": 1}, "unknown: prize (did you mean price?)"),
    ],
)
def test_a_fill_that_cannot_be(api: httpx.Client, fields: dict[str, Any], message: str) -> None:
    reply = api.post(f"/_sandbox/orders/{create(api)}/fills", json=fields)
    assert (reply.status_code, message in reply.json()["detail"]) == (400, True), reply.text


def test_only_active_orders_of_clients_are_filled(sandbox: SandboxServer, api: httpx.Client) -> None:
    number = create(api)
    assert api.post(f"/_sandbox/orders/{number}/fills", json={"volume": 200}).status_code == 204
    with pytest.raises(ValueError, match=f"order {number} can't be filled: it is INACTIVE"):
        sandbox.fill_order(number)
    with pytest.raises(ValueError, match="no client has created an order 1001"):
        sandbox.fill_order(1001)


@pytest.fixture
def frequent_switches() -> Iterator[None]:
    """Let threads take turns a thousand times as often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("frequent_switches")
def test_orders_that_threads_create_are_all_kept(sandbox: SandboxServer, api: httpx.Client) -> None:
    sandbox.set_order_behaviour(fills=[[0, 1], [0.01, None]])

    def place(note: int) -> int:
        number = create(api, notes=str(note))
        assert number in [order["orderNumber"] for order in sandbox.orders()]
        return number

    with ThreadPoolExecutor(8) as threads:
        numbers = list(threads.map(place, range(80)))
    assert len(set(numbers)) == 80
    assert sorted(int(order["notes"]) for order in sandbox.orders()) == list(range(80))
    wait_until(lambda: position(api)["buyVolume"] == 8000)
