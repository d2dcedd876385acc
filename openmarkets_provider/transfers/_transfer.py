"""The base of transfers: assets, lineage, partitions, incremental loads, and rollback when a task is killed."""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from openmarkets_provider._airflow import Asset
from openmarkets_provider.client.environments import SCOPES
from openmarkets_provider.exceptions import (
    OpenmarketsConfigurationError,
    OpenmarketsDatabaseError,
    OpenmarketsError,
    OpenmarketsInvalidResponse,
    OpenmarketsQueryError,
)
from openmarkets_provider.landing.incremental import NothingNew, check_query, load_incrementally
from openmarkets_provider.landing.partitions import list_sessions
from openmarkets_provider.operators.base import QueryOperator
from openmarkets_provider.query.arguments import is_literal
from openmarkets_provider.query.query import check_reads_only, end_of, lacks_range, window
from openmarkets_provider.transfers._lineage import Dataset, Lineage

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from openmarkets_provider.client.pulled import Pulled
    from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
    from openmarkets_provider.landing.destination import Destination, LoadResult, Source
    from openmarkets_provider.queries import Query
    from openmarkets_provider.query.batch import Batch

DEFAULT_OVERLAP = timedelta(days=1)
SINCE = (3, 3)
"""The first Airflow version with state stores and asset partitions."""
_USE_RANGES = (
    "Instead, load the range of each run in a DAG whose timetable has data intervals (such as "
    'CronDataIntervalTimetable): queries.time_series("BHP", start="{{ data_interval_start }}", '
    'end="{{ data_interval_end }}").'
)


class Killed(BaseException):
    """Airflow kills the task. Not an Exception, so that no handler treats it as a failure."""


