"""Operators that place, amend and cancel orders."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar

from openmarkets_provider import queries
from openmarkets_provider._airflow import Asset, BaseOperator, resolve_deferrable
from openmarkets_provider.exceptions import OpenmarketsError, OpenmarketsOrderError, from_dict, without_frames
from openmarkets_provider.operators._approval import Approval, ask, read_answer
from openmarkets_provider.order_entry.guards import Limits
from openmarkets_provider.order_entry.instruction import Instruction, action_of, check, read_price
from openmarkets_provider.order_entry.outcome import ACCEPTED, FINAL, describe_order, outcome_of, summary_of
from openmarkets_provider.query.arguments import is_literal

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow.providers.common.compat.sdk import Context

    from openmarkets_provider.client.orders import Orders
    from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
    from openmarkets_provider.order_entry.intent import Intent

__all__ = ["Approval", "OpenmarketsAmendOrderOperator", "OpenmarketsCancelOrderOperator", "OpenmarketsOrderOperator"]

WAIT_FOR = {None: "", "accepted": ACCEPTED, "done": FINAL}
ON_UNKNOWN = ("ask", "resend")
MAX_RUN_AGE = timedelta(minutes=15)
CANCEL_TIMEOUT = timedelta(minutes=5)
"""How long an order that was cancelled after ``cancel_after`` may take to end."""
_GRACE = timedelta(minutes=5)


class OrderOperator(BaseOperator):
    """What the operators have in common: the instruction, the journal, and how they fail.

    :param order: what a function of :mod:`openmarkets_provider.orders` returned. Templated.
    :param openmarkets_conn_id: id of a connection of type ``openmarkets``. Templated.
    :param kwargs: arguments of ``BaseOperator``.
    """

    template_fields: Sequence[str] = ("order", "openmarkets_conn_id")
    template_fields_renderers: ClassVar[dict[str, str]] = {"order": "json"}
    ui_color = "#fdeee8"
    action: ClassVar[str]

    def __init__(self, *, order: Instruction, openmarkets_conn_id: str = "openmarkets_default", **kwargs: Any) -> None:
        # A mapped task has the inlets that its DAG was parsed with. Airflow has no public name for this attribute.
        is_mapped = getattr(self, "_BaseOperator__from_mapped", False)
        super().__init__(**kwargs)
        self.order = order
        self.openmarkets_conn_id = openmarkets_conn_id
        # Airflow before 3.3 has no retry policies.
        if hasattr(self, "retry_policy") and self.retry_policy is None:
            from openmarkets_provider.policies.retry import OpenmarketsRetryPolicy

            self.retry_policy = OpenmarketsRetryPolicy()
        if not is_literal(order):
            return
        check(order)
        if action_of(order) != self.action:
            raise OpenmarketsOrderError(
                f"order: {type(self).__name__} takes what orders.{_MAKERS[self.action]} returns, not an instruction to "
                f"{action_of(order)}."
            )
        account = order["account"]
        if not is_mapped and is_literal(account) and not self._assets():
            self.inlets = [
                *self.inlets,
                Asset(name=f"openmarkets_orders_{account}", uri=f"openmarkets://orders/{account}"),
            ]

    def _assets(self) -> list[Any]:
        return [each for each in (*self.inlets, *self.outlets) if isinstance(each, Asset)]

    def execute(self, context: Context) -> Any:
        """Carry the instruction out."""
        return self._run(lambda hook: self.carry_out(hook, context))

    @abstractmethod
    def carry_out(self, hook: OpenmarketsHook, context: Context) -> Any:
        """Do the work and return the task's XCom. It may run twice: see :meth:`OpenmarketsHook.retry_on_rotation`."""

    def _run(self, work: Callable[[OpenmarketsHook], Any]) -> Any:
        from airflow.providers.common.compat.sdk import AirflowFailException

        from openmarkets_provider.hooks.openmarkets import OpenmarketsHook

        hook = OpenmarketsHook(self.openmarkets_conn_id)
        try:
            return hook.retry_on_rotation(lambda: work(hook))
        except OpenmarketsError as error:
            if error.transient:
                raise
            raise AirflowFailException(str(error)) from without_frames(error)
        finally:
            hook.close()

    def _sender(self, hook: OpenmarketsHook, context: Context, limits: Limits = Limits()) -> Orders:  # noqa: B008
        """Return what sends orders, with the journal that this Airflow has."""
        from openmarkets_provider.client.journals import Journal, MemoryJournal
        from openmarkets_provider.hooks.journal import StateStoreJournal

        # Airflow's type of a context does not have them in every version.
        stores: Any = context
        task_store, assets = stores.get("task_state_store"), self._assets()
        journal: Journal = MemoryJournal()
        if task_store is not None:
            own = [stores["asset_state_store"][assets[0]]] if assets and "asset_state_store" in stores else []
            journal = StateStoreJournal(task_store, *own)
        return hook.orders.with_journal(journal, limits=limits)


