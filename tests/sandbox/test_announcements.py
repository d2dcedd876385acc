"""Announcements that a user publishes, over HTTP and from Python."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from openmarkets_provider.sandbox.server import SandboxServer

NEWS = "/news/announcements/v1"
BHP = "BHP.ASX@TM"


def news(api: httpx.Client, **params: str) -> list[dict[str, Any]]:
    return list(api.get(NEWS, params=params).raise_for_status().json())


def test_published_ones_come_first_the_newest_before_all(api: httpx.Client, openmarkets_sandbox: SandboxServer) -> None:
    before = news(api, security=BHP)
    reply = api.post("/_sandbox/announcements", json={"security": BHP, "headline": "One", "priceSensitive": True})
    assert reply.status_code == 201
    first = reply.json()
    assert (first["securityCode"], first["headline"], first["priceSensitive"]) == ("BHP", "One", True)
    second = openmarkets_sandbox.publish("CBA.ASX@TM")
    assert (second["headline"], second["priceSensitive"]) == ("Published announcement for CBA", False)
    assert news(api, security=BHP) == [first, *before]
    everything = news(api)
    assert everything[:2] == [second, first]
    assert first.keys() == everything[-1].keys()
    assert len({item["announcementId"] for item in everything}) == len(everything)


def test_a_reset_takes_them_away_and_no_id_comes_twice(api: httpx.Client, openmarkets_sandbox: SandboxServer) -> None:
    before = news(api)
    first = openmarkets_sandbox.publish(BHP)
    api.post("/_sandbox/reset")
    assert news(api) == before
    assert openmarkets_sandbox.publish(BHP)["announcementId"] != first["announcementId"]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "security must be a company that the sandbox knows, like BHP.ASX@TM; it is None"),
        ({"security": "BHP"}, "security must be a company"),
        ({"security": "Z0001.ASX@TM"}, "security must be a company"),
        ({"security": 1}, "security must be a company"),
        ({"security": BHP, "headline": 1}, "headline must be a string"),
        ({"security": BHP, "priceSensitive": "yes"}, "priceSensitive must be true or false"),
        ({"security": BHP, "title": "x"}, "unknown: title; allowed: security, headline, priceSensitive"),
    ],
)
def test_what_is_wrong_is_told(
    api: httpx.Client, openmarkets_sandbox: SandboxServer, fields: dict[str, Any], says: str
) -> None:
    reply = api.post("/_sandbox/announcements", json=fields)
    assert reply.status_code == 400
    assert reply.json()["detail"].startswith(says)
    if "security" in fields:
        with pytest.raises(ValueError, match=r"must be|unknown"):
            openmarkets_sandbox.publish(**fields)
