"""When the deadline of a session falls, as Airflow asks for it; tests/airflow/test_trading_days.py has one missed."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.serialization.decoders import decode_deadline_reference
from airflow.serialization.encoders import encode_deadline_reference

from openmarkets_provider.sessions.calendar import ASX
from openmarkets_provider.timetables.deadline import SessionCloseDeadline
from tests.support.versions import at_least


class Database:
    """Has one run."""

    def __init__(self, run: Any) -> None:
        self.run = run

    def scalars(self, statement: Any) -> Any:
        return SimpleNamespace(one=lambda: self.run)


def scheduled(reference: SessionCloseDeadline) -> Any:
    """Return a reference as the scheduler has it: from the serialized DAG."""
    return decode_deadline_reference(json.loads(json.dumps(encode_deadline_reference(reference))))


def deadline(partition_key: str | None, reference: SessionCloseDeadline | None = None) -> datetime | None:
    """Return the deadline, 90 minutes after the close, of a run that is created now."""
    run = SimpleNamespace(partition_key=partition_key, dag_id="bars", run_id="one")
    passed: dict[str, Any] = {"dag_id": run.dag_id, "run_id": run.run_id}
    if at_least("3.4"):
        passed["dagrun"] = run
    return scheduled(reference or SessionCloseDeadline()).evaluate_with(
        session=Database(run), interval=timedelta(minutes=90), **passed
    )


@pytest.fixture
def last_session() -> Any:
    """The last session that has closed."""
    now = datetime.now(UTC)
    return next(
        day for day in reversed(ASX.sessions_in_range(now - timedelta(days=14), now)) if ASX.session_close(day) < now
    )


def test_it_is_counted_from_the_close(last_session) -> None:
    assert deadline(str(last_session)) == ASX.session_close(last_session) + timedelta(minutes=90)


def test_a_session_that_trades_now_has_one(last_session) -> None:
    session = ASX.next_session(last_session)
    assert deadline(str(session)) == ASX.session_close(session) + timedelta(minutes=90)


def test_an_older_session_has_none(last_session) -> None:
    assert deadline(str(ASX.previous_session(last_session))) is None


def test_a_further_half_day_closes_early(last_session) -> None:
    reference = SessionCloseDeadline(extra_half_days=[last_session])
    close = ASX.session_open(last_session).replace(hour=14, minute=10)
    assert deadline(str(last_session), reference) == close + timedelta(minutes=90)


@pytest.mark.parametrize("key", [None, "2026-04", "2026-04-03"])
def test_a_run_of_no_session_has_none_and_is_not_held_up(key, caplog) -> None:
    assert deadline(key) is None
    assert f"The run with the partition key {key} has no deadline:" in caplog.text


def test_half_days_make_references_differ() -> None:
    one, other = SessionCloseDeadline(), SessionCloseDeadline(["2027-03-02", "2027-03-03"])
    assert one == SessionCloseDeadline()
    assert one != other
    assert len({one, other, SessionCloseDeadline(["2027-03-03", "2027-03-02"])}) == 2
