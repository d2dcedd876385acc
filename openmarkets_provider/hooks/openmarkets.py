"""The hook: calls the Openmarkets APIs with an Airflow connection."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.providers.common.compat.connection import get_async_connection
from airflow.providers.common.compat.sdk import BaseHook

from openmarkets_provider import __version__
from openmarkets_provider.client.settings import DEFAULT_CONCURRENCY, MAX_CONCURRENCY
from openmarkets_provider.exceptions import (
    OpenmarketsError,
    OpenmarketsInvalidClient,
    OpenmarketsScopeNotInPlan,
    OpenmarketsTransportError,
)
from openmarkets_provider.get_provider_info import CONNECTION_TYPE, HIDDEN_FIELDS, PLACEHOLDERS, RELABELING
from openmarkets_provider.hooks._connection_settings import make_settings
from openmarkets_provider.hooks._masking import MASKER, amask_credentials
from openmarkets_provider.hooks._token_cache import astore_of, store_of

if TYPE_CHECKING:
    import httpx
    import pyarrow as pa

    from openmarkets_provider.client.cache.store import Store
    from openmarkets_provider.client.client import OpenmarketsClient
    from openmarkets_provider.client.journals import Journal
    from openmarkets_provider.client.orders import Orders
    from openmarkets_provider.client.settings import Settings
    from openmarkets_provider.queries import Query
    from openmarkets_provider.query.batch import Batch

T = TypeVar("T")


class OpenmarketsHook(BaseHook):
    """Calls the Openmarkets APIs with the credentials of an Airflow connection.

    Access tokens are obtained with OAuth 2.0 client credentials (RFC 6749, section 4.4), one for each API scope.
    All task processes of the host share them until they expire.

    To Airflow an error of the hook is like any other. With ``retry_policy=OpenmarketsRetryPolicy()`` (Airflow 3.3 and
    later) a ``@task`` is retried by what went wrong: not after a permanent error, and when the server allows it.

    Nothing happens at construction; the first call looks the connection up. A hook may be used by several threads and
    on several event loops.

    :param openmarkets_conn_id: id of a connection of type ``openmarkets``.
    :param concurrency: concurrent requests of one query, 1 to 16; on an event loop 8 at most.
    :raises ValueError: concurrency is out of its range.
    """

    conn_name_attr = "openmarkets_conn_id"
    default_conn_name = "openmarkets_default"
    conn_type = CONNECTION_TYPE
    hook_name = "Openmarkets"

    def __init__(
        self, openmarkets_conn_id: str = default_conn_name, *, concurrency: int = DEFAULT_CONCURRENCY, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if concurrency not in range(1, MAX_CONCURRENCY + 1):
            raise ValueError(f"concurrency must be a whole number from 1 to {MAX_CONCURRENCY}, not {concurrency!r}.")
        self.openmarkets_conn_id = openmarkets_conn_id
        self.concurrency = concurrency

    @cached_property
    def client(self) -> OpenmarketsClient:
        """The client of the connection.

        :raises OpenmarketsConfigurationError: a field of the connection is not allowed; the text names it.
        :raises AirflowNotFoundException: there is no such connection.
        """
        settings = make_settings(self.get_connection(self.openmarkets_conn_id))
        return _make_client(settings, store_of(settings), self.concurrency)

    async def aclient(self) -> OpenmarketsClient:
        """Return :attr:`client`; looks the connection up without blocking the event loop."""
        if "client" not in self.__dict__:
            settings = make_settings(await get_async_connection(self.openmarkets_conn_id, hook=type(self)))
            store = await astore_of(settings)
            await amask_credentials(settings)
            # Two coroutines may get here at once: the client of the first one stays.
            self.__dict__.setdefault("client", _make_client(settings, store, self.concurrency))
        return self.client

    def get_conn(self, api: str = "market_data") -> httpx.Client:
        """Return an authenticated ``httpx.Client`` of an API.

        It belongs to the current process. Relative URLs start at the API's base URL; the access token goes
        nowhere else. Errors and retries are httpx's own: :meth:`run` has the provider's.

        :param api: ``market_data``, ``news`` or ``oms``.
        """
        return self.client.httpx(api)

    def run(self, query: Query) -> Any:
        """Run a query.

        :param query: what a function of :mod:`openmarkets_provider.queries` returned; templates rendered.
        :return: what that function documents: a list of rows, or the JSON of the reply for ``request``.
        :raises OpenmarketsError: see :mod:`openmarkets_provider.exceptions`. Transient errors were retried a few times
            where the call is safe to repeat.
        """
        return self.client.run(query)

    def stream(self, query: Query, skipped: set[str] | None = None) -> Iterator[list[Any]]:
        """Run a query and yield its rows in batches, as they arrive, without keeping all of them in memory.

        A query of many calls makes up to ``concurrency`` of them at the same time, a few ahead of the current batch.
        There is one batch per call, in the order that the query's function documents; the rows of several calls of the
        OMS API are one batch, since each reply may hold a newer state of a row. The first call that fails for
        good ends the stream: nothing more is sent, and the error names the call. A 429 slows down all calls of the
        query. Closing the generator ends the stream, too.

        :param query: as for :meth:`run`.
        :param skipped: a set that takes the securities that are left out, in full form such as ``BHP.ASX@TM``: those
            that ``on_invalid="warn"`` skips, and quotes that the API does not return. Complete when the stream ends.
        :return: lists of rows, none empty; for ``request`` the items of the reply when it is a list, else the reply.
        :raises OpenmarketsQueryError: at once: an argument is malformed.
        :raises OpenmarketsError: during the iteration, as :meth:`run`.
        """
        return self.client.stream(query, skipped)

    def stream_columns(self, query: Query, skipped: set[str] | None = None) -> Generator[Batch, None, None]:
        """Run a query as :meth:`stream`, and yield its rows by column, without a dict for each.

        :param skipped: as for :meth:`stream`.
        :return: batches: ``batch.columns`` has the values by name. Records of ``request`` and of ``raw=True`` are in
            the one column ``record``.
        """
        return self.client.stream_columns(query, skipped)

    def stream_arrow(self, query: Query) -> Iterator[pa.RecordBatch]:
        """Run a query and yield its rows as Arrow record batches, as they arrive.

        See :func:`openmarkets_provider.landing.frames.stream_arrow` for columns, types and what is raised.

        :param query: as for :meth:`run`.
        :return: batches of one schema, of 8,192 rows or more but for the last one.
        """
        from openmarkets_provider.landing.frames import stream_arrow

        return stream_arrow(self, query)

    def run_arrow(self, query: Query) -> pa.Table:
        """Run a query, and return its rows as one Arrow table, as :meth:`stream_arrow` yields them.

        :param query: as for :meth:`run`.
        """
        from openmarkets_provider.landing.frames import run_arrow

        return run_arrow(self, query)

    def run_df(self, query: Query, *, prices: str = "float", engine: str = "pandas") -> Any:
        """Run a query, and return its rows as a DataFrame to compute with.

        See :func:`openmarkets_provider.landing.frames.run_df` for the types of the columns and what is raised.

        :param query: as for :meth:`run`.
        :param prices: ``float`` for ``float64``, or ``decimal`` for all digits.
        :param engine: ``pandas`` or ``polars``.
        """
        from openmarkets_provider.landing.frames import run_df

        return run_df(self, query, prices=prices, engine=engine)

    async def arun(self, query: Query) -> Any:
        """Run a query on an event loop, as :meth:`run` does. Call :meth:`aclose` when done."""
        return await (await self.aclient()).arun(query)

    @property
    def orders(self) -> Orders:
        """Places, amends and cancels orders, as far as the connection allows: ``hook.orders.place(order, intent=...)``.

        Nothing is stored beyond this process. ``hook.orders.with_journal(...)`` takes another journal: that of
        :meth:`journal`, or :class:`~openmarkets_provider.client.journals.FileJournal`.
        """
        from openmarkets_provider.client.journals import MemoryJournal
        from openmarkets_provider.client.orders import Orders

        return Orders(self.client, self.__dict__.setdefault("_order_journal", MemoryJournal()))

    @staticmethod
    def journal(*stores: Any) -> Journal:
        """Return a journal for the intents of orders in Airflow's state stores (Airflow 3.3 and later).

        :param stores: such as ``context["task_state_store"]`` and ``context["asset_state_store"][asset]``. All are
            written; the first that has an entry is read.
        """
        from openmarkets_provider.hooks._journal import StateStoreJournal

        return StateStoreJournal(*stores)

    def get_access_token(self, scope: str) -> str:
        """Return a valid access token for a scope, from the cache if there is one.

        The token is masked in logs; keep it out of XCom.

        :param scope: OAuth scope, such as ``market-data-api``.
        :raises OpenmarketsError: the identity server issued none.
        """
        return self.client.get_access_token(scope)

    def reload_connection(self) -> bool:
        """Look the connection up again. If it has changed, the next call uses its new fields.

        :return: True if the connection has changed since the client was made.
        """
        client = self.__dict__.get("client")
        if client is None or make_settings(self.get_connection(self.openmarkets_conn_id)) == client.settings:
            return False
        # Not closed: other threads may still use it.
        self.__dict__.pop("client", None)
        return True

    def retry_on_rotation(self, function: Callable[[], T]) -> T:
        """Call a function, and once more if its credentials were refused and the connection has new ones.

        For work that may outlive a client secret. A call that got no token was not sent, so nothing is sent twice but
        what the function itself repeats.

        :param function: does the work with this hook; it may be called twice.
        :raises OpenmarketsInvalidClient: the connection's current credentials are refused, too.
        """
        try:
            return function()
        except OpenmarketsInvalidClient:
            if not self.reload_connection():
                raise
        self.log.info("Connection %r has changed; starting again with its new credentials.", self.openmarkets_conn_id)
        return function()

    def close(self) -> None:
        """Close the HTTP connections of this process. The next call opens new ones.

        Does not wait: requests of other threads get their replies before their connections are closed.
        """
        if "client" in self.__dict__:
            self.client.close()

    async def aclose(self) -> None:
        """Close the HTTP connections of the running event loop."""
        if "client" in self.__dict__:
            await self.client.aclose()

    def test_connection(self) -> tuple[bool, str]:
        """Request a token for each scope of the connection.

        :return: True if every scope got a token, and a text for the user that names what is wrong.
        """
        try:
            client = self.client
            in_plan, not_in_plan = [], []
            for scope in client.settings.scopes:
                error = client.check_scope(scope)
                if error is None:
                    in_plan.append(scope)
                elif isinstance(error, OpenmarketsScopeNotInPlan):
                    not_in_plan.append(scope)
                elif isinstance(error, OpenmarketsInvalidClient):
                    return False, f"The client id and secret are not accepted. {error}"
                elif isinstance(error, OpenmarketsTransportError):
                    return False, (
                        f"Can't reach the identity server. {error} Check Identity URL (host) and port, and that "
                        "this machine's network and proxy allow the connection."
                    )
                else:
                    return False, str(error)
        except OpenmarketsError as error:
            return False, str(error)
        finally:
            self.close()
        success = f"Access token obtained from {client.settings.identity_url} for: {', '.join(in_plan) or 'no API'}."
        if not_in_plan:
            advice = "remove them under 'APIs in your plan' (scopes), or ask Openmarkets to add them"
            return False, f"Not in the plan: {', '.join(not_in_plan)}; {advice}. {success}"
        return True, f"{success} {client.settings.policy.describe()}"

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """Return the fields of the form for Airflow before 3.2, which does not read the declared ones."""
        from openmarkets_provider.hooks._connection_form import make_form_widgets

        return make_form_widgets()

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Return how the form shows the standard fields, for Airflow before 3.2."""
        return {"hidden_fields": HIDDEN_FIELDS, "relabeling": RELABELING, "placeholders": PLACEHOLDERS}


def _make_client(settings: Settings, store: Store | None, concurrency: int) -> OpenmarketsClient:
    from airflow import __version__ as airflow_version

    from openmarkets_provider.client.client import OpenmarketsClient
    from openmarkets_provider.hooks._metrics import AirflowMetrics

    return OpenmarketsClient(
        settings,
        store=store,
        masker=MASKER,
        user_agent=f"airflow-provider-openmarkets/{__version__} apache-airflow/{airflow_version}",
        concurrency=concurrency,
        metrics=AirflowMetrics(),
    )
