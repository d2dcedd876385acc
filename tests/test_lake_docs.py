"""What docs/howto/lakehouse.md shows of reading works; tests/test_docs_code.py runs its DAG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from openmarkets_provider import queries
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
from openmarkets_provider.transfers.openmarkets_to_delta import OpenmarketsToDeltaOperator
from openmarkets_provider.transfers.openmarkets_to_iceberg import OpenmarketsToIcebergOperator
from tests.support import lakes  # noqa: F401 (it tells polars who plans)
from tests.support.context import context
from tests.support.pages import BLOCKS

QUERY = queries.time_series(["BHP", "CBA"], start="2026-03-02", end="2026-03-07")
BLOCK = next(block.text for block in BLOCKS if block.page == "docs/howto/lakehouse.md" and "closes_with" in block.text)


@pytest.fixture
def expected(openmarkets_sandbox) -> list[tuple[Any, ...]]:
    closes: dict[str, Any] = {}
    for row in OpenmarketsHook().run(QUERY):
        closes[row["security_code"]] = max(row["close_price"], closes.get(row["security_code"], 0))
    return sorted(closes.items())


def shown(name: str, folder: Path) -> list[tuple[Any, ...]]:
    """Run a function of the page, with a folder of this test."""
    names: dict[str, Any] = {}
    code = BLOCK.replace("@task\n", "").replace("/data/", f"{folder}/").replace("/shared/lake", str(folder))
    exec(compile(code, "docs/howto/lakehouse.md", "exec"), names)
    return list(map(tuple, names[name]()))


@pytest.mark.parametrize("name", ["closes_with_polars", "closes_with_duckdb"])
def test_a_delta_table_is_read(expected, tmp_path, name):
    where = str(tmp_path / "delta_bars")
    OpenmarketsToDeltaOperator(task_id="load", query=QUERY, destination=where, partition="month").execute(context())
    assert shown(name, tmp_path) == expected


@pytest.mark.since("3.2")
def test_an_iceberg_table_is_read(expected, tmp_path):
    OpenmarketsToIcebergOperator(
        task_id="load", query=QUERY, table="market.bars", warehouse=str(tmp_path), partition="month"
    ).execute(context())
    assert shown("closes_from_iceberg", tmp_path) == expected
