"""For all tests: a separate Airflow home, set before anything imports Airflow."""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Airflow reads its environment when it is imported, and makes its home.
if "airflow" in sys.modules:
    raise RuntimeError("a pytest plugin has imported Airflow before its home was set; name it with -p no:...")
_HOME = tempfile.TemporaryDirectory(prefix="openmarkets-tests-")
for name in [name for name in os.environ if name.startswith("AIRFLOW")]:
    del os.environ[name]
os.environ["AIRFLOW_HOME"] = _HOME.name
os.environ["AIRFLOW__CORE__UNIT_TEST_MODE"] = "False"
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"

from tests.support.mariadb import mariadb  # noqa: F401 (a fixture)
from tests.support.postgres import postgres  # noqa: F401 (a fixture)
from tests.support.redis_server import empty_redis, redis_server  # noqa: F401 (fixtures)
from tests.support.s3_server import s3, s3_server  # noqa: F401 (fixtures)
from tests.support.versions import FILES_SINCE, at_least

collect_ignore = [file for file, needed in FILES_SINCE.items() if not at_least(needed)]

# The duration of an example depends on the machine.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

LEFT_OUT = pytest.StashKey[str]()

if not at_least("3.2"):
    # Otherwise 2.11 warns about its own default.
    os.environ["AIRFLOW__METRICS__TIMER_UNIT_CONSISTENCY"] = "True"
    # A connection is a row there, which can't be made before all tables are known.
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        import_module("airflow.models").import_all_models()


def pytest_configure(config: pytest.Config) -> None:
    """Allow older versions of Airflow to use deprecated features."""
    if not at_least("3.2"):
        config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests that are marked for a later Airflow than this."""
    late = {item for item in items if any(not at_least(mark.args[0]) for mark in item.iter_markers("since"))}
    config.hook.pytest_deselected(items=list(late))
    items[:] = [item for item in items if item not in late]
    config.stash[LEFT_OUT] = f"{len(late)} tests, {len(collect_ignore)} files"


@pytest.fixture(scope="session", autouse=True)
def left_out(pytestconfig: pytest.Config, record_testsuite_property: Callable[[str, object], None]) -> None:
    """Report the tests that need a later Airflow, for the matrix's table."""
    record_testsuite_property("left out", pytestconfig.stash[LEFT_OUT])


@pytest.fixture(autouse=True)
def fresh_token_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test its own token caches, and a folder for the replies of its loads."""
    from openmarkets_provider.testing.memory import reset_memory

    reset_memory()
    monkeypatch.setenv("AIRFLOW__OPENMARKETS__TOKEN_CACHE_DIR", str(tmp_path / "token_cache"))
    monkeypatch.setenv("AIRFLOW__OPENMARKETS__RESUME_FOLDER", str(tmp_path / "resume"))
