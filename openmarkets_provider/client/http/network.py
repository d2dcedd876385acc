"""Connections to a server: TLS, proxy, and the pool."""

from __future__ import annotations

import functools
import importlib
import os
import ssl
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpcore
import httpx

from openmarkets_provider.client.http.deadline import AsyncioBackend, DeadlineBackend
from openmarkets_provider.exceptions import OpenmarketsConfigurationError

T = TypeVar("T")

KEEP_ALIVE = 5.0
"""Seconds for which an idle connection is kept; the same as in httpx."""
_MAX_CONTEXTS = 16
"""Most TLS contexts that are kept, one for each CA bundle."""


class IdleConnections(Generic[T]):
    """Idle connections. Thread-safe, because each step is a single operation of a deque.

    :ivar keep_alive: seconds for which a connection may be idle; 0 after the client was closed.
    """

    def __init__(self) -> None:
        self.keep_alive = KEEP_ALIVE
        self._connections: deque[tuple[T, float]] = deque()

    def take(self) -> T | None:
        """Return the connection that was used last, or None."""
        try:
            return self._connections.pop()[0]
        except IndexError:
            return None

    def put_back(self, connection: T) -> None:
        """Keep a connection for the next request."""
        self._connections.append((connection, time.monotonic()))

    def pop_expired(self) -> list[T]:
        """Remove and return the connections that were idle too long."""
        expired = []
        with suppress(IndexError):
            while self._connections[0][1] <= time.monotonic() - self.keep_alive:
                expired.append(self._connections.popleft()[0])
        return expired


def open_connection(base_url: str, ca_bundle: str | None, *, keep_alive: bool) -> httpcore.ConnectionPool:
    """Return a pool with one connection to a host, for one thread at a time.

    httpcore scans its whole pool several times per request, so a larger pool would take more CPU.

    :param ca_bundle: PEM file with the trusted certificate authorities; None for the default ones.
    :param keep_alive: keep the connection open for further requests.
    :raises OpenmarketsConfigurationError: the CA bundle or the proxy can't be used.
    """
    proxy = _proxy(base_url)
    options: dict[str, Any] = _options(ca_bundle, int(keep_alive)) | {"network_backend": DeadlineBackend()}
    if proxy is None:
        return httpcore.ConnectionPool(**options)
    kind = httpcore.SOCKSProxy if proxy.url.scheme.startswith("socks") else httpcore.HTTPProxy
    return kind(**options, **_proxy_options(proxy))


def open_async_connection(base_url: str, ca_bundle: str | None) -> httpcore.AsyncConnectionPool:
    """Return a pool with one connection to a host, for one task at a time, as :func:`open_connection`."""
    proxy = _proxy(base_url)
    options: dict[str, Any] = _options(ca_bundle, 1) | {"network_backend": AsyncioBackend()}
    if proxy is None:
        return httpcore.AsyncConnectionPool(**options)
    kind = httpcore.AsyncSOCKSProxy if proxy.url.scheme.startswith("socks") else httpcore.AsyncHTTPProxy
    return kind(**options, **_proxy_options(proxy))


def _options(ca_bundle: str | None, kept: int) -> dict[str, Any]:
    return {
        "ssl_context": _ssl_context(ca_bundle),
        "max_connections": 1,
        "max_keepalive_connections": kept,
        "keepalive_expiry": KEEP_ALIVE,
    }


def _proxy_options(proxy: httpx.Proxy) -> dict[str, Any]:
    return {"proxy_url": core_url(proxy.url), "proxy_auth": proxy.raw_auth}


def core_url(url: httpx.URL) -> httpcore.URL:
    """Convert a URL to httpcore's type."""
    return httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)


def _ssl_context(ca_bundle: str | None) -> ssl.SSLContext:
    """Return the TLS context, which is expensive to make. The process keeps it until the bundle changes."""
    path = ca_bundle or os.environ.get("SSL_CERT_FILE")
    try:
        return _make_context(ca_bundle, _version(path) if path else None, os.getpid())
    except OSError as error:
        what = f"ca_bundle: {ca_bundle!r}" if ca_bundle else "The certificates of SSL_CERT_FILE or SSL_CERT_DIR"
        raise OpenmarketsConfigurationError(f"{what} can't be used: {error}") from None


def _version(path: str) -> tuple[str, int, int, int]:
    """Return values of which at least one changes when a file is written or replaced."""
    found = Path(path).stat()
    return path, found.st_mtime_ns, found.st_ino, found.st_size


@functools.lru_cache(_MAX_CONTEXTS)
def _make_context(ca_bundle: str | None, version: object, pid: int) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca_bundle) if ca_bundle else httpx.create_ssl_context()


def _proxy(base_url: str) -> httpx.Proxy | None:
    """Return the proxy for a host from the environment (``HTTPS_PROXY``, ``NO_PROXY`` and so on)."""
    parts = urlsplit(base_url)
    if parts.scheme == "http":
        # Settings allow http to this machine only. A proxy would see the secret in clear text.
        return None
    proxies = getproxies()
    url = proxies.get(parts.scheme) or proxies.get("all")
    if not url or proxy_bypass(parts.netloc):
        return None
    try:
        proxy = httpx.Proxy(url if "://" in url else f"http://{url}")
        port = proxy.url.port
        if not proxy.url.host or not (port is None or 0 < port < 65536):
            raise ValueError
        if proxy.url.scheme.startswith("socks"):
            # httpcore imports it only when it opens a connection.
            importlib.import_module("socksio")
    except (ValueError, ImportError, httpx.InvalidURL):
        # The URL may contain credentials, and httpx's message may quote it.
        raise OpenmarketsConfigurationError(
            f"The proxy that the environment sets for {parts.scheme} can't be used. Write http://host:port, "
            "https://host:port or, with httpx[socks] installed, socks5://host:port."
        ) from None
    return proxy
