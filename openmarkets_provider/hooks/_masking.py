"""Registers secrets with Airflow's masker, which replaces them in logs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from airflow.providers.common.compat.sdk import mask_secret

if TYPE_CHECKING:
    from openmarkets_provider.client.settings import Settings


class AirflowMasker:
    """Registers each secret once per process."""

    def __init__(self) -> None:
        self._registered: set[tuple[int, str]] = set()

    def mask(self, value: str) -> None:
        """Mask a value."""
        if self._register(value):
            mask_secret(value)

    async def amask(self, value: str) -> None:
        """Mask a value without blocking the event loop."""
        if not self._register(value):
            return
        try:
            from airflow.sdk.log import amask_secret
        except ImportError:
            # Airflow before 3.3 has only the blocking function. It must run in asgiref's thread: from any other one it
            # would talk to the triggerer's supervisor on an event loop of its own, and end the triggerer.
            from asgiref.sync import sync_to_async

            await sync_to_async(mask_secret)(value)
        else:
            await amask_secret(value)

    def _register(self, value: str) -> bool:
        """Tell whether the value is new to this process."""
        # A forked task process reports to a supervisor of its own.
        entry = (os.getpid(), value)
        is_new = entry not in self._registered
        self._registered.add(entry)
        return is_new


MASKER = AirflowMasker()


async def amask_credentials(settings: Settings) -> None:
    """Mask the client secret in every form that a log may show.

    The client masks them itself, but on an event loop it does so in a thread from which the supervisor can't be reached
    (see :meth:`AirflowMasker.amask`).
    """
    from openmarkets_provider.client.auth.token_request import secret_forms

    for form in secret_forms(settings):
        await MASKER.amask(form)
