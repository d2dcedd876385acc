from __future__ import annotations

import asyncio
import base64
import socket
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, quote, unquote_plus

import httpx
import pytest

from openmarkets_provider import queries
from openmarkets_provider.client.auth import bearer as auth
from openmarkets_provider.client.auth.bearer import basic_credentials, secret_forms
from openmarkets_provider.client.client import OpenmarketsClient
from openmarkets_provider.client.settings import Settings
from openmarkets_provider.exceptions import (
    OpenmarketsAccessRefused,
    OpenmarketsAuthError,
    OpenmarketsConfigurationError,
    OpenmarketsInvalidClient,
    OpenmarketsScopeNotInPlan,
    OpenmarketsServerError,
)
from openmarkets_provider.sandbox.server import SandboxServer
from tests.client.conftest import AWKWARD, MakeClient, RecordingMasker, Runner, token_reply
from tests.support import hostile
from tests.support.hostile import HostileServer

ORDER = {
    "accountCode": "SBX0001",
    "securityCode": "BHP",
    "exchange": "ASX",
    "destination": "ASX",
    "side": "Buy",
    "orderPrice": 4000,
    "orderVolume": 1,
    "lifetime": "EndOfDay",
    "pricingInstruction": "Limit",
}
NEW_ORDER = queries.request("oms", "POST", "orders/v4", json=ORDER)
NEEDS_A_USER = queries.request("oms", "GET", "user-context/preferences/v1")

Get = Callable[..., httpx.Response]


def get_sync(client: OpenmarketsClient, url: str, **options: Any) -> httpx.Response:
    return client.http("oms").get(url, **options)


def get_async(client: OpenmarketsClient, url: str, **options: Any) -> httpx.Response:
    async def get() -> httpx.Response:
        try:
            return await client.ahttp("oms").get(url, **options)
        finally:
            await client.aclose()

    return asyncio.run(get())


@pytest.fixture(params=[get_sync, get_async], ids=["sync", "async"])
def get(request: pytest.FixtureRequest) -> Get:
    """Sends a GET with the authenticated httpx client of the OMS API."""
    return request.param


def credentials_of(request: bytes) -> str:
    scheme, _, encoded = (hostile.header(request, "authorization") or "").partition(" ")
    assert scheme == "Basic"
    return base64.b64decode(encoded, validate=True).decode()


SECRETS = [
    "plain",
    "with+plus",
    "with%percent",
    "with%20escape",
    "with:colon",
    "with space",
    "ünïcödé✓",
    "&=?#/;~*\"'\\",
    " ",
]


