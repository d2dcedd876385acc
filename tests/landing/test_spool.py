from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import IO, Any

import pytest

from openmarkets_provider.exceptions import OpenmarketsError
from openmarkets_provider.landing import spool
from openmarkets_provider.landing.spool import Spool, open_scratch

PROBLEM = "Cannot write rows to a temporary file in here: "


@pytest.fixture
def file() -> Iterator[IO[bytes]]:
    with open_scratch() as file:
        yield file


def rows_of(rows: Spool[Any], key: Any) -> list[tuple[Any, ...]]:
    return [row for columns in rows.batches(key) for row in zip(*columns, strict=True)]


@pytest.mark.parametrize("most", [1, 3, 1000])
def test_rows_come_back_by_key_in_their_order_with_their_types(file, monkeypatch, most):
    monkeypatch.setattr(spool, "MAX_ROWS", most)
    sent = [(number, Decimal("1.10") + number, date(2026, 1, 1), None, '[{"a":1}]') for number in range(10)]
    rows: Spool[str] = Spool(file, "here")
    for row in sent:
        rows.add("odd" if row[0] % 2 else "even", [[value] for value in row])
    assert rows.rows == 10
    assert rows.list_keys() == ["even", "odd"]
    # They can be read again.
    for _ in range(2):
        assert (rows_of(rows, "even"), rows_of(rows, "odd")) == (sent[::2], sent[1::2])
    assert [list(map(type, row)) for row in rows_of(rows, "even")] == [list(map(type, row)) for row in sent[::2]]


def test_batches_are_joined_and_never_divided(file, monkeypatch):
    monkeypatch.setattr(spool, "MAX_ROWS", 3)
    rows: Spool[None] = Spool(file, "here")
    for size in (1, 1, 5, 1):
        first = rows.rows + 1
        rows.add(None, [list(range(first, first + size)), [Decimal("1.10")] * size])
    assert rows.rows == 8
    batches = list(rows.batches(None))
    assert [len(columns[0]) for columns in batches] == [7, 1]
    assert [number for columns in batches for number in columns[0]] == list(range(1, 9))
    assert str(batches[0][1][0]) == "1.10"


def test_nothing_comes_back_as_nothing(file):
    rows: Spool[None] = Spool(file, "here")
    assert list(rows.batches(None)) == []
    rows.add(None, [[], []])
    assert (rows.rows, rows.list_keys(), list(rows.batches(None))) == (0, [], [])


def test_what_is_added_is_not_changed(file):
    columns = [[1]]
    rows: Spool[str] = Spool(file, "here")
    rows.add("x", columns)
    rows.add("x", [[2]])
    assert columns == [[1]]


def test_a_full_disk_shows_as_soon_as_rows_go_there(monkeypatch):
    monkeypatch.setattr(spool, "MAX_ROWS", 1)
    file = Path("/dev/full").open("r+b")  # noqa: SIM115
    with pytest.raises(OpenmarketsError, match=f"{PROBLEM}.*No space left") as error:
        Spool(file, "here").add("x", [[1]])
    assert (error.value.transient, error.value.sent) == (True, True)
    spool.close(file)


def test_rows_that_can_not_be_read_again_are_a_failure_that_may_pass(file, monkeypatch):
    monkeypatch.setattr(spool, "MAX_ROWS", 1)
    rows: Spool[None] = Spool(file, "here")
    rows.add(None, [["x"]])
    with open(os.devnull, "wb") as unreadable:
        os.dup2(unreadable.fileno(), file.fileno())
        with pytest.raises(OpenmarketsError, match=PROBLEM) as error:
            next(rows.batches(None))
    assert error.value.transient


class TestScratch:
    def test_it_has_no_name_in_the_folder(self, tmp_path, monkeypatch):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        with open_scratch() as file:
            file.write(b"x" * 100_000)
            file.flush()
            assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_is_not_there_is_a_failure_that_may_pass(self, tmp_path, monkeypatch):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
        problem = r"Cannot create a temporary file in .*/gone \(set by TMPDIR\): FileNotFoundError"
        with pytest.raises(OpenmarketsError, match=problem) as error, open_scratch():
            pass
        assert error.value.transient

    def test_a_disk_that_is_full_is_a_failure_that_may_pass(self):
        code = (
            "import resource\n"
            "from openmarkets_provider.exceptions import OpenmarketsError\n"
            "from openmarkets_provider.landing.spool import Spool, open_scratch, scratch_folder\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
            "with open_scratch() as file:\n"
            "    rows = Spool(file, scratch_folder())\n"
            "    try:\n"
            "        for number in range(100): rows.add(None, [[str(i) for i in range(1000)]])\n"
            "    except OpenmarketsError as error:\n"
            "        print(type(error).__name__, error.transient, error.sent, error)\n"
        )
        output = subprocess.check_output([sys.executable, "-c", code], text=True)
        assert output.startswith("OpenmarketsError True True Cannot write rows to a temporary file in ")
        assert "TMPDIR" in output
