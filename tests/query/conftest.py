"""Queries are checked against the sandbox with the clients of the tests of the client."""

from __future__ import annotations

from tests.client.conftest import (  # noqa: F401 (fixtures)
    make_client,
    masker,
    run,
    sandbox,
    sandbox_server,
)
