"""The hook: an Airflow connection of type ``openmarkets`` becomes an Openmarkets client."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.providers.common.compat.connection import get_async_connection
from airflow.providers.common.compat.sdk import BaseHook, mask_secret

from openmarkets_provider import __version__
from openmarkets_provider.client.settings import DEFAULT_CONCURRENCY, MAX_CONCURRENCY
from openmarkets_provider.exceptions import OpenmarketsConfigurationError, OpenmarketsInvalidClient
from openmarkets_provider.get_provider_info import CONNECTION_FIELDS, HIDDEN_FIELDS, PLACEHOLDERS, RELABELING
from openmarkets_provider.hooks._token_cache import astore_of, store_of

if TYPE_CHECKING:
    import httpx
    from airflow.providers.common.compat.sdk import Connection

    from openmarkets_provider.client.cache.store import Store
    from openmarkets_provider.client.client import OpenmarketsClient
    from openmarkets_provider.client.settings import Settings
    from openmarkets_provider.queries import Query

T = TypeVar("T")


class OpenmarketsHook(BaseHook):
    """Calls the Openmarkets APIs with the credentials of an Airflow connection.

    Access tokens are obtained with OAuth 2.0 client credentials (RFC 6749, section 4.4), one for each API scope,
    and shared by all task processes of the host for as long as they live.

    Nothing happens at construction; the connection is looked up at the first call. A hook may be used by several
    threads, and on several event loops.

    :param openmarkets_conn_id: id of a connection of type ``openmarkets``.
    :param concurrency: most requests of one query at the same time, 1 to 16; on an event loop 8 at most.
    :raises ValueError: concurrency is out of its range.
    """

    conn_name_attr = "openmarkets_conn_id"
    default_conn_name = "openmarkets_default"
    conn_type = "openmarkets"
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

        :raises OpenmarketsConfigurationError: the connection has a field that is not allowed; the text names it.
        :raises AirflowNotFoundException: there is no such connection.
        """
        settings = settings_of(self.get_connection(self.openmarkets_conn_id))
        return _make_client(settings, store_of(settings), self.concurrency)

    async def aclient(self) -> OpenmarketsClient:
        """Return :attr:`client`, looked up without blocking the event loop."""
        if "client" not in self.__dict__:
            connection = await get_async_connection(self.openmarkets_conn_id, hook=type(self))
            settings = settings_of(connection)
            store = await astore_of(settings)
            await _amask_forms(settings)
            # Two coroutines may have looked it up at once: the first one's client stays.
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
        """Answer a query.

        :param query: what a function of :mod:`openmarkets_provider.queries` returned; templates rendered.
        :return: what that function documents: a list of rows, or the JSON of the reply for ``request``.
        :raises OpenmarketsError: what went wrong, see :mod:`openmarkets_provider.exceptions`. Failures that may
            pass were retried a few times where repeating is safe.
        """
        return self.client.run(query)

    def stream(self, query: Query) -> Iterator[list[Any]]:
        """Answer a query in batches of rows, as they come, without holding all of them.

        A query that takes many calls makes up to ``concurrency`` of them at the same time, a few ahead of the batch
        that is asked for. Batches, one a call, come in the order that the query's function states. The first call that
        fails for good ends it: nothing more is sent, and the error says which call it was. A 429 slows all of
        the run's calls. Closing the generator ends it, too.

        :param query: as for :meth:`run`.
        :return: lists of rows, none empty; for ``request`` the items of the reply when it is a list, else the reply.
        :raises OpenmarketsQueryError: at once, when an argument is malformed.
        :raises OpenmarketsError: while it is iterated, as :meth:`run`.
        """
        return self.client.stream(query)

    async def arun(self, query: Query) -> Any:
        """Answer a query on an event loop; as :meth:`run`. Call :meth:`aclose` when done."""
        return await (await self.aclient()).arun(query)

    def get_access_token(self, scope: str) -> str:
        """Return an access token for a scope, from the cache where one is alive.

        The token is masked in logs; keep it out of XCom.

        :param scope: OAuth scope, such as ``market-data-api``.
        :raises OpenmarketsError: no token is to be had.
        """
        return self.client.get_access_token(scope)

    def has_changed(self) -> bool:
        """Look the connection up again, and tell whether it is another one by now than the client was made with.

        Then the next call goes by what it holds now.
        """
        used = self.__dict__.get("client")
        if used is None or settings_of(self.get_connection(self.openmarkets_conn_id)) == used.settings:
            return False
        # Not closed: other threads may still use it.
        self.__dict__.pop("client", None)
        return True

    def as_of_now(self, ask: Callable[[], T]) -> T:
        """Carry out calls; once more if they were refused for id or secret and the connection holds others by now.

        For what outlives a secret that is rotated. A call that needs a token was not carried out without one.

        :param ask: makes the calls by this hook.
        :raises OpenmarketsInvalidClient: what the connection holds now is refused, too.
        """
        try:
            return ask()
        except OpenmarketsInvalidClient:
            if not self.has_changed():
                raise
        self.log.info("Connection %r has changed; beginning anew with what it holds now.", self.openmarkets_conn_id)
        return ask()

    def close(self) -> None:
        """Close the connections that this process holds. The next call opens new ones.

        Waits for nothing: what other threads have sent gets its reply, and then the connections are closed.
        """
        if "client" in self.__dict__:
            self.client.close()

    async def aclose(self) -> None:
        """Close the connections that the running event loop holds."""
        if "client" in self.__dict__:
            await self.client.aclose()

    def test_connection(self) -> tuple[bool, str]:
        """Ask for a token for each scope of the connection, and tell what is in the plan.

        :return: True when every scope gave a token, and a text for the user that names what is wrong.
        """
        from openmarkets_provider.exceptions import (
            OpenmarketsError,
            OpenmarketsInvalidClient,
            OpenmarketsScopeNotInPlan,
            OpenmarketsTransportError,
        )

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
                        f"The identity server can't be reached. {error} Check Identity URL (host) and port, and "
                        "whether this machine's network and proxy let it through."
                    )
                else:
                    return False, str(error)
        except OpenmarketsError as error:
            return False, str(error)
        finally:
            self.close()
        good = f"Access token obtained from {client.settings.identity_url} for: {', '.join(in_plan) or 'no API'}."
        if not_in_plan:
            advice = "ask Openmarkets, or choose only what is in it under 'APIs in your plan' (scopes)"
            return False, f"Not in the plan: {', '.join(not_in_plan)}; {advice}. {good}"
        return True, good

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """Return the form fields for Airflow before 3.2, which does not know declared ones."""
        from flask_appbuilder.fieldwidgets import BS3TextFieldWidget
        from wtforms import IntegerField, StringField
        from wtforms.validators import Optional

        def widget(field: Mapping[str, Any]) -> Any:
            kind = IntegerField if "number" in field["schema"]["type"] else StringField
            allowed = field["schema"].get("enum") or field["schema"].get("examples")
            hint = f" Allowed: {', '.join(allowed)}." if allowed else ""
            return kind(
                field["label"],
                widget=BS3TextFieldWidget(),
                validators=[Optional()],
                description=field["description"] + hint,
            )

        return {name: widget(field) for name, field in CONNECTION_FIELDS.items()}

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Return the standard fields' form for Airflow before 3.2, which does not know declared ones."""
        return {"hidden_fields": HIDDEN_FIELDS, "relabeling": RELABELING, "placeholders": PLACEHOLDERS}


