"""Faults and overridden quotes, over HTTP and from Python."""

from __future__ import annotations

import re
import time
from typing import Any

import httpx
import pytest

from openmarkets_provider.sandbox.server import SandboxServer
from tests.sandbox.conftest import fetch_token

ACCOUNTS = "/oms/accounts/v1"
QUOTES = "/market-data/pricing/quotes/v3"
BHP = "BHP.ASX@TM"


def add(api: httpx.Client, **fields: Any) -> dict[str, Any]:
    reply = api.post("/_sandbox/faults", json=fields)
    assert reply.status_code == 201, reply.text
    return dict(reply.json())


def statuses(api: httpx.Client, count: int, path: str = ACCOUNTS) -> list[int]:
    return [api.get(path).status_code for _ in range(count)]


def quote(api: httpx.Client) -> dict[str, Any]:
    (found,) = api.post(QUOTES, json={"securities": [BHP]}).json()["quotes"]
    return dict(found)


def test_a_status_with_a_wait(api: httpx.Client) -> None:
    fault = add(api, target="oms", kind="status", status=429, retry_after=5)
    expected = {
        "target": "oms",
        "kind": "status",
        "times": 1,
        "after": 0,
        "seconds": 0,
        "probability": 1,
        "seed": 0,
        "process_first": False,
        "status": 429,
        "retry_after": 5,
        "body": None,
        "headers": {},
    }
    assert fault == expected
    assert api.get("/_sandbox/faults").json() == {"faults": [expected]}
    reply = api.get(ACCOUNTS, headers={"X-Request-ID": "abc"})
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "5")
    assert (reply.json()["title"], reply.headers["x-request-id"]) == ("Too Many Requests", "abc")
    assert api.get(ACCOUNTS).status_code == 200
    assert api.get("/_sandbox/faults").json() == {"faults": []}
    assert api.get("/_sandbox/stats").json()["by_status"] == {"429": 1, "200": 1}


def test_a_status_with_its_own_answer(api: httpx.Client) -> None:
    date = "Wed, 21 Oct 2026 07:28:00 GMT"
    add(api, target="oms", kind="status", status=503, retry_after=date, body={"message": "later"})
    reply = api.get(ACCOUNTS)
    assert (reply.status_code, reply.headers["retry-after"]) == (503, date)
    assert (reply.json(), reply.headers["content-type"]) == ({"message": "later"}, "application/json")
    add(api, target="oms", kind="status", status=302, body="", headers={"Location": "http://127.0.0.1:1/"})
    reply = api.get(ACCOUNTS)
    assert (reply.status_code, reply.headers["location"], reply.content) == (302, "http://127.0.0.1:1/", b"")
    add(api, target="oms", kind="status", status=204, body="ignored")
    assert api.get(ACCOUNTS).content == b""
    add(api, target="oms", kind="status", status=599)
    assert api.get(ACCOUNTS).json()["title"] == "Error"


def test_times_and_after(api: httpx.Client) -> None:
    add(api, target="oms", kind="status", status=500, times=2, after=1)
    assert statuses(api, 5) == [200, 500, 500, 200, 200]
    add(api, target="oms", kind="status", status=500, times=None)
    assert statuses(api, 4) == [500] * 4
    assert api.delete("/_sandbox/faults").status_code == 204
    assert statuses(api, 1) == [200]
    add(api, target="oms", kind="status", status=500, times=None)
    api.post("/_sandbox/reset")
    assert statuses(api, 1) == [200]


def test_faults_queue_up(api: httpx.Client) -> None:
    add(api, target="oms", kind="status", status=500)
    add(api, target="oms", kind="status", status=502, after=1)
    add(api, target="/oms/accounts", kind="status", status=503, after=1)
    assert statuses(api, 4) == [500, 502, 503, 200]


