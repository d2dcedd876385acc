from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    DAG,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    Asset,
    TaskDeferred,
)
from airflow.triggers.base import TaskSuccessEvent

from openmarkets_provider import queries
from openmarkets_provider.exceptions import (
    OpenmarketsNotFound,
    OpenmarketsQueryError,
    OpenmarketsRateLimited,
    OpenmarketsServerError,
)
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
from openmarkets_provider.sensors.openmarkets import MAX_FAILURES, OpenmarketsSensor
from tests.support.holds import end_holds
from tests.support.versions import exceptions, what_airflow_says_of_a_timeout

OPEN = "[0].trading_status == 'OPEN'"


def sensor(**kwargs: Any) -> OpenmarketsSensor:
    arguments: dict[str, Any] = {
        "task_id": "wait",
        "query": queries.quotes(["BHP"]),
        "condition": OPEN,
        "poke_interval": 0.05,
        "timeout": 60,
    }
    return OpenmarketsSensor(**(arguments | kwargs))


class StateStore(dict):
    """The task state store of Airflow 3.3, as far as the sensor uses it."""

    def set(self, key: str, value: Any) -> None:
        self[key] = value


class Rescheduled:
    """The part of the task instance that reschedule mode asks."""

    def get_first_reschedule_date(self, context: Any) -> None:
        return None


def pokes(task: OpenmarketsSensor, context: dict[str, Any], count: int) -> list[Exception | Any]:
    """Run the sensor as in reschedule mode: each poll on a copy of the task, as in a separate process."""
    outcomes: list[Exception | Any] = []
    for _ in range(count):
        try:
            outcomes.append(task.prepare_for_execution().execute(context))
        except Exception as error:
            outcomes.append(error)
    return outcomes


class TestParsing:
    def test_an_invalid_expression_fails_while_the_dag_is_parsed(self):
        with pytest.raises(OpenmarketsQueryError, match="condition: 'a b' is not a JMESPath expression"):
            sensor(condition="a b")

    def test_a_column_that_the_query_lacks_fails_while_the_dag_is_parsed(self):
        with pytest.raises(OpenmarketsQueryError, match="'tradingStatus' is not a column of quotes; did you mean"):
            sensor(condition="[0].tradingStatus == 'OPEN'")

    @pytest.mark.parametrize("deferrable", [False, True])
    def test_one_that_is_known_when_it_is_rendered_is_never_polled_for(self, openmarkets_sandbox, deferrable):
        with DAG("dag", schedule=None):
            task = sensor(condition="[0].{{ params.column }} == 'OPEN'", deferrable=deferrable)
        task.render_template_fields({"params": {"column": "tradingStatus"}})
        with pytest.raises(AirflowFailException, match="did you mean 'trading_status'"):
            task.execute({})
        assert openmarkets_sandbox.stats()["requests"].get("market_data", 0) == 0

    def test_a_malformed_query_fails_while_the_dag_is_parsed(self):
        with pytest.raises(OpenmarketsQueryError, match=r"api must be one of .*, not 'moon'"):
            sensor(query={**queries.request("oms", "GET", "a"), "api": "moon"})

    def test_a_template_is_min_interval_until_it_is_rendered(self, openmarkets_sandbox):
        with DAG("dag", schedule=None):
            task = sensor(
                condition="[0].trading_status == '{{ params.status }}'", query=queries.quotes("{{ params.c }}")
            )
        task.render_template_fields({"params": {"status": "OPEN", "c": "BHP, CBA"}})
        assert task.poke({})
        task._hook.close()

    def test_deferrable_follows_the_deployment(self, monkeypatch):
        assert sensor().deferrable is False
        monkeypatch.setenv("AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE", "True")
        assert sensor().deferrable is True

    def test_exponential_backoff_is_refused_with_deferrable(self):
        with pytest.raises(ValueError, match="exponential_backoff"):
            sensor(exponential_backoff=True, deferrable=True)

    def test_a_query_that_is_not_safe_to_repeat_is_refused_while_the_dag_is_parsed(self):
        with pytest.raises(OpenmarketsQueryError, match="not known to be safe to repeat, and a sensor repeats it"):
            sensor(query=queries.request("oms", "POST", "orders/v4", json={"code": "{{ params.code }}"}))

    @pytest.mark.parametrize("deferrable", [False, True])
    @pytest.mark.parametrize(("soft", "kind"), [(False, AirflowFailException), (True, AirflowSkipException)])
    def test_one_that_is_known_when_it_is_rendered_is_never_polled(self, openmarkets_sandbox, deferrable, soft, kind):
        query = queries.request("oms", "POST", "{{ params.path }}", json={})
        with DAG("dag", schedule=None, params={"path": "orders/v4"}):
            task = sensor(query=query, deferrable=deferrable, soft_fail=soft)
        task.render_template_fields({"params": {"path": "orders/v4"}})
        with pytest.raises(kind, match="not known to be safe to repeat"):
            task.execute({})
        assert openmarkets_sandbox.stats()["requests"].get("oms", 0) == 0


