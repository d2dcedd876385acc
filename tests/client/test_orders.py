"""Orders are sent to the sandbox once, and found again: each row of the failure table that needs no Airflow."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from openmarkets_provider import orders, queries
from openmarkets_provider.client.journals import FileJournal, MemoryJournal
from openmarkets_provider.client.order_sending import SEND_WINDOW
from openmarkets_provider.client.orders import Orders
from openmarkets_provider.exceptions import (
    OpenmarketsApiError,
    OpenmarketsError,
    OpenmarketsOrderError,
    OpenmarketsOrderUnknown,
    OpenmarketsRateLimited,
    OpenmarketsTransportError,
)
from openmarkets_provider.order_entry.guards import Limits
from openmarkets_provider.order_entry.instruction import resolve
from openmarkets_provider.order_entry.intent import make_tag
from openmarkets_provider.order_entry.terms import Facts, make_terms
from openmarkets_provider.sandbox.server import SandboxServer
from tests.client.conftest import MakeClient

ACCOUNT = "SBX0001"
ORDER = orders.limit("BHP", account=ACCOUNT, buy=100, price="45.50", notes="rebalance")
TAG = make_tag("intent")


class Killed(BaseException):
    """The process is gone."""


class Clock:
    """A clock that waits at once."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Journal(MemoryJournal):
    """A journal that outlives the tries of a test, and may fail or end a try.

    :ivar entries: what was saved, by key.
    """

    def __init__(self) -> None:
        super().__init__()
        self.on_save: Callable[[str, dict[str, Any]], None] = lambda key, data: None
        self.entries: dict[str, dict[str, Any]] = {}

    def save(self, key: str, data: dict[str, Any]) -> None:
        self.on_save(key, data)
        super().save(key, data)
        self.entries[key] = data

    def state(self) -> str | None:
        """Return the state of the last attempt of the usual intent."""
        states = [data["state"] for key, data in sorted(self.entries.items()) if key.startswith(TAG)]
        return states[-1] if states else None


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def journal() -> Journal:
    return Journal()


@pytest.fixture
def sender(make_client: MakeClient, journal: Journal, clock: Clock) -> Orders:
    return Orders(make_client(), journal, clock=clock, sleep=clock.sleep)


def place(sender: Orders, order: orders.Instruction = ORDER, **kwargs: Any) -> dict[str, Any]:
    return sender.place(order, intent="intent", **kwargs)


def numbers(sandbox: SandboxServer) -> list[str]:
    return [str(order["orderNumber"]) for order in sandbox.orders()]


def sends(sandbox: SandboxServer) -> int:
    return sandbox.stats()["by_path"].get("POST /oms/orders/v4", 0)


# --- one order


def test_what_is_sent_in_native_units_beside_what_was_asked_for_in_dollars(sender, sandbox):
    placed = place(sender)
    (order,) = sandbox.orders()
    assert placed == {"order_number": str(order["orderNumber"]), "tag": TAG, "account": ACCOUNT, "found": False}
    assert order["body"] == {
        "accountCode": ACCOUNT,
        "securityCode": "BHP",
        "exchange": "ASX",
        "destination": "ASX",
        "side": "Buy",
        "orderPrice": 4550,
        "orderVolume": 100,
        "lifetime": "EndOfDay",
        "pricingInstruction": "Limit",
        "notes": f"{TAG} rebalance",
    }


def test_the_same_intent_places_one_order(sender, sandbox):
    first = place(sender)
    assert place(sender) == first | {"found": True}
    assert len(sandbox.orders()) == 1
    sender.place(ORDER, intent=["another", 1])
    assert len(sandbox.orders()) == 2


def test_the_list_is_looked_at_before_the_first_send_too(sender, sandbox, clock):
    first = place(sender)
    again = sender.with_journal(Journal())
    assert place(again) == first | {"found": True}
    assert len(sandbox.orders()) == 1


def test_the_intent_is_stored_before_the_first_byte_leaves(sender, sandbox, journal):
    stored = []
    journal.on_save = lambda key, data: stored.append((data.get("state"), len(sandbox.orders())))
    place(sender)
    assert stored[:2] == [("sending", 0), ("placed", 1)]


