"""What a load tells Airflow's lineage: the collector of hooks, and OpenLineage where its provider is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from openmarkets_provider.landing.layout import layout_of

if TYPE_CHECKING:
    from openmarkets_provider.landing.landed import Landed
    from openmarkets_provider.queries import Query


def collect(context: Any, source: tuple[str, str], dataset: tuple[str, str, str]) -> None:
    """Tell the hook lineage collector what was read and what was written.

    :param context: the operator.
    :param source: URL of the API, and path.
    :param dataset: URI of the destination first.
    """
    from airflow.providers.common.compat.lineage.hook import get_hook_lineage_collector

    collector = get_hook_lineage_collector()
    collector.add_input_asset(context=context, uri="/".join(source))
    collector.add_output_asset(context=context, uri=dataset[0])


def openlineage(query: Query, source: tuple[str, str], dataset: tuple[str, str, str], landed: Landed) -> Any:
    """Return an OpenLineage ``OperatorLineage``: the API's path as input, the destination and its columns as output."""
    from airflow.providers.common.compat.openlineage.facet import (
        Dataset,
        OutputDataset,
        OutputStatisticsOutputDatasetFacet,
        SchemaDatasetFacet,
        SchemaDatasetFacetFields,
    )
    from airflow.providers.openlineage.extractors import OperatorLineage

    fields = [
        SchemaDatasetFacetFields(name=column.name, type=column.storage.name.lower(), description=column.unit or None)
        for column in layout_of(query).columns
    ]
    _, namespace, name = dataset
    output = OutputDataset(
        namespace=namespace,
        name=name,
        facets={"schema": SchemaDatasetFacet(fields=fields)},
        outputFacets={
            "outputStatistics": OutputStatisticsOutputDatasetFacet(
                rowCount=landed.rows, size=landed.bytes, fileCount=len(landed.files) or None
            )
        },
    )
    return OperatorLineage(inputs=[Dataset(namespace=source[0], name=source[1])], outputs=[output])
