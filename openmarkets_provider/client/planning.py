"""From a query to the calls that answer it: checks, defaults, splitting. Pure.

A query is plain data: a dict with ``endpoint`` and that endpoint's arguments. It is looked at twice by the same
code: when a DAG author makes it (what is still a template, or an upstream task's result, is left alone then)
and when it runs (everything must be final).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote

from openmarkets_provider.client.endpoints import ENDPOINTS, MAX_SECURITIES, Endpoint, find_endpoint
from openmarkets_provider.client.environments import SCOPES
from openmarkets_provider.exceptions import OpenmarketsQueryError

Query = dict[str, Any]
"""What to ask of the APIs, as JSON-able data. Made by the functions of ``openmarkets_provider.queries``."""

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
DEFAULT_EXCHANGE = "ASX"
DEFAULT_DATA_SOURCE = "TM"

_SECURITY = re.compile(r"(?P<code>[\w-]+)(?:\.(?P<exchange>[\w-]+))?(?:@(?P<source>[\w-]+))?", re.ASCII)
_WORD = re.compile(r"[\w-]+", re.ASCII)
_JINJA = re.compile(r"\{[{%#]")
_MAX_PATH = 2000


class ApiCall(NamedTuple):
    """One HTTP request to come, as data.

    :ivar path: relative to the API's base URL, without a leading slash.
    :ivar rows: the field of the reply that holds the rows; None when the reply is the answer itself.
    """

    api: str
    method: str
    path: str
    params: Mapping[str, Any] | None = None
    json: Any = None
    safe_to_repeat: bool = False
    rows: str | None = None

    @property
    def label(self) -> str:
        """How logs and errors name the call."""
        return f"{self.method} {self.api} {self.path}"


Final = Callable[[Any], bool]
"""Tells whether a value is final, or comes to be known later."""


def is_literal(value: Any) -> bool:
    """Tell whether a value is known while the DAG is parsed: no Jinja template, no upstream result."""
    if isinstance(value, str):
        return _JINJA.search(value) is None
    return not hasattr(value, "resolve")


def check(query: Query) -> Query:
    """Check what is literal in a query and return it.

    :raises OpenmarketsQueryError: an argument is malformed; the text names it.
    """
    list(_calls(query, is_literal))
    return query


def plan(query: Query) -> list[ApiCall]:
    """Turn a rendered query into the calls that answer it, in the order of their rows.

    :raises OpenmarketsQueryError: an argument is malformed; the text names it.
    """
    return list(_calls(query, lambda value: True))


def is_repeatable(query: Query) -> bool:
    """Tell whether every call of a rendered query is safe to repeat."""
    return all(call.safe_to_repeat for call in plan(query))


def _calls(query: Query, final: Final) -> Iterator[ApiCall]:
    if not isinstance(query, Mapping):
        raise OpenmarketsQueryError(
            f"query: expected what a function of openmarkets_provider.queries returns, got {_kind(query)}."
        )
    name = query.get("endpoint")
    if not isinstance(name, str) or name not in _PLANNERS:
        raise OpenmarketsQueryError(
            f"query: endpoint {_shown(name)} is unknown; allowed are {', '.join(sorted(_PLANNERS))}."
        )
    arguments = {key: _listed(value) for key, value in query.items() if key != "endpoint"}
    _check_json(arguments, final)
    planner, allowed = _PLANNERS[name]
    if unknown := arguments.keys() - allowed:
        raise OpenmarketsQueryError(
            f"{name}: unknown argument {', '.join(sorted(map(repr, unknown)))}; "
            f"allowed are {', '.join(allowed) or 'none'}."
        )
    if missing := [key for key in allowed if key not in arguments]:
        raise OpenmarketsQueryError(f"{name}: argument {', '.join(missing)} is missing.")
    return planner(name, arguments, final)


def _plan_request(name: str, arguments: Mapping[str, Any], final: Final) -> Iterator[ApiCall]:
    api, method = arguments["api"], arguments["method"]
    if final(api) and not (isinstance(api, str) and api in SCOPES):
        raise OpenmarketsQueryError(f"{name}: api {_shown(api)} is unknown; allowed are {', '.join(SCOPES)}.")
    if final(method):
        method = method.upper() if isinstance(method, str) else method
        if method not in METHODS:
            raise OpenmarketsQueryError(
                f"{name}: method {_shown(method)} is unknown; allowed are {', '.join(METHODS)}."
            )
    path = _relative_path(name, arguments["path"]) if final(arguments["path"]) else ""
    params, body, safe = arguments["params"], arguments["json"], arguments["safe_to_repeat"]
    if params is not None and final(params):
        _check_params(name, params, final)
    if body is not None and method == "GET":
        raise OpenmarketsQueryError(f"{name}: json does not go with GET; use params.")
    if safe is not None and not isinstance(safe, bool) and final(safe):
        raise OpenmarketsQueryError(f"{name}: safe_to_repeat must be True, False or None, not {_kind(safe)}.")
    known = find_endpoint(api, method, path)
    if safe is True and known is not None and not known.safe_to_repeat:
        raise OpenmarketsQueryError(f"{name}: {method} {path} is never safe to repeat; leave safe_to_repeat out.")
    if safe is None:
        safe = known.safe_to_repeat if known else method == "GET"
    yield ApiCall(api, method, path, params or None, body, safe)


def _plan_securities(name: str, arguments: Mapping[str, Any], final: Final) -> Iterator[ApiCall]:
    exchange = arguments["exchange"]
    if final(exchange) and not (isinstance(exchange, str) and _WORD.fullmatch(exchange)):
        raise OpenmarketsQueryError(f"{name}: exchange must be a code such as 'ASX', not {_shown(exchange)}.")
    yield _call(ENDPOINTS[name], params={"exchanges": exchange})


def _plan_security_batches(name: str, arguments: Mapping[str, Any], final: Final) -> Iterator[ApiCall]:
    endpoint = ENDPOINTS[name]
    securities = _securities(name, arguments["securities"], final)
    size = endpoint.max_securities or MAX_SECURITIES
    for start in range(0, len(securities), size):
        yield _call(endpoint, body={"securities": securities[start : start + size]})


def _plan_plain(name: str, arguments: Mapping[str, Any], final: Final) -> Iterator[ApiCall]:
    yield _call(ENDPOINTS[name])


_PLANNERS: Mapping[str, tuple[Callable[[str, Mapping[str, Any], Final], Iterator[ApiCall]], tuple[str, ...]]] = {
    "request": (_plan_request, ("api", "method", "path", "params", "json", "safe_to_repeat")),
    "quotes": (_plan_security_batches, ("securities",)),
    "securities": (_plan_securities, ("exchange",)),
    "accounts": (_plan_plain, ()),
}
"""Endpoint name to its planner and the arguments that its queries hold, all of them."""


def _call(endpoint: Endpoint, *, params: Mapping[str, Any] | None = None, body: Any = None) -> ApiCall:
    return ApiCall(
        api=endpoint.api,
        method=endpoint.method,
        path=endpoint.path,
        params=params,
        json=body,
        safe_to_repeat=endpoint.safe_to_repeat,
        rows=endpoint.rows,
    )


def _securities(name: str, value: Any, final: Final) -> list[str]:
    """Return the final ones of the securities in full form, each once, in the order given."""
    if not final(value):
        return []
    if isinstance(value, str):
        value = value.replace(",", " ").split()
    if not isinstance(value, list | tuple):
        raise OpenmarketsQueryError(
            f"{name}: securities must be a list such as ['BHP', 'CBA.ASX'] or a text such as 'BHP, CBA', "
            f"not {_kind(value)}."
        )
    if not value:
        raise OpenmarketsQueryError(f"{name}: securities is empty; name at least one.")
    return list(dict.fromkeys(_full_security(name, item) for item in value if final(item)))


def _full_security(name: str, value: Any) -> str:
    match = _SECURITY.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise OpenmarketsQueryError(
            f"{name}: securities: {_shown(value)} is malformed; write 'BHP', 'BHP.ASX' or 'BHP.ASX@TM'."
        )
    code, exchange, source = match.group("code", "exchange", "source")
    return f"{code}.{exchange or DEFAULT_EXCHANGE}@{source or DEFAULT_DATA_SOURCE}"


def _relative_path(name: str, path: Any) -> str:
    """Return the path without its leading slash, or refuse one that could lead out of the API's base URL."""
    if not isinstance(path, str) or not path.strip("/"):
        raise OpenmarketsQueryError(f"{name}: path must be a text such as 'securities/v1', not {_shown(path)}.")
    if len(path) > _MAX_PATH:
        raise OpenmarketsQueryError(f"{name}: path has {len(path)} characters; {_MAX_PATH} are the most.")
    decoded = path
    while (further := unquote(decoded)) != decoded:
        decoded = further
    segments = re.split(r"[/\\]", decoded.removeprefix("/"))
    # What stands before a colon in the first segment is a scheme (RFC 3986, section 4.2), which would get lost.
    if ":" in segments[0] or decoded.startswith("//") or "\\" in decoded or ".." in segments or "." in segments:
        raise OpenmarketsQueryError(
            f"{name}: path {path!r} must be relative to the API's base URL: no scheme, no host, no '..'."
        )
    if not decoded.isprintable() or " " in decoded or "?" in path or "#" in path:
        raise OpenmarketsQueryError(
            f"{name}: path {path!r} must not hold blanks, control characters, '?' or '#'; "
            "put the query string into params."
        )
    return path.removeprefix("/")


