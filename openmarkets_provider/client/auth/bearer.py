"""Bearer tokens on requests (RFC 6750): every request carries one, and a 401 is answered once with the next one."""

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

    It is repeated after a 401 even when it is not safe to repeat: the server refused it. A 403 costs no token.

    :param get_token: returns a token; for one that was refused, the one that replaces it.
    :return: the reply; its token is among what an error must not show.
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
