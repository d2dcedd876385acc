"""Replies: of the identity server and of every query, headers and all."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from openmarkets_provider.client.auth.token_request import read_token_reply
from openmarkets_provider.client.client import OpenmarketsClient, _BlockingIo
from openmarkets_provider.client.exchange import MAX_WAIT, Received, pause
from openmarkets_provider.client.http.replies import MAX_RETRY_AFTER, read_reply, retry_after
from openmarkets_provider.client.io import iterate_blocking
from openmarkets_provider.client.run import Run
from openmarkets_provider.client.settings import Settings
from openmarkets_provider.conditions import Evaluator
from openmarkets_provider.exceptions import OpenmarketsError, OpenmarketsQueryError
from openmarkets_provider.query.adjust import METHODS
from openmarkets_provider.query.endpoints import ENDPOINTS
from openmarkets_provider.query.plan import ApiCall
from openmarkets_provider.query.query import Query
from openmarkets_provider.sandbox.server import SandboxServer
from tests.fuzz.bounds import SHORT, bounded, check_error
from tests.fuzz.strategies import bodies, headers, http_statuses, retry_afters
from tests.support.processes import NoMasker

RANGE = {"start": "2026-03-02", "end": "2026-03-04"}
OF_SECURITIES = {"securities": ["BHP", "CBA"], "exchange": None, "on_invalid": "error"}
OF_ACCOUNTS = {"accounts": None, "portfolios": ["*"]}
TOKEN = {"access_token": "b15ec9", "expires_in": 3600, "token_type": "Bearer"}
ERRORS = [
    {"error": "invalid_scope", "error_description": "not in the plan"},
    {"type": "about:blank", "title": "Bad Request", "status": 400, "detail": "No such thing."},
    {"message": "An error has occurred."},
    {},
    [],
    "text",
]
QUERIES: list[Query] = [
    {"endpoint": "securities", "exchange": "ASX"},
    {"endpoint": "security_information", **OF_SECURITIES},
    {"endpoint": "quotes", **OF_SECURITIES},
    {"endpoint": "depth", **OF_SECURITIES, "levels": 3},
    {"endpoint": "time_series", **OF_SECURITIES, **RANGE, "frequency": "Daily", "adjusted": False},
    {"endpoint": "intraday_time_series", **OF_SECURITIES, **RANGE, "interval": 30},
    {"endpoint": "trades", **OF_SECURITIES, **RANGE},
    {"endpoint": "accounts"},
    {"endpoint": "portfolio_links"},
    {"endpoint": "portfolio_details", **OF_ACCOUNTS, "include_same_cash_account": False},
    {"endpoint": "cash", **OF_ACCOUNTS},
    {"endpoint": "positions", **OF_ACCOUNTS},
    {"endpoint": "orders", "accounts": ["*"], "portfolios": None, "include_child_orders": True},
    {"endpoint": "order_trades", "accounts": ["*"], "portfolios": None, **RANGE},
]
MOST = 3
"""Records of a valid reply that are kept."""


def complete(query: Query) -> Query:
    """Add the arguments that the queries of this module leave out."""
    prices = ENDPOINTS[query["endpoint"]].schema.price_api_names
    return {**query, "on_missing_field": "warn", "raw": False, **({"on_missing_multiplier": "error"} if prices else {})}


@functools.cache
def valid_replies() -> list[tuple[Query, dict[str, Any]]]:
    """Return each query with the sandbox's replies to the calls that it makes, by their paths."""
    with SandboxServer() as sandbox:
        connection = sandbox.connection
        settings = Settings(
            client_id=connection["login"],
            client_secret=connection["password"],
            identity_url=connection["host"],
            **connection["extra"],
        )
        client = OpenmarketsClient(settings, store=None, masker=NoMasker(), user_agent="fuzz")
        links = client.run({"endpoint": "portfolio_links", "on_missing_field": "warn", "raw": False})
        codes = {"accounts": links[0]["account_code"], "portfolios": links[0]["portfolio_code"]}
        found = []
        for query in QUERIES:
            full: Query = complete(query)
            full |= {name: [code] for name, code in codes.items() if full.get(name) == ["*"]}
            replies: dict[str, Any] = {}
            _rows(full, _Remembering(client, replies))
            found.append((full, replies))
        client.close()
    return found


class _Computing:
    """An exchange, without what gets a reply."""

    earlier = 0

    def forget(self, call: ApiCall) -> None:
        pass

    async def compute(self, records: int, work: Callable[[], Any]) -> Any:
        return work()


class _Remembering(_Computing):
    """An exchange that remembers replies by their paths, cut to a few records."""

    def __init__(self, client: OpenmarketsClient, replies: dict[str, Any]) -> None:
        self._io = _BlockingIo(client)
        self._replies = replies

    async def receive(self, call: ApiCall) -> Received:
        answer = await self._io.send(call, "fuzz")
        reply = json.loads(answer.body)
        self._replies[call.path] = reply[:MOST] if isinstance(reply, list) else reply
        return Received(read_reply(call, 200, {}, answer.body, "fuzz"), 200, "fuzz", ())


