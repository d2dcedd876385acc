"""The retry policy: what Airflow does after an error of this provider."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

try:
    from airflow.sdk import RetryDecision, RetryPolicy
except ImportError as error:
    raise ImportError(
        "OpenmarketsRetryPolicy needs Airflow 3.3 or later; in earlier versions, raise AirflowFailException in "
        "the task for errors that are not transient"
    ) from error

from openmarkets_provider.exceptions import OpenmarketsError, OpenmarketsRateLimited, is_on_hold
from openmarkets_provider.policies._waits import (
    LONGEST_WAIT,
    WAITS_AFTER_429,
    WAITS_FOR_HOLDS,
    advise_later,
    wait_after,
)

if TYPE_CHECKING:
    from airflow.sdk import Context


class OpenmarketsRetryPolicy(RetryPolicy):
    """Decides by the error whether and when Airflow runs a task again. Needs Airflow 3.3 or later.

    Pass an instance as ``retry_policy`` of a ``@task`` that uses the hook. The provider's operators and transfers
    have one by default.

    - Permanent errors fail the task immediately, whatever its ``retries``.
    - After a rate limit (429), the task runs again when the server allows it (``Retry-After``). Since Airflow 3.4 this
      uses no try, up to 10 times, or up to 100 times if another task got the 429 and this one sent nothing. On Airflow
      3.3 it is a retry.
    - After another transient error with a ``Retry-After`` of more than 60 seconds, the retry comes after that time.
    - If the server asks for a wait of more than 24 hours, the task fails immediately.
    - For all other errors, ``retries`` and ``retry_delay`` apply. These are errors without ``Retry-After``, errors with
      a shorter one that the call has already waited for, and exceptions that are not the provider's.

    The policy never adds tries to ``retries``.
    """

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: Context | None = None
    ) -> RetryDecision:
        """Decide what Airflow does after an exception. Airflow calls this in the process of the task.

        :param exception: the exception that ended the task.
        :param try_number: not used.
        :param max_tries: not used.
        :param context: not used.
        """
        if not isinstance(exception, OpenmarketsError):
            return RetryDecision.default()
        reason = str(exception)
        if not exception.transient:
            return RetryDecision.fail(reason)
        if exception.retry_after is None:
            return RetryDecision.default()
        from openmarkets_provider.client.exchange import MAX_SERVER_WAIT

        wait = wait_after(exception.retry_after)
        if wait > LONGEST_WAIT:
            return RetryDecision.fail(advise_later(exception, wait))
        # Airflow 3.3 has no such decision.
        reschedule: Any = getattr(RetryDecision, "reschedule", None)
        if reschedule is not None and isinstance(exception, OpenmarketsRateLimited):
            times = WAITS_FOR_HOLDS if is_on_hold(exception) else WAITS_AFTER_429
            decision: RetryDecision = reschedule(wait, max_reschedules=times, reason=reason)
            return decision
        return RetryDecision.retry(wait, reason) if exception.retry_after > MAX_SERVER_WAIT else RetryDecision.default()