@pytest.mark.parametrize(
    ("target", "hit"),
    [
        ("market_data", [200, 200, 500]),
        ("news", [200, 500, 200]),
        ("/oms/accounts", [500, 200, 200]),
        ("/oms/orders", [200, 200, 200]),
        ("/market-data", [200, 200, 500]),
    ],
)
def test_targets(api: httpx.Client, target: str, hit: list[int]) -> None:
    add(api, target=target, kind="status", status=500)
    paths = (ACCOUNTS, "/news/announcements/v1", "/market-data/securities/v1")
    assert [api.get(path).status_code for path in paths] == hit


def test_the_identity_server_fails_too(openmarkets_sandbox: SandboxServer, api: httpx.Client) -> None:
    add(api, target="identity", kind="status", status=400, body={"error": "unauthorized_client"})
    with pytest.raises(httpx.HTTPStatusError, match="400"):
        fetch_token(openmarkets_sandbox, "news-api")
    add(api, target="identity", kind="reset")
    with pytest.raises(httpx.TransportError):
        fetch_token(openmarkets_sandbox, "news-api")
    counts = openmarkets_sandbox.stats()
    assert (counts["token_requests"], counts["token_errors"]) == ({"news-api": 2}, 2)


def test_a_delay_is_followed_by_the_answer(api: httpx.Client) -> None:
    add(api, target="oms", kind="delay", seconds=0.4)
    start = time.monotonic()
    assert api.get(ACCOUNTS).status_code == 200
    assert time.monotonic() - start >= 0.4
    add(api, target="oms", kind="status", status=503, seconds=0.4)
    start = time.monotonic()
    assert api.get(ACCOUNTS).status_code == 503
    assert time.monotonic() - start >= 0.4


def test_a_client_that_gave_up_has_its_request_served(openmarkets_sandbox: SandboxServer, api: httpx.Client) -> None:
    add(api, target="oms", kind="delay", seconds=0.4)
    with pytest.raises(httpx.ReadTimeout):
        api.get(ACCOUNTS, timeout=0.1)
    deadline = time.monotonic() + 10
    while openmarkets_sandbox.stats()["by_status"] != {"200": 1}:
        assert time.monotonic() < deadline


