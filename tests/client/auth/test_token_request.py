from __future__ import annotations

import base64
import json
import logging
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qs, quote, unquote_plus

import pytest
from hypothesis import given

from openmarkets_provider import queries
from openmarkets_provider.client.auth.token_request import (
    MAX_TOKEN_REPLY,
    basic_credentials,
    read_token_reply,
    secret_forms,
)
from openmarkets_provider.client.http.clients import NoAnswer
from openmarkets_provider.client.http.deadline import cancel_on
from openmarkets_provider.client.settings import Settings
from openmarkets_provider.exceptions import (
    OpenmarketsAuthError,
    OpenmarketsError,
    OpenmarketsInvalidClient,
    OpenmarketsRateLimited,
    OpenmarketsScopeNotInPlan,
    OpenmarketsServerError,
)
from openmarkets_provider.sandbox.server import SandboxServer
from tests.client.conftest import AWKWARD, MakeClient, RecordingMasker, Runner, token_reply
from tests.support import hostile
from tests.support.hostile import HostileServer
from tests.support.replies import BODIES, FORGERIES, HEADERS, HTML, LONG_WORDS, NOT_JSON, STATUSES, escaped

SCOPE = "oms-api"
TOKEN = "tok-5b15ec9e7d"


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
            make_client(client_id=f"{secret}-id", client_secret=secret, identity_url=server.url).get_access_token(
                "oms-api"
            )
            [request] = server.requests
        pair = credentials_of(request)
        assert pair.isascii()
        assert tuple(map(unquote_plus, pair.split(":"))) == (f"{secret}-id".strip(), secret)

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

    @pytest.mark.parametrize("secret", ["hush ", " hush", " hush "])
    def test_with_a_space_around_the_secret_says_so(self, run: Runner, make_client: MakeClient, secret: str) -> None:
        client = make_client(client_secret=secret)
        with pytest.raises(OpenmarketsInvalidClient, match="The secret begins or ends with a space") as caught:
            run(client, queries.accounts(), queries.accounts())
        assert (caught.value.status, caught.value.error) == (401, "invalid_client")
        assert "hush" not in str(caught.value)

    def test_with_a_space_within_the_secret_says_nothing_of_it(self, run: Runner, make_client: MakeClient) -> None:
        with pytest.raises(OpenmarketsInvalidClient) as caught:
            run(make_client(client_secret="hu sh"), queries.accounts(), queries.accounts())
        assert "space" not in str(caught.value)

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
            pytest.param(hostile.reply(b"[]"), "not a JSON object", id="list"),
            pytest.param(token_reply(value="two\r\nlines"), "characters", id="header injection"),
            pytest.param(token_reply(status=201), "refused a token", id="another status"),
            pytest.param(token_reply(status=302), "redirected", id="redirect"),
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

    @pytest.mark.parametrize(
        ("page", "status", "said"),
        [
            pytest.param(hostile.reply(HTML, 200, ["Content-Type: text/html"]), 200, "text/html", id="HTML"),
            pytest.param(hostile.reply(b""), 200, "not JSON", id="empty"),
            pytest.param(token_reply(value="t" * MAX_TOKEN_REPLY), 200, "larger than 65536 bytes", id="giant"),
            pytest.param(hostile.reply(b"{}", 200, ["Content-Encoding: br"]), 200, "encoding", id="encoding"),
            pytest.param(hostile.reply(HTML, 403, ["Content-Type: text/html"]), 403, "text/html", id="403 HTML"),
            pytest.param(hostile.reply(b'{"message": "Forbidden"}', 403), 403, "Forbidden", id="403 JSON"),
            pytest.param(hostile.reply(b"x" * (MAX_TOKEN_REPLY + 1), 403), 403, "larger than", id="403 giant"),
        ],
    )
    def test_that_meets_a_firewall_or_a_proxy_says_what_answered(
        self, make_client: MakeClient, page: bytes, status: int, said: str
    ) -> None:
        with HostileServer(hostile.answering(page)) as server:
            error = make_client(identity_url=server.url).check_scope("oms-api")
        assert type(error) is OpenmarketsAuthError
        assert error.transient
        assert (error.status, error.error) == (status, None)
        assert said in str(error)
        assert "less" not in str(error)
        assert "Client ID" not in str(error)

    def test_that_met_a_firewall_is_made_again(self, run: Runner, make_client: MakeClient) -> None:
        page = hostile.reply(HTML, 403, ["Content-Type: text/html", "Retry-After: 0"])
        with (
            HostileServer(hostile.answering(page, token_reply())) as identity,
            HostileServer(hostile.answering(hostile.reply())) as api,
        ):
            client = make_client(identity_url=identity.url, oms_url=api.url)
            assert run(client, queries.accounts()) == []
            assert len(identity.requests) == 2

    def test_is_not_redirected(self, run: Runner, make_client: MakeClient) -> None:
        with HostileServer(hostile.answering(token_reply())) as other:
            away = hostile.reply(b"", 307, [f"Location: {other.url}/connect/token"])
            with HostileServer(hostile.answering(away)) as server:
                client = make_client(identity_url=server.url)
                with pytest.raises(OpenmarketsAuthError, match="307") as caught:
                    run(client, queries.accounts())
        assert other.connections == 0
        assert f"redirected to {other.url} " in str(caught.value)
        assert "Check the Identity URL (host)" in str(caught.value)
        assert not caught.value.transient

    @pytest.mark.parametrize(
        ("location", "target"),
        [
            ("https://user:hush@login.example:8443/hush?hush#hush", "https://login.example:8443 "),
            ("//login.example/?hush", "https://login.example "),
            ("https://[2001:db8::1]/", "https://[2001:db8::1] "),
            ("/login?hush", "another path "),
            ("http://[hush", "a malformed URL "),
            ("http://login.example:hush/", "a malformed URL "),
            ("https://login.example\n2026 ERROR forged/", None),
            (None, "an unnamed address "),
        ],
    )
    def test_that_is_redirected_says_where_to_and_nothing_more(self, location: str | None, target: str | None) -> None:
        error = token_error(302, headers={} if location is None else {"location": location})
        assert target is None or f"redirected to {target}" in str(error)
        assert "hush" not in str(error)
        assert str(error).isprintable()

    @pytest.mark.parametrize(
        "page",
        [
            pytest.param(hostile.reply(b"x" * (MAX_TOKEN_REPLY + 1), 503), id="giant"),
            pytest.param(hostile.reply(b"x", 503, ["Content-Encoding: br"]), id="encoding"),
        ],
    )
    def test_that_meets_an_unreadable_error_page_goes_by_its_status(self, make_client: MakeClient, page: bytes) -> None:
        with HostileServer(hostile.answering(page)) as server:
            error = make_client(identity_url=server.url).check_scope("oms-api")
        assert isinstance(error, OpenmarketsServerError)
        assert error.status == 503
        assert error.transient


