"""CONTRIBUTING.md describes the code correctly, and its instructions work."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "openmarkets_provider"
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
MODULES = sorted(path for folder in (PACKAGE, ROOT / "dev") for path in folder.rglob("*.py"))


def section(heading: str) -> str:
    return re.split(r"^## .*\n", GUIDE.partition(f"## {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


MAP = [
    name
    for line in section("Map").splitlines()
    if line.startswith("| `")
    for name in re.findall(r"`([^`]+)`", line.split("|")[1])
]
ENDPOINT = section("Adding an endpoint")
STEPS = re.findall(
    r"n `(\S+)`, (below|above) (the first )?`([^\n]*)`:\n\n {3}```python\n(.*?) {3}```", ENDPOINT, re.DOTALL
)
"""Where it is, in which module and by which line, and what to put there."""
(TEST,) = re.findall(r"4\. A test[^\n]*\n\n {3}```python\n(.*?) {3}```", ENDPOINT, re.DOTALL)


def test_every_module_of_the_package_is_in_the_map():
    known = {PACKAGE / name for name in MAP}
    missing = [
        path
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py" and not known & {path, *path.parents} - {PACKAGE}
    ]
    assert [str(path.relative_to(PACKAGE)) for path in missing] == []


@pytest.mark.parametrize("name", MAP)
def test_what_the_map_names_is_there(name: str):
    assert [*PACKAGE.glob(name), *ROOT.glob(name)]


def test_no_module_is_longer_than_the_guide_says():
    most = int(re.search(r"has more than (\d+) lines", GUIDE)[1])
    long = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in MODULES}
    assert {path: lines for path, lines in long.items() if lines > most} == {}


def test_the_layers_are_those_that_import_linter_holds():
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    held = [
        [{name.strip().rpartition(".")[2] for name in line.split("|")} for line in contract["layers"]]
        for contract in linter["contracts"]
        if contract["type"] == "layers"
    ]
    shown = re.search(r"```text\n(.*?)```", section("Layers"), re.DOTALL)[1]
    assert [set(line.split(", ")) for line in shown.splitlines()] == held[0]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package in which somebody has followed the guide."""
    root = tmp_path_factory.mktemp("copy")
    shutil.copytree(PACKAGE, root / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "docs").mkdir()
    (root / "tests").mkdir()
    for name in ("pyproject.toml", "docs/generate.py", "docs/queries.md"):
        shutil.copyfile(ROOT / name, root / name)
    for module, side, first, anchor, block in STEPS:
        path = root / PACKAGE.name / module
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        found = [number for number, line in enumerate(lines) if line.strip() == anchor]
        assert len(found) == 1 or (first and found), f"{module}: {anchor}"
        place = found[0] + (side == "below")
        lines[place:place] = [as_written(block)]
        path.write_text("".join(lines), encoding="utf-8")
    (root / "tests" / "test_watch_lists.py").write_text(as_written(TEST), encoding="utf-8")
    return root


def as_written(block: str) -> str:
    """Return a block of a list's item without the item's indentation."""
    return re.sub(r"^ {3}", "", block, flags=re.MULTILINE)


def run(copy: Path, *arguments: str) -> str:
    env = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, *arguments], cwd=copy, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_endpoint_is_a_record_and_a_function_in_two_modules():
    modules = [module for module, *_ in STEPS]
    assert set(modules) == {"query/endpoints.py", "queries.py", "sandbox/oms.py"}
    (record,) = [block for module, *_, block in STEPS if module == "query/endpoints.py"]
    assert isinstance(ast.parse(textwrap.dedent(record)).body[0].value.elts[0], ast.Call)
    name, function = [block for module, *_, block in STEPS if module == "queries.py"]
    assert ast.literal_eval(name.strip().removesuffix(",")) == "watch_lists"
    (definition,) = ast.parse(textwrap.dedent(function)).body
    assert isinstance(definition, ast.FunctionDef)


def test_the_test_of_the_guide_passes_where_the_guide_was_followed(copy: Path):
    report = run(copy, "-m", "pytest", "-p", "no:cacheprovider", "-q", "tests")
    assert "1 passed" in report
    where = run(copy, "-c", "from openmarkets_provider import queries; print(queries.__file__, queries.watch_lists())")
    query = {"endpoint": "watch_lists", "on_missing_field": "warn", "raw": False}
    assert where == f"{copy}/openmarkets_provider/queries.py {query}\n"


def test_the_new_endpoint_is_in_the_reference_of_queries(copy: Path):
    run(copy, "docs/generate.py")
    (report,) = re.findall(
        r"^## watch_lists\n(.*?)(?=^## )", (copy / "docs/queries.md").read_text(), re.DOTALL | re.MULTILINE
    )
    assert "- calls: `GET watchlists/v1`" in report
    assert "| `create_date_time` | exchange time | `createDateTime` |" in report


def test_the_new_endpoint_can_be_landed(copy: Path):
    layout = "from openmarkets_provider.landing.layout import layout_of"
    names = "[column.name for column in layout_of(queries.watch_lists()).columns]"
    report = run(copy, "-c", f"{layout}; from openmarkets_provider import queries; print({names})")
    assert report.startswith("['watch_list_code', 'watch_list_name', 'create_date_time'")


def test_the_lines_of_the_guide_are_as_make_lint_wants_them(copy: Path):
    run(copy, "-m", "ruff", "check", "--no-cache", "openmarkets_provider", "tests")
    run(copy, "-m", "ruff", "format", "--no-cache", "--check", "openmarkets_provider", "tests")
