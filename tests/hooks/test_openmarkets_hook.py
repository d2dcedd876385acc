from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowNotFoundException, Connection
from airflow.sdk._shared.secrets_masker import _secrets_masker

from openmarkets_provider import queries
from openmarkets_provider.exceptions import OpenmarketsConfigurationError, OpenmarketsError
from openmarkets_provider.get_provider_info import CONNECTION_FIELDS
from openmarkets_provider.hooks import openmarkets as hook_module
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook, settings_of


def connection(extra: Any = None, **fields: Any) -> Connection:
    fields = {"conn_type": "openmarkets", "login": "id", "password": "a-secret"} | fields
    return Connection(conn_id="om", extra=json.dumps(extra) if extra is not None else None, **fields)


def settings(extra: Any = None, **fields: Any):
    return settings_of(connection(extra, **fields))


@pytest.fixture
def hook(openmarkets_sandbox) -> Iterator[OpenmarketsHook]:
    hook = OpenmarketsHook()
    yield hook
    hook.close()


class TestConnection:
    def test_id_and_secret_are_enough(self):
        made = settings()
        assert (made.client_id, made.client_secret) == ("id", "a-secret")
        assert made.identity_url == "https://identity.openmarkets.com.au"
        assert made.scopes == ("market-data-api", "news-api", "oms-api")
        assert (made.timeout, made.cache_backend, made.client_auth_encoding) == (30, "file", "rfc6749")

    def test_null_and_empty_mean_unset(self):
        unset = dict.fromkeys(CONNECTION_FIELDS)
        assert settings(unset) == settings()
        assert settings(unset | {"scopes": [], "environment": ""}, host="", port=0) == settings()

    def test_texts_from_uris_are_coerced(self):
        made = settings({"timeout": "5", "scopes": "news-api, oms-api news-api", "environment": "test"})
        assert (made.timeout, made.scopes, made.environment) == (5.0, ("news-api", "oms-api"), "test")

    @pytest.mark.parametrize(
        ("extra", "named"),
        [
            ({"enviroment": "test"}, "unknown field 'enviroment'; allowed are environment, scopes"),
            ({"environment": "staging"}, "environment: 'staging' is not allowed; allowed are production, test"),
            ({"environment": 5}, "environment: 5 is not a text"),
            ({"scopes": ["md"]}, "scopes: 'md' is not allowed; allowed are market-data-api, news-api, oms-api"),
            ({"scopes": {"a": 1}}, "scopes: .* is not a list of texts"),
            ({"scopes": [1]}, "scopes: .* is not a list of texts"),
            ({"timeout": "soon"}, "timeout: 'soon' is not a number of seconds"),
            ({"timeout": True}, "timeout: True is not a number of seconds"),
            ({"timeout": -1}, "timeout: -1 is not allowed"),
            ({"oms_url": "http://oms.example"}, "oms_url: .* only https"),
            ({"ca_bundle": "/no/such.pem"}, "ca_bundle: '/no/such.pem' is not a file"),
            ({"client_auth_encoding": "base64"}, "client_auth_encoding: .* allowed are rfc6749, raw"),
            ({"cache_backend": "redis"}, "cache_backend: .* allowed are file, memory"),
        ],
    )
    def test_a_wrong_field_is_named_with_what_is_allowed(self, extra, named):
        with pytest.raises(OpenmarketsConfigurationError, match=named):
            settings(extra)

    @pytest.mark.parametrize("field", ["login", "password"])
    def test_missing_credentials_are_named(self, field):
        with pytest.raises(OpenmarketsConfigurationError, match=field):
            settings(**{field: None})

    def test_another_connection_type_is_refused(self):
        with pytest.raises(OpenmarketsConfigurationError, match="type 'http'; it must be 'openmarkets'"):
            settings(conn_type="http")

    @pytest.mark.parametrize(
        ("host", "port", "url"),
        [
            ("https://id.example/base/", None, "https://id.example/base"),
            ("id.example", None, "https://id.example"),
            ("id.example", 8443, "https://id.example:8443"),
            ("https://id.example/base", 8443, "https://id.example:8443/base"),
            ("https://id.example:8443/base", 8443, "https://id.example:8443/base"),
            ("http://127.0.0.1:80", 80, "http://127.0.0.1:80"),
            ("http://[::1]", 8080, "http://[::1]:8080"),
            ("http://[::1]:8080", 8080, "http://[::1]:8080"),
            ("", 443, "https://identity.openmarkets.com.au:443"),
        ],
    )
    def test_host_and_port_make_the_identity_url(self, host, port, url):
        assert settings(host=host, port=port).identity_url == url

    def test_a_port_that_contradicts_the_host_is_refused(self):
        with pytest.raises(OpenmarketsConfigurationError, match="port: 1 differs"):
            settings(host="https://id.example:2", port=1)

    @pytest.mark.parametrize("extra", ["not json", "[1]", '"text"', "5"])
    def test_an_extra_that_is_not_an_object_is_refused_and_not_taken_for_empty(self, monkeypatch, extra):
        monkeypatch.setenv(
            "AIRFLOW_CONN_BROKEN",
            json.dumps({"conn_type": "openmarkets", "login": "id", "password": "a-secret", "extra": extra}),
        )
        with pytest.raises(OpenmarketsConfigurationError, match="not a JSON object"):
            _ = OpenmarketsHook("broken").client

    @pytest.mark.parametrize(
        "form",
        [
            '{"conn_type": "openmarkets", "login": "my id", "password": "p+ %:/@", "extra": {"environment": "test"}}',
            "openmarkets://my%20id:p%2B%20%25%3A%2F%40@/?environment=test",
        ],
    )
    def test_json_and_uri_give_the_same(self, monkeypatch, form):
        monkeypatch.setenv("AIRFLOW_CONN_FORM", form)
        made = OpenmarketsHook("form").client.settings
        assert (made.client_id, made.client_secret, made.environment) == ("my id", "p+ %:/@", "test")

    def test_a_uri_can_name_the_identity_server(self, monkeypatch):
        uri = connection({"oms_url": "http://127.0.0.1:1/oms"}, host="http://127.0.0.1:8765/identity").get_uri()
        monkeypatch.setenv("AIRFLOW_CONN_FORM", uri)
        made = OpenmarketsHook("form").client.settings
        assert made.identity_url == "http://127.0.0.1:8765/identity"
        assert made.oms_url == "http://127.0.0.1:1/oms"


