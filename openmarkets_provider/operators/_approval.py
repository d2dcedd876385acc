"""A person approves an order: Airflow's own human-in-the-loop, in the task that sends the order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

REJECT = "Reject"


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


def ask(approval: Approval, preview: Mapping[str, Any], context: Context) -> None:
    """Show the order on the page of required actions, and park the task until somebody answers.

    The task goes on in its method ``execute_complete``. This does not return.

    :param preview: as :meth:`openmarkets_provider.client.orders.Orders.preview` returns it.
    """
    from airflow.providers.standard.operators.hitl import HITLOperator

    users: Any = [{"id": user, "name": user} for user in approval.users]
    subject = f"{preview['side']} {preview['volume']} {preview['security']} for account {preview['account']}?"
    HITLOperator(
        task_id="approval",
        subject=subject,
        body=describe(preview),
        options=[approve_option(preview["digest"]), REJECT],
        assigned_users=users or None,
        response_timeout=approval.timeout,
    ).execute(context)


def approve_option(digest: str) -> str:
    """Return the option that approves the order with a digest: an answer to other terms is none to these."""
    return f"Approve {digest[:8]}"


def describe(preview: Mapping[str, Any]) -> str:
    """Return an order as a table in Markdown."""
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
        "Collar (dollars)": "none" if collar is None else " to ".join(map(_amount, collar)),
        "Tag": preview["tag"],
        "Terms": preview["digest"][:8],
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def read_answer(approval: Approval, digest: str, event: Mapping[str, Any], context: Context) -> tuple[str, str]:
    """Return who approved the order, and when.

    :param digest: of the order's terms now.
    :param event: what Airflow passes to the task that goes on.
    :raises AirflowSkipException: somebody rejected it.
    :raises AirflowFailException: nobody answered in time, or the answer does not count.
    """
    from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException

    user = event.get("responded_by_user") or {}
    who = user.get("name") or user.get("id")
    if "error" in event or not who:
        raise AirflowFailException(f"The order was not approved: {event.get('error') or 'nobody answered in time'}.")
    if event.get("chosen_options") == [REJECT]:
        raise AirflowSkipException(f"{who} rejected the order; nothing was sent.")
    if event.get("chosen_options") != [approve_option(digest)]:
        raise AirflowFailException(
            f"{who} approved other terms ({event.get('chosen_options')}) than the order has now; nothing was sent."
        )
    if approval.users and not {user.get("id"), user.get("name")} & set(approval.users):
        raise AirflowFailException(f"{who} is not among the users who may approve the order; nothing was sent.")
    dag_run: Any = context.get("dag_run")
    author = getattr(dag_run, "triggering_user_name", None)
    if approval.four_eyes and author in (user.get("name"), user.get("id")):
        raise AirflowFailException(f"{who} triggered the run, and somebody else has to approve; nothing was sent.")
    return who, str(event.get("responded_at"))


def _amount(value: Decimal | None, other: str = "not known") -> str:
    return other if value is None else f"{value:,f}"
