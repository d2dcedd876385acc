"""A pytest fixture that runs the sandbox. Pytest loads this in every run, so it imports nothing heavy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from openmarkets_provider.sandbox.import_server import MissingExtraError, import_server

if TYPE_CHECKING:
    from openmarkets_provider.sandbox.server import SandboxServer


@pytest.fixture(scope="session")
def _openmarkets_sandbox_server() -> Iterator[SandboxServer]:
    try:
        server = import_server()
    except MissingExtraError as error:
        pytest.fail(str(error), pytrace=False)
    with server() as sandbox:
        yield sandbox


@pytest.fixture
def openmarkets_sandbox(
    _openmarkets_sandbox_server: SandboxServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> SandboxServer:
    """Run a sandbox, reset for each test, with the connection `openmarkets_default` to it.

    Tokens and holds of earlier tests are gone, in memory and in the files of this host.
    """
    from openmarkets_provider.testing.memory import reset_memory

    sandbox = _openmarkets_sandbox_server
    sandbox.reset()
    reset_memory()
    cache = tmp_path_factory.mktemp("openmarkets") / "token_cache"
    monkeypatch.setenv("AIRFLOW__OPENMARKETS__TOKEN_CACHE_DIR", str(cache))
    monkeypatch.setenv("AIRFLOW_CONN_OPENMARKETS_DEFAULT", json.dumps(sandbox.connection))
    return sandbox
