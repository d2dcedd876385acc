from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmarkets_provider.client.environments import ENVIRONMENTS, SCOPES
from openmarkets_provider.client.settings import Settings
from openmarkets_provider.exceptions import OpenmarketsConfigurationError

URLS = ["identity_url", "market_data_url", "news_url", "oms_url"]


def settings(**changes: Any) -> Settings:
    return Settings(**({"client_id": "id", "client_secret": "s3cret"} | changes))


def refused(**changes: Any) -> str:
    with pytest.raises(OpenmarketsConfigurationError) as caught:
        settings(**changes)
    return str(caught.value)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_an_environment_gives_every_url(environment: str):
    made = settings(environment=environment)
    servers = ENVIRONMENTS[environment]
    assert made.identity_url == servers.identity_url
    assert made.token_url == f"{servers.identity_url}/connect/token"
    assert {api: made.api_url(api) for api in SCOPES} == dict(servers.api_urls)


def test_the_defaults():
    made = settings()
    assert made.environment == "production"
    assert made.scopes == ("market-data-api", "news-api", "oms-api")
    assert (made.timeout, made.ca_bundle) == (30.0, None)
    assert (made.client_auth_encoding, made.cache_backend) == ("rfc6749", "")


@pytest.mark.parametrize("name", URLS)
def test_a_url_of_the_connection_replaces_that_of_the_environment_and_no_other(name: str):
    made, usual = settings(**{name: "https://gateway.example/om"}), settings()
    assert {each for each in URLS if getattr(made, each) != getattr(usual, each)} == {name}
    assert getattr(made, name) == "https://gateway.example/om"


@pytest.mark.parametrize(
    ("given_url", "kept"),
    [
        ("https://host/", "https://host"),
        ("https://host///", "https://host"),
        ("https://host/a/b/", "https://host/a/b"),
        ("https://host:8443", "https://host:8443"),
        ("HTTPS://Host.Example", "HTTPS://Host.Example"),
        ("https://10.0.0.1", "https://10.0.0.1"),
        ("https://[2001:db8::1]:443/x", "https://[2001:db8::1]:443/x"),
        ("https://my_gateway-1.example.", "https://my_gateway-1.example."),
        ("http://localhost", "http://localhost"),
        ("http://LOCALHOST:8080/", "http://LOCALHOST:8080"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://127.9.9.9", "http://127.9.9.9"),
        ("http://[::1]:80", "http://[::1]:80"),
    ],
)
def test_a_base_url_is_kept_without_its_trailing_slash(given_url: str, kept: str):
    made = settings(identity_url=given_url)
    assert made.identity_url == kept
    assert made.token_url == f"{kept}/connect/token"


@pytest.mark.parametrize(
    "url",
    [
        "http://host",
        "http://10.0.0.1",
        "http://[2001:db8::1]",
        "http://localhost.evil.example",
        "http://evil.example/localhost",
        "http://0.0.0.0",
        "http://127.1",
        "http://2130706433",
        "ftp://host",
        "ws://localhost",
        "//host",
    ],
)
@pytest.mark.parametrize("name", URLS)
def test_only_https_is_allowed_and_http_to_this_machine(name: str, url: str):
    message = refused(**{name: url})
    assert message.startswith(f"{name}: ")
    assert "use https" in message


@pytest.mark.parametrize(
    "url",
    [
        "https://",
        "https:///x",
        "https:host",
        "/x",
        "https://host?a=b",
        "https://host?",
        "https://host/x?",
        "https://host#a",
        "https://host#",
        "https://host:0",
        " https://host",
        "https://host ",
        "https://ho st",
        "https://host\n",
        "https://ho\nst",
        "https://host/\x00",
        "https://host/\u202e",
        "https://ho\\st",
        "https://ho%73t",
        "https://ho<st",
        "https://☃.example",
        "https://[::1%25eth0]",
    ],
)
def test_what_is_not_a_base_url_is_refused(url: str):
    message = refused(oms_url=url)
    assert message.startswith("oms_url: ")
    assert "is not a base URL; write https://host, or https://host/path, without a query" in message
    assert message.isprintable()


@pytest.mark.parametrize(
    ("url", "better"),
    [
        ("host", "https://host"),
        ("api.example.com:443/base", "https://api.example.com:443/base"),
        ("localhost:8080", "http://localhost:8080"),
        ("127.0.0.1:8765/oms", "http://127.0.0.1:8765/oms"),
        ("[::1]:8765/oms", "http://[::1]:8765/oms"),
    ],
)
def test_a_url_without_its_scheme_is_told_with_the_one_it_should_have(url: str, better: str):
    assert refused(oms_url=url) == f"oms_url: {url!r} has no scheme; write {better!r}."
    assert settings(oms_url=better).oms_url == better


@pytest.mark.parametrize("end", ["/connect/token", "/connect/token/", "/Connect/Token"])
def test_an_identity_url_ends_before_the_path_of_the_token_endpoint(end: str):
    url = f"https://host/base{end}"
    assert refused(identity_url=url) == (
        f"identity_url: {url!r} ends with /connect/token, which is added automatically; write 'https://host/base'."
    )


@pytest.mark.parametrize(
    "url", ["https://[::1", "https://host:port", "https://host:70000", "https://host:-1", "https://]["]
)
def test_what_is_not_a_url_is_refused(url: str):
    assert "news_url: " in refused(news_url=url)


@pytest.mark.parametrize(
    "url",
    [
        "https://user:hunter2@host",
        "https://hunter2@host",
        "https://:hunter2@host",
        "https://@host/hunter2",
        "http://user:hunter2@localhost",
        "user:hunter2@host",
        "https:user:hunter2@host",
        "https://user:hunter2@host:port",
        "https://user:hunter2@[::1",
        "https://user:hunter2@host?x",
        "https://user:hunter2\\@host",
        "https://user:hunter2\uff20host",
        "https://user:hunter2\ufe6bhost",
        "https://user:hunter2%40host",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str):
    message = refused(identity_url=url)
    assert message == "identity_url: remove the credentials (an '@') from the URL."


@given(st.text(alphabet=st.sampled_from("https:/localst.[]1@?#\\%\n é")) | st.text())
def test_any_text_as_url_is_refused_or_goes_to_a_safe_place(url: str):
    import httpx

    try:
        made = settings(oms_url="https://" + url if url else "x")
    except OpenmarketsConfigurationError:
        return
    parsed = httpx.URL(made.oms_url + "/accounts/v1")
    assert parsed.scheme == "https"
    assert parsed.host
    assert (parsed.userinfo, parsed.query, parsed.fragment) == (b"", b"", "")
    assert parsed.path.endswith("/accounts/v1")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"client_id": ""}, "Client ID (login) is empty"),
        ({"client_secret": ""}, "Client secret (password) is empty"),
        ({"environment": "uat"}, "environment must be one of production, test, not 'uat'."),
        ({"environment": ""}, "environment must be one of production, test, not ''."),
        ({"client_auth_encoding": "RAW"}, "client_auth_encoding must be one of rfc6749, raw, not 'RAW'."),
        (
            {"cache_backend": "disk"},
            "cache_backend must be one of file, redis, variable, memory, not 'disk'.",
        ),
        (
            {"redis_conn_id": "r"},
            "redis_conn_id can only be set with cache_backend redis; set that, or leave redis_conn_id empty.",
        ),
        ({"scopes": ()}, "scopes is empty; use one or more of market-data-api, news-api, oms-api."),
        (
            {"scopes": ("oms-api", "md-streams-api")},
            "scopes must be one of market-data-api, news-api, oms-api, not 'md-streams-api'.",
        ),
        ({"scopes": ("oms-api news-api",)}, "not 'oms-api news-api'."),
    ],
)
def test_a_value_that_is_not_allowed_is_named(changes: dict[str, Any], message: str):
    assert message in refused(**changes)


