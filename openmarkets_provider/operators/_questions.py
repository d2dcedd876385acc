"""What a task asks a person about its order, with Airflow's human-in-the-loop: in the task that sends the order.

Each option that sends an order carries the digest of its terms: an answer to other terms does not count. Airflow 3.1 to
3.3 keeps the first question of a task instance, so a task asks either for an approval or for an outcome.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from openmarkets_provider.exceptions import OpenmarketsOrderUnknown
    from openmarkets_provider.order_entry.intent import Intent

REJECT = "Reject"
LEAVE = "Send nothing"
IDENTIFY = "It is order "
MAX_CANDIDATES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """Who has to approve an order, and for how long it waits. Needs Airflow 3.1 or later.

    :param users: ids of the users who may answer, as Airflow's auth manager has them; empty for all who see the DAG.
    :param four_eyes: not the user who triggered the run.
    :param timeout: after this the task fails, and nothing was sent.
    """

    users: Sequence[str] = ()
    four_eyes: bool = False
    timeout: timedelta = timedelta(hours=1)


class Question(NamedTuple):
    """A question as the page of required actions shows it.

    :ivar body: Markdown.
    """

    subject: str
    body: str
    options: list[str]
    timeout: timedelta
    users: Sequence[str] = ()


class Answer(NamedTuple):
    """An answer.

    :ivar option: None: there is none, because of ``error``.
    :ivar at: ISO 8601 text.
    """

    option: str | None
    error: str | None
    user_id: str | None
    user_name: str | None
    at: str

    @property
    def who(self) -> str | None:
        """Return the person's name, or their id."""
        return self.user_name or self.user_id


def ask(question: Question, notifiers: Sequence[Any], context: Context) -> NoReturn:
    """Show a question, and park the task until somebody answers. The task goes on in ``execute_complete``.

    :param notifiers: of Airflow; called when the question is asked.
    """
    from airflow.providers.standard.operators.hitl import HITLOperator

    users: Any = [{"id": user, "name": user} for user in question.users]
    HITLOperator(
        task_id="question",
        subject=question.subject,
        body=question.body,
        options=question.options,
        assigned_users=users or None,
        response_timeout=question.timeout,
        notifiers=notifiers,
    ).execute(context)
    raise AssertionError


def read(event: Mapping[str, Any]) -> Answer:
    """Read what Airflow passes to a task that goes on after a question."""
    user = event.get("responded_by_user") or {}
    # After a time-out Airflow may send the event of an answer, but without a user.
    options = event.get("chosen_options") if user and "error" not in event else None
    error = None if options else str(event.get("error") or "nobody answered in time")
    return Answer(
        options[0] if options else None, error, user.get("id"), user.get("name"), str(event.get("responded_at"))
    )


# --- an approval


def approval_question(approval: Approval, preview: Mapping[str, Any]) -> Question:
    """Return the question whether an order may be sent.

    :param preview: as :meth:`openmarkets_provider.client.orders.Orders.preview` returns it.
    """
    collar = preview["collar"]
    rows = {
        "Account": preview["account"],
        "Security": preview["security"],
        "Side": preview["side"],
        "Volume": preview["volume"],
        "Price (dollars)": _amount(preview["price"], "market"),
        "Price (native units)": _amount(preview["native_price"], "market"),
        "Value (dollars)": _amount(preview["value"]),
        "Last price (dollars)": _amount(preview["last_price"]),
        "Trading status": preview["trading_status"] or "not known",
        "Collar (dollars)": "none" if collar is None else " to ".join(map(_amount, collar)),
        "Tag": preview["tag"],
        "Terms": preview["digest"][:8],
    }
    subject = f"{preview['side']} {preview['volume']} {preview['security']} for account {preview['account']}?"
    options = [approve_option(preview["digest"]), REJECT]
    return Question(subject, _table(rows.items()), options, approval.timeout, approval.users)


def approve_option(digest: str) -> str:
    """Return the option that approves the order with a digest."""
    return f"Approve {digest[:8]}"


def require_approval(approval: Approval, digest: str, answer: Answer, context: Context) -> None:
    """Check that an answer approves an order.

    :param digest: of the order's terms now.
    :raises AirflowSkipException: somebody rejected it.
    :raises AirflowFailException: nobody answered in time, or the answer does not count.
    """
    from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException

    if answer.option is None:
        raise AirflowFailException(f"The order was not approved: {answer.error}.")
    if answer.option == REJECT:
        raise AirflowSkipException(f"{answer.who} rejected the order; nothing was sent.")
    if answer.option != approve_option(digest):
        raise AirflowFailException(
            f"{answer.who} approved other terms ({answer.option}) than the order has now; nothing was sent."
        )
    if approval.users and not {answer.user_id, answer.user_name} & set(approval.users):
        raise AirflowFailException(f"{answer.who} is not among the users who may approve the order; nothing was sent.")
    dag_run: Any = context.get("dag_run")
    author = getattr(dag_run, "triggering_user_name", None)
    if approval.four_eyes and author in (answer.user_name, answer.user_id):
        raise AirflowFailException(
            f"{answer.who} triggered the run, and somebody else has to approve; nothing was sent."
        )


# --- an outcome


def outcome_question(error: OpenmarketsOrderUnknown, intent: Intent, timeout: timedelta) -> Question:
    """Return the question whether an order with an unknown outcome was placed.

    :param intent: what is stored of it.
    """
    candidates, terms = error.candidates[:MAX_CANDIDATES], intent.terms
    lead = "The order was sent, or may have been, and its outcome is not known. "
    if error.absent:
        lead += "The list of orders has the tags of other orders, and not this one: most likely it was not placed. "
    rows = {
        "Account": terms["account"],
        "Security": terms["security"],
        "Side": terms["side"],
        "Volume": terms["volume"],
        "Price (dollars)": terms["price"] or "market",
        "Tag": intent.tag,
    }
    alike = {f"It may be order {each['order_number']}": _describe(each) for each in candidates}
    return Question(
        subject=f"Was order {intent.tag} of account {error.account} placed?",
        body=f"{lead}Look for it at Openmarkets; its notes begin with the tag.\n\n{_table((rows | alike).items())}",
        options=[*(f"{IDENTIFY}{each['order_number']}" for each in candidates), resend_option(intent), LEAVE],
        timeout=timeout,
    )


def resend_option(intent: Intent) -> str:
    """Return the option that sends an order again after its last attempt."""
    return f"Not placed: send it ({intent.digest[:8]}-{intent.attempt})"


def _describe(order: Mapping[str, Any]) -> str:
    return f"{order['side']} {order['order_volume']} {order['security_code']}, {order['outcome']}"


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _amount(value: Decimal | None, other: str = "not known") -> str:
    return other if value is None else f"{value:,f}"
