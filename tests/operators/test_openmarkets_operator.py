from __future__ import annotations

import inspect
import json
import os
import signal
import threading
import time
from datetime import date
from decimal import Decimal

import pytest
from airflow.providers.common.compat.sdk import (
    DAG,
    AirflowException,
    AirflowFailException,
    AirflowTaskTimeout,
    TaskDeferred,
    XComArg,
)

from openmarkets_provider import queries
from openmarkets_provider.exceptions import (
    OpenmarketsQueryError,
    OpenmarketsRateLimited,
    OpenmarketsServerError,
)
from openmarkets_provider.operators.openmarkets import OpenmarketsOperator
from openmarkets_provider.policies._waits import WAITS_AFTER_429, WAITS_FOR_HOLDS
from openmarkets_provider.sandbox.server import SandboxServer
from tests.support.holds import end_holds
from tests.support.versions import exceptions, serde, what_airflow_says_of_a_timeout

ORDER = {
    "accountCode": "SBX0001",
    "securityCode": "BHP",
    "exchange": "ASX",
    "destination": "TM",
    "side": "Buy",
    "orderPrice": 4500,
    "orderVolume": 10,
    "lifetime": "EndOfDay",
    "pricingInstruction": "Limit",
}


def operator(query=None, **kwargs) -> OpenmarketsOperator:
    return OpenmarketsOperator(task_id="pull", query=query or queries.quotes(["BHP"]), **kwargs)


def test_it_returns_rows_that_keep_their_values_and_types_through_xcom(openmarkets_sandbox):
    task = operator(queries.time_series("BHP", start="2026-03-02", end="2026-03-05"))
    result = task.execute({})
    assert [row["time_series_date"] for row in result] == [date(2026, 3, day) for day in (2, 3, 4)]
    received = serde.deserialize(json.loads(json.dumps(serde.serialize(result))))
    assert received == result
    assert [[type(value) for value in row.values()] for row in received] == [
        [type(value) for value in row.values()] for row in result
    ]
    assert type(received[0]["close_price"]) is Decimal


def test_raw_records_and_replies_are_json(openmarkets_sandbox):
    for query in (queries.quotes(["BHP"], raw=True), queries.request("oms", "GET", "accounts/v1")):
        result = operator(query).execute({})
        assert json.loads(json.dumps(result)) == result


def test_nothing_happens_at_construction(monkeypatch):
    monkeypatch.delenv("AIRFLOW_CONN_OPENMARKETS_DEFAULT", raising=False)
    assert operator(openmarkets_conn_id="nowhere").openmarkets_conn_id == "nowhere"


def test_its_own_arguments_stand_in_the_signature():
    parameters = inspect.signature(OpenmarketsOperator.__init__.__wrapped__).parameters
    assert list(parameters) == ["self", "query", "openmarkets_conn_id", "max_xcom_bytes", "deferrable", "kwargs"]
    # Airflow 2.11 raises its own exception.
    with pytest.raises((TypeError, AirflowException), match="max_xcom_byte'"):
        operator(max_xcom_byte=1)


def test_a_malformed_literal_query_fails_while_the_dag_is_parsed():
    with pytest.raises(OpenmarketsQueryError, match=r"securities: 'B HP' is malformed"):
        operator({**queries.quotes(["BHP"]), "securities": ["B HP"]})


def test_query_and_connection_id_are_rendered_and_checked_again(openmarkets_sandbox):
    with DAG("dag", schedule=None):
        task = operator(queries.quotes(["{{ params.code }}", "CBA"]), openmarkets_conn_id="{{ params.conn }}")
    task.render_template_fields({"params": {"code": "RIO", "conn": "openmarkets_default"}})
    assert [row["security_code"] for row in task.execute({})] == ["RIO", "CBA"]
    with DAG("dag2", schedule=None):
        task = operator(queries.quotes(["{{ params.code }}"]))
    task.render_template_fields({"params": {"code": "R!O"}})
    with pytest.raises(AirflowFailException, match="'R!O' is malformed"):
        task.execute({})


def test_a_templated_number_of_a_body_is_a_text_but_with_native_objects(openmarkets_sandbox):
    order = {
        "accountCode": "{{ params.account | tojson }}",
        "securityCode": "BHP",
        "exchange": "ASX",
        "destination": "ASX",
        "side": "Buy",
        "orderVolume": "{{ params.volume }}",
        "orderPrice": "{{ (params.price * 100) | round | int }}",
        "pricingInstruction": "Limit",
        "lifetime": "EndOfDay",
    }
    tasks = {}
    for native in (False, True):
        with DAG("dag", schedule=None, render_template_as_native_obj=native):
            query = queries.request("oms", "POST", "orders/v4", json=order)
            tasks[native] = OpenmarketsOperator(task_id="place", query=query)
        tasks[native].render_template_fields({"params": {"account": "0123", "volume": 100, "price": 45.1}})
    sent = {native: task.query["json"] for native, task in tasks.items()}
    assert (sent[False]["orderVolume"], sent[False]["orderPrice"]) == ("100", "4510")
    assert (sent[True]["orderVolume"], sent[True]["orderPrice"], sent[True]["accountCode"]) == (100, 4510, "0123")
    with pytest.raises(AirflowFailException, match="orderVolume must be an integer"):
        OpenmarketsOperator(
            task_id="place",
            query=queries.request("oms", "POST", "orders/v4", json=sent[False] | {"accountCode": "SBX0001"}),
        ).execute({})


