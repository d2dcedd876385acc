"""An address on loopback that drops every attempt to connect, as a firewall does."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def black_hole(host: str = "127.0.0.1", port: int = 0) -> Iterator[socket.socket]:
    """Listen with a full queue, and yield the listener: the system does not answer further clients.

    The next client can connect when the listener has accepted the one that fills the queue.
    """
    with ExitStack() as sockets:
        listener = sockets.enter_context(socket.create_server((host, port), backlog=0))
        sockets.enter_context(socket.create_connection(listener.getsockname()))
        yield listener
