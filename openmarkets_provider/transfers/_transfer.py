"""What all transfers share: assets and lineage, incremental ranges, and ending at once when they are killed."""

from __future__ import annotations

import time
from abc import abstractmethod
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from openmarkets_provider._airflow import Asset
from openmarkets_provider.operators.base import QueryOperator
from openmarkets_provider.query.arguments import is_literal
from openmarkets_provider.query.query import check_reads_only
from openmarkets_provider.transfers._incremental import check, incrementally

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
    from openmarkets_provider.landing.incremental import Claim
    from openmarkets_provider.landing.landed import Landed
    from openmarkets_provider.queries import Query

DEFAULT_OVERLAP = timedelta(days=1)


class Killed(BaseException):
    """Airflow ends the task. Not an Exception: nothing on the way up may take it for a failure of its own."""


class Transfer(QueryOperator):
    """Lands what a query gives.

    Subclasses say where, by :meth:`land` and :meth:`dataset`.

    :param asset_uri: the destination as an asset, for a task whose ``outlets`` name none; None when it is not known
        before the task runs.
    :param incremental: pull only what is new since the last load of this destination.
    :param overlap: how far before the end of the last load an incremental one begins.
    """

    one_query_each: ClassVar[bool]
    """True when a destination holds what one query gives, of one task, and one load at a time may change it."""

    def __init__(
        self,
        *,
        asset_uri: str | None,
        incremental: bool = False,
        overlap: timedelta = DEFAULT_OVERLAP,
        **kwargs: Any,
    ) -> None:
        query = kwargs["query"]
        if is_literal(query):
            check_reads_only(query, "a transfer", is_literal)
        if incremental:
            check(query)
            if not isinstance(overlap, timedelta) or overlap < timedelta(0):
                raise ValueError(f"overlap must be a timedelta of 0 or more, not {overlap!r}.")
            if self.one_query_each and kwargs.setdefault("max_active_tis_per_dag", 1) != 1:
                raise ValueError("max_active_tis_per_dag: two incremental loads can't go on at once; leave it out.")
        # The outlets of a mapped task are those that the DAG was parsed with; Airflow has no public word for it.
        is_mapped = getattr(self, "_BaseOperator__from_mapped", False)
        super().__init__(**kwargs)
        self.incremental = incremental
        self.overlap = overlap
        own = None if is_mapped or asset_uri is None else Asset(asset_uri)
        self._own_uri = own.uri if own else None
        # Whatever others a task names: all tasks that load a destination must find the same state.
        if own and (incremental or not self._assets()) and own.uri not in [each.uri for each in self._assets()]:
            self.outlets = [*self.outlets, own]
        if incremental and not self._assets():
            raise ValueError(
                "incremental: how far the destination is loaded is kept with an asset. Name one, outlets=[Asset(...)], "
                "the same for all that load this destination: a mapped task has none of its own, nor has a destination "
                "that begins with a template."
            )
        self._landing = False
        self._landed: Landed | None = None
        self._source: tuple[str, str] | None = None

    @abstractmethod
    def land(self, hook: OpenmarketsHook, query: Query, context: Context) -> Landed:
        """Answer the query and land its rows."""

    @abstractmethod
    def destination_text(self) -> str:
        """Return what tells the destination from any other, rendered, without a secret."""

    def form(self) -> str:
        """Return what else of the task decides how rows are kept at the destination, as text."""
        return ""

    @abstractmethod
    def is_there(self) -> bool:
        """Tell whether the destination exists, and is not empty where emptiness can be told."""

    @abstractmethod
    def dataset(self) -> tuple[str, str, str]:
        """Return the destination's URI for assets, and its namespace and name for OpenLineage."""

    def range_to_pull(self, query: Query, claimed: Claim, watermark: str | None) -> tuple[Any, Any]:
        """Return the range to pull for a claim; what is pulled replaces what is there of it.

        :param watermark: how far the destination is loaded.
        """
        return claimed.start, claimed.end

    def answer(self, hook: OpenmarketsHook, context: Context) -> dict[str, Any]:
        """Land the query's rows, and return what was landed: destination, rows, bytes, files and range."""
        check_reads_only(self.query, "a transfer")
        started = time.monotonic()
        self._landing = True
        try:
            if self.incremental:
                landed = incrementally(self, context, lambda query: self.land(hook, query, context))
            else:
                landed = self.land(hook, self.query, context)
        finally:
            self._landing = False
        self._report(hook, context, landed, time.monotonic() - started)
        return landed._asdict()

    def on_kill(self) -> None:
        """Stop: what was begun is taken back on the way out."""
        if self._landing:
            self._landing = False
            raise Killed("The task was killed; what it had begun to load is taken back.")

    def _report(self, hook: OpenmarketsHook, context: Context, landed: Landed, seconds: float) -> None:
        from openmarkets_provider.transfers._lineage import collect

        size = "" if landed.bytes is None else f", {landed.bytes:,} bytes"
        self.log.info(
            "%d rows%s landed in %s in %.1f s, %.0f rows/s.",
            landed.rows,
            size,
            landed.destination,
            seconds,
            landed.rows / seconds if seconds else 0,
        )
        extra: dict[str, Any] = {
            "destination": landed.destination,
            "rows": landed.rows,
            "bytes": landed.bytes,
            "range": landed.range,
        }
        for asset in self._assets():
            context["outlet_events"][asset].extra.update(extra)
        self._landed = landed
        self._source = _source_of(hook, self.query)
        try:
            collect(self, self._source, self.dataset())
        except Exception:
            # The rows are there, and loading them again would not help.
            self.log.exception("Hook lineage could not be told of the load.")

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """Return what the task read and wrote; called by the OpenLineage provider where there is one."""
        from openmarkets_provider.transfers._lineage import openlineage

        # It is asked of tasks that failed, too.
        if self._source is None or self._landed is None:
            return None
        return openlineage(self.query, self._source, self.dataset(), self._landed)

    def state_asset(self) -> Any:
        """Return the asset that the state is kept with: the destination's own, if the task has it."""
        assets = self._assets()
        return next((asset for asset in assets if asset.uri == self._own_uri), assets[0])

    def _assets(self) -> list[Any]:
        return [outlet for outlet in self.outlets if isinstance(outlet, Asset)]


def _source_of(hook: OpenmarketsHook, query: Query) -> tuple[str, str]:
    """Return the URL of the API and the path that the rows come from."""
    from openmarkets_provider.query.endpoints import ENDPOINTS

    if query["endpoint"] == "request":
        return hook.client.settings.api_url(query["api"]), query["path"].lstrip("/")
    endpoint = ENDPOINTS[query["endpoint"]]
    return hook.client.settings.api_url(endpoint.api), endpoint.path
