"""Converts the fields of an Airflow connection to the settings of a client."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from openmarkets_provider.exceptions import OpenmarketsConfigurationError
from openmarkets_provider.get_provider_info import CONNECTION_FIELDS, CONNECTION_TYPE

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection

    from openmarkets_provider.client.settings import Settings


def make_settings(connection: Connection) -> Settings:
    """Convert a connection to settings.

    None and empty text mean unset. In a connection from a URI all values are text, which is converted to numbers and
    lists.

    :raises OpenmarketsConfigurationError: a field is unknown or not allowed; the message names it.
    """
    from openmarkets_provider.client.settings import Settings

    if connection.conn_type != CONNECTION_TYPE:
        raise OpenmarketsConfigurationError(
            f"Connection {connection.conn_id!r} must have the type 'openmarkets', not {connection.conn_type!r}."
        )
    extra = _decode_extra(connection)
    if unknown := sorted(extra.keys() - CONNECTION_FIELDS.keys()):
        raise OpenmarketsConfigurationError(
            f"Extra of connection {connection.conn_id!r}: unknown field {', '.join(map(repr, unknown))}; use one "
            f"of {', '.join(CONNECTION_FIELDS)}."
        )
    fields = {
        name: _coerce(name, value) for name, value in extra.items() if value is not None and value not in ("", [])
    }
    return Settings(
        client_id=connection.login or "",
        client_secret=connection.password or "",
        identity_url=_make_identity_url(connection, fields.get("environment")),
        **fields,
    )


def _decode_extra(connection: Connection) -> dict[str, Any]:
    # Airflow's own property reads malformed JSON as an empty Extra, and warns about short values.
    try:
        extra = json.loads(connection.extra or "{}")
    except (ValueError, RecursionError):
        extra = connection.extra
    if extra is not None and not isinstance(extra, dict):
        raise OpenmarketsConfigurationError(
            f'Extra of connection {connection.conn_id!r} is not a JSON object; write {{"environment": "test"}}.'
        )
    return extra or {}


def _coerce(name: str, value: Any) -> Any:
    """Convert a value to the type of its field."""
    kind = CONNECTION_FIELDS[name]["schema"]["type"][0]
    if kind == "number":
        try:
            if isinstance(value, bool):
                raise ValueError
            return float(value)
        except (TypeError, ValueError, OverflowError):
            raise OpenmarketsConfigurationError(f"{name} must be a number, not {value!r:.200}.") from None
    if kind == "array":
        items = value.replace(",", " ").split() if isinstance(value, str) else value
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise OpenmarketsConfigurationError(f"{name} must be a list of strings, not {value!r:.200}.")
        return tuple(dict.fromkeys(items))
    if not isinstance(value, str):
        raise OpenmarketsConfigurationError(f"{name} must be a string, not {value!r:.200}.")
    return value.strip()


def _make_identity_url(connection: Connection, environment: str | None) -> str:
    """Combine host and port; empty if neither is set."""
    from openmarkets_provider.client.environments import ENVIRONMENTS
    from openmarkets_provider.client.settings import DEFAULT_ENVIRONMENT, names_this_machine

    url = (connection.host or "").strip()
    # The default scheme is https, except on this machine, where Settings requires one.
    if "://" not in url and names_this_machine(url):
        return url
    if not connection.port:
        return url if "://" in url or not url else f"https://{url}"
    # Settings refuses unknown environments.
    if not url and (environment or DEFAULT_ENVIRONMENT) in ENVIRONMENTS:
        url = ENVIRONMENTS[environment or DEFAULT_ENVIRONMENT].identity_url
    scheme, _, rest = url.rpartition("://")
    authority, slash, path = rest.partition("/")
    if authority.rpartition(":")[2] == str(connection.port):
        return url if scheme else f"https://{url}"
    if ":" in authority.rpartition("]")[2]:
        raise OpenmarketsConfigurationError(
            f"port: {connection.port} differs from the port in the Identity URL (host) {url!r}; "
            f"set port to {authority.rpartition(':')[2]}, or leave it empty."
        )
    return f"{scheme or 'https'}://{authority}:{connection.port}{slash}{path}"
