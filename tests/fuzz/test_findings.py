"""What fuzzing has found, each as the smallest input that showed it, and what is too large for a strategy."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import msgspec
import pytest

from openmarkets_provider import queries
from openmarkets_provider.client.auth.token import TokenEntry
from openmarkets_provider.client.cache.redis import redis_options
from openmarkets_provider.client.client import OpenmarketsClient
from openmarkets_provider.client.ratelimit.hold import Hold
from openmarkets_provider.client.settings import Settings
from openmarkets_provider.conditions import evaluate
from openmarkets_provider.exceptions import (
    OpenmarketsConfigurationError,
    OpenmarketsInvalidResponse,
    OpenmarketsQueryError,
)
from openmarkets_provider.hooks._connection_settings import make_settings
from openmarkets_provider.landing.claims import make_claim
from openmarkets_provider.landing.load_state import check_claim, check_state
from openmarkets_provider.query.plan import plan
from openmarkets_provider.query.query import check
from tests.client.conftest import token_reply
from tests.fuzz.bounds import bounded
from tests.fuzz.strategies import nested
from tests.fuzz.test_records import CIPHER, ENTRIES, KEY, QUERY, STATE, sealed
from tests.fuzz.test_replies import answer
from tests.support import hostile
from tests.support.processes import NoMasker

HUGE = 10**5000
"""Python writes no integer of that many digits."""


@pytest.mark.parametrize("endpoint", ["cash", "portfolio_details"])
@pytest.mark.parametrize("code", ["[]", "{}", '["A"]'])
def test_a_portfolio_code_that_is_no_text_is_an_error_of_ours(endpoint: str, code: str):
    query = {"endpoint": endpoint, "accounts": None, "portfolios": ["A"], "on_missing_field": "warn", "raw": False}
    if endpoint == "portfolio_details":
        query["include_same_cash_account"] = False
    (call,) = plan(query)
    with pytest.raises(OpenmarketsInvalidResponse, match="field portfolioCode: expected a string"):
        answer(query, {call.path: (200, {}, b'[{"portfolioCode": %b}]' % code.encode())})


@pytest.mark.parametrize("length", [100, 1000, 20_000])
def test_a_code_that_is_encoded_again_and_again_costs_no_more_than_its_length(length: int):
    with bounded(0), pytest.raises(OpenmarketsQueryError, match=r"accounts: .* is malformed"):
        queries.orders("%" + "25" * length + "2f")


@pytest.mark.parametrize("depth", [100, 1000, 100_000])
def test_a_query_that_is_nested_however_deep_is_an_error_of_ours(depth: int):
    for argument in ("json", "path", "params", "api", "method", "safe_to_repeat", "endpoint"):
        query = queries.request("oms", "POST", "x", json={}) | {argument: nested(depth)}
        try:
            check(query)
        except OpenmarketsQueryError:
            continue
        # Everything that Python's JSON supports may be sent: from 3.12 on it may be nested deeper.
        assert argument == "json"
        assert depth <= (100 if sys.version_info < (3, 12) else 1000)


@pytest.mark.parametrize("argument", ["securities", "levels", "on_invalid", "raw", "endpoint", "exchange"])
def test_a_query_with_an_integer_of_5000_digits_is_an_error_of_ours(argument):
    with pytest.raises(OpenmarketsQueryError):
        check(queries.depth("BHP") | {argument: HUGE})
    with pytest.raises(OpenmarketsQueryError):
        check({**queries.depth("BHP"), HUGE: argument})


def connection(extra: str) -> SimpleNamespace:
    return SimpleNamespace(
        conn_id="x", conn_type="openmarkets", extra=extra, host="", login="someone", password="secret", port=None
    )


@pytest.mark.parametrize(
    ("extra", "problem"),
    [
        ("[" * 100_000, "not a JSON object"),
        ('{"timeout": 1%s}' % ("0" * 400), "timeout"),
        ('{"timeout": 1%s}' % ("0" * 5000), "not a JSON object"),
        ('{"timeout": NaN}', "timeout"),
        ('{"environment": %s}' % ("[" * 500 + "]" * 500), "environment"),
    ],
)
def test_an_extra_that_python_can_not_hold_is_an_error_of_ours(extra: str, problem: str):
    with pytest.raises(OpenmarketsConfigurationError, match=problem):
        make_settings(connection(extra))


@pytest.mark.parametrize("field", ["db", "ssl", "ssl_ca_certs", "ssl_cert_reqs", "cluster"])
def test_a_field_of_redis_that_no_text_can_show_is_named(field: str):
    for value in (HUGE, "9" * 5000 + ".", nested(100_000), "²", "-1", -1):
        if field == "ssl_ca_certs" and isinstance(value, str):
            # It may be a path.
            continue
        with pytest.raises(ValueError, match=f"^{field}(:| must)") as caught:
            redis_options(host="localhost", port=None, login=None, password=None, extra={field: value})
        assert len(str(caught.value)) < 500


def test_a_failure_of_a_kind_that_only_a_later_version_knows_is_no_record():
    content = msgspec.to_builtins(ENTRIES[1])
    content["failure"]["error"]["kind"] = "OpenmarketsErrorOfTheFuture"
    assert CIPHER.decrypt(KEY, sealed(msgspec.msgpack.encode(content)), TokenEntry) is None


def test_a_record_that_is_nested_without_end_is_none():
    assert CIPHER.decrypt(KEY, sealed(b"\x91" * 100_000 + b"\xc0"), TokenEntry) is None


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e300])
def test_a_record_with_a_time_that_no_clock_shows_is_none(number: float):
    for kind, content in (
        (Hold, {"since": {"wall": 1.0, "boot": 1.0, "boot_id": "x"}, "seconds": number}),
        (Hold, {"since": {"wall": number, "boot": 1.0, "boot_id": "x"}, "seconds": 1.0}),
    ):
        assert CIPHER.decrypt(KEY, sealed(msgspec.msgpack.encode(content)), kind) is None
    content = msgspec.to_builtins(ENTRIES[0])
    content["token"]["lifetime"] = number
    assert CIPHER.decrypt(KEY, sealed(msgspec.msgpack.encode(content)), TokenEntry) is None


@pytest.mark.parametrize(
    "stored", [0, "", [], [1], "x", {"watermark": "2026-02-05"}, STATE | {"watermark": None}, STATE | {"first": 5}]
)
def test_a_state_of_a_load_that_somebody_damaged_is_told(stored):
    with pytest.raises(ValueError, match="expected"):
        check_state(stored)


def test_a_state_that_a_load_has_written_is_taken():
    assert check_state(None) == check_state({}) == {}
    own = {name: STATE[name] for name in ("destination", "owner", "query", "format")}
    assert check_state(own) == own
    assert check_state(STATE) == STATE
    assert check_claim(None) is None
    made = make_claim(QUERY, STATE["watermark"], STATE["first"], timedelta(0), datetime(2026, 4, 1, tzinfo=UTC))
    assert made is not None
    assert check_claim(made.as_data()) == made.as_data()


@pytest.mark.parametrize("kept", [0, "", [], {}, {"start": "2026-02-04"}, {"start": "2026-02-04", "end": "soon"}])
def test_a_range_of_a_task_that_somebody_damaged_is_told(kept):
    with pytest.raises(ValueError, match="expected"):
        check_claim(kept)


def test_what_is_wrong_with_a_long_condition_is_told_in_short():
    for condition in ("(" * 50_000, "a" * 50_000 + "!", "sum(@)" + " " * 50_000):
        with pytest.raises(OpenmarketsQueryError) as caught:
            evaluate(condition, [{"a": "x"}])
        assert len(str(caught.value)) < 3000


@pytest.mark.parametrize("cookie", ["a=b", "a=é", "a=" + "x" * 5000, "a=b; expires=Mon, 99 Foo 99999"])
async def test_a_cookie_is_neither_kept_nor_sent_back_nor_in_the_way(cookie: str):
    good = hostile.reply(b"[]", headers=[f"Set-Cookie: {cookie}; Path=/".encode().decode("latin-1")])
    with hostile.HostileServer(
        lambda sock, request: sock.sendall(token_reply() if b"/token" in request else good)
    ) as server:
        settings = Settings(client_id="someone", client_secret="S3CR3T", identity_url=server.url, oms_url=server.url)
        client = OpenmarketsClient(settings, store=None, masker=NoMasker(), user_agent="fuzz")
        outcomes = []
        for _ in range(3):
            for ask in (client.run, client.arun):
                reply = ask(queries.request("oms", "GET", "accounts/v1"))
                outcomes.append(reply if ask == client.run else await reply)
        http = client.httpx("oms")
        outcomes += [http.get("accounts/v1").json() for _ in range(2)]
        assert outcomes == [[]] * 8
        assert not any(hostile.header(request, "cookie") for request in server.requests)
        assert not http.cookies
        await client.aclose()
        client.close()
