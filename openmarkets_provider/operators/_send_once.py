"""Prevents a task's tries from sending a call twice that is not safe to repeat.

Airflow may run a task again after ``execute`` has succeeded, for example if an XCom push fails or a worker is killed.
So a mark is stored before the call is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from openmarkets_provider.exceptions import OpenmarketsError

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

KEY = "openmarkets_sent"
"""Key in the task state store, which each instance of a mapped task has. Its value is the time of the send."""

T = TypeVar("T")


@contextmanager
def send_once(call: str, context: Context) -> Iterator[None]:
    """Run the block, which sends a call, unless an earlier try of the task may have sent it.

    The mark is removed if the block raises an error that says the call was not sent. Airflow before 3.3 can't store the
    mark, so only the first try of a task sends.

    :param call: the name of the call, for error messages.
    :raises AirflowFailException: an earlier try may have sent the call.
    :raises OpenmarketsError: transient: the mark can't be stored, and nothing was sent.
    """
    store = context.get("task_state_store")
    if store is None:
        _refuse_second_try(call, context)
        yield
        return
    _refuse_second_send(call, _access(call, lambda: store.get(KEY)))
    _access(call, lambda: _set_forever(store, f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"))
    try:
        yield
    except OpenmarketsError as error:
        if not error.sent:
            store.delete(KEY)
        raise


def _set_forever(store: Any, value: str) -> None:
    # Missing in the stubs of Airflow 3.3.
    from airflow.sdk import NEVER_EXPIRE  # type: ignore[attr-defined]

    store.set(KEY, value, retention=NEVER_EXPIRE)


def _access(call: str, access: Callable[[], T]) -> T:
    try:
        return access()
    except Exception as error:
        # An error of Airflow or of a custom state backend.
        raise OpenmarketsError(
            f"{call}: not sent: Airflow's task state store failed, which must record the call first: {error}",
            transient=True,
        ) from error


def _refuse_second_send(call: str, sent_at: Any) -> None:
    if sent_at is None:
        return
    from airflow.providers.common.compat.sdk import AirflowFailException

    raise AirflowFailException(
        f"{call}: not sent again. The call is not safe to repeat, and an earlier try of this task may have sent "
        f"it at {sent_at}. Check at Openmarkets whether it was carried out. To send it again, start a new run of "
        "the DAG."
    )


def _refuse_second_try(call: str, context: Context) -> None:
    task_instance = context.get("ti")
    if task_instance is None or task_instance.try_number <= 1:
        return
    from airflow.providers.common.compat.sdk import AirflowFailException

    raise AirflowFailException(
        f"{call}: not sent. The call is not safe to repeat, this is try {task_instance.try_number} of the task, "
        "and an earlier try may have sent it (Airflow before 3.3 does not record that). Check at Openmarkets "
        "whether it was carried out. To send it, start a new run of the DAG."
    )