def test_a_query_may_come_from_upstream_and_be_mapped():
    with DAG("dag", schedule=None):
        first = operator()
        whole = OpenmarketsOperator(task_id="whole", query=first.output)
        nested = OpenmarketsOperator(task_id="nested", query=queries.quotes(first.output["codes"]))
        OpenmarketsOperator.partial(task_id="mapped").expand(query=[queries.accounts(), queries.securities()])
    assert isinstance(whole.query, XComArg)
    assert whole.upstream_task_ids == nested.upstream_task_ids == {"pull"}


def test_a_permanent_error_fails_the_task_at_once(openmarkets_sandbox):
    with pytest.raises(AirflowFailException, match="GET oms nothing/v1: 404"):
        operator(queries.request("oms", "GET", "nothing/v1")).execute({})


def test_a_transient_error_is_left_to_the_retries_of_airflow(openmarkets_sandbox):
    openmarkets_sandbox.fault(target="market_data", kind="status", status=503, retry_after=0, times=None)
    with pytest.raises(OpenmarketsServerError, match="503"):
        operator().execute({})
    assert openmarkets_sandbox.stats()["requests"]["market_data"] == 4


@pytest.mark.parametrize(
    "fault", [{"kind": "status", "status": 503}, {"kind": "reset"}, {"kind": "status", "status": 429}]
)
def test_an_order_whose_fate_is_unknown_is_never_sent_again_not_even_by_retries(openmarkets_sandbox, fault):
    openmarkets_sandbox.fault(target="oms", **fault)
    with pytest.raises(AirflowFailException):
        operator(queries.request("oms", "POST", "orders/v4", json=ORDER)).execute({})
    assert openmarkets_sandbox.stats()["by_path"]["POST /oms/orders/v4"] == 1


@pytest.fixture
def own_sandbox(monkeypatch):
    """A sandbox that a test may leave with requests under way."""
    with SandboxServer() as sandbox:
        monkeypatch.setenv("AIRFLOW_CONN_OPENMARKETS_DEFAULT", json.dumps(sandbox.connection))
        yield sandbox


@pytest.mark.parametrize(
    ("query", "path", "error"),
    [
        (queries.request("oms", "POST", "orders/v4", json=ORDER), "POST /oms/orders/v4", AirflowFailException),
        (queries.quotes("BHP"), "POST /market-data/pricing/quotes/v3", AirflowTaskTimeout),
    ],
)
def test_a_timeout_of_the_task_while_an_order_is_under_way_is_final(own_sandbox, query, path, error):
    own_sandbox.fault(target=path.partition(" ")[2], kind="delay", seconds=20)

    def timeout(*_):
        raise AirflowTaskTimeout("Timeout")

    def end_when_it_arrived():
        while not own_sandbox.stats()["by_path"].get(path):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGALRM)

    # As Airflow ends a task after execution_timeout.
    before = signal.signal(signal.SIGALRM, timeout)
    watcher = threading.Thread(target=end_when_it_arrived)
    try:
        watcher.start()
        with pytest.raises(error):
            operator(query, retries=3).execute({})
    finally:
        watcher.join()
        signal.signal(signal.SIGALRM, before)
    assert own_sandbox.stats()["by_path"][path] == 1


def test_an_order_that_never_left_may_be_retried(openmarkets_sandbox):
    openmarkets_sandbox.fault(target="identity", kind="status", status=503, retry_after=0, times=None)
    with pytest.raises(OpenmarketsServerError):
        operator(queries.request("oms", "POST", "orders/v4", json=ORDER)).execute({})
    assert openmarkets_sandbox.stats()["requests"].get("oms", 0) == 0


def test_an_order_is_sent_once(openmarkets_sandbox):
    result = operator(queries.request("oms", "POST", "orders/v4", json=ORDER)).execute({})
    assert result["orderNumber"] > 0


