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

    The hook requests access tokens with OAuth 2.0 client credentials (RFC 6749, section 4.4), one for each API scope.
    All task processes of the host share them until they expire.

    Airflow retries a ``@task`` after every error of the hook. With ``retry_policy=OpenmarketsRetryPolicy()`` (Airflow
    3.3 and later), permanent errors fail the task immediately, and retries wait until the server allows them.

    The constructor does nothing; the first call looks up the connection. Threads and event loops may share a hook.

    :param openmarkets_conn_id: id of a connection of type ``openmarkets``.
    :param concurrency: most concurrent requests of one query, 1 to 16; at most 8 on an event loop.
    :raises ValueError: concurrency is out of range.
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

        :raises OpenmarketsConfigurationError: a field of the connection is not allowed; the message names it.
        :raises AirflowNotFoundException: the connection does not exist.
        """
        settings = make_settings(self.get_connection(self.openmarkets_conn_id))
        return _make_client(settings, store_of(settings), self.concurrency)

    async def aclient(self) -> OpenmarketsClient:
        """Return :attr:`client`. Looks up the connection without blocking the event loop."""
        if "client" not in self.__dict__:
            settings = make_settings(await get_async_connection(self.openmarkets_conn_id, hook=type(self)))
            store = await astore_of(settings)
            await amask_credentials(settings)
            # If two coroutines get here, the client of the first one is used.
            self.__dict__.setdefault("client", _make_client(settings, store, self.concurrency))
        return self.client

    def get_conn(self, api: str = "market_data") -> httpx.Client:
        """Return an authenticated ``httpx.Client`` of an API.

        It belongs to the current process. Relative URLs start at the API's base URL, and the access token is sent to
        no other server. It raises httpx's errors and does not retry, unlike :meth:`run`.

        :param api: ``market_data``, ``news`` or ``oms``.
        """
        return self.client.httpx(api)

    def run(self, query: Query) -> Any:
        """Run a query.

        :param query: a query from :mod:`openmarkets_provider.queries`, rendered.
        :return: a list of rows, or the JSON of the reply for ``request``; see the function of the query.
        :raises OpenmarketsError: see :mod:`openmarkets_provider.exceptions`. If the call is safe to repeat, transient
            errors have already been retried a few times.
        """
        return self.client.run(query)

    def stream(self, query: Query, skipped: set[str] | None = None) -> Iterator[list[Any]]:
        """Run a query and yield its rows in batches as they arrive, without keeping all of them in memory.

        A query of many calls makes up to ``concurrency`` of them concurrently, a few ahead of the current batch. Each
        call gives one batch, in the order that the query's function documents. Several calls of the OMS API give one
        batch together, because a later reply may have a newer state of a row. A 429 slows down all calls of the query.

        The first call that fails permanently ends the stream: nothing more is sent, and the error names the call.
        Closing the generator ends the stream, too.

        :param query: as for :meth:`run`.
        :param skipped: skipped securities are added to this set, in full form such as ``BHP.ASX@TM``: those that
            ``on_invalid="warn"`` skips, and quotes that the API does not return. It is complete when the stream ends.
        :return: non-empty lists of rows. For ``request``: the items of the reply if it is a list, else the reply.
        :raises OpenmarketsQueryError: immediately, if an argument is malformed.
        :raises OpenmarketsError: during the iteration, as :meth:`run`.
        """
        return self.client.stream(query, skipped)

    def stream_columns(self, query: Query, skipped: set[str] | None = None) -> Generator[Batch, None, None]:
        """Run a query as :meth:`stream`, and yield its rows by column instead of as dicts.

        :param skipped: as for :meth:`stream`.
        :return: batches, whose ``columns`` have the values by name. For ``request`` and ``raw=True`` the only column is
            ``record``.
        """
        return self.client.stream_columns(query, skipped)

    def stream_arrow(self, query: Query) -> Iterator[pa.RecordBatch]:
        """Run a query and yield its rows as Arrow record batches as they arrive.

        See :func:`openmarkets_provider.landing.frames.stream_arrow` for columns, types and errors.

        :param query: as for :meth:`run`.
        :return: batches with the same schema. All but the last have at least 8,192 rows.
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
        """Run a query, and return its rows as a DataFrame.

        See :func:`openmarkets_provider.landing.frames.run_df` for the types of the columns and errors.

        :param query: as for :meth:`run`.
        :param prices: ``float`` for ``float64``, or ``decimal`` for exact values.
        :param engine: ``pandas`` or ``polars``.
        """
        from openmarkets_provider.landing.frames import run_df

        return run_df(self, query, prices=prices, engine=engine)

    async def arun(self, query: Query) -> Any:
        """Run a query on an event loop, as :meth:`run`. Call :meth:`aclose` when done."""
        return await (await self.aclient()).arun(query)

    @property
    def orders(self) -> Orders:
        """Places, amends and cancels orders, if the connection allows it: ``hook.orders.place(order, intent=...)``.

        Intents are stored in this process only. To store them elsewhere, use ``hook.orders.with_journal(...)`` with
        :meth:`journal` or :class:`~openmarkets_provider.client.journals.FileJournal`.
        """
        from openmarkets_provider.client.journals import MemoryJournal
        from openmarkets_provider.client.orders import Orders

        return Orders(self.client, self.__dict__.setdefault("_order_journal", MemoryJournal()))

    @staticmethod
    def journal(*stores: Any) -> Journal:
        """Return a journal that stores the intents of orders in Airflow's state stores (Airflow 3.3 and later).

        :param stores: such as ``context["task_state_store"]`` and ``context["asset_state_store"][asset]``. Entries are
            written to all of them, and read from the first that has one.
        """
        from openmarkets_provider.hooks._journal import StateStoreJournal

        return StateStoreJournal(*stores)

    def get_access_token(self, scope: str) -> str:
        """Return a valid access token for a scope, from the cache if there is one.

        The token is masked in logs; keep it out of XCom.

        :param scope: OAuth scope, such as ``market-data-api``.
        :raises OpenmarketsError: no token is available.
        """
        return self.client.get_access_token(scope)

    def reload_connection(self) -> bool:
        """Look up the connection again. If it has changed, the next call uses its new fields.

        :return: whether the connection has changed since the client was created.
        """
        client = self.__dict__.get("client")
        if client is None or make_settings(self.get_connection(self.openmarkets_conn_id)) == client.settings:
            return False
        # The client is not closed: other threads may still use it.
        self.__dict__.pop("client", None)
        return True

    def retry_on_rotation(self, function: Callable[[], T]) -> T:
        """Call a function, and call it again if the credentials were refused and the connection has new ones.

        For long work, during which the client secret may be rotated. Calls without a token are not sent, so only the
        calls that the function had already made are sent again.

        :param function: does the work with this hook; it may be called twice.
        :raises OpenmarketsInvalidClient: the current credentials of the connection are refused, too.
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

        Does not wait. Connections that other threads use are closed after their replies.
        """
        if "client" in self.__dict__:
            self.client.close()

    async def aclose(self) -> None:
        """Close the HTTP connections of the running event loop."""
        if "client" in self.__dict__:
            await self.client.aclose()

    def test_connection(self) -> tuple[bool, str]:
        """Request a token for each scope of the connection.

        :return: whether every scope got a token, and a message for the user, which names the problems.
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
        """Return the fields of the form, for Airflow before 3.2."""
        from openmarkets_provider.hooks._connection_form import make_form_widgets

        return make_form_widgets()

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Return the layout of the standard fields, for Airflow before 3.2."""
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