def test_other_terms_for_the_same_intent_are_refused_with_the_difference(sender, sandbox):
    place(sender)
    with pytest.raises(OpenmarketsOrderError, match=r"price was 45\.5, and is 46"):
        place(sender, ORDER | {"price": "46"})
    assert len(sandbox.orders()) == 1


def test_another_server_is_another_order(sender, make_client, sandbox, journal):
    place(sender)
    with pytest.raises(OpenmarketsOrderError, match=r"server was .*oms, and is .*oms/"):
        place(Orders(make_client(oms_url=f"{sandbox.oms_url}/../oms/."), journal))


# --- what can go wrong with a send


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "reset"},
        {"kind": "status", "status": 502},
        {"kind": "status", "status": 504},
        {"kind": "status", "status": 408},
        {"kind": "body", "body": ""},
        {"kind": "body", "body": "{}"},
        {"kind": "body", "body": '{"orderNumber": null}'},
        {"kind": "body", "body": "<html>"},
    ],
    ids=str,
)
def test_an_order_whose_reply_is_lost_is_adopted(sender, sandbox, fault):
    sandbox.fault(target="/oms/orders/v4", process_first=True, **fault)
    placed = place(sender)
    assert (placed["found"], [placed["order_number"]]) == (True, numbers(sandbox))
    assert sends(sandbox) == 1


def test_an_order_that_is_listed_late_is_adopted(make_client, sandbox, clock):
    sandbox.set_order_behaviour(list_after=1.0)
    sandbox.fault(target="/oms/orders/v4", kind="status", status=502, process_first=True)
    late = Orders(make_client(), Journal(), clock=clock, sleep=lambda seconds: real_sleep(seconds, clock))
    assert [place(late)["order_number"]] == numbers(sandbox)


def real_sleep(seconds: float, clock: Clock) -> None:
    import time

    time.sleep(min(seconds, 0.6))
    clock.sleep(seconds)


def test_an_order_that_never_arrived_is_absent_and_a_person_is_asked(sender, sandbox, clock, journal):
    sender.place(ORDER, intent="earlier")
    sandbox.fault(target="/oms/orders/v4", kind="reset")
    began = clock.now
    with pytest.raises(OpenmarketsOrderUnknown, match="most likely the order was not placed") as unknown:
        place(sender)
    assert (unknown.value.absent, unknown.value.sent, unknown.value.transient) == (True, True, False)
    assert clock.now - began > SEND_WINDOW
    assert (sends(sandbox), journal.state()) == (2, "absent")
    with pytest.raises(OpenmarketsOrderUnknown):
        place(sender)
    assert sends(sandbox) == 2


def test_an_order_that_never_arrived_is_sent_again_where_the_user_chose_that(sender, sandbox):
    sender.place(ORDER, intent="earlier")
    sandbox.fault(target="/oms/orders/v4", kind="reset")
    placed = place(sender, on_unknown="resend")
    assert placed["order_number"] == numbers(sandbox)[1]
    assert sends(sandbox) == 3


def lose(sender: Orders, sandbox: SandboxServer, **fault: Any) -> None:
    """Place the usual order, so that its outcome is not known."""
    sandbox.fault(target="/oms/orders/v4", kind="reset", **fault)
    with pytest.raises(OpenmarketsOrderUnknown):
        place(sender)


def test_an_order_that_a_person_says_was_not_placed_is_sent_again(sender, sandbox, journal):
    sender.place(ORDER, intent="earlier")
    lose(sender, sandbox)
    sender.resolve(ORDER, "intent", number=None, by="ann", at="2026-11-30T00:00:00Z")
    assert (sends(sandbox), journal.state()) == (2, "ready")
    placed = place(sender)
    assert (placed["found"], [placed["order_number"]]) == (False, numbers(sandbox)[1:])
    assert journal.entries[f"{TAG}-1"]["resolved_by"] == "ann"


