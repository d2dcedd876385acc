"""The tests do not use the Airflow of the user who runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEST = "tests/test_provider_info.py::test_it_is_what_airflow_reads"


def run_pytest(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTEST"))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments, TEST]
    return subprocess.run(command, cwd=ROOT, env=env | {"HOME": str(home)}, capture_output=True, text=True)


def test_a_run_of_tests_leaves_nothing_of_airflow_in_the_home_of_its_user(tmp_path: Path):
    run = run_pytest(tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "1 passed" in run.stdout
    assert not (tmp_path / "airflow").exists()


def test_a_plugin_that_imports_airflow_first_is_refused(tmp_path: Path):
    run = run_pytest(tmp_path, "-p", "airflow")
    assert run.returncode != 0
    assert "has imported Airflow before" in run.stderr
