"""What all transfers share: assets and lineage, incremental ranges, and ending at once when they are killed."""

from __future__ import annotations

import hashlib
import time
from abc import abstractmethod
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from openmarkets_provider._airflow import Asset
from openmarkets_provider._query_operator import QueryOperator
from openmarkets_provider.client.arguments import is_literal
from openmarkets_provider.client.ranges import to_text
from openmarkets_provider.client.schemas import SCHEMAS
from openmarkets_provider.exceptions import OpenmarketsError, OpenmarketsQueryError

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
    from openmarkets_provider.landing.incremental import Claim
    from openmarkets_provider.landing.landed import Landed
    from openmarkets_provider.queries import Query

STATE = "openmarkets"
"""The key under which the state of incremental loads is kept, with an asset and with a task instance."""
DEFAULT_OVERLAP = timedelta(days=1)
INCREMENTAL_SINCE = "3.3"


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

    destination_field: ClassVar[str]
    """The attribute that names the destination."""
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
        if incremental:
            _check_incremental(kwargs["query"], overlap)
            if self.one_query_each and kwargs.setdefault("max_active_tis_per_dag", 1) != 1:
                raise ValueError("max_active_tis_per_dag: two incremental loads can't go on at once; leave it out.")
        # The outlets of a mapped task are those that the DAG was parsed with.
        is_mapped = kwargs.get("_airflow_from_mapped", False)
        super().__init__(**kwargs)
        self.incremental = incremental
        self.overlap = overlap
        if not is_mapped and not self._assets() and asset_uri is not None:
            self.outlets = [*self.outlets, Asset(asset_uri)]
        if incremental and not self._assets():
            raise ValueError(
                "incremental: how far the destination is loaded is kept with its asset. Name it, outlets=[Asset(...)]: "
                "a destination with a template, and a mapped task, have none of their own."
            )
        self._landing = False

    @abstractmethod
    def land(self, hook: OpenmarketsHook, query: Query, context: Context) -> Landed:
        """Answer the query and land its rows."""

    @abstractmethod
    def dataset(self) -> tuple[str, str, str]:
        """Return the destination's URI for assets, and its namespace and name for OpenLineage."""

    def range_to_pull(self, query: Query, claimed: Claim, watermark: str | None) -> tuple[Any, Any]:
        """Return the range to pull for a claim; what is pulled replaces what is there of it.

        :param watermark: how far the destination is loaded.
        """
        return claimed.start, claimed.end

    def _destination(self) -> str:
        """Return the rendered destination, as text."""
        return str(getattr(self, self.destination_field))

    def answer(self, hook: OpenmarketsHook, context: Context) -> dict[str, Any]:
        """Land the query's rows, and return what was landed: destination, rows, bytes, files and range."""
        started = time.monotonic()
        self._landing = True
        try:
            landed = self._incrementally(hook, context) if self.incremental else self.land(hook, self.query, context)
        finally:
            self._landing = False
        self._report(hook, context, landed, time.monotonic() - started)
        return landed._asdict()

    def on_kill(self) -> None:
        """Stop: what was begun is taken back on the way out."""
        if self._landing:
            self._landing = False
            raise Killed("The task was killed; what it had begun to load is taken back.")

    def _incrementally(self, hook: OpenmarketsHook, context: Context) -> Landed:
        from airflow.providers.common.compat.sdk import AirflowSkipException

        from openmarkets_provider.landing.incremental import claim, claim_again, fingerprint, later, limited_to

        of_task: Any = context["task_state_store"]
        of_asset: Any = context["asset_state_store"][self._assets()[0]]
        query_id = fingerprint(self.query)
        key = self._state_key(query_id)
        state = of_asset.get(key) or {}
        owner = f"{self.dag_id}.{self.task_id}"
        self._check_state(context, key, state, owner, query_id)
        watermark, kept = state.get("watermark"), of_task.get(STATE)
        claimed = claim_again(self.query, kept, watermark) if kept else None
        if claimed is None:
            claimed = claim(self.query, watermark, state.get("first"), self.overlap, datetime.now(UTC))
            if claimed is None:
                raise AirflowSkipException(f"Nothing is new: {self._destination()} is loaded up to {watermark}.")
            of_task.set(STATE, claimed.as_data())
        start, end = self.range_to_pull(self.query, claimed, watermark)
        self.log.info("Loaded up to %s; this task loads %s to %s.", watermark or "nothing yet", start, end)
        landed = self.land(hook, limited_to(self.query, start, end), context)
        reached = (of_asset.get(key) or {}).get("watermark")
        new = {
            "destination": self._destination(),
            "owner": owner,
            "query": query_id,
            "first": state.get("first") or to_text(claimed.start),
            "watermark": later(reached, to_text(claimed.end)),
        }
        of_asset.set(key, new)
        return landed

    def _state_key(self, query_id: str) -> str:
        """Return the key of the state of this destination, and of this query where others may load it, too."""
        text = self._destination() if self.one_query_each else f"{self._destination()} {query_id}"
        return f"{STATE}_{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def _check_state(self, context: Context, key: str, state: dict[str, str], owner: str, query_id: str) -> None:
        """Refuse what would lose or double rows."""
        # Airflow's enum is not always one of texts.
        run_type = context["dag_run"].run_type
        if getattr(run_type, "value", run_type) == "backfill":
            raise OpenmarketsError(
                "A backfill asks for the past, and an incremental load for what is new. Load the past with a task "
                f"without incremental. {_RANGES_INSTEAD}"
            )
        if self.one_query_each and state and (state["owner"], state["query"]) != (owner, query_id):
            asset = self._assets()[0].name
            raise OpenmarketsError(
                f"{self._destination()} is loaded by task {state['owner']}, or was loaded with another query "
                "(securities, interval...): rows would be missing or there twice. Give this load a destination of its "
                f"own; or, to begin anew, empty it and delete the key {key!r} in the state store of asset {asset!r}."
            )

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
        collect(self, self._source, self.dataset())

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """Return what the task read and wrote; called by the OpenLineage provider where there is one."""
        from openmarkets_provider.transfers._lineage import openlineage

        return openlineage(self.query, self._source, self.dataset(), self._landed)

    def _assets(self) -> list[Any]:
        return [outlet for outlet in self.outlets if isinstance(outlet, Asset)]


