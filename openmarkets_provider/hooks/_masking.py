"""Registers secrets with Airflow's masker, which hides them in logs."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from airflow.providers.common.compat.sdk import mask_secret

if TYPE_CHECKING:
    from openmarkets_provider.client.settings import Settings


class AirflowMasker:
    """Registers each secret once per process. A secret counts as masked only after Airflow's masker has accepted it."""

    def __init__(self) -> None:
        # By process: a forked task process has its own supervisor.
        self._masked: set[tuple[int, str]] = set()
        self._pending: dict[tuple[asyncio.AbstractEventLoop, str], asyncio.Event] = {}

    def mask(self, value: str) -> None:
        """Mask a value. Concurrent threads may register it more than once, which is harmless."""
        entry = (os.getpid(), value)
        if entry not in self._masked:
            mask_secret(value)
            self._masked.add(entry)

    async def amask(self, value: str) -> None:
        """Mask a value without blocking the event loop.

        Coroutines share one attempt. If it fails or is cancelled, the next one makes its own.
        """
        entry = (os.getpid(), value)
        pending = (asyncio.get_running_loop(), value)
        while entry not in self._masked:
            if pending in self._pending:
                await self._pending[pending].wait()
                continue
            self._pending[pending] = done = asyncio.Event()
            try:
                await _amask_secret(value)
                self._masked.add(entry)
            finally:
                del self._pending[pending]
                done.set()


async def _amask_secret(value: str) -> None:
    try:
        from airflow.sdk.log import amask_secret
    except ImportError:
        # Airflow before 3.3 has only the blocking function. It must run in asgiref's thread: in any other thread it
        # would use another event loop to reach the triggerer's supervisor, which ends the triggerer.
        from asgiref.sync import sync_to_async

        await sync_to_async(mask_secret)(value)
    else:
        await amask_secret(value)


MASKER = AirflowMasker()


async def amask_credentials(settings: Settings) -> None:
    """Mask the client secret in every encoded form.

    The client masks them, too, but on an event loop it does so in a thread that can't reach the supervisor
    (see :func:`_amask_secret`).
    """
    from openmarkets_provider.client.auth.token_request import secret_forms

    for form in secret_forms(settings):
        await MASKER.amask(form)