def test_an_order_that_a_person_identifies_is_adopted(sender, sandbox):
    sandbox.set_order_behaviour(notes_length=0)
    lose(sender, sandbox, process_first=True)
    other = sender.place(ORDER | {"volume": 7}, intent="other")["order_number"]
    with pytest.raises(OpenmarketsOrderError, match="has other terms"):
        sender.resolve(ORDER, "intent", number=other)
    with pytest.raises(OpenmarketsOrderError, match="has no order 4711"):
        sender.resolve(ORDER, "intent", number="4711")
    sender.resolve(ORDER, "intent", number=numbers(sandbox)[0])
    assert place(sender)["order_number"] == numbers(sandbox)[0]
    assert sends(sandbox) == 2


def test_an_outcome_that_is_known_or_may_still_change_is_no_persons_to_say(make_client, sandbox, clock, journal):
    def dies(seconds: float) -> None:
        raise Killed

    sandbox.fault(target="/oms/orders/v4", kind="reset", process_first=True)
    sandbox.set_order_behaviour(list_after=60)
    client = make_client()
    with pytest.raises(Killed):
        place(Orders(client, journal, clock=clock, sleep=dies))
    sender = Orders(client, journal, clock=clock, sleep=clock.sleep)
    with pytest.raises(OpenmarketsError, match="may still be on its way") as error:
        sender.resolve(ORDER, "intent", number=None)
    assert error.value.transient
    sandbox.set_order_behaviour()
    placed = sender.place(ORDER, intent="other")
    with pytest.raises(OpenmarketsOrderError, match="its state is placed"):
        sender.resolve(ORDER, "other", number=placed["order_number"])


@pytest.mark.parametrize("on_unknown", ["ask", "resend"])
@pytest.mark.parametrize("length", [0, 10])
def test_where_notes_are_not_echoed_look_alikes_are_shown_and_none_is_adopted(sender, sandbox, length, on_unknown):
    sandbox.set_order_behaviour(notes_length=length)
    sandbox.fault(target="/oms/orders/v4", kind="reset", process_first=True)
    with pytest.raises(
        OpenmarketsOrderUnknown, match=r"not known whether the list has tags\. It may be order"
    ) as unknown:
        place(sender, on_unknown=on_unknown)
    assert [each["order_number"] for each in unknown.value.candidates] == numbers(sandbox)
    assert sends(sandbox) == 1


def test_a_list_that_does_not_return_notes_is_remembered_and_said(sender, sandbox, caplog, journal):
    sandbox.set_order_behaviour(notes_length=0)
    with caplog.at_level(logging.WARNING):
        place(sender)
    assert "does not return notes as they were sent" in caplog.text
    assert {"echoed": False} in [{"echoed": data["echoed"]} for data in journal.entries.values() if "echoed" in data]


@pytest.mark.parametrize("status", [400, 403, 404, 409, 422])
def test_a_definitive_refusal_is_raised_and_nothing_is_in_the_market(sender, sandbox, journal, status):
    sandbox.fault(target="/oms/orders/v4", kind="status", status=status, times=2)
    with pytest.raises(OpenmarketsApiError) as refusal:
        place(sender)
    assert (refusal.value.status, refusal.value.transient, journal.state()) == (status, False, "refused")
    assert sandbox.orders() == []


def test_a_401_costs_one_new_token_and_one_more_send(sender, sandbox):
    sandbox.fault(target="/oms/orders/v4", kind="status", status=401)
    place(sender)
    assert (sends(sandbox), len(sandbox.orders())) == (2, 1)


def test_a_429_is_left_to_a_retry_which_looks_at_the_list_first(sender, sandbox, journal):
    sandbox.fault(target="/oms/orders/v4", kind="status", status=429, retry_after=0)
    with pytest.raises(OpenmarketsRateLimited) as limited:
        place(sender)
    assert (limited.value.transient, journal.state()) == (True, "ready")
    looks = list_requests(sandbox)
    place(sender)
    assert (sends(sandbox), len(sandbox.orders())) == (2, 1)
    assert list_requests(sandbox) > looks


def list_requests(sandbox: SandboxServer) -> int:
    return sandbox.stats()["by_path"].get(f"GET /oms/orders/by-account/{ACCOUNT}/v4", 0)


