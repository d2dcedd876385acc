"""Which Airflow runs the tests, and which tests it can't run."""

from __future__ import annotations

import inspect
import logging
import re
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from types import ModuleType

AIRFLOW = tuple(int(part) for part in version("apache-airflow").split(".")[:2])

FILES_SINCE = {
    # What their helpers take from Airflow's inside, or what they test, came with this version.
    "airflow/test_celery.py": "3.3",
    "airflow/test_completeness.py": "3.3",
    "airflow/test_etl.py": "3.3",
    "airflow/test_events.py": "3.3",
    "airflow/test_fleet.py": "3.3",
    "airflow/test_fleet_triggers.py": "3.3",
    "airflow/test_loops.py": "3.4",
    "airflow/test_order_kills.py": "3.3",
    "airflow/test_orders.py": "3.3",
    "airflow/test_real_airflow.py": "3.3",
    "airflow/test_retries.py": "3.3",
    "airflow/test_sessions.py": "3.3",
    "airflow/test_ui.py": "3.3",
    "hooks/test_metrics.py": "3.3",
    "hooks/test_variable_store.py": "3.3",
    "policies/test_retry.py": "3.3",
    "airflow/test_trading_days.py": "3.3",
    "timetables/test_deadline.py": "3.3",
    "timetables/test_windows.py": "3.3",
    "test_docs_code.py": "3.3",
    "test_etl_docs.py": "3.3",
    "test_events_docs.py": "3.3",
    "test_examples.py": "3.3",
    "transfers/test_incremental.py": "3.3",
    "transfers/test_sessions.py": "3.3",
    "transfers/test_skipped.py": "3.3",
    "triggers/test_events.py": "3.3",
}
"""Files of tests, and the first Airflow that can run them."""


def at_least(needed: str) -> bool:
    """Return whether the installed Airflow has this version, such as ``"3.2"``, or a later one."""
    return tuple(int(part) for part in needed.split(".")) <= AIRFLOW


def has_module(name: str) -> bool:
    """Return whether this Airflow has a module."""
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def moved(*names: str) -> ModuleType:
    """Return what Airflow has moved from module to module, from the first of the names that this one has."""
    for name in names:
        try:
            return import_module(name)
        except ModuleNotFoundError:
            continue
    raise ModuleNotFoundError(f"no module of {', '.join(names)}")


if not at_least("3.2"):
    # As later versions do. Its lines would count as what is logged, and fill the files that a test keeps small.
    logging.getLogger("httpx").setLevel(logging.WARNING)


def what_airflow_says_of_a_timeout() -> str:
    """Return the reason that the scheduler gives a task which no trigger resumed in time."""
    if at_least("3.0"):
        return str(import_module("airflow.models.trigger").TriggerFailureReason.TRIGGER_TIMEOUT.value)
    source = inspect.getsource(import_module("airflow.jobs.scheduler_job_runner"))
    return re.search(r'"error": "(.*timeout)"', source)[1]


exceptions = import_module("airflow.sdk.exceptions" if at_least("3.2") else "airflow.exceptions")
serde = moved("airflow.sdk.serde", "airflow.serialization.serde")
secrets_masker = moved(
    "airflow.sdk._shared.secrets_masker",
    "airflow.sdk.execution_time.secrets_masker",
    "airflow.utils.log.secrets_masker",
)