class TestLongRetryAfter:
    @pytest.fixture(autouse=True)
    def limited(self, openmarkets_sandbox):
        openmarkets_sandbox.fault(target="market_data", kind="status", status=429, retry_after=120)
        self.sandbox = openmarkets_sandbox

    def test_it_defers_until_then_and_goes_on_afterwards(self):
        task = operator(deferrable=True)
        with pytest.raises(TaskDeferred) as deferred:
            task.execute({})
        assert deferred.value.trigger.serialize()[0].endswith("TimeDeltaTrigger") or "moment" in str(
            deferred.value.trigger.serialize()
        )
        assert deferred.value.timeout.total_seconds() == pytest.approx(120 + 300 + 7.5, abs=7.5)
        assert self.sandbox.stats()["requests"]["market_data"] == 1
        end_holds()
        result = task.resume_execution(deferred.value.method_name, {**deferred.value.kwargs, "event": None}, {})
        assert result[0]["security_code"] == "BHP"

    def test_the_tasks_after_it_are_deferred_without_sending_anything(self):
        for _ in range(5):
            with pytest.raises(TaskDeferred) as deferred:
                operator(deferrable=True).execute({})
            assert 60 < (deferred.value.timeout.total_seconds() - 300) <= 120 + 2 * 15
        assert self.sandbox.stats()["requests"]["market_data"] == 1
        # Left to Airflow's retries: this task met no 429.
        with pytest.raises(OpenmarketsRateLimited, match=r"not sent: .* asked another call"):
            operator(deferrable=False).execute({})
        # That others are sent away doesn't count as being sent away.
        with pytest.raises(TaskDeferred) as deferred:
            operator(deferrable=True).execute_after_wait({}, deferrals=WAITS_AFTER_429)
        assert deferred.value.kwargs == {"deferrals": WAITS_AFTER_429, "holds": 1}
        with pytest.raises(AirflowFailException, match="Run the task again after"):
            operator(deferrable=True).execute_after_wait({}, holds=WAITS_FOR_HOLDS)

    def test_an_order_that_was_held_back_is_deferred_and_sent_once(self):
        self.sandbox.fault(target="oms", kind="status", status=429, retry_after=120)
        with pytest.raises(TaskDeferred):
            operator(queries.accounts(), deferrable=True).execute({})
        task = operator(queries.request("oms", "POST", "orders/v4", json=ORDER), deferrable=True)
        with pytest.raises(TaskDeferred) as deferred:
            task.execute({})
        assert "POST /oms/orders/v4" not in self.sandbox.stats()["by_path"]
        end_holds()
        result = task.resume_execution(deferred.value.method_name, {**deferred.value.kwargs, "event": None}, {})
        assert result["orderNumber"] > 0
        assert self.sandbox.stats()["by_path"]["POST /oms/orders/v4"] == 1

    def test_without_deferring_it_is_left_to_airflows_retries(self):
        with pytest.raises(OpenmarketsRateLimited, match="The server asks to wait 120 s"):
            operator(deferrable=False).execute({})

    def test_deferrable_follows_the_deployment(self, monkeypatch):
        assert operator().deferrable is False
        with pytest.raises(OpenmarketsRateLimited):
            operator().execute({})
        end_holds()
        self.sandbox.fault(target="market_data", kind="status", status=429, retry_after=120)
        monkeypatch.setenv("AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE", "True")
        assert operator(deferrable=False).deferrable is False
        with pytest.raises(TaskDeferred):
            operator().execute({})

    def test_a_server_that_never_stops_sending_it_away_ends_the_task(self):
        with pytest.raises(AirflowFailException, match=r"Run the task again after \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"):
            operator(deferrable=True).execute_after_wait({}, deferrals=WAITS_AFTER_429)

    def test_a_triggerer_that_is_missing_is_named(self):
        task = operator(deferrable=True)
        with pytest.raises(AirflowFailException, match="no triggerer resumed it"):
            task.resume_execution("__fail__", {"error": what_airflow_says_of_a_timeout()}, {})
        with pytest.raises(exceptions.TaskDeferralError):
            task.resume_execution("__fail__", {"error": "Trigger failure"}, {})


def test_an_absurd_retry_after_fails_instead_of_waiting_for_ever(openmarkets_sandbox):
    openmarkets_sandbox.fault(target="market_data", kind="status", status=429, retry_after=10**12)
    with pytest.raises(AirflowFailException, match="Run the task again after"):
        operator(deferrable=True).execute({})


def test_a_rate_limit_of_the_identity_server_defers_an_order_too(openmarkets_sandbox):
    openmarkets_sandbox.fault(target="identity", kind="status", status=429, retry_after=300, times=None)
    with pytest.raises(TaskDeferred):
        operator(queries.request("oms", "POST", "orders/v4", json=ORDER), deferrable=True).execute({})


def test_a_short_rate_limit_without_a_time_is_left_to_retries(openmarkets_sandbox):
    openmarkets_sandbox.fault(target="market_data", kind="status", status=429, retry_after=0, times=None)
    with pytest.raises(OpenmarketsRateLimited):
        operator().execute({})


def test_a_result_too_large_for_xcom_is_refused_with_advice(openmarkets_sandbox):
    with pytest.raises(AirflowFailException, match=r"limit for XCom is 100 \(max_xcom_bytes\).*OpenmarketsHook.stream"):
        operator(max_xcom_bytes=100).execute({})
    assert operator(max_xcom_bytes=100, do_xcom_push=False).execute({})[0]["security_code"] == "BHP"


def test_a_whole_exchange_too_large_for_xcom_is_refused_and_one_list_of_it_is_not(openmarkets_sandbox):
    with pytest.raises(AirflowFailException, match="limit for XCom is 1,048,576"):
        operator(queries.quotes(exchange="ASX")).execute({})
    assert len(operator(queries.quotes(["BHP", "CBA", "RIO"])).execute({})) == 3
