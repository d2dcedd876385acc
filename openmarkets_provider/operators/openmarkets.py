"""The operator: a task that answers one query."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from openmarkets_provider.operators.base import QueryOperator
from openmarkets_provider.query.query import name_of
from openmarkets_provider.xcom import DEFAULT_MAX_XCOM_BYTES, ensure_fits_xcom

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from openmarkets_provider.hooks.openmarkets import OpenmarketsHook


class OpenmarketsOperator(QueryOperator):
    """Answers a query and returns its result to XCom, where rows keep their types.

    Errors that no repetition can mend fail the task at once, without using its retries. Failures that may pass
    are retried a few times within the task where repeating is safe, and then left to Airflow's retries.
    A request that is not safe to repeat is never sent again, neither by the task nor by its retries, once it
    may have left this machine. When the server asks to be left alone for longer than 60 seconds, the task is
    deferred until then: that holds no worker slot and uses no try.

    Guide: ``docs/howto/quotes.md``. What a message means: ``docs/errors.md``.

    :param query: what a function of :mod:`openmarkets_provider.queries` returned. Templated.
    :param openmarkets_conn_id: id of a connection of type ``openmarkets``. Templated.
    :param max_xcom_bytes: largest result, as JSON, that goes to XCom; a larger one fails the task.
    :param deferrable: False fails the task, with the time in the message, instead of deferring it; for
        deployments without a triggerer.
    :raises OpenmarketsQueryError: when the DAG is parsed: a literal argument of the query is malformed.
    """

    def __init__(self, *, max_xcom_bytes: int = DEFAULT_MAX_XCOM_BYTES, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.max_xcom_bytes = max_xcom_bytes

    def answer(self, hook: OpenmarketsHook, context: Context) -> Any:
        """Return the query's result."""
        started = time.monotonic()
        result = hook.run(self.query)
        self.log.info("%s: %s in %.1f s.", name_of(self.query), _size(result), time.monotonic() - started)
        if self.do_xcom_push:
            ensure_fits_xcom(result, self.max_xcom_bytes)
        return result


def _size(result: Any) -> str:
    if not isinstance(result, list):
        return "answered"
    return f"{len(result)} {'row' if len(result) == 1 else 'rows'}"