class TestPokeMode:
    def test_what_the_condition_gave_is_the_xcom_where_asked_for(self, openmarkets_sandbox):
        condition = "[?trading_status == 'OPEN'].security_code"
        assert sensor(condition=condition, push_value=True).execute({}) == ["BHP"]
        assert sensor(condition=condition).execute({}) is None

    def test_what_is_pushed_is_json(self, openmarkets_sandbox):
        query = queries.time_series("BHP", start="2026-03-02", end="2026-03-03")
        pushed = sensor(query=query, condition="@", push_value=True).execute({})
        assert json.loads(json.dumps(pushed)) == pushed
        assert pushed[0]["time_series_date"] == "2026-03-02"
        assert type(pushed[0]["close_price"]) is float

    @pytest.mark.parametrize(
        ("condition", "met"),
        [
            ("[0].close_price > `0.5`", True),
            ("[0].close_price < `0.5`", False),
            ("[0].time_series_date == '2026-03-02'", True),
            ("not_null([0]).closePrice", False),
        ],
    )
    def test_a_condition_sees_rows_with_prices_as_numbers_and_times_as_texts(self, openmarkets_sandbox, condition, met):
        task = sensor(query=queries.time_series("BHP", start="2026-03-02", end="2026-03-03"), condition=condition)
        assert bool(task.poke({})) is met
        task._hook.close()

    def test_it_waits_until_the_condition_is_met(self, openmarkets_sandbox):
        openmarkets_sandbox.set_security("BHP.ASX@TM", tradingStatus="PRE_OPEN")

        def open_after_some_polls() -> None:
            while openmarkets_sandbox.stats()["requests"].get("market_data", 0) <= 3:
                time.sleep(0.01)
            openmarkets_sandbox.set_security("BHP.ASX@TM", tradingStatus="OPEN")

        with ThreadPoolExecutor(1) as thread:
            thread.submit(open_after_some_polls)
            assert sensor(push_value=True).execute({}) is True
        assert openmarkets_sandbox.stats()["requests"]["market_data"] > 3

    def test_the_first_poll_says_what_the_condition_gave(self, openmarkets_sandbox, caplog, capfd):
        openmarkets_sandbox.set_security("BHP.ASX@TM", tradingStatus="PRE_OPEN")
        caplog.set_level("INFO")
        task = sensor()
        assert not task.poke({})
        assert not task.poke({})
        task._hook.close()
        # Through structlog from Airflow 3 on.
        report = capfd.readouterr().out + caplog.text
        assert report.count("First poll: ") == 1
        assert f"First poll: {OPEN} is False; the result has 1 row." in report

    def test_a_timeout_fails_or_skips(self, openmarkets_sandbox):
        with pytest.raises(AirflowSensorTimeout):
            sensor(condition="`false`", timeout=0.1).execute({})
        with pytest.raises(AirflowSkipException):
            sensor(condition="`false`", timeout=0.1, soft_fail=True).execute({})

    def test_a_permanent_error_fails_at_once_or_skips(self, openmarkets_sandbox):
        openmarkets_sandbox.fault(target="market_data", kind="status", status=404, times=None)
        with pytest.raises(AirflowFailException, match="404"):
            sensor().execute({})
        with pytest.raises(AirflowSkipException):
            sensor(soft_fail=True).execute({})
        assert openmarkets_sandbox.stats()["requests"]["market_data"] == 2

    def test_a_few_transient_errors_in_a_row_are_tolerated_and_then_no_more(self, openmarkets_sandbox):
        for times, outcome in ((MAX_FAILURES, None), (MAX_FAILURES + 1, OpenmarketsServerError)):
            openmarkets_sandbox.reset()
            openmarkets_sandbox.fault(target="market_data", kind="status", status=503, retry_after=0, times=4 * times)
            if outcome is None:
                assert sensor(push_value=True).execute({}) is True
            else:
                with pytest.raises(outcome):
                    sensor().execute({})

    def test_silent_fail_tolerates_any_number(self, openmarkets_sandbox):
        openmarkets_sandbox.fault(target="market_data", kind="status", status=503, retry_after=0, times=24)
        assert sensor(silent_fail=True, push_value=True).execute({}) is True

    def test_never_fail_skips_after_the_tolerated_ones(self, openmarkets_sandbox):
        openmarkets_sandbox.fault(target="market_data", kind="status", status=503, retry_after=0, times=None)
        with pytest.raises(AirflowSkipException):
            sensor(never_fail=True).execute({})

    def test_the_next_poll_is_as_far_away_as_the_server_asks(self, openmarkets_sandbox):
        task = sensor()
        openmarkets_sandbox.fault(target="market_data", kind="status", status=429, retry_after=500)
        assert not task.poke({})
        assert task._get_next_poke_interval(0, lambda: 0, 1) == 500
        # another sensor of the host polls nothing, and waits as long
        other = sensor()
        assert not other.poke({})
        assert openmarkets_sandbox.stats()["requests"]["market_data"] == 1
        assert 400 < other._get_next_poke_interval(0, lambda: 0, 1) <= 515
        end_holds()
        assert task.poke({})
        assert task._get_next_poke_interval(0, lambda: 0, 1) == 0.05
        task._hook.close()

    def test_a_value_too_large_for_xcom_fails_unless_it_is_not_pushed(self, openmarkets_sandbox):
        with pytest.raises(AirflowFailException, match="limit for XCom"):
            sensor(condition="@", max_xcom_bytes=10, push_value=True).execute({})
        assert sensor(condition="@", max_xcom_bytes=10).execute({}) is None


