"""The state that a process keeps in memory, for tests that need a new process."""

from __future__ import annotations

from openmarkets_provider.client.auth import provider
from openmarkets_provider.client.cache import entry, fallback, redis
from openmarkets_provider.client.ratelimit import hold


def reset_memory() -> None:
    """Forget the tokens, holds, outages and warnings in the memory of this process. Stores keep theirs."""
    for module in (provider, hold, entry, fallback, redis):
        module.reset()
