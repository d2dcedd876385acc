"""Checks of the arguments of ``request``, the query for any path of an API. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.query.arguments import Predicate, decode_percent, describe, describe_type
from openmarkets_provider.query.endpoints import APIS, find_endpoint

REQUEST_ARGUMENTS = ("api", "method", "path", "params", "json", "safe_to_repeat")
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_MAX_PATH = 2000


def check_request(arguments: Mapping[str, Any], is_literal: Predicate) -> dict[str, Any]:
    """Check the literal arguments of a request, and return all arguments with ``safe_to_repeat`` filled in.

    :raises OpenmarketsQueryError: an argument is malformed; the text names it.
    """
    api, method = arguments["api"], arguments["method"]
    if is_literal(api) and not (isinstance(api, str) and api in APIS):
        raise OpenmarketsQueryError(f"request: api must be one of {', '.join(APIS)}, not {describe(api)}.")
    if is_literal(method):
        method = method.upper() if isinstance(method, str) else method
        if method not in METHODS:
            raise OpenmarketsQueryError(f"request: method must be one of {', '.join(METHODS)}, not {describe(method)}.")
    path = check_path(arguments["path"]) if is_literal(arguments["path"]) else ""
    params, body, safe = arguments["params"], arguments["json"], arguments["safe_to_repeat"]
    if params is not None and is_literal(params):
        check_params(params, is_literal)
    if body is not None and method == "GET":
        raise OpenmarketsQueryError("request: json can't be used with GET; use params.")
    if safe is not None and not isinstance(safe, bool) and is_literal(safe):
        raise OpenmarketsQueryError(f"request: safe_to_repeat must be True, False or None, not {describe_type(safe)}.")
    endpoint = find_endpoint(api, method, path)
    if safe is True and endpoint is not None and not endpoint.safe_to_repeat:
        raise OpenmarketsQueryError(f"request: {method} {path} is never safe to repeat; remove safe_to_repeat.")
    if safe is None:
        safe = endpoint.safe_to_repeat if endpoint else method == "GET"
    return {**arguments, "method": method, "path": path, "params": params or None, "safe_to_repeat": safe}


def check_path(path: Any) -> str:
    """Return a path without its leading slash.

    :raises OpenmarketsQueryError: it is not a path, could leave the API's base URL, or contains a query string.
    """
    if not isinstance(path, str) or not path.strip("/"):
        raise OpenmarketsQueryError(f"request: path must be a string such as 'securities/v1', not {describe(path)}.")
    if len(path) > _MAX_PATH:
        raise OpenmarketsQueryError(f"request: path has {len(path)} characters; the maximum is {_MAX_PATH}.")
    decoded = decode_percent(path)
    segments = re.split(r"[/\\]", decoded.removeprefix("/"))
    # A colon in the first segment would end a scheme (RFC 3986, section 4.2).
    if ":" in segments[0] or decoded.startswith("//") or "\\" in decoded or ".." in segments or "." in segments:
        raise OpenmarketsQueryError(
            f"request: path {path!r} must be relative to the API's base URL: no scheme, no host, no '..'."
        )
    if not decoded.isprintable() or " " in decoded or "?" in path or "#" in path:
        raise OpenmarketsQueryError(
            f"request: path {path!r} must not contain spaces, control characters, '?' or '#'; "
            "put the query string into params."
        )
    return path.removeprefix("/")


def check_params(params: Any, is_literal: Predicate) -> None:
    """Check that the literal parts of ``params`` can be sent as a query string.

    :raises OpenmarketsQueryError: it is not a dict of texts, numbers, booleans or lists of them.
    """
    if not isinstance(params, Mapping):
        raise OpenmarketsQueryError(f"request: params must be a dict, not {describe_type(params)}.")
    for key, value in params.items():
        if not isinstance(key, str):
            raise OpenmarketsQueryError(f"request: the names in params must be strings, not {describe_type(key)}.")
        for item in value if isinstance(value, list | tuple) else [value]:
            if is_literal(item) and not isinstance(item, str | int | float):
                raise OpenmarketsQueryError(
                    f"request: params[{key!r}] must be a string, a number, a boolean or a list of them, not "
                    f"{describe_type(item)}."
                )
