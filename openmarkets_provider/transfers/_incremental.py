"""Incremental loads: what is remembered of a destination and of a task, in the state stores of Airflow 3.3."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from openmarkets_provider.exceptions import OpenmarketsError, OpenmarketsQueryError
from openmarkets_provider.landing.incremental import (
    Claim,
    check_claim,
    check_state,
    claim,
    claim_again,
    extended,
    fingerprint,
    limited_to,
)
from openmarkets_provider.query.arguments import is_literal
from openmarkets_provider.query.endpoints import ENDPOINTS
from openmarkets_provider.query.exchange_time import to_text

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from openmarkets_provider.landing.landed import Landed
    from openmarkets_provider.queries import Query
    from openmarkets_provider.transfers._transfer import Transfer

T = TypeVar("T")

STATE = "openmarkets"
"""The key of a task instance's state, and what the key of an asset's state begins with."""
SINCE = "3.3"
"""The first Airflow that has these stores."""
_RANGES_INSTEAD = (
    "Ask for the range of the run instead, in a DAG whose timetable has data intervals (such as "
    'CronDataIntervalTimetable): queries.time_series("BHP", start="{{ data_interval_start }}", '
    'end="{{ data_interval_end }}").'
)


def check(query: Query) -> None:
    """Refuse what can't be incremental, as far as it is known while the DAG is parsed.

    :raises ValueError: this Airflow has no state stores.
    :raises OpenmarketsQueryError: the query has no range, or may leave something out.
    """
    from airflow import __version__ as airflow_version

    if tuple(map(int, airflow_version.split(".")[:2])) < tuple(map(int, SINCE.split("."))):
        raise ValueError(
            f"incremental=True needs Airflow {SINCE} or later (its asset state store); this is {airflow_version}. "
            f"{_RANGES_INSTEAD}"
        )
    if not isinstance(query, dict):
        return
    name = query.get("endpoint")
    if is_literal(name) and name is not None and (name not in ENDPOINTS or ENDPOINTS[name].time is None):
        raise OpenmarketsQueryError(f"{name}: incremental needs a query with a range (start and end).")
    if query.get("on_invalid") == "warn":
        raise OpenmarketsQueryError(
            f"{name}: on_invalid='warn' does not go with incremental: what one load leaves out would never come."
        )


def incrementally(task: Transfer, context: Context, land: Callable[[Query], Landed]) -> Landed:
    """Land what is new at a task's destination.

    The range is kept with the task instance before it is pulled, and the watermark with the asset after it has landed.

    :param land: lands the rows of a query in a way that can be repeated.
    :raises AirflowSkipException: nothing is new.
    :raises OpenmarketsError: going on would lose or double rows.
    """
    from airflow.providers.common.compat.sdk import AirflowSkipException

    check(task.query)
    asset = task.state_asset()
    of_task: Any = context["task_state_store"]
    of_asset: Any = context["asset_state_store"][asset]
    own = {
        "destination": task.destination_text(),
        "owner": f"{task.dag_id}.{task.task_id}",
        "query": fingerprint(task.query),
        "form": task.form(),
    }
    key = _key(own, for_one_query=task.one_query_each)
    advice = f"delete the key {key!r} in the state store of asset {asset.name!r}"
    state = _checked(check_state, of_asset.get(key), advice)
    _check_run(context, task)
    if task.one_query_each:
        _check_owner(state, own, advice)
    watermark = state.get("watermark")
    kept = _checked(check_claim, of_task.get(STATE), f"delete the key {STATE!r} in the state store of this task")
    if watermark is not None and state.get("landed") and not task.is_there():
        raise OpenmarketsError(
            f"{own['destination']} is gone, or empty, and was loaded up to {watermark}. To load it anew from the "
            f"query's start, {advice}."
        )
    claimed = claim_again(task.query, kept, watermark, state.get("first")) if kept else None
    if claimed is None:
        claimed = claim(task.query, watermark, state.get("first"), task.overlap, datetime.now(UTC))
        if claimed is None:
            known = f"is loaded up to {watermark}" if watermark else "has nothing yet, and the range lies ahead"
            raise AirflowSkipException(f"Nothing is new: {own['destination']} {known}.")
        of_task.set(STATE, claimed.as_data())
    if not state:
        # So that another task, with a first load at the same time, finds out.
        of_asset.set(key, own)
    start, end = task.range_to_pull(task.query, claimed, watermark)
    task.log.info("Loaded up to %s; this task loads %s to %s.", watermark or "nothing yet", start, end)
    landed = land(limited_to(task.query, start, end))
    # Others may have loaded the same table meanwhile, or somebody has begun anew.
    state = _checked(check_state, of_asset.get(key), advice)
    of_asset.set(key, own | _loaded(own["destination"], state, claimed, landed))
    return landed


def _loaded(destination: str, state: dict[str, Any], claimed: Claim, landed: Landed) -> dict[str, Any]:
    """Return how far a destination is loaded when a claim has landed, too.

    :raises OpenmarketsError: another run left something between; transient.
    """
    reached = extended(state.get("first"), state.get("watermark"), claimed)
    if reached is None:
        raise OpenmarketsError(
            f"{destination} was loaded from {state['first']} to {state['watermark']} by another run, while this "
            f"one loaded {to_text(claimed.start)} to {to_text(claimed.end)}: what lies between the two is not loaded. "
            "Run the task again.",
            transient=True,
        )
    first, watermark = reached
    # Without a row there may be no file.
    return {"first": first, "watermark": watermark, "landed": bool(state.get("landed") or landed.rows)}


def _checked(check: Callable[[Any], T], stored: Any, advice: str) -> T:
    """Check what a state store holds: users can write there, too."""
    try:
        return check(stored)
    except ValueError as error:
        problem = f"What an incremental load has kept is damaged: {error}."
        raise OpenmarketsError(f"{problem} To begin anew, {advice}.") from None


def _key(own: dict[str, str], *, for_one_query: bool) -> str:
    """Return the key of the state of a destination, and of a query where several may load it."""
    text = own["destination"] if for_one_query else f"{own['destination']} {own['query']}"
    return f"{STATE}_{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _check_run(context: Context, task: Transfer) -> None:
    # Airflow's enum is not always one of texts.
    run_type = context["dag_run"].run_type
    if getattr(run_type, "value", run_type) == "backfill":
        raise OpenmarketsError(
            "A backfill asks for the past, and an incremental load for what is new. Load the past with a task "
            f"without incremental. {_RANGES_INSTEAD}"
        )
    dag: Any = context["dag"]
    if task.one_query_each and 1 not in (dag.max_active_runs, dag.get_task(task.task_id).max_active_tis_per_dag):
        # Of a mapped task: what it was given in .partial() counts.
        raise OpenmarketsError(
            f"incremental: two runs of this DAG could load {task.destination_text()} at once. Set "
            "max_active_tis_per_dag=1 in .partial(), or max_active_runs=1 for the DAG."
        )


def _check_owner(state: dict[str, str], own: dict[str, str], advice: str) -> None:
    # Before anything is loaded the query may still be corrected.
    compared = ("owner", "query", "form") if state.get("watermark") else ("owner",)
    if state and [state[name] for name in compared] != [own[name] for name in compared]:
        raise OpenmarketsError(
            f"{own['destination']} is loaded by task {state['owner']}, or was loaded with another query (securities, "
            "interval...), partition or format: rows would be missing or there twice. Give this load a destination of "
            f"its own; or, to begin anew, empty it and {advice}."
        )