def test_an_order_without_a_token_is_not_sent_and_leaves_no_mark(sender, sandbox, journal):
    place(sender)
    sandbox.revoke_tokens()
    sandbox.fault(target="identity", kind="status", status=400, times=9)
    with pytest.raises(OpenmarketsError) as error:
        sender.place(ORDER, intent="other")
    assert not error.value.sent
    assert journal.load(f"{make_tag('other')}-1") is None


# --- the journal, the list and the clock


def test_the_journal_can_not_be_written_before_the_send(sender, sandbox, journal):
    def fail(key: str, data: dict[str, Any]) -> None:
        raise OpenmarketsError("outage", transient=True)

    journal.on_save = fail
    with pytest.raises(OpenmarketsError, match="outage") as error:
        place(sender)
    assert (error.value.transient, sends(sandbox)) == (True, 0)


def test_a_journal_that_loses_what_is_stored_sends_nothing(sender, sandbox, journal):
    journal.save = lambda key, data: None
    with pytest.raises(OpenmarketsError, match="does not return what was stored") as error:
        place(sender)
    assert (error.value.transient, sends(sandbox)) == (True, 0)


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_around_the_store_of_the_intent(sender, sandbox, journal, when, clock):
    sender.place(ORDER, intent="earlier")

    def kill(key: str, data: dict[str, Any]) -> None:
        if when == "after":
            MemoryJournal.save(journal, key, data)
        raise Killed

    journal.on_save = kill
    with pytest.raises(Killed):
        place(sender)
    journal.on_save = lambda key, data: None
    if when == "before":
        place(sender)
        assert sends(sandbox) == 2
    else:
        with pytest.raises(OpenmarketsOrderUnknown, match="most likely the order was not placed"):
            place(sender)
        assert sends(sandbox) == 1


def test_killed_before_the_number_is_stored(sender, sandbox, journal):
    def kill(key: str, data: dict[str, Any]) -> None:
        if data.get("state") == "placed":
            raise Killed

    journal.on_save = kill
    with pytest.raises(Killed):
        place(sender)
    journal.on_save = lambda key, data: None
    placed = place(sender)
    assert (placed["found"], [placed["order_number"]]) == (True, numbers(sandbox))


def test_an_outage_of_the_journal_after_the_send_does_not_lose_the_number(sender, sandbox, journal):
    def fail(key: str, data: dict[str, Any]) -> None:
        if data.get("state") != "sending":
            raise OpenmarketsError("outage", transient=True)

    journal.on_save = fail
    assert [place(sender)["order_number"]] == numbers(sandbox)


def test_the_list_can_not_be_read(sender, sandbox, journal):
    sandbox.fault(target=f"/oms/orders/by-account/{ACCOUNT}/v4", kind="status", status=400)
    with pytest.raises(OpenmarketsApiError):
        place(sender)
    assert (sends(sandbox), journal.state()) == (0, None)


def test_the_list_can_not_be_read_while_recovering(sender, sandbox, journal):
    sandbox.fault(target="/oms/orders/v4", kind="reset")
    sandbox.fault(target=f"/oms/orders/by-account/{ACCOUNT}/v4", kind="status", status=400, after=1)
    with pytest.raises(OpenmarketsApiError):
        place(sender)
    assert (sends(sandbox), journal.state()) == (1, "unknown")


def test_after_send_before_no_byte_leaves(sender, sandbox, journal, clock):
    def suspend(key: str, data: dict[str, Any]) -> None:
        clock.sleep(SEND_WINDOW)

    journal.on_save = suspend
    with pytest.raises(OpenmarketsError, match="was read more than 30 s ago") as late:
        place(sender)
    assert (late.value.transient, sends(sandbox), journal.state()) == (True, 0, "sending")


def test_an_order_older_than_the_list_is_never_taken_for_absent(sender, sandbox, clock, journal):
    sender.place(ORDER, intent="earlier")
    sandbox.fault(target="/oms/orders/v4", kind="reset")
    with pytest.raises(OpenmarketsOrderUnknown):
        place(sender)
    clock.sleep(3 * 86400)
    with pytest.raises(OpenmarketsOrderUnknown) as unknown:
        place(sender, on_unknown="resend")
    assert not unknown.value.absent
    assert sends(sandbox) == 2


