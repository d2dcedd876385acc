"""``airflow dags test``: no scheduler and no triggerer, so nothing but a trigger itself ends it."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

pytestmark = [pytest.mark.airflow, pytest.mark.since("3.0")]

WAITS = """
from airflow.sdk import dag

from openmarkets_provider import queries
from openmarkets_provider.sensors.openmarkets import OpenmarketsSensor


@dag(schedule=None)
def waits():
    for task_id, soft_fail in (("fails", False), ("is_skipped", True)):
        OpenmarketsSensor(
            task_id=task_id,
            query=queries.quotes(["BHP"]),
            condition="[0].trading_status == 'NEVER'",
            poke_interval=1,
            timeout=3,
            deferrable=True,
            soft_fail=soft_fail,
        )


waits()
"""


def test_a_deferrable_sensor_ends_at_its_timeout(openmarkets_sandbox, tmp_path: Path):
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags" / "waits.py").write_text(WAITS)
    env = os.environ | {
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__CORE__DAGS_FOLDER": str(tmp_path / "dags"),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{tmp_path}/airflow.db",
    }
    for command in (["db", "migrate"], ["dags", "test", "waits"]):
        done = subprocess.run(
            [sys.executable, "-m", "airflow", *command],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=480,
        )
    told = done.stdout + done.stderr
    assert "First poll: [0].trading_status == 'NEVER' is False; the result has 1 row." in told
    assert "AirflowSensorTimeout: Sensor has timed out; its timeout of 3 seconds is over." in told
    assert done.returncode != 0
    with closing(sqlite3.connect(tmp_path / "airflow.db")) as database:
        states = dict(database.execute("SELECT task_id, state FROM task_instance"))
    assert states == {"fails": "failed", "is_skipped": "skipped"}