def test_a_run_that_ends_does_not_end_its_token_request(make_client: MakeClient) -> None:
    """Others may wait for that token, and would share the failure."""
    over = threading.Event()

    def handle(sock: socket.socket, request: bytes) -> None:
        over.set()
        # Longer than it takes to notice the end of a run.
        time.sleep(1.0)
        sock.sendall(token_reply("t0ken-of-all"))

    def call() -> str:
        cancel_on(over)
        token = client.get_access_token("oms-api")
        http = client.http("oms")
        with pytest.raises(NoAnswer):
            http.send(http.build("GET", "accounts/v1", headers={}))
        return token

    with (
        HostileServer(handle) as identity,
        HostileServer(hostile.silent) as api,
        ThreadPoolExecutor(1) as pool,
    ):
        # Only the end of the run can end the second request in the time that the test has for it.
        client = make_client(identity_url=identity.url, oms_url=api.url, timeout=300.0)
        assert pool.submit(call).result(30) == "t0ken-of-all"
        assert len(identity.requests) == len(api.requests) == 1


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
        report: dict[str, list[str]] = {}

        def handle(sock: socket.socket, request: bytes) -> None:
            report[request[:4].decode()] = [*masker.masked]
            sock.sendall(token_reply("fresh-token") if request.startswith(b"POST") else hostile.reply())

        with HostileServer(handle) as server:
            client = make_client(identity_url=server.url, oms_url=server.url, client_secret="s+e cret")
            run(client, queries.accounts())
            encoded = (hostile.header(server.requests[0], "authorization") or "").partition(" ")[2]
            assert {encoded, "s%2Be%20cret", "s%2Be+cret"} <= set(report["POST"])
            assert "fresh-token" in report["GET "], "the API was asked before the token was masked"
            masker.masked.clear()
            assert client.check_scope("oms-api") is None
            assert "s%2Be+cret" in masker.masked
            assert "fresh-token" in masker.masked


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
        report = f"wrong secret {secret} in ".encode() + request
        sock.sendall(hostile.reply(report, status, ["Retry-After: 0"]))

    with HostileServer(handle) as server:
        client = make_client(identity_url=server.url, client_secret=secret)
        error = client.check_scope("oms-api")
        sent = hostile.header(server.requests[0], "authorization") or ""
    assert error is not None
    shown = f"{error} {error.as_dict()}"
    assert "wrong secret" in shown
    assert secret not in shown
    assert sent.partition(" ")[2] not in shown