def _check_params(name: str, params: Any, final: Final) -> None:
    if not isinstance(params, Mapping):
        raise OpenmarketsQueryError(f"{name}: params must be a dict, not {_kind(params)}.")
    for key, value in params.items():
        if not isinstance(key, str):
            raise OpenmarketsQueryError(f"{name}: the names in params must be texts, not {_kind(key)}.")
        for item in value if isinstance(value, list | tuple) else [value]:
            if final(item) and not isinstance(item, str | int | float):
                raise OpenmarketsQueryError(
                    f"{name}: params[{key!r}] must be a text, a number, a boolean or a list of them, not {_kind(item)}."
                )


def _check_json(arguments: Mapping[str, Any], final: Final) -> None:
    def later(value: Any) -> None:
        if final(value):
            raise TypeError(f"{_kind(value)} is not JSON-able")

    for key, value in arguments.items():
        try:
            # Encoded, because a lone surrogate is a text that can't be sent.
            json.dumps(value, allow_nan=False, ensure_ascii=False, default=later).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise OpenmarketsQueryError(
                f"query: argument {key}: {error}; a query holds texts, numbers, booleans, None, lists and "
                "dicts only (times as ISO 8601 texts)."
            ) from None


def _listed(value: Any) -> Any:
    """Turn a sequence that loads its items when asked, as the results of mapped tasks do, into a list."""
    lazy = isinstance(value, Sequence) and not isinstance(value, str | bytes | list | tuple)
    return list(value) if lazy else value


def _shown(value: Any) -> str:
    return f"{value!r:.200}" if isinstance(value, str) else _kind(value)


def _kind(value: Any) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"