class _AirflowMasker:
    """Tells Airflow's masker every secret, once a process."""

    def __init__(self) -> None:
        self._told: set[tuple[int, str]] = set()

    def _is_new(self, value: str) -> bool:
        # A forked task process has a supervisor of its own to tell.
        known = (os.getpid(), value)
        if known in self._told:
            return False
        self._told.add(known)
        return True

    def mask(self, value: str) -> None:
        if self._is_new(value):
            mask_secret(value)

    async def amask(self, value: str) -> None:
        if not self._is_new(value):
            return
        try:
            from airflow.sdk.log import amask_secret
        except ImportError:
            # Before Airflow 3.3 there is only the blocking one. From any other thread than asgiref's it would talk to
            # the triggerer's supervisor on an event loop of its own, and end the triggerer.
            from asgiref.sync import sync_to_async

            await sync_to_async(mask_secret)(value)
        else:
            await amask_secret(value)


_masker = _AirflowMasker()


async def _amask_forms(settings: Settings) -> None:
    # The client tells them from the thread that asks for a token, which can't reach the supervisor (see amask).
    from openmarkets_provider.client.auth.token_request import secret_forms

    for form in secret_forms(settings):
        await _masker.amask(form)


def _make_client(settings: Settings, store: Store | None, concurrency: int) -> OpenmarketsClient:
    from airflow import __version__ as airflow_version

    from openmarkets_provider.client.client import OpenmarketsClient
    from openmarkets_provider.hooks._metrics import AirflowMetrics

    return OpenmarketsClient(
        settings,
        store=store,
        masker=_masker,
        user_agent=f"airflow-provider-openmarkets/{__version__} apache-airflow/{airflow_version}",
        concurrency=concurrency,
        metrics=AirflowMetrics(),
    )


