"""The main job on whatever Airflow is installed: :mod:`noxfile` runs it on every one that is supported."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.support.airflow import RealAirflow
from tests.support.airflow2 import RealAirflow2
from tests.support.sandbox_process import SandboxProcess
from tests.support.versions import at_least

pytestmark = pytest.mark.airflow

DAYS = [f"2026-03-0{day}" for day in range(2, 7)]
SENSORS = ("poked", "rescheduled", "deferred", "apart")


def test_every_kind_of_task_does_its_work_with_one_token_request_a_scope(tmp_path: Path):
    dags = Path(__file__).parent / "smoke_dags"
    kind = RealAirflow if at_least("3.0") else RealAirflow2
    with SandboxProcess() as sandbox, SandboxProcess() as apart:
        alone = {**apart.connection, "extra": {**apart.connection["extra"], "cache_backend": "memory"}}
        env = {
            "AIRFLOW_CONN_OPENMARKETS_DEFAULT": sandbox.connection_json,
            "AIRFLOW_CONN_OPENMARKETS_APART": json.dumps(alone),
        }
        with kind(dags, env=env) as airflow:
            run = airflow.run_dag("smoke", conf={"lake": str(tmp_path / "lake")})
            assert {str(task) for task in run.tasks} == {
                f"task {name} success" for name in ("accounts", "quotes", *SENSORS, "landed", "report")
            }
            assert run.xcom("report") == "BHP Decimal CBA Decimal"
            logs = {task.task_id: run.log(task.task_id) for task in run.tasks}
            printed = airflow.component_logs()
        assert sandbox.stats()["token_requests"] == {"market-data-api": 1, "oms-api": 1}
        assert apart.stats()["token_requests"] == {"market-data-api": 1}
        secret = sandbox.connection["password"]
    for name, text in (logs | printed).items():
        assert secret not in text, name
    files = sorted((tmp_path / "lake").rglob("*.csv"))
    assert [file.parent.name for file in files] == [f"exchange_date={day}" for day in DAYS]
    for file, day in zip(files, DAYS, strict=True):
        with file.open() as opened:
            (row,) = csv.DictReader(opened)
        assert (row["security_code"], row["time_series_date"]) == ("BHP", day)
