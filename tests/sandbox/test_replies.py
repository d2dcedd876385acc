"""Canned replies, over HTTP and from Python."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

from openmarkets_provider import queries
from openmarkets_provider.exceptions import OpenmarketsInvalidResponse
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
from openmarkets_provider.sandbox.server import SandboxServer

HEADLINES, ACCOUNTS = "/news/headlines/v1", "/oms/accounts/v1"


def test_a_reply_to_a_path_that_the_sandbox_lacks(openmarkets_sandbox: SandboxServer) -> None:
    openmarkets_sandbox.reply("GET", HEADLINES, body=[{"id": 1}])
    query = queries.request("news", "GET", "headlines/v1", params={"page": 2})
    assert OpenmarketsHook().run(query) == OpenmarketsHook().run(query) == [{"id": 1}]


def test_a_reply_in_place_of_an_endpoint_for_its_method_alone(
    openmarkets_sandbox: SandboxServer, api: httpx.Client
) -> None:
    openmarkets_sandbox.reply("GET", ACCOUNTS, body='{"broken', status=201, headers={"X-Page": "2"}, times=1)
    assert api.post(ACCOUNTS).status_code == 405
    reply = api.get(ACCOUNTS, params={"a": 1}, headers={"X-Request-ID": "abc"})
    assert (reply.status_code, reply.text) == (201, '{"broken')
    assert reply.headers["content-type"] == "application/json"
    assert (reply.headers["x-page"], reply.headers["x-request-id"]) == ("2", "abc")
    assert len(api.get(ACCOUNTS).json()) == 3
    assert openmarkets_sandbox.stats()["by_status"] == {"405": 1, "201": 1, "200": 1}


def test_a_malformed_reply_reaches_the_hook(openmarkets_sandbox: SandboxServer) -> None:
    openmarkets_sandbox.reply("GET", ACCOUNTS, body="<html>", headers={"Content-Type": "text/html"})
    with pytest.raises(OpenmarketsInvalidResponse):
        OpenmarketsHook().run(queries.accounts())


def test_replies_queue_up_and_one_for_good_is_replaced_by_the_next(
    openmarkets_sandbox: SandboxServer, api: httpx.Client
) -> None:
    def answers(count: int) -> list[Any]:
        return [api.get(HEADLINES).json() for _ in range(count)]

    openmarkets_sandbox.reply("GET", HEADLINES, body=1, times=2)
    openmarkets_sandbox.reply("GET", HEADLINES, body=2)
    openmarkets_sandbox.reply("GET", "/news/other", body=5)
    assert answers(4) == [1, 1, 2, 2]
    openmarkets_sandbox.reply("GET", HEADLINES, body=3)
    assert answers(2) == [3, 3]
    openmarkets_sandbox.reply("GET", HEADLINES, body=4, times=1)
    assert answers(1) == [4]
    assert api.get(HEADLINES).status_code == 404
    assert api.get("/news/other").json() == 5
    openmarkets_sandbox.reset()
    assert api.get("/news/other").status_code == 404


def test_a_token_is_needed_and_faults_act(openmarkets_sandbox: SandboxServer, api: httpx.Client) -> None:
    openmarkets_sandbox.reply("GET", HEADLINES, body=[])
    openmarkets_sandbox.fault(target="news", kind="status", status=503)
    assert [api.get(HEADLINES).status_code for _ in range(2)] == [503, 200]
    assert api.get(HEADLINES, headers={"Authorization": ""}).status_code == 401
    assert api.get("/news/user-context/x").status_code == 401


def test_a_reply_of_the_identity_server_needs_no_token(
    openmarkets_sandbox: SandboxServer, anonymous: httpx.Client
) -> None:
    openmarkets_sandbox.reply("POST", "/identity/connect/token", body={"access_token": ""}, status=299)
    reply = anonymous.post("/identity/connect/token")
    assert (reply.status_code, reply.json()) == (299, {"access_token": ""})


def test_a_reply_may_be_empty(openmarkets_sandbox: SandboxServer, api: httpx.Client) -> None:
    openmarkets_sandbox.reply("PUT", "/oms/a", status=202)
    openmarkets_sandbox.reply("PUT", "/oms/b", status=204, body="left out")
    assert [(reply.status_code, reply.content) for reply in map(api.put, ("/oms/a", "/oms/b"))] == [
        (202, b""),
        (204, b""),
    ]


def test_it_is_set_over_http_too(api: httpx.Client) -> None:
    assert api.post("/_sandbox/replies", json={"method": "GET", "path": HEADLINES, "body": None}).status_code == 204
    assert api.get(HEADLINES).content == b"null"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"method": "GET"}, "a reply needs a method and a path"),
        ({"method": "GET", "path": HEADLINES, "code": 5}, "unknown: code; allowed: method, path, body, status"),
        ({"method": "GET", "path": HEADLINES, "Status": 5}, "unknown: Status (did you mean status?)"),
        ({"method": "get", "path": HEADLINES}, "method must be one of GET, POST, PUT, PATCH, DELETE"),
        ({"method": "GET", "path": "headlines/v1"}, "path must start with /identity, /market-data, /news, /oms"),
        ({"method": "GET", "path": "/newspaper/v1"}, "path must start with"),
        ({"method": "GET", "path": f"{HEADLINES}?page=1"}, "have no query string; it is '/news/headlines/v1?page=1'"),
        ({"method": "GET", "path": HEADLINES, "times": 0}, "times must be an integer above 0"),
        ({"method": "GET", "path": HEADLINES, "status": 100}, "status must be an integer from 200 to 599"),
        ({"method": "GET", "path": HEADLINES, "headers": {"a b": "c"}}, "isn't a valid header name"),
    ],
)
def test_wrong_replies_are_refused_in_both_ways(
    openmarkets_sandbox: SandboxServer, anonymous: httpx.Client, fields: dict[str, Any], words: str
) -> None:
    reply = anonymous.post("/_sandbox/replies", json=fields)
    assert reply.status_code == 400
    assert words in reply.json()["detail"]
    if {"method", "path"} <= fields.keys():
        with pytest.raises(ValueError, match=re.escape(words)):
            openmarkets_sandbox.reply(**fields)
