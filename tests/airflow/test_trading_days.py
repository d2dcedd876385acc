"""Trading days in a real Airflow: what its scheduler, its backfills and its roll-ups make of the calendar."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from openmarkets_provider.sessions.calendar import ASX
from tests.support.airflow import RealAirflow

pytestmark = pytest.mark.airflow

APRIL = [str(day) for day in ASX.sessions_in_range("2026-04-01", "2026-04-30")]


@pytest.fixture(scope="module")
def alarm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("alarm") / "alarm"


@pytest.fixture(scope="module")
def airflow(alarm: Path) -> Iterator[RealAirflow]:
    folder = Path(__file__).parent / "trading_days_dags"
    # The triggerer imports the alarm.
    env = {"SESSION_ALARM": str(alarm), "PYTHONPATH": str(folder)}
    with RealAirflow(folder, env=env, schedules=True) as airflow:
        airflow.wait_until("the DAGs", lambda: airflow.api("GET", "/api/v2/dags/late")[0] == httpx.codes.OK, 120)
        assert airflow.call("GET", "/api/v2/importErrors")["import_errors"] == []
        yield airflow


def ended(airflow: RealAirflow, dag_id: str, count: int, timeout: float = 300) -> list[dict[str, Any]]:
    """Wait until this many runs of a DAG have ended."""

    def enough() -> bool:
        return sum(run["state"] in ("success", "failed") for run in airflow.runs_of(dag_id)) >= count

    airflow.wait_until(f"{count} runs of {dag_id}", enough, timeout)
    return airflow.runs_of(dag_id)


def keys(found: list[dict[str, Any]]) -> list[str]:
    return [run["partition_key"] for run in found]


def times(found: list[dict[str, Any]]) -> dict[str, str]:
    """Return when each run might start, in UTC."""
    return {run["partition_key"]: run["run_after"] for run in found}


@pytest.fixture(scope="module")
def easter(airflow: RealAirflow) -> list[dict[str, Any]]:
    return ended(airflow, "easter", 4)


def test_easter_is_left_out_and_summer_time_ends(easter) -> None:
    assert times(easter) == {
        "2026-04-01": "2026-04-01T05:30:00Z",
        "2026-04-02": "2026-04-02T05:30:00Z",
        "2026-04-07": "2026-04-07T06:30:00Z",
        "2026-04-08": "2026-04-08T06:30:00Z",
    }
    assert {run["state"] for run in easter} == {"success"}
    assert {run["run_type"] for run in easter} == {"scheduled"}
    assert all(run["dag_run_id"].startswith(f"scheduled__{run['partition_key']}__") for run in easter)


def test_tasks_see_the_session_and_the_macros(airflow, easter) -> None:
    values = [airflow.wait_for_run("easter", run["dag_run_id"]).xcom("tell") for run in easter]
    assert [(value["session"], value["previous"]) for value in values] == [
        ("2026-04-01", "2026-03-31"),
        ("2026-04-02", "2026-04-01"),
        ("2026-04-07", "2026-04-02"),
        ("2026-04-08", "2026-04-07"),
    ]
    assert not any(value["ds"] for value in values)


def test_events_carry_the_session(airflow, easter) -> None:
    events = airflow.call("GET", "/api/v2/assets/events", limit=100)["asset_events"]
    of_easter = {event["partition_key"] for event in events if event["source_dag_id"] == "easter"}
    assert of_easter == set(keys(easter))


def test_a_paused_dag_catches_up_and_summer_time_starts(airflow) -> None:
    assert airflow.runs_of("summer_time") == []
    airflow.call("PATCH", "/api/v2/dags/summer_time", {"is_paused": False})
    assert times(ended(airflow, "summer_time", 4)) == {
        "2026-10-01": "2026-10-01T06:30:00Z",
        "2026-10-02": "2026-10-02T06:30:00Z",
        "2026-10-05": "2026-10-05T05:30:00Z",
        "2026-10-06": "2026-10-06T05:30:00Z",
    }


def test_a_session_is_run(airflow) -> None:
    request = {"logical_date": None, "partition_key": "2026-03-31"}
    run = airflow.call("POST", "/api/v2/dags/easter/dagRuns", request)
    assert airflow.wait_for_run("easter", run["dag_run_id"]).xcom("tell")["session"] == "2026-03-31"


def test_a_day_without_trading_is_refused(airflow) -> None:
    request = {"logical_date": None, "partition_key": "2026-04-03"}
    status, answer = airflow.api("POST", "/api/v2/dags/easter/dagRuns", request)
    assert status == httpx.codes.BAD_REQUEST
    assert answer["detail"] == ("2026-04-03 (Friday) is not a trading day; the nearest are 2026-04-02 and 2026-04-07.")


def backfill(airflow: RealAirflow, reprocess: str) -> int:
    return airflow.start_backfill("backfilled", "2026-04-01", "2026-04-30", reprocess)


@pytest.fixture(scope="module")
def resumed(airflow: RealAirflow) -> list[dict[str, Any]]:
    """Kill the scheduler in the middle of a backfill, and start it again."""
    number = backfill(airflow, "none")
    ended(airflow, "backfilled", 3)
    airflow.kill("scheduler")
    interrupted = [run["state"] for run in airflow.runs_of("backfilled")]
    assert 3 <= interrupted.count("success") < len(APRIL)
    airflow.start_scheduler()
    airflow.wait_for_backfill(number)
    return airflow.runs_of("backfilled")


def test_april_has_twenty_runs_and_none_for_good_friday(resumed) -> None:
    assert keys(resumed) == APRIL
    assert len(APRIL) == 20
    assert "2026-04-03" not in APRIL
    assert {(run["run_type"], run["state"]) for run in resumed} == {("backfill", "success")}


def test_failed_sessions_only_are_run_again(airflow, resumed) -> None:
    failed = next(run for run in resumed if run["partition_key"] == "2026-04-15")
    airflow.call("PATCH", f"/api/v2/dags/backfilled/dagRuns/{failed['dag_run_id']}", {"state": "failed"})
    airflow.wait_for_backfill(backfill(airflow, "failed"))
    again = [run for run in airflow.runs_of("backfilled") if run not in resumed]
    assert [(run["partition_key"], run["state"]) for run in again] == [
        ("2026-04-15", "failed"),
        ("2026-04-15", "success"),
    ]


@pytest.fixture(scope="module")
def last_event(airflow: RealAirflow) -> str:
    """Publish the sessions of April one by one; return when the last one was in."""
    assets = airflow.call("GET", "/api/v2/assets")["assets"]
    (asset,) = [each["id"] for each in assets if each["name"] == "returns_by_session"]
    for session in APRIL:
        event = airflow.call("POST", "/api/v2/assets/events", {"asset_id": asset, "partition_key": session})
    return event["timestamp"]


def test_a_month_is_rolled_up_once_with_its_last_session(airflow, last_event) -> None:
    (run,) = ended(airflow, "month", 1)
    assert run["partition_key"] == "2026-04"
    assert run["queued_at"] >= last_event
    done = airflow.wait_for_run("month", run["dag_run_id"])
    assert done.xcom("tell") == {"month": "2026-04", "sessions": APRIL}


def test_a_moving_window_has_a_run_per_session_from_the_third_on(airflow, last_event) -> None:
    assert keys(ended(airflow, "trailing", 18)) == APRIL[2:]


def test_a_missed_deadline_raises_the_alarm(airflow, alarm) -> None:
    (run,) = ended(airflow, "late", 1)
    session = run["partition_key"]
    path = f"/ui/dags/late/dagRuns/{run['dag_run_id']}/deadlines"
    (deadline,) = airflow.call("GET", path)["deadlines"]
    due = ASX.session_close(session) + timedelta(minutes=1)
    assert datetime.fromisoformat(deadline["deadline_time"]) == due
    assert due < datetime.now(UTC)
    airflow.wait_until("the alarm", alarm.exists, 120)
    assert alarm.read_text() == f"late {session}"
