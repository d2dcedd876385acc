"""What a deployment of Airflow keeps between the runs of a task, as dicts."""

from __future__ import annotations

import json
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

from airflow.sdk import Asset
from airflow.sdk.api.datamodels._generated import DagRunType

from tests.support.context import OutletEvents


class Store:
    """A state store: JSON by key."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    def set(self, key: str, value: Any) -> None:
        self.values[key] = json.loads(json.dumps(value))

    def delete(self, key: str) -> None:
        self.values.pop(key, None)


class Deployment:
    """What a deployment keeps of assets. It keeps nothing of task instances: Airflow 3.4 deletes that with a clear."""

    def __init__(self) -> None:
        self.assets: defaultdict[str, Store] = defaultdict(Store)
        self.events = OutletEvents()

    def run(self, task: Any, run_id: str, run_type: str = "scheduled", **more: Any) -> Any:
        return task.execute(self.context(task, run_id, run_type) | more)

    def context(self, task: Any, run_id: str, run_type: str = "scheduled") -> Any:
        outer = self

        class Assets:
            def __getitem__(self, asset: Asset) -> Store:
                return outer.assets[asset.name]

        return {
            "run_id": run_id,
            "ti": SimpleNamespace(dag_id=task.dag_id, task_id=task.task_id, run_id=run_id, map_index=-1),
            "dag": task.get_dag(),
            "dag_run": SimpleNamespace(run_type=DagRunType(run_type), run_id=run_id),
            "asset_state_store": Assets(),
            "outlet_events": self.events,
        }