class OpenmarketsOrderOperator(OrderOperator):
    """Places an order, once.

    Retries, clears, killed workers and a second scheduler place no second order: the intent is stored before the order
    is sent, in the state stores of the task and of the account's asset (Airflow 3.3 and later), and the order carries a
    tag in its notes by which it is found again. When it can't be known whether the order was placed, the task fails and
    says so. ``docs/howto/orders.md`` has what is and what is not guaranteed.

    The task returns ``order_number``, ``tag``, ``account`` and ``found`` (an earlier try had placed it); with
    ``wait_for`` also ``outcome`` (``working``, ``filled``, ``partly_filled``, ``cancelled``, ``expired``), volumes, and
    prices in dollars. An order that is rejected fails the task.

    :param order: what ``orders.limit`` or ``orders.market`` returned. Templated.
    :param openmarkets_conn_id: id of a connection of type ``openmarkets`` whose field *Orders* allows them. Templated.
    :param wait_for: None, ``accepted`` or ``done``.
    :param poke_interval: seconds between two looks while the task waits.
    :param timeout: how long it waits; then it fails, and the order stays as it is. At most 3 days: the list of orders
        goes no further back.
    :param cancel_after: cancel the order when it is not done by then; with ``wait_for="done"``.
    :param deferrable: wait in the triggerer. None is Airflow's ``[operators] default_deferrable``.
    :param max_value: most that volume x price may be, in dollars: a Decimal or a text. Templated.
    :param price_collar: how far the price may be from the last one, as a fraction: ``"0.02"`` is 2 %. Checked right
        before the send. Templated.
    :param max_quote_age: how old the quote for that may be.
    :param reduce_only: sell no more than the account holds, and buy no more than it is short.
    :param approval: who has to approve the order.
    :param on_unknown: ``ask`` fails the task when an earlier attempt is lost; ``resend`` sends the order again when
        the list of orders would have had it. Where the list does not return tags, the task fails in both cases.
    :param dry_run: do all but the send, and return what would be sent.
    :param generation: raise it to place the same order once more by the same task and run.
    :param max_run_age: refuse to place an order for a run that was due longer ago: of a backfill, of catch-up, or of an
        old run that was cleared. None allows it.
    :param kwargs: arguments of ``BaseOperator``.
    :raises OpenmarketsOrderError: when the DAG is parsed: a literal argument of the order is malformed.
    :raises ValueError: when the DAG is parsed: another argument is.
    """

    template_fields: Sequence[str] = (*OrderOperator.template_fields, "max_value", "price_collar")
    action: ClassVar[str] = "place"

    def __init__(
        self,
        *,
        order: Instruction,
        wait_for: str | None = None,
        poke_interval: float = 15.0,
        timeout: timedelta = timedelta(hours=12),
        cancel_after: timedelta | None = None,
        deferrable: bool | None = None,
        max_value: Decimal | str | None = None,
        price_collar: Decimal | str | None = None,
        max_quote_age: timedelta = timedelta(minutes=5),
        reduce_only: bool = False,
        approval: Approval | None = None,
        on_unknown: str = ON_UNKNOWN[0],
        dry_run: bool = False,
        generation: int = 1,
        max_run_age: timedelta | None = MAX_RUN_AGE,
        **kwargs: Any,
    ) -> None:
        if wait_for not in WAIT_FOR:
            raise ValueError(f"wait_for must be None, 'accepted' or 'done', not {wait_for!r}.")
        if on_unknown not in ON_UNKNOWN:
            raise ValueError(f"on_unknown must be 'ask' or 'resend', not {on_unknown!r}.")
        if cancel_after is not None and wait_for != "done":
            raise ValueError("cancel_after goes with wait_for='done'.")
        super().__init__(order=order, **kwargs)
        self.wait_for = wait_for
        self.poke_interval = poke_interval
        self.timeout = timeout
        self.cancel_after = cancel_after
        self.deferrable = resolve_deferrable(deferrable)
        self.max_value = max_value
        self.price_collar = price_collar
        self.max_quote_age = max_quote_age
        self.reduce_only = reduce_only
        self.approval = approval
        self.on_unknown = on_unknown
        self.is_dry_run = dry_run
        self.generation = generation
        self.max_run_age = max_run_age

    def carry_out(self, hook: OpenmarketsHook, context: Context) -> Any:
        """Place the order, or ask for its approval first."""
        sender, intent = self._placing(hook, context)
        if self.is_dry_run:
            preview = sender.preview(self.order, intent)
            self.log.info("Dry run: nothing is sent. %s", preview)
            return preview
        wanted = sender.intend(self.order, intent)
        stored = sender.load(wanted.tag)
        self._require_no_clear(stored, context)
        if stored is None:
            self._require_recent(context)
        if self.approval is not None and (
            stored is None or (stored.is_unsent and (stored.approved_by is None or stored.epoch != _epoch(context)))
        ):
            ask(self.approval, sender.preview(self.order, intent), context)
        return self._place(sender, intent, context)

    def execute_complete(self, context: Context, event: Any = None) -> Any:
        """Place the order when somebody has approved it."""
        if self.approval is None or not isinstance(event, dict):
            raise ValueError(f"The operator got an event that it doesn't know: {event!r:.200}")
        approval = self.approval

        def place(hook: OpenmarketsHook) -> Any:
            sender, intent = self._placing(hook, context)
            wanted = sender.intend(self.order, intent)
            who, when = read_answer(approval, wanted.digest, event, context)
            self.log.info("%s approved the order at %s.", who, when)
            sender.approve(self.order, intent, approved_by=who, approved_at=when, epoch=_epoch(context))
            return self._place(sender, intent, context)

        return self._run(place)

    def execute_after_wait(self, context: Context, event: Any, placed: dict[str, Any], may_cancel: bool) -> Any:
        """Go on after a wait in the triggerer.

        :param placed: what the placement returned.
        :param may_cancel: the order is cancelled when it is not done yet.
        """
        match event:
            case {"status": "met"}:
                return self._run(lambda hook: self._finish(hook, placed))
            case {"status": "timeout"}:
                return self._run(lambda hook: self._give_up(hook, context, placed, may_cancel))
            case {"status": "error", "error": dict(data)}:
                error = from_dict(data)

                def fail(hook: OpenmarketsHook) -> Any:
                    raise error

                return self._run(fail)
        raise ValueError(f"The trigger sent an event that the operator doesn't know: {event!r:.200}")

    def _placing(self, hook: OpenmarketsHook, context: Context) -> tuple[Orders, list[Any]]:
        """Return what sends the order, and what identifies its intent."""
        limits = Limits(
            max_value=None if self.max_value is None else read_price("max_value", self.max_value),
            price_collar=None if self.price_collar is None else read_price("price_collar", self.price_collar),
            max_quote_age=self.max_quote_age.total_seconds(),
            reduce_only=self.reduce_only,
        )
        instance: Any = context["ti"]
        intent = [instance.dag_id, instance.run_id, instance.task_id, instance.map_index]
        # Airflow 3.4: each iteration of a loop has the same map index.
        loop: Any = context.get("loop")
        if loop is not None:
            intent.append(f"loop {loop.index}")
        if self.generation != 1:
            intent.append(f"generation {self.generation}")
        return self._sender(hook, context, limits), intent

    def _place(self, sender: Orders, intent: list[Any], context: Context) -> Any:
        placed = sender.place(
            self.order,
            intent=intent,
            on_unknown=self.on_unknown,
            may_have_sent=self._may_have_sent(context),
            epoch=_epoch(context),
        )
        self.log.info(
            "Order %s of account %s %s; tag %s.",
            placed["order_number"],
            placed["account"],
            "was found: an earlier try had placed it" if placed["found"] else "is placed",
            placed["tag"],
        )
        if self.wait_for is None:
            return placed
        return self._wait(placed, context, self.cancel_after or self.timeout, may_cancel=self.cancel_after is not None)

    def _may_have_sent(self, context: Context) -> bool:
        """Tell whether an earlier try may have sent the order of which no store would know."""
        instance: Any = context["ti"]
        if context.get("task_state_store") is None:
            return bool(instance.try_number > 1)
        # Airflow 3.4 discards the store of a task that is cleared, but not that of an asset.
        return not self._assets() and _epoch(context) > (self.retries or 0)

    def _require_no_clear(self, stored: Intent | None, context: Context) -> None:
        if stored is None or stored.number is None or stored.epoch in (None, _epoch(context)):
            return
        raise OpenmarketsOrderError(
            f"The task was cleared, and its order is placed already: number {stored.number}, tag {stored.tag}. Nothing "
            "was sent. To place the same order once more, raise generation by one and clear the task again."
        )

    def _require_recent(self, context: Context) -> None:
        dag_run: Any = context.get("dag_run")
        due = getattr(dag_run, "run_after", None) or context.get("data_interval_end")
        if self.max_run_age is None or due is None:
            return
        if (age := datetime.now(UTC) - due) > self.max_run_age:
            raise OpenmarketsOrderError(
                f"The run was due {age.total_seconds() / 60:.0f} minutes ago, and max_run_age is "
                f"{self.max_run_age.total_seconds() / 60:.0f}: is it a backfill, or was it cleared? Nothing was sent. "
                "With max_run_age=None the order is placed whatever its run's age."
            )

    # --- the wait

    def _query(self, account: str) -> queries.Query:
        # The same for all orders of an account, whose tasks then share their polls.
        return queries.orders(account, include_child_orders=False, on_missing_multiplier="cents")

    def _wait(self, placed: dict[str, Any], context: Context, timeout: timedelta, *, may_cancel: bool) -> Any:
        from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
        from openmarkets_provider.triggers.openmarkets import OpenmarketsConditionTrigger

        condition = f"[?order_number == '{placed['order_number']}' && {WAIT_FOR[self.wait_for]}] | [0]"
        deadline = time.time() + timeout.total_seconds()
        if self.deferrable:
            self.defer(
                trigger=OpenmarketsConditionTrigger(
                    openmarkets_conn_id=self.openmarkets_conn_id,
                    query=self._query(placed["account"]),
                    condition=condition,
                    poke_interval=self.poke_interval,
                    deadline=deadline,
                    max_failures=None,
                    max_xcom_bytes=None,
                    resume=True,
                ),
                method_name="execute_after_wait",
                kwargs={"placed": placed, "may_cancel": may_cancel},
                timeout=timeout + _GRACE,
            )
        from openmarkets_provider.conditions import evaluate

        hook = OpenmarketsHook(self.openmarkets_conn_id)
        while time.time() < deadline:
            try:
                if evaluate(condition, hook.run(self._query(placed["account"]))):
                    return self._finish(hook, placed)
            except OpenmarketsError as error:
                if not error.transient:
                    raise
                self.log.warning("%s Looking again.", error)
            time.sleep(min(self.poke_interval, max(0.0, deadline - time.time())))
        return self._give_up(hook, context, placed, may_cancel)

    def _finish(self, hook: OpenmarketsHook, placed: dict[str, Any]) -> dict[str, Any]:
        row = self._find(hook, placed)
        if row is None:
            raise OpenmarketsError(f"Order {placed['order_number']} is not in the list of orders.", transient=True)
        if outcome_of(row) == "rejected":
            raise OpenmarketsOrderError(f"The order was rejected: {describe_order(row)}.")
        self.log.info("The order: %s.", describe_order(row))
        return {**placed, **summary_of(row)}

    def _give_up(self, hook: OpenmarketsHook, context: Context, placed: dict[str, Any], may_cancel: bool) -> Any:
        from openmarkets_provider import orders

        if not may_cancel:
            row = self._find(hook, placed)
            raise OpenmarketsOrderError(
                f"The wait is over, and the order stays as it is: "
                f"{'not listed' if row is None else describe_order(row)}. Its number is {placed['order_number']}."
            )
        cancelled = hook.orders.cancel(orders.cancel(placed["order_number"], account=placed["account"]))
        self.log.info("cancel_after: the order was cancelled: %s.", cancelled["outcome"])
        if cancelled["outcome"] in ("working", "pending"):
            return self._wait(placed, context, CANCEL_TIMEOUT, may_cancel=False)
        return {**placed, **cancelled}

    def _find(self, hook: OpenmarketsHook, placed: dict[str, Any]) -> dict[str, Any] | None:
        rows = hook.run(self._query(placed["account"]))
        return next((row for row in rows if row["order_number"] == placed["order_number"]), None)


