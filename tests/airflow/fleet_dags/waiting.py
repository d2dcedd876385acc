"""One DAG whose tasks all wait in the triggerer."""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.sdk import dag

from openmarkets_provider import queries
from openmarkets_provider.sensors.openmarkets import OpenmarketsSensor

SECURITIES = ("BHP", "CBA", "RIO", "WBC", "FMG", "NAB")
OPEN = {"condition": "[0].trading_status == 'OPEN'", "poke_interval": 3, "timeout": 600, "deferrable": True}


@dag(schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC), default_args={"retries": 0})
def waiting() -> None:
    OpenmarketsSensor.partial(task_id="opens", **OPEN).expand(query=[queries.quotes(code) for code in SECURITIES])
    OpenmarketsSensor(task_id="cleared", query=queries.quotes("BHP"), **OPEN)


waiting()