# Airflow 2 asks its database for the first reschedule; the smoke test has that.
@pytest.mark.since("3.0")
class TestRescheduleMode:
    def test_it_is_rescheduled_until_the_condition_is_met(self, openmarkets_sandbox):
        openmarkets_sandbox.set_security("BHP.ASX@TM", tradingStatus="PRE_OPEN")
        context = {"ti": Rescheduled(), "task_state_store": StateStore()}
        task = sensor(mode="reschedule", push_value=True)
        (waiting,) = pokes(task, context, 1)
        assert isinstance(waiting, exceptions.AirflowRescheduleException)
        openmarkets_sandbox.set_security("BHP.ASX@TM", tradingStatus="OPEN")
        assert pokes(task, context, 1) == [True]
        assert context["task_state_store"] == {}

    def test_failures_in_a_row_are_counted_across_processes(self, openmarkets_sandbox):
        context = {"ti": Rescheduled(), "task_state_store": StateStore()}
        openmarkets_sandbox.fault(target="market_data", kind="status", status=503, retry_after=0, times=None)
        kinds = [type(outcome) for outcome in pokes(sensor(mode="reschedule"), context, MAX_FAILURES + 2)]
        expected = [exceptions.AirflowRescheduleException] * MAX_FAILURES
        assert kinds == [*expected, OpenmarketsServerError, exceptions.AirflowRescheduleException]

    def test_a_poll_that_works_ends_the_row(self, openmarkets_sandbox):
        context = {"ti": Rescheduled(), "task_state_store": StateStore(openmarkets_failures=MAX_FAILURES)}
        pokes(sensor(mode="reschedule", condition="`false`"), context, 1)
        assert context["task_state_store"]["openmarkets_failures"] == 0

    def test_without_a_state_store_a_transient_error_is_left_to_retries(self, openmarkets_sandbox):
        openmarkets_sandbox.fault(target="market_data", kind="status", status=503, retry_after=0, times=4)
        (outcome,) = pokes(sensor(mode="reschedule"), {"ti": Rescheduled()}, 1)
        assert isinstance(outcome, OpenmarketsServerError)


