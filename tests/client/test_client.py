from __future__ import annotations

import asyncio
import base64
import functools
import gc
import json
import logging
import os
import pickle
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import httpcore
import pytest
import trustme

from openmarkets_provider import queries
from openmarkets_provider.client import client as module
from openmarkets_provider.client.cache.file import FileStore
from openmarkets_provider.client.http.clients import HttpClient, NoAnswer, Reply
from openmarkets_provider.exceptions import (
    OpenmarketsApiError,
    OpenmarketsConfigurationError,
    OpenmarketsError,
    OpenmarketsInvalidResponse,
    OpenmarketsNotFound,
    OpenmarketsQueryError,
    OpenmarketsRateLimited,
    OpenmarketsServerError,
    OpenmarketsTransportError,
    from_dict,
)
from openmarkets_provider.sandbox.server import SandboxServer
from tests.client.auth.test_bearer import NEEDS_A_USER, NEW_ORDER
from tests.client.conftest import USER_AGENT, MakeClient, RecordingMasker, Runner, texts_of, token_reply
from tests.support import hostile
from tests.support.hostile import HostileServer

BHP = queries.quotes(["BHP"])
QUOTES = "POST /market-data/pricing/quotes/v3"
ORDERS = "POST /oms/orders/v4"
NO_SUCH = queries.request("oms", "GET", "no/such/path")
DOUBT = "may have been carried out"
AGAIN = ["Retry-After: 0"]
WELL_BELOW_A_HANG = 10.0


def thing(name: object = "thing", **options: Any) -> queries.Query:
    return queries.request("oms", "GET", f"echo/{name}", **options)


