"""The example DAGs, as somebody meets them in Airflow's pages; ``tests/airflow`` runs them."""

from __future__ import annotations

import re

import pytest
from airflow.dag_processing.dagbag import DagBag

from tests.support.pages import ROOT

BAG = DagBag(ROOT / "example_dags")
PARAMS = [(dag_id, name) for dag_id, dag in BAG.dags.items() for name in dag.params]
MAPPED = [(dag.dag_id, task.task_id) for dag in BAG.dags.values() for task in dag.tasks if task.is_mapped]


def test_all_are_looked_at():
    assert not BAG.import_errors
    assert len(BAG.dags) >= 6
    assert PARAMS
    assert MAPPED


@pytest.mark.parametrize(("dag_id", "name"), PARAMS)
def test_a_param_that_must_be_there_is_not_empty(dag_id: str, name: str):
    """Airflow's form does not submit an empty field, unless null is allowed."""
    param = BAG.dags[dag_id].params.get_param(name)
    assert param.value or "null" in param.schema["type"]


@pytest.mark.parametrize(("dag_id", "task_id"), MAPPED)
def test_mapped_tasks_have_names(dag_id: str, task_id: str):
    assert BAG.dags[dag_id].get_task(task_id).map_index_template


@pytest.mark.parametrize("dag_id", sorted(BAG.dags))
def test_its_text_is_short_and_in_markdown(dag_id: str):
    text = BAG.dags[dag_id].doc_md
    assert 0 < len(text.splitlines()) <= 35
    assert "``" not in text
    assert dag_id.endswith("_landed") or len(re.findall("^## ", text, re.MULTILINE)) >= 2