class _Answering(_Computing):
    """An exchange that answers from the bytes of replies, by their paths."""

    def __init__(self, replies: dict[str, tuple[int, dict[str, str], bytes]]) -> None:
        self._replies = replies

    async def receive(self, call: ApiCall) -> Received:
        status, headers, body = self._replies[call.path]
        hidden = ("t0ken",)
        return Received(read_reply(call, status, headers, body, "fuzz", hidden), status, "fuzz", hidden)


def _rows(query: Query, exchange: Any) -> list[Any]:
    return [row for batch in iterate_blocking(Run(query, exchange).rows()) for row in batch]


def answer(query: Query, replies: dict[str, tuple[int, dict[str, str], bytes]]) -> list[Any]:
    """Answer a query from the bytes of its replies, by their paths."""
    return _rows(query, _Answering(replies))


@st.composite
def answers(draw: st.DrawFn) -> tuple[Query, dict[str, tuple[int, dict[str, str], bytes]]]:
    """Draw a query, and replies of which each may be wrong."""
    query, valid = draw(st.sampled_from(valid_replies()))
    query = query | {"raw": draw(st.booleans())}
    if "on_invalid" in query:
        query |= {"on_invalid": draw(st.sampled_from(["error", "warn"]))}
    if "adjusted" in query:
        query |= {"adjusted": draw(st.sampled_from([False, *METHODS]))}
    if "on_missing_multiplier" in query:
        query |= {"on_missing_multiplier": draw(st.sampled_from(["error", "cents"]))}
    replies = {}
    for path, reply in valid.items():
        status = draw(st.just(200) | st.just(200) | st.just(200) | http_statuses)
        replies[path] = status, draw(headers), draw(bodies(reply))
    return query, replies


@SHORT
@given(st.data())
def test_api_replies(data):
    query, replies = data.draw(answers())
    with bounded(sum(len(body) for _, _, body in replies.values())):
        try:
            rows = answer(query, replies)
        except OpenmarketsError as error:
            check_error(error)
            return
        assert isinstance(rows, list)
        try:
            Evaluator(rows).evaluate("length(@)")
        except OpenmarketsQueryError as error:
            check_error(error)


@SHORT
@given(st.data())
def test_queries_whose_subject_the_api_names(data):
    """What an exchange lists and which portfolios an account has come from replies, too."""
    listed, linked = (
        dict(next(pair for pair in valid_replies() if pair[0]["endpoint"] == name)[1]) for name in LOOK_UPS
    )
    quotes = next(replies for query, replies in valid_replies() if query["endpoint"] == "quotes")
    cash = next(replies for query, replies in valid_replies() if query["endpoint"] == "cash")
    query, valid = data.draw(
        st.sampled_from(
            [
                ({"endpoint": "quotes", **OF_SECURITIES, "securities": None, "exchange": "ASX"}, listed | quotes),
                ({"endpoint": "cash", "accounts": "*", "portfolios": None}, linked | cash),
            ]
        )
    )
    replies = {path: (200, {}, data.draw(bodies(reply))) for path, reply in valid.items()}
    replies.setdefault("securities/information/v2", (200, {}, b"[]"))
    with bounded(sum(len(body) for _, _, body in replies.values())):
        try:
            assert isinstance(answer(complete(query), replies), list)
        except OpenmarketsError as error:
            check_error(error)


LOOK_UPS = ("securities", "portfolio_links")


@SHORT
@given(st.sampled_from([TOKEN, TOKEN, *ERRORS]).flatmap(bodies), headers, st.just(200) | http_statuses)
def test_token_replies(body, headers, status):
    with bounded(len(body)):
        try:
            token, lifetime = read_token_reply("oms-api", status, headers, body)
        except OpenmarketsError as error:
            check_error(error)
            return
    assert status == 200
    assert token.isascii()
    assert token.isprintable()
    assert " " not in token
    assert lifetime is None or 0 < lifetime < math.inf


@SHORT
@given(st.sampled_from(ERRORS).flatmap(bodies), headers, http_statuses, st.booleans())
def test_error_bodies(body, headers, status, safe):
    call = ApiCall("oms", "POST", "orders/v4", safe_to_repeat=safe)
    with bounded(len(body)):
        try:
            read_reply(call, status, headers, body, "fuzz", ("t0ken",))
        except OpenmarketsError as error:
            check_error(error)
            error.sent = True
            wait = pause(error, 1, safe_to_repeat=safe)
            assert wait is None or (safe and 0 <= wait <= MAX_WAIT)


@SHORT
@given(retry_afters)
def test_retry_after(value):
    with bounded(len(value)):
        seconds = retry_after(value)
    assert seconds is None or 0 <= seconds <= MAX_RETRY_AFTER
