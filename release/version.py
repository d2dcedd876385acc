"""The version, in the code and in CHANGELOG.md: ``python -m release.version 0.2.0`` moves both to the next one."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from packaging.version import InvalidVersion, Version

from release.common import PACKAGE, ROOT, Refused, exit_status

UNRELEASED = "## Unreleased\n"
_ASSIGNED = re.compile(r'^__version__ = "([^"]*)"$', re.MULTILINE)
_HEADING = re.compile(r"^## (.*)\n", re.MULTILINE)
_RELEASED = re.compile(r"(\S+) \((\d{4}-\d\d-\d\d)\)")


@dataclass(frozen=True)
class Changelog:
    """CHANGELOG.md, read.

    :ivar unreleased: what stands under its first heading, without blanks around it.
    :ivar released: the versions that have a section, the last one first.
    """

    unreleased: str
    released: tuple[Version, ...]


def code_version(root: Path) -> Version:
    """Return the version that the code has.

    :raises Refused: it says none.
    """
    match = _ASSIGNED.search(_code(root).read_text(encoding="utf-8"))
    if match is None:
        raise Refused(f'{PACKAGE}/__init__.py has no line such as __version__ = "0.1.0".')
    return Version(match[1])


def read_changelog(root: Path) -> Changelog:
    """Read CHANGELOG.md.

    :raises Refused: its headings are not ``## Unreleased`` and then ``## VERSION (YYYY-MM-DD)``, the highest first.
    """
    text = _log(root).read_text(encoding="utf-8")
    _, *parts = _HEADING.split(text)
    headings, bodies = parts[::2], parts[1::2]
    if not headings or f"## {headings[0]}\n" != UNRELEASED:
        raise Refused("CHANGELOG.md: its first section must be '## Unreleased'.")
    released = []
    for heading in headings[1:]:
        match = _RELEASED.fullmatch(heading)
        if match is None:
            raise Refused(f"CHANGELOG.md: the heading '## {heading}' must be written '## 1.2.3 (2026-01-31)'.")
        released.append(Version(match[1]))
    if released != sorted(set(released), reverse=True):
        raise Refused("CHANGELOG.md: its versions must be in order, the highest first, each once.")
    return Changelog(bodies[0].strip(), tuple(released))


def advance(root: Path, text: str, today: date) -> None:
    """Give the code a version, and what is unreleased a section of its own in CHANGELOG.md.

    :param today: the date of that section.
    :raises Refused: it is no version, or not a higher one, or nothing is unreleased. Nothing is changed then.
    """
    version = _read_version(text)
    present, log = code_version(root), read_changelog(root)
    last = max(log.released, default=None)
    if last is not None and version <= last:
        raise Refused(f"VERSION: {version} is not higher than {last}, which CHANGELOG.md has.")
    if version < present:
        raise Refused(f"VERSION: {version} is lower than {present}, which the code has.")
    if not log.unreleased:
        raise Refused("CHANGELOG.md: nothing stands under '## Unreleased'; a release says what is new.")
    changed = _log(root).read_text(encoding="utf-8").replace(UNRELEASED, f"{UNRELEASED}\n## {version} ({today})\n", 1)
    _log(root).write_text(changed, encoding="utf-8")
    code = _code(root).read_text(encoding="utf-8")
    _code(root).write_text(_ASSIGNED.sub(f'__version__ = "{version}"', code), encoding="utf-8")


def _read_version(text: str) -> Version:
    if not text:
        raise Refused("VERSION is empty: make version VERSION=0.2.0")
    try:
        version = Version(text)
    except InvalidVersion:
        raise Refused(f"VERSION: {text!r} is not a version as PEP 440 has them, such as 0.2.0 or 0.2.0rc1.") from None
    if str(version) != text or len(version.release) != 3:
        raise Refused(f"VERSION: {text!r} must be written with three numbers and nothing to normalise, as 0.2.0.")
    if version.local or version.epoch or version.is_devrelease:
        raise Refused(f"VERSION: {text!r} has an epoch, a local part or .dev, which no release has.")
    return version


def _code(root: Path) -> Path:
    return root / PACKAGE / "__init__.py"


def _log(root: Path) -> Path:
    return root / "CHANGELOG.md"


def main(arguments: list[str]) -> None:
    """Take the version from the command line."""
    text = arguments[0].strip() if arguments else ""
    advance(ROOT, text, datetime.now(UTC).date())
    print(f"The version is {text}, in {PACKAGE}/__init__.py and CHANGELOG.md. Look at both, commit, make release.")


if __name__ == "__main__":
    raise SystemExit(exit_status(lambda: main(sys.argv[1:])))
