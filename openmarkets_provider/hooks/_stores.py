"""Where a client's processes share their records: what ``cache_backend`` of a connection names becomes stores."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.connection import get_async_connection
from airflow.providers.common.compat.sdk import BaseHook, conf

from openmarkets_provider.exceptions import OpenmarketsConfigurationError

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection

    from openmarkets_provider.client.settings import Settings
    from openmarkets_provider.client.stores import Store


def stores_of(settings: Settings) -> Sequence[Store]:
    """Return the stores of a client, the nearest first; none when it shares nothing.

    :raises OpenmarketsConfigurationError: what ``redis_conn_id`` or ``cache_class`` names can't be used.
    :raises AirflowNotFoundException: there is no connection ``redis_conn_id``.
    """
    connection = BaseHook.get_connection(settings.redis_conn_id) if settings.redis_conn_id else None
    return _make_stores(settings, connection)


async def astores_of(settings: Settings) -> Sequence[Store]:
    """Return the same, with the connection looked up without blocking the event loop."""
    connection = await get_async_connection(settings.redis_conn_id) if settings.redis_conn_id else None
    return _make_stores(settings, connection)


def _make_stores(settings: Settings, connection: Connection | None) -> Sequence[Store]:
    from openmarkets_provider.client.file_store import FileStore

    if settings.cache_backend == "memory":
        return []
    file = FileStore(cache_dir())
    if connection is not None:
        return _over_files(_redis_store(connection), f"Redis (connection {connection.conn_id!r})", file)
    if settings.cache_backend == "custom":
        return _over_files(_custom_store(settings.cache_class), settings.cache_class, file)
    if settings.cache_backend == "variable":
        from openmarkets_provider.hooks._variable_store import VariableStore

        return [file, VariableStore()]
    return [file]


def _over_files(fleet: Store, label: str, file: Store) -> Sequence[Store]:
    """Let a store be done without while it can't be used."""
    from openmarkets_provider.client.fallback_store import FallbackStore

    return [FallbackStore(fleet, file, label)]


def _redis_store(connection: Connection) -> Store:
    from openmarkets_provider.client.redis_store import RedisStore, redis_options

    where = f"redis_conn_id: connection {connection.conn_id!r}"
    if importlib.util.find_spec("redis") is None:
        raise OpenmarketsConfigurationError(
            "cache_backend redis needs the package redis: pip install 'airflow-provider-openmarkets[redis]'."
        )
    if connection.conn_type != "redis":
        raise OpenmarketsConfigurationError(f"{where} has the type {connection.conn_type!r}; it must be 'redis'.")
    try:
        options = redis_options(
            host=connection.host,
            port=connection.port,
            login=connection.login,
            password=connection.password,
            # Airflow's own decoding may block an event loop.
            extra=json.loads(connection.extra or "{}"),
        )
    except ValueError as error:
        raise OpenmarketsConfigurationError(f"{where}: {error}") from None
    return RedisStore(options)


def _custom_store(path: str) -> Store:
    module, _, name = path.rpartition(".")
    try:
        store: Any = getattr(importlib.import_module(module), name)()
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
        raise OpenmarketsConfigurationError(f"cache_class: {path!r} can't be made: {problem}.") from error
    if missing := [method for method in ("load", "save", "lock") if not callable(getattr(store, method, None))]:
        raise OpenmarketsConfigurationError(
            f"cache_class: {path!r} lacks {', '.join(missing)}; it must have the methods of "
            "openmarkets_provider.client.stores.Store."
        )
    if not isinstance(getattr(store, "name", None), str) or not store.name.isidentifier():
        raise OpenmarketsConfigurationError(f"cache_class: {path!r} needs a name, one word, such as name = 'vault'.")
    checked: Store = store
    return checked


def cache_dir() -> Path:
    """Return where this host's files are kept."""
    configured = conf.get("openmarkets", "token_cache_dir", fallback="")
    if configured:
        return Path(configured).expanduser()
    return Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser() / "openmarkets_token_cache"
