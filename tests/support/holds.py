"""What a 429 leaves behind, for tests that can't wait until it is over."""

from __future__ import annotations

import os
import shutil

from openmarkets_provider.client.ratelimit import hold


def end_holds() -> None:
    """End all holds of this process and its host."""
    hold.reset()
    shutil.rmtree(os.environ["AIRFLOW__OPENMARKETS__TOKEN_CACHE_DIR"])
