"""What importing the package costs and leaves out: a DAG file is parsed again and again."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROBE = """
import sys, json
from airflow.providers.common.compat.sdk import DAG, BaseOperator, BaseSensorOperator
before = set(sys.modules)
import {module}
names = sorted(set(sys.modules) - before)
print(json.dumps([name for name in names if name.partition(".")[0] not in sys.stdlib_module_names]))
"""


@pytest.mark.parametrize(
    "kind",
    [
        "operators.openmarkets",
        "operators.orders",
        "operators.reconciliation",
        "sensors.openmarkets",
        "transfers.openmarkets_to_object_storage",
        "transfers.openmarkets_to_sql",
        "queries",
        "orders",
    ],
)
def test_what_dag_files_import_loads_nothing_but_the_standard_library_airflows_own_and_ours(kind: str):
    probe = PROBE.format(module=f"openmarkets_provider.{kind}")
    loaded = json.loads(subprocess.check_output([sys.executable, "-c", probe], text=True).splitlines()[-1])
    assert f"openmarkets_provider.{kind}" in loaded
    assert [name for name in loaded if not name.startswith("openmarkets_provider")] == []


@pytest.mark.parametrize(
    "kind",
    [
        "timetables.trading_days",
        pytest.param("timetables.windows", marks=pytest.mark.since("3.3")),
        pytest.param("timetables.deadline", marks=pytest.mark.since("3.3")),
    ],
)
def test_schedules_load_what_airflow_makes_them_inherit_and_no_other_package(kind: str):
    probe = PROBE.format(module=f"openmarkets_provider.{kind}")
    loaded = json.loads(subprocess.check_output([sys.executable, "-c", probe], text=True).splitlines()[-1])
    assert f"openmarkets_provider.{kind}" in loaded
    assert [name for name in loaded if name.partition(".")[0] not in ("airflow", "openmarkets_provider")] == []


def test_no_module_of_the_client_that_planning_needs_loads_httpx():
    probe = (
        "import sys, openmarkets_provider.queries; print(sorted(set(sys.modules) & {'httpx', 'msgspec', 'jmespath'}))"
    )
    assert subprocess.check_output([sys.executable, "-c", probe], text=True) == "[]\n"


def test_the_unrelated_top_level_package_is_never_imported():
    probe = (
        "import sys, openmarkets_provider.hooks.openmarkets, openmarkets_provider.client.client,"
        "openmarkets_provider.triggers.openmarkets; print('openmarkets' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", probe], text=True).splitlines()[-1] == "False"
