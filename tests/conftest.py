"""What every test needs: an Airflow home of its own, set before anything imports Airflow."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from tests.support.postgres import postgres  # noqa: F401 (a fixture)
from tests.support.redis_server import empty_redis, redis_server  # noqa: F401 (fixtures)
from tests.support.s3_server import s3, s3_server  # noqa: F401 (fixtures)

_HOME = tempfile.TemporaryDirectory(prefix="openmarkets-tests-")
for name in [name for name in os.environ if name.startswith("AIRFLOW")]:
    del os.environ[name]
os.environ["AIRFLOW_HOME"] = _HOME.name
os.environ["AIRFLOW__CORE__UNIT_TEST_MODE"] = "False"
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"


@pytest.fixture(autouse=True)
def fresh_token_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every test token caches of its own."""
    from openmarkets_provider.client import fallback_store, throttle, token_source

    fallback_store._outages.clear()
    throttle._known.clear()
    token_source._slots.clear()
    token_source._warned.clear()
    monkeypatch.setenv("AIRFLOW__OPENMARKETS__TOKEN_CACHE_DIR", str(tmp_path / "token_cache"))
