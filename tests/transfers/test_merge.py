"""Rows that are merged into the files of partitions: those with the same key are replaced, all others stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowFailException

from openmarkets_provider import queries
from openmarkets_provider.transfers.openmarkets_to_object_storage import OpenmarketsToObjectStorageOperator
from tests.support.context import context

MARCH = {"start": "2026-03-01", "end": "2026-04-01"}
SESSIONS = 22


def transfer(query: queries.Query, **kwargs: Any) -> OpenmarketsToObjectStorageOperator:
    return OpenmarketsToObjectStorageOperator(task_id="load", query=query, **kwargs)


def keys(folder: Path) -> list[tuple[str, str]]:
    rows = (row for path in folder.rglob("*.parquet") for row in pq.ParquetFile(path).read().to_pylist())
    return sorted((row["security_code"], str(row["time_series_date"])) for row in rows)


@pytest.mark.parametrize("partition", ["day", "month", "year"])
def test_a_range_within_a_partition_leaves_all_other_rows(openmarkets_sandbox, tmp_path, partition):
    folder = {"destination": str(tmp_path), "partition": partition}
    whole = MARCH if partition != "year" else {"start": "2026-01-01", "end": "2027-01-01"}
    transfer(queries.time_series("BHP", **whole), **folder).execute(context())
    before = keys(tmp_path)
    for _ in range(2):
        merge = transfer(
            queries.time_series(["BHP", "CBA"], start="2026-03-10", end="2026-03-12"), if_exists="merge", **folder
        )
        merge.execute(context())
        new = [("CBA", "2026-03-10"), ("CBA", "2026-03-11")]
        assert keys(tmp_path) == [*before, *new]


def test_a_partition_without_rows_keeps_its_file(openmarkets_sandbox, tmp_path):
    folder = {"destination": str(tmp_path), "partition": "day"}
    transfer(queries.time_series("BHP", **MARCH), **folder).execute(context())
    result = transfer(queries.time_series("BHPXY7", **MARCH), if_exists="merge", **folder).execute(context())
    assert (result["rows"], result["files"]) == (0, [])
    assert len(keys(tmp_path)) == SESSIONS


class TestMapped:
    def execute(self, tmp_path: Path, limit: int | None) -> None:
        mapped = [queries.time_series(code, start="2026-03-02", end="2026-03-03") for code in ("BHP", "CBA")]
        with DAG("dag", schedule=None) as dag:
            OpenmarketsToObjectStorageOperator.partial(
                task_id="load",
                destination=str(tmp_path),
                partition="day",
                if_exists="merge",
                max_active_tis_per_dag=limit,
            ).expand(query=mapped)
        for index, query in enumerate(mapped):
            task = dag.get_task("load").unmap({"query": query})
            task.execute(context(map_index=index) | {"dag": dag})

    def test_one_after_the_other_they_share_a_file(self, openmarkets_sandbox, tmp_path):
        self.execute(tmp_path, 1)
        assert keys(tmp_path) == [("BHP", "2026-03-02"), ("CBA", "2026-03-02")]

    def test_at_once_they_do_not(self, openmarkets_sandbox, tmp_path):
        with pytest.raises(AirflowFailException, match=r"Set max_active_tis_per_dag=1 in \.partial\(\)"):
            self.execute(tmp_path, None)


def test_a_task_runs_alone(tmp_path):
    query = queries.time_series("BHP", **MARCH)
    task = transfer(query, destination=str(tmp_path), partition="day", if_exists="merge")
    assert task.max_active_tis_per_dag == 1
    with pytest.raises(ValueError, match="if_exists='merge' needs partition"):
        transfer(query, destination=f"{tmp_path}/x.parquet", if_exists="merge")