class OpenmarketsAmendOrderOperator(OrderOperator):
    """Amends an order, once. Returns the order as the list has it then: ``outcome``, volumes, prices in dollars.

    A later try compares the order with what it was before and what it should be: it sends nothing when the order is
    amended, sends again when nothing has changed, and fails when somebody else changed the order.

    :param order: what ``orders.amend`` returned. Templated.
    :param openmarkets_conn_id: id of a connection of type ``openmarkets``. Templated.
    :param max_value: most that volume x price may be then, in dollars. Templated.
    :param kwargs: arguments of ``BaseOperator``.
    """

    template_fields: Sequence[str] = (*OrderOperator.template_fields, "max_value")
    action: ClassVar[str] = "amend"

    def __init__(self, *, order: Instruction, max_value: Decimal | str | None = None, **kwargs: Any) -> None:
        super().__init__(order=order, **kwargs)
        self.max_value = max_value

    def carry_out(self, hook: OpenmarketsHook, context: Context) -> dict[str, Any]:
        """Amend the order."""
        limits = Limits(max_value=None if self.max_value is None else read_price("max_value", self.max_value))
        instance: Any = context["ti"]
        intent = [instance.dag_id, instance.run_id, instance.task_id, instance.map_index, _epoch(context)]
        return self._sender(hook, context, limits).amend(self.order, intent=intent)


class OpenmarketsCancelOrderOperator(OrderOperator):
    """Cancels an order, unless it is finished. Returns the order as the list has it then.

    An order that was filled first is an outcome, and no error: look at ``outcome`` and ``done_volume_total``.

    :param order: what ``orders.cancel`` returned. Templated.
    :param openmarkets_conn_id: id of a connection of type ``openmarkets``. Templated.
    :param kwargs: arguments of ``BaseOperator``.
    """

    action: ClassVar[str] = "cancel"

    def carry_out(self, hook: OpenmarketsHook, context: Context) -> dict[str, Any]:
        """Cancel the order."""
        return hook.orders.cancel(self.order)


_MAKERS = {"place": "limit or orders.market", "amend": "amend", "cancel": "cancel"}


def _epoch(context: Context) -> int:
    """Return what changes when a task is cleared, and not when it is retried."""
    return int(getattr(context["ti"], "max_tries", 0))