_RANGES_INSTEAD = (
    'Ask for the range of the run instead: queries.time_series("BHP", start="{{ data_interval_start }}", '
    'end="{{ data_interval_end }}").'
)


def _check_incremental(query: Query, overlap: timedelta) -> None:
    from airflow import __version__ as airflow_version

    if tuple(map(int, airflow_version.split(".")[:2])) < tuple(map(int, INCREMENTAL_SINCE.split("."))):
        raise ValueError(
            f"incremental=True needs Airflow {INCREMENTAL_SINCE} or later (its asset state store); this is "
            f"{airflow_version}. {_RANGES_INSTEAD}"
        )
    if not isinstance(overlap, timedelta) or overlap < timedelta(0):
        raise ValueError(f"overlap must be a timedelta of 0 or more, not {overlap!r}.")
    name = query.get("endpoint") if is_literal(query) and isinstance(query, dict) else None
    if is_literal(name) and name is not None and (name not in SCHEMAS or SCHEMAS[name].time is None):
        raise OpenmarketsQueryError(f"{name}: incremental needs a query with a range (start and end).")


def _source_of(hook: OpenmarketsHook, query: Query) -> tuple[str, str]:
    """Return the URL of the API and the path that the rows come from."""
    from openmarkets_provider.client.endpoints import ENDPOINTS

    if query["endpoint"] == "request":
        return hook.client.settings.api_url(query["api"]), query["path"].lstrip("/")
    endpoint = ENDPOINTS[query["endpoint"]]
    return hook.client.settings.api_url(endpoint.api), endpoint.path
