"""Which names of Airflow's lineage and of OpenLineage the package uses; tests/airflow has the events that they make."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import openmarkets_provider

PACKAGE = Path(openmarkets_provider.__file__).parent
DOCUMENTED = {
    # Common compat's way to the collector of hooks, which Airflow documents under "Lineage", on every version.
    "airflow.providers.common.compat.lineage.hook": {"get_hook_lineage_collector"},
    # Both from the guide "Implementing OpenLineage in Operators" of the OpenLineage provider.
    "airflow.providers.common.compat.openlineage.facet": {
        "Dataset",
        "OutputDataset",
        "OutputStatisticsOutputDatasetFacet",
        "SchemaDatasetFacet",
        "SchemaDatasetFacetFields",
    },
    "airflow.providers.openlineage.extractors": {"OperatorLineage"},
}


def test_lineage_goes_through_documented_names_only():
    used: dict[str, set[str]] = defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and "lineage" in node.module:
                used[node.module].update(alias.name for alias in node.names)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    assert "lineage" not in alias.name, alias.name
    assert {name: names for name, names in used.items() if not name.startswith("openmarkets_provider.")} == DOCUMENTED