class Transfer(QueryOperator):
    """Lands the rows of a query at a destination.

    :param asset_uri: the asset of the destination, for tasks without ``outlets``; None if it is not known when the DAG
        is parsed.
    :param incremental: load only new data since the last load of the destination.
    :param overlap: how far before the end of the last load an incremental load starts.
    :param full_refresh: load the whole range of the query: a bool or its text. Templated.
    :param emit_partitions: emit one asset event for each session in the query's range, with its date as partition key.
    """

    template_fields: Sequence[str] = (*QueryOperator.template_fields, "full_refresh")
    is_exclusive: ClassVar[bool]
    """See :attr:`openmarkets_provider.landing.destination.Destination.is_exclusive`."""
    columns: dict[str, str] | None = None
    """See :class:`openmarkets_provider.landing.columns.Choice`."""

    def __init__(
        self,
        *,
        asset_uri: str | None,
        incremental: bool = False,
        overlap: timedelta = DEFAULT_OVERLAP,
        full_refresh: bool | str = False,
        emit_partitions: bool = False,
        **kwargs: Any,
    ) -> None:
        query = kwargs["query"]
        if is_literal(query):
            check_reads_only(query, "a transfer", is_literal)
        if emit_partitions:
            _check_airflow("emit_partitions=True needs Airflow 3.3 or later", "Remove it.")
            _check_sessions(query)
            if incremental:
                raise ValueError(
                    "emit_partitions can't be used with incremental: each load would emit the sessions of its "
                    "overlap again. Remove incremental, and load the range of each run."
                )
        if incremental:
            _check_airflow("incremental=True needs Airflow 3.3 or later", _USE_RANGES)
            check_query(query)
            if not isinstance(overlap, timedelta) or overlap < timedelta(0):
                raise ValueError(f"overlap must be a timedelta of 0 or more, not {overlap!r}.")
            if self.is_exclusive and kwargs.setdefault("max_active_tis_per_dag", 1) != 1:
                raise ValueError("max_active_tis_per_dag is always 1 with incremental; remove it.")
        elif full_refresh is not False:
            raise ValueError(
                "full_refresh can only be set with incremental=True; other loads always load their whole range."
            )
        # The outlets of a mapped task are fixed when the DAG is parsed. Airflow has no public name for this attribute.
        is_mapped = getattr(self, "_BaseOperator__from_mapped", False)
        super().__init__(**kwargs)
        self.incremental = incremental
        self.overlap = overlap
        self.full_refresh = full_refresh
        self.emit_partitions = emit_partitions
        own = None if is_mapped or asset_uri is None else Asset(asset_uri)
        self._asset_uri = own.uri if own else None
        # All tasks that load a destination incrementally share its state, so all need its asset.
        if own and (incremental or not self._assets()) and own.uri not in [each.uri for each in self._assets()]:
            self.outlets = [*self.outlets, own]
        if incremental and not self._assets():
            raise ValueError(
                "incremental: the state of the load needs an asset. Set outlets=[Asset(...)] if the task is "
                "mapped or its destination starts with a template, the same for all tasks that load this "
                "destination."
            )
        if emit_partitions and not self._assets():
            raise ValueError(
                "emit_partitions: the events need an asset. Set outlets=[Asset(...)] if the task is mapped or "
                "its destination starts with a template."
            )
        # Set during a load.
        self._cancel: Callable[[], None] | None = None
        self._lineage: Lineage | None = None
        self._has_pulled = False

    @abstractmethod
    def open_destination(self, context: Context) -> AbstractContextManager[tuple[Destination, Callable[[], Dataset]]]:
        """Return a context with the destination, and a function that describes it for lineage after the load."""

    def answer(self, hook: OpenmarketsHook, context: Context) -> dict[str, Any]:
        """Land the rows of the query, and return a :class:`LoadResult` as a dict."""
        check_reads_only(self.query, "a transfer")
        started = time.monotonic()
        self._cancel = _do_nothing
        try:
            with self.open_destination(context) as (destination, describe):
                self._cancel = destination.cancel
                load = self._load_incrementally if self.incremental else self._load
                with self._open_pulled(hook, destination, context) as pulled:
                    keys = self._list_keys(pulled.since)
                    result = _land_all(pulled, lambda: load(_Source(hook, pulled), destination, context))
                    earlier = pulled.earlier
        finally:
            self._cancel = None
        self._report(context, result, time.monotonic() - started, earlier)
        self._emit(context, result, keys)
        try:
            self._lineage = Lineage.of(hook, self.query, describe(), result)
            self._lineage.collect(self)
        except Exception:
            # The rows have landed. A failure now would only load them again.
            self.log.exception("Could not collect the hook lineage of the load.")
        return result._asdict()

    def on_kill(self) -> None:
        """Stop the load, and roll it back."""
        cancel, self._cancel = self._cancel, None
        if cancel is not None:
            cancel()
            raise Killed("The task was killed; its load was rolled back.")

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """Return the lineage of the task. The OpenLineage provider calls this if it is installed."""
        # Also called for failed tasks.
        return self._lineage and self._lineage.for_openlineage(self.query, self.columns)

    def has_progressed(self) -> bool:
        """Return whether this attempt has pulled replies that the next one can reuse."""
        return self._has_pulled

    @contextmanager
    def _open_pulled(self, hook: OpenmarketsHook, destination: Destination, context: Context) -> Iterator[Pulled]:
        """Return a context with the replies that earlier attempts of this task instance have pulled."""
        from openmarkets_provider.client.pulled import Pulled

        settings = hook.client.settings
        urls = [settings.api_url(api) for api in sorted(SCOPES)]
        load = json.dumps([instance_id(context), destination.name, settings.client_id, *urls])
        with Pulled(resume_folder(), load, _settling_time(self.query)) as pulled:
            try:
                yield pulled
            finally:
                self._has_pulled = pulled.new > 0

    def _load(self, source: Source, destination: Destination, context: Context) -> LoadResult:
        return destination.land(source, self.query)

    def _load_incrementally(self, source: Source, destination: Destination, context: Context) -> LoadResult:
        from airflow.providers.common.compat.sdk import AirflowSkipException

        interval = _interval_of(context)
        self._check_limits(destination, context)
        assets = self._assets()
        asset = next((asset for asset in assets if asset.uri == self._asset_uri), assets[0])
        # Not in the Context type of every Airflow version.
        state_stores: Any = context
        try:
            return load_incrementally(
                source,
                self.query,
                destination,
                state_stores["asset_state_store"][asset],
                store_name=f"asset {asset.name!r}",
                owner=f"{self.dag_id}.{self.task_id}",
                run=instance_id(context),
                overlap=self.overlap,
                interval=interval,
                full_refresh=_read_flag(self.full_refresh),
            )
        except NothingNew as nothing:
            raise AirflowSkipException(str(nothing)) from None

    def _check_limits(self, destination: Destination, context: Context) -> None:
        dag: Any = context["dag"]
        if self.is_exclusive and 1 not in (dag.max_active_runs, dag.get_task(self.task_id).max_active_tis_per_dag):
            # A mapped task has the limit from its .partial().
            raise OpenmarketsError(
                f"incremental: two runs of this DAG could load {destination.name} at once. Set "
                "max_active_tis_per_dag=1 in .partial(), or max_active_runs=1 for the DAG."
            )

    def _report(self, context: Context, result: LoadResult, seconds: float, earlier: int) -> None:
        size = "" if result.bytes is None else f", {result.bytes:,} bytes"
        rate = result.rows / seconds if seconds else 0
        self.log.info(
            "%d rows%s landed in %s in %.1f s, %.0f rows/s.", result.rows, size, result.destination, seconds, rate
        )
        if earlier:
            self.log.info("%d of the replies came from earlier attempts.", earlier)

    def _list_keys(self, since: float) -> list[str]:
        """Return the partition keys to emit.

        :param since: when the first reply was pulled, in seconds since the epoch.
        """
        if not self.emit_partitions:
            return []
        _check_sessions(self.query)
        start, end = window(self.query) or (None, None)
        keys = [str(day) for day in list_sessions(start, end, datetime.fromtimestamp(since, UTC))]
        if not keys:
            self.log.warning(
                "emit_partitions: no session from %s to %s has closed, so the event has no partition key.", start, end
            )
        return keys

    def _emit(self, context: Context, result: LoadResult, keys: list[str]) -> None:
        """Add the load to the events of its assets.

        :param keys: partition keys, one event each. Without keys there is one event, with the key of the run if it has
            one.
        """
        extra = {name: value for name, value in result._asdict().items() if name != "files"}
        for asset in self._assets():
            event: Any = context["outlet_events"][asset]
            event.extra.update(extra)
            if keys:
                event.add_partitions(keys)

    def _assets(self) -> list[Any]:
        return [outlet for outlet in self.outlets if isinstance(outlet, Asset)]


