"""The sensor: waits until a condition on a query's result is met."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from openmarkets_provider._airflow import BaseSensorOperator, PokeReturnValue
from openmarkets_provider.conditions import check_condition, evaluate
from openmarkets_provider.exceptions import OpenmarketsError, from_dict, is_on_hold, without_frames
from openmarkets_provider.query.arguments import is_literal
from openmarkets_provider.query.plan import check, check_reads_only
from openmarkets_provider.xcom import DEFAULT_MAX_XCOM_BYTES, ensure_fits_xcom

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
    from openmarkets_provider.queries import Query

TOLERATED_FAILURES = 3
"""Polls in a row that may fail with an error that may pass."""
_FAILURES = "openmarkets_failures"


class OpenmarketsSensor(BaseSensorOperator):
    """Polls a query until a condition on its result is met.

    Poke mode, reschedule mode and the deferrable mode behave the same: an error that no repetition can mend fails
    the task at once; of those that may pass, three in a row are tolerated (all of them with ``silent_fail``), and
    then left to Airflow's retries; ``poke_interval`` is kept whatever a poll comes to, and stretched when the server
    asks for longer. Only in reschedule mode on Airflow before 3.3, which keeps no state between its polls, such an
    error is left to Airflow's retries at once.

    Guide: ``docs/howto/orders.md``. What a message means: ``docs/errors.md``.

    :param query: what a function of :mod:`openmarkets_provider.queries` returned; it must only read. Templated.
    :param condition: JMESPath expression (https://jmespath.org) over the query's result. Met when it gives
        anything but false, null, 0, and an empty text, list or object. Templated.
    :param openmarkets_conn_id: id of a connection of type ``openmarkets``. Templated.
    :param push_value: push what the condition gave to XCom. A deferred task then needs a worker to end it: Airflow
        (3.3.2) stores what a trigger pushes as text, so that ``True`` would arrive as ``'true'``.
    :param max_xcom_bytes: largest value, as JSON, that goes to XCom; a larger one fails the task.
    :param deferrable: wait in the triggerer, which ends the task without a worker. The default is the setting
        ``[operators] default_deferrable``. Not with ``exponential_backoff``.
    :param kwargs: those of ``BaseSensorOperator``: ``poke_interval``, ``timeout``, ``mode``, ``soft_fail``, ...
    :raises OpenmarketsQueryError: when the DAG is parsed: the condition or a literal argument is malformed, or a
        literal request is not known to be safe to repeat.
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
        if deferrable is None:
            from airflow.providers.common.compat.sdk import conf

            deferrable = conf.getboolean("operators", "default_deferrable", fallback=False)
        self.deferrable = deferrable
        if deferrable and self.exponential_backoff:
            raise ValueError("exponential_backoff does not go with deferrable=True; choose one of them.")
        if is_literal(query):
            check(query)
            check_reads_only(query, "a sensor", is_literal)
        check_condition(condition)
        self._failures = 0
        self._left_alone: float = 0.0

    def execute(self, context: Context) -> Any:
        """Poll until the condition is met, or hand over to the triggerer."""
        try:
            check_reads_only(self.query, "a sensor")
        except OpenmarketsError as error:
            raise self._permanent(error) from without_frames(error)
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
                tolerated=None if self.silent_fail else TOLERATED_FAILURES,
                max_xcom_bytes=self.max_xcom_bytes if self.push_value else None,
                # Asset events of outlets, too, are made by a worker only.
                resume=self.push_value or bool(self.outlets),
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=self.timeout),
        )

    def execute_complete(self, context: Context, event: Any = None) -> Any:
        """End the task by what the trigger found.

        :raises ValueError: the event is not one of the trigger's.
        """
        from airflow.providers.common.compat.sdk import AirflowSkipException

        match event:
            case {"status": "met", "value": value}:
                return value
            case "success":
                # `airflow dags test` has no triggerer that could end the task, and hands it the event instead.
                return None
            case {"status": "error", "error": dict(data)}:
                error = from_dict(data)
                if not error.transient:
                    raise self._permanent(error) from without_frames(error)
                if self.never_fail:
                    raise AirflowSkipException("Skipping due to never_fail is set to True.") from error
                raise error
        raise ValueError(f"The trigger sent an event that this sensor doesn't know: {event!r:.200}")

    def poke(self, context: Context) -> PokeReturnValue:
        """Poll once."""
        self._left_alone = 0.0
        try:
            # A sensor may wait for longer than a secret lives.
            value = evaluate(self.condition, self._hook.retry_on_rotation(lambda: self._hook.run(self.query)))
            if value and self.push_value:
                ensure_fits_xcom(value, self.max_xcom_bytes)
        except OpenmarketsError as error:
            if not error.transient:
                raise self._permanent(error) from without_frames(error)
            if not self.silent_fail and not is_on_hold(error):
                self._count_failure(context, error)
            self.log.warning("%s Polling again.", error)
            self._left_alone = error.retry_after or 0.0
            return PokeReturnValue(False)
        self._remember(context, 0)
        return PokeReturnValue(bool(value), value if self.push_value else None)

    def _get_next_poke_interval(self, *args: Any, **kwargs: Any) -> float:
        interval: float = super()._get_next_poke_interval(*args, **kwargs)
        return max(interval, self._left_alone)

    @cached_property
    def _hook(self) -> OpenmarketsHook:
        from openmarkets_provider.hooks.openmarkets import OpenmarketsHook

        return OpenmarketsHook(self.openmarkets_conn_id)

    def _permanent(self, error: OpenmarketsError) -> Exception:
        from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException

        if self.soft_fail or self.never_fail:
            return AirflowSkipException(f"Skipping: {error}")
        return AirflowFailException(str(error))

    def _count_failure(self, context: Context, error: OpenmarketsError) -> None:
        """Count a failure in a row; raise it when there were too many, or when they can't be counted."""
        if self.reschedule and context.get("task_state_store") is None:
            raise error
        failures = self._recall(context) + 1
        if failures > TOLERATED_FAILURES:
            self._remember(context, 0)
            raise error
        self._remember(context, failures)

    def _recall(self, context: Context) -> int:
        # In reschedule mode every poll is a new process.
        if not self.reschedule:
            return self._failures
        store = context.get("task_state_store")
        stored = store.get(_FAILURES) if store is not None else None
        return stored if isinstance(stored, int) else 0

    def _remember(self, context: Context, failures: int) -> None:
        self._failures = failures
        store = context.get("task_state_store") if self.reschedule else None
        if store is not None and failures != self._recall(context):
            store.set(_FAILURES, failures)