class TestHook:
    def test_nothing_happens_at_construction(self, monkeypatch):
        monkeypatch.delenv("AIRFLOW_CONN_OPENMARKETS_DEFAULT", raising=False)
        hook = OpenmarketsHook("nowhere")
        assert hook.openmarkets_conn_id == "nowhere"
        hook.close()
        asyncio.run(hook.aclose())
        with pytest.raises(AirflowNotFoundException, match="nowhere"):
            hook.run(queries.accounts())

    def test_run_and_arun_give_the_same(self, hook):
        async def arun() -> Any:
            try:
                return await hook.arun(queries.quotes(["BHP", "CBA"]))
            finally:
                await hook.aclose()

        rows = hook.run(queries.quotes(["BHP", "CBA"]))
        assert [row["securityCode"] for row in rows] == ["BHP", "CBA"]
        assert [row["lastPrice"] for row in asyncio.run(arun())] == [row["lastPrice"] for row in rows]

    def test_a_hook_that_was_used_on_a_loop_first_works_without_one(self, hook):
        async def alone() -> Any:
            both = await asyncio.gather(hook.arun(queries.accounts()), hook.arun(queries.accounts()))
            await hook.aclose()
            return both

        one, two = asyncio.run(alone())
        assert one == two == hook.run(queries.accounts())

    def test_get_conn_is_an_authenticated_client_of_one_api(self, hook, openmarkets_sandbox):
        assert hook.get_conn("oms").get("accounts/v1").json()[0]["accountCode"]
        assert hook.get_conn().get("securities/v1", params={"exchanges": "ASX"}).status_code == 200
        assert openmarkets_sandbox.stats()["requests"]["oms"] == 1
        with pytest.raises(OpenmarketsConfigurationError, match="allowed are market_data, news, oms"):
            hook.get_conn("orders")

    def test_the_user_agent_names_provider_and_airflow(self, hook):
        from airflow import __version__ as airflow_version

        agent = hook.get_conn().headers["User-Agent"]
        assert agent == f"airflow-provider-openmarkets/0.1.0 apache-airflow/{airflow_version}"

    def test_tokens_are_shared_by_hooks_through_the_configured_directory(self, hook, openmarkets_sandbox, tmp_path):
        token = hook.get_access_token("oms-api")
        assert OpenmarketsHook().get_access_token("oms-api") == token
        assert len(list((tmp_path / "token_cache").glob("*.token"))) == 1
        assert openmarkets_sandbox.stats()["token_requests_total"] <= 1

    def test_the_default_directory_is_in_the_airflow_home(self, monkeypatch):
        monkeypatch.delenv("AIRFLOW__OPENMARKETS__TOKEN_CACHE_DIR")
        assert hook_module._cache_dir() == Path(os.environ["AIRFLOW_HOME"]) / "openmarkets_token_cache"

    def test_every_token_and_the_secret_are_masked_in_airflow(self, hook, openmarkets_sandbox):
        token = hook.get_access_token("news-api")

        async def atoken() -> str:
            return (await (await hook.aclient()).tokens.aget("oms-api")).value

        other = asyncio.run(atoken())
        asyncio.run(hook.aclose())
        shown = _secrets_masker().redact(f"{token} {other} {openmarkets_sandbox.client_secret}")
        assert shown == "*** *** ***"

    def test_memory_keeps_no_file(self, openmarkets_sandbox, monkeypatch, tmp_path):
        made = openmarkets_sandbox.connection
        made["extra"]["cache_backend"] = "memory"
        monkeypatch.setenv("AIRFLOW_CONN_OPENMARKETS_DEFAULT", json.dumps(made))
        hook = OpenmarketsHook()
        hook.run(queries.accounts())
        hook.close()
        assert not (tmp_path / "token_cache").exists()


