"""A call that is not safe to repeat is sent once, even if Airflow runs its task again for any reason."""

from __future__ import annotations

import json
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowNotFoundException, TaskDeferred

from openmarkets_provider import queries
from openmarkets_provider.client.exchange import MAX_ATTEMPTS
from openmarkets_provider.exceptions import OpenmarketsError, OpenmarketsServerError, OpenmarketsTransportError
from openmarkets_provider.operators.openmarkets import OpenmarketsOperator
from openmarkets_provider.sandbox.server import SandboxServer
from tests.operators.test_openmarkets_operator import ORDER
from tests.support.airflow import free_port
from tests.support.holds import end_holds

PLACE = queries.request("oms", "POST", "orders/v4", json=ORDER)
with_store = pytest.mark.since("3.3")


class StateStore(dict[str, Any]):
    """The task state store of Airflow 3.3: it outlives the tries of a task."""

    def set(self, key: str, value: Any, *, retention: timedelta) -> None:
        # Airflow compares by identity.
        assert retention is timedelta.max
        self[key] = value

    def delete(self, key: str) -> None:
        del self[key]


class Outage(StateStore):
    """A store of which one method fails."""

    def __init__(self, method: str) -> None:
        super().__init__()
        setattr(self, method, self._fail)

    def _fail(self, *_: Any, **__: Any) -> None:
        raise RuntimeError("API_SERVER_ERROR")


def place(**kwargs: Any) -> OpenmarketsOperator:
    return OpenmarketsOperator(task_id="place", query=PLACE, **kwargs)


def sends(sandbox: SandboxServer) -> int:
    return sandbox.stats()["by_path"].get("POST /oms/orders/v4", 0)


def defer_during_a_hold(sandbox: SandboxServer, context: dict[str, Any]) -> TaskDeferred:
    sandbox.fault(target="oms", kind="status", status=429, retry_after=120)
    with pytest.raises(TaskDeferred):
        OpenmarketsOperator(task_id="accounts", query=queries.accounts(), deferrable=True).execute({})
    with pytest.raises(TaskDeferred) as deferred:
        place(deferrable=True).execute(context)
    return deferred.value


@pytest.fixture
def context() -> dict[str, Any]:
    return {"task_state_store": StateStore()}


@with_store
def test_a_try_after_one_that_sent_the_call_does_not_send_it_again(openmarkets_sandbox, context):
    assert place().execute(context)["orderNumber"] > 0
    (sent_at,) = context["task_state_store"].values()
    with pytest.raises(AirflowFailException, match=f"POST oms orders/v4: not sent again.*{sent_at}"):
        place().execute(context)
    assert sends(openmarkets_sandbox) == 1


@with_store
@pytest.mark.parametrize("fault", [{"kind": "reset"}, {"kind": "status", "status": 503}])
def test_neither_does_a_try_after_one_that_got_no_reply(openmarkets_sandbox, context, fault):
    openmarkets_sandbox.fault(target="oms", **fault)
    for _ in range(2):
        with pytest.raises(AirflowFailException):
            place().execute(context)
    assert sends(openmarkets_sandbox) == 1


@with_store
def test_a_try_after_one_that_got_no_token_sends_the_call(openmarkets_sandbox, context):
    openmarkets_sandbox.fault(target="identity", kind="status", status=503, retry_after=0, times=MAX_ATTEMPTS)
    with pytest.raises(OpenmarketsServerError):
        place().execute(context)
    assert context["task_state_store"] == {}
    assert place().execute(context)["orderNumber"] > 0


@with_store
def test_a_try_after_one_that_could_not_connect_sends_the_call(openmarkets_sandbox, context, monkeypatch):
    connection = openmarkets_sandbox.connection
    down = connection["extra"] | {"oms_url": f"http://127.0.0.1:{free_port()}/oms"}
    monkeypatch.setenv("AIRFLOW_CONN_DOWN", json.dumps(connection | {"extra": down}))
    with pytest.raises(OpenmarketsTransportError):
        place(openmarkets_conn_id="down").execute(context)
    assert place().execute(context)["orderNumber"] > 0


