from __future__ import annotations

from typing import Any

import httpx
import pytest

from openmarkets_provider import queries
from openmarkets_provider.client.client import OpenmarketsClient
from openmarkets_provider.exceptions import (
    OpenmarketsAccessRefused,
    OpenmarketsConfigurationError,
    OpenmarketsInvalidClient,
)
from openmarkets_provider.sandbox.server import SandboxServer
from tests.client.conftest import MakeClient, Runner
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


def get(client: OpenmarketsClient, url: str, **options: Any) -> httpx.Response:
    """Send a GET with the authenticated httpx client of the OMS API."""
    return client.httpx("oms").get(url, **options)


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
        assert "Client credentials have no user context" in str(caught.value)
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
        self, make_client: MakeClient, sandbox: SandboxServer, url: str
    ) -> None:
        port = httpx.URL(sandbox.url).port
        with HostileServer(hostile.answering(hostile.reply())) as other:
            with pytest.raises(OpenmarketsConfigurationError, match="access token is for"):
                get(make_client(), url.format(port=port, other=other.port))
            assert other.connections == 0
        stats = sandbox.stats()
        assert stats["token_requests_total"] == 0
        assert stats["requests"]["oms"] == 0

    def test_of_the_api_may_be_written_out(self, make_client: MakeClient, sandbox: SandboxServer) -> None:
        assert get(make_client(), f"{sandbox.oms_url}/accounts/v1").status_code == 200
        assert get(make_client(), f"{sandbox.oms_url}/accounts/v1".upper().replace("OMS/ACCOUNTS/V", "oms/accounts/v"))

    @pytest.mark.parametrize("path", ["accounts/v1", "/accounts/v1", "//accounts/v1"])
    def test_is_kept_by_relative_urls(self, make_client: MakeClient, path: str) -> None:
        with HostileServer(hostile.answering(hostile.reply())) as server:
            get(make_client(oms_url=f"{server.url}/base"), path)
            [request] = server.requests
        assert hostile.header(request, "host") == f"127.0.0.1:{server.port}"
        assert hostile.target(request).startswith("GET /base/")

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_of_a_redirect_is_refused(self, make_client: MakeClient, status: int) -> None:
        with HostileServer(hostile.answering(hostile.reply())) as other:
            away = hostile.reply(b"", status, [f"Location: {other.url}/elsewhere"])
            with HostileServer(hostile.answering(away)) as server:
                client = make_client(oms_url=server.url)
                assert get(client, "accounts/v1").status_code == status
                with pytest.raises(OpenmarketsConfigurationError, match="access token is for"):
                    get(client, "accounts/v1", follow_redirects=True)
                assert hostile.header(server.requests[0], "authorization") is not None
            assert other.connections == 0

    def test_of_a_redirect_to_the_same_server_gets_the_token(self, make_client: MakeClient) -> None:
        away = hostile.reply(b"", 302, ["Location: /elsewhere"])
        with HostileServer(hostile.answering(away, hostile.reply())) as server:
            assert get(make_client(oms_url=server.url), "accounts/v1", follow_redirects=True).status_code == 200
            sent = [hostile.header(request, "authorization") for request in server.requests]
        assert sent[0] == sent[1] is not None

    def test_says_nothing_of_credentials_in_a_url(self, make_client: MakeClient) -> None:
        with pytest.raises(OpenmarketsConfigurationError) as caught:
            get(make_client(), "http://somebody:hush@openmarkets.invalid/x")
        assert "hush" not in str(caught.value)

    @pytest.mark.parametrize("options", [{}, {"auth": ("somebody", "hush")}, {"headers": {"authorization": "Basic x"}}])
    def test_has_the_token_and_no_other_credentials(self, make_client: MakeClient, options: dict[str, Any]) -> None:
        with HostileServer(hostile.answering(hostile.reply())) as server:
            get(make_client(oms_url=server.url), f"http://somebody:hush@127.0.0.1:{server.port}/x", **options)
            [request] = server.requests
        assert request.lower().count(b"authorization:") == 1
        assert (hostile.header(request, "authorization") or "").startswith("Bearer ")
