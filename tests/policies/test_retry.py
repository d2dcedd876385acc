"""What the retry policy decides; tests/airflow/test_retries.py has a real Airflow carry it out."""

from __future__ import annotations

from datetime import timedelta

import pytest
from airflow.sdk import DAG, ExceptionRetryPolicy, RetryDecision, task
from airflow.sdk.definitions.retry_policy import RetryAction

from openmarkets_provider import queries
from openmarkets_provider.client.exchange import MAX_SERVER_WAIT
from openmarkets_provider.client.ratelimit.hold import MAX_SPREAD
from openmarkets_provider.exceptions import (
    OpenmarketsError,
    OpenmarketsInvalidClient,
    OpenmarketsRateLimited,
    OpenmarketsServerError,
    OpenmarketsTransportError,
)
from openmarkets_provider.operators.openmarkets import OpenmarketsOperator
from openmarkets_provider.policies._waits import WAITS_AFTER_429, WAITS_FOR_HOLDS
from openmarkets_provider.policies.retry import OpenmarketsRetryPolicy
from openmarkets_provider.transfers.openmarkets_to_object_storage import OpenmarketsToObjectStorageOperator
from tests.support.versions import at_least

RESCHEDULES = at_least("3.4")
SHORT, LONG, DAYS = 1.0, MAX_SERVER_WAIT + 1, 2 * 86400.0


def decide(error: BaseException) -> RetryDecision:
    return OpenmarketsRetryPolicy().evaluate(error, try_number=1, max_tries=3)


@pytest.mark.parametrize(
    "error",
    [
        OpenmarketsInvalidClient("refused"),
        # An order that a 429 answered: nobody knows whether it was carried out.
        OpenmarketsRateLimited("429", transient=False, sent=True, retry_after=LONG),
        OpenmarketsError("of no other kind"),
    ],
)
def test_a_permanent_error_fails_the_task(error: OpenmarketsError):
    assert decide(error) == RetryDecision.fail(str(error))


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("not the provider's"),
        OpenmarketsTransportError("no answer"),
        OpenmarketsRateLimited("429"),
        OpenmarketsServerError("503", retry_after=SHORT),
    ],
)
def test_what_has_no_long_retry_after_is_left_to_the_retries(error: BaseException):
    assert decide(error).action is RetryAction.DEFAULT


@pytest.mark.parametrize("on_hold", [False, True])
def test_a_task_comes_back_after_a_rate_limit_when_the_server_says(on_hold: bool):
    decision = decide(OpenmarketsRateLimited("429", retry_after=LONG, on_hold=on_hold))
    assert timedelta(0) <= decision.retry_delay - timedelta(seconds=LONG) <= timedelta(seconds=MAX_SPREAD)
    if not RESCHEDULES:
        assert decision.action is RetryAction.RETRY
        return
    assert decision.action is RetryAction.RESCHEDULE
    assert decision.max_reschedules == (WAITS_FOR_HOLDS if on_hold else WAITS_AFTER_429)


def test_after_a_short_rate_limit_a_task_comes_back_soon_only_where_that_uses_no_try():
    decision = decide(OpenmarketsRateLimited("429", retry_after=SHORT))
    assert decision.action is (RetryAction.RESCHEDULE if RESCHEDULES else RetryAction.DEFAULT)


def test_a_retry_after_another_error_comes_when_the_server_says():
    decision = decide(OpenmarketsServerError("503", retry_after=LONG))
    assert decision.action is RetryAction.RETRY
    assert decision.retry_delay >= timedelta(seconds=LONG)


def test_a_wait_of_days_fails_the_task_with_the_time_to_run_it_again():
    decision = decide(OpenmarketsRateLimited("429", retry_after=DAYS))
    assert decision.action is RetryAction.FAIL
    assert "Run the task again after" in decision.reason


def test_tasks_that_are_sent_away_together_do_not_come_back_together():
    delays = {decide(OpenmarketsServerError("503", retry_after=LONG)).retry_delay for _ in range(20)}
    assert len(delays) > 1


QUOTES = {"query": queries.quotes("BHP")}


def test_operators_and_transfers_have_the_policy_unless_they_are_told_another():
    other = ExceptionRetryPolicy([])
    with DAG("plain", schedule=None):
        pulled = OpenmarketsOperator(task_id="pulled", **QUOTES)
        landed = OpenmarketsToObjectStorageOperator(task_id="landed", destination="/lake", **QUOTES)
        own = OpenmarketsOperator(task_id="own", retry_policy=other, **QUOTES)
        mapped = OpenmarketsOperator.partial(task_id="mapped").expand(query=[queries.accounts()])
    with DAG("defaults", schedule=None, default_args={"retry_policy": other}):
        default = OpenmarketsOperator(task_id="default", **QUOTES)
    assert isinstance(pulled.retry_policy, OpenmarketsRetryPolicy)
    assert isinstance(landed.retry_policy, OpenmarketsRetryPolicy)
    assert own.retry_policy is default.retry_policy is other
    unmapped = mapped.unmap(QUOTES)
    assert isinstance(unmapped.retry_policy, OpenmarketsRetryPolicy)


def test_a_task_of_a_function_takes_it():
    with DAG("function", schedule=None):

        @task(retry_policy=OpenmarketsRetryPolicy())
        def pulled() -> None:
            """Ask."""

        assert isinstance(pulled().operator.retry_policy, OpenmarketsRetryPolicy)
