"""The base of operators that answer a query: what they do about failures and about a server that wants rest."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from openmarkets_provider._airflow import BaseOperator
from openmarkets_provider.client.exchange import MAX_WAIT
from openmarkets_provider.client.ratelimit.hold import spread
from openmarkets_provider.exceptions import OpenmarketsError, is_on_hold, without_frames
from openmarkets_provider.query.arguments import is_literal
from openmarkets_provider.query.query import check, is_repeatable

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
    from openmarkets_provider.queries import Query

MAX_DEFERRALS = 10
"""How often in a row a task lets the server send it away."""
MAX_HELD_DEFERRALS = 100
"""How often in a row it stays away because the server sent others away."""
MAX_DEFERRAL = timedelta(hours=24)
"""Longest time that a task is put off at once."""
NOT_RESUMED = ("Trigger timeout", "Trigger/execution timeout")
"""What Airflow 3 and Airflow 2 give as the error of a task that no triggerer resumed in time."""
TIMED_OUT = (
    "The task's execution_timeout ended a call that is not safe to repeat. It may have been carried out all the same: "
    "check before you send it again."
)
_TRIGGERER_GRACE = timedelta(minutes=5)


class QueryOperator(BaseOperator):
    """Answers a query.

    What becomes of its failures, and what the arguments are, is told to users by the operators that are made of it; see
    :class:`~openmarkets_provider.operators.openmarkets.OpenmarketsOperator`.
    """

    template_fields: Sequence[str] = ("query", "openmarkets_conn_id")
    template_fields_renderers: ClassVar[dict[str, str]] = {"query": "json"}
    ui_color = "#e8f0fe"

    def __init__(
        self,
        *,
        query: Query,
        openmarkets_conn_id: str = "openmarkets_default",
        deferrable: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.query = query
        self.openmarkets_conn_id = openmarkets_conn_id
        self.deferrable = deferrable
        if is_literal(query):
            check(query)

    @abstractmethod
    def answer(self, hook: OpenmarketsHook, context: Context) -> Any:
        """Do the work; what it returns goes to XCom."""

    def execute(self, context: Context) -> Any:
        """Answer the query."""
        return self._answer(context, deferrals=0, held=0)

    def execute_after_wait(self, context: Context, event: Any = None, deferrals: int = 0, held: int = 0) -> Any:
        """Go on when the time that the server asked for is over.

        :param deferrals: how often the task has been sent away.
        :param held: how often it has stayed away because others were.
        """
        return self._answer(context, deferrals, held)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume as Airflow does, and say what it means when no triggerer ended the wait."""
        if next_method == "__fail__" and (next_kwargs or {}).get("error") in NOT_RESUMED:
            from airflow.providers.common.compat.sdk import AirflowFailException

            raise AirflowFailException(
                "The server asked to be left alone and the task was deferred, but no triggerer resumed it. The time "
                "to wait is over by now: run the task again. Start a triggerer, or use deferrable=False."
            )
        return super().resume_execution(next_method, next_kwargs, context)

    def _answer(self, context: Context, deferrals: int, held: int) -> Any:
        from airflow.providers.common.compat.sdk import AirflowFailException, AirflowTaskTimeout

        from openmarkets_provider.hooks.openmarkets import OpenmarketsHook

        hook = OpenmarketsHook(self.openmarkets_conn_id)
        try:
            return hook.as_of_now(lambda: self.answer(hook, context))
        except OpenmarketsError as error:
            self._fail_or_wait(error, deferrals, held)
            raise
        except AirflowTaskTimeout:
            # It may come at any moment, also while the request is under way.
            if is_repeatable(self.query):
                raise
            raise AirflowFailException(TIMED_OUT) from None
        finally:
            hook.close()

    def _fail_or_wait(self, error: OpenmarketsError, deferrals: int, held: int) -> None:
        """Fail for good, or defer, or return for Airflow's retries to go on."""
        from airflow.providers.common.compat.sdk import AirflowFailException

        if not error.transient:
            raise AirflowFailException(str(error)) from without_frames(error)
        if error.retry_after is None or error.retry_after <= MAX_WAIT or (is_on_hold(error) and not self.deferrable):
            return
        if is_on_hold(error):
            held += 1
        else:
            deferrals += 1
        import pendulum

        # All who were told so at once are not to come back at once.
        wait = timedelta(seconds=error.retry_after + spread(error.retry_after))
        until = f"{(pendulum.now('UTC') + wait).to_datetime_string()} UTC"
        is_over = deferrals > MAX_DEFERRALS or held > MAX_HELD_DEFERRALS or wait > MAX_DEFERRAL
        if not self.deferrable or is_over:
            raise AirflowFailException(f"{error} Run the task again after {until}.") from without_frames(error)
        from airflow.providers.common.compat.standard.triggers import TimeDeltaTrigger

        self.log.info("%s The task is deferred until %s.", error, until)
        self.defer(
            trigger=TimeDeltaTrigger(wait),
            method_name="execute_after_wait",
            kwargs={"deferrals": deferrals, "held": held},
            timeout=wait + _TRIGGERER_GRACE,
        )
