"""What the order operators have in common: the instruction, the journal, and how they fail."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from openmarkets_provider._airflow import Asset, BaseOperator, airflow_version
from openmarkets_provider.exceptions import OpenmarketsError, OpenmarketsOrderError, without_frames
from openmarkets_provider.order_entry.guards import Limits
from openmarkets_provider.order_entry.instruction import Instruction, action_of, check
from openmarkets_provider.query.arguments import is_literal

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow.providers.common.compat.sdk import Context

    from openmarkets_provider.client.journals import Journal
    from openmarkets_provider.client.orders import Orders
    from openmarkets_provider.hooks.openmarkets import OpenmarketsHook

_MAKERS = {"place": "limit or orders.market", "amend": "amend", "cancel": "cancel"}


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
        has_stores = airflow_version() >= (3, 3)
        if has_stores and not is_mapped and is_literal(account) and not self.list_assets():
            # Without a URI: an asset that a DAG author names for a mapped task is the same.
            self.inlets = [*self.inlets, Asset(f"openmarkets_orders_{account}")]

    def list_assets(self) -> list[Any]:
        """Return the task's inlets and outlets that are assets."""
        return [each for each in (*self.inlets, *self.outlets) if isinstance(each, Asset)]

    def execute(self, context: Context) -> Any:
        """Carry the instruction out."""
        return self.run_with_hook(lambda hook: self.carry_out(hook, context))

    @abstractmethod
    def carry_out(self, hook: OpenmarketsHook, context: Context) -> Any:
        """Do the work and return the task's XCom. It may run twice: see :meth:`OpenmarketsHook.retry_on_rotation`."""

    def run_with_hook(self, work: Callable[[OpenmarketsHook], Any]) -> Any:
        """Return the result of a function that takes the hook. A permanent error fails the task immediately."""
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

    def sender(self, hook: OpenmarketsHook, context: Context, limits: Limits = Limits()) -> Orders:  # noqa: B008
        """Return what sends the orders."""
        return hook.orders.with_journal(self.journal(hook, context), limits=limits)

    def journal(self, hook: OpenmarketsHook, context: Context) -> Journal:
        """Return the journal that this Airflow has; before 3.3 one in memory."""
        from openmarkets_provider.client.journals import MemoryJournal

        # Airflow's type of a context does not have them in every version.
        stores: Any = context
        task_store, assets = stores.get("task_state_store"), self.list_assets()
        if task_store is None:
            return MemoryJournal()
        own = [stores["asset_state_store"][assets[0]]] if assets and "asset_state_store" in stores else []
        return hook.journal(task_store, *own)


def epoch_of(context: Context) -> int:
    """Return what changes when a task is cleared, and not when it is retried."""
    return int(getattr(context["ti"], "max_tries", 0))
