"""Runs the DAGs of the pages; their folder, Airflow's database and the sandbox are those of the process."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import PartitionedAssetTimetable

MIDNIGHT = datetime(2026, 3, 5, 13, tzinfo=UTC)
"""In Sydney: the end of a Thursday."""
BAG = DagBag()
SKIPPED = {("check_april", "repair")}
"""Nothing is missing after a load."""


def test_every_file_can_be_parsed():
    assert not BAG.import_errors


# ``dag.test`` can't start what only events start.
@pytest.mark.parametrize(
    "dag_id",
    sorted(dag_id for dag_id, dag in BAG.dags.items() if not isinstance(dag.timetable, PartitionedAssetTimetable)),
)
def test_it_succeeds(dag_id: str):
    run = BAG.dags[dag_id].test(logical_date=MIDNIGHT)
    assert {f"{task.task_id}: {task.state}" for task in run.get_task_instances()} == {
        f"{task_id}: {'skipped' if (dag_id, task_id) in SKIPPED else 'success'}"
        for task_id in BAG.dags[dag_id].task_dict
    }