def test_an_earlier_try_of_which_nothing_is_known(sender, sandbox):
    with pytest.raises(OpenmarketsOrderUnknown):
        place(sender, may_have_sent=True)
    assert sends(sandbox) == 0
    placed = sender.place(ORDER, intent="other")
    again = sender.with_journal(Journal())
    assert again.place(ORDER, intent="other", may_have_sent=True)["order_number"] == placed["order_number"]


def test_a_file_journal_outlives_the_process(make_client, sandbox, tmp_path):
    first = place(Orders(make_client(), FileJournal(tmp_path / "orders")))
    assert place(Orders(make_client(), FileJournal(tmp_path / "orders"))) == first | {"found": True}
    assert (tmp_path / "orders").stat().st_mode & 0o777 == 0o700
    (entry,) = (tmp_path / "orders").glob(f"{TAG}-1.json")
    entry.write_text("{")
    with pytest.raises(OpenmarketsError, match="The journal of orders failed") as error:
        place(Orders(make_client(), FileJournal(tmp_path / "orders")))
    assert error.value.transient
    entry.write_text('{"state": "sent"}')
    with pytest.raises(OpenmarketsOrderError, match="no intent that this version reads"):
        place(Orders(make_client(), FileJournal(tmp_path / "orders")))


# --- limits


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"orders": "off"}, "orders.* is off"),
        ({"environment": "production"}, "test environment only"),
        ({"order_accounts": ("SBX0002",)}, "does not allow orders for 'SBX0001'"),
        ({"max_order_value": 4549}, r"max_order_value: the order is worth 4,550\.00 and the limit is 4,549"),
        ({"max_day_value": "4549.99"}, "max_day_value"),
    ],
)
def test_what_the_connection_forbids(make_client, sandbox, settings, words):
    sender = Orders(make_client(**settings), limits=Limits(max_value=Decimal(10**9)))
    with pytest.raises(OpenmarketsOrderError, match=words):
        place(sender)
    assert sends(sandbox) == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"orders": "off"}, "is off"),
        ({"environment": "production"}, "test environment only"),
        ({"max_order_value": 10**9}, "limits the accounts or the value"),
        ({"order_accounts": (ACCOUNT,)}, "limits the accounts or the value"),
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "orders/v4"), ("post", "Orders//v9"), ("PUT", "orders/1/v4"), ("DELETE", "orders/1/v1")],
)
def test_a_request_for_an_order_is_refused_where_the_connection_forbids_or_limits_it(
    make_client, sandbox, settings, words, method, path
):
    client = make_client(**settings)
    query = queries.request("oms", method, path, json={} if method != "DELETE" else None)
    with pytest.raises(OpenmarketsOrderError, match=words):
        client.run(query)
    with pytest.raises(OpenmarketsOrderError, match=words):
        list(client.stream(query))
    with pytest.raises(OpenmarketsOrderError, match=words):
        asyncio.run(client.arun(query))
    with pytest.raises(OpenmarketsOrderError, match=words), client.httpx("oms") as http:
        http.request(method, f"/{path}")
    assert not any("orders" in request for request in sandbox.stats()["by_path"])


def test_a_request_for_an_order_is_sent_with_a_warning_where_nothing_is_limited(make_client, sandbox, caplog):
    body = orders_body()
    assert make_client().run(queries.request("oms", "POST", "orders/v4", json=body))["orderNumber"]
    assert "this call does not check, tag or find orders" in caplog.text


def orders_body() -> dict[str, Any]:
    return make_terms(resolve(ORDER), Facts(Decimal("0.01"))).body("")


def test_the_value_of_a_day_counts_earlier_orders(make_client, sandbox):
    sandbox.set_accounts([{"accountCode": ACCOUNT}])
    sender = Orders(make_client(max_day_value="9100"))
    place(sender)
    sender.place(ORDER, intent="second")
    with pytest.raises(OpenmarketsOrderError, match=r"max_day_value: the orders of account SBX0001 are worth 9,100"):
        sender.place(ORDER, intent="third")
    assert sends(sandbox) == 2