@with_store
def test_a_connection_that_does_not_exist_leaves_no_mark(context):
    with pytest.raises(AirflowNotFoundException):
        place(openmarkets_conn_id="nowhere").execute(context)
    assert context["task_state_store"] == {}


@with_store
def test_a_call_that_was_deferred_by_a_hold_is_sent_once(openmarkets_sandbox, context):
    deferred = defer_during_a_hold(openmarkets_sandbox, context)
    end_holds()
    resume = {"next_method": deferred.method_name, "next_kwargs": {**deferred.kwargs, "event": None}}
    place(deferrable=True).resume_execution(**resume, context=context)
    # A worker that was killed behind that starts at either end.
    for again in (lambda: place().resume_execution(**resume, context=context), lambda: place().execute(context)):
        with pytest.raises(AirflowFailException, match="not sent again"):
            again()
    assert sends(openmarkets_sandbox) == 1


@with_store
def test_a_call_without_a_token_is_sent_once_with_the_new_secret(openmarkets_sandbox, context, monkeypatch):
    class Rotating(StateStore):
        """A store that is written to in the moment in which somebody saves the new secret."""

        def set(self, key: str, value: Any, *, retention: timedelta) -> None:
            super().set(key, value, retention=retention)
            monkeypatch.setenv("AIRFLOW_CONN_OPENMARKETS_DEFAULT", json.dumps(openmarkets_sandbox.connection))

    context["task_state_store"] = Rotating()
    old = json.dumps(openmarkets_sandbox.connection | {"password": "old"})
    monkeypatch.setenv("AIRFLOW_CONN_OPENMARKETS_DEFAULT", old)
    assert place().execute(context)["orderNumber"] > 0
    assert len(context["task_state_store"]) == 1
    assert sends(openmarkets_sandbox) == 1


@with_store
@pytest.mark.parametrize("method", ["get", "set"])
def test_nothing_is_sent_while_the_store_fails(openmarkets_sandbox, method):
    with pytest.raises(OpenmarketsError, match="API_SERVER_ERROR") as failure:
        place().execute({"task_state_store": Outage(method)})
    assert failure.value.transient
    assert sends(openmarkets_sandbox) == 0


@with_store
def test_a_call_whose_mark_could_not_be_removed_is_not_sent_by_the_next_try(openmarkets_sandbox):
    openmarkets_sandbox.fault(target="identity", kind="status", status=503, retry_after=0, times=MAX_ATTEMPTS)
    context = {"task_state_store": Outage("delete")}
    with pytest.raises(RuntimeError, match="API_SERVER_ERROR"):
        place().execute(context)
    with pytest.raises(AirflowFailException, match="not sent again"):
        place().execute(context)
    assert sends(openmarkets_sandbox) == 0


def test_a_query_that_only_reads_needs_no_store(openmarkets_sandbox):
    for method in ("get", "set"):
        task = OpenmarketsOperator(task_id="accounts", query=queries.request("oms", "GET", "accounts/v1"))
        assert task.execute({"task_state_store": Outage(method), "ti": SimpleNamespace(try_number=2)})


# Before Airflow 3.3: a killed worker and a restarted scheduler show as a later try, a deferral as the same.


def test_without_a_store_the_first_try_sends_the_call_after_a_deferral_too(openmarkets_sandbox):
    context = {"ti": SimpleNamespace(try_number=1)}
    deferred = defer_during_a_hold(openmarkets_sandbox, context)
    end_holds()
    resumed = place().resume_execution(deferred.method_name, {**deferred.kwargs, "event": None}, context)
    assert resumed["orderNumber"] > 0


def test_without_a_store_a_later_try_does_not_send_the_call(openmarkets_sandbox):
    with pytest.raises(AirflowFailException, match=r"not sent\..*this is try 2 "):
        place().execute({"ti": SimpleNamespace(try_number=2)})
    assert sends(openmarkets_sandbox) == 0
