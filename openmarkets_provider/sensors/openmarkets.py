"""The sensor: waits until the result of a query meets a condition."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from openmarkets_provider._airflow import BaseSensorOperator, PokeReturnValue, resolve_deferrable
from openmarkets_provider.conditions import check_condition, describe_poll, evaluate
from openmarkets_provider.exceptions import OpenmarketsError, from_dict, is_on_hold, without_frames
from openmarkets_provider.query.arguments import is_literal
from openmarkets_provider.query.query import check, check_reads_only
from openmarkets_provider.xcom import DEFAULT_MAX_XCOM_BYTES, ensure_fits_xcom

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
    from openmarkets_provider.queries import Query

MAX_FAILURES = 3
"""Most transient failures in a row that a sensor tolerates."""
_FAILURES = "openmarkets_failures"


class OpenmarketsSensor(BaseSensorOperator):
    """Polls a query until its result meets a condition.

    Poke mode, reschedule mode and deferrable mode behave the same:

    - Permanent errors fail the task immediately.
    - Three transient errors in a row are tolerated (any number with ``silent_fail``); after the fourth, Airflow's
      retries apply. In reschedule mode before Airflow 3.3 none is tolerated, because there is no state between polls.
    - The next poll starts ``poke_interval`` after the last one, even after an error, or later if the server asks for
      it.
    - The first poll logs the condition, its value and the number of rows.
    - At ``timeout`` the task fails with ``AirflowSensorTimeout``, without retries, or is skipped with ``soft_fail``.

    The result is a list of rows, as JSON: ``[0].trading_status == 'OPEN'``, ``[?state == 'finished'] | [0]``. Names
    that are not columns of the query are refused, except in ``not_null([0]).name``. ``request`` and queries with
    ``raw=True`` have no columns; use the API's field names.

    :param query: a query from :mod:`openmarkets_provider.queries`, which must only read. Templated.
    :param condition: JMESPath expression (https://jmespath.org) over the query's result. It is met unless its value is
        false, null, 0, or an empty text, list or object. Templated.
    :param openmarkets_conn_id: id of a connection of type ``openmarkets``. Templated.
    :param push_value: push the condition's value to XCom. A deferred task then ends on a worker, because Airflow
        (3.3.2) stores XComs of triggers as text: ``True`` would become ``'true'``.
    :param max_xcom_bytes: size limit of the value as JSON, in bytes; a larger value fails the task.
    :param deferrable: wait in the triggerer, which ends the task without a worker (default: Airflow's
        ``[operators] default_deferrable``). Not with ``exponential_backoff``.
    :param kwargs: arguments of ``BaseSensorOperator``: ``poke_interval``, ``timeout``, ``mode``, ``soft_fail``, ...
    :raises OpenmarketsQueryError: when the DAG is parsed: the condition or a literal argument is malformed. The
        condition has a name that is not a column. A literal request may not be safe to repeat.
    :raises ValueError: ``exponential_backoff`` with ``deferrable``.
    """

    template_fields: Sequence[str] = ("query", "condition", "openmarkets_conn_id")
    template_fields_renderers: ClassVar[dict[str, str]] = {"query": "json"}
    ui_color = "#e8f0fe"

    def __init__(
        self,
        *,
        query: Query,
        condition: str,
        openmarkets_conn_id: str = "openmarkets_default",
        push_value: bool = False,
        max_xcom_bytes: int = DEFAULT_MAX_XCOM_BYTES,
        deferrable: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.query = query
        self.condition = condition
        self.openmarkets_conn_id = openmarkets_conn_id
        self.push_value = push_value
        self.max_xcom_bytes = max_xcom_bytes
        self.deferrable = resolve_deferrable(deferrable)
        if self.deferrable and self.exponential_backoff:
            raise ValueError("exponential_backoff can't be used with deferrable=True; remove one of them.")
        if is_literal(query):
            check(query)
            check_reads_only(query, "a sensor", is_literal)
        check_condition(condition, query)
        self._failures = 0
        self._has_polled = False
        self._min_interval = 0.0

    def execute(self, context: Context) -> Any:
        """Poll until the condition is met, or defer the task."""
        try:
            check_reads_only(self.query, "a sensor")
            check_condition(self.condition, self.query)
        except OpenmarketsError as error:
            raise self._make_exception(error) from without_frames(error)
        if not self.deferrable:
            try:
                return super().execute(context)
            finally:
                self._hook.close()
        from openmarkets_provider.triggers.openmarkets import OpenmarketsConditionTrigger

        self.defer(
            trigger=OpenmarketsConditionTrigger(
                openmarkets_conn_id=self.openmarkets_conn_id,
                query=self.query,
                condition=self.condition,
                poke_interval=self.poke_interval,
                deadline=time.time() + self.timeout,
                max_failures=None if self.silent_fail else MAX_FAILURES,
                max_xcom_bytes=self.max_xcom_bytes if self.push_value else None,
                # Only workers create the asset events of outlets.
                resume=self.push_value or bool(self.outlets),
            ),
            method_name="execute_complete",
            # If no triggerer is running, Airflow ends the task.
            timeout=timedelta(seconds=self.timeout),
        )

    def execute_complete(self, context: Context, event: Any = None) -> Any:
        """End the task according to the trigger's event.

        :return: the condition's value, for XCom.
        :raises AirflowSensorTimeout: the trigger reached its deadline.
        :raises ValueError: the event is unknown.
        """
        from airflow.providers.common.compat.sdk import AirflowSensorTimeout, AirflowSkipException

        match event:
            case {"status": "met", "value": value}:
                return value
            case "success":
                # `airflow dags test` has no triggerer, and resumes the task with the event.
                return None
            case {"status": "timeout"}:
                raise AirflowSensorTimeout(f"Sensor has timed out; its timeout of {self.timeout:g} seconds is over.")
            case {"status": "error", "error": dict(data)}:
                error = from_dict(data)
                if not error.transient:
                    raise self._make_exception(error) from without_frames(error)
                if self.never_fail:
                    raise AirflowSkipException("Skipping due to never_fail is set to True.") from error
                raise error
        raise ValueError(
            f"The trigger sent an event that this sensor doesn't know: {event!r:.200}. Install the same version of "
            "this package on workers and triggerers."
        )

    def poke(self, context: Context) -> PokeReturnValue:
        """Poll once."""
        self._min_interval = 0.0
        try:
            # The client secret may be rotated while the sensor waits.
            result = self._hook.retry_on_rotation(lambda: self._hook.run(self.query))
            value = evaluate(self.condition, result)
            if not self._has_polled:
                self.log.info("First poll: %s", describe_poll(self.condition, value, result))
                self._has_polled = True
            if value and self.push_value:
                ensure_fits_xcom(value, self.max_xcom_bytes)
        except OpenmarketsError as error:
            if not error.transient:
                raise self._make_exception(error) from without_frames(error)
            if not self.silent_fail and not is_on_hold(error):
                self._count_failure(context, error)
            self.log.warning("%s Polling again.", error)
            self._min_interval = error.retry_after or 0.0
            return PokeReturnValue(False)
        self._set_failures(context, 0)
        return PokeReturnValue(bool(value), value if self.push_value else None)

    def _get_next_poke_interval(self, *args: Any, **kwargs: Any) -> float:
        interval: float = super()._get_next_poke_interval(*args, **kwargs)
        return max(interval, self._min_interval)

    @cached_property
    def _hook(self) -> OpenmarketsHook:
        from openmarkets_provider.hooks.openmarkets import OpenmarketsHook

        return OpenmarketsHook(self.openmarkets_conn_id)

    def _make_exception(self, error: OpenmarketsError) -> Exception:
        """Return the exception that ends the task, without retries, after a permanent error."""
        from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException

        if self.soft_fail or self.never_fail:
            return AirflowSkipException(f"Skipping: {error}")
        return AirflowFailException(str(error))

    def _count_failure(self, context: Context, error: OpenmarketsError) -> None:
        """Count a transient failure. Raise it after too many in a row, or if they can't be counted."""
        if self.reschedule and context.get("task_state_store") is None:
            raise error
        failures = self._get_failures(context) + 1
        if failures > MAX_FAILURES:
            self._set_failures(context, 0)
            raise error
        self._set_failures(context, failures)

    def _get_failures(self, context: Context) -> int:
        if not self.reschedule:
            return self._failures
        # In reschedule mode each poll is a new process.
        store = context.get("task_state_store")
        failures = store.get(_FAILURES) if store is not None else None
        return failures if isinstance(failures, int) else 0

    def _set_failures(self, context: Context, failures: int) -> None:
        self._failures = failures
        store = context.get("task_state_store") if self.reschedule else None
        if store is not None and failures != self._get_failures(context):
            store.set(_FAILURES, failures)
