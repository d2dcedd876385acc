"""An ``httpx.Client`` for users. Its requests are sent like all others."""

from __future__ import annotations

from collections.abc import Callable
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx

from openmarkets_provider.client.http.clients import HttpRequest, NoAnswer, Options, Reply
from openmarkets_provider.client.http.network import core_url

_OF_THE_ENCODED_BODY = ("content-encoding", "content-length", "transfer-encoding")
"""Headers of a reply that are wrong for its decoded body."""


def open_httpx_client(
    base_url: str, options: Options, send: Callable[[HttpRequest], Reply], close: Callable[[], None]
) -> httpx.Client:
    """Return an ``httpx.Client`` that sends through a function. Replies are not streamed.

    :param send: sends a request and returns the reply.
    :param close: called when the client is closed.
    """
    return httpx.Client(
        base_url=base_url,
        transport=_Transport(send, close),
        timeout=httpx.Timeout(options.timeout, connect=options.timeouts["connect"]),
        headers=options.headers,
        follow_redirects=False,
        # No netrc and no proxy: the transport handles both.
        trust_env=False,
        # No cookies: httpx would send them back, and fails if a value is not ASCII.
        cookies=CookieJar(DefaultCookiePolicy(netscape=False, rfc2965=False)),
    )


class _Transport(httpx.BaseTransport):
    def __init__(self, send: Callable[[HttpRequest], Reply], close: Callable[[], None]) -> None:
        self._send = send
        self._close = close

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        # httpx adds this header if a URL contains credentials.
        headers = tuple((name, value) for name, value in request.headers.raw if name.lower() != b"authorization")
        timeouts = request.extensions.get("timeout")
        core = HttpRequest(request.method, core_url(request.url), headers, request.read(), timeouts=timeouts)
        try:
            reply = self._send(core)
        except NoAnswer as error:
            # The errors of httpx have the names of httpcore's.
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