def test_a_reset_cuts_the_connection(
    openmarkets_sandbox: SandboxServer, api: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    add(api, target="oms", kind="reset", times=2)
    with pytest.raises(httpx.ReadError):
        api.get(ACCOUNTS)
    with pytest.raises(httpx.ReadError):
        api.post("/oms/orders/v4", json={"notes": "x" * 100_000})
    assert statuses(api, 1) == [200]
    assert openmarkets_sandbox.stats()["by_status"] == {"reset": 2, "200": 1}
    assert not [record for record in caplog.records if record.name.startswith("uvicorn")]


def test_a_reset_after_the_client_gave_up_is_quiet(
    openmarkets_sandbox: SandboxServer, api: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    add(api, target="oms", kind="reset", seconds=0.4)
    with pytest.raises(httpx.ReadTimeout):
        api.get(ACCOUNTS, timeout=0.1)
    deadline = time.monotonic() + 10
    while openmarkets_sandbox.stats()["by_status"] != {"reset": 1}:
        assert time.monotonic() < deadline
    assert statuses(api, 1) == [200]
    assert not [record for record in caplog.records if record.name.startswith("uvicorn")]


def test_a_reset_may_come_in_the_middle_of_an_answer(api: httpx.Client) -> None:
    add(api, target="oms", kind="reset", body='[{"accountCode": ')
    with api.stream("GET", ACCOUNTS) as reply:
        assert reply.status_code == 200
        with pytest.raises(httpx.ReadError):
            reply.read()
    assert statuses(api, 1) == [200]


@pytest.mark.parametrize(
    ("body", "content"),
    [
        ("<html>maintenance</html>", b"<html>maintenance</html>"),
        ('{"quotes": [', b'{"quotes": ['),
        ("", b""),
        (None, b"null"),
        ([1, "é"], b'[1, "\\u00e9"]'),
    ],
)
def test_a_body_replaces_the_answer(api: httpx.Client, body: object, content: bytes) -> None:
    add(api, target="oms", kind="body", body=body)
    reply = api.get(ACCOUNTS)
    assert (reply.status_code, reply.content) == (200, content)
    assert reply.headers["content-type"] == "application/json"


def test_a_bodys_headers(api: httpx.Client) -> None:
    add(api, target="oms", kind="body", body="<p>", headers={"content-type": "text/html", "X-Request-ID": "1"})
    reply = api.get(ACCOUNTS, headers={"X-Request-ID": "2"})
    assert (reply.headers["content-type"], reply.headers["x-request-id"]) == ("text/html", "1")


def test_revoked_tokens_are_no_longer_good(openmarkets_sandbox: SandboxServer, api: httpx.Client) -> None:
    assert statuses(api, 1) == [200]
    revoked = add(api, kind="revoke_tokens")
    assert revoked["kind"] == "revoke_tokens"
    assert revoked["revoked"] >= 1
    assert statuses(api, 1) == [401]
    api.headers["Authorization"] = f"Bearer {fetch_token(openmarkets_sandbox)}"
    assert statuses(api, 1) == [200]
    assert openmarkets_sandbox.revoke_tokens() == 1
    assert statuses(api, 1) == [401]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "kind must be one of status, body, delay, reset, revoke_tokens"),
        ({"kind": "explode", "target": "oms"}, "kind must be one of"),
        ({"kind": ["status"]}, "kind must be one of"),
        (
            {"kind": "status", "target": "oms", "statuss": 5},
            "unknown for kind status: statuss (did you mean status?); allowed: target",
        ),
        ({"kind": "delay", "target": "oms", "seconds": 1, "status": 500}, "unknown for kind delay: status"),
        ({"kind": "revoke_tokens", "target": "oms"}, "unknown for kind revoke_tokens"),
        ({"kind": "status", "target": "oms"}, "needs status"),
        ({"kind": "delay", "target": "oms"}, "needs seconds"),
        ({"kind": "body", "target": "oms"}, "needs body"),
        ({"kind": "reset"}, "target must be one of identity, market_data, news, oms"),
        ({"kind": "reset", "target": "/other"}, "target"),
        ({"kind": "reset", "target": ["oms"]}, "target"),
        ({"kind": "reset", "target": "oms", "times": 0}, "times"),
        ({"kind": "reset", "target": "oms", "times": True}, "times"),
        ({"kind": "reset", "target": "oms", "after": -1}, "after"),
        ({"kind": "delay", "target": "oms", "seconds": "1"}, "seconds"),
        ({"kind": "delay", "target": "oms", "seconds": -1}, "seconds"),
        ({"kind": "delay", "target": "oms", "seconds": True}, "seconds"),
        ({"kind": "status", "target": "oms", "status": 199}, "status"),
        ({"kind": "status", "target": "oms", "status": 600}, "status"),
        ({"kind": "status", "target": "oms", "status": 429, "retry_after": -1}, "retry_after"),
        ({"kind": "status", "target": "oms", "status": 429, "retry_after": "a\nb"}, "retry_after"),
        ({"kind": "body", "target": "oms", "body": "", "headers": []}, "headers"),
        ({"kind": "body", "target": "oms", "body": "", "headers": {"a b": "c"}}, "isn't a valid header name"),
        ({"kind": "body", "target": "oms", "body": "", "headers": {"a": "c\r\n"}}, "can't be sent"),
        ({"kind": "body", "target": "oms", "body": "", "headers": {"a": 1}}, "can't be sent"),
        ({"kind": "body", "target": "oms", "body": "", "headers": {"Content-Length": "1"}}, "the server sets"),
    ],
)
def test_wrong_faults_are_refused_in_both_ways(
    openmarkets_sandbox: SandboxServer, anonymous: httpx.Client, fields: dict[str, Any], words: str
) -> None:
    reply = anonymous.post("/_sandbox/faults", json=fields)
    assert reply.status_code == 400
    assert words in reply.json()["detail"]
    with pytest.raises(ValueError, match=re.escape(words.split(":")[0])):
        openmarkets_sandbox.fault(**fields)
    assert anonymous.get("/_sandbox/faults").json() == {"faults": []}


