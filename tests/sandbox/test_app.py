"""What holds for every API: tokens, request ids, errors, counts, news."""

from __future__ import annotations

import asyncio
import json
import logging
import socket

import httpx
import pytest

from openmarkets_provider.sandbox.securities import COMPANIES
from openmarkets_provider.sandbox.server import SandboxServer
from tests.sandbox.conftest import fetch_token

PATHS = {
    "market_data": "/market-data/securities/v1",
    "news": "/news/announcements/v1",
    "oms": "/oms/accounts/v1",
}
SCOPES = {"market_data": "market-data-api", "news": "news-api", "oms": "oms-api"}


@pytest.mark.parametrize("path", PATHS.values())
@pytest.mark.parametrize("header", [None, "Bearer", "Bearer 0123", "Basic 0123"])
def test_without_a_valid_token_an_api_answers_401(anonymous: httpx.Client, path: str, header: str | None) -> None:
    reply = anonymous.get(path, headers={"Authorization": header} if header else {})
    assert (reply.status_code, reply.json()["error"]) == (401, "invalid_token")
    assert reply.headers["www-authenticate"] == 'Bearer error="invalid_token"'


@pytest.mark.parametrize("granted", PATHS)
@pytest.mark.parametrize("asked", PATHS)
def test_each_apis_scope_is_checked_on_its_own(
    openmarkets_sandbox: SandboxServer, anonymous: httpx.Client, granted: str, asked: str
) -> None:
    token = fetch_token(openmarkets_sandbox, SCOPES[granted])
    reply = anonymous.get(PATHS[asked], headers={"Authorization": f"bearer {token}"})
    if granted == asked:
        assert reply.status_code == 200
    else:
        assert (reply.status_code, reply.json()["status"]) == (403, 403)
        assert SCOPES[asked] in reply.json()["detail"]


@pytest.mark.parametrize("api_path", ["market-data", "news", "oms"])
def test_a_user_context_is_never_there(api: httpx.Client, api_path: str) -> None:
    reply = api.post(f"/{api_path}/user-context/any/v1", json={})
    assert reply.status_code == 401
    assert reply.headers["www-authenticate"] == "Bearer"
    assert reply.headers["content-type"] == "application/problem+json"
    assert "user context" in reply.json()["detail"]


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/other",
        "/oms",
        "/oms/other",
        "/oms/accounts/v1/",
        "/oms/orders/x/v4",
        "/identity/other",
        "/_sandbox/x",
    ],
)
def test_unknown_paths_are_problems(api: httpx.Client, path: str) -> None:
    reply = api.get(path)
    assert reply.status_code == 404
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json() == {"type": "about:blank", "title": "Not Found", "status": 404, "detail": "Not Found"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/oms/accounts/v1"),
        ("GET", "/market-data/pricing/quotes/v3"),
        ("PATCH", "/oms/orders/1/v4"),
        ("GET", "/_sandbox/reset"),
    ],
)
def test_wrong_methods_are_problems(api: httpx.Client, method: str, path: str) -> None:
    reply = api.request(method, path)
    assert (reply.status_code, reply.json()["title"]) == (405, "Method Not Allowed")
    assert reply.headers["allow"]


