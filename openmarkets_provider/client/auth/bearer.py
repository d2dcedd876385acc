"""Bearer tokens on requests (RFC 6750). A request that gets a 401 is sent again once, with a new token."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from openmarkets_provider.client.auth.token import Token
from openmarkets_provider.client.http.clients import HttpRequest, Reply


async def send_authorized(
    request: HttpRequest,
    get_token: Callable[[Token | None], Awaitable[Token]],
    send: Callable[[HttpRequest], Awaitable[Reply]],
) -> Reply:
    """Send a request with an access token.

    After a 401 it is sent again even if it is not safe to repeat, because the server refused it. After a 403 it is not.

    :param get_token: takes None, or the token that the server refused; returns the token to send.
    :return: the reply, with the token among the texts that errors must not show.
    """
    token = await get_token(None)
    reply = await send(_authorize(request, token))
    if reply.status == 401:
        refused, token = token, await get_token(token)
        if token.value != refused.value:
            reply = await send(_authorize(request, token))
    return reply._replace(hidden=(token.value,))


def _authorize(request: HttpRequest, token: Token) -> HttpRequest:
    return request.with_header(b"Authorization", b"Bearer " + token.value.encode())
