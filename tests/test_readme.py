"""What the README shows works."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from openmarkets_provider import exceptions, queries
from openmarkets_provider.get_provider_info import CONNECTION_FIELDS, RELABELING
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook

README = (Path(__file__).parent.parent / "README.md").read_text()


# It shows tasks of Airflow 3.
@pytest.mark.since("3.0")
def test_the_hook_in_a_task_writes_what_it_pulled(openmarkets_sandbox, tmp_path: Path):
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "bars_to_csv" in code]
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    path = tmp_path / "bars.csv"
    written = names["bars_to_csv"].function(str(path), "2026-03-02", "2026-03-03")
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


def test_the_fields_of_the_connection_are_those_of_the_form():
    (lines,) = re.findall(r"^\| field \| where .*?\n\n", README, re.DOTALL | re.MULTILINE)
    shown = dict(re.findall(r"^\| ([\w ]+) \| `(\w+)`", lines, re.MULTILINE))
    known = {label: name for name, label in RELABELING.items()}
    known |= {field["label"]: name for name, field in CONNECTION_FIELDS.items()}
    assert len(shown) == 4
    assert shown.items() <= known.items()


def test_every_query_and_every_error_has_a_place():
    named = set(re.findall(r"`(\w+)[`(]", README))
    assert set(queries.__all__) - {"Query"} <= named
    errors = {name for name in vars(exceptions) if name.startswith("Openmarkets")}
    # What others stand for.
    assert errors - named == {"OpenmarketsError", "OpenmarketsAuthError", "OpenmarketsApiError"}
