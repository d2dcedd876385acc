"""What docs/versions.md says of the Airflow that is installed is so."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy
from airflow.providers.common.compat.sdk import AirflowException, AirflowSensorTimeout, AirflowSkipException, Context
from packaging.version import Version

from openmarkets_provider import queries
from openmarkets_provider.exceptions import OpenmarketsRateLimited
from openmarkets_provider.sensors.openmarkets import OpenmarketsSensor
from openmarkets_provider.timetables.trading_days import TradingDayTimetable
from openmarkets_provider.transfers.openmarkets_to_sql import OpenmarketsToSqlOperator
from tests.support.databases import POSTGRES_DRIVERS
from tests.support.versions import FILES_SINCE, at_least, has_module, what_airflow_says_of_a_timeout

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "versions.md").read_text()
ROWS = re.findall(r"^\| (?!What \|)([^|-][^|]*) \| ([\d.]+) \| ([^|]*) \|$", PAGE, re.MULTILINE)


def event_trigger() -> None:
    importlib.import_module("openmarkets_provider.triggers.events")


def declared_form() -> None:
    assert "conn-fields" in inspect.getsource(importlib.import_module("airflow.providers_manager"))


def psycopg() -> None:
    assert "psycopg" in POSTGRES_DRIVERS, f"SQLAlchemy {sqlalchemy.__version__}"


def deferred_timeout() -> None:
    quotes = queries.quotes(["BHP"])
    for is_soft, outcome in ((True, AirflowSkipException), (False, AirflowSensorTimeout)):
        task = OpenmarketsSensor(task_id="wait", query=quotes, condition="@", deferrable=True, soft_fail=is_soft)
        with pytest.raises(AirflowException) as raised:
            task.resume_execution("__fail__", {"error": what_airflow_says_of_a_timeout()}, {})
        assert raised.type is outcome


def incremental() -> None:
    bars = queries.time_series("BHP", start="2026-03-02", end="2026-03-09")
    OpenmarketsToSqlOperator(task_id="load", query=bars, table="bars", conn_id="db", incremental=True)


def emit_partitions() -> None:
    bars = queries.time_series("BHP", start="2026-03-02", end="2026-03-09")
    OpenmarketsToSqlOperator(task_id="load", query=bars, table="bars", conn_id="db", emit_partitions=True)


def partitions() -> None:
    assert TradingDayTimetable().partitioned


def windows() -> None:
    importlib.import_module("openmarkets_provider.timetables.windows")
    importlib.import_module("openmarkets_provider.timetables.deadline")


def command() -> None:
    assert "cli" in inspect.getsource(importlib.import_module("airflow.providers_manager"))


def retry_policy() -> None:
    importlib.import_module("openmarkets_provider.policies.retry")


def task_state_store() -> None:
    assert "task_state_store" in vars(Context).get("__annotations__", {})


def reschedule() -> None:
    policy = importlib.import_module("openmarkets_provider.policies.retry").OpenmarketsRetryPolicy()
    decision = policy.evaluate(OpenmarketsRateLimited("429", retry_after=1.0), try_number=1, max_tries=1)
    assert decision.action.value == "reschedule"


def memory() -> None:
    if not has_module("airflow.triggers.shared_stream"):
        raise LookupError("this Airflow version stores no state for watchers")


def queue() -> None:
    module = importlib.import_module("openmarkets_provider.triggers.events")
    module.OpenmarketsEventTrigger(query=queries.orders(), key="order_number", queue="orders")


CHECKS: dict[str, Callable[[], None]] = {
    "`OpenmarketsEventTrigger`": event_trigger,
    "the connection form from declared fields": declared_form,
    "PostgreSQL with psycopg 3": psycopg,
    "a deferrable sensor's timeout that skips with `soft_fail`, and is final without": deferred_timeout,
    "`incremental=True`": incremental,
    "`emit_partitions=True`": emit_partitions,
    "`OpenmarketsRetryPolicy`, which operators and transfers have by default": retry_policy,
    "a call that is not safe to repeat, sent once whatever ends its task": task_state_store,
    "runs by trading days as partitions": partitions,
    "`TradingMonthWindow` and the other windows, `TrailingSessionsMapper`, `SessionCloseDeadline`": windows,
    "`airflow openmarkets sessions`": command,
    "a rate limit that uses no try, without a triggerer": reschedule,
    "watchers whose memory outlives the triggerer": memory,
    "`queue=` of `OpenmarketsEventTrigger`": queue,
}


def test_the_page_names_the_versions_of_the_matrix():
    report = {
        airflow: tuple(pythons.split(", ")) for airflow, pythons in re.findall(r"^\| ([\d.]+) \| (.*) \|$", PAGE, re.M)
    }
    noxfile = (ROOT / "noxfile.py").read_text()
    assert report == ast.literal_eval(re.search(r"^AIRFLOWS = ({.*?^})", noxfile, re.M | re.S)[1])


def test_no_row_but_that_of_the_pre_release_has_one_of_airflow():
    pins = {path.stem: path.read_text() for path in (ROOT / "constraints").glob("*.txt")}
    pins["airflow-3.3"] = (ROOT / "constraints.txt").read_text()
    of_airflow = {name: re.search(r"^apache-airflow==(.*)$", text, re.MULTILINE)[1] for name, text in pins.items()}
    for name, version in of_airflow.items():
        assert version.startswith(f"{name.removeprefix('airflow-')}.")
    assert [version for version in of_airflow.values() if Version(version).is_prerelease] == re.findall(
        r"the pre-release (\S+) with", PAGE
    )


def test_every_file_that_an_older_version_leaves_out_is_there():
    # Else a file with a new name runs where it can't.
    assert [name for name in FILES_SINCE if not (ROOT / "tests" / name).is_file()] == []


def test_the_table_has_what_is_checked_here():
    assert [what for what, *_ in ROWS] == list(CHECKS)


@pytest.mark.parametrize(("what", "since", "before"), ROWS, ids=[what for what, *_ in ROWS])
def test_it_works_from_the_version_on_that_the_table_names(what: str, since: str, before: str):
    if at_least(since):
        CHECKS[what]()
        return
    with pytest.raises((ImportError, ValueError, LookupError, AssertionError)) as refused:
        CHECKS[what]()
    for sentence in re.findall(r"refused: `([^`]*)`", before):
        assert sentence in str(refused.value)
