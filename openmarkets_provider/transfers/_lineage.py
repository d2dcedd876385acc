"""Lineage of a load: for Airflow's hook lineage collector, and for OpenLineage if its provider is installed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from openmarkets_provider.landing.columns import Choice
from openmarkets_provider.landing.layout import layout_of
from openmarkets_provider.query.endpoints import ENDPOINTS

if TYPE_CHECKING:
    from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
    from openmarkets_provider.landing.destination import LoadResult
    from openmarkets_provider.queries import Query


class Dataset(NamedTuple):
    """A destination.

    :ivar uri: URI of its asset.
    :ivar namespace: OpenLineage namespace; ``name`` is the OpenLineage name.
    """

    uri: str
    namespace: str
    name: str


class Lineage(NamedTuple):
    """The input and output of a load.

    :ivar api_url: URL of the API.
    :ivar path: path of the API call.
    """

    api_url: str
    path: str
    dataset: Dataset
    result: LoadResult

    @classmethod
    def of(cls, hook: OpenmarketsHook, query: Query, dataset: Dataset, result: LoadResult) -> Lineage:
        """Return the lineage of a load."""
        if query["endpoint"] == "request":
            api, path = query["api"], query["path"].lstrip("/")
        else:
            endpoint = ENDPOINTS[query["endpoint"]]
            api, path = endpoint.api, endpoint.path
        return cls(hook.client.settings.api_url(api), path, dataset, result)

    def collect(self, operator: Any) -> None:
        """Add the input and output to Airflow's hook lineage collector."""
        from airflow.providers.common.compat.lineage.hook import get_hook_lineage_collector

        collector = get_hook_lineage_collector()
        collector.add_input_asset(context=operator, uri=f"{self.api_url}/{self.path}")
        collector.add_output_asset(context=operator, uri=self.dataset.uri)

    def for_openlineage(self, query: Query, columns: Mapping[str, str] | None) -> Any:
        """Return an ``OperatorLineage`` of OpenLineage: the API's path as input, the destination as output.

        :param columns: see :class:`openmarkets_provider.landing.columns.Choice`.
        """
        from airflow.providers.common.compat.openlineage.facet import (
            Dataset,
            OutputDataset,
            OutputStatisticsOutputDatasetFacet,
            SchemaDatasetFacet,
            SchemaDatasetFacetFields,
        )
        from airflow.providers.openlineage.extractors import OperatorLineage

        fields = [
            SchemaDatasetFacetFields(
                name=column.name, type=column.storage.name.lower(), description=column.unit or None
            )
            for column in Choice(layout_of(query), columns).layout.columns
        ]
        statistics = OutputStatisticsOutputDatasetFacet(
            rowCount=self.result.rows, size=self.result.bytes, fileCount=len(self.result.files) or None
        )
        output = OutputDataset(
            namespace=self.dataset.namespace,
            name=self.dataset.name,
            facets={"schema": SchemaDatasetFacet(fields=fields)},
            outputFacets={"outputStatistics": statistics},
        )
        return OperatorLineage(inputs=[Dataset(namespace=self.api_url, name=self.path)], outputs=[output])
