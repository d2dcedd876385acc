"""What docs/etl.md and docs/howto/adjusted-prices.md show works."""

from __future__ import annotations

import itertools
import json
import re
import runpy
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from openmarkets_provider import queries
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
from openmarkets_provider.landing.places import OBJECT_STORES
from openmarkets_provider.landing.tables import LOAD_ID
from openmarkets_provider.transfers.openmarkets_to_object_storage import OpenmarketsToObjectStorageOperator
from tests.support.context import context

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "etl.md").read_text()
ADJUSTED = (ROOT / "docs" / "howto" / "adjusted-prices.md").read_text()
EXAMPLE = ROOT / "example_dags" / "example_etl_daily_bars.py"
CODES = ["BHP", "CBA", "ZCONS"]
QUERY = queries.time_series(CODES, start="2026-03-12", end="2026-03-19", adjusted=True)
"""On the third of the five days there is a consolidation of ``ZCONS``: a price is ten times that of the day before."""
POLARS = """
import json, sys
from airflow.providers.common.compat.sdk import task
exec(sys.argv[1])
print(json.dumps(best_day.function({"files": json.loads(sys.argv[2])}), default=str))
"""


@pytest.fixture(scope="module")
def shown() -> dict[str, Any]:
    """What the blocks of both pages define, one after the other."""
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", TEXT + ADJUSTED, re.DOTALL):
        exec(compile(code, "docs", "exec"), names)
    return names


@pytest.fixture
def landed(openmarkets_sandbox, tmp_path: Path) -> dict[str, Any]:
    task = OpenmarketsToObjectStorageOperator(
        task_id="lake", query=QUERY, destination=str(tmp_path / "lake"), partition="day"
    )
    return task.execute(context())


@pytest.fixture
def bars(openmarkets_sandbox) -> list[dict[str, Any]]:
    return OpenmarketsHook().run(QUERY)


def block_with(name: str) -> str:
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", ADJUSTED, re.DOTALL) if f"def {name}(" in code]
    return code


def test_the_result_has_the_parts_that_the_page_shows(landed):
    (example,) = re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)
    assert landed.keys() == json.loads(example).keys()
    assert landed["rows"] == 15
    assert len(landed["files"]) == 5


def test_the_dags_hold_the_tasks_that_they_show(shown):
    dag = shown["land_each_session"]()
    assert {task.task_id: [outlet.uri for outlet in task.outlets] for task in dag.tasks} == {
        "lake": ["s3://lake/bars"],
        "warehouse": ["sql://postgres_default/market.daily_bars"],
    }
    consumer = shown["on_new_bars"]()
    assert dag.task_dict["lake"].outlets[0].uri in str(consumer.timetable.asset_condition)


def test_duckdb_reads_it(shown, landed, bars):
    found = shown["volume_weighted_price"].function(landed)
    assert [code for code, *_ in found] == CODES
    for code, days, vwap in found:
        own = [bar for bar in bars if bar["security_code"] == code]
        expected = sum(bar["total_value"] for bar in own) / sum(bar["adjusted_total_volume"] for bar in own)
        assert (days, vwap) == (5, pytest.approx(float(expected), rel=1e-6))
        assert min(bar["adjusted_low_price"] for bar in own) < vwap < max(bar["adjusted_high_price"] for bar in own)


def test_the_volume_weighted_price_of_numbers_by_hand(shown, tmp_path: Path):
    # A day before a 4:1 split and one after it: 1000 dollars on each, for 400 and for 200 shares of today.
    columns = {
        "security_code": ["A", "A"],
        "market_vwap": [Decimal("10.000000"), Decimal("5.000000")],
        "total_volume": [100, 200],
        "adjusted_total_volume": [Decimal("400.000000000000"), Decimal("200.000000000000")],
    }
    pq.write_table(pa.table(columns), tmp_path / "bars.parquet")
    ((code, days, vwap),) = shown["volume_weighted_price"].function({"files": [str(tmp_path / "bars.parquet")]})
    assert (code, days, vwap) == ("A", 2, pytest.approx(2000 / 600))


def test_pandas_reads_it(shown, landed, bars):
    assert shown["closes_by_day"].function(landed) == {
        str(day): {
            bar["security_code"]: float(bar["adjusted_close_price"]) for bar in bars if bar["time_series_date"] == day
        }
        for day in {bar["time_series_date"] for bar in bars}
    }


def best_day(files: list[str]) -> Any:
    # In a separate process: after importing polars a process must not fork, but other tests do.
    output = subprocess.check_output(
        [sys.executable, "-c", POLARS, block_with("best_day"), json.dumps(files)], text=True
    )
    return json.loads(output.splitlines()[-1])


def test_no_files_are_no_failure(shown):
    assert shown["volume_weighted_price"].function({"files": []}) == []
    assert shown["closes_by_day"].function({"files": []}) == {}
    assert best_day([]) is None


def test_polars_reads_it(landed, bars):
    code, day, change = best_day(landed["files"])
    closes = {(bar["security_code"], str(bar["time_series_date"])): bar["adjusted_close_price"] for bar in bars}
    keys = sorted(closes)
    changes = {key: closes[key] / closes[before] - 1 for before, key in itertools.pairwise(keys) if before[0] == key[0]}
    assert change == pytest.approx(float(max(changes.values())))
    assert changes[code, day] == max(changes.values())


def test_the_hook_in_a_task(openmarkets_sandbox, shown):
    widest = shown["widest_ranges"].function("2026-03-02", "2026-03-07")
    assert len(widest) == 3
    assert [type(row["range"]) for row in widest] == [Decimal] * 3
    assert [row["range"] for row in widest] == sorted((row["range"] for row in widest), reverse=True)


def test_the_example_sums_up_across_a_split(openmarkets_sandbox):
    sum_up = runpy.run_path(str(EXAMPLE))["sum_up"]
    query = queries.time_series("ZSPLIT", start="2026-02-26", end="2026-03-03", adjusted=True)
    line = sum_up(OpenmarketsHook().run(query))
    # 36.15 dollars before a 4:1 split are 9.0375 after it, and 9.29 was the last price.
    assert (line["close"], line["change_percent"]) == (Decimal("9.29"), Decimal("2.79"))
    assert (line["low"], line["high"]) == (Decimal("8.98"), Decimal("9.33"))
    assert line["volume"] == 139500 + 114800 + 96300


def test_names_in_the_text_are_those_of_the_code():
    assert f"`{LOAD_ID}`" in TEXT
    for scheme in ("s3", "gs", "abfs"):
        assert scheme in OBJECT_STORES
        assert f"`{scheme}://" in TEXT