def test_python_adds_faults_too(openmarkets_sandbox: SandboxServer, api: httpx.Client) -> None:
    fault = openmarkets_sandbox.fault(target="/oms/accounts/v1", kind="status", status=500, times=None)
    assert api.get("/_sandbox/faults").json() == {"faults": [fault]}
    assert statuses(api, 2) == [500, 500]
    openmarkets_sandbox.reset()
    assert statuses(api, 1) == [200]


def test_a_quote_is_overridden_until_it_is_changed(openmarkets_sandbox: SandboxServer, api: httpx.Client) -> None:
    assert quote(api)["tradingStatus"] == "OPEN"
    reply = api.post(f"/_sandbox/securities/{BHP}", json={"tradingStatus": "PRE_OPEN"})
    assert (reply.status_code, reply.json()) == (200, {"tradingStatus": "PRE_OPEN"})
    reply = api.post(f"/_sandbox/securities/{BHP}", json={"lastPrice": 4512.5, "askPrice": None})
    assert reply.json() == {"tradingStatus": "PRE_OPEN", "lastPrice": 4512.5, "askPrice": None}
    found = quote(api)
    assert (found["tradingStatus"], found["lastPrice"], found["askPrice"]) == ("PRE_OPEN", 4512.5, None)
    openmarkets_sandbox.set_security(BHP, tradingStatus="HALT")
    assert quote(api)["tradingStatus"] == "HALT"
    api.post("/_sandbox/reset")
    assert quote(api)["tradingStatus"] == "OPEN"


def test_a_status_moves_by_a_schedule(openmarkets_sandbox: SandboxServer, api: httpx.Client) -> None:
    schedule = [["PRE_OPEN", 3600], ["OPEN", None]]
    api.post(f"/_sandbox/securities/{BHP}", json={"tradingStatus": schedule})
    assert quote(api)["tradingStatus"] == "PRE_OPEN"
    openmarkets_sandbox.set_security(BHP, tradingStatus=[("A", 0), ("B", 3600), ("C", None)])
    assert quote(api)["tradingStatus"] == "B"
    start = time.monotonic()
    openmarkets_sandbox.set_security(BHP, tradingStatus=[["PRE_OPEN", 0.5], ["OPEN", None]])
    while quote(api)["tradingStatus"] == "PRE_OPEN":
        assert time.monotonic() < start + 10
    assert time.monotonic() >= start + 0.5


@pytest.mark.parametrize(
    ("security", "fields", "words"),
    [
        ("NOPE.ASX@TM", {}, "doesn't know the security"),
        ("BHP", {}, "doesn't know the security"),
        (BHP, {"tradingstatus": "OPEN"}, "unknown: tradingstatus (did you mean tradingStatus?); allowed: askCount"),
        (BHP, {"securityCode": "CBA"}, "unknown: securityCode"),
        (BHP, {"tradingStatus": {"now": "OPEN"}}, "tradingStatus must be"),
        (BHP, {"tradingStatus": []}, "tradingStatus must be"),
        (BHP, {"tradingStatus": ["PRE_OPEN", "OPEN"]}, "tradingStatus must be"),
        (BHP, {"tradingStatus": [["PRE_OPEN", 5]]}, "tradingStatus must be"),
        (BHP, {"tradingStatus": [["PRE_OPEN", None], ["OPEN", None]]}, "tradingStatus must be"),
        (BHP, {"tradingStatus": [["PRE_OPEN", -1], ["OPEN", None]]}, "tradingStatus must be"),
        (BHP, {"tradingStatus": [["PRE_OPEN", True], ["OPEN", None]]}, "tradingStatus must be"),
        (BHP, {"tradingStatus": [["PRE_OPEN", 1, 2], ["OPEN", None]]}, "tradingStatus must be"),
        (BHP, {"tradingStatus": [[["PRE_OPEN"], 1], ["OPEN", None]]}, "tradingStatus must be"),
    ],
)
def test_wrong_overrides_are_refused_in_both_ways(
    openmarkets_sandbox: SandboxServer,
    anonymous: httpx.Client,
    security: str,
    fields: dict[str, Any],
    words: str,
) -> None:
    reply = anonymous.post(f"/_sandbox/securities/{security}", json=fields)
    assert reply.status_code == 400
    assert words in reply.json()["detail"]
    with pytest.raises(ValueError, match=re.escape(words)):
        openmarkets_sandbox.set_security(security, **fields)


