from __future__ import annotations

import os

import pytest

from openmarkets_provider.exceptions import OpenmarketsError
from openmarkets_provider.landing.spool import Spool

KEPT = "The rows can't be kept on this machine until all have come"


def test_a_folder_for_them_that_is_not_there_is_a_failure_that_may_pass(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(OpenmarketsError, match=f"{KEPT}: .*gone; the variable TMPDIR") as error:
        Spool(1)
    assert error.value.transient


def test_rows_that_can_not_be_read_again_are_a_failure_that_may_pass():
    with Spool(1) as kept, open(os.devnull, "wb") as unreadable:
        kept.add([["x"]])
        batches = kept.batches()
        os.dup2(unreadable.fileno(), kept._file.fileno())
        with pytest.raises(OpenmarketsError, match=KEPT) as error:
            next(batches)
        assert error.value.transient
