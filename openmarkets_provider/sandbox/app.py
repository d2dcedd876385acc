"""The ASGI app: identity server and APIs, each below its own path, and the handling of every request.

Every API answers 401 below `<api>/user-context/`, even with a valid token. This stands for the endpoints that need a
user, which a client-credentials token never has.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openmarkets_provider.sandbox import control, identity, market_data, news, oms
from openmarkets_provider.sandbox.faults import Fault
from openmarkets_provider.sandbox.state import State
from openmarkets_provider.sandbox.wire import problem


class Api(NamedTuple):
    """An API: its path, the scope that its tokens need, and its endpoints."""

    path: str
    scope: str
    routes: Sequence[Route]


APIS = {
    "market_data": Api("/market-data", "market-data-api", market_data.ROUTES),
    "news": Api("/news", "news-api", news.ROUTES),
    "oms": Api("/oms", "oms-api", oms.ROUTES),
}
CONTROL = "/_sandbox"
IDENTITY = "/identity"

_TARGETS = {IDENTITY: "identity", **{api.path: name for name, api in APIS.items()}}
_BODILESS = (204, 304)


def create_app(state: State, latency: float, closing: asyncio.Event) -> ASGIApp:
    """Return the app.

    Every request waits `latency` seconds, except those to the control paths. After `closing` is set, nothing waits.
    """
    app = Starlette(
        routes=[
            Mount(CONTROL, Router(control.ROUTES, redirect_slashes=False)),
            Mount(IDENTITY, CannedReplies(Router(identity.ROUTES, redirect_slashes=False), state)),
            *(
                Mount(
                    api.path,
                    TokenCheck(CannedReplies(Router(api.routes, redirect_slashes=False), state), state, api),
                )
                for api in APIS.values()
            ),
        ],
        middleware=[Middleware(Gateway, state=state, latency=latency, closing=closing)],
        exception_handlers={HTTPException: _refuse},
    )
    app.router.redirect_slashes = False
    app.state.sandbox = state
    return app


async def _refuse(request: Request, error: Any) -> Response:
    return problem(error.status_code, error.detail, error.headers)


class TokenCheck:
    """Passes requests on to an API if their token is valid for it."""

    def __init__(self, app: ASGIApp, state: State, api: Api) -> None:
        """Wrap the endpoints of an API."""
        self._app, self._state, self._api = app, state, api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request or pass it on."""
        scheme, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
        scopes = self._state.tokens.scopes(token) if scheme.lower() == "bearer" else None
        if scopes is None:
            content = {"error": "invalid_token", "error_description": "The token is missing or isn't valid."}
            answer: ASGIApp = JSONResponse(content, 401, {"WWW-Authenticate": 'Bearer error="invalid_token"'})
        elif self._api.scope not in scopes:
            answer = problem(403, f"The token doesn't have the scope {self._api.scope}.")
        elif scope["path"].startswith(f"{self._api.path}/user-context/"):
            answer = problem(401, "This endpoint needs a user context.", {"WWW-Authenticate": "Bearer"})
        else:
            answer = self._app
        await answer(scope, receive, send)


class CannedReplies:
    """Answers requests with canned replies if there are any."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        """Wrap endpoints."""
        self._app, self._state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request or pass it on."""
        reply = self._state.replies.take(scope["method"], scope["path"])
        answer = self._app if reply is None else _response(reply.content, reply.status, reply.headers)
        await answer(scope, receive, send)


class Gateway:
    """Counts and delays every request, applies faults, and echoes `X-Request-ID`."""

    def __init__(self, app: ASGIApp, state: State, latency: float, closing: asyncio.Event) -> None:
        """Wrap the whole app."""
        self._app, self._state, self._latency, self._closing = app, state, latency, closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, pass it on, or cut its connection."""
        path: str = scope["path"]
        prefix = "/" + path.strip("/").partition("/")[0]
        if prefix == CONTROL:
            await self._app(scope, receive, send)
            return
        target = _TARGETS.get(prefix)
        try:
            body = await Request(scope, receive).body()
        except ClientDisconnect:
            return
        scopes = identity.read_scopes(body) if target == "identity" else []
        visit = self._state.stats.enter(target, f"{scope['method']} {path}", scopes)
        request_id = Headers(scope=scope).get("x-request-id")

        async def replay() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        async def reply(message: Message) -> None:
            if message["type"] == "http.response.start":
                # Counted before it is sent: a client that has its answer must find it in the counts.
                visit.close(str(message["status"]))
                if request_id is not None:
                    MutableHeaders(scope=message).setdefault("X-Request-ID", request_id)
            await send(message)

        try:
            fault = self._state.faults.take(target, path, _identify(scope, body)) if target else None
            first = fault is not None and fault.process_first
            answer = await _process(self._app, scope, replay) if first else self._app
            await self._wait(self._latency + (fault.seconds if fault else 0))
            if fault is None or fault.kind == "delay":
                await answer(scope, replay, reply)
            elif fault.kind == "reset":
                visit.close("reset")
                await _cut(fault.content(), scope, receive, send)
            else:
                await _fault_response(fault)(scope, replay, reply)
        finally:
            visit.close("500")

    async def _wait(self, seconds: float) -> None:
        """Wait, at most until the server stops."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), seconds)


def _identify(scope: Scope, body: bytes) -> str:
    """Return an identifier of a request: everything except its headers."""
    query = scope["query_string"].decode("latin-1")
    return f"{scope['method']} {scope['path']}?{query} {hashlib.blake2b(body).hexdigest()}"


async def _process(app: ASGIApp, scope: Scope, receive: Receive) -> ASGIApp:
    """Process a request, and return an app that sends its answer."""
    messages: list[Message] = []

    async def keep(message: Message) -> None:
        messages.append(message)

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    await app(scope, receive, keep)
    return answer


def _fault_response(fault: Fault) -> Response:
    headers = dict(fault.headers)
    if fault.retry_after is not None:
        headers["Retry-After"] = str(fault.retry_after)
    content = fault.content()
    if content is None and fault.status not in _BODILESS:
        return problem(fault.status, "A fault that a test set in the sandbox.", headers)
    return _response(content, fault.status, headers)


def _response(content: bytes | None, status: int, headers: Mapping[str, str]) -> Response:
    """Return a response with JSON, unless the headers have another content type."""
    if status in _BODILESS:
        return Response(None, status, headers)
    return Response(content, status, headers, media_type="application/json")


async def _cut(start: bytes | None, scope: Scope, receive: Receive, send: Send) -> None:
    """Reset the TCP connection, after the start of an answer if there is one."""
    transport: asyncio.Transport = scope["state"]["transport"]
    if start is not None:
        length = str(len(start) + 1).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", length)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": start, "more_body": True})
    if not transport.is_closing():
        # A linger time of 0 turns the close into a reset.
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    # If the app returns before the disconnect, uvicorn reports a missing answer.
    while (await receive())["type"] != "http.disconnect":
        pass
