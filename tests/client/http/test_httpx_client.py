"""The ``httpx.Client`` that ``hook.get_conn`` returns."""

from __future__ import annotations

import gzip
import json
import socket
import time

import httpx
import pytest

from openmarkets_provider.sandbox.server import SandboxServer
from tests.client.auth.test_bearer import NEW_ORDER
from tests.client.conftest import USER_AGENT, MakeClient
from tests.client.test_client import ORDERS, WELL_BELOW_A_HANG, echo, thing
from tests.support import hostile
from tests.support.hostile import HostileServer


def test_it_sends_what_httpx_builds(make_client: MakeClient) -> None:
    with HostileServer(hostile.answering(hostile.reply(b'{"a": 1}', 201, ["X-One: two", "Set-Cookie: c=d"]))) as server:
        http = make_client(oms_url=f"{server.url}/base").httpx("oms")
        response = http.post("x/y", params={"a": "b c"}, json={"d": "é"}, headers={"X-Mine": "yes"})
        http.get("z")
        first, second = server.requests
    assert hostile.target(first) == "POST /base/x/y?a=b+c"
    assert json.loads(hostile.body(first)) == {"d": "é"}
    assert hostile.header(first, "content-type") == "application/json"
    assert hostile.header(first, "content-length") == str(len(hostile.body(first)))
    assert hostile.header(first, "x-mine") == "yes"
    assert hostile.header(first, "user-agent") == USER_AGENT
    assert hostile.header(first, "accept") == "application/json"
    assert hostile.header(first, "accept-encoding") == "gzip"
    assert first.lower().count(b"host:") == first.lower().count(b"authorization:") == 1
    assert hostile.header(second, "cookie") is None
    assert (response.status_code, response.json(), response.headers["x-one"]) == (201, {"a": 1}, "two")
    assert response.request.url.path == "/base/x/y"


def test_it_decodes_once(make_client: MakeClient) -> None:
    content = gzip.compress(b"[1]")
    with HostileServer(hostile.answering(hostile.reply(content, 200, ["Content-Encoding: gzip"]))) as server:
        response = make_client(oms_url=server.url).httpx("oms").get("x")
    assert response.json() == [1]
    assert "content-encoding" not in response.headers


def test_it_leaves_errors_and_repetitions_to_the_caller(make_client: MakeClient) -> None:
    with HostileServer(hostile.answering(hostile.reply(b"", 503), hostile.reply(b"", 404))) as server:
        http = make_client(oms_url=server.url).httpx("oms")
        assert http.get("x").status_code == 503
        with pytest.raises(httpx.HTTPStatusError):
            http.get("x").raise_for_status()
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("handler", "kind"),
    [
        pytest.param(hostile.reset, httpx.ReadError, id="reset"),
        pytest.param(hostile.silent, httpx.ReadTimeout, id="silent"),
        pytest.param(hostile.ending(b"no HTTP"), httpx.RemoteProtocolError, id="no HTTP"),
    ],
)
def test_it_raises_the_exceptions_of_httpx(
    make_client: MakeClient, handler: hostile.Handler, kind: type[httpx.TransportError]
) -> None:
    with HostileServer(handler) as server:
        http = make_client(oms_url=server.url, timeout=0.4).httpx("oms")
        with pytest.raises(httpx.TransportError) as caught:
            http.get("x")
    assert type(caught.value) is kind
    assert caught.value.request.url == f"{server.url}/x"


def test_it_raises_httpx_connect_error_where_nobody_listens(make_client: MakeClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(httpx.ConnectError):
        make_client(oms_url=f"http://127.0.0.1:{port}").httpx("oms").get("x")


def test_it_takes_a_time_out_of_a_request(make_client: MakeClient) -> None:
    with HostileServer(hostile.silent) as server:
        began = time.monotonic()
        with pytest.raises(httpx.ReadTimeout):
            make_client(oms_url=server.url, timeout=60.0).httpx("oms").get("x", timeout=0.3)
        assert time.monotonic() - began < WELL_BELOW_A_HANG


def test_it_knows_no_longer_time_out_than_the_connection(make_client: MakeClient) -> None:
    with HostileServer(hostile.silent) as server:
        began = time.monotonic()
        with pytest.raises(httpx.ReadTimeout):
            make_client(oms_url=server.url, timeout=0.3).httpx("oms").get("x", timeout=None)
        assert time.monotonic() - began < WELL_BELOW_A_HANG


def test_it_replaces_a_refused_token_once(make_client: MakeClient, sandbox: SandboxServer) -> None:
    http = make_client().httpx("oms")
    assert http.get("accounts/v1").status_code == 200
    sandbox.revoke_tokens()
    assert http.post("orders/v4", json=NEW_ORDER["json"]).status_code == 200
    stats = sandbox.stats()
    assert stats["by_path"][ORDERS] == 2
    assert stats["token_requests_total"] == 2


def test_it_returns_a_401_that_a_new_token_does_not_mend(make_client: MakeClient, sandbox: SandboxServer) -> None:
    assert make_client().httpx("oms").get("user-context/preferences/v1").status_code == 401
    stats = sandbox.stats()
    assert stats["by_path"]["GET /oms/user-context/preferences/v1"] == 2
    assert stats["token_requests_total"] == 2


def test_it_closes_the_connections_and_the_client_goes_on(make_client: MakeClient) -> None:
    with HostileServer(echo) as server:
        client = make_client(oms_url=server.url)
        with client.httpx("oms") as http:
            assert http.get("echo/thing").json() == client.run(thing()) == "/echo/thing"
            assert server.connections == 1
        assert server.closed.wait(WELL_BELOW_A_HANG)
        with pytest.raises(RuntimeError, match="closed"):
            http.get("echo/thing")
        assert client.run(thing()) == client.run(thing()) == "/echo/thing"
        assert client.httpx("oms").get("echo/thing").json() == "/echo/thing"
        assert server.connections == 2
