"""Databases that the tests of several transfers load."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.databases import Database, PostgresDatabase, SqliteDatabase


@pytest.fixture(params=["postgres", "sqlite"])
def database(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Database:
    """An empty database, and the connection ``db`` to it."""
    made: Database
    if request.param == "sqlite":
        made = SqliteDatabase(tmp_path / "test.db")
    else:
        made = PostgresDatabase(request.getfixturevalue("postgres"))
    monkeypatch.setenv("AIRFLOW_CONN_DB", made.airflow_connection)
    return made
