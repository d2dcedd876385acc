from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowNotFoundException, Connection

from openmarkets_provider import queries
from openmarkets_provider.exceptions import (
    OpenmarketsConfigurationError,
    OpenmarketsError,
    OpenmarketsNotFound,
    OpenmarketsQueryError,
)
from openmarkets_provider.get_provider_info import CONNECTION_FIELDS
from openmarkets_provider.hooks._connection_settings import make_settings
from openmarkets_provider.hooks._token_cache import cache_dir
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
from tests.support.versions import secrets_masker


def connection(extra: Any = None, **fields: Any) -> Connection:
    fields = {"conn_type": "openmarkets", "login": "id", "password": "a-secret"} | fields
    return Connection(conn_id="om", extra=json.dumps(extra) if extra is not None else None, **fields)


def settings(extra: Any = None, **fields: Any):
    return make_settings(connection(extra, **fields))


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
        assert (made.timeout, made.cache_backend, made.client_auth_encoding) == (30, "", "rfc6749")

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
            ({"enviroment": "test"}, "unknown field 'enviroment'; use one of environment, scopes"),
            ({"environment": "staging"}, "environment must be one of production, test, not 'staging'"),
            ({"environment": 5}, "environment must be a string, not 5"),
            ({"scopes": ["md"]}, "scopes must be one of market-data-api, news-api, oms-api, not 'md'"),
            ({"scopes": {"a": 1}}, "scopes must be a list of strings"),
            ({"scopes": [1]}, "scopes must be a list of strings"),
            ({"timeout": "soon"}, "timeout must be a number, not 'soon'"),
            ({"timeout": True}, "timeout must be a number, not True"),
            ({"timeout": -1}, "timeout must be .*, not -1"),
            ({"oms_url": "http://oms.example"}, "oms_url: .* use https"),
            ({"ca_bundle": "/no/such.pem"}, "ca_bundle: '/no/such.pem' is not a file"),
            ({"client_auth_encoding": "base64"}, "client_auth_encoding must be one of rfc6749, raw"),
            ({"cache_backend": "disk"}, "cache_backend must be one of file, redis, variable, memory"),
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
        with pytest.raises(OpenmarketsConfigurationError, match="must have the type 'openmarkets', not 'http'"):
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

    def test_a_port_that_contradicts_the_host_is_refused_and_the_right_one_is_named(self):
        advice = "port: 443 differs from the port in the Identity URL .* set port to 8765, or leave it empty"
        with pytest.raises(OpenmarketsConfigurationError, match=advice):
            settings(host="http://127.0.0.1:8765/identity", port=443)

    @pytest.mark.parametrize("port", [None, 8765])
    def test_a_host_without_a_scheme_that_is_this_machine_gets_none(self, port):
        with pytest.raises(
            OpenmarketsConfigurationError, match=r"no scheme; write 'http://127\.0\.0\.1:8765/identity'"
        ):
            settings(host="127.0.0.1:8765/identity", port=port)

    def test_blanks_around_the_client_id_are_no_part_of_it(self):
        assert settings(login=" my-id ").client_id == "my-id"

    # Airflow itself refuses it before.
    @pytest.mark.since("3.2")
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
        assert [row["security_code"] for row in rows] == ["BHP", "CBA"]
        assert [row["last_price"] for row in asyncio.run(arun())] == [row["last_price"] for row in rows]

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
        with pytest.raises(OpenmarketsConfigurationError, match="must be one of market_data, news, oms"):
            hook.get_conn("orders")

    def test_the_user_agent_names_provider_and_airflow(self, hook):
        from airflow import __version__ as airflow_version

        from openmarkets_provider import __version__ as provider_version

        agent = hook.get_conn().headers["User-Agent"]
        assert agent == f"airflow-provider-openmarkets/{provider_version} apache-airflow/{airflow_version}"

    def test_tokens_are_shared_by_hooks_through_the_configured_directory(self, hook, openmarkets_sandbox):
        token = hook.get_access_token("oms-api")
        assert OpenmarketsHook().get_access_token("oms-api") == token
        assert len(list(cache_dir().glob("*.entry"))) == 1
        assert openmarkets_sandbox.stats()["token_requests_total"] == 1

    def test_the_default_directory_is_in_the_airflow_home(self, monkeypatch):
        monkeypatch.delenv("AIRFLOW__OPENMARKETS__TOKEN_CACHE_DIR")
        assert cache_dir() == Path(os.environ["AIRFLOW_HOME"]) / "openmarkets_token_cache"

    def test_every_token_and_the_secret_are_masked_in_airflow(self, hook, openmarkets_sandbox):
        token = hook.get_access_token("news-api")

        async def atoken() -> str:
            return (await (await hook.aclient()).tokens.aget("oms-api")).value

        other = asyncio.run(atoken())
        asyncio.run(hook.aclose())
        shown = secrets_masker._secrets_masker().redact(f"{token} {other} {openmarkets_sandbox.client_secret}")
        assert shown == "*** *** ***"

    def test_memory_keeps_no_file(self, openmarkets_sandbox, monkeypatch):
        made = openmarkets_sandbox.connection
        made["extra"]["cache_backend"] = "memory"
        monkeypatch.setenv("AIRFLOW_CONN_OPENMARKETS_DEFAULT", json.dumps(made))
        hook = OpenmarketsHook()
        hook.run(queries.accounts())
        hook.close()
        assert not cache_dir().exists()


