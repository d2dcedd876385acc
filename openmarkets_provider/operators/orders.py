"""Operators that place, amend and cancel orders."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from openmarkets_provider import orders
from openmarkets_provider._airflow import airflow_version, resolve_deferrable
from openmarkets_provider.exceptions import (
    OpenmarketsError,
    OpenmarketsOrderError,
    OpenmarketsOrderUnknown,
    from_dict,
)
from openmarkets_provider.operators import _questions as questions
from openmarkets_provider.operators._order_base import OrderOperator, epoch_of
from openmarkets_provider.operators._questions import Approval
from openmarkets_provider.order_entry.guards import CASH_COLUMNS, Limits
from openmarkets_provider.order_entry.instruction import Instruction, read_price
from openmarkets_provider.order_entry.outcome import WAIT_FOR, condition_of, describe_order, outcome_of, summary_of

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from openmarkets_provider.client.orders import Orders
    from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
    from openmarkets_provider.order_entry.intent import Intent

__all__ = ["Approval", "OpenmarketsAmendOrderOperator", "OpenmarketsCancelOrderOperator", "OpenmarketsOrderOperator"]

ON_UNKNOWN = ("ask", "resend")
PEOPLE_ASKED_SINCE = (3, 1)
"""The first Airflow with human-in-the-loop."""
MAX_RUN_AGE = timedelta(minutes=15)
CANCEL_TIMEOUT = timedelta(minutes=5)
"""How long an order that was cancelled after ``cancel_after`` may take to end."""
_GRACE = timedelta(minutes=5)


class OpenmarketsOrderOperator(OrderOperator):
    """Places an order, once.

    Retries, clears, killed workers and a second scheduler place no second order. The intent is stored before the order
    is sent: in the state stores of the task and of the account's asset (Airflow 3.3 and later). A tag begins its
    notes, by which it is found again. When it can't be known whether the order was placed, the task says so and asks.
    The guide on orders has what is and what is not guaranteed.

    The task returns ``order_number``, ``tag``, ``account`` and ``found`` (an earlier try had placed it); with
    ``wait_for`` also ``outcome`` (``working``, ``filled``, ``partly_filled``, ``cancelled``, ``expired``), volumes, and
    prices in dollars. An order that is rejected fails the task.

    :param order: what ``orders.limit`` or ``orders.market`` returned. Templated.
    :param openmarkets_conn_id: id of a connection of type ``openmarkets`` whose field *Orders* allows them. Templated.
    :param wait_for: None, ``accepted`` or ``done``.
    :param poke_interval: seconds between two looks while the task waits.
    :param timeout: how long it waits for the order, or for an answer about an unknown one; then it fails, and the order
        stays as it is. At most 3 days: the list of orders goes no further back.
    :param cancel_after: cancel the order when it is not done by then; with ``wait_for="done"``.
    :param deferrable: wait in the triggerer. None is Airflow's ``[operators] default_deferrable``.
    :param max_value: most that volume x price may be, in dollars: a Decimal or a string. Templated.
    :param price_collar: how far the price may be from the last one, as a fraction: ``"0.02"`` is 2 %. Checked right
        before the send. Templated.
    :param max_quote_age: how old the quote for that may be.
    :param reduce_only: sell no more than the account holds, and buy no more than it is short.
    :param check_cash: column of ``queries.cash`` that a purchase must not exceed, before fees: ``cash_balance``,
        ``net_cash`` or ``free_equity``. Where the account has several balances, the largest counts.
    :param trading_statuses: what the quote's ``trading_status`` may be; empty for any.
    :param approval: who has to approve the order (Airflow 3.1 and later).
    :param on_unknown: what to do when it is not known whether an earlier attempt placed the order. ``ask`` waits until
        a person says so; a task with an approval, and every task before Airflow 3.1, fails instead. ``resend`` sends
        the order again, once, when the list of orders would have had it. Where the list does not return tags, it is as
        ``ask``.
    :param notifiers: of Airflow, such as one that sends a mail: called when the task begins to wait for a person.
    :param cancel_on_kill: cancel the order when the task is killed while it waits for it: cleared, marked as failed or
        succeeded, or timed out. A deferred task does so on Airflow 3.3 and later.
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
        check_cash: str | None = None,
        trading_statuses: Sequence[str] = (),
        approval: Approval | None = None,
        on_unknown: str = ON_UNKNOWN[0],
        notifiers: Sequence[Any] = (),
        cancel_on_kill: bool = False,
        dry_run: bool = False,
        generation: int = 1,
        max_run_age: timedelta | None = MAX_RUN_AGE,
        **kwargs: Any,
    ) -> None:
        if wait_for not in (None, *WAIT_FOR):
            raise ValueError(f"wait_for must be None, 'accepted' or 'done', not {wait_for!r}.")
        if on_unknown not in ON_UNKNOWN:
            raise ValueError(f"on_unknown must be 'ask' or 'resend', not {on_unknown!r}.")
        if cancel_after is not None and wait_for != "done":
            raise ValueError("cancel_after goes with wait_for='done'.")
        if check_cash not in (None, *CASH_COLUMNS):
            raise ValueError(f"check_cash must be None or one of {', '.join(CASH_COLUMNS)}, not {check_cash!r}.")
        if approval is not None and airflow_version() < PEOPLE_ASKED_SINCE:
            raise ValueError("approval needs Airflow 3.1 or later.")
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
        self.check_cash = check_cash
        self.trading_statuses = tuple(trading_statuses)
        self.approval = approval
        self.on_unknown = on_unknown
        self.notifiers = notifiers
        self.cancel_on_kill = cancel_on_kill
        self.is_dry_run = dry_run
        self.generation = generation
        self.max_run_age = max_run_age
        self._cancellation: Instruction | None = None

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
            stored is None or (stored.is_unsent and (stored.approved_by is None or stored.epoch != epoch_of(context)))
        ):
            question = questions.approval_question(self.approval, sender.preview(self.order, intent))
            self.ask(question, context)
        try:
            return self._place(sender, intent, context)
        except OpenmarketsOrderUnknown as error:
            stored = sender.load(wanted.tag) or wanted
            if self.approval is not None or stored.resolved_by is not None or airflow_version() < PEOPLE_ASKED_SINCE:
                raise
            self.log.error("%s", error)  # noqa: TRY400 - the traceback says nothing more
            self.ask(questions.outcome_question(error, stored, self.timeout), context)

    def ask(self, question: questions.Question, context: Context) -> NoReturn:
        """Park the task until somebody answers."""
        questions.ask(question, self.notifiers, context)

    def execute_complete(self, context: Context, event: Any = None) -> Any:
        """Go on when somebody has answered, or nobody in time."""
        if not isinstance(event, dict):
            raise ValueError(f"The operator got an event that it doesn't know: {event!r:.200}")
        answer = questions.read(event)

        def go_on(hook: OpenmarketsHook) -> Any:
            sender, intent = self._placing(hook, context)
            wanted = sender.intend(self.order, intent)
            if self.approval is not None:
                questions.require_approval(self.approval, wanted.digest, answer, context)
                self.log.info("%s approved the order at %s.", answer.who, answer.at)
                sender.approve(
                    self.order, intent, approved_by=answer.who, approved_at=answer.at, epoch=epoch_of(context)
                )
            else:
                self._resolve(sender, intent, sender.load(wanted.tag) or wanted, answer)
            return self._place(sender, intent, context)

        return self.run_with_hook(go_on)

    def _resolve(self, sender: Orders, intent: list[Any], stored: Intent, answer: questions.Answer) -> None:
        """Store the answer, if it says whether the order was placed."""
        if stored.resolved_at == answer.at:
            return  # See carry_out: this may run twice.
        option, number = answer.option or questions.LEAVE, None
        self.log.info("The order with the unknown outcome: %s.", answer.error or f"{answer.who} answered {option!r}")
        if option.startswith(questions.IDENTIFY):
            number = option.removeprefix(questions.IDENTIFY)
        elif option != questions.resend_option(stored):
            return
        sender.resolve(self.order, intent, number=number, by=answer.who, at=answer.at)

    def execute_after_wait(self, context: Context, event: Any, placed: dict[str, Any], may_cancel: bool) -> Any:
        """Go on after a wait in the triggerer.

        :param placed: what the placement returned.
        :param may_cancel: the order is cancelled when it is not done yet.
        """
        match event:
            case {"status": "met"}:
                return self.run_with_hook(lambda hook: self._finish(hook, placed))
            case {"status": "timeout"}:
                return self.run_with_hook(lambda hook: self._give_up(hook, context, placed, may_cancel))
            case {"status": "error", "error": dict(data)}:
                error = from_dict(data)

                def fail(hook: OpenmarketsHook) -> Any:
                    raise error

                return self.run_with_hook(fail)
        raise ValueError(f"The trigger sent an event that the operator doesn't know: {event!r:.200}")

    def _placing(self, hook: OpenmarketsHook, context: Context) -> tuple[Orders, list[Any]]:
        """Return what sends the order, and what identifies its intent."""
        limits = Limits(
            max_value=None if self.max_value is None else read_price("max_value", self.max_value),
            price_collar=None if self.price_collar is None else read_price("price_collar", self.price_collar),
            max_quote_age=self.max_quote_age.total_seconds(),
            reduce_only=self.reduce_only,
            check_cash=self.check_cash,
            trading_statuses=self.trading_statuses,
        )
        instance: Any = context["ti"]
        intent = [instance.dag_id, instance.run_id, instance.task_id, instance.map_index]
        # Airflow 3.4: each iteration of a loop has the same map index.
        loop: Any = context.get("loop")
        if loop is not None:
            intent.append(f"loop {loop.index}")
        if self.generation != 1:
            intent.append(f"generation {self.generation}")
        return self.sender(hook, context, limits), intent

    def _place(self, sender: Orders, intent: list[Any], context: Context) -> Any:
        placed = sender.place(
            self.order,
            intent=intent,
            on_unknown=self.on_unknown,
            may_have_sent=self._may_have_sent(context),
            epoch=epoch_of(context),
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
        return not self.list_assets() and epoch_of(context) > (self.retries or 0)

    def _require_no_clear(self, stored: Intent | None, context: Context) -> None:
        if stored is None or stored.number is None or stored.epoch in (None, epoch_of(context)):
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
                "Set max_run_age=None to place the order anyway."
            )

    # --- the wait

    def _wait(self, placed: dict[str, Any], context: Context, timeout: timedelta, *, may_cancel: bool) -> Any:
        from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
        from openmarkets_provider.triggers.orders import OpenmarketsOrderTrigger

        account, number, wait_for = placed["account"], placed["order_number"], str(self.wait_for)
        deadline = time.time() + timeout.total_seconds()
        if self.deferrable:
            self.defer(
                trigger=OpenmarketsOrderTrigger(
                    openmarkets_conn_id=self.openmarkets_conn_id,
                    account=account,
                    order_number=number,
                    wait_for=wait_for,
                    poke_interval=self.poke_interval,
                    deadline=deadline,
                    cancel_on_kill=self.cancel_on_kill,
                ),
                method_name="execute_after_wait",
                kwargs={"placed": placed, "may_cancel": may_cancel},
                timeout=timeout + _GRACE,
            )
        from openmarkets_provider.conditions import evaluate

        self._cancellation = orders.cancel(number, account=account)
        hook = OpenmarketsHook(self.openmarkets_conn_id)
        while time.time() < deadline:
            try:
                if evaluate(condition_of(number, wait_for), hook.run(OpenmarketsOrderTrigger.query_of(account))):
                    return self._finish(hook, placed)
            except OpenmarketsError as error:
                if not error.transient:
                    raise
                self.log.warning("%s Looking again.", error)
            time.sleep(min(self.poke_interval, max(0.0, deadline - time.time())))
        return self._give_up(hook, context, placed, may_cancel)

    def on_kill(self) -> None:
        """Cancel the order that the task waits for, with ``cancel_on_kill``."""
        from openmarkets_provider.hooks.openmarkets import OpenmarketsHook

        if not self.cancel_on_kill or self._cancellation is None:
            return
        # The signal may have come in the middle of a request of another hook.
        hook = OpenmarketsHook(self.openmarkets_conn_id)
        try:
            self.log.info("The task was killed. Its order: %s.", hook.orders.cancel(self._cancellation)["outcome"])
        finally:
            hook.close()

    def _finish(self, hook: OpenmarketsHook, placed: dict[str, Any]) -> dict[str, Any]:
        row = self._find(hook, placed)
        if row is None:
            raise OpenmarketsError(f"Order {placed['order_number']} is not in the list of orders.", transient=True)
        if outcome_of(row) == "rejected":
            raise OpenmarketsOrderError(f"The order was rejected: {describe_order(row)}.")
        self.log.info("The order: %s.", describe_order(row))
        return {**placed, **summary_of(row)}

    def _give_up(self, hook: OpenmarketsHook, context: Context, placed: dict[str, Any], may_cancel: bool) -> Any:
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
        from openmarkets_provider.triggers.orders import OpenmarketsOrderTrigger

        rows = hook.run(OpenmarketsOrderTrigger.query_of(placed["account"]))
        return next((row for row in rows if row["order_number"] == placed["order_number"]), None)


class OpenmarketsAmendOrderOperator(OrderOperator):
    """Amends an order, once. Returns the order as the list has it then: ``outcome``, volumes, prices in dollars.

    A later try compares the order with what it was and what it should be. It sends nothing when the order is amended,
    and sends again when nothing has changed. It fails when somebody else changed the order.

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
        intent = [instance.dag_id, instance.run_id, instance.task_id, instance.map_index, epoch_of(context)]
        return self.sender(hook, context, limits).amend(self.order, intent=intent)


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