# --- replies


def body_of(**changes: Any) -> bytes:
    reply = {"access_token": TOKEN, "expires_in": 3600, "token_type": "Bearer"} | changes
    return json.dumps({name: value for name, value in reply.items() if value is not ...}).encode()


def token_error(status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> OpenmarketsError:
    with pytest.raises(OpenmarketsError) as caught:
        read_token_reply(SCOPE, status, headers or {}, body)
    return caught.value


def assert_shows_no_token(error: OpenmarketsError) -> None:
    assert TOKEN not in str(error)
    assert TOKEN not in repr(error.as_dict())


@pytest.mark.parametrize(
    ("lifetime", "seconds"),
    [(3600, 3600.0), (1, 1.0), (0.5, 0.5), (31 * 86400, 2678400.0), ("3600", 3600.0), ("59.5", 59.5)],
)
@pytest.mark.parametrize("kind", ["Bearer", "bearer", "BEARER"])
def test_a_good_body_of(kind: str, lifetime: float, seconds: float):
    body = body_of(expires_in=lifetime, token_type=kind, scope=SCOPE, more={"x": 1})
    value = read_token_reply(SCOPE, 200, {}, body)
    assert value == (TOKEN, seconds)
    assert type(value[1]) is float


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (body_of(token_type=...), "token_type is None, not 'Bearer'"),
        (body_of(token_type="mac"), "token_type is 'mac', not 'Bearer'"),
        (body_of(token_type=""), "token_type is '', not 'Bearer'"),
        (body_of(token_type=["Bearer"]), r"token_type is \['Bearer'\], not 'Bearer'"),
        (body_of(token_type="x" * 9999), "token_type is 'xxx"),
        (body_of(access_token=...), "access_token is missing"),
        (body_of(access_token=""), "access_token is missing"),
        (body_of(access_token=None), "access_token is missing"),
        (body_of(access_token=5), "access_token is missing"),
        (body_of(access_token=[TOKEN]), "access_token is missing"),
        (body_of(access_token=f"{TOKEN}é"), "access_token has characters"),
        (body_of(access_token=f"{TOKEN}\r\nX: y"), "access_token has characters"),
        (body_of(access_token=f"{TOKEN} x"), "access_token has characters"),
        (body_of(access_token=f"{TOKEN}\t"), "access_token has characters"),
        (body_of(access_token=f"{TOKEN}\x00"), "access_token has characters"),
        (body_of(access_token=f"{TOKEN}\x7f"), "access_token has characters"),
        (b"[" + body_of() + b"]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'"' + TOKEN.encode() + b'"', "not a JSON object"),
    ],
)
def test_an_invalid_token_reply_is_told_without_the_token(body: bytes, problem: str):
    error = token_error(200, body, {"x-request-id": "r1"})
    assert type(error) is OpenmarketsAuthError
    assert not error.transient
    assert (error.status, error.scope, error.request_id) == (200, SCOPE, "r1")
    message = str(error)
    assert message.startswith(f"The identity server's reply for {SCOPE} is not a token: ")
    with pytest.raises(OpenmarketsAuthError, match=problem):
        raise error
    assert "Check the Identity URL (host)" in message
    assert len(message) < 800
    assert_shows_no_token(error)


@pytest.mark.parametrize(
    "lifetime",
    [
        ...,
        None,
        True,
        [3600],
        {},
        0,
        -0.0,
        -1,
        31 * 86400 + 1,
        1e300,
        10**400,
        "",
        "0",
        "-5",
        "soon",
        "NaN",
        "inf",
        "1e400",
    ],
    ids=lambda lifetime: f"{lifetime!r:.20}",
)
def test_a_lifetime_that_cannot_be_true_is_none(lifetime: Any):
    assert read_token_reply(SCOPE, 200, {}, body_of(expires_in=lifetime)) == (TOKEN, None)