def settings_of(connection: Connection) -> Settings:
    """Turn a connection into settings. None and empty texts mean unset; texts from URIs are coerced.

    :raises OpenmarketsConfigurationError: a field is unknown or not allowed; the text names it.
    """
    from openmarkets_provider.client.settings import Settings

    if connection.conn_type != OpenmarketsHook.conn_type:
        raise OpenmarketsConfigurationError(
            f"Connection {connection.conn_id!r} has the type {connection.conn_type!r}; it must be 'openmarkets'."
        )
    extra = _extra(connection)
    if unknown := sorted(extra.keys() - CONNECTION_FIELDS.keys()):
        raise OpenmarketsConfigurationError(
            f"Extra of connection {connection.conn_id!r}: unknown field {', '.join(map(repr, unknown))}; "
            f"allowed are {', '.join(CONNECTION_FIELDS)}."
        )
    given = {name: _coerced(name, value) for name, value in extra.items() if not _is_unset(value)}
    return Settings(
        client_id=connection.login or "",
        client_secret=connection.password or "",
        identity_url=_identity_url(connection, given.get("environment")),
        **given,
    )


def _is_unset(value: object) -> bool:
    return value is None or value in ("", [])


def _coerced(name: str, value: Any) -> Any:
    kind = CONNECTION_FIELDS[name]["schema"]["type"][0]
    if kind == "number":
        try:
            if isinstance(value, bool):
                raise ValueError
            return float(value)
        except (TypeError, ValueError, OverflowError):
            raise OpenmarketsConfigurationError(f"{name}: {value!r:.200} is not a number of seconds.") from None
    if kind == "array":
        items = value.replace(",", " ").split() if isinstance(value, str) else value
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise OpenmarketsConfigurationError(f"{name}: {value!r:.200} is not a list of texts.")
        return tuple(dict.fromkeys(items))
    if not isinstance(value, str):
        raise OpenmarketsConfigurationError(f"{name}: {value!r:.200} is not a text.")
    return value.strip()


def _identity_url(connection: Connection, environment: str | None) -> str:
    """Put host and port together; empty when neither is set."""
    from openmarkets_provider.client.environments import ENVIRONMENTS
    from openmarkets_provider.client.settings import DEFAULT_ENVIRONMENT

    url = (connection.host or "").strip()
    if not connection.port:
        return url if "://" in url or not url else f"https://{url}"
    if not url:
        known = ENVIRONMENTS.get(environment or DEFAULT_ENVIRONMENT)
        url = known.identity_url if known else ""
    scheme, _, rest = url.rpartition("://")
    authority, slash, path = rest.partition("/")
    if authority.rpartition(":")[2] == str(connection.port):
        return url if scheme else f"https://{url}"
    if ":" in authority.rpartition("]")[2]:
        raise OpenmarketsConfigurationError(
            f"port: {connection.port} differs from the port in the Identity URL (host) {url!r}; give one of them."
        )
    return f"{scheme or 'https'}://{authority}:{connection.port}{slash}{path}"


def _extra(connection: Connection) -> dict[str, Any]:
    """Decode Extra. Airflow's own decoding takes what it can't read for empty, and warns of short values."""
    try:
        extra = json.loads(connection.extra or "{}")
    except (ValueError, RecursionError):
        extra = connection.extra
    if extra is not None and not isinstance(extra, dict):
        raise OpenmarketsConfigurationError(
            f'Extra of connection {connection.conn_id!r} is not a JSON object; write {{"environment": "test"}}.'
        )
    return extra or {}
