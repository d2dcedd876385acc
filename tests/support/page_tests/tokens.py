"""What the tests of pages need that run in one process: tokens of their own for each page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="module")
def fresh_tokens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let a page know nothing of the tokens of another one."""
    from openmarkets_provider.testing.memory import reset_memory

    reset_memory()
    folder: Path = tmp_path_factory.mktemp("tokens")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW__OPENMARKETS__TOKEN_CACHE_DIR", str(folder / "cache"))
        yield