class TestTokenRequest:
    def test_is_the_documented_one(self, run: Runner, make_client: MakeClient) -> None:
        handler = hostile.answering(token_reply("token-1"), hostile.reply())
        with HostileServer(handler) as server:
            client = make_client(
                client_id="id-1", client_secret="hush", identity_url=server.url + "/identity", oms_url=server.url
            )
            assert run(client, queries.accounts()) == []
            token_request, api_request = server.requests
        assert hostile.target(token_request) == "POST /identity/connect/token"
        assert hostile.header(token_request, "content-type") == "application/x-www-form-urlencoded"
        assert hostile.header(token_request, "accept") == "application/json"
        assert parse_qs(hostile.body(token_request).decode("ascii"), strict_parsing=True) == {
            "grant_type": ["client_credentials"],
            "scope": ["oms-api"],
        }
        assert credentials_of(token_request) == "id-1:hush"
        assert hostile.header(api_request, "authorization") == "Bearer token-1"

    @pytest.mark.parametrize("secret", SECRETS)
    def test_encodes_the_credentials_as_oauth_does(self, make_client: MakeClient, secret: str) -> None:
        with HostileServer(hostile.answering(token_reply())) as server:
            make_client(client_id=f"id {secret}", client_secret=secret, identity_url=server.url).get_access_token(
                "oms-api"
            )
            [request] = server.requests
        pair = credentials_of(request)
        assert pair.isascii()
        assert tuple(map(unquote_plus, pair.split(":"))) == (f"id {secret}", secret)

    @pytest.mark.parametrize("secret", SECRETS)
    def test_leaves_raw_credentials_as_they_are(self, make_client: MakeClient, secret: str) -> None:
        with HostileServer(hostile.answering(token_reply())) as server:
            client = make_client(
                client_id="id+%", client_secret=secret, identity_url=server.url, client_auth_encoding="raw"
            )
            client.get_access_token("oms-api")
            [request] = server.requests
        assert credentials_of(request) == f"id+%:{secret}"

    def test_is_understood_by_a_server_that_decodes(
        self, run: Runner, make_client: MakeClient, sandbox: SandboxServer
    ) -> None:
        client = make_client(client_id=AWKWARD.client_id, client_secret=AWKWARD.client_secret)
        assert run(client, queries.accounts())
        assert sandbox.stats()["token_errors"] == 0

    def test_with_a_wrong_secret_says_what_to_check(
        self, run: Runner, make_client: MakeClient, sandbox: SandboxServer
    ) -> None:
        client = make_client(client_secret="wrong")
        with pytest.raises(OpenmarketsInvalidClient, match="Check Client ID") as caught:
            run(client, queries.accounts(), queries.accounts())
        assert (caught.value.status, caught.value.error, caught.value.scope) == (401, "invalid_client", "oms-api")
        assert sandbox.stats()["token_requests_total"] == 1
        assert sandbox.stats()["requests"]["oms"] == 0

    def test_for_a_scope_outside_the_plan_says_so(self, run: Runner, make_client: MakeClient) -> None:
        handler = hostile.answering(hostile.reply(b'{"error": "invalid_scope"}', 400))
        with HostileServer(handler) as server:
            client = make_client(identity_url=server.url)
            with pytest.raises(OpenmarketsScopeNotInPlan, match="not in the client's plan"):
                run(client, queries.accounts())
            assert len(server.requests) == 1

    @pytest.mark.parametrize(
        ("reply", "problem"),
        [
            pytest.param(hostile.reply(b"<html>Sign in</html>"), "not JSON", id="HTML"),
            pytest.param(hostile.reply(b""), "not JSON", id="empty"),
            pytest.param(hostile.reply(b"[]"), "not a JSON object", id="list"),
            pytest.param(token_reply(value="t" * auth.MAX_TOKEN_REPLY), "larger than 65536 bytes", id="giant"),
            pytest.param(token_reply(value="two\r\nlines"), "characters", id="header injection"),
            pytest.param(token_reply(lifetime=0), "expires_in", id="no lifetime"),
            pytest.param(token_reply(status=302), "refused a token", id="redirect"),
            pytest.param(hostile.reply(b"{}", 200, ["Content-Encoding: br"]), "content encoding", id="encoding"),
        ],
    )
    def test_that_gets_no_token_is_an_auth_error(
        self, run: Runner, make_client: MakeClient, sandbox: SandboxServer, reply: bytes, problem: str
    ) -> None:
        with HostileServer(hostile.answering(reply)) as server:
            client = make_client(identity_url=server.url)
            with pytest.raises(OpenmarketsAuthError, match=problem) as caught:
                run(client, queries.accounts())
            assert len(server.requests) == 1
        assert caught.value.scope == "oms-api"
        assert not caught.value.sent
        assert len(str(caught.value)) < 1000
        assert sandbox.stats()["requests"]["oms"] == 0

    def test_is_not_redirected(self, run: Runner, make_client: MakeClient) -> None:
        with HostileServer(hostile.answering(token_reply())) as other:
            away = hostile.reply(b"", 307, [f"Location: {other.url}/connect/token"])
            with HostileServer(hostile.answering(away)) as server:
                client = make_client(identity_url=server.url)
                with pytest.raises(OpenmarketsAuthError, match="307"):
                    run(client, queries.accounts())
        assert other.connections == 0

    @pytest.mark.parametrize(
        "page",
        [
            pytest.param(hostile.reply(b"x" * (auth.MAX_TOKEN_REPLY + 1), 503), id="giant"),
            pytest.param(hostile.reply(b"x", 503, ["Content-Encoding: br"]), id="encoding"),
        ],
    )
    def test_that_meets_an_unreadable_error_page_goes_by_its_status(self, make_client: MakeClient, page: bytes) -> None:
        with HostileServer(hostile.answering(page)) as server:
            error = make_client(identity_url=server.url).check_scope("oms-api")
        assert isinstance(error, OpenmarketsServerError)
        assert error.status == 503
        assert error.transient