@pytest.mark.parametrize(
    ("order", "limits", "words"),
    [
        (ORDER, Limits(max_value=Decimal(4549)), "max_value"),
        (ORDER, Limits(price_collar=Decimal("0.0001"), max_quote_age=10**9), "price_collar: .* too far"),
        (ORDER, Limits(reduce_only=True), "reduce_only"),
        (
            ORDER | {"volume": 100_000},
            Limits(check_cash="net_cash"),
            "check_cash: net_cash of account SBX0001: the order is worth 4,550,000",
        ),
        (ORDER, Limits(trading_statuses=("HALT",)), "trading_statuses: the trading status of BHP is OPEN"),
        (ORDER | {"price": "45.505"}, Limits(), "price step"),
    ],
)
def test_what_the_author_of_a_task_forbids(make_client, sandbox, order, limits, words):
    with pytest.raises(OpenmarketsOrderError, match=words):
        place(Orders(make_client(), limits=limits), order)
    assert sends(sandbox) == 0


def test_what_the_author_of_a_task_allows(make_client, sandbox):
    limits = Limits(max_value=Decimal(4550), check_cash="net_cash", trading_statuses=("OPEN",))
    place(Orders(make_client(), limits=limits))
    assert sends(sandbox) == 1


def test_a_limit_that_an_earlier_send_has_passed_does_not_keep_the_order_from_being_found(sender, sandbox, make_client):
    sandbox.fault(target="/oms/orders/v4", kind="reset", process_first=True)
    first = Orders(make_client(), Journal())
    placed = place(first)
    assert place(first.with_journal(Journal(), limits=Limits(max_value=Decimal(1)))) == placed


def test_a_preview_sends_nothing(make_client, sandbox):
    sender = Orders(make_client(orders="off"), limits=Limits(price_collar=Decimal(9), max_quote_age=10**9))
    preview = sender.preview(ORDER, "intent")
    assert (preview["value"], preview["native_price"], preview["tag"]) == (Decimal("4550.00"), Decimal(4550), TAG)
    assert preview["body"]["orderPrice"] == 4550
    assert preview["collar"][0] < preview["last_price"] < preview["collar"][1]
    assert sends(sandbox) == 0


def test_an_option_is_valued_by_the_shares_that_its_contracts_stand_for(make_client, sandbox):
    option = orders.limit("BHPXA7", account="SBX0002", buy=2, price="1.20")
    preview = Orders(make_client()).preview(option, "intent")
    # The sandbox's options are priced in dollars.
    assert (preview["value"], preview["body"]["orderPrice"], preview["body"]["orderVolume"]) == (240, 1.2, 2)
    with pytest.raises(OpenmarketsOrderError, match=r"max_value: the order is worth 240\.00 and the limit is 200"):
        place(Orders(make_client(), limits=Limits(max_value=Decimal(200))), option)
    assert sends(sandbox) == 0


# --- amend and cancel


def test_an_amendment_has_absolute_terms_and_keeps_the_others(sender, sandbox):
    number = place(sender)["order_number"]
    amended = sender.amend(orders.amend(number, account=ACCOUNT, volume=150), intent="amend")
    assert (amended["order_volume"], amended["order_price"], amended["outcome"]) == (150, Decimal("45.5"), "working")
    (order,) = sandbox.orders()
    assert (order["orderVolume"], order["orderPrice"], order["notes"]) == (150, 4550, f"{TAG} rebalance")
    requests = sandbox.stats()["by_path"]
    assert sender.amend(orders.amend(number, account=ACCOUNT, volume=150), intent="amend") == amended
    assert sandbox.stats()["by_path"][f"PUT /oms/orders/{number}/v4"] == requests[f"PUT /oms/orders/{number}/v4"] == 1


def test_an_amendment_that_is_repeated_sends_nothing_and_waits_for_nothing(sender, sandbox, clock):
    amendment = orders.amend(place(sender)["order_number"], account=ACCOUNT, volume=50)
    first = sender.amend(amendment, intent="change")
    began = clock.now
    assert sender.amend(amendment, intent="change") == first
    assert (clock.now, sandbox.orders()[0]["orderVolume"]) == (began, 50)


