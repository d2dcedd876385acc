"""What the README shows works."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest

from openmarkets_provider.get_provider_info import CONNECTION_FIELDS
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook

README = (Path(__file__).parent.parent / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


# It shows DAGs of Airflow 3.
@pytest.mark.since("3.0")
@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_every_python_block_runs(code: str, openmarkets_sandbox, tmp_path: Path):
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    for name, value in names.items():
        if name.startswith("test_"):
            value(openmarkets_sandbox)
        if name == "bars_to_csv":
            path = tmp_path / "bars.csv"
            written = value.function(str(path), "2026-03-02", "2026-03-03")
            header, *lines = path.read_text().splitlines()
            assert header.startswith("security_code,time_series_date")
            assert written == len(lines) > 1000


@pytest.mark.parametrize("line", re.findall(r"^export (AIRFLOW_CONN_.*)$", README, re.MULTILINE))
def test_every_form_of_the_connection_works(line: str, monkeypatch: pytest.MonkeyPatch):
    name, _, value = shlex.split(line)[0].partition("=")
    monkeypatch.setenv(name, value)
    assert os.environ[name]
    settings = OpenmarketsHook().client.settings
    assert (settings.client_id, settings.client_secret) == ("my-id", "my-secret")
    assert (settings.environment, settings.scopes) == ("test", ("market-data-api",))


def test_every_connection_field_is_in_the_table():
    for name, field in CONNECTION_FIELDS.items():
        assert f"`{name}`" in README
        assert field["label"] in README