class TestDeferrable:
    def deferred(self, **kwargs: Any) -> TaskDeferred:
        with pytest.raises(TaskDeferred) as raised:
            sensor(deferrable=True, **kwargs).execute({})
        return raised.value

    def test_it_hands_query_and_condition_to_the_trigger(self):
        deferred = self.deferred(timeout=100)
        _, kwargs = deferred.trigger.serialize()
        assert 90 < kwargs.pop("deadline") - time.time() <= 100
        assert kwargs == {
            "openmarkets_conn_id": "openmarkets_default",
            "query": queries.quotes(["BHP"]),
            "condition": OPEN,
            "poke_interval": 0.05,
            "max_failures": MAX_FAILURES,
            "max_xcom_bytes": None,
            "resume": False,
        }
        assert deferred.method_name == "execute_complete"
        assert deferred.timeout.total_seconds() == 100

    def test_options_that_the_trigger_must_know_are_passed_on(self):
        _, kwargs = self.deferred(silent_fail=True, outlets=[Asset("x")]).trigger.serialize()
        assert (kwargs["max_failures"], kwargs["max_xcom_bytes"], kwargs["resume"]) == (None, None, True)
        _, kwargs = self.deferred(push_value=True).trigger.serialize()
        assert (kwargs["max_xcom_bytes"], kwargs["resume"]) == (1 << 20, True)

    def test_without_a_triggerer_the_end_of_the_task_arrives_as_an_event(self):
        assert sensor().execute_complete({}, TaskSuccessEvent().payload) is None

    def test_a_worker_that_is_resumed_returns_the_value(self):
        assert sensor().execute_complete({}, {"status": "met", "value": [1]}) == [1]

    @pytest.mark.parametrize(
        ("error", "options", "expected"),
        [
            (OpenmarketsNotFound("404", status=404), {}, AirflowFailException),
            (OpenmarketsNotFound("404", status=404), {"soft_fail": True}, AirflowSkipException),
            (OpenmarketsNotFound("404", status=404), {"never_fail": True}, AirflowSkipException),
            (OpenmarketsServerError("503"), {}, OpenmarketsServerError),
            (OpenmarketsServerError("503"), {"soft_fail": True}, OpenmarketsServerError),
            (OpenmarketsServerError("503"), {"never_fail": True}, AirflowSkipException),
        ],
    )
    def test_errors_of_the_trigger_end_as_those_of_a_poke(self, error, options, expected):
        event = {"status": "error", "error": error.as_dict()}
        with pytest.raises(expected):
            sensor(**options).resume_execution("execute_complete", {"event": event}, {})

    @pytest.mark.parametrize("event", [None, {}, {"status": "success"}, {"status": "error"}, "met"])
    def test_an_event_it_does_not_know_is_an_error(self, event):
        with pytest.raises(ValueError, match="doesn't know"):
            sensor().execute_complete({}, event)

    def test_the_deadline_of_the_trigger_ends_as_a_timeout_of_airflow_does(self):
        event = {"status": "timeout"}
        with pytest.raises(AirflowSensorTimeout, match="timeout of 60 seconds"):
            sensor().resume_execution("execute_complete", {"event": event}, {})
        with pytest.raises(AirflowSkipException, match="soft_fail"):
            sensor(soft_fail=True).resume_execution("execute_complete", {"event": event}, {})

    @pytest.mark.since("3.2")
    def test_a_timeout_fails_or_skips(self):
        timeout = {"error": what_airflow_says_of_a_timeout()}
        with pytest.raises(AirflowSensorTimeout):
            sensor(deferrable=True).resume_execution("__fail__", timeout, {})
        with pytest.raises(AirflowSkipException):
            sensor(deferrable=True, soft_fail=True).resume_execution("__fail__", timeout, {})


@pytest.mark.parametrize("mode", ["poke", "reschedule"])
def test_polls_that_are_held_back_by_the_429_of_another_task_are_no_failures(openmarkets_sandbox, mode):
    openmarkets_sandbox.fault(target="market_data", kind="status", status=429, retry_after=120)
    hook = OpenmarketsHook()
    with pytest.raises(OpenmarketsRateLimited):
        hook.run(queries.quotes(["BHP"]))
    hook.close()
    waiting = sensor(mode=mode)
    for _ in range(MAX_FAILURES + 2):
        assert not waiting.poke({}).is_done
        assert waiting._min_interval > 60
    assert openmarkets_sandbox.stats()["requests"]["market_data"] == 1
    waiting._hook.close()
