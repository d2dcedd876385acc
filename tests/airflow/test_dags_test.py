"""``airflow dags test``: no scheduler and no triggerer, so nothing but a trigger itself ends it."""

from __future__ import annotations

import os
import re
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


EXAMPLES = Path(__file__).parent.parent.parent / "example_dags"


def run_dag(folder: Path, dag_id: str) -> subprocess.CompletedProcess[str]:
    """Run a DAG of the folder ``dags`` in a folder, which is Airflow's home."""
    env = os.environ | {
        "AIRFLOW_HOME": str(folder),
        "AIRFLOW__CORE__DAGS_FOLDER": str(folder / "dags"),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{folder}/airflow.db",
    }
    commands = [["db", "migrate"], ["dags", "test", dag_id]]
    for command in commands[(folder / "airflow.db").exists() :]:
        done = subprocess.run(
            [sys.executable, "-m", "airflow", *command],
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=480,
        )
    return done


def states(folder: Path) -> dict[str, str]:
    """Return the states of the tasks of the last run."""
    with closing(sqlite3.connect(folder / "airflow.db")) as database:
        return dict(database.execute("SELECT task_id, state FROM task_instance ORDER BY start_date"))


def test_a_deferrable_sensor_ends_at_its_timeout(openmarkets_sandbox, tmp_path: Path):
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags" / "waits.py").write_text(WAITS)
    done = run_dag(tmp_path, "waits")
    output = done.stdout + done.stderr
    assert "First poll: [0].trading_status == 'NEVER' is False; the result has 1 row." in output
    assert "AirflowSensorTimeout: Sensor has timed out; its timeout of 3 seconds is over." in output
    assert done.returncode != 0
    assert states(tmp_path) == {"fails": "failed", "is_skipped": "skipped"}


def test_the_example_of_a_reconciliation_reports_what_differs(openmarkets_sandbox, tmp_path: Path):
    openmarkets_sandbox.set_accounts([{"accountCode": "FUND1"}])
    (tmp_path / "dags").mkdir()
    source = (EXAMPLES / "example_reconciliation.py").read_text().replace("retries=2", "retries=0")
    (tmp_path / "dags" / "example_reconciliation.py").write_text(source)
    assert run_dag(tmp_path, "example_reconciliation").returncode == 0
    assert states(tmp_path) == {"check": "success", "report": "skipped"}
    openmarkets_sandbox.set_positions("FUND1", [{"securityCode": "BHP", "actualVolume": 61}])
    output = run_dag(tmp_path, "example_reconciliation").stdout
    assert "1 difference between orders, trades and positions: FUND1 BHP position: actual_volume is 61" in output
    assert re.search(r"FUND1 +BHP +position +actual_volume +61 +0", output)
    assert states(tmp_path) == {"check": "failed", "report": "success"}
