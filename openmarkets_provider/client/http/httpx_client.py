"""An ``httpx.Client`` for users, whose requests go the way of all others."""

from __future__ import annotations

from collections.abc import Callable
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx

from openmarkets_provider.client.http.clients import HttpRequest, NoAnswer, Options, Reply
from openmarkets_provider.client.http.network import core_url

_OF_THE_ENCODED_BODY = ("content-encoding", "content-length", "transfer-encoding")
"""Headers of a reply that no longer hold when its body is decoded."""


def open_httpx_client(
    base_url: str, options: Options, send: Callable[[HttpRequest], Reply], close: Callable[[], None]
) -> httpx.Client:
    """Return an ``httpx.Client`` that leaves sending to somebody else. Replies come to it as a whole.

    :param send: sends a request.
    :param close: called when the client is closed.
    """
    return httpx.Client(
        base_url=base_url,
        transport=_Transport(send, close),
        timeout=httpx.Timeout(options.timeout, connect=options.timeouts["connect"]),
        headers=options.headers,
        follow_redirects=False,
        # No netrc, no proxy: the transport knows the way.
        trust_env=False,
        # httpx would keep what a server sets, send it back, and fail at a value that is not ASCII.
        cookies=CookieJar(DefaultCookiePolicy(netscape=False, rfc2965=False)),
    )


class _Transport(httpx.BaseTransport):
    def __init__(self, send: Callable[[HttpRequest], Reply], close: Callable[[], None]) -> None:
        self._send = send
        self._close = close

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        # httpx makes one of credentials in a URL.
        headers = tuple((name, value) for name, value in request.headers.raw if name.lower() != b"authorization")
        timeouts = request.extensions.get("timeout")
        core = HttpRequest(request.method, core_url(request.url), headers, request.read(), timeouts=timeouts)
        try:
            reply = self._send(core)
        except NoAnswer as error:
            # Their names are the same, as httpx makes its errors of httpcore's.
            kind = getattr(httpx, type(error.__cause__).__name__, httpx.TransportError)
            raise kind(str(error.__cause__), request=request) from error
        reply_headers = [
            (name.encode("latin-1"), value.encode("latin-1"))
            for name, value in reply.headers.items()
            if name not in _OF_THE_ENCODED_BODY
        ]
        return httpx.Response(reply.status, headers=reply_headers, content=reply.body)

    def close(self) -> None:
        self._close()
