"""The settings of a client: credentials, servers, limits. They are checked on creation."""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from openmarkets_provider.client.environments import ENVIRONMENTS, SCOPES
from openmarkets_provider.exceptions import OpenmarketsConfigurationError
from openmarkets_provider.order_entry.guards import MODES, Policy

MAX_CONCURRENCY = 16
"""Most concurrent requests of one query, and connections to one host."""
MAX_ASYNC_CONCURRENCY = 8
"""The same on an event loop, where a higher number makes each request slower."""
DEFAULT_CONCURRENCY = 8
DEFAULT_ENVIRONMENT = "production"
DEFAULT_TIMEOUT = 30.0
MAX_TIMEOUT = 3600.0
CLIENT_AUTH_ENCODINGS = ("rfc6749", "raw")
CACHE_BACKENDS = ("file", "redis", "variable", "memory")
DEFAULT_REDIS_CONN_ID = "redis_default"

_ENDPOINT = "/connect/token"
"""Path of the token endpoint below the identity URL."""
_HOST = re.compile(r"[\w.:-]+", re.ASCII)
_HOST_FIRST = re.compile(r"(\[[\w.:]+\]|[\w.-]+)(:\d+)?(/[^\s?#\\]*)?", re.ASCII)
"""A base URL without a scheme."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of one client. The names are those of the connection's fields.

    :ivar client_id: OAuth client id, without surrounding spaces.
    :ivar client_secret: OAuth client secret; never shown.
    :ivar environment: ``production`` or ``test``: the default servers.
    :ivar identity_url: base URL of the identity server.
    :ivar market_data_url: base URL of the market data API.
    :ivar news_url: base URL of the news API.
    :ivar oms_url: base URL of the OMS API.
    :ivar scopes: the OAuth scopes in the API plan.
    :ivar timeout: longest time in seconds for one HTTP request in total.
    :ivar ca_bundle: PEM file with the trusted certificate authorities, instead of the default ones.
    :ivar client_auth_encoding: ``rfc6749``: id and secret are form-url-encoded before Base64 (RFC 6749,
        section 2.3.1); ``raw``: they are not.
    :ivar cache_backend: where tokens and holds are stored: ``file`` (shared by the processes of the host), ``redis``
        or ``variable`` (shared by all hosts), or ``memory`` (not shared). If empty, the default of the deployment.
    :ivar redis_conn_id: id of the Airflow connection to Redis, for ``redis``.
    :ivar orders: where orders may be placed, amended and cancelled: nowhere (``off``), in the test environment
        (``test``), or everywhere (``on``).
    :ivar order_accounts: accounts for which orders are allowed; empty for all.
    :ivar max_order_value: highest value of one order in dollars; None for no limit.
    :ivar max_day_value: highest total value in dollars of an account's orders that were created on one exchange day;
        None for no limit.
    :raises OpenmarketsConfigurationError: a value is not allowed; the message names the field.
    """

    client_id: str
    client_secret: str = field(repr=False)
    environment: str = DEFAULT_ENVIRONMENT
    identity_url: str = ""
    market_data_url: str = ""
    news_url: str = ""
    oms_url: str = ""
    scopes: tuple[str, ...] = tuple(SCOPES.values())
    timeout: float = DEFAULT_TIMEOUT
    ca_bundle: str | None = None
    client_auth_encoding: str = CLIENT_AUTH_ENCODINGS[0]
    cache_backend: str = ""
    redis_conn_id: str = ""
    orders: str = MODES[0]
    order_accounts: tuple[str, ...] = ()
    max_order_value: Decimal | float | None = None
    max_day_value: Decimal | float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "client_id", self.client_id.strip())
        for name, what in (("client_id", "Client ID (login)"), ("client_secret", "Client secret (password)")):
            if not getattr(self, name):
                raise OpenmarketsConfigurationError(f"{what} is empty; Openmarkets issues it on onboarding.")
            if not getattr(self, name).isprintable():
                # The value is not shown: it may be the secret.
                raise OpenmarketsConfigurationError(
                    f"{what} has characters that can't be sent, such as a line break; copy it again."
                )
        if self.client_auth_encoding == "raw" and ":" in self.client_id:
            raise OpenmarketsConfigurationError("Client ID (login) has a ':'; set client_auth_encoding to rfc6749.")
        _one_of("environment", self.environment, ENVIRONMENTS)
        _one_of("client_auth_encoding", self.client_auth_encoding, CLIENT_AUTH_ENCODINGS)
        self._check_cache()
        _one_of("orders", self.orders, MODES)
        for name in ("max_order_value", "max_day_value"):
            object.__setattr__(self, name, _amount(name, getattr(self, name)))
        if not self.scopes:
            raise OpenmarketsConfigurationError(f"scopes is empty; use one or more of {', '.join(SCOPES.values())}.")
        for scope in self.scopes:
            _one_of("scopes", scope, SCOPES.values())
        if not 0 < self.timeout <= MAX_TIMEOUT:
            raise OpenmarketsConfigurationError(
                f"timeout must be a number of seconds above 0 and at most {MAX_TIMEOUT:g}, not {self.timeout:g}."
            )
        if self.ca_bundle is not None and not _is_file(self.ca_bundle):
            raise OpenmarketsConfigurationError(
                f"ca_bundle: {self.ca_bundle!r} is not a file; set the path of a PEM file on the worker."
            )
        defaults = ENVIRONMENTS[self.environment]
        urls = {"identity_url": defaults.identity_url}
        urls |= {f"{api}_url": url for api, url in defaults.api_urls.items()}
        for name, default in urls.items():
            object.__setattr__(self, name, _base_url(name, getattr(self, name) or default))

    def _check_cache(self) -> None:
        if self.cache_backend:
            _one_of("cache_backend", self.cache_backend, CACHE_BACKENDS)
        if self.redis_conn_id and self.cache_backend != "redis":
            raise OpenmarketsConfigurationError(
                "redis_conn_id can only be set with cache_backend redis; set that, or leave redis_conn_id empty."
            )
        if self.cache_backend == "redis" and not self.redis_conn_id:
            object.__setattr__(self, "redis_conn_id", DEFAULT_REDIS_CONN_ID)

    def api_url(self, api: str) -> str:
        """Return the base URL of an API, without a trailing slash."""
        url: str = getattr(self, f"{api}_url")
        return url

    @property
    def policy(self) -> Policy:
        """The order policy of the connection."""
        production = urlsplit(ENVIRONMENTS["production"].api_urls["oms"]).hostname
        is_test = self.environment == "test" and urlsplit(self.oms_url).hostname != production
        values: list[Any] = [self.max_order_value, self.max_day_value]
        return Policy(self.orders, is_test, self.order_accounts, *values)

    @property
    def token_url(self) -> str:
        """The URL of the token endpoint (RFC 6749, section 3.2)."""
        return self.identity_url + _ENDPOINT