@pytest.mark.parametrize("lifetime", [..., 0, "soon"])
def test_a_server_that_names_no_lifetime_stops_no_task(
    make_client: MakeClient, caplog: pytest.LogCaptureFixture, lifetime: Any
):
    with HostileServer(hostile.answering(hostile.reply(body_of(expires_in=lifetime)))) as identity:
        client = make_client(identity_url=identity.url)
        for _ in range(2):
            assert client.check_scope("oms-api") is None
        assert client.tokens.get("oms-api").lifetime == 60
        assert len(identity.requests) == 2
    [warning] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "expires_in" in warning.getMessage()


@pytest.mark.parametrize("status", [201, 202, 206, 301, 400, 401, 418, 429, 500, 503])
@pytest.mark.parametrize(
    "body",
    [
        body_of(),
        b"[" + body_of() + b"]",
        body_of()[:-1],
        b"access_token=" + TOKEN.encode() + b"&token_type=bearer",
        b"<html>access_token: " + TOKEN.encode(),
        body_of(error="invalid_scope"),
        body_of(title="x", detail=None),
        body_of(message="x"),
    ],
    ids=["plain", "list", "broken", "form", "page", "error", "problem", "message"],
)
def test_a_token_in_a_reply_that_should_hold_none_is_not_repeated(status: int, body: bytes):
    assert_shows_no_token(token_error(status, body))


@pytest.mark.parametrize(
    ("status", "code", "kind", "words"),
    [
        (400, "invalid_scope", OpenmarketsScopeNotInPlan, "not in the client's plan"),
        (400, "unauthorized_client", OpenmarketsScopeNotInPlan, "not in the client's plan"),
        (401, "invalid_scope", OpenmarketsScopeNotInPlan, "not in the client's plan"),
        (400, "invalid_client", OpenmarketsInvalidClient, "Client secret.*environment.*client_auth_encoding"),
        (401, "invalid_client", OpenmarketsInvalidClient, "Check Client ID"),
        (401, "invalid_request", OpenmarketsInvalidClient, "Check Client ID"),
        (400, "invalid_request", OpenmarketsAuthError, "invalid_request"),
        (400, "unsupported_grant_type", OpenmarketsAuthError, "unsupported_grant_type"),
        (404, "x", OpenmarketsAuthError, "404 x"),
        (403, "invalid_client", OpenmarketsInvalidClient, "Check Client ID"),
        (403, "access_denied", OpenmarketsAuthError, "access_denied"),
        (403, "unauthorized_client", OpenmarketsScopeNotInPlan, "not in the client's plan"),
        (408, "invalid_client", OpenmarketsServerError, "408"),
        (425, "invalid_client", OpenmarketsServerError, "425"),
        (429, "invalid_client", OpenmarketsRateLimited, "429"),
        (500, "invalid_client", OpenmarketsServerError, "500"),
        (503, "invalid_scope", OpenmarketsServerError, "503"),
    ],
)
def test_a_refused_token_is_an_error_of_its_kind(status: int, code: str, kind: type[OpenmarketsError], words: str):
    body = json.dumps({"error": code, "error_description": "because"}).encode()
    with pytest.raises(kind, match=words) as caught:
        read_token_reply(SCOPE, status, {"x-request-id": "r1", "retry-after": "90"}, body)
    error = caught.value
    assert type(error) is kind
    assert (error.status, error.request_id) == (status, "r1")
    assert f"refused a token for {SCOPE}: {status} {code}: because." in str(error)
    if isinstance(error, OpenmarketsAuthError):
        assert (error.error, error.error_description, error.scope) == (code, "because", SCOPE)
        assert not error.transient
    else:
        assert (error.title, error.detail, error.retry_after) == (code, "because", 90.0)
        assert error.endpoint == "POST connect/token"
        assert "It asks to wait 90 s." in str(error)
        assert error.transient


def test_what_an_identity_server_says_ends_in_one_full_stop():
    body = json.dumps({"error": "invalid_scope", "error_description": "Not in your plan."}).encode()
    with pytest.raises(OpenmarketsScopeNotInPlan, match=r"invalid_scope: Not in your plan\. This API"):
        read_token_reply(SCOPE, 400, {}, body)


def test_a_401_without_a_reason_is_about_the_client():
    error = token_error(401)
    assert type(error) is OpenmarketsInvalidClient
    assert "no reason given" in str(error)
    assert (error.error, error.error_description, error.request_id) == (None, None, None)


