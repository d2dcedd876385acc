"""The base of operators that run a query: how they fail, and how they wait if the server asks for it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from openmarkets_provider._airflow import BaseOperator, resolve_deferrable
from openmarkets_provider.exceptions import OpenmarketsError, is_on_hold, without_frames
from openmarkets_provider.policies._waits import (
    LONGEST_WAIT,
    WAITS_AFTER_429,
    WAITS_FOR_HOLDS,
    advise_later,
    time_after,
    wait_after,
)
from openmarkets_provider.query.arguments import is_literal
from openmarkets_provider.query.query import check, is_repeatable

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
    from openmarkets_provider.queries import Query

TRIGGER_TIMEOUTS = ("Trigger timeout", "Trigger/execution timeout")
"""The errors of Airflow 3 and Airflow 2 for a task that no triggerer resumed in time."""
TIMEOUT_MESSAGE = (
    "The task's execution_timeout ended a call that is not safe to repeat. It may have been carried out: check "
    "before you send it again."
)
_TRIGGERER_GRACE = timedelta(minutes=5)


class QueryOperator(BaseOperator):
    """Runs a query.

    Documented for users in :class:`~openmarkets_provider.operators.openmarkets.OpenmarketsOperator`.

    :param query: a query. Templated. If it has no template, it is checked when the DAG is parsed.
    :param openmarkets_conn_id: id of a connection of type ``openmarkets``. Templated.
    :param deferrable: defer the task if the server asks for a long wait (default: Airflow's
        ``[operators] default_deferrable``).
    :param kwargs: arguments of ``BaseOperator``.
    :raises OpenmarketsQueryError: a literal argument of the query is malformed.
    """

    template_fields: Sequence[str] = ("query", "openmarkets_conn_id")
    template_fields_renderers: ClassVar[dict[str, str]] = {"query": "json"}
    ui_color = "#e8f0fe"

    def __init__(
        self,
        *,
        query: Query,
        openmarkets_conn_id: str = "openmarkets_default",
        deferrable: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.query = query
        self.openmarkets_conn_id = openmarkets_conn_id
        self.deferrable = resolve_deferrable(deferrable)
        # Airflow before 3.3 has no retry policies.
        if hasattr(self, "retry_policy") and self.retry_policy is None:
            from openmarkets_provider.policies.retry import OpenmarketsRetryPolicy

            self.retry_policy = OpenmarketsRetryPolicy()
        if is_literal(query):
            check(query)

    @abstractmethod
    def answer(self, hook: OpenmarketsHook, context: Context) -> Any:
        """Do the work and return the task's XCom. May run twice: see :meth:`OpenmarketsHook.retry_on_rotation`."""

    def has_progressed(self) -> bool:
        """Return whether the next attempt has less to do than this one. If so, the count of waits restarts."""
        return False

    def execute(self, context: Context) -> Any:
        """Run the query."""
        return self._run(context, deferrals=0, holds=0)

    def execute_after_wait(self, context: Context, event: Any = None, deferrals: int = 0, holds: int = 0) -> Any:
        """Run the query after a deferral.

        :param deferrals: deferrals so far after a 429 to this task.
        :param holds: deferrals so far because of a hold.
        """
        return self._run(context, deferrals, holds)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume the task, but explain a deferral that timed out.

        :raises AirflowFailException: no triggerer resumed the task in time.
        """
        if next_method == "__fail__" and (next_kwargs or {}).get("error") in TRIGGER_TIMEOUTS:
            from airflow.providers.common.compat.sdk import AirflowFailException

            raise AirflowFailException(
                "The task was deferred because the server asked it to wait, but no triggerer resumed it. Start "
                "a triggerer or set deferrable=False, and run the task again."
            )
        return super().resume_execution(next_method, next_kwargs, context)

    def _run(self, context: Context, deferrals: int, holds: int) -> Any:
        from airflow.providers.common.compat.sdk import AirflowFailException, AirflowTaskTimeout

        from openmarkets_provider.hooks.openmarkets import OpenmarketsHook

        hook = OpenmarketsHook(self.openmarkets_conn_id)
        try:
            return hook.retry_on_rotation(lambda: self.answer(hook, context))
        except OpenmarketsError as error:
            self._fail_or_defer(error, deferrals, holds)
            raise
        except AirflowTaskTimeout:
            # Airflow may raise it at any time, even during a request.
            if is_repeatable(self.query):
                raise
            raise AirflowFailException(TIMEOUT_MESSAGE) from None
        finally:
            hook.close()

    def _fail_or_defer(self, error: OpenmarketsError, deferrals: int, holds: int) -> None:
        """Fail the task without retries, or defer it, or return to let Airflow retry."""
        from airflow.providers.common.compat.sdk import AirflowFailException

        from openmarkets_provider.client.exchange import MAX_SERVER_WAIT

        if not error.transient:
            raise AirflowFailException(str(error)) from without_frames(error)
        if error.retry_after is None or error.retry_after <= MAX_SERVER_WAIT or not self.deferrable:
            return
        if self.has_progressed():
            deferrals = holds = 0
        if is_on_hold(error):
            holds += 1
        else:
            deferrals += 1
        wait = wait_after(error.retry_after)
        if deferrals > WAITS_AFTER_429 or holds > WAITS_FOR_HOLDS or wait > LONGEST_WAIT:
            raise AirflowFailException(advise_later(error, wait)) from without_frames(error)
        from airflow.providers.common.compat.standard.triggers import TimeDeltaTrigger

        self.log.info("%s The task is deferred until %s.", error, time_after(wait))
        self.defer(
            trigger=TimeDeltaTrigger(wait),
            method_name="execute_after_wait",
            kwargs={"deferrals": deferrals, "holds": holds},
            timeout=wait + _TRIGGERER_GRACE,
        )