class TestRefusedToken:
    def test_is_replaced_once_and_the_request_repeated(
        self, run: Runner, make_client: MakeClient, sandbox: SandboxServer
    ) -> None:
        client = make_client()
        run(client, queries.accounts())
        sandbox.revoke_tokens()
        assert run(client, queries.accounts())
        stats = sandbox.stats()
        assert stats["token_requests"] == {"oms-api": 2}
        assert stats["by_path"]["GET /oms/accounts/v1"] == 3

    def test_has_even_an_unsafe_request_repeated(
        self, run: Runner, make_client: MakeClient, sandbox: SandboxServer
    ) -> None:
        client = make_client()
        run(client, queries.accounts())
        sandbox.revoke_tokens()
        assert run(client, NEW_ORDER)["orderNumber"]
        stats = sandbox.stats()
        assert stats["token_requests_total"] == 2
        assert stats["by_path"]["POST /oms/orders/v4"] == 2
        assert stats["by_status"]["401"] == 1

    def test_sends_the_whole_body_again(self, run: Runner, make_client: MakeClient) -> None:
        with HostileServer(hostile.answering(hostile.reply(b"", 401), hostile.reply(b"{}"))) as server:
            run(make_client(oms_url=server.url), NEW_ORDER)
            first, second = server.requests
        assert hostile.body(first) == hostile.body(second) != b""
        assert hostile.header(first, "authorization") != hostile.header(second, "authorization")

    def test_that_is_refused_again_needs_a_user(
        self, run: Runner, make_client: MakeClient, sandbox: SandboxServer
    ) -> None:
        client = make_client()
        with pytest.raises(OpenmarketsAccessRefused, match="user context") as caught:
            run(client, NEEDS_A_USER)
        assert "A new token does not help" in str(caught.value)
        assert caught.value.status == 401
        assert sandbox.stats()["token_requests_total"] == 2
        assert sandbox.stats()["requests"]["oms"] == 2

    def test_costs_no_further_token_when_it_goes_on(
        self, run: Runner, make_client: MakeClient, sandbox: SandboxServer
    ) -> None:
        client = make_client()
        for _ in range(5):
            with pytest.raises(OpenmarketsAccessRefused):
                run(client, NEEDS_A_USER)
        stats = sandbox.stats()
        assert stats["token_requests_total"] == 2
        assert stats["requests"]["oms"] == 6

    def test_keeps_the_token_good_for_other_endpoints(
        self, run: Runner, make_client: MakeClient, sandbox: SandboxServer
    ) -> None:
        client = make_client()
        with pytest.raises(OpenmarketsAccessRefused):
            run(client, NEEDS_A_USER)
        assert run(client, queries.accounts())
        assert sandbox.stats()["token_requests_total"] == 2

    def test_is_not_repeated_when_no_new_one_is_to_be_had(
        self, run: Runner, make_client: MakeClient, sandbox: SandboxServer
    ) -> None:
        client = make_client()
        run(client, queries.accounts())
        sandbox.revoke_tokens()
        refusal = {"error": "invalid_client"}
        sandbox.fault(target="identity", kind="status", status=400, body=refusal, times=None)
        with pytest.raises(OpenmarketsInvalidClient):
            run(client, NEW_ORDER)
        assert sandbox.stats()["by_path"]["POST /oms/orders/v4"] == 1

    def test_403_costs_no_token(self, run: Runner, make_client: MakeClient, sandbox: SandboxServer) -> None:
        client = make_client()
        sandbox.fault(target="oms", kind="status", status=403)
        with pytest.raises(OpenmarketsAccessRefused, match="user context"):
            run(client, queries.accounts())
        assert sandbox.stats()["token_requests_total"] == 1
        assert sandbox.stats()["requests"]["oms"] == 1


