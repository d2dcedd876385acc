"""The operator: a task that runs one query."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from openmarkets_provider.operators._send_once import send_once
from openmarkets_provider.operators.base import QueryOperator
from openmarkets_provider.query.query import is_repeatable, name_of
from openmarkets_provider.xcom import DEFAULT_MAX_XCOM_BYTES, ensure_fits_xcom

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
    from openmarkets_provider.queries import Query


class OpenmarketsOperator(QueryOperator):
    """Runs a query and returns its result as XCom. Rows keep their types.

    Permanent errors fail the task at once, without using its retries. Transient ones are retried a few times within
    the task where the call is safe to repeat, and then left to Airflow's retries. A request that is not safe to
    repeat is never sent again, neither by the task nor by its retries, once it may have left this machine. That holds
    for a worker or a scheduler that was killed, too: before the call is sent, the task state store of Airflow 3.3 and
    later notes it, and a later try that finds the note sends nothing and fails. Before 3.3 only the first try sends.

    When the server asks to wait for longer than 60 seconds, a deferrable task waits in the triggerer: that holds no
    worker slot and uses no try. Any other one runs again when the server allows it, which is a retry, and from Airflow
    3.4 on uses no try after a 429 (:class:`~openmarkets_provider.policies.retry.OpenmarketsRetryPolicy`). Before
    Airflow 3.3 it is left to ``retries`` and ``retry_delay``.

    :param query: what a function of :mod:`openmarkets_provider.queries` returned. Templated.
    :param openmarkets_conn_id: id of a connection of type ``openmarkets``. Templated.
    :param max_xcom_bytes: size limit of the result as JSON, in bytes; a larger result fails the task.
    :param deferrable: defer the task when the server asks for a wait of more than 60 seconds. None is Airflow's
        ``[operators] default_deferrable``.
    :param kwargs: arguments of ``BaseOperator``: ``task_id``, ``retries``, ``retry_policy``, ``pool``, ...
    :raises OpenmarketsQueryError: when the DAG is parsed: a literal argument of the query is malformed.
    """

    def __init__(
        self,
        *,
        query: Query,
        openmarkets_conn_id: str = "openmarkets_default",
        max_xcom_bytes: int = DEFAULT_MAX_XCOM_BYTES,
        deferrable: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(query=query, openmarkets_conn_id=openmarkets_conn_id, deferrable=deferrable, **kwargs)
        self.max_xcom_bytes = max_xcom_bytes

    def answer(self, hook: OpenmarketsHook, context: Context) -> Any:
        """Return the query's result."""
        start = time.monotonic()
        # Before the call is marked as sent: a connection that does not exist leaves no mark.
        client = hook.client
        with nullcontext() if is_repeatable(self.query) else send_once(name_of(self.query), context):
            result = client.run(self.query)
        size = f"{len(result)} {'row' if len(result) == 1 else 'rows'}" if isinstance(result, list) else "answered"
        self.log.info("%s: %s in %.1f s.", name_of(self.query), size, time.monotonic() - start)
        if self.do_xcom_push:
            ensure_fits_xcom(result, self.max_xcom_bytes)
        return result