DAYS = {"start": "2026-03-02", "end": "2026-03-06"}


class Meeting(BaseHTTPRequestHandler):
    """Answers nobody until as many requests wait as the server is made for."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.waiting += 1
            self.server.most = max(self.server.most, self.server.waiting)
        self.server.barrier.wait(60)
        with self.server.lock:
            self.server.waiting -= 1
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"[]")

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def meeting_point(parties: int) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Meeting)
    server.lock, server.barrier, server.waiting, server.most = threading.Lock(), threading.Barrier(parties), 0, 0
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class TestStream:
    def test_it_gives_the_rows_of_run_in_batches_one_a_call(self, hook):
        query = queries.time_series(["BHP", "Z0002", "CBA"], **DAYS)
        batches = list(hook.stream(query))
        assert [{row["security_code"] for row in batch} for batch in batches] == [{"BHP"}, {"Z0002"}, {"CBA"}]
        assert [row for batch in batches for row in batch] == hook.run(query)

    def test_no_batch_is_empty(self, hook):
        sunday = {"start": "2026-03-01", "end": "2026-03-02"}
        assert list(hook.stream(queries.time_series(["BHP", "CBA"], **sunday))) == []

    def test_a_reply_of_another_call_is_one_batch(self, hook):
        accounts = queries.request("oms", "GET", "accounts/v1")
        assert list(hook.stream(accounts)) == [hook.run(accounts)]

    def test_a_malformed_query_is_refused_before_it_is_iterated(self, hook, openmarkets_sandbox):
        with pytest.raises(OpenmarketsQueryError, match="securities: 'B HP' is malformed"):
            hook.stream({**queries.quotes("BHP"), "securities": ["B HP"]})
        assert openmarkets_sandbox.stats()["by_path"] == {}

    def test_an_error_comes_while_it_is_iterated_and_says_which_call_failed(self, hook):
        batches = hook.stream(queries.time_series(["BHP", "NOSUCH"], **DAYS))
        with pytest.raises(OpenmarketsNotFound, match=r"Call 2 of 2 \(NOSUCH\.ASX@TM"):
            list(batches)

    def test_a_stream_that_is_left_early_asks_for_no_more_than_a_few_calls_ahead(self, openmarkets_sandbox):
        hook = OpenmarketsHook(concurrency=2)
        batches = hook.stream(queries.time_series(exchange="ASX", **DAYS))
        next(batches)
        batches.close()
        for thread in threading.enumerate():
            if thread.name.startswith("openmarkets_"):
                thread.join()
        hook.close()
        asked = [path for path in openmarkets_sandbox.stats()["by_path"] if "/pricing/timeseries/" in path]
        assert 1 <= len(asked) <= 6

    @pytest.mark.parametrize("concurrency", [1, 3, 16])
    def test_concurrency_is_how_many_requests_there_are_at_the_same_time(
        self, openmarkets_sandbox, monkeypatch, concurrency
    ):
        made = openmarkets_sandbox.connection
        with meeting_point(concurrency) as server:
            made["extra"]["oms_url"] = f"http://127.0.0.1:{server.server_port}"
            monkeypatch.setenv("AIRFLOW_CONN_OPENMARKETS_DEFAULT", json.dumps(made))
            hook = OpenmarketsHook(concurrency=concurrency)
            assert hook.run(queries.orders([f"A{number}" for number in range(3 * concurrency)])) == []
            hook.close()
        assert server.most == concurrency

    def test_the_threads_of_a_query_ask_for_one_token_and_mask_it(self, openmarkets_sandbox, monkeypatch):
        made = openmarkets_sandbox.connection
        made["extra"]["cache_backend"] = "memory"
        monkeypatch.setenv("AIRFLOW_CONN_OPENMARKETS_DEFAULT", json.dumps(made))
        openmarkets_sandbox.fault(target="identity", kind="delay", seconds=0.3)
        hook = OpenmarketsHook()
        orders = hook.run(queries.orders(["SBX0001", "SBX0002", "SBX0003"]))
        assert {order["account_code"] for order in orders} == {"SBX0001", "SBX0002", "SBX0003"}
        assert openmarkets_sandbox.stats()["token_requests"] == {"oms-api": 1}
        assert secrets_masker._secrets_masker().redact(hook.get_access_token("oms-api")) == "***"
        assert openmarkets_sandbox.stats()["token_requests_total"] == 1
        hook.close()


@pytest.mark.parametrize("concurrency", [0, 17, -1, 1.5, "8", None])
def test_a_concurrency_out_of_its_range_is_refused(concurrency):
    with pytest.raises(ValueError, match=re.escape(f"from 1 to 16, not {concurrency!r}")):
        OpenmarketsHook(concurrency=concurrency)


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
        assert (
            "for: market-data-api, news-api, oms-api. Orders: allowed in the test environment for all accounts."
            in message
        )

    def test_it_asks_anew_although_a_token_is_cached(self, monkeypatch, openmarkets_sandbox):
        self.check(monkeypatch, openmarkets_sandbox)
        self.check(monkeypatch, openmarkets_sandbox)
        assert openmarkets_sandbox.stats()["token_requests_total"] == 6

    def test_a_wrong_secret(self, monkeypatch, openmarkets_sandbox):
        good, message = self.check(monkeypatch, openmarkets_sandbox, password="wrong-secret")
        assert not good
        assert "client id and secret are not accepted" in message
        # A server's own full stop is not doubled.
        assert ".." not in message
        assert "wrong-secret" not in message
        assert openmarkets_sandbox.stats()["token_errors"] == 1

    def test_a_scope_that_is_not_in_the_plan_is_named_with_those_that_are(self, monkeypatch, openmarkets_sandbox):
        openmarkets_sandbox.fault(
            target="identity", kind="status", status=400, body={"error": "invalid_scope"}, after=1, times=1
        )
        good, message = self.check(monkeypatch, openmarkets_sandbox)
        assert not good
        assert message.startswith("Not in the plan: news-api; remove them")
        assert message.endswith("for: market-data-api, oms-api.")

    def test_an_unreachable_host(self, monkeypatch, openmarkets_sandbox):
        good, message = self.check(monkeypatch, openmarkets_sandbox, host="http://127.0.0.1:9")
        assert not good
        assert message.startswith("Can't reach the identity server.")
        assert "no answer from http://127.0.0.1:9" in message
        assert "Check Identity URL (host) and port" in message

    def test_a_wrong_field(self, monkeypatch, openmarkets_sandbox):
        good, message = self.check(monkeypatch, openmarkets_sandbox, extra={"colour": "red"})
        assert not good
        assert "unknown field 'colour'" in message

    @pytest.mark.since("3.3")
    def test_through_airflows_own_path(self, openmarkets_sandbox):
        made = openmarkets_sandbox.connection
        airflow_connection = Connection(**{**made, "extra": json.dumps(made["extra"]), "conn_id": "x"})
        assert airflow_connection.test_connection()[0] is True


@pytest.mark.filterwarnings("ignore:'return' in a 'finally' block:SyntaxWarning")
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
    numbers = {"timeout", "max_order_value", "max_day_value"}
    assert {name for name, kind in kinds.items() if kind == "IntegerField"} == numbers
    assert set(kinds.values()) == {"IntegerField", "StringField"}
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