def test_an_amendment_that_was_carried_out_does_not_undo_a_later_one(sender, sandbox):
    number = place(sender)["order_number"]
    change = orders.amend(number, account=ACCOUNT, volume=50)
    sender.amend(change, intent="change")
    sender.amend(orders.amend(number, account=ACCOUNT, volume=60), intent="later")
    assert sender.amend(change, intent="change")["order_volume"] == 60
    assert sandbox.orders()[0]["orderVolume"] == 60


def test_an_amendment_whose_reply_is_lost(sender, sandbox):
    number = place(sender)["order_number"]
    sandbox.fault(target=f"/oms/orders/{number}/v4", kind="reset", process_first=True)
    change = orders.amend(number, account=ACCOUNT, price="45.6")
    with pytest.raises(OpenmarketsTransportError) as error:
        sender.amend(change, intent="amend")
    assert error.value.transient
    assert sender.amend(change, intent="amend")["order_price"] == Decimal("45.6")
    assert sandbox.stats()["by_path"][f"PUT /oms/orders/{number}/v4"] == 1


def test_an_amendment_that_never_arrived_goes_again(sender, sandbox):
    number = place(sender)["order_number"]
    sandbox.fault(target=f"/oms/orders/{number}/v4", kind="reset")
    change = orders.amend(number, account=ACCOUNT, price="45.6")
    with pytest.raises(OpenmarketsTransportError):
        sender.amend(change, intent="amend")
    assert sender.amend(change, intent="amend")["order_price"] == Decimal("45.6")


def test_an_amendment_that_someone_else_crossed_asks(sender, sandbox):
    number = place(sender)["order_number"]
    sandbox.fault(target=f"/oms/orders/{number}/v4", kind="reset")
    change = orders.amend(number, account=ACCOUNT, price="45.6")
    with pytest.raises(OpenmarketsTransportError):
        sender.amend(change, intent="amend")
    sender.amend(orders.amend(number, account=ACCOUNT, price="45.7"), intent="other")
    with pytest.raises(OpenmarketsOrderUnknown, match="neither as it was before nor as it should be"):
        sender.amend(change, intent="amend")


def test_a_cancellation_can_be_repeated_and_too_late_is_an_outcome(sender, sandbox):
    number = place(sender)["order_number"]
    cancel = orders.cancel(number, account=ACCOUNT)
    assert sender.cancel(cancel)["outcome"] == "cancelled"
    assert sender.cancel(cancel)["outcome"] == "cancelled"
    assert sandbox.stats()["by_path"][f"DELETE /oms/orders/{number}/v1"] == 1
    sandbox.set_order_behaviour(fills=[[0, None]])
    filled = sender.place(ORDER, intent="filled")["order_number"]
    assert sender.cancel(orders.cancel(filled, account=ACCOUNT))["outcome"] == "filled"
    with pytest.raises(OpenmarketsOrderError, match=r"can't be amended: order .* filled, 100 done"):
        sender.amend(orders.amend(filled, account=ACCOUNT, volume=200), intent="amend")


@pytest.mark.parametrize("fault", [{"kind": "reset"}, {"kind": "status", "status": 503}], ids=str)
def test_a_cancellation_without_a_reply(sender, sandbox, fault):
    number = place(sender)["order_number"]
    cancel = orders.cancel(number, account=ACCOUNT)
    sandbox.fault(target=f"/oms/orders/{number}/v1", **fault)
    with pytest.raises(OpenmarketsError) as error:
        sender.cancel(cancel)
    assert error.value.transient
    sandbox.fault(target=f"/oms/orders/{number}/v1", process_first=True, **fault)
    assert sender.cancel(cancel)["outcome"] == "cancelled"


def test_an_order_of_another_account_is_left_alone(sender, sandbox):
    number = place(sender)["order_number"]
    with pytest.raises(OpenmarketsOrderError, match=f"account SBX0002 has no order {number}"):
        sender.cancel(orders.cancel(number, account="SBX0002"))
    with pytest.raises(OpenmarketsOrderError, match="expected an instruction to place, got one to cancel"):
        place(sender, orders.cancel(number, account=ACCOUNT))
