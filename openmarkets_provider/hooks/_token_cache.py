"""The store of a client: what ``cache_backend`` of its connection names."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.connection import get_async_connection
from airflow.providers.common.compat.sdk import BaseHook, conf

from openmarkets_provider.exceptions import OpenmarketsConfigurationError

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection

    from openmarkets_provider.client.cache.store import Store
    from openmarkets_provider.client.settings import Settings


def store_of(settings: Settings) -> Store | None:
    """Return the store of a client; None when it shares nothing.

    :raises OpenmarketsConfigurationError: what ``redis_conn_id`` or ``cache_class`` names can't be used.
    :raises AirflowNotFoundException: there is no connection ``redis_conn_id``.
    """
    connection = BaseHook.get_connection(settings.redis_conn_id) if settings.redis_conn_id else None
    return _store(settings, connection)


async def astore_of(settings: Settings) -> Store | None:
    """Return the same, without blocking the event loop."""
    connection = await get_async_connection(settings.redis_conn_id) if settings.redis_conn_id else None
    return await asyncio.to_thread(_store, settings, connection)


_stores: dict[str, Store | None] = {}
"""The stores of this process by their configuration: equal ones are the same, and a site's own is created once."""


def _store(settings: Settings, connection: Connection | None) -> Store | None:
    options = _redis_options(connection) if connection is not None else {}
    conn_id = connection.conn_id if connection is not None else None
    configuration = json.dumps([settings.cache_backend, settings.cache_class, str(cache_dir()), conn_id, options])
    if configuration not in _stores:
        _stores.setdefault(configuration, _new_store(settings, conn_id, options))
    return _stores[configuration]


def _new_store(settings: Settings, conn_id: str | None, options: Mapping[str, Any]) -> Store | None:
    from openmarkets_provider.client.cache.fallback import FallbackStore
    from openmarkets_provider.client.cache.file import FileStore

    file = FileStore(cache_dir())
    match settings.cache_backend:
        case "memory":
            return None
        case "redis":
            from openmarkets_provider.client.cache.redis import RedisStore

            return FallbackStore(RedisStore(options), file, f"Redis (connection {conn_id!r})")
        case "custom":
            return FallbackStore(_custom_store(settings.cache_class), file, settings.cache_class)
        case "variable":
            from openmarkets_provider.hooks._variable_store import VariableStore

            return VariableStore(file)
    return file


def _redis_options(connection: Connection) -> dict[str, Any]:
    from openmarkets_provider.client.cache.redis import redis_options

    where = f"redis_conn_id: connection {connection.conn_id!r}"
    if importlib.util.find_spec("redis") is None:
        raise OpenmarketsConfigurationError(
            "cache_backend redis needs the package redis: pip install 'airflow-provider-openmarkets[redis]'."
        )
    if connection.conn_type != "redis":
        raise OpenmarketsConfigurationError(f"{where} has the type {connection.conn_type!r}; it must be 'redis'.")
    try:
        # Airflow's own decoding may block an event loop.
        extra = json.loads(connection.extra or "{}")
    except (ValueError, RecursionError):
        extra = None
    try:
        return redis_options(
            host=connection.host,
            port=connection.port,
            login=connection.login,
            password=connection.password,
            extra=extra,
        )
    except ValueError as error:
        raise OpenmarketsConfigurationError(f"{where}: {error}") from None


def _custom_store(path: str) -> Store:
    module, _, name = path.rpartition(".")
    if not module:
        raise OpenmarketsConfigurationError(
            f"cache_class: {path!r} is no import path; write module and class, such as my_company.caches.VaultStore."
        )
    try:
        store: Any = getattr(importlib.import_module(module), name)()
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
        raise OpenmarketsConfigurationError(f"cache_class: {path!r} can't be made: {problem}.") from error
    if missing := [method for method in ("load", "save", "lock") if not callable(getattr(store, method, None))]:
        raise OpenmarketsConfigurationError(
            f"cache_class: {path!r} lacks {', '.join(missing)}; it must have the methods of "
            "openmarkets_provider.client.cache.store.Store."
        )
    called = getattr(store, "name", None)
    if not isinstance(called, str) or not called.isidentifier() or not called.isascii():
        raise OpenmarketsConfigurationError(f"cache_class: {path!r} needs a name, one word, such as name = 'vault'.")
    checked: Store = store
    return checked


def cache_dir() -> Path:
    """Return where this host's files are kept."""
    configured = conf.get("openmarkets", "token_cache_dir", fallback="")
    if configured:
        return Path(configured).expanduser()
    return Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser() / "openmarkets_token_cache"
