"""The sandbox serves HTTPS, with a certificate that its authority vouches for."""

from __future__ import annotations

import json
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest

from openmarkets_provider import queries
from openmarkets_provider.exceptions import OpenmarketsError, OpenmarketsTransportError
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
from openmarkets_provider.sandbox.__main__ import _greeting
from openmarkets_provider.sandbox.server import SandboxServer


def quotes() -> list[Any]:
    return OpenmarketsHook().run(queries.quotes(["BHP"]))


@pytest.mark.parametrize("name", [None, "localhost"])
def test_who_trusts_its_authority_gets_answers(name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with SandboxServer(tls=tmp_path, name=name) as sandbox:
        assert sandbox.url.startswith(f"https://{name or '127.0.0.1'}:")
        monkeypatch.setenv("AIRFLOW_CONN_OPENMARKETS_DEFAULT", json.dumps(sandbox.connection))
        assert len(quotes()) == 1
        sandbox.fault(target="market_data", kind="reset", times=10)
        with pytest.raises(OpenmarketsTransportError):
            quotes()


def test_who_does_not_trust_it_sends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with SandboxServer(tls=tmp_path) as sandbox:
        connection = sandbox.connection
        del connection["extra"]["ca_bundle"]
        monkeypatch.setenv("AIRFLOW_CONN_OPENMARKETS_DEFAULT", json.dumps(connection))
        with pytest.raises(OpenmarketsError, match="certificate"):
            quotes()
        assert sandbox.stats()["token_requests_total"] == 0


def test_the_authority_is_the_only_file_and_has_no_key(tmp_path: Path):
    with SandboxServer(tls=tmp_path / "new") as sandbox:
        (authority,) = (tmp_path / "new").iterdir()
        assert "PRIVATE" not in authority.read_text()
        (described,) = ssl.create_default_context(cafile=str(authority)).get_ca_certs()
        assert described["subject"] == ((("commonName", "Openmarkets sandbox"),),)
        assert f"  CA bundle: {authority}" in _greeting(sandbox).splitlines()


def test_strict_checks_of_certificates_pass(tmp_path: Path):
    """Python 3.13 makes them by default."""
    with SandboxServer(tls=tmp_path, name="localhost") as sandbox:
        context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        port = int(sandbox.url.rpartition(":")[2])
        with (
            socket.create_connection((sandbox.address, port)) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secure,
        ):
            assert secure.version() == "TLSv1.3"