def instance_id(context: Context) -> str:
    """Return an identifier of a task instance, which does not change if the task is retried or cleared."""
    instance: Any = context["ti"]
    text = f"{instance.dag_id}/{instance.run_id}/{instance.task_id}/{instance.map_index}"
    loop: Any = context.get("loop")
    # Airflow 3.4: the iterations of a loop have the same map index. Their number does not change on clearing.
    return text if loop is None else f"{text}/{loop.index}"


class _Source:
    """Runs queries, and reuses the replies of earlier attempts."""

    def __init__(self, hook: OpenmarketsHook, pulled: Pulled) -> None:
        self._hook = hook
        self._pulled = pulled

    def run(self, query: Query) -> Any:
        """Return all rows of a query."""
        return [row for batch in self.stream_columns(query) for row in batch.rows()]

    def stream_columns(self, query: Query, skipped: set[str] | None = None) -> Generator[Batch, None, None]:
        """Yield the rows of a query in batches by column."""
        return self._hook.client.stream_columns(query, skipped, self._pulled)


def _land_all(pulled: Pulled, load: Callable[[], LoadResult]) -> LoadResult:
    """Load, then delete the replies. After an error, forget the replies that must not be reused."""
    try:
        result = load()
    except OpenmarketsQueryError:
        pulled.forget_doubtful()
        raise
    except OpenmarketsDatabaseError as error:
        if error.row is not None:
            pulled.discard()
        raise
    except OpenmarketsInvalidResponse as error:
        # A run has already forgotten the reply of a request that it names. An error of the destination names none.
        if error.request_id is None:
            pulled.discard()
        raise
    pulled.discard()
    return result


def resume_folder() -> Path:
    """Return the folder for the replies of loads: ``[openmarkets] resume_folder``."""
    from airflow.providers.common.compat.sdk import conf

    folder = conf.get("openmarkets", "resume_folder", fallback="")
    return Path(folder).expanduser() if folder else Path(tempfile.gettempdir()) / f"openmarkets-{os.geteuid()}"


def _interval_of(context: Context) -> tuple[datetime, datetime] | None:
    """Return the data interval of a run of a backfill; None for other runs.

    :raises OpenmarketsError: the run has a partition key, or belongs to a backfill and has no data interval.
    """
    if context.get("partition_key") is not None:
        raise OpenmarketsError(
            "incremental can't be used in a run with a partition key, which already has a range. Remove "
            'incremental, and set session="{{ partition_key }}" in the query.'
        )
    # In some versions of Airflow this enum is not a str.
    run_type = context["dag_run"].run_type
    if getattr(run_type, "value", run_type) != "backfill":
        return None
    start, end = context.get("data_interval_start"), context.get("data_interval_end")
    if start is None or end is None:
        raise OpenmarketsError(
            "A backfill loads the data interval of its run, and this run has none. Use a timetable whose runs "
            "have data intervals, such as CronDataIntervalTimetable."
        )
    return start, end


def _read_flag(value: Any) -> bool:
    """Convert a bool or rendered template to bool.

    :raises OpenmarketsConfigurationError: it is neither true nor false.
    """
    flags = {"true": True, "false": False}
    flag = flags.get(str(value).lower())
    if flag is None:
        raise OpenmarketsConfigurationError(f"full_refresh must be true or false, not {value!r:.200}.")
    return flag


def _do_nothing() -> None:
    """Cancel a load whose destination is not open yet: nothing to do."""


def _check_airflow(need: str, advice: str) -> None:
    """Check that Airflow is not older than :data:`SINCE`.

    :raises ValueError: it is older.
    """
    from airflow import __version__ as version

    if tuple(map(int, version.split(".")[:2])) < SINCE:
        raise ValueError(f"{need}; this is {version}. {advice}")


def _check_sessions(query: Query) -> None:
    """Check that the rows of a query belong to sessions, if its arguments are literal.

    :raises OpenmarketsQueryError: they don't.
    """
    if lacks_range(query):
        raise OpenmarketsQueryError(
            f"{query['endpoint']}: emit_partitions needs a query with a range (start and end, or session)."
        )


def _settling_time(query: Query) -> float:
    """Return when the replies to a rendered query stop changing, in seconds since the epoch."""
    end = end_of(query)
    return end.timestamp() if end else math.inf
