"""The licences of what the package needs: ``python -m release.licences`` writes docs/licences.md."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from release.common import ROOT, Refused, exit_status, run, tool

PAGE = ROOT / "docs" / "licences.md"
ALLOWED: Mapping[str, str] = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache Software License": "Apache-2.0",
    "Apache-2.0": "Apache-2.0",
    "BSD License": "BSD",
    "BSD-2-Clause": "BSD-2-Clause",
    "BSD-3-Clause": "BSD-3-Clause",
    "ISC": "ISC",
    "MIT License": "MIT",
    "MIT": "MIT",
    "PSF-2.0": "PSF-2.0",
}
"""Licences that ask for no more than to be named, as packages write them and as they are shown."""


def main() -> None:
    """Write the page."""
    text = page(ROOT / "pyproject.toml", installed_licences())
    PAGE.write_text(text, encoding="utf-8")


def page(project: Path, licences: Mapping[str, str]) -> str:
    """Return the page.

    :param licences: what packages say of themselves, by canonical name.
    :raises Refused: a licence is not allowed, or not known; the text names every such package.
    """
    lines, refused = [], []
    for name, when in needed(project).items():
        stated = licences.get(name, "")
        if is_allowed(stated):
            lines.append(f"| `{name}` | {', '.join(when)} | {shown(stated)} |")
        else:
            refused.append(f"{name} ({stated or 'not installed'})")
    if refused:
        raise Refused(
            f"licences that are not on the list: {', '.join(refused)}. Do without the package, or put the licence into "
            "ALLOWED of release/licences.py, if it asks for no more than to be named."
        )
    return "\n".join(
        [
            "<!-- Written by `make audit` from the installed packages. Change pyproject.toml, not this file. -->",
            "",
            "# Licences",
            "",
            "What the package needs directly, and the licence that each of them states. What these need themselves,",
            "above all what Airflow needs, is in the list and in the bill of materials that come with a release.",
            "",
            "| package | needed | licence |",
            "| --- | --- | --- |",
            *lines,
            "",
        ]
    )


def needed(project: Path) -> dict[str, list[str]]:
    """Return what a package requires, by canonical name, and for what: always, or an extra."""
    table = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    found: dict[str, list[str]] = {}
    for when, requirements in [
        ("always", table["dependencies"]),
        *((f"extra `{extra}`", listed) for extra, listed in table["optional-dependencies"].items()),
    ]:
        for requirement in requirements:
            found.setdefault(canonicalize_name(Requirement(requirement).name), []).append(when)
    return found


def installed_licences() -> dict[str, str]:
    """Return what the packages of this environment say of their licences, by canonical name."""
    told = json.loads(run(tool("pip-licenses"), "--from", "mixed", "--format", "json", cwd=ROOT))
    return {canonicalize_name(each["Name"]): each["License"] for each in told}


def is_allowed(stated: str) -> bool:
    """Tell whether a licence, or an expression of some, is allowed: all that are joined by AND, one of those by OR."""
    return any(all(part in ALLOWED for part in _parts(choice)) for choice in stated.split(" OR "))


def shown(stated: str) -> str:
    """Return how an allowed licence is shown."""
    return " or ".join(" and ".join(ALLOWED.get(part, part) for part in _parts(each)) for each in stated.split(" OR "))


def _parts(choice: str) -> list[str]:
    return re.split(r" AND |; ", choice)


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