@pytest.mark.parametrize("path", [*PATHS.values(), "/oms/other", "/oms/user-context/x"])
def test_the_request_id_is_echoed(api: httpx.Client, path: str) -> None:
    assert api.get(path, headers={"X-Request-ID": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert "x-request-id" not in api.get(path).headers


def test_news_of_all_or_of_one_security(api: httpx.Client) -> None:
    everything = api.get(PATHS["news"]).json()
    assert len({item["announcementId"] for item in everything}) == len(everything) > 100
    assert {item["priceSensitive"] for item in everything} == {True, False}
    times = [item["announcementDateTime"][:10] for item in everything]
    assert times == sorted(times, reverse=True)
    some = api.get(PATHS["news"], params={"security": "BHP.ASX@TM"}).json()
    assert some == [item for item in everything if item["securityCode"] == "BHP"]
    assert set(some[0]) == {
        "announcementId",
        "securityCode",
        "exchange",
        "headline",
        "announcementDateTime",
        "priceSensitive",
    }


def test_news_are_of_the_real_companies_alone(api: httpx.Client) -> None:
    assert {item["securityCode"] for item in api.get(PATHS["news"]).json()} == set(COMPANIES)
    for security in ("Z0001.ASX@TM", "BHPXY7.ASX@TM"):
        assert api.get(PATHS["news"], params={"security": security}).json() == []


@pytest.mark.parametrize(("security", "status"), [("BHP", 400), ("NOPE.ASX@TM", 404)])
def test_news_of_a_wrong_security(api: httpx.Client, security: str, status: int) -> None:
    assert api.get(PATHS["news"], params={"security": security}).status_code == status


def test_counts(openmarkets_sandbox: SandboxServer, api: httpx.Client) -> None:
    fetch_token(openmarkets_sandbox, "market-data-api")
    fetch_token(openmarkets_sandbox, "market-data-api news-api")
    api.post("/identity/connect/token", data={"scope": "oms-api"})
    api.post("/market-data/pricing/quotes/v3", json={"securities": ["BHP.ASX@TM"]})
    api.get("/market-data/securities/v1", params={"exchanges": "ASX"})
    api.get("/oms/nothing")
    api.get("/nothing")
    counts = {
        "token_requests": {"market-data-api": 2, "news-api": 1, "oms-api": 1},
        "token_requests_total": 3,
        "token_errors": 1,
        "requests": {"market_data": 2, "news": 0, "oms": 1},
        "by_path": {
            "POST /identity/connect/token": 3,
            "POST /market-data/pricing/quotes/v3": 1,
            "GET /market-data/securities/v1": 1,
            "GET /oms/nothing": 1,
            "GET /nothing": 1,
        },
        "by_status": {"200": 4, "401": 1, "404": 2},
        "max_concurrent": 1,
    }
    assert openmarkets_sandbox.stats() == counts
    assert api.get("/_sandbox/stats").json() == counts
    assert api.post("/_sandbox/reset").status_code == 204
    assert api.get("/_sandbox/stats").json() == {
        "token_requests": {},
        "token_requests_total": 0,
        "token_errors": 0,
        "requests": {"market_data": 0, "news": 0, "oms": 0},
        "by_path": {},
        "by_status": {},
        "max_concurrent": 0,
    }
    assert api.get(PATHS["oms"]).status_code == 200


def test_requests_at_one_time_are_counted() -> None:
    async def burst(sandbox: SandboxServer) -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=sandbox.url, trust_env=False) as client:
            return await asyncio.gather(*(client.get("/oms/accounts/v1") for _ in range(5)))

    with SandboxServer(latency=0.5) as sandbox:
        replies = asyncio.run(burst(sandbox))
        assert sandbox.stats()["max_concurrent"] == 5
    assert all(reply.elapsed.total_seconds() >= 0.5 for reply in replies)


def test_the_server_says_what_it_is() -> None:
    with SandboxServer() as sandbox:
        assert sandbox.url.startswith("http://127.0.0.1:")
        assert sandbox.connection == {
            "conn_type": "openmarkets",
            "login": sandbox.client_id,
            "password": sandbox.client_secret,
            "host": f"{sandbox.url}/identity",
            "extra": {
                "environment": "test",
                "market_data_url": f"{sandbox.url}/market-data",
                "news_url": f"{sandbox.url}/news",
                "oms_url": f"{sandbox.url}/oms",
                "orders": "test",
            },
        }
        port = int(sandbox.url.rpartition(":")[2])
        with pytest.raises(OSError, match="in use"), SandboxServer(port=port):
            pass
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_a_kept_connection_is_answered_without_a_pause(api: httpx.Client) -> None:
    # the pause of a server that leaves Nagle's algorithm on is 40 ms
    assert min(api.get(PATHS["oms"]).elapsed.total_seconds() for _ in range(20)) < 0.03


def test_a_server_stops_while_a_request_waits() -> None:
    request = b"GET /oms/accounts/v1 HTTP/1.1\r\nHost: sandbox\r\n\r\n"
    with SandboxServer(latency=3600) as sandbox:
        address = ("127.0.0.1", int(sandbox.url.rpartition(":")[2]))
        connection = socket.create_connection(address, timeout=10)
        connection.sendall(request)
        while not sandbox.stats()["max_concurrent"]:
            pass
    with connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 401")


def test_nothing_secret_is_logged(
    openmarkets_sandbox: SandboxServer, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    token = fetch_token(openmarkets_sandbox)
    httpx.get(f"{openmarkets_sandbox.oms_url}/accounts/v1?a={token}", trust_env=False)
    records = [record for record in caplog.records if record.name.startswith(("uvicorn", "openmarkets"))]
    captured = capfd.readouterr()
    for text in (*map(logging.LogRecord.getMessage, records), captured.out, captured.err):
        assert token not in text
        assert openmarkets_sandbox.client_secret not in text


def test_bodies_that_are_not_json_objects_are_refused(api: httpx.Client) -> None:
    for body in (b"", b"{", b"[]", b"\xff", b'{"securities": NaN}', b"[" * 100_000, json.dumps("x").encode()):
        reply = api.post("/market-data/pricing/quotes/v3", content=body)
        assert (reply.status_code, reply.json()["title"]) == (400, "Bad Request")


def test_a_client_that_leaves_in_the_middle_of_its_request_is_no_error(
    openmarkets_sandbox: SandboxServer, anonymous: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    address = (anonymous.base_url.host, anonymous.base_url.port)
    with socket.create_connection(address) as client:
        client.sendall(b"POST /oms/orders/v4 HTTP/1.1\r\nHost: sandbox\r\nContent-Length: 9\r\n\r\n{")
    # The server has seen the end of the first connection when it answers the next one.
    for _ in range(3):
        assert anonymous.get(PATHS["oms"]).status_code == 401
    assert "Exception" not in caplog.text