def _one_of(name: str, value: str, allowed: Iterable[str]) -> None:
    if value not in (values := list(allowed)):
        raise OpenmarketsConfigurationError(f"{name} must be one of {', '.join(values)}, not {value!r}.")


def _amount(name: str, value: Any) -> Decimal | None:
    if value is None:
        return None
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or amount <= 0:
        raise OpenmarketsConfigurationError(f"{name} must be an amount in dollars above 0, not {value!r}.")
    return amount


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except OSError:
        # For example in a directory that may not be read.
        return False


def _base_url(name: str, value: str) -> str:
    """Check a base URL and return it without its trailing slash."""
    # This comes first, because later messages quote the URL. NFKC turns look-alikes into '@', as urlsplit checks, too.
    if "@" in unicodedata.normalize("NFKC", unquote(value)):
        raise OpenmarketsConfigurationError(f"{name}: remove the credentials (an '@') from the URL.")
    if _HOST_FIRST.fullmatch(value):
        scheme = "http" if names_this_machine(value) else "https"
        raise OpenmarketsConfigurationError(f"{name}: {value!r} has no scheme; write {f'{scheme}://{value}'!r}.")
    try:
        parts = urlsplit(value)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise OpenmarketsConfigurationError(f"{name}: {value!r} is not a URL: {error}.") from None
    if not host or not _HOST.fullmatch(host) or port == 0 or not value.isprintable() or re.search(r"[ ?#\\]", value):
        raise OpenmarketsConfigurationError(
            f"{name}: {value!r} is not a base URL; write https://host, or https://host/path, without a query."
        )
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(host)):
        raise OpenmarketsConfigurationError(
            f"{name}: {value!r} is not allowed; use https, or http for this machine (localhost)."
        )
    base = value.rstrip("/")
    if name == "identity_url" and base.lower().endswith(_ENDPOINT):
        raise OpenmarketsConfigurationError(
            f"identity_url: {value!r} ends with /connect/token, which is added automatically; write "
            f"{base[: -len(_ENDPOINT)]!r}."
        )
    return base


def names_this_machine(url: str) -> bool:
    """Return whether a URL without its scheme names this machine: localhost, or an address such as 127.0.0.1."""
    try:
        return _is_loopback(urlsplit(f"//{url}").hostname or "")
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
