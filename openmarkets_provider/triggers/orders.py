"""The trigger of tasks that wait for an order."""

from __future__ import annotations

import asyncio

from openmarkets_provider import orders, queries
from openmarkets_provider.order_entry.outcome import condition_of
from openmarkets_provider.triggers.openmarkets import OpenmarketsConditionTrigger

__all__ = ["OpenmarketsOrderTrigger"]


class OpenmarketsOrderTrigger(OpenmarketsConditionTrigger):
    """Polls the orders of an account until one of them is accepted or done. Fires the events of its base class.

    :param openmarkets_conn_id: id of a connection of type ``openmarkets``.
    :param account: code of the order account.
    :param order_number: as the API numbers it.
    :param wait_for: ``accepted`` or ``done``.
    :param poke_interval: seconds between polls.
    :param deadline: when to give up, in seconds since 1970 (UTC).
    :param cancel_on_kill: cancel the order when a user clears the task or marks it. Airflow before 3.3 ignores it.
    """

    def __init__(
        self,
        openmarkets_conn_id: str,
        account: str,
        order_number: str,
        wait_for: str,
        poke_interval: float,
        deadline: float,
        cancel_on_kill: bool,
    ) -> None:
        super().__init__(
            openmarkets_conn_id=openmarkets_conn_id,
            query=self.query_of(account),
            condition=condition_of(order_number, wait_for),
            poke_interval=poke_interval,
            deadline=deadline,
            max_failures=None,
            max_xcom_bytes=None,
            resume=True,
        )
        self.account = account
        self.order_number = order_number
        self.wait_for = wait_for
        self.cancel_on_kill = cancel_on_kill

    @staticmethod
    def query_of(account: str) -> queries.Query:
        """Return the query for the orders of an account: the same for all of them, so that they share their polls."""
        return queries.orders(account, include_child_orders=False, on_missing_multiplier="cents")

    async def on_kill(self) -> None:
        """Cancel the order: ``DELETE orders/{orderNumber}/v1``."""
        from openmarkets_provider.hooks.openmarkets import OpenmarketsHook

        if not self.cancel_on_kill:
            return
        hook = OpenmarketsHook(self.openmarkets_conn_id)
        await hook.aclient()
        try:
            order = orders.cancel(self.order_number, account=self.account)
            outcome = (await asyncio.to_thread(hook.orders.cancel, order))["outcome"]
        finally:
            hook.close()
        self.log.info("The task was killed. Order %s: %s.", self.order_number, outcome)
