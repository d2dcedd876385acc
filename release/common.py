"""What all steps share: the one error, and how another program is run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = "openmarkets_provider"
NAME = "airflow-provider-openmarkets"
OUTPUT_TAIL = 3000

Argument = str | Path
"""Of a command."""


class Refused(Exception):
    """A step can't go on; the text says why, and what to do."""


def run(*command: Argument, cwd: Path, env: Mapping[str, str] | None = None, umask: int = -1) -> str:
    """Run a program to its end and return what it printed, without what it wrote to its standard error.

    :param env: instead of this process's environment.
    :raises Refused: it failed; the text ends with what it said.
    """
    done = subprocess.run(command, cwd=cwd, env=env, umask=umask, capture_output=True, text=True, check=False)
    if done.returncode:
        said = f"{done.stdout}\n{done.stderr}".strip()[-OUTPUT_TAIL:]
        raise Refused(f"{Path(command[0]).name} {' '.join(map(str, command[1:]))} failed ({done.returncode}):\n{said}")
    return done.stdout


def tool(name: str) -> Path:
    """Return a program of the environment that runs this."""
    return Path(sys.executable).parent / name


def plain_environment(**more: str) -> dict[str, str]:
    """Return this environment without what points at a checkout or at an Airflow."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTHON"))} | more


def exit_status(step: Callable[[], None]) -> int:
    """Carry out a step; print what it refuses, and return the exit status."""
    try:
        step()
    except Refused as error:
        print(f"refused: {error}", file=sys.stderr)
        return 1
    return 0
