"""What the README shows works; tests/test_docs_code.py runs its DAG."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest

from openmarkets_provider.hooks.openmarkets import OpenmarketsHook

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("line", re.findall(r"^export (AIRFLOW_CONN_.*)$", README, re.MULTILINE))
def test_the_connection_works(line: str, monkeypatch: pytest.MonkeyPatch):
    name, _, value = shlex.split(line)[0].partition("=")
    monkeypatch.setenv(name, value)
    assert os.environ[name]
    settings = OpenmarketsHook().client.settings
    assert (settings.client_id, settings.client_secret) == ("my-id", "my-secret")
    assert (settings.environment, settings.scopes) == ("test", ("market-data-api",))


def test_every_transfer_and_check_has_a_place():
    classes = {
        name
        for folder in ("transfers", "checks", "operators", "sensors")
        for path in (ROOT / "openmarkets_provider" / folder).glob("[!_]*.py")
        for name in re.findall(r"^class (Openmarkets\w+)", path.read_text(), re.MULTILINE)
    }
    assert classes - set(re.findall(r"`(\w+)[`(]", README)) == set()
