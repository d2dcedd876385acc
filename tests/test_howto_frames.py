"""Runs the code of the how-to pages on notebooks and plain Python, each in a separate process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pages import BLOCKS
from tests.support.sandbox_process import SandboxProcess

NO_AIRFLOW = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "airflow":
            raise ImportError("Airflow is imported: " + name)
sys.meta_path.insert(0, Refuse())
"""


@pytest.fixture(scope="module")
def sandbox():
    with SandboxProcess() as process:
        yield process


def code(page: str) -> str:
    (block,) = (block.text for block in BLOCKS if (block.page, block.kind) == (f"docs/howto/{page}.md", "python"))
    return block


def run(program: str, home: Path, **environment: str) -> list[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    env = own | {"AIRFLOW_HOME": str(home), "NO_PROXY": "127.0.0.1"} | environment
    done = subprocess.run([sys.executable, "-c", program], env=env, cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_lines_for_a_notebook_need_no_metadata_database(sandbox: SandboxProcess, tmp_path: Path):
    program = f"{code('notebook')}\nprint(len(bars), *turnover.index, *turnover.dtype.name.split())"
    *_, last = run(
        program,
        tmp_path,
        AIRFLOW_CONN_OPENMARKETS_DEFAULT=sandbox.connection_json,
        AIRFLOW__DATABASE__SQL_ALCHEMY_CONN="postgresql://nobody@127.0.0.1:1/none",
    )
    assert last == "10 BHP CBA Float64"
    assert list(tmp_path.rglob("*.db")) == []


def test_the_client_works_where_airflow_can_not_be_imported(sandbox: SandboxProcess, tmp_path: Path):
    connection = sandbox.connection
    urls = {"identity_url": connection["host"], **connection["extra"]}
    credentials = f"{connection['login']!r}, {connection['password']!r}, **{urls!r}"
    program = code("plain-python").replace('"<client id>", "<client secret>"', credentials)
    assert credentials in program
    (last,) = run(f"{NO_AIRFLOW}{program}\nprint(len(rows), len(bars), rows[0]['close_price'])", tmp_path)
    assert last.split()[:2] == ["10", "10"]
