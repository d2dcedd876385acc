"""The list of private attributes in CONTRIBUTING.md is complete, and the package works without them as it says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG

import openmarkets_provider
from openmarkets_provider import queries
from openmarkets_provider.sensors.openmarkets import OpenmarketsSensor
from openmarkets_provider.transfers.openmarkets_to_sql import OpenmarketsToSqlOperator
from openmarkets_provider.triggers._quote_batching import Outcome
from openmarkets_provider.triggers._seen_keys import digest
from openmarkets_provider.triggers._shared_polls import Reading
from tests.support.triggerer import StateStores

PACKAGE = Path(openmarkets_provider.__file__).parent
GUIDE = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()
SECTION = re.split(r"^## ", GUIDE.partition("## Private attributes\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
ROWS = [
    [re.findall(r"`([^`]+)`", cell) for cell in line.split("|")[1:-1]]
    for line in SECTION.splitlines()
    if line.startswith("| `")
]
DOCUMENTED = ("_asdict", "_exit", "_fields", "_make", "_replace")
"""Public in spite of the underscore: those of named tuples, and ``os._exit``."""
BY_ATTRIBUTE = ("getattr", "hasattr", "setattr", "delattr")


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in DOCUMENTED


def own_names(tree: ast.AST) -> set[str]:
    """Return the attributes that a module defines: methods, and what it sets on ``self``."""
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name("self"), attr=name, ctx=ast.Store()):
                names.add(name)
            case ast.AnnAssign(target=ast.Name(name)):
                names.add(name)
    return names


INHERITED = set().union(*(own_names(ast.parse(path.read_text())) for path in PACKAGE.rglob("order_*.py")))
"""What the modules of orders in the client define for those that build on them."""


def foreign_attributes(source: str) -> Iterator[str]:
    """Find private attributes that the module itself does not define, and private names of other packages."""
    tree = ast.parse(source)
    own = own_names(tree)
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Call(func=ast.Name("super")), attr=name) if is_private(name):
                yield name
            case ast.Attribute(value=ast.Name("self"), attr=name) if name in INHERITED:
                pass
            case ast.Attribute(attr=name) if is_private(name) and name not in own:
                yield name
            case ast.Call(func=ast.Name(function), args=[_, ast.Constant(str(name)), *_]) if function in BY_ATTRIBUTE:
                if is_private(name):
                    yield name
            case ast.ImportFrom(module=str(module)) if not module.startswith("openmarkets_provider"):
                parts = [*module.split("."), *(alias.name for alias in node.names)]
                yield from filter(is_private, parts)


def test_the_list_has_every_private_attribute_that_the_code_uses():
    used = {
        (name, path.relative_to(PACKAGE).as_posix())
        for path in PACKAGE.rglob("*.py")
        for name in foreign_attributes(path.read_text())
    }
    listed = {(name.rpartition(".")[2], where) for names, (where,), *_ in ROWS for name in names}
    assert used == listed


@pytest.mark.parametrize(
    "line",
    [
        "inner._pool.close()",
        "a._b = 1",
        "a._b._c = 1",
        "super()._f()",
        "getattr(a, '_g', None)",
        "hasattr(a, '_h')",
        "from airflow._shared import x",
        "from airflow.sdk import _x",
    ],
)
def test_the_scan_sees_every_way_to_use_one(line: str):
    assert list(foreign_attributes(line))


def test_each_row_names_a_test_of_this_file():
    tests = [name for *_, (name,) in ROWS]
    assert len(tests) == 4
    assert [name for name in tests if not callable(globals().get(name))] == []


# Asset state stores


class Sugar:
    """What Airflow documents of the state stores of a trigger: the shortcuts for a single asset."""

    def __init__(self, accessors: Any) -> None:
        self.aget, self.aset = accessors.aget, accessors.aset


@pytest.mark.since("3.3")
@pytest.mark.parametrize(("names", "works"), [("a", True), ("ab", False)])
async def test_a_watcher_without_the_list_of_its_assets(monkeypatch, caplog, names: str, works: bool):
    from airflow.sdk import Asset
    from airflow.sdk.execution_time.context import AssetStateStoreAccessors

    from openmarkets_provider.triggers.events import OpenmarketsEventTrigger

    stores = StateStores(monkeypatch)
    watcher = OpenmarketsEventTrigger(query=queries.request("oms", "GET", "a/v1"), key="id")
    accessors = AssetStateStoreAccessors([Asset(name) for name in names])
    watcher.asset_state_store = accessors
    assert len(watcher._list_stores()) == len(names), "Airflow has renamed _by_name"
    for name in names:
        stores.values[name][watcher._store._key] = {"format": 1, "count": 1, "seen": digest(1)}
    watcher.asset_state_store = Sugar(accessors)
    payload = await watcher._find_payload(Reading(Outcome([{"id": 1}, {"id": 2}]), 1.0))
    assert payload == ([{"item": {"id": 2}, "key": 2}] if works else [])
    assert ("could not read the asset's state store" in caplog.text) is not works


# Mapped operators


def test_airflow_marks_mapped_operators():
    marks = []

    class Transfer(OpenmarketsToSqlOperator):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            marks.append((self._BaseOperator__from_mapped, len(self.outlets)))

    arguments: dict[str, Any] = {"table": "bars", "conn_id": "db", "mode": "append"}
    query = queries.quotes("BHP")
    with DAG("dag", schedule=None):
        Transfer(task_id="alone", query=query, **arguments)
        mapped = Transfer.partial(task_id="mapped", **arguments).expand(query=[query])
    mapped.unmap({"query": query})
    # Its own outlet is that of the unmapped task.
    assert marks == [(False, 1), (True, 0)]


# Intervals of sensors


def test_a_sensor_that_airflow_does_not_ask_for_the_interval(openmarkets_sandbox):
    openmarkets_sandbox.fault(target="market_data", kind="status", status=429, retry_after=120)
    sensor = OpenmarketsSensor(
        task_id="wait", query=queries.quotes("BHP"), condition="@", poke_interval=0.05, timeout=60
    )
    assert callable(super(OpenmarketsSensor, sensor)._get_next_poke_interval)
    for _ in range(5):
        assert not sensor.poke({}).is_done
    sensor._hook.close()
    assert openmarkets_sandbox.stats()["requests"]["market_data"] == 1