class TestOrigin:
    @pytest.mark.parametrize(
        "url",
        [
            "http://openmarkets.invalid/steal",
            "https://127.0.0.1:{port}/oms/accounts/v1",
            "http://127.0.0.1:{other}/oms/accounts/v1",
            "http://localhost:{port}/oms/accounts/v1",
            "http://127.0.0.1:{port}@openmarkets.invalid/",
            "http://127.0.0.1/oms/accounts/v1",
        ],
    )
    def test_of_another_is_refused_before_there_is_a_token(
        self, get: Get, make_client: MakeClient, sandbox: SandboxServer, url: str
    ) -> None:
        port = httpx.URL(sandbox.url).port
        with HostileServer(hostile.answering(hostile.reply())) as other:
            with pytest.raises(OpenmarketsConfigurationError, match="access token goes to"):
                get(make_client(), url.format(port=port, other=other.port))
            assert other.connections == 0
        stats = sandbox.stats()
        assert stats["token_requests_total"] == 0
        assert stats["requests"]["oms"] == 0

    def test_of_the_api_may_be_written_out(self, get: Get, make_client: MakeClient, sandbox: SandboxServer) -> None:
        assert get(make_client(), f"{sandbox.oms_url}/accounts/v1").status_code == 200
        assert get(make_client(), f"{sandbox.oms_url}/accounts/v1".upper().replace("OMS/ACCOUNTS/V", "oms/accounts/v"))

    @pytest.mark.parametrize("path", ["accounts/v1", "/accounts/v1", "//accounts/v1"])
    def test_is_kept_by_relative_urls(self, get: Get, make_client: MakeClient, path: str) -> None:
        with HostileServer(hostile.answering(hostile.reply())) as server:
            get(make_client(oms_url=f"{server.url}/base"), path)
            [request] = server.requests
        assert hostile.header(request, "host") == f"127.0.0.1:{server.port}"
        assert hostile.target(request).startswith("GET /base/")

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_of_a_redirect_never_sees_the_token(self, get: Get, make_client: MakeClient, status: int) -> None:
        with HostileServer(hostile.answering(hostile.reply(b"", 401), hostile.reply())) as other:
            away = hostile.reply(b"", status, [f"Location: {other.url}/elsewhere"])
            with HostileServer(hostile.answering(away, hostile.reply())) as server:
                client = make_client(oms_url=server.url)
                assert get(client, "accounts/v1", follow_redirects=True).status_code == 200
                assert hostile.header(server.requests[0], "authorization") is not None
            assert len(other.requests) == 1
            assert hostile.header(other.requests[0], "authorization") is None
            assert hostile.header(other.requests[0], "cookie") is None

    def test_says_nothing_of_credentials_in_a_url(self, get: Get, make_client: MakeClient) -> None:
        with pytest.raises(OpenmarketsConfigurationError) as caught:
            get(make_client(), "http://somebody:hush@openmarkets.invalid/x")
        assert "hush" not in str(caught.value)


class TestSecretForms:
    @pytest.mark.parametrize("encoding", ["rfc6749", "raw"])
    @pytest.mark.parametrize("secret", SECRETS)
    def test_are_all_but_the_secret_itself(self, secret: str, encoding: str) -> None:
        settings = Settings(client_id="id", client_secret=secret, client_auth_encoding=encoding)
        forms = secret_forms(settings)
        assert forms[0] == basic_credentials(settings).partition(" ")[2]
        assert secret not in forms
        assert (quote(secret, safe="") in forms) == (quote(secret, safe="") != secret)

    def test_are_masked_before_the_identity_server_is_asked(
        self, run: Runner, make_client: MakeClient, masker: RecordingMasker
    ) -> None:
        told: dict[str, list[str]] = {}

        def handle(sock: socket.socket, request: bytes) -> None:
            told[request[:4].decode()] = [*masker.told]
            sock.sendall(token_reply("fresh-token") if request.startswith(b"POST") else hostile.reply())

        with HostileServer(handle) as server:
            client = make_client(identity_url=server.url, oms_url=server.url, client_secret="s+e cret")
            run(client, queries.accounts())
            encoded = (hostile.header(server.requests[0], "authorization") or "").partition(" ")[2]
            assert {encoded, "s%2Be%20cret", "s%2Be+cret"} <= set(told["POST"])
            assert "fresh-token" in told["GET "], "the API was asked before the token was masked"
            masker.told.clear()
            assert client.check_scope("oms-api") is None
            assert "s%2Be+cret" in masker.told
            assert "fresh-token" in masker.told


class TestTotalTimeoutOfTheTokenRequest:
    def test_counts_by_itself(self, make_client: MakeClient) -> None:
        with HostileServer(hostile.silent) as server:
            began = time.monotonic()
            error = make_client(identity_url=server.url, timeout=0.3).check_scope("oms-api")
            assert time.monotonic() - began < 10
        assert "POST connect/token: no answer" in str(error)
        assert error is not None
        assert error.transient
        assert not error.sent


@pytest.mark.parametrize("status", [400, 401, 404, 500, 201])
def test_an_identity_server_that_repeats_our_credentials_puts_none_into_an_error(
    make_client: MakeClient, status: int
) -> None:
    secret = "s+e cret/to:hide"

    def handle(sock: socket.socket, request: bytes) -> None:
        told = f"wrong secret {secret} in ".encode() + request
        sock.sendall(hostile.reply(told, status, ["Retry-After: 0"]))

    with HostileServer(handle) as server:
        client = make_client(identity_url=server.url, client_secret=secret)
        error = client.check_scope("oms-api")
        sent = hostile.header(server.requests[0], "authorization") or ""
    assert error is not None
    shown = f"{error} {error.as_dict()}"
    assert "wrong secret" in shown
    assert secret not in shown
    assert sent.partition(" ")[2] not in shown
