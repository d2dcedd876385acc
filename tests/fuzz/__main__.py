"""Fuzz every target for some minutes: ``python -m tests.fuzz --minutes 5 [--only token]``. Prints a table."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import settings

EXAMPLES = 2000
"""Of one round; each begins anew, with chances of its own."""
LINES = 80
"""Of a failure that are shown, each cut."""


def targets() -> dict[str, Callable[[], None]]:
    """Return the targets by their names."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        module = importlib.import_module(f"tests.fuzz.{path.stem}")
        found |= {
            f"{path.stem.removeprefix('test_')}.{name.removeprefix('test_')}": target
            for name, target in vars(module).items()
            if hasattr(target, "hypothesis") and name.startswith("test_")
        }
    return found


def fuzz(target: Any, minutes: float) -> tuple[int, str]:
    """Run a target until its time is over, or it fails; return how many examples it had, and how it failed."""
    inner, count = target.hypothesis.inner_test, 0

    def counted(*args: Any, **kwargs: Any) -> None:
        nonlocal count
        count += 1
        inner(*args, **kwargs)

    target.hypothesis.inner_test = counted
    target._hypothesis_internal_use_settings = settings(
        target._hypothesis_internal_use_settings, max_examples=EXAMPLES, print_blob=True
    )
    end = time.monotonic() + minutes * 60
    try:
        while time.monotonic() < end:
            target()
    except Exception:
        return count, traceback.format_exc()
    return count, ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="for each target")
    parser.add_argument("--only", default="", help="targets whose name holds this text")
    options = parser.parse_args()
    import tests.conftest  # noqa: F401 (an Airflow home of its own)

    logging.disable()
    sys.stdout.reconfigure(errors="backslashreplace")
    failed = 0
    for name, target in targets().items():
        if options.only in name:
            count, failure = fuzz(target, options.minutes)
            failed += bool(failure)
            outcome = "FAILED" if failure else "ok"
            print(f"{name:50} {options.minutes:6.2f} min {count:9,} examples  {outcome}", flush=True)
            for line in failure.splitlines()[-LINES:]:
                print(f"    {line:.300}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