class TestTestConnection:
    def check(self, monkeypatch, sandbox, **changes: Any) -> tuple[bool, str]:
        made = sandbox.connection
        extra = made["extra"] | changes.pop("extra", {})
        monkeypatch.setenv("AIRFLOW_CONN_OPENMARKETS_DEFAULT", json.dumps(made | changes | {"extra": extra}))
        good, message = OpenmarketsHook().test_connection()
        assert sandbox.client_secret not in message
        return good, message

    def test_good_credentials(self, monkeypatch, openmarkets_sandbox):
        good, message = self.check(monkeypatch, openmarkets_sandbox)
        assert good
        assert message.endswith("for: market-data-api, news-api, oms-api.")

    def test_it_asks_anew_although_a_token_is_cached(self, monkeypatch, openmarkets_sandbox):
        self.check(monkeypatch, openmarkets_sandbox)
        self.check(monkeypatch, openmarkets_sandbox)
        assert openmarkets_sandbox.stats()["token_requests_total"] == 6

    def test_a_wrong_secret(self, monkeypatch, openmarkets_sandbox):
        good, message = self.check(monkeypatch, openmarkets_sandbox, password="wrong-secret")
        assert not good
        assert "client id and secret are not accepted" in message
        assert "wrong-secret" not in message
        assert openmarkets_sandbox.stats()["token_errors"] == 1

    def test_a_scope_that_is_not_in_the_plan_is_named_with_those_that_are(self, monkeypatch, openmarkets_sandbox):
        openmarkets_sandbox.fault(
            target="identity", kind="status", status=400, body={"error": "invalid_scope"}, after=1, times=1
        )
        good, message = self.check(monkeypatch, openmarkets_sandbox)
        assert not good
        assert "for: market-data-api, oms-api. Not in the plan: news-api" in message

    def test_an_unreachable_host(self, monkeypatch, openmarkets_sandbox):
        good, message = self.check(monkeypatch, openmarkets_sandbox, host="http://127.0.0.1:9")
        assert not good
        assert "no answer from http://127.0.0.1:9" in message

    def test_a_wrong_field(self, monkeypatch, openmarkets_sandbox):
        good, message = self.check(monkeypatch, openmarkets_sandbox, extra={"colour": "red"})
        assert not good
        assert "unknown field 'colour'" in message

    def test_through_airflows_own_path(self, openmarkets_sandbox):
        made = openmarkets_sandbox.connection
        airflow_connection = Connection(**{**made, "extra": json.dumps(made["extra"]), "conn_id": "x"})
        assert airflow_connection.test_connection()[0] is True


def test_the_form_of_older_airflows_has_the_same_fields():
    from flask import Flask
    from wtforms import Form

    widgets = OpenmarketsHook.get_connection_form_widgets()
    assert list(widgets) == list(CONNECTION_FIELDS)
    with Flask(__name__).test_request_context():
        form = type("ConnectionForm", (Form,), widgets)()
        kinds = {field.name: type(field).__name__ for field in form}
        for field in form:
            assert field.label.text == CONNECTION_FIELDS[field.name]["label"]
    assert kinds.pop("timeout") == "IntegerField"
    assert set(kinds.values()) == {"StringField"}
    behaviour = OpenmarketsHook.get_ui_field_behaviour()
    assert set(behaviour) == {"hidden_fields", "relabeling", "placeholders"}


def test_nothing_secret_is_logged_at_debug(hook, openmarkets_sandbox, caplog):
    with caplog.at_level(logging.DEBUG):
        token = hook.get_access_token("market-data-api")
        hook.run(queries.quotes(["BHP"]))
        openmarkets_sandbox.fault(target="market_data", kind="status", status=400, body={"title": "no"})
        with pytest.raises(OpenmarketsError) as raised:
            hook.run(queries.quotes(["BHP"]))
    everything = caplog.text + repr(raised.value) + repr(vars(raised.value)) + repr(hook.client.settings)
    assert len(caplog.records) > 5
    assert token not in everything
    assert openmarkets_sandbox.client_secret not in everything