class LateStore(FileStore):
    """A store that answers when the test allows it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.is_ready = threading.Event()

    def load(self, key: str) -> bytes | None:
        assert self.is_ready.wait(WELL_BELOW_A_HANG)
        return super().load(key)


def echo(sock: socket.socket, request: bytes) -> None:
    """Answer with the path that was asked for."""
    sock.sendall(hostile.reply(json.dumps(hostile.target(request).partition(" ")[2]).encode()))


@contextmanager
def on_retry(act: Callable[[], object]) -> Iterator[None]:
    """Do something at the moment when the first attempt has failed."""

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "(attempt 1 failed)" in record.getMessage():
                act()

    logger = logging.getLogger("openmarkets_provider.client.exchange")
    listener, before = Listener(), logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(listener)
    try:
        yield
    finally:
        logger.removeHandler(listener)
        logger.setLevel(before)


class TestRequest:
    def test_says_who_asks_and_what_for(self, run: Runner, make_client: MakeClient) -> None:
        with HostileServer(hostile.answering(hostile.reply(b'{"a": [1]}'))) as server:
            query = queries.request("oms", "PUT", "a/b", params={"c": ["d e", 1], "f": True}, json={"g": "é"})
            assert run(make_client(oms_url=f"{server.url}/base/"), query) == {"a": [1]}
            [request] = server.requests
        assert hostile.target(request) == "PUT /base/a/b?c=d+e&c=1&f=true"
        assert json.loads(hostile.body(request)) == {"g": "é"}
        assert hostile.header(request, "content-type") == "application/json"
        assert hostile.header(request, "accept") == "application/json"
        assert hostile.header(request, "user-agent") == USER_AGENT
        assert (hostile.header(request, "authorization") or "").startswith("Bearer ")
        assert str(uuid.UUID(hostile.header(request, "x-request-id"))) == hostile.header(request, "x-request-id")

    def test_of_each_attempt_has_an_id_of_its_own(self, run: Runner, make_client: MakeClient) -> None:
        handler = hostile.answering(hostile.reply(b"", 503, AGAIN), hostile.reply(b"", 503, AGAIN), hostile.reply())
        with HostileServer(handler) as server:
            run(make_client(oms_url=server.url), thing(), thing())
            ids = [hostile.header(request, "x-request-id") for request in server.requests]
        assert len(ids) == len(set(ids)) == 4

    def test_id_is_in_the_error(self, run: Runner, make_client: MakeClient) -> None:
        with HostileServer(hostile.answering(hostile.reply(b"", 400))) as server:
            with pytest.raises(OpenmarketsApiError) as caught:
                run(make_client(oms_url=server.url), thing())
            sent = hostile.header(server.requests[0], "x-request-id")
        assert caught.value.request_id == sent
        assert f"[request id {sent}]" in str(caught.value)

    @pytest.mark.parametrize(("echoed", "expected"), [("their-own", "their-own"), ("", None)])
    def test_id_that_the_server_gives_counts(
        self, run: Runner, make_client: MakeClient, echoed: str, expected: str | None
    ) -> None:
        with HostileServer(hostile.answering(hostile.reply(b"", 400, [f"X-Request-ID: {echoed}"]))) as server:
            with pytest.raises(OpenmarketsApiError) as caught:
                run(make_client(oms_url=server.url), thing())
            expected = expected or hostile.header(server.requests[0], "x-request-id")
        assert caught.value.request_id == expected

    def test_id_is_in_the_error_when_there_is_no_answer(self, run: Runner, make_client: MakeClient) -> None:
        with HostileServer(hostile.reset) as server:
            with pytest.raises(OpenmarketsTransportError) as caught:
                run(make_client(oms_url=server.url), NEW_ORDER)
            sent = hostile.header(server.requests[0], "x-request-id")
        assert caught.value.request_id == sent
        assert f"[request id {sent}]" in str(caught.value)
        assert caught.value.endpoint == "POST oms orders/v4"

    def test_with_a_url_that_can_not_be_is_a_query_error(
        self, run: Runner, make_client: MakeClient, sandbox: SandboxServer
    ) -> None:
        with pytest.raises(OpenmarketsQueryError, match="do not make a valid URL"):
            run(make_client(), thing(params={"q": "x" * 70_000}))
        assert sandbox.stats()["token_requests_total"] == 0

    @pytest.mark.parametrize(
        "query",
        [
            None,
            [],
            {},
            {"endpoint": "nonsense"},
            {"endpoint": "quotes"},
            {"endpoint": "quotes", "securities": ["../oms"]},
            {"endpoint": "quotes", "securities": ["{{ params.security }}"]},
            {**thing(), "path": "http://openmarkets.invalid/x"},
            {**thing(), "path": "x:orders/v4"},
            {**thing(), "path": "a/../b"},
            {**thing(), "api": "identity"},
            {**NEW_ORDER, "safe_to_repeat": True},
            {**NEW_ORDER, "json": {"\ud800": 1}},
        ],
    )
    def test_of_a_malformed_query_is_never_sent(
        self, run: Runner, make_client: MakeClient, sandbox: SandboxServer, query: Any
    ) -> None:
        with pytest.raises(OpenmarketsQueryError):
            run(make_client(), query)
        assert sandbox.stats()["by_path"] == {}

    def test_for_a_scope_that_the_connection_lacks_is_never_sent(
        self, run: Runner, make_client: MakeClient, sandbox: SandboxServer
    ) -> None:
        client = make_client(scopes=("news-api", "oms-api"))
        with pytest.raises(OpenmarketsConfigurationError, match="does not have the scope 'market-data-api'"):
            run(client, BHP)
        with pytest.raises(OpenmarketsConfigurationError, match="does not have the scope 'market-data-api'"):
            client.get_access_token("market-data-api")
        with pytest.raises(OpenmarketsConfigurationError, match="does not have the scope 'market-data-api'"):
            client.http("market_data")
        with pytest.raises(OpenmarketsConfigurationError, match="does not have the scope 'market-data-api'"):
            client.httpx("market_data")
        assert sandbox.stats()["by_path"] == {}

    @pytest.mark.parametrize("api", ["identity", "", "settings", "market-data"])
    async def test_for_an_unknown_api_is_refused(self, make_client: MakeClient, api: str) -> None:
        with pytest.raises(OpenmarketsConfigurationError, match="api must be one of market_data"):
            make_client().http(api)
        with pytest.raises(OpenmarketsConfigurationError, match="api must be one of market_data"):
            make_client().httpx(api)
        with pytest.raises(OpenmarketsConfigurationError, match="api must be one of market_data"):
            make_client().ahttp(api)


class TestReply:
    @pytest.mark.parametrize("content", [b"", b" \r\n", b"null"])
    @pytest.mark.parametrize("status", [200, 202])
    def test_that_is_empty_is_none(self, run: Runner, make_client: MakeClient, content: bytes, status: int) -> None:
        with HostileServer(hostile.answering(hostile.reply(content, status))) as server:
            assert run(make_client(oms_url=server.url), thing()) is None

    def test_without_content_is_none(self, run: Runner, make_client: MakeClient) -> None:
        with HostileServer(hostile.answering(b"HTTP/1.1 204 No Content\r\nContent-Encoding: gzip\r\n\r\n")) as server:
            assert run(make_client(oms_url=server.url), thing()) is None

    def test_of_a_query_is_its_records(self, run: Runner, make_client: MakeClient) -> None:
        assert [quote["security_code"] for quote in run(make_client(), queries.quotes("CBA, BHP"))] == ["CBA", "BHP"]

    def test_of_several_calls_is_put_together_in_order(self, run: Runner, make_client: MakeClient) -> None:
        def quotes(sock: socket.socket, request: bytes) -> None:
            asked = json.loads(hostile.body(request))["securities"]
            rows = [{"securityCode": security.partition(".")[0]} for security in asked]
            sock.sendall(hostile.reply(json.dumps({"quotes": rows, "invalidSecurities": []}).encode()))

        codes = [f"S{number}" for number in range(1001)]
        with HostileServer(quotes) as server:
            rows = run(make_client(market_data_url=server.url), queries.quotes(codes))
            sizes = [len(json.loads(hostile.body(request))["securities"]) for request in server.requests]
        assert [row["security_code"] for row in rows] == codes
        assert sorted(sizes) == [1, 1000]

    def test_with_unknown_securities_is_an_error_that_lists_them(self, run: Runner, make_client: MakeClient) -> None:
        codes = ["BHP", *(f"NO{number}" for number in range(1000))]
        with pytest.raises(OpenmarketsQueryError, match=r"NO0\.ASX@TM") as caught:
            run(make_client(), queries.quotes(codes))
        assert "does not know the securities ['NO0.ASX@TM', 'NO1.ASX@TM'" in str(caught.value)
        assert len(str(caught.value)) < 1500

    @pytest.mark.parametrize(
        "content", [b"<html>", b"[NaN]", b"[1", b"[" * 100_000, b'"\xff"', b"{}{}"], ids=lambda value: value[:6]
    )
    def test_that_is_not_json_is_an_error(self, run: Runner, make_client: MakeClient, content: bytes) -> None:
        handler = hostile.answering(hostile.reply(content, 200, ["Content-Type: text/html", "X-Request-ID: r-1"]))
        with HostileServer(handler) as server:
            with pytest.raises(OpenmarketsInvalidResponse, match="not JSON") as caught:
                run(make_client(oms_url=server.url), thing())
            assert len(server.requests) == 1
        error = caught.value
        assert (error.endpoint, error.request_id, error.status, error.sent) == ("GET oms echo/thing", "r-1", 200, True)
        assert "text/html" in str(error)
        assert DOUBT not in str(error)

    def test_that_can_not_be_read_names_call_and_id(self, run: Runner, make_client: MakeClient) -> None:
        with HostileServer(hostile.answering(hostile.reply(b"x", 200, ["Content-Encoding: br"]))) as server:
            with pytest.raises(OpenmarketsInvalidResponse, match="content encoding 'br'") as caught:
                run(make_client(oms_url=server.url), thing())
            [request] = server.requests
        error = caught.value
        assert error.endpoint == "GET oms echo/thing"
        assert error.endpoint in str(error)
        assert error.request_id == hostile.header(request, "x-request-id")
        assert f"[request id {error.request_id}]" in str(error)
        assert error.sent
        assert not error.transient

    def test_that_can_not_be_read_goes_by_its_status(self, run: Runner, make_client: MakeClient) -> None:
        page = hostile.reply(b"x", 404, ["Content-Encoding: br"])
        with HostileServer(hostile.answering(page)) as server, pytest.raises(OpenmarketsNotFound, match="br"):
            run(make_client(oms_url=server.url), thing())

    def test_of_404_is_not_repeated(self, run: Runner, make_client: MakeClient, sandbox: SandboxServer) -> None:
        with pytest.raises(OpenmarketsNotFound) as caught:
            run(make_client(), NO_SUCH)
        assert caught.value.request_id
        assert sandbox.stats()["requests"]["oms"] == 1

    def test_of_a_redirect_is_an_error(self, run: Runner, make_client: MakeClient) -> None:
        with HostileServer(hostile.answering(hostile.reply())) as other:
            away = hostile.reply(b"", 302, [f"Location: {other.url}"])
            with (
                HostileServer(hostile.answering(away)) as server,
                pytest.raises(OpenmarketsApiError, match="Redirects are not followed"),
            ):
                run(make_client(oms_url=server.url), thing())
        assert other.connections == 0


SAFE = pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"kind": "status", "status": 503, "retry_after": 0}, id="503"),
        pytest.param({"kind": "status", "status": 408, "retry_after": 0}, id="408"),
        pytest.param({"kind": "status", "status": 429, "retry_after": 0}, id="429"),
        pytest.param({"kind": "status", "status": 429, "retry_after": 1}, id="429 after a second"),
        pytest.param({"kind": "status", "status": 503}, id="503 without a time"),
        pytest.param({"kind": "reset"}, id="reset"),
        pytest.param({"kind": "reset", "body": '{"quotes": ['}, id="reset in the body"),
    ],
)


class TestSafeCall:
    @SAFE
    def test_is_sent_again(
        self, run: Runner, make_client: MakeClient, sandbox: SandboxServer, fault: dict[str, Any]
    ) -> None:
        sandbox.fault(target="market_data", **fault)
        began = time.monotonic()
        [quote] = run(make_client(), BHP)
        assert quote["security_code"] == "BHP"
        assert sandbox.stats()["by_path"][QUOTES] == 2
        assert sandbox.stats()["token_requests_total"] == 1
        assert time.monotonic() - began >= fault.get("retry_after", 0)

    def test_is_given_up_after_four_attempts(
        self, run: Runner, make_client: MakeClient, sandbox: SandboxServer
    ) -> None:
        sandbox.fault(target="market_data", kind="status", status=503, retry_after=0, times=None)
        with pytest.raises(OpenmarketsServerError, match="503") as caught:
            run(make_client(), BHP)
        assert sandbox.stats()["by_path"][QUOTES] == 4
        assert DOUBT not in str(caught.value)

    @pytest.mark.parametrize("status", [429, 503])
    def test_does_not_wait_for_long(
        self, run: Runner, make_client: MakeClient, sandbox: SandboxServer, status: int
    ) -> None:
        sandbox.fault(target="market_data", kind="status", status=status, retry_after=61, times=None)
        began = time.monotonic()
        with pytest.raises(OpenmarketsApiError) as caught:
            run(make_client(), BHP)
        assert time.monotonic() - began < WELL_BELOW_A_HANG
        assert type(caught.value) is (OpenmarketsRateLimited if status == 429 else OpenmarketsServerError)
        assert caught.value.retry_after == 61
        assert caught.value.transient
        assert sandbox.stats()["by_path"][QUOTES] == 1

    def test_is_repeated_in_its_place_among_several(
        self, run: Runner, make_client: MakeClient, sandbox: SandboxServer
    ) -> None:
        sandbox.fault(target="/market-data/pricing", kind="status", status=503, retry_after=0, after=1)
        codes = ["BHP", *(f"NO{number}" for number in range(999)), "CBA"]
        quotes = run(make_client(), queries.quotes(codes, on_invalid="warn"))
        assert [quote["security_code"] for quote in quotes] == ["BHP", "CBA"]
        assert sandbox.stats()["by_path"][QUOTES] == 3

    def test_tells_of_each_repetition_in_the_log(
        self, run: Runner, make_client: MakeClient, sandbox: SandboxServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "openmarkets_provider")
        sandbox.fault(target="market_data", kind="status", status=503, retry_after=0)
        run(make_client(), BHP)
        [message] = [text for _, _, text in caplog.record_tuples if "Trying again" in text]
        assert "503" in message
        assert "attempt 1 failed" in message

    def test_that_can_not_be_read_is_repeated_by_its_status(self, run: Runner, make_client: MakeClient) -> None:
        page = hostile.reply(b"x", 503, ["Content-Encoding: br"])
        with HostileServer(hostile.answering(page, hostile.reply(b'"fine"'))) as server:
            assert run(make_client(oms_url=server.url), thing()) == "fine"
            assert len(server.requests) == 2


class TestUnsafeCall:
    @pytest.mark.parametrize(
        ("fault", "kind", "doubtful"),
        [
            pytest.param({"kind": "status", "status": 503, "retry_after": 0}, OpenmarketsServerError, True, id="503"),
            pytest.param({"kind": "status", "status": 500}, OpenmarketsServerError, True, id="500"),
            pytest.param({"kind": "status", "status": 504}, OpenmarketsServerError, True, id="504"),
            pytest.param({"kind": "status", "status": 429, "retry_after": 0}, OpenmarketsRateLimited, False, id="429"),
            pytest.param({"kind": "status", "status": 400}, OpenmarketsApiError, False, id="400"),
            pytest.param({"kind": "reset"}, OpenmarketsTransportError, True, id="reset"),
            pytest.param({"kind": "reset", "body": "{"}, OpenmarketsTransportError, True, id="reset in the body"),
            pytest.param({"kind": "body", "body": "<html>"}, OpenmarketsInvalidResponse, True, id="not JSON"),
            pytest.param(
                {"kind": "body", "body": "{}", "headers": {"Content-Encoding": "gzip"}},
                OpenmarketsInvalidResponse,
                True,
                id="not gzip",
            ),
            pytest.param({"kind": "delay", "seconds": 60}, OpenmarketsTransportError, True, id="no answer"),
        ],
    )
    def test_is_sent_once(
        self,
        run: Runner,
        make_client: MakeClient,
        sandbox: SandboxServer,
        fault: dict[str, Any],
        kind: type[OpenmarketsError],
        doubtful: bool,
    ) -> None:
        sandbox.fault(target=ORDERS.partition(" ")[2], times=None, **fault)
        with pytest.raises(OpenmarketsError) as caught:
            run(make_client(timeout=0.5), NEW_ORDER)
        assert type(caught.value) is kind
        assert (DOUBT in str(caught.value)) == doubtful
        assert caught.value.sent
        # Callers that retry transient errors must not retry this one.
        assert not caught.value.transient
        assert sandbox.stats()["by_path"][ORDERS] == 1

    def test_is_sent_again_when_it_can_not_have_left(self, run: Runner, make_client: MakeClient) -> None:
        # the port refuses connections until the first attempt has failed
        handler = hostile.answering(hostile.reply(b'{"orderNumber": 1}'))
        with socket.socket() as reserved, ExitStack() as stack:
            reserved.bind(("127.0.0.1", 0))
            server = HostileServer(handler, listener=reserved)
            client = make_client(oms_url=server.url)
            with on_retry(lambda: stack.enter_context(server)):
                assert run(client, NEW_ORDER) == {"orderNumber": 1}
            assert len(server.requests) == 1

    def test_is_sent_after_a_token_came_at_last(
        self, run: Runner, make_client: MakeClient, sandbox: SandboxServer
    ) -> None:
        sandbox.fault(target="identity", kind="status", status=503, retry_after=0)
        assert run(make_client(), NEW_ORDER)["orderNumber"]
        stats = sandbox.stats()
        assert stats["token_requests_total"] == 2
        assert stats["by_path"][ORDERS] == 1

    def test_that_was_declared_safe_is_sent_again(
        self, run: Runner, make_client: MakeClient, sandbox: SandboxServer
    ) -> None:
        sandbox.fault(target="news", kind="status", status=503, retry_after=0)
        sandbox.fault(target="news", kind="body", body={"found": 1})
        query = queries.request("news", "POST", "search/v1", json={}, safe_to_repeat=True)
        assert run(make_client(), query) == {"found": 1}
        assert sandbox.stats()["requests"]["news"] == 2


class TestIdentityServer:
    def test_that_fails_is_asked_again(self, run: Runner, make_client: MakeClient, sandbox: SandboxServer) -> None:
        sandbox.fault(target="identity", kind="status", status=500, retry_after=0, times=2)
        assert run(make_client(), BHP)
        assert sandbox.stats()["token_requests_total"] == 3

    @pytest.mark.parametrize(("status", "kind"), [(429, OpenmarketsRateLimited), (503, OpenmarketsServerError)])
    def test_that_asks_for_rest_gets_it(
        self,
        run: Runner,
        make_client: MakeClient,
        sandbox: SandboxServer,
        status: int,
        kind: type[OpenmarketsApiError],
    ) -> None:
        sandbox.fault(target="identity", kind="status", status=status, retry_after=120, times=None)
        client = make_client()
        began = time.monotonic()
        for _ in range(3):
            with pytest.raises(kind) as caught:
                run(client, BHP)
            assert caught.value.retry_after is not None
            assert 60 < round(caught.value.retry_after, 3) <= 120
            assert not caught.value.sent
        assert time.monotonic() - began < WELL_BELOW_A_HANG
        stats = sandbox.stats()
        assert stats["token_requests_total"] == 1
        assert stats["requests"]["market_data"] == 0

    def test_that_cuts_the_connection_is_a_transport_error(
        self, make_client: MakeClient, sandbox: SandboxServer
    ) -> None:
        sandbox.fault(target="identity", kind="reset")
        error = make_client().check_scope("oms-api")
        assert isinstance(error, OpenmarketsTransportError)
        assert error.endpoint == "POST connect/token"
        assert not error.sent

    def test_is_asked_anew_by_a_check(self, make_client: MakeClient, sandbox: SandboxServer) -> None:
        client = make_client()
        token = client.get_access_token("oms-api")
        assert client.get_access_token("oms-api") == token
        assert client.check_scope("oms-api") is None
        assert client.get_access_token("oms-api") != token
        assert sandbox.stats()["token_requests"] == {"oms-api": 2}


class TestTrust:
    def test_of_an_unknown_authority_is_a_matter_of_configuration(
        self, run: Runner, make_client: MakeClient, tmp_path: Path
    ) -> None:
        authority = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        bundle = tmp_path / "ca.pem"
        authority.cert_pem.write_to_path(str(bundle))

        def handle(sock: socket.socket, request: bytes) -> None:
            sock.sendall(token_reply() if request.startswith(b"POST") else hostile.reply())

        with HostileServer(handle, tls=context) as server:
            for settings in ({"identity_url": server.url}, {"oms_url": server.url}):
                with pytest.raises(OpenmarketsConfigurationError, match="set ca_bundle") as caught:
                    run(make_client(**settings), queries.accounts())
                assert server.url in str(caught.value)
            assert server.requests == []
            # another secret, since the failure is held against the first one for a moment
            right = {"identity_url": server.url, "oms_url": server.url, "ca_bundle": str(bundle)}
            assert run(make_client(**right, client_secret="another"), queries.accounts()) == []

    def test_in_a_broken_bundle_is_a_matter_of_configuration(
        self, run: Runner, make_client: MakeClient, sandbox: SandboxServer, tmp_path: Path
    ) -> None:
        bundle = tmp_path / "ca.pem"
        bundle.write_text("nothing of the kind")
        with pytest.raises(OpenmarketsConfigurationError, match="ca_bundle"):
            run(make_client(ca_bundle=str(bundle)), BHP)
        assert sandbox.stats()["by_path"] == {}

    def test_in_a_broken_proxy_is_a_matter_of_configuration(
        self, run: Runner, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HTTPS_PROXY", "nonsense://somebody:hush@127.0.0.1:1")
        with pytest.raises(OpenmarketsConfigurationError, match="proxy") as caught:
            run(make_client(identity_url="https://openmarkets.invalid"), BHP)
        assert "hush" not in texts_of(caught.value)


class TestLife:
    def test_opens_nothing_before_it_is_asked(self, make_client: MakeClient, sandbox: SandboxServer) -> None:
        with HostileServer(hostile.silent) as server:
            make_client(identity_url=server.url, oms_url=server.url).close()
            assert server.connections == 0

    def test_asks_for_one_token_when_nothing_is_shared(
        self, run: Runner, make_client: MakeClient, sandbox: SandboxServer
    ) -> None:
        run(make_client(cache_backend="memory"), BHP, BHP)
        assert sandbox.stats()["token_requests_total"] == 1

    def test_goes_on_after_close(self, make_client: MakeClient) -> None:
        with HostileServer(echo) as server:
            client = make_client(oms_url=server.url)
            for expected in (1, 2, 3):
                assert client.run(thing()) == client.run(thing()) == "/echo/thing"
                assert server.connections == expected
                client.close()
                client.close()

    def test_close_waits_for_nobody_and_lets_what_is_under_way_end(self, make_client: MakeClient) -> None:
        asked, released = threading.Event(), threading.Event()

        def held(sock: socket.socket, request: bytes) -> None:
            asked.set()
            assert released.wait(WELL_BELOW_A_HANG)
            echo(sock, request)

        with ThreadPoolExecutor(1) as pool, HostileServer(held) as server:
            client = make_client(oms_url=server.url)
            answer = pool.submit(client.run, thing())
            assert asked.wait(WELL_BELOW_A_HANG)
            client.close()
            released.set()
            assert answer.result(WELL_BELOW_A_HANG) == "/echo/thing"
            # Nothing was sent again, and no connection stays.
            assert len(server.requests) == 1
            assert server.closed.wait(WELL_BELOW_A_HANG)

    async def test_aclose_waits_for_nobody_and_lets_what_is_under_way_end(self, make_client: MakeClient) -> None:
        asked, released = threading.Event(), threading.Event()

        def held(sock: socket.socket, request: bytes) -> None:
            asked.set()
            assert released.wait(WELL_BELOW_A_HANG)
            echo(sock, request)

        with HostileServer(held) as server:
            client = make_client(oms_url=server.url)
            # Kept, so that its connection does not go with it.
            http = client.ahttp("oms")
            answer = asyncio.create_task(client.arun(thing()))
            assert await asyncio.to_thread(asked.wait, WELL_BELOW_A_HANG)
            await client.aclose()
            released.set()
            assert await answer == "/echo/thing"
            assert await asyncio.to_thread(server.closed.wait, WELL_BELOW_A_HANG)
            del http

    async def test_goes_on_after_aclose(self, make_client: MakeClient) -> None:
        with HostileServer(echo) as server:
            client = make_client(oms_url=server.url)
            for expected in (1, 2, 3):
                assert await client.arun(thing()) == await client.arun(thing()) == "/echo/thing"
                assert server.connections == expected
                await client.aclose()
                await client.aclose()

    def test_serves_event_loops_one_after_another(self, make_client: MakeClient) -> None:
        with HostileServer(echo) as server:
            client = make_client(oms_url=server.url)

            async def run(name: str) -> Any:
                try:
                    return await asyncio.gather(*(client.arun(thing(f"{name}{number}")) for number in range(20)))
                finally:
                    await client.aclose()

            for name in "abc":
                assert asyncio.run(run(name)) == [f"/echo/{name}{number}" for number in range(20)]
                assert client.run(thing("between")) == "/echo/between"

    def test_serves_event_loops_at_the_same_time(self, make_client: MakeClient) -> None:
        with HostileServer(echo) as server:
            client = make_client(oms_url=server.url)

            async def run(name: int) -> list[Any]:
                clients = client.ahttp("oms")
                answers = [await client.arun(thing(f"{name}-{number}")) for number in range(20)]
                assert client.ahttp("oms") is clients
                await client.aclose()
                return answers

            with ThreadPoolExecutor(4) as pool:
                for name, answers in enumerate(pool.map(lambda name: asyncio.run(run(name)), range(4))):
                    assert answers == [f"/echo/{name}-{number}" for number in range(20)]
            assert len(server.requests) == 80

    def test_is_shared_by_threads(self, make_client: MakeClient, sandbox: SandboxServer) -> None:
        with HostileServer(echo) as server:
            client = make_client(oms_url=server.url)
            start = threading.Barrier(16)

            def work(name: int) -> list[Any]:
                start.wait(WELL_BELOW_A_HANG)
                return [client.run(thing(f"{name}-{number}")) for number in range(20)]

            with ThreadPoolExecutor(16) as pool:
                for name, answers in enumerate(pool.map(work, range(16))):
                    assert answers == [f"/echo/{name}-{number}" for number in range(20)]
            assert server.connections <= 16, "connections were opened for one request each"
            assert sandbox.stats()["token_requests_total"] == 1
        # this would report connections that were opened twice and forgotten
        gc.collect()

    def test_has_one_http_client_however_many_threads_ask(
        self, make_client: MakeClient, request: pytest.FixtureRequest
    ) -> None:
        client = make_client()
        # threads take turns so often that several find no client yet
        request.addfinalizer(functools.partial(sys.setswitchinterval, sys.getswitchinterval()))
        sys.setswitchinterval(1e-6)
        for _ in range(20):
            start = threading.Barrier(8)

            def ask(start: threading.Barrier = start) -> HttpClient:
                start.wait(WELL_BELOW_A_HANG)
                return client.http("oms")

            with ThreadPoolExecutor(8) as pool:
                clients = {id(found.result()) for found in [pool.submit(ask) for _ in range(8)]}
            assert len(clients) == 1
            client.close()

    def test_keeps_no_event_loop_that_it_was_closed_on(self, make_client: MakeClient, tmp_path: Path) -> None:
        store = LateStore(tmp_path / "late")

        async def run() -> weakref.ref[asyncio.AbstractEventLoop]:
            async with asyncio.TaskGroup() as tasks:
                for number in range(20):
                    tasks.create_task(client.arun(thing(number)))
                # Now they wait for each other: for the store, and for a connection.
                await asyncio.sleep(0)
                store.is_ready.set()
            await client.aclose()
            return weakref.ref(asyncio.get_running_loop())

        with HostileServer(echo) as server:
            settings = make_client(oms_url=server.url).settings
            client = module.OpenmarketsClient(settings, store=store, masker=RecordingMasker(), user_agent="x")
            loop = asyncio.run(run())
            gc.collect()
            assert loop() is None

    @pytest.mark.parametrize("kind", ["sync", "async"])
    def test_is_not_shared_with_a_forked_process(self, sandbox: SandboxServer, tmp_path: Path, kind: str) -> None:
        # in a process without other threads, which the child would not have
        script = """
            import asyncio, os, sys
            from pathlib import Path
            from openmarkets_provider import queries
            from openmarkets_provider.client.client import OpenmarketsClient
            from openmarkets_provider.client.cache.file import FileStore
            from openmarkets_provider.client.settings import Settings
            from tests.client.conftest import RecordingMasker

            identity, oms, cache, kind = sys.argv[1:]
            settings = Settings(
                client_id="sandbox-client", client_secret="sandbox-secret", identity_url=identity, oms_url=oms
            )
            store = FileStore(Path(cache))
            client = OpenmarketsClient(settings, store=store, masker=RecordingMasker(), user_agent="t")

            def thing(name):
                return queries.request("oms", "GET", "echo/" + name)

            def sync_loop(name):
                for number in range(50):
                    assert client.run(thing(f"{name}-{number}")) == f"/echo/{name}-{number}"
                client.close()

            async def async_loop(name):
                for number in range(50):
                    assert await client.arun(thing(f"{name}-{number}")) == f"/echo/{name}-{number}"
                await client.aclose()

            def in_child(loop):
                child = os.fork()
                if child == 0:
                    status = 1
                    try:
                        loop("child")
                        status = 0
                    finally:
                        os._exit(status)
                return child

            def end(child):
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "the child failed"

            async def main():
                await client.arun(thing("parent-before"))
                child = in_child(lambda name: asyncio.run(async_loop(name)))
                await async_loop("parent")
                end(child)

            if kind == "async":
                asyncio.run(main())
            else:
                client.run(thing("parent-before"))
                child = in_child(sync_loop)
                sync_loop("parent")
                end(child)
        """
        with HostileServer(echo) as server:
            # what is left of asyncio.to_thread() is a thread to Python 3.12
            warnings = ["-W", "error", "-W", "ignore:This process:DeprecationWarning"]
            command = [sys.executable, *warnings, "-c", textwrap.dedent(script)]
            command += [sandbox.identity_url, server.url, str(tmp_path / "cache"), kind]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            assert (done.returncode, done.stderr) == (0, "")
            ports: dict[str, set[int]] = {"child": set(), "parent": set()}
            for request, port in zip(server.requests, server.ports, strict=True):
                ports["child" if "/child" in hostile.target(request) else "parent"].add(port)
            assert len(server.requests) == 101
        assert ports["child"]
        assert not ports["child"] & ports["parent"]
        assert sandbox.stats()["token_requests_total"] == 1

    def test_can_be_used_and_collected_in_a_process_that_is_forked_while_threads_send(
        self, sandbox: SandboxServer, tmp_path: Path
    ) -> None:
        script = """
            import gc, os, signal, sys, threading
            from pathlib import Path
            from openmarkets_provider import queries
            from openmarkets_provider.client.client import OpenmarketsClient
            from openmarkets_provider.client.cache.file import FileStore
            from openmarkets_provider.client.settings import Settings
            from tests.client.conftest import RecordingMasker

            identity, oms, cache = sys.argv[1:]
            settings = Settings(
                client_id="sandbox-client", client_secret="sandbox-secret", identity_url=identity, oms_url=oms
            )
            store = FileStore(Path(cache))
            client = OpenmarketsClient(settings, store=store, masker=RecordingMasker(), user_agent="t")
            sys.setswitchinterval(1e-4)
            over = threading.Event()
            started = threading.Barrier(5)

            def send():
                client.run(queries.request("oms", "GET", "echo/thread"))
                started.wait(20)
                while not over.is_set():
                    client.run(queries.request("oms", "GET", "echo/thread"))

            threads = [threading.Thread(target=send) for _ in range(4)]
            for thread in threads:
                thread.start()
            started.wait(20)
            statuses = []
            for number in range(4):
                child = os.fork()
                if child == 0:
                    status = 1
                    try:
                        # The signal ends a child that waits for a lock of a thread that it does not have.
                        signal.alarm(20)
                        assert client.run(queries.request("oms", "GET", f"echo/{number}")) == f"/echo/{number}"
                        del client
                        gc.collect()
                        status = 0
                    finally:
                        os._exit(status)
                statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            over.set()
            for thread in threads:
                thread.join()
            client.close()
            assert statuses == [0] * 4, statuses
        """
        with HostileServer(echo) as server:
            warnings = ["-W", "error", "-W", "ignore:This process:DeprecationWarning"]
            command = [sys.executable, *warnings, "-c", textwrap.dedent(script)]
            command += [sandbox.identity_url, server.url, str(tmp_path / "cache")]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            assert (done.returncode, done.stderr) == (0, "")
        assert sandbox.stats()["token_requests_total"] == 1


class TestCancellation:
    @pytest.mark.parametrize("where", ["API", "identity"])
    async def test_closes_and_leaves_the_client_usable(self, make_client: MakeClient, where: str) -> None:
        asked = threading.Event()
        quiet = threading.Event()

        def handle(sock: socket.socket, request: bytes) -> None:
            if quiet.is_set() or not hostile.target(request).endswith("slow"):
                echo(sock, request) if request.startswith(b"GET") else sock.sendall(token_reply())
                return
            asked.set()
            hostile.silent(sock, request)

        def slow_token(sock: socket.socket, request: bytes) -> None:
            asked.set()
            time.sleep(0.3)
            sock.sendall(token_reply())

        with HostileServer(handle) as api, HostileServer(slow_token) as identity:
            client = make_client(identity_url=(identity if where == "identity" else api).url, oms_url=api.url)
            task = asyncio.create_task(client.arun(thing("slow")))
            assert await asyncio.to_thread(asked.wait, WELL_BELOW_A_HANG)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            if where == "API":
                assert await asyncio.to_thread(api.closed.wait, WELL_BELOW_A_HANG)
            quiet.set()
            assert await client.arun(thing("slow")) == "/echo/slow"
            await client.aclose()
            assert len(identity.requests) == (where == "identity"), "a token request was thrown away"

    async def test_ends_a_pause(self, make_client: MakeClient, sandbox: SandboxServer) -> None:
        sandbox.fault(target="oms", kind="status", status=503, retry_after=30, times=None)
        client = make_client()
        pausing = asyncio.Event()
        with on_retry(pausing.set):
            task = asyncio.create_task(client.arun(queries.accounts()))
            async with asyncio.timeout(WELL_BELOW_A_HANG):
                await pausing.wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
        await client.aclose()
        assert sandbox.stats()["requests"]["oms"] == 1

    async def test_of_one_leaves_others_alone(self, make_client: MakeClient) -> None:
        def handle(sock: socket.socket, request: bytes) -> None:
            if b"slow" in request:
                hostile.silent(sock, request)
            echo(sock, request)

        with HostileServer(handle) as server:
            client = make_client(oms_url=server.url)
            tasks = [asyncio.create_task(client.arun(thing(f"slow{number}"))) for number in range(4)]
            fast = [client.arun(thing(number)) for number in range(20)]
            answers = asyncio.gather(*fast)
            for task in tasks:
                await asyncio.sleep(0)
                task.cancel()
            assert await answers == [f"/echo/{number}" for number in range(20)]
            assert await asyncio.gather(*tasks, return_exceptions=True)
            assert all(task.cancelled() for task in tasks)
            await client.aclose()


SECRET = "hüsh hush+%/:"
PAGE = hostile.reply(b"<html>")
GIANT_TOKEN = token_reply("t0ken-one" * 9999)


class TestSecrets:
    """Nothing that opens a door is ever shown."""

    def given_away(self, text: str, tokens: list[str]) -> list[str]:
        encoded = {
            base64.b64encode(f"{user}:{secret}".encode()).decode()
            for user in ("id", "sandbox-client")
            for secret in (SECRET, quote(SECRET, safe=""), quote_plus(SECRET))
        }
        forms = {SECRET, repr(SECRET)[1:-1], ascii(SECRET)[1:-1], quote(SECRET), quote(SECRET, safe="")}
        return [form for form in forms | {quote_plus(SECRET)} | encoded | set(tokens) if form in text]

    def test_are_not_in_logs(
        self, run: Runner, make_client: MakeClient, caplog: pytest.LogCaptureFixture, masker: RecordingMasker
    ) -> None:
        caplog.set_level(logging.DEBUG)
        for name in ("httpx", "httpcore", "openmarkets_provider"):
            caplog.set_level(logging.DEBUG, name)
        replies = [hostile.reply(b"", 401), hostile.reply(b"", 503, AGAIN), hostile.reply()]
        with (
            HostileServer(hostile.answering(token_reply("t0ken-one"), token_reply("t0ken-two"))) as identity,
            HostileServer(hostile.answering(*replies)) as api,
        ):
            client = make_client(client_id="id", client_secret=SECRET, identity_url=identity.url, oms_url=api.url)
            assert run(client, thing()) == []
            assert client.httpx("oms").get("echo/thing").json() == []
            assert len(api.requests) == 4
        shown = "\n".join(f"{record.getMessage()} {record.args!r} {record.__dict__!r}" for record in caplog.records)
        assert "HTTP Request" in shown, "httpx was not heard"
        assert "send_request_headers.started request=<Request [b'POST']>" in shown, "httpcore was not heard"
        assert self.given_away(shown, ["t0ken-one", "t0ken-two"]) == []
        assert {"t0ken-one", "t0ken-two"} <= set(masker.masked)

    def test_are_not_in_representations(self, make_client: MakeClient) -> None:
        with HostileServer(hostile.answering(token_reply("t0ken-one"))) as identity:
            client = make_client(client_id="id", client_secret=SECRET, identity_url=identity.url)
            assert client.get_access_token("oms-api") == "t0ken-one"
            http = client.http("oms")
            token = client.tokens.get("oms-api")
            request = http.build("GET", "x", headers={"Authorization": f"Bearer {token.value}"})
            reply = Reply(200, {"x-request-id": token.value}, token.value.encode(), (token.value,))
            failure = NoAnswer("https://x", httpcore.ReadError("cut"))
            shown = [client, client.settings, client.tokens, client.store, http, client.httpx("oms"), token]
            shown += [request, reply, failure]
            text = "\n".join(f"{thing!r} {thing!s}" for thing in shown)
        assert self.given_away(text, ["t0ken-one"]) == []

    @pytest.mark.parametrize(
        ("identity_reply", "api_reply", "query"),
        [
            pytest.param(PAGE, b"", thing(), id="no token"),
            pytest.param(hostile.reply(b'{"error": "invalid_client"}', 401), b"", thing(), id="refused"),
            pytest.param(token_reply("t0ken-one", status=201), b"", thing(), id="token with a wrong status"),
            pytest.param(GIANT_TOKEN, b"", thing(), id="giant token"),
            pytest.param(None, b"", thing(), id="identity gone"),
            pytest.param(token_reply("t0ken-one"), None, NEW_ORDER, id="API gone"),
            pytest.param(token_reply("t0ken-one"), hostile.reply(b"", 500), NEW_ORDER, id="server error"),
            pytest.param(token_reply("t0ken-one"), hostile.reply(b"<html>"), NEW_ORDER, id="not JSON"),
            pytest.param(token_reply("t0ken-one"), hostile.reply(b"", 401), NEEDS_A_USER, id="user context"),
            pytest.param(token_reply("t0ken-one"), b"no HTTP", NEW_ORDER, id="no HTTP"),
        ],
    )
    def test_are_not_in_errors(
        self,
        run: Runner,
        make_client: MakeClient,
        identity_reply: bytes | None,
        api_reply: bytes | None,
        query: queries.Query,
    ) -> None:
        identity_handler = hostile.reset if identity_reply is None else hostile.answering(identity_reply)
        api_handler = hostile.reset if api_reply is None else hostile.ending(api_reply)
        with HostileServer(identity_handler) as identity, HostileServer(api_handler) as api:
            client = make_client(client_id="id", client_secret=SECRET, identity_url=identity.url, oms_url=api.url)
            if identity_reply in (None, PAGE, GIANT_TOKEN):
                # without the pauses of a transient failure
                error = client.check_scope("oms-api")
                assert error is not None
            else:
                with pytest.raises(OpenmarketsError) as caught:
                    run(client, query)
                error = caught.value
        text = texts_of(error) + json.dumps(error.as_dict()) + repr(pickle.dumps(error))
        assert self.given_away(text, ["t0ken-one"]) == []
        assert str(from_dict(error.as_dict())) == str(error)
        assert vars(pickle.loads(pickle.dumps(error))) == vars(error)

    def test_reach_no_other_process(self, run: Runner, make_client: MakeClient) -> None:
        before = dict(os.environ)
        run(make_client(), BHP)
        assert dict(os.environ) == before


@pytest.mark.parametrize("status", [200, 500, 400])
def test_a_server_that_repeats_our_headers_puts_no_token_into_an_error(
    run: Runner, make_client: MakeClient, status: int
) -> None:
    def handle(sock: socket.socket, request: bytes) -> None:
        if b"connect/token" in request:
            sock.sendall(token_reply("t0ken-to-hide"))
        else:
            sock.sendall(hostile.reply(b"you sent: " + request, status, ["Retry-After: 0"]))

    with HostileServer(handle) as server:
        client = make_client(identity_url=server.url, oms_url=server.url, client_secret="of this test")
        with pytest.raises(OpenmarketsError) as caught:
            run(client, queries.accounts())
    assert "you sent" in repr(caught.value.as_dict())
    assert "t0ken-to-hide" not in repr(caught.value.as_dict())


@pytest.mark.parametrize("kind", ["http", "httpx"])
def test_connections_that_nobody_closes_go_with_the_client(make_client: MakeClient, kind: str) -> None:
    with HostileServer(hostile.answering(hostile.reply())) as server:
        settings = make_client(oms_url=server.url, cache_backend="memory").settings
        client = module.OpenmarketsClient(settings, store=None, masker=RecordingMasker(), user_agent="x")
        http: Any = getattr(client, kind)("oms")
        del client
        gc.collect()
        if kind == "http":
            assert http.send(http.build("GET", "accounts/v1", headers={})).body == b"[]"
        else:
            assert http.get("accounts/v1").json() == []
        assert not server.closed.is_set()
        del http
        gc.collect()
        assert server.closed.wait(10)
