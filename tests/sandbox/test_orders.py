"""Orders from their creation to their end, and answers that a client never gets, over HTTP and from Python."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from openmarkets_provider.sandbox.server import SandboxServer

ACCOUNT = "SBX0001"
CREATE = "/oms/orders/v4"
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
