"""The token endpoint, over HTTP."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator

import httpx
import pytest

from openmarkets_provider.sandbox.server import Client, SandboxServer
from tests.sandbox.conftest import fetch_token

FORM = {"grant_type": "client_credentials", "scope": "market-data-api"}
ODD = Client("odd client+1", "a+b %:/é", ("news-api",))


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxServer]:
    with SandboxServer([Client("first", "secret"), ODD], token_lifetime=0) as server:
        yield server


@pytest.fixture
def token_url(sandbox: SandboxServer) -> str:
    return f"{sandbox.identity_url}/connect/token"


def post(url: str, *, auth: tuple[str, str] | None = ("first", "secret"), **kwargs: object) -> httpx.Response:
    return httpx.post(url, auth=auth, trust_env=False, **({"data": FORM} | kwargs))  # type: ignore[arg-type]


def basic(text: bytes) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(text).decode()}"}


def test_a_token_is_opaque_and_never_stored_by_caches(token_url: str) -> None:
    reply = post(token_url, data=FORM | {"scope": "market-data-api news-api oms-api"})
    assert reply.status_code == 200
    body = reply.json()
    assert re.fullmatch(r"[0-9a-f]{64}", body.pop("access_token"))
    assert body == {"expires_in": 0, "token_type": "Bearer"}
    assert reply.headers["cache-control"] == "no-store"


def test_every_token_is_another(token_url: str) -> None:
    assert post(token_url).json()["access_token"] != post(token_url).json()["access_token"]


def test_a_token_ends_with_its_lifetime(sandbox: SandboxServer, token_url: str) -> None:
    token = post(token_url).json()["access_token"]
    headers = {"Authorization": f"Bearer {token}"}
    reply = httpx.get(f"{sandbox.market_data_url}/securities/v1", headers=headers, trust_env=False)
    assert (reply.status_code, reply.json()["error"]) == (401, "invalid_token")


@pytest.mark.parametrize(
    "pair",
    [b"odd+client%2B1:a%2Bb+%25%3A%2F%C3%A9", b"odd%20client%2b1:a%2bb%20%25%3a%2f%c3%a9"],
    ids=["plus", "percent"],
)
def test_both_halves_of_the_credentials_are_form_decoded(token_url: str, pair: bytes) -> None:
    form = FORM | {"scope": "news-api"}
    assert post(token_url, auth=None, headers=basic(pair), data=form).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        basic("odd client+1:a+b %:/é".encode()),
        basic(b"odd client+1:a+b %:/"),
        basic(b"first:wrong"),
        basic(b"nobody:secret"),
        basic(b"first"),
        {"Authorization": "Basic !!!"},
        {"Authorization": "Bearer Zmlyc3Q6c2VjcmV0"},
    ],
)
def test_wrong_credentials_are_an_invalid_client(token_url: str, headers: dict[str, str]) -> None:
    reply = post(token_url, auth=None, headers=headers)
    assert (reply.status_code, reply.json()["error"]) == (401, "invalid_client")
    assert reply.headers["www-authenticate"] == "Basic"
    assert reply.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("form", "error"),
    [
        ("grant_type=client_credentials", "invalid_scope"),
        ("grant_type=client_credentials&scope=", "invalid_scope"),
        ("grant_type=client_credentials&scope=market-data-api%20md-streams-api", "invalid_scope"),
        ("grant_type=password&scope=market-data-api", "unsupported_grant_type"),
        ("scope=market-data-api", "invalid_request"),
        ("grant_type=&scope=market-data-api", "invalid_request"),
        ("grant_type=client_credentials&scope=news-api&scope=oms-api", "invalid_request"),
        ("", "invalid_request"),
        ("nothing", "invalid_request"),
        ("scope=é", "invalid_request"),
    ],
)
def test_wrong_forms_are_refused_as_oauth_says(token_url: str, form: str, error: str) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
    reply = post(token_url, data=None, content=form.encode(), headers=headers)
    assert (reply.status_code, reply.json()["error"]) == (400, error)
    assert reply.headers["cache-control"] == "no-store"


def test_a_scope_outside_the_clients_plan_is_refused(token_url: str) -> None:
    reply = post(token_url, auth=None, headers=basic(b"odd+client%2B1:a%2Bb+%25%3A%2F%C3%A9"))
    assert (reply.status_code, reply.json()["error"]) == (400, "invalid_scope")


def test_a_body_that_is_no_form_is_refused(token_url: str) -> None:
    reply = post(token_url, data=None, json=FORM)
    assert (reply.status_code, reply.json()["error"]) == (400, "invalid_request")


def test_a_get_is_not_allowed(token_url: str) -> None:
    assert httpx.get(token_url, trust_env=False).status_code == 405


def test_a_clients_repr_hides_the_secret() -> None:
    assert ODD.client_secret not in repr(ODD)


def test_a_secret_that_is_changed_is_refused_and_its_tokens_stay_valid(
    openmarkets_sandbox: SandboxServer, api: httpx.Client
) -> None:
    def asked(secret: str) -> int:
        auth = (openmarkets_sandbox.client_id, secret)
        return post(f"{openmarkets_sandbox.identity_url}/connect/token", auth=auth).status_code

    changed = api.post(f"/_sandbox/clients/{openmarkets_sandbox.client_id}", json={"client_secret": "another"})
    assert changed.status_code == 204
    assert (asked(openmarkets_sandbox.client_secret), asked("another")) == (401, 200)
    assert api.get("/oms/accounts/v1").status_code == 200
    openmarkets_sandbox.reset()
    assert (asked(openmarkets_sandbox.client_secret), asked("another")) == (200, 401)


@pytest.mark.parametrize(
    ("client_id", "fields", "reason"),
    [
        ("nobody", {"client_secret": "another"}, "has no client 'nobody'; it has sandbox-client, "),
        ("sandbox-client", {}, "the body must have client_secret, a string, and nothing else"),
        ("sandbox-client", {"client_secret": ""}, "the body must have client_secret, a string, and nothing else"),
        (
            "sandbox-client",
            {"client_secret": "another", "scopes": []},
            "the body must have client_secret, a string, and nothing else",
        ),
    ],
)
def test_a_secret_that_can_not_be_is_refused(
    anonymous: httpx.Client, client_id: str, fields: dict[str, object], reason: str
) -> None:
    refused = anonymous.post(f"/_sandbox/clients/{client_id}", json=fields)
    assert refused.status_code == 400
    assert reason in refused.json()["detail"]


def test_all_tokens_that_were_issued_are_told_even_revoked_ones(
    openmarkets_sandbox: SandboxServer, anonymous: httpx.Client
) -> None:
    tokens = [fetch_token(openmarkets_sandbox), fetch_token(openmarkets_sandbox, "oms-api")]
    openmarkets_sandbox.revoke_tokens()
    assert anonymous.get("/_sandbox/tokens").json()["tokens"][-2:] == tokens
