"""The operator that checks that orders, own trades and positions agree."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from openmarkets_provider import queries
from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.operators.base import QueryOperator
from openmarkets_provider.query.arguments import ALL
from openmarkets_provider.query.exchange_time import exchange_date
from openmarkets_provider.query.reconciliation import reconcile

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from openmarkets_provider.hooks.openmarkets import OpenmarketsHook

MOST_IN_MESSAGE, MOST_IN_XCOM = 5, 1000
_DAY = timedelta(days=1)


class OpenmarketsReconciliationCheck(QueryOperator):
    """Checks that orders, own trades and positions agree. Fails with the differences.

    The volume and value of each order of the last three days must be the totals of its trades; values may differ by a
    cent per trade. The ``actual_volume`` of each account and security must be ``volume_start_of_day``, plus the volume
    bought on the day, minus the volume sold. This meaning of the volumes is inferred.

    Orders, trades and positions are queried one after the other, so run the check after the close. If they differ, the
    task fails, and Airflow's ``retries`` apply.

    The task's XCom is a list of at most 1000 differences; it is empty if the task succeeds. A difference has
    ``account_code``, ``exchange``, ``security_code``, ``order_number``, ``field``, ``reported`` and ``by_trades``.
    ``field`` is ``done_volume_total`` or ``done_value_total`` of an order, ``order_number`` for trades of the day whose
    order is not listed, or ``actual_volume`` of a position.

    :param accounts: codes of order accounts (default: all that the client can see). Templated.
    :param day: the exchange day of the positions, as a date or ISO 8601 text (default: the current one). Templated.
    :param openmarkets_conn_id: id of a connection of type ``openmarkets``. Templated.
    :param deferrable: see :class:`~openmarkets_provider.operators.openmarkets.OpenmarketsOperator`.
    :param kwargs: arguments of ``BaseOperator``.
    :raises OpenmarketsQueryError: when the DAG is parsed, if a literal account is malformed.
    """

    template_fields: Sequence[str] = (*QueryOperator.template_fields, "day")

    def __init__(
        self,
        *,
        accounts: queries.Codes = ALL,
        day: date | str | None = None,
        openmarkets_conn_id: str = "openmarkets_default",
        deferrable: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            query=queries.orders(accounts), openmarkets_conn_id=openmarkets_conn_id, deferrable=deferrable, **kwargs
        )
        self.day = day

    def answer(self, hook: OpenmarketsHook, context: Context) -> list[dict[str, Any]]:
        """Compare them, and return the empty list of differences.

        :raises AirflowException: there are differences.
        """
        from airflow.providers.common.compat.sdk import AirflowException

        differences = self._reconcile(hook)
        if not differences:
            return []
        if self.do_xcom_push:
            context["ti"].xcom_push(key="return_value", value=differences[:MOST_IN_XCOM])
        first = "; ".join(map(_describe, differences[:MOST_IN_MESSAGE]))
        more = f"; and {len(differences) - MOST_IN_MESSAGE} more" if len(differences) > MOST_IN_MESSAGE else ""
        count = "1 difference" if len(differences) == 1 else f"{len(differences)} differences"
        raise AirflowException(f"{count} between orders, trades and positions: {first}{more}.")

    def _reconcile(self, hook: OpenmarketsHook) -> list[dict[str, Any]]:
        now = datetime.now(UTC)
        day, accounts = _read_day(self.day, exchange_date(now)), self.query["accounts"]
        orders = hook.run(self.query)
        created = [order["create_date_time"] for order in orders if order["create_date_time"] is not None]
        # All trades of the orders, and all trades of the day.
        start = min([day, *map(exchange_date, created)])
        end = max(day, exchange_date(now)) + _DAY
        trades = hook.run(queries.order_trades(accounts, start=start, end=end))
        return reconcile(orders, trades, hook.run(queries.positions(accounts)), day)


def _read_day(day: date | str | None, today: date) -> date:
    if day is None:
        return today
    try:
        return date.fromisoformat(str(day))
    except ValueError:
        raise OpenmarketsQueryError(f"day must be an ISO 8601 date such as 2026-03-05, not {day!r}.") from None


def _describe(difference: dict[str, Any]) -> str:
    of = f"order {difference['order_number']}" if difference["order_number"] else "position"
    return (
        f"{difference['account_code']} {difference['security_code']} {of}: {difference['field']} is "
        f"{difference['reported']}, by trades {difference['by_trades']}"
    )
