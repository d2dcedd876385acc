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

    Permanent errors fail the task immediately, without using its retries. If a call is safe to repeat, transient errors
    are retried a few times within the task, and then by Airflow.

    A request that is not safe to repeat is never sent again once it may have left this machine, even if a worker or
    scheduler is killed. The task state store (Airflow 3.3 and later) records the request before it is sent, and a later
    try that finds the record fails without sending. Before Airflow 3.3, only the first try sends.

    If the server asks for a wait of more than 60 seconds, a deferrable task waits in the triggerer, which takes no
    worker slot and uses no try. Other tasks are retried when the server allows it. From Airflow 3.4 on, a retry after a
    429 uses no try (:class:`~openmarkets_provider.policies.retry.OpenmarketsRetryPolicy`). Before Airflow 3.3,
    ``retries`` and ``retry_delay`` apply.

    :param query: a query from :mod:`openmarkets_provider.queries`. Templated.
    :param openmarkets_conn_id: id of a connection of type ``openmarkets``. Templated.
    :param max_xcom_bytes: size limit of the result as JSON, in bytes; a larger result fails the task.
    :param deferrable: defer the task if the server asks for a wait of more than 60 seconds (default: Airflow's
        ``[operators] default_deferrable``).
    :param kwargs: arguments of ``BaseOperator``: ``task_id``, ``retries``, ``retry_policy``, ``pool``, ...
    :raises OpenmarketsQueryError: when the DAG is parsed, if a literal argument of the query is malformed.
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
        """Run the query and return its result."""
        start = time.monotonic()
        # Looked up before the call is marked as sent: if the connection does not exist, there is no mark.
        client = hook.client
        with nullcontext() if is_repeatable(self.query) else send_once(name_of(self.query), context):
            result = client.run(self.query)
        size = f"{len(result)} {'row' if len(result) == 1 else 'rows'}" if isinstance(result, list) else "answered"
        self.log.info("%s: %s in %.1f s.", name_of(self.query), size, time.monotonic() - start)
        if self.do_xcom_push:
            ensure_fits_xcom(result, self.max_xcom_bytes)
        return result