@pytest.mark.parametrize("status", [201, 400, 403, 404])
@pytest.mark.parametrize("body", [b"", HTML, b"RBAC: access denied", b'["Forbidden"]'])
def test_what_no_token_endpoint_would_say_may_pass_and_says_nothing_of_the_client(status: int, body: bytes):
    error = token_error(status, body, {"content-type": "text/html", "retry-after": "7"})
    assert type(error) is OpenmarketsAuthError
    assert "check the Identity URL (host)" in str(error)
    assert f"{status} (text/html)" in str(error)
    assert (error.error, error.transient, error.retry_after) == (None, True, 7.0)


@pytest.mark.parametrize("body", [b'{"message": "Forbidden"}', b'{"error": "Forbidden"}', b"{}"])
def test_a_403_without_a_code_of_oauth_may_pass(body: bytes):
    error = token_error(403, body)
    assert type(error) is OpenmarketsAuthError
    assert error.transient


@pytest.mark.parametrize("body", [b'{"title":"Not Found","detail":"No route"}', b'{"message":"Not Found"}'])
def test_words_that_are_not_of_oauth_are_no_oauth_error_code(body: bytes):
    error = token_error(404, body)
    assert error.error is None
    assert "Not Found" in str(error)


@pytest.mark.parametrize("body", NOT_JSON, ids=lambda body: repr(body[:12]))
def test_only_strict_json_is_a_token_reply(body: bytes):
    error = token_error(200, body)
    assert type(error) is OpenmarketsAuthError
    assert error.transient


@pytest.mark.parametrize("body", [b"access_token=" + TOKEN.encode(), body_of()[:-1], HTML + TOKEN.encode()])
def test_a_reply_that_is_not_json_is_told_without_the_token(body: bytes):
    error = token_error(200, body, {"x-request-id": "r1", "content-type": "text/html"})
    assert (error.status, error.scope, error.request_id) == (200, SCOPE, "r1")
    assert "200 (text/html)" in str(error)
    assert_shows_no_token(error)


@pytest.mark.parametrize("body", LONG_WORDS.values(), ids=LONG_WORDS)
def test_long_words_of_an_identity_server_are_cut(body: bytes):
    assert len(str(token_error(500, body))) < 1200


@pytest.mark.parametrize("bad", FORGERIES)
def test_nothing_of_a_token_reply_can_forge_a_line_of_a_log(bad: str):
    words = f"a{bad}b"
    body = json.dumps({"error": words, "error_description": words}).encode()
    headers = {"x-request-id": words, "content-type": words, "retry-after": words}
    errors = [
        token_error(400, body, headers),
        token_error(503, body, headers),
        token_error(503, words.encode(), headers),
        token_error(200, body_of(token_type=words), headers),
    ]
    for error in errors:
        assert str(error).isprintable()
        assert bad not in "".join(value for value in vars(error).values() if isinstance(value, str))
        assert error.request_id == "a b"


@given(STATUSES, HEADERS, BODIES)
def test_any_token_reply_is_a_token_or_a_typed_error(status: int, headers: dict[str, str], body: bytes):
    try:
        value, lifetime = read_token_reply(SCOPE, status, headers, body)
    except (OpenmarketsAuthError, OpenmarketsRateLimited, OpenmarketsServerError) as error:
        assert error.status == status  # noqa: PT017 - any other error fails the test
        assert str(error).isprintable()  # noqa: PT017
        assert len(str(error)) < 3000  # noqa: PT017
        return
    assert status == 200
    assert value.isascii()
    assert value.isprintable()
    assert lifetime is None or 0 < lifetime <= 31 * 86400


def test_what_is_to_be_hidden_and_goes_on_behind_what_is_shown_is_hidden_whole():
    secret = "s" * 4000
    body = b"<p>" + b"-" * 450 + escaped(secret).encode()
    with pytest.raises(OpenmarketsError) as caught:
        read_token_reply(SCOPE, 400, {}, body, [secret])
    assert "---***" in str(caught.value)
    assert escaped("s") not in str(caught.value)


def test_escapes_are_shown_as_they_are_where_nothing_is_to_be_hidden():
    error = token_error(400, rb"C:\\u0041 \/ is missing")
    assert rb"C:\\u0041 \/ is missing".decode() in str(error)
