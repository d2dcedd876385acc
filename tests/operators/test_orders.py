"""The operators that place, amend and cancel orders: the rows of the failure table that Airflow brings about."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, ClassVar, NoReturn

import pytest
from airflow.providers.common.compat.module_loading import import_string
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException, TaskDeferred

from openmarkets_provider import orders
from openmarkets_provider._airflow import Asset
from openmarkets_provider.client.orders import Orders
from openmarkets_provider.exceptions import OpenmarketsError, OpenmarketsOrderError
from openmarkets_provider.operators._questions import LEAVE, Question
from openmarkets_provider.operators.orders import (
    Approval,
    OpenmarketsAmendOrderOperator,
    OpenmarketsCancelOrderOperator,
    OpenmarketsOrderOperator,
)
from openmarkets_provider.order_entry.guards import Limits
from openmarkets_provider.sandbox.server import SandboxServer
from tests.support.versions import at_least

ACCOUNT = "SBX0001"
ORDER = orders.limit("BHP", account=ACCOUNT, buy=100, price="45.50")
ASSET = f"openmarkets_orders_{ACCOUNT}"
with_store = pytest.mark.since("3.3")


class TaskStore(dict[str, Any]):
    """The state store of a task instance."""

    def set(self, key: str, value: Any, *, retention: timedelta) -> None:
        assert retention is timedelta.max
        self[key] = json.loads(json.dumps(value))


class AssetStore(dict[str, Any]):
    """The state store of an asset, which takes no retention."""

    def set(self, key: str, value: Any) -> None:
        self[key] = json.loads(json.dumps(value))


class AssetStores(dict[str, AssetStore]):
    """By asset."""

    def __getitem__(self, asset: Any) -> AssetStore:
        return self.setdefault(asset.name, AssetStore())


class Run:
    """A task instance over its tries."""

    def __init__(self, **changes: Any) -> None:
        self.retries = 1
        self.ti = SimpleNamespace(
            dag_id="dag", run_id="run", task_id="place", map_index=-1, try_number=1, max_tries=self.retries
        )
        vars(self.ti).update(changes)
        self.task_store, self.asset_stores = TaskStore(), AssetStores()
        self.dag_run = SimpleNamespace(run_after=datetime.now(UTC), triggering_user_name="ann")

    def retry(self) -> None:
        self.ti.try_number += 1

    def clear(self, *, discards_state: bool = False) -> None:
        """Clear the task as Airflow 3.3 does, or as 3.4."""
        self.ti.max_tries = self.ti.try_number + self.retries
        self.ti.try_number += 1
        if discards_state:
            self.task_store.clear()

    def context(self) -> dict[str, Any]:
        return {
            "ti": self.ti,
            "dag_run": self.dag_run,
            "task_state_store": self.task_store,
            "asset_state_store": self.asset_stores,
        }


@pytest.fixture
def run() -> Run:
    return Run()


def operator(**kwargs: Any) -> OpenmarketsOrderOperator:
    return OpenmarketsOrderOperator(**{"task_id": "place", "order": ORDER, "retries": 1, "deferrable": True} | kwargs)


class Asked(Exception):
    """The task waits for a person."""

    def __init__(self, question: Question) -> None:
        super().__init__(question.body)
        self.question = question


class Patient(OpenmarketsOrderOperator):
    """Waits for the list of orders at once, and raises its question.

    :cvar waited: seconds that all of them have waited.
    """

    waited: ClassVar[float] = 0.0

    def sender(self, hook: Any, context: Any, limits: Limits = Limits()) -> Orders:  # noqa: B008
        def clock() -> float:
            return time.time() + Patient.waited

        def sleep(seconds: float) -> None:
            Patient.waited += seconds

        return Orders(hook.client, self.journal(hook, context), limits=limits, clock=clock, sleep=sleep)

    def ask(self, question: Question, context: Any) -> NoReturn:
        raise Asked(question)


def patient(**kwargs: Any) -> Patient:
    return Patient(**{"task_id": "place", "order": ORDER, "retries": 1, "deferrable": True} | kwargs)


def numbers(sandbox: SandboxServer) -> list[str]:
    return [str(order["orderNumber"]) for order in sandbox.orders()]


# --- the DAG


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"wait_for": "filled"}, "wait_for"),
        ({"on_unknown": "adopt"}, "on_unknown"),
        ({"cancel_after": timedelta(1)}, "cancel_after goes with"),
        ({"check_cash": "cash"}, "check_cash must be"),
        ({"order": orders.cancel(7, account=ACCOUNT)}, "takes what orders.limit or orders.market returns"),
        ({"order": {**ORDER, "price": 45.5}}, "price must be a Decimal or a string"),
        ({"order": "BHP"}, "must be the result of a function"),
    ],
)
def test_what_is_refused_while_the_dag_is_parsed(arguments, words):
    with pytest.raises((OpenmarketsOrderError, ValueError), match=words):
        operator(**arguments)


@with_store
def test_the_account_has_an_asset_of_its_own():
    assert operator().inlets == [Asset(ASSET)]
    assert operator(order=ORDER | {"account": "{{ params.account }}"}).inlets == []


def test_an_airflow_without_human_in_the_loop_refuses_an_approval_while_the_dag_is_parsed():
    if at_least("3.1"):
        operator(approval=Approval())
    else:
        with pytest.raises(ValueError, match="approval needs Airflow"):
            operator(approval=Approval())


# --- the failure table


@with_store
def test_a_failure_after_execute_uses_a_retry_which_adopts(openmarkets_sandbox, run):
    placed = operator().execute(run.context())
    run.retry()
    assert operator().execute(run.context()) == placed | {"found": True}
    assert numbers(openmarkets_sandbox) == [placed["order_number"]]


@with_store
def test_a_scheduler_that_dies_and_starts_a_running_task_again_adopts(openmarkets_sandbox, run):
    openmarkets_sandbox.fault(target="/oms/orders/v4", kind="reset", process_first=True)
    run.task_store.clear()
    placed = operator().execute(run.context())
    assert (placed["found"], operator().execute(run.context())["order_number"]) == (True, placed["order_number"])
    assert numbers(openmarkets_sandbox) == [placed["order_number"]]


@with_store
@pytest.mark.parametrize("discards_state", [False, True])
def test_cleared_after_placed_is_refused_and_a_generation_places_another(openmarkets_sandbox, run, discards_state):
    placed = operator().execute(run.context())
    run.clear(discards_state=discards_state)
    with pytest.raises(AirflowFailException, match=f"placed already: number {placed['order_number']}"):
        operator().execute(run.context())
    second = operator(generation=2).execute(run.context())
    assert numbers(openmarkets_sandbox) == [placed["order_number"], second["order_number"]]


@with_store
def test_cleared_in_3_4_without_an_asset_adopts_or_refuses(openmarkets_sandbox, run):
    bare = patient()
    bare.inlets = []
    openmarkets_sandbox.set_order_behaviour(notes_length=0)
    bare.execute(run.context())
    run.clear(discards_state=True)
    with pytest.raises(Asked, match="its outcome is not known"):
        bare.execute(run.context())
    assert len(numbers(openmarkets_sandbox)) == 1


def test_before_3_3_a_second_try_that_can_not_know_refuses(openmarkets_sandbox, run):
    context = run.context() | {"task_state_store": None}
    placed = operator().execute(context)
    run.retry()
    assert operator().execute(context)["order_number"] == placed["order_number"]
    openmarkets_sandbox.reset()
    says = (Asked, "its outcome is not known") if at_least("3.1") else (AirflowFailException, "It is not known")
    with pytest.raises(says[0], match=says[1]):
        patient().execute(context)
    assert numbers(openmarkets_sandbox) == []


@with_store
def test_terms_that_changed_between_two_tries_are_refused_with_the_difference(openmarkets_sandbox, run):
    operator().execute(run.context())
    run.retry()
    with pytest.raises(AirflowFailException, match="volume was 100, and is 200"):
        operator(order=ORDER | {"volume": 200}).execute(run.context())
    assert len(numbers(openmarkets_sandbox)) == 1


@with_store
def test_a_backfill_or_catch_up_is_refused_unless_allowed(openmarkets_sandbox, run):
    run.dag_run.run_after -= timedelta(minutes=16)
    with pytest.raises(AirflowFailException, match="was due 16 minutes ago"):
        operator().execute(run.context())
    assert numbers(openmarkets_sandbox) == []
    placed = operator(max_run_age=None).execute(run.context())
    assert operator().execute(run.context())["order_number"] == placed["order_number"]


@with_store
def test_mapped_copies_place_an_order_each(openmarkets_sandbox):
    for index in range(3):
        operator().execute(Run(map_index=index).context())
    assert len(set(numbers(openmarkets_sandbox))) == 3
    assert len({order["notes"] for order in openmarkets_sandbox.orders()}) == 3


@with_store
@pytest.mark.parametrize("method", ["get", "set"])
def test_the_store_can_not_be_reached_before_the_send(openmarkets_sandbox, run, method):
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("API_SERVER_ERROR")

    setattr(run.task_store, method, fail)
    with pytest.raises(
        OpenmarketsError, match="state store, which holds the intents of orders, failed: API_SERVER_ERROR"
    ) as error:
        operator().execute(run.context())
    assert error.value.transient
    assert numbers(openmarkets_sandbox) == []


@with_store
def test_both_stores_have_the_intent_as_an_audit_trail(openmarkets_sandbox, run):
    placed = operator().execute(run.context())
    for store in (run.task_store, run.asset_stores[SimpleNamespace(name=ASSET)]):
        entry = store[f"openmarkets_order_{placed['tag']}-1"]
        assert (entry["state"], entry["number"], entry["body"]["orderPrice"]) == (
            "placed",
            placed["order_number"],
            4550,
        )


def test_a_connection_that_is_off_allows_no_task_to_send(openmarkets_sandbox, run, monkeypatch):
    connection = openmarkets_sandbox.connection
    connection["extra"].pop("orders")
    monkeypatch.setenv("AIRFLOW_CONN_OPENMARKETS_DEFAULT", json.dumps(connection))
    for task in (
        operator(),
        OpenmarketsAmendOrderOperator(task_id="a", order=orders.amend(1, account=ACCOUNT, volume=1)),
        OpenmarketsCancelOrderOperator(task_id="c", order=orders.cancel(1, account=ACCOUNT)),
    ):
        with pytest.raises(AirflowFailException, match="The connection does not allow orders"):
            task.execute(run.context())
    preview = operator(dry_run=True).execute(run.context())
    assert preview["body"]["orderPrice"] == 4550
    assert openmarkets_sandbox.stats()["by_path"].get("POST /oms/orders/v4") is None


# --- the wait


@with_store
@pytest.mark.parametrize(
    ("behaviour", "outcome", "done"),
    [
        ({"fills": [[0, None]]}, "filled", 100),
        ({"fills": [[0, 60]], "reject_after": 0.1}, "partly_filled", 60),
    ],
)
def test_the_wait_ends_with_what_became_of_the_order(openmarkets_sandbox, run, behaviour, outcome, done):
    openmarkets_sandbox.set_order_behaviour(**behaviour)
    task = operator(wait_for="done", deferrable=False, poke_interval=0.1)
    result = task.execute(run.context())
    assert (result["outcome"], result["done_volume_total"]) == (outcome, done)
    assert result["average_price"] == result["order_price"]


@with_store
def test_a_rejected_order_fails_the_task(openmarkets_sandbox, run):
    openmarkets_sandbox.set_order_behaviour(reject_after=0)
    with pytest.raises(AirflowFailException, match=r"The order was rejected: order .* rejected, 0 done"):
        operator(wait_for="accepted", deferrable=False, poke_interval=0.1).execute(run.context())


@with_store
def test_a_wait_is_deferred_and_shares_its_polls_by_account(openmarkets_sandbox, run):
    triggers = []
    for index in range(2):
        with pytest.raises(TaskDeferred) as deferred:
            operator(wait_for="done").execute(Run(map_index=index).context())
        triggers.append(deferred.value)
    assert triggers[0].trigger.query == triggers[1].trigger.query
    assert triggers[0].trigger.condition != triggers[1].trigger.condition
    openmarkets_sandbox.set_order_behaviour(fills=[[0, None]])
    placed = triggers[0].kwargs["placed"]
    with pytest.raises(AirflowFailException, match=r"the order stays as it is: order .* working"):
        operator(wait_for="done").execute_after_wait(run.context(), event={"status": "timeout"}, **triggers[0].kwargs)
    with pytest.raises(ValueError, match="doesn't know"):
        operator().execute_after_wait(run.context(), event={"status": "?"}, **triggers[0].kwargs)
    result = operator(wait_for="accepted").execute_after_wait(run.context(), {"status": "met"}, placed, False)
    assert (result["outcome"], result["order_number"]) == ("working", placed["order_number"])


@with_store
@pytest.mark.parametrize("fills", [[], [[0, 40]]])
def test_cancel_after(openmarkets_sandbox, run, fills):
    openmarkets_sandbox.set_order_behaviour(fills=fills)
    task = operator(wait_for="done", deferrable=False, poke_interval=0.1, cancel_after=timedelta(seconds=0.3))
    result = task.execute(run.context())
    assert result["outcome"] == ("partly_filled" if fills else "cancelled")
    assert openmarkets_sandbox.orders()[0]["lastAction"] == "CANCEL"


@with_store
@pytest.mark.parametrize(("cancel_on_kill", "outcome"), [(True, "cancelled"), (False, "filled")])
def test_cancel_on_kill_in_the_worker(openmarkets_sandbox, run, cancel_on_kill, outcome):
    task = operator(wait_for="done", deferrable=False, cancel_on_kill=cancel_on_kill, poke_interval=0.05)
    task.on_kill()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waiting = pool.submit(task.execute, run.context())
        while openmarkets_sandbox.stats()["by_path"].get(f"GET /oms/orders/by-account/{ACCOUNT}/v4", 0) < 4:
            waiting.exception(timeout=0) if waiting.done() else time.sleep(0.01)
        task.on_kill()
        if not cancel_on_kill:
            openmarkets_sandbox.fill_order(int(*numbers(openmarkets_sandbox)))
        assert waiting.result()["outcome"] == outcome


@pytest.mark.since("3.3")
@pytest.mark.parametrize("cancel_on_kill", [True, False])
def test_cancel_on_kill_in_the_triggerer(openmarkets_sandbox, run, cancel_on_kill):
    with pytest.raises(TaskDeferred) as deferred:
        operator(wait_for="done", cancel_on_kill=cancel_on_kill).execute(run.context())
    path, arguments = deferred.value.trigger.serialize()
    trigger = import_string(path)(**arguments)
    asyncio.run(trigger.on_kill())
    assert [order["lastAction"] for order in openmarkets_sandbox.orders()] == ["CANCEL" if cancel_on_kill else "CREATE"]


# --- an outcome that is not known


@pytest.fixture
def lost(openmarkets_sandbox, run) -> Question:
    """Lose an order on its way; return what the task asks."""
    patient().execute(Run(run_id="earlier").context())
    openmarkets_sandbox.fault(target="/oms/orders/v4", kind="reset")
    with pytest.raises(Asked) as asked:
        patient().execute(run.context())
    return asked.value.question


def answer(run: Run, option: str | None) -> Any:
    """Answer, or let the time pass."""
    event: dict[str, Any]
    if option is None:
        event = {"error": "The timeout has passed", "error_type": "timeout"}
    else:
        user = {"id": "bob", "name": "bob"}
        event = {"chosen_options": [option], "responded_by_user": user, "responded_at": "2026-11-30T00:00:00Z"}
    return patient().execute_complete(run.context(), event)


@with_store
def test_a_lost_order_is_sent_again_when_a_person_says_that_it_was_not_placed(openmarkets_sandbox, run, lost):
    assert lost.options[-1] == LEAVE
    placed = answer(run, lost.options[0])
    assert numbers(openmarkets_sandbox)[1:] == [placed["order_number"]]
    entry = run.task_store[f"openmarkets_order_{placed['tag']}-1"]
    assert (entry["resolved_by"], entry["state"]) == ("bob", "ready")
    assert run.task_store[f"openmarkets_order_{placed['tag']}-2"]["state"] == "placed"


@with_store
def test_an_answer_that_is_read_twice_places_one_order(openmarkets_sandbox, run, lost):
    placed = answer(run, lost.options[0])
    assert answer(run, lost.options[0]) == placed | {"found": True}
    assert numbers(openmarkets_sandbox)[1:] == [placed["order_number"]]


@with_store
@pytest.mark.parametrize("option", [LEAVE, None, "Not placed: send it (00000000-1)"])
def test_an_answer_that_sends_nothing(openmarkets_sandbox, run, lost, option):
    with pytest.raises(AirflowFailException, match="It is not known whether the order"):
        answer(run, option)
    assert len(numbers(openmarkets_sandbox)) == 1


@with_store
def test_an_order_that_a_person_identifies_is_adopted(openmarkets_sandbox, run):
    openmarkets_sandbox.set_order_behaviour(notes_length=0)
    openmarkets_sandbox.fault(target="/oms/orders/v4", kind="reset", process_first=True)
    with pytest.raises(Asked) as asked:
        patient().execute(run.context())
    (number,) = numbers(openmarkets_sandbox)
    assert asked.value.question.options[0] == f"It is order {number}"
    assert f"| It may be order {number} | Buy 100 BHP, working |" in asked.value.question.body
    placed = answer(run, f"It is order {number}")
    assert (placed["order_number"], placed["found"]) == (number, True)
    assert answer(run, f"It is order {number}") == placed
    run.retry()
    assert patient().execute(run.context())["order_number"] == number
    assert numbers(openmarkets_sandbox) == [number]


@with_store
def test_a_second_lost_order_asks_no_more(openmarkets_sandbox, run, lost):
    openmarkets_sandbox.fault(target="/oms/orders/v4", kind="reset")
    with pytest.raises(AirflowFailException, match="It is not known whether the order"):
        answer(run, lost.options[0])
    with pytest.raises(AirflowFailException, match="It is not known whether the order"):
        patient().execute(run.context())
    assert len(numbers(openmarkets_sandbox)) == 1


@with_store
def test_a_task_with_an_approval_does_not_ask_for_an_outcome(openmarkets_sandbox, run, lost):
    with pytest.raises(AirflowFailException, match="It is not known whether the order"):
        patient(approval=Approval()).execute(run.context())


# --- approval

APPROVAL = Approval(users=["ann", "bob"], four_eyes=True)


def approve(run: Run, digest: str, user: str = "bob", **event: Any) -> Any:
    event = {
        "chosen_options": [f"Approve {digest[:8]}"],
        "params_input": {},
        "responded_at": "2026-11-29T00:00:00Z",
        "responded_by_user": {"id": user, "name": user},
    } | event
    return operator(approval=APPROVAL).execute_complete(run.context(), event)


@pytest.fixture
def digest(openmarkets_sandbox, run) -> str:
    return str(operator(dry_run=True).execute(run.context())["digest"])


@with_store
def test_an_approved_order_is_placed_and_who_and_when_are_stored(openmarkets_sandbox, run, digest):
    placed = approve(run, digest)
    assert numbers(openmarkets_sandbox) == [placed["order_number"]]
    entry = run.task_store[f"openmarkets_order_{placed['tag']}-1"]
    assert (entry["approved_by"], entry["approved_at"]) == ("bob", "2026-11-29T00:00:00Z")
    run.retry()
    assert operator(approval=APPROVAL).execute(run.context())["found"]


@with_store
@pytest.mark.parametrize(
    ("event", "words"),
    [
        ({"chosen_options": ["Approve 00000000"]}, "approved other terms"),
        ({"user": "ann"}, "ann triggered the run"),
        ({"user": "eve"}, "eve is not among the users"),
        ({"responded_by_user": None, "timedout": True}, "not approved: nobody answered in time"),
        ({"error": "The timeout has passed", "error_type": "timeout"}, "not approved: The timeout has passed"),
    ],
)
def test_an_answer_that_does_not_count(openmarkets_sandbox, run, digest, event, words):
    with pytest.raises(AirflowFailException, match=words):
        approve(run, digest, **event)
    assert numbers(openmarkets_sandbox) == []


@with_store
def test_a_rejected_approval_skips_the_task(openmarkets_sandbox, run, digest):
    with pytest.raises(AirflowSkipException, match="bob rejected the order"):
        approve(run, digest, chosen_options=["Reject"])
    assert numbers(openmarkets_sandbox) == []


@with_store
def test_approved_and_the_price_moved(openmarkets_sandbox, run, digest):
    openmarkets_sandbox.set_security("BHP.ASX@TM", lastPrice=9000)
    task = operator(approval=APPROVAL, price_collar="0.02", max_quote_age=timedelta(days=9))
    event = {"chosen_options": [f"Approve {digest[:8]}"], "responded_by_user": {"id": "bob", "name": "bob"}}
    with pytest.raises(AirflowFailException, match=r"price_collar: .* too far from the last price 90"):
        task.execute_complete(run.context(), event)
    assert numbers(openmarkets_sandbox) == []


# --- amend, cancel


@with_store
def test_amend_and_cancel(openmarkets_sandbox, run):
    number = operator().execute(run.context())["order_number"]
    amend = OpenmarketsAmendOrderOperator(task_id="amend", order=orders.amend(number, account=ACCOUNT, volume=50))
    run.ti.task_id = "amend"
    assert amend.execute(run.context())["order_volume"] == 50
    assert amend.execute(run.context())["order_volume"] == 50
    cancel = OpenmarketsCancelOrderOperator(task_id="cancel", order=orders.cancel(number, account=ACCOUNT))
    assert cancel.execute(run.context())["outcome"] == "cancelled"
    assert cancel.execute(run.context())["outcome"] == "cancelled"
    with pytest.raises(AirflowFailException, match="max_value"):
        OpenmarketsAmendOrderOperator(
            task_id="dear", order=orders.amend(place_another(), account=ACCOUNT, volume=90), max_value="1"
        ).execute(Run(task_id="dear").context())


def place_another() -> str:
    return str(operator().execute(Run(run_id="another").context())["order_number"])