@pytest.mark.parametrize("timeout", [1e-3, 1, 30.0, 3600])
def test_timeouts_within_the_bounds(timeout: float):
    assert settings(timeout=timeout).timeout == timeout


@pytest.mark.parametrize("timeout", [0, -1, 3600.1, 1e300, float("inf"), float("-inf"), float("nan")])
def test_timeouts_beyond_the_bounds_are_refused(timeout: float):
    assert refused(timeout=timeout) == (
        f"timeout must be a number of seconds above 0 and at most 3600, not {timeout:g}."
    )


def test_a_ca_bundle_is_a_file(tmp_path: Path):
    bundle = tmp_path / "ca.pem"
    bundle.touch()
    assert settings(ca_bundle=str(bundle)).ca_bundle == str(bundle)


@pytest.mark.parametrize("path", ["", "missing.pem", ".", "\0", "x" * 5000])
def test_a_ca_bundle_that_is_no_file_is_refused(tmp_path: Path, path: str):
    path = f"{tmp_path}/{path}" if path else ""
    assert refused(ca_bundle=path) == f"ca_bundle: {path!r} is not a file; set the path of a PEM file on the worker."


def test_no_text_of_the_settings_shows_the_secret():
    made = settings(client_id="my-id", client_secret="hunter2")
    assert "hunter2" not in f"{made} {made!r} {made!s:>99}"
    assert "my-id" in repr(made)


def test_settings_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings().client_id = "other"
    assert settings() == settings()
    assert hash(settings()) == hash(settings())
    assert settings() != settings(client_secret="other")


@pytest.mark.parametrize("name", ["client_id", "client_secret"])
def test_the_empty_credential_is_told_before_anything_else(name: str):
    assert "Openmarkets issues it on onboarding" in refused(**{name: "", "environment": "x"})


def test_blanks_around_the_client_id_are_no_part_of_it():
    assert settings(client_id=" my-id\r\n").client_id == "my-id"
    assert "Client ID (login) is empty" in refused(client_id=" ")


def test_those_around_the_secret_are():
    assert settings(client_secret=" hush ").client_secret == " hush "


@pytest.mark.parametrize("field", ["client_id", "client_secret"])
@pytest.mark.parametrize("bad", ["hush\udcff", "hu\nsh", "hu\tsh"])
def test_credentials_that_cannot_be_sent_are_refused_without_being_shown(field: str, bad: str) -> None:
    with pytest.raises(OpenmarketsConfigurationError, match="can't be sent") as caught:
        Settings(**({"client_id": "id", "client_secret": "secret"} | {field: bad}))
    assert "hu" not in str(caught.value)


def test_a_line_break_behind_the_secret_is_refused_without_its_being_shown() -> None:
    assert refused(client_secret="hush\n") == (
        "Client secret (password) has characters that can't be sent, such as a line break; copy it again."
    )


def test_a_colon_in_a_raw_client_id_is_refused() -> None:
    with pytest.raises(OpenmarketsConfigurationError, match="set client_auth_encoding to rfc6749"):
        Settings(client_id="a:b", client_secret="secret", client_auth_encoding="raw")
    assert Settings(client_id="a:b", client_secret="secret").client_id == "a:b"
