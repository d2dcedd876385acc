"""The store of a client, from ``cache_backend`` in its connection or from ``airflow.cfg``."""

from __future__ import annotations

import asyncio
import functools
import importlib
import importlib.util
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.connection import get_async_connection
from airflow.providers.common.compat.sdk import BaseHook, conf

from openmarkets_provider.exceptions import OpenmarketsConfigurationError

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection

    from openmarkets_provider.client.cache.store import Store
    from openmarkets_provider.client.settings import Settings

_STORE_ATTRIBUTES = ("name", "load", "save", "lock")


def store_of(settings: Settings) -> Store | None:
    """Return the store of a client; None if it shares nothing.

    :raises OpenmarketsConfigurationError: ``redis_conn_id`` or ``[openmarkets] token_store`` can't be used.
    :raises AirflowNotFoundException: there is no connection ``redis_conn_id``.
    """
    connection = BaseHook.get_connection(settings.redis_conn_id) if settings.redis_conn_id else None
    return _store(settings.cache_backend, connection)


async def astore_of(settings: Settings) -> Store | None:
    """Return the store of a client, as :func:`store_of`, without blocking the event loop."""
    connection = await get_async_connection(settings.redis_conn_id) if settings.redis_conn_id else None
    return await asyncio.to_thread(_store, settings.cache_backend, connection)


def _store(backend: str, connection: Connection | None) -> Store | None:
    conn_id, options = None, {}
    if connection is not None:
        conn_id, options = connection.conn_id, _redis_options(connection)
    class_path = "" if backend else conf.get("openmarkets", "token_store", fallback="")
    return _new_store(backend, cache_dir(), conn_id, tuple(options.items()), class_path)


@functools.cache
def _new_store(
    backend: str, directory: Path, conn_id: str | None, options: tuple[tuple[str, Any], ...], class_path: str
) -> Store | None:
    """Return the store for these arguments, one per process: a changed Redis connection gives a new store."""
    from openmarkets_provider.client.cache.fallback import FallbackStore
    from openmarkets_provider.client.cache.file import FileStore

    file = FileStore(directory)
    match backend:
        case "memory":
            return None
        case "redis":
            from openmarkets_provider.client.cache.redis import RedisStore

            return FallbackStore(RedisStore(dict(options)), file, f"Redis (connection {conn_id!r})")
        case "variable":
            from openmarkets_provider.hooks._variable_store import VariableStore

            return VariableStore(file)
    return FallbackStore(_site_store(class_path), file, class_path) if class_path else file


def _redis_options(connection: Connection) -> dict[str, Any]:
    from openmarkets_provider.client.cache.redis import redis_options

    label = f"redis_conn_id: connection {connection.conn_id!r}"
    if importlib.util.find_spec("redis") is None:
        raise OpenmarketsConfigurationError(
            "cache_backend redis needs the package redis. Run: pip install 'airflow-provider-openmarkets[redis]'"
        )
    if connection.conn_type != "redis":
        raise OpenmarketsConfigurationError(f"{label} must have the type 'redis', not {connection.conn_type!r}.")
    try:
        # Airflow's own property may block an event loop.
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
        raise OpenmarketsConfigurationError(f"{label}: {error}") from None


def _site_store(path: str) -> Store:
    """Create the store of ``[openmarkets] token_store``. Only a class with the methods of a store is called."""
    label = f"[openmarkets] token_store: {path!r}"
    module, _, name = path.rpartition(".")
    try:
        store_class = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise OpenmarketsConfigurationError(f"{label} can't be imported: {type(error).__name__}: {error}.") from error
    if not isinstance(store_class, type):
        raise OpenmarketsConfigurationError(f"{label} is not a class.")
    if missing := [attribute for attribute in _STORE_ATTRIBUTES if not hasattr(store_class, attribute)]:
        raise OpenmarketsConfigurationError(
            f"{label} lacks {', '.join(missing)}; implement openmarkets_provider.client.cache.store.Store."
        )
    try:
        store: Store = store_class()
        word = store.name
    except Exception as error:
        raise OpenmarketsConfigurationError(f"{label} can't be created: {type(error).__name__}: {error}.") from error
    if not isinstance(word, str) or not word.isidentifier() or not word.isascii():
        raise OpenmarketsConfigurationError(f"{label} needs a name of one word, such as name = 'vault'.")
    return store


def cache_dir() -> Path:
    """Return the directory of the file store."""
    directory = conf.get("openmarkets", "token_cache_dir", fallback="")
    if directory:
        return Path(directory).expanduser()
    return Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser() / "openmarkets_token_cache"
