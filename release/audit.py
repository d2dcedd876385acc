"""Known advisories about what constraints.txt pins: ``python -m release.audit``.

pip-audit asks the OSV database, and not the package index: of a mirror that tells nothing of advisories it would take
that there are none. Every pin is audited, those for other Pythons and systems too, and one that was not is an error.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from release.common import ROOT, Argument, Refused, exit_status, tool

SERVICE = "https://api.osv.dev/v1/query"
SHOWN = 10

Pin = tuple[str, str]
"""Canonical name and version."""


def main() -> None:
    """Audit constraints.txt."""
    pins = read_pins(ROOT / "constraints.txt")
    check_advisories(pins)
    print(f"no known advisory about any of {len(pins)} pinned versions")


def check_advisories(pins: list[Pin], service: str = SERVICE) -> None:
    """Ask for advisories about every pin.

    :param service: where to ask, in the manner of OSV.
    :raises Refused: there are some, or a pin could not be audited; the text names each.
    """
    audited: set[Pin] = set()
    found: list[str] = []
    for layer in layers(pins):
        for package in _ask(layer, service):
            pin = (canonicalize_name(package["name"]), str(package.get("version")))
            audited.add(pin)
            for advisory in package.get("vulns", []):
                mended = ", ".join(advisory["fix_versions"]) or "nothing yet"
                found.append(f"{pin[0]} {pin[1]}: {advisory['id']}, mended in {mended}")
    if found:
        raise Refused("there are advisories. make constraints may mend them:\n" + "\n".join(found))
    if missing := [f"{name} {version}" for name, version in pins if (name, version) not in audited]:
        more = ", ..." if len(missing) > SHOWN else ""
        raise Refused(f"{len(missing)} pins could not be audited: {', '.join(missing[:SHOWN])}{more}")


def read_pins(path: Path) -> list[Pin]:
    """Read a file of constraints; for which system a pin is makes no difference."""
    lines = path.read_text(encoding="utf-8").splitlines()
    pins: list[Pin] = []
    for requirement in (Requirement(line) for line in lines if line.strip() and not line.startswith("#")):
        (version,) = requirement.specifier
        pins.append((canonicalize_name(requirement.name), version.version))
    return pins


def layers(pins: list[Pin]) -> list[list[Pin]]:
    """Part the pins so that none of the lists has a package twice, which pip-audit would refuse."""
    by_depth: dict[int, list[Pin]] = defaultdict(list)
    seen: dict[str, int] = defaultdict(int)
    for name, version in pins:
        by_depth[seen[name]].append((name, version))
        seen[name] += 1
    return list(by_depth.values())


def _ask(pins: list[Pin], service: str) -> list[dict[str, Any]]:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(f"{name}=={version}" for name, version in pins) + "\n")
        file.flush()
        command: list[Argument] = [
            tool("pip-audit"),
            "--requirement",
            file.name,
            "--no-deps",
            "--disable-pip",
            "--strict",
        ]
        asked = [
            "--vulnerability-service",
            "osv",
            "--osv-url",
            service,
            "--format",
            "json",
            "--progress-spinner",
            "off",
        ]
        done = subprocess.run([*command, *asked], capture_output=True, text=True, check=False)
    try:
        packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
        return packages
    except (ValueError, KeyError):
        said = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise Refused(
            f"pip-audit could not ask {service} about {len(pins)} packages, so nothing is known of them. "
            f"Can this machine reach it? {said[0]}"
        ) from None


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