def test_a_number_that_json_cannot_say_is_refused(openmarkets_sandbox: SandboxServer) -> None:
    with pytest.raises(ValueError, match="lastPrice must be"):
        openmarkets_sandbox.set_security(BHP, lastPrice=float("nan"))
    assert openmarkets_sandbox.stats()["by_path"] == {}


def failures(api: httpx.Client, requests: list[str]) -> list[int]:
    """Send requests after a reset, with failures by chance of each kind, and return the statuses; 0 is a cut."""
    api.post("/_sandbox/reset")
    for status, probability in ((408, 0.1), (429, 0.1), (503, 0.2)):
        add(api, target="oms", kind="status", status=status, probability=probability, seed=7)
    add(api, target="oms", kind="reset", probability=0.1, seed=7)
    found = []
    for request in requests:
        try:
            found.append(api.get(request).status_code)
        except httpx.ReadError:
            found.append(0)
    return found


def test_failures_by_chance_are_the_same_again(api: httpx.Client) -> None:
    first = failures(api, [ACCOUNTS] * 200)
    assert failures(api, [ACCOUNTS] * 200) == first
    counts = {status: first.count(status) for status in set(first)}
    # about what was asked for: those that came first go before, and each is within three deviations
    assert set(counts) == {200, 408, 429, 503, 0}
    assert abs(counts[408] - 20) < 13
    assert abs(counts[503] - 200 * 0.9 * 0.9 * 0.2) < 17


def test_failures_by_chance_do_not_depend_on_other_requests(api: httpx.Client) -> None:
    links = "/oms/accounts/portfoliolinks/v1"
    alone = failures(api, [ACCOUNTS] * 50)
    mixed = failures(api, [links, ACCOUNTS] * 50)
    assert mixed[1::2] == alone
    assert mixed[0::2] == failures(api, [links] * 50) != alone
    assert failures(api, [f"{ACCOUNTS}?page=2"] * 50) != alone


def test_another_seed_fails_others(api: httpx.Client) -> None:
    def failed(seed: int) -> list[int]:
        api.post("/_sandbox/reset")
        add(api, target="oms", kind="status", status=500, probability=0.5, seed=seed)
        return statuses(api, 50)

    assert failed(1) == failed(1) != failed(2)


def test_a_probability_makes_a_fault_stay_unless_it_has_times(api: httpx.Client) -> None:
    assert add(api, target="oms", kind="status", status=500, probability=1)["times"] is None
    assert statuses(api, 3) == [500, 500, 500]
    api.post("/_sandbox/reset")
    add(api, target="oms", kind="status", status=500, probability=0.5, times=2, after=1)
    found = statuses(api, 30)
    assert (found[0], found.count(500)) == (200, 2)
    api.post("/_sandbox/reset")
    add(api, target="oms", kind="status", status=500, probability=0)
    assert statuses(api, 5) == [200] * 5


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"probability": 1.1}, "probability must be a number from 0 to 1"),
        ({"probability": "1"}, "probability must be a number from 0 to 1"),
        ({"probability": True}, "probability must be a number from 0 to 1"),
        ({"seconds": 10**400}, "seconds must be a number, 0 or more"),
        ({"seed": 0.5}, "seed must be an integer"),
        ({"propability": 1}, "unknown for kind reset: propability (did you mean probability?)"),
    ],
)
def test_wrong_chances_are_refused(openmarkets_sandbox: SandboxServer, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        openmarkets_sandbox.fault(target="oms", kind="reset", **fields)
