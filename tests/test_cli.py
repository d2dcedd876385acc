"""The command, as a person types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.since("3.2")
AIRFLOW = Path(sys.executable).parent / "airflow"


def sessions(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [AIRFLOW, "openmarkets", "sessions", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_sessions_are_a_table() -> None:
    done = sessions("--from", "2026-12-23", "--to", "2026-12-29")
    rows = [line.replace("|", " ").split() for line in done.stdout.splitlines() if "2026-" in line]
    assert rows == [
        ["2026-12-23", "2026-12-23T10:00:00+11:00", "2026-12-23T16:10:00+11:00", "False"],
        ["2026-12-24", "2026-12-24T10:00:00+11:00", "2026-12-24T14:10:00+11:00", "True"],
        ["2026-12-29", "2026-12-29T10:00:00+11:00", "2026-12-29T16:10:00+11:00", "False"],
    ], done.stderr


def test_sessions_are_json() -> None:
    done = sessions("--from", "2026-04-02", "--to", "2026-04-07", "--output", "json")
    assert json.loads(done.stdout)[-1] == {
        "session": "2026-04-07",
        "open": "2026-04-07T10:00:00+10:00",
        "close": "2026-04-07T16:10:00+10:00",
        "half_day": "False",
    }, done.stderr


def test_a_wrong_date_is_a_sentence() -> None:
    done = sessions("--from", "April", "--to", "2026-04-07")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "expected a date such as '2026-04-02', not 'April'."
